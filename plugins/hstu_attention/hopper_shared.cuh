// The shared memory of one block of the Hopper kernel, and who hands what to whom through it.
#pragma once

#include "hopper_ptx.cuh"
#include "hopper_schedule.cuh"

namespace mtgr::hopper {

constexpr int kDim = 256;
constexpr int kChunk = 64;  // columns of one 128-byte swizzled row
constexpr int kChunks = kDim / kChunk;
constexpr int kConsumers = 2;  // warpgroups
constexpr int kConsumerWarps = kConsumers * 4;
constexpr int kThreads = 128 * (1 + kConsumers);
constexpr int kSlots = 5;
constexpr int kWorks = 4;
constexpr int kQueryBytes = kTileM * kDim * 2;
constexpr int kSlotBytes = kTileN * kDim * 2;

// Position in a ring of slots: the parity is that of the next completion to wait for.
template <int kSize>
struct Ring {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void advance(int steps = 1) {
    slot += steps;
    if (slot >= kSize) {
      slot -= kSize;
      parity ^= 1;
    }
  }
};

struct Shared {
  alignas(1024) unsigned char query[kQueryBytes];         // [4][128][64]
  alignas(1024) unsigned char slot[kSlots][kSlotBytes];   // K and V tiles in turn, [4][64][64]
  Work work[kWorks];
  int arrival[kConsumers];
  uint64_t work_full[kWorks], work_empty[kWorks];
  uint64_t query_full, query_empty;
  uint64_t full[kSlots], empty[kSlots];
  uint64_t landed[kSlots];  // a tail of V has arrived, its invalid rows are not cleared yet

  __device__ void init() {
    for (int i = 0; i < kWorks; ++i) {
      barrier_init(&work_full[i], 1);
      barrier_init(&work_empty[i], 2 + kConsumerWarps);
    }
    barrier_init(&query_full, 1);
    barrier_init(&query_empty, kConsumerWarps);
    for (int i = 0; i < kSlots; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&landed[i], 1);
      barrier_init(&empty[i], kConsumerWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
};
static_assert(sizeof(Shared) <= 227 * 1024);

// The work list as one warp reads it.
struct WorkList {
  Shared& shared;
  Ring<kWorks> ring{};

  // The next piece; rows == 0 at the end.
  __device__ Work next() {
    wait(&shared.work_full[ring.slot], ring.parity);
    const Work work = shared.work[ring.slot];
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(&shared.work_empty[ring.slot]);
    ring.advance();
    return work;
  }
};

// Where the keys of one unit lie.
struct Keys {
  bool fixed;  // static rows
  int row;
  int count;  // valid rows, at most kTileN

  __device__ Keys(const Problem& p, const Work& work, int unit) {
    const int rt = unit - work.static_units(), self = unit - work.ranged_units();
    fixed = rt < 0;
    if (fixed) {
      row = work.static_row + unit * kTileN;
      count = work.static_keys - unit * kTileN;
    } else if (self < 0) {
      row = work.rt_row + rt * kTileN;
      count = work.rt_keys - rt * kTileN;
    } else {
      row = p.rows[kRealtime] + work.segment_row + self * kTileN;
      count = work.rows - self * kTileN;
    }
    count = min(count, kTileN);
  }
};

}  // namespace mtgr::hopper
