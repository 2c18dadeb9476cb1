// What the blocks of a cluster share of a tile: 64 rows, of which each block has a quarter of the
// columns.
#pragma once

#include "linear/ptx.cuh"

namespace mtgr::tail {

using namespace mtgr::hopper;

constexpr int kRows = 64;          // of a tile
constexpr int kCluster = 4;        // blocks that share it
constexpr int kMultiplying = 256;  // threads that hold the product
constexpr int kConsumers = 512;    // threads that compute, those among them; one more warp copies
constexpr int kThreads = kConsumers + 32;
constexpr int kRowThreads = kConsumers / kRows;  // 8, that hold a row's quarter together
constexpr int kDepth = 64;  // columns of a chunk of the product's operands: 128 bytes a row
constexpr int kRowBytes = kDepth * 2;

// Of rows of 256 `kHeads` columns.
template <int kHeads>
struct Sizes {
  static constexpr int kDim = 256 * kHeads, kColumns = kDim / kCluster;
  static constexpr int kChunks = kDim / kDepth;
  static constexpr int kWeightBytes = kColumns * kRowBytes;
  static constexpr int kFitting = (222 * 1024 - kChunks * kRows * kRowBytes) / kWeightBytes;
  static constexpr int kStages = kFitting < kChunks ? kFitting : kChunks;
  // The i-th chunk that a block multiplies: those of its own quarter, kHeads of them, come first.
  __device__ static int chunk(int rank, int i) { return (rank * kHeads + i) % kChunks; }
  // Pitch of a row of the product on its way between layouts: rows lie 8 banks apart.
  static constexpr int kPitch = kColumns + 8;
};

// Barriers of a block's threads, beside that of __syncthreads.
enum Named { kMultiplied = 1, kProduct, kGated };  // kGated: one a chunk of the quarter

// Mean and sum of squared differences from it, of one block's quarter of each row.
using Moments = float2[kCluster][kRows];

template <int kHeads>
struct Shared {
  using S = Sizes<kHeads>;

  alignas(1024) unsigned char gated[S::kChunks][kRows * kRowBytes];
  union {
    alignas(1024) unsigned char weight[S::kStages][S::kWeightBytes];
    float product[kRows * S::kPitch];  // once all weights were multiplied
  };
  alignas(16) float bias[S::kColumns];
  Moments moments[2];
  uint64_t gated_full[S::kChunks], weight_full[S::kStages], weight_empty[S::kStages];
  uint64_t moments_full[2];

  // By one thread. What comes once is announced here, before another block can send it.
  __device__ void init() {
    for (uint64_t& barrier : gated_full) {
      barrier_init(&barrier, 1);
      arrive_expecting(&barrier, kRows * kRowBytes);
    }
    for (uint64_t& barrier : moments_full) {
      barrier_init(&barrier, 1);
      arrive_expecting(&barrier, sizeof(Moments));
    }
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(&weight_full[i], 1);
      barrier_init(&weight_empty[i], kMultiplying / 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
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
