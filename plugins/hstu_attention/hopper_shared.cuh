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
constexpr int kProducerWarps = 3;  // that read the work list
constexpr int kThreads = 128 * (1 + kConsumers);
constexpr int kSlots = 5;
constexpr int kWorks = 4;
constexpr int kSlotBytes = kTileN * kDim * 2;
// Named barriers, one a consumer: of its own threads, and for its turn.
constexpr int kOwn = 1, kTurn = kOwn + kConsumers;
static_assert(kTileM == kConsumers * kTileN);  // query and key boxes have one shape

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
  alignas(1024) unsigned char query[kConsumers][kSlotBytes];  // [4][64][64], swizzled
  alignas(1024) unsigned char slot[kSlots][kSlotBytes];       // K and V tiles in turn, likewise
  Work work[kWorks];
  uint64_t work_full[kWorks], work_empty[kWorks];
  uint64_t query_full[kConsumers], query_empty[kConsumers];
  uint64_t full[kSlots], empty[kSlots];
  uint64_t landed[kSlots];  // a tail of V has arrived, its invalid rows are not cleared yet

  __device__ void init() {
    for (int i = 0; i < kWorks; ++i) {
      barrier_init(&work_full[i], 1);
      barrier_init(&work_empty[i], kProducerWarps + kConsumerWarps);
    }
    for (int i = 0; i < kConsumers; ++i) {
      barrier_init(&query_full[i], 1);
      barrier_init(&query_empty[i], 4);
    }
    for (int i = 0; i < kSlots; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&landed[i], 1);
      barrier_init(&empty[i], kConsumerWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
};
static_assert(sizeof(Shared) <= 227 * 1024);

// The work list as one warp reads it; the current piece stays where it is until done() with.
struct WorkList {
  Shared& shared;
  Ring<kWorks> ring{};

  // False at the end of the list.
  __device__ bool wait_next() {
    wait(&shared.work_full[ring.slot], ring.parity);
    return current().rows > 0;
  }
  __device__ const Work& current() const { return shared.work[ring.slot]; }
  __device__ void done() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(&shared.work_empty[ring.slot]);
    ring.advance();
  }
};

// The keys of one unit.
struct Keys {
  enum Kind { kFixed, kRecent, kSelf } kind;
  int first;  // key within its range; for self units, row within the tile
  int count;  // valid ones of the 64

  __device__ Keys(const Work& work, int unit) {
    const int recent = unit - work.static_units(), self = unit - work.ranged_units();
    if (recent < 0)
      kind = kFixed, first = unit * kTileN, count = work.static_keys - first;
    else if (self < 0)
      kind = kRecent, first = recent * kTileN, count = work.rt_keys - first;
    else
      kind = kSelf, first = self * kTileN, count = work.rows - first;
    count = min(count, kTileN);
  }

  // Row of static_k, or of recent_k.
  __device__ int row(const Problem& p, const Work& work) const {
    return first + (kind == kFixed    ? work.static_row
                    : kind == kRecent ? work.rt_row
                                      : p.recent_base(kCandidate) + work.segment_row);
  }
};

}  // namespace mtgr::hopper
