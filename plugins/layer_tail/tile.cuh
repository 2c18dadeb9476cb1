// What the blocks of a cluster share of a tile: 64 rows, of which each block has a quarter of the
// columns.
#pragma once

#include "linear/ptx.cuh"

namespace mtgr::tail {

using namespace mtgr::hopper;

constexpr int kRows = 64;    // of a tile
constexpr int kCluster = 4;  // blocks that share it
constexpr int kThreads = 512;
constexpr int kMultiplying = 256;        // the first of them hold the product
constexpr int kCopying = kThreads - 32;  // the last warp copies as well
constexpr int kDepth = 64;  // columns of a chunk of the product's operands: 128 bytes a row
constexpr int kRowBytes = kDepth * 2;
// Neighbouring columns that a lane holds of a product, and those of the four lanes of a row
// (encode_weight).
constexpr int kVector = 8, kGroup = 4 * kVector;

// Of rows of 256 `kHeads` columns.
template <int kHeads>
struct Sizes {
  static constexpr int kDim = 256 * kHeads, kColumns = kDim / kCluster;
  static constexpr int kHalf = kColumns / 2;  // columns of the product in a warpgroup
  static constexpr int kChunks = kDim / kDepth;
  static constexpr int kWeightBytes = kColumns * kRowBytes;
  static constexpr int kFitting = (218 * 1024 - kChunks * kRows * kRowBytes) / kWeightBytes;
  static constexpr int kStages = kFitting < kChunks ? kFitting : kChunks;
  // The i-th chunk that a block multiplies: those of its own quarter, kHeads of them, come first.
  __device__ static int chunk(int rank, int i) { return (rank * kHeads + i) % kChunks; }
};

// Barriers of a block's threads, beside that of __syncthreads: one a chunk of the quarter.
constexpr int kGated = 1;

// Mean and sum of squared differences from it, of each part of each row. The pitch keeps eight rows
// that are read at once in different banks.
template <int kParts>
struct Moments {
  static constexpr int kBytes = kRows * kParts * sizeof(float2);
  alignas(16) float2 of[kRows][kParts + 2];
};

template <int kHeads>
struct Shared {
  using S = Sizes<kHeads>;

  alignas(1024) unsigned char gated[S::kChunks][kRows * kRowBytes];
  alignas(1024) unsigned char weight[S::kStages][S::kWeightBytes];
  Moments<kCluster> gated_moments;
  Moments<2 * kCluster> out_moments;
  uint64_t gated_full[S::kChunks], weight_full[S::kStages], weight_empty[S::kStages];
  uint64_t gated_moments_full, out_moments_full;

  // By one thread. What comes once is announced here, before another block can send it.
  __device__ void init() {
    for (uint64_t& barrier : gated_full) expect_once(&barrier, kRows * kRowBytes);
    expect_once(&gated_moments_full, gated_moments.kBytes);
    expect_once(&out_moments_full, out_moments.kBytes);
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(&weight_full[i], 1);
      barrier_init(&weight_empty[i], kMultiplying / 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }

 private:
  __device__ static void expect_once(uint64_t* barrier, int bytes) {
    barrier_init(barrier, 1);
    arrive_expecting(barrier, bytes);
  }
};

// Stores a value at this address in block `rank` of the cluster and counts its bytes on its
// barrier.
__device__ __forceinline__ void send(void* to, uint64_t* barrier, uint32_t rank, float2 value) {
  asm volatile(
      "{\n.reg .b32 there, its_barrier;\n"
      "mapa.shared::cluster.u32 there, %0, %2;\n"
      "mapa.shared::cluster.u32 its_barrier, %1, %2;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [there], {%3, %4}, "
      "[its_barrier];\n}\n" ::"r"(shared_address(to)),
      "r"(shared_address(barrier)), "r"(rank), "f"(value.x), "f"(value.y)
      : "memory");
}
// The same of `bytes` that lie at this address here.
__device__ __forceinline__ void send_bytes(const void* from, int bytes, uint64_t* barrier,
                                           uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 there, its_barrier;\n"
      "mapa.shared::cluster.u32 there, %0, %3;\n"
      "mapa.shared::cluster.u32 its_barrier, %2, %3;\n"
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [there], [%0], %1, "
      "[its_barrier];\n}\n" ::"r"(shared_address(from)),
      "r"(bytes), "r"(shared_address(barrier)), "r"(rank)
      : "memory");
}

}  // namespace mtgr::tail
