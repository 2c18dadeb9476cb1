"""Builds engine kind `tensorrt`: the network that its parser reads, and the build itself."""
