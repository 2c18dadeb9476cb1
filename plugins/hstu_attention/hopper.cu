// Attention for head dimension 256 on Hopper, in one launch.
//
// One block a multiprocessor: a producer warpgroup (bulk copies, schedule) and two consumer
// warpgroups of 64 query rows each. Per unit of 64 keys a consumer computes S = Q K^T into
// registers, applies the mask and SiLU there, and adds P V to a 64 x 256 fp32 accumulator; the next
// Q K^T is issued before P V, so that SiLU runs under matrix work. See README.md for the versions.
#include "hopper.h"
#include "hopper_consumer.cuh"
#include "hopper_producer.cuh"
#include "launch.cuh"
#include "tensor_map.h"

namespace mtgr {
namespace hopper {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    attention_hopper(const __grid_constant__ Problem p, const __grid_constant__ Maps maps,
                     Partial* partials, int* counters) {
  extern __shared__ __align__(1024) unsigned char raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  release_dependents();  // it was launched plainly: all before it has ended
  if (threadIdx.x == 0) shared.init();
  if (threadIdx.x < 32) prefetch_offsets(p);
  if (threadIdx.x == 32) prefetch_maps(maps);
  __syncthreads();

  // From lane 0, so that the compiler knows it to be the same in all lanes.
  const int warpgroup = __shfl_sync(~0u, threadIdx.x / 128, 0);
  if (warpgroup == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    switch (threadIdx.x / 32) {
      case 0:
        schedule(p, shared);
        break;
      case 1:
        load_keys(p, maps, shared);
        break;
      case 2:
        load_queries(maps, shared);
        break;
      case 3:
        clear_tails(shared);
        zero_padding<T>(p, p.heads * kDim, blockIdx.x * 32 + threadIdx.x % 32, gridDim.x * 32);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    Consumer<T>(p, shared, warpgroup - 1, partials, counters).run();
  }
}

template <class T>
cudaError_t launch(const Problem& p, mtgr_dtype dtype, int blocks, void* partials, void* counters,
                   cudaStream_t stream) {
  Maps maps;
  cudaError_t error = make_maps(p, dtype, maps);
  if (error != cudaSuccess) return error;
  auto* kernel = attention_hopper<T>;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
  if (error != cudaSuccess) return error;
  // Blocks wait for each other's partial sums: a cooperative launch promises that all run at once.
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = kThreads;
  config.dynamicSmemBytes = sizeof(Shared);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, p, maps, static_cast<Partial*>(partials),
                            static_cast<int*>(counters));
}

}  // namespace
}  // namespace hopper

size_t hopper_partial_bytes(int blocks) {
  // Room for two partial tiles a block.
  return size_t(blocks) * 2 * hopper::kConsumers * sizeof(hopper::Partial);
}

size_t hopper_counter_bytes(int blocks) {
  return size_t(blocks) * hopper::kConsumers * sizeof(int);
}

cudaError_t launch_hopper(const Problem& problem, mtgr_dtype dtype, int blocks, void* partials,
                          void* counters, cudaStream_t stream) {
  auto* launch = dtype == MTGR_FLOAT16 ? hopper::launch<__half> : hopper::launch<__nv_bfloat16>;
  return launch(problem, dtype, blocks, partials, counters, stream);
}

}  // namespace mtgr
