// Programmatic dependent launch: a kernel's blocks may be scheduled while its predecessor in the
// stream still runs, so that launch latency, barrier set-up and loads of weights overlap with it.
//
// The contract of every kernel launched here: it calls wait_for_inputs() in every thread that reads
// or writes memory of other kernels, before it does; and as each kernel of a stream waits for the
// one before it, waiting for the last one is waiting for all.
// What was written before the one before it started may be read without waiting: weights, and what
// layer_tail takes from before attention, which is launched plainly.
#pragma once

#include <cuda_runtime.h>

#include <utility>

namespace mtgr {

// Returns when all kernels before this one have ended and their writes are visible.
__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// From here on, once every block has come here, the next kernel's blocks may take free room.
__device__ __forceinline__ void release_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// The current device's major compute capability.
inline cudaError_t compute_capability(int& major) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
}

// Launches with the overlap where the device has it (compute capability 9.0), plainly elsewhere.
struct Shape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks
};

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Shape& shape, cudaStream_t stream,
                   Arguments&&... arguments) {
  int major = 0;
  if (const cudaError_t error = compute_capability(major); error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {shape.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = major < 9 ? 0 : shape.cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

}  // namespace mtgr
