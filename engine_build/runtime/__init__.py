"""Loads a model package and runs its engines. Needs neither torch nor onnx for `onnx-cpu`."""
