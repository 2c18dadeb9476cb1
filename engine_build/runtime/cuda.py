"""The little of CUDA's runtime that an engine needs, through NVIDIA's cuda-python."""

import ctypes
import weakref
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from engine_build.runtime.engine import EngineError


class CudaError(EngineError):
    """A call that CUDA refused."""


def check(result: tuple[Any, ...]) -> Any:
    """The value of a call's (status, value), or CudaError."""
    status, *values = result
    if status != cudart.cudaError_t.cudaSuccess:
        _, text = cudart.cudaGetErrorString(status)
        raise CudaError(f"CUDA: {text.decode()} ({status.name})")
    return values[0] if values else None


def device_name() -> str:
    """The current GPU and its architecture, such as `NVIDIA H200 sm_90`."""
    properties = check(cudart.cudaGetDeviceProperties(check(cudart.cudaGetDevice())))
    name = properties.name.decode().rstrip("\0")
    return f"{name} sm_{properties.major}{properties.minor}"


class Buffer:
    """Page-locked host memory and device memory of one size, for one copy either way."""

    def __init__(self, size: int):
        self._pointer: int = check(cudart.cudaMallocHost(size))
        self.device: int = check(cudart.cudaMalloc(size))
        array = (ctypes.c_uint8 * size).from_address(self._pointer)
        self.host: NDArray[np.uint8] = np.ctypeslib.as_array(array)
        weakref.finalize(self, cudart.cudaFreeHost, self._pointer)
        weakref.finalize(self, cudart.cudaFree, self.device)

    def to_device(self, size: int, stream: int) -> None:
        """Enqueue the copy of the first `size` bytes."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(cudart.cudaMemcpyAsync(self.device, self._pointer, size, kind, stream))

    def to_host(self, size: int, stream: int) -> None:
        """Enqueue the copy back of the first `size` bytes."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(cudart.cudaMemcpyAsync(self._pointer, self.device, size, kind, stream))
