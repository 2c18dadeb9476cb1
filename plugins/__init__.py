"""CUDA kernels and TensorRT plugins; `loader` is the only Python here that others import."""
