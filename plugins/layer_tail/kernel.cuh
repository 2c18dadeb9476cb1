// The end of a layer in one launch, on sm_90a:
//
//   gated = norm(attended * gate)           each block of a cluster its quarter of the columns
//   out   = gated W^T + bias + residual     from all four quarters, again a quarter of the columns
//   next  = norm(out)                       the next layer's first norm
//
// A norm needs whole rows, and so does the product: the four blocks send each other mean and
// squared differences of their quarters, and `gated` itself, through distributed shared memory.
#pragma once

#include "consumer.cuh"

namespace mtgr::tail {

// The warp that copies: weights, which are nobody's output, while earlier kernels end, and the
// block's quarter of `gated` to the other blocks.
template <int kHeads>
__device__ void copy(const Launch& launch, Shared<kHeads>& shared, uint32_t rank) {
  using S = Sizes<kHeads>;
  const bool leader = threadIdx.x % 32 == 0;
  auto load = [&](int i) {
    const int stage = i % S::kStages;
    if (i >= S::kStages) wait(&shared.weight_empty[stage], (i / S::kStages & 1) ^ 1);
    arrive_expecting(&shared.weight_full[stage], S::kWeightBytes);
    copy_rows(shared.weight[stage], &launch.weight, S::chunk(rank, i) * kDepth, rank * S::kColumns,
              &shared.weight_full[stage]);
  };
  if (leader)
    for (int i = 0; i < S::kStages; ++i) load(i);
  auto send_chunk = [&](int i, uint32_t distance) {
    const int chunk = rank * kHeads + i;
    send_bytes(shared.gated[chunk], kRows * kRowBytes, &shared.gated_full[chunk],
               (rank - distance) % kCluster);
  };
  for (int i = 0; i < kHeads; ++i) {
    __syncwarp();
    named_barrier(kGated + i, kThreads);
    if (leader) send_chunk(i, 1);  // the block before this one multiplies them first
  }
  if (leader)
    for (uint32_t distance = 2; distance < kCluster; ++distance)
      for (int i = 0; i < kHeads; ++i) send_chunk(i, distance);
  if (leader)
    for (int i = S::kStages; i < S::kChunks; ++i) load(i);
  __syncwarp();
  cluster_arrive();
  cluster_wait();
}

template <class T, int kHeads>
__global__ void __launch_bounds__(kThreads, 1) layer_tail(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(1024) unsigned char raw[];
  auto& shared = *reinterpret_cast<Shared<kHeads>*>(raw);
  release_dependents();
  if (threadIdx.x == 0) {
    shared.init();
    prefetch_map(&launch.weight);
  }
  const uint32_t rank = cluster_rank();
  cluster_barrier();  // nobody sends before barriers are there
  if (threadIdx.x < kConsumers)
    Consumer<T, kHeads>(launch, shared, rank).run();
  else
    copy(launch, shared, rank);
}

}  // namespace mtgr::tail
