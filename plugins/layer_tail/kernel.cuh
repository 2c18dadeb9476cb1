// The end of a layer in one launch, on sm_90a:
//
//   gated = norm(attended * gate)           each block of a cluster its quarter of the columns
//   out   = gated W^T + bias + residual     from all four quarters, again a quarter of the columns
//   next  = norm(out)                       the next layer's first norm
//
// A norm needs whole rows, and so does the product: the four blocks send each other mean and
// squared differences of their quarters, and `gated` itself, through distributed shared memory.
#pragma once

#include "gated.cuh"
#include "product.cuh"

namespace mtgr::tail {

// What the copying warp does beside its part of `gated`.
template <int kHeads>
class Copies {
  using S = Sizes<kHeads>;

 public:
  __device__ Copies(const Launch& launch, Shared<kHeads>& shared, uint32_t rank)
      : launch_(launch), shared_(shared), rank_(rank), leader_(threadIdx.x == kCopying) {}

  // Weights are nobody's output: these come while earlier kernels end.
  __device__ void load_first_weights() const {
    if (leader_)
      for (int i = 0; i < S::kStages; ++i) load(i);
  }
  __device__ void load_other_weights() const {
    if (leader_)
      for (int i = S::kStages; i < S::kChunks; ++i) {
        wait(&shared_.weight_empty[i % S::kStages], (i / S::kStages & 1) ^ 1);
        load(i);
      }
  }
  // The block's quarter of `gated` to the other blocks; first, as soon as each chunk is whole, to
  // the block before this one, which multiplies them first.
  __device__ void send_gated() const {
    for (int i = 0; i < kHeads; ++i) {
      __syncwarp();
      named_barrier(kGated + i, kThreads);
      if (leader_) send_chunk(i, 1);
    }
    if (leader_)
      for (uint32_t distance = 2; distance < kCluster; ++distance)
        for (int i = 0; i < kHeads; ++i) send_chunk(i, distance);
  }

 private:
  __device__ void load(int i) const {
    const int stage = i % S::kStages;
    uint64_t* full = &shared_.weight_full[stage];
    arrive_expecting(full, S::kWeightBytes);
    for (int half = 0; half < 2; ++half)
      copy_weight(shared_.weight[stage] + half * S::kHalf * kRowBytes, &launch_.weight,
                  S::chunk(rank_, i) * kDepth, (rank_ * S::kColumns + half * S::kHalf) / kGroup, 0,
                  full);
  }
  __device__ void send_chunk(int i, uint32_t distance) const {
    const int chunk = rank_ * kHeads + i;
    send_bytes(shared_.gated[chunk], kRows * kRowBytes, &shared_.gated_full[chunk],
               (rank_ - distance) % kCluster);
  }

  const Launch& launch_;
  Shared<kHeads>& shared_;
  const uint32_t rank_;
  const bool leader_;
};

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
  const Copies<kHeads> copies(launch, shared, rank);
  const bool copying = threadIdx.x >= kCopying;
  if (copying) copies.load_first_weights();
  const bool multiplying = threadIdx.x < kMultiplying;
  Product<T, kHeads> product(launch, shared, rank);
  if (multiplying) product.begin();
  Gated<T, kHeads>(launch, shared, rank).run();
  if (multiplying) {
    product.run();
  } else {
    if (copying) {
      copies.send_gated();
      copies.load_other_weights();
    }
    __syncwarp();
    cluster_arrive();
  }
  cluster_wait();  // what this block sent was read, before its memory goes
}

}  // namespace mtgr::tail
