// The producer warpgroup: one warp each for the schedule, the bulk copies, and clearing the rows of
// V that lie past the end of a segment.
#pragma once

#include "hopper_shared.cuh"
#include "tensor_map.h"

namespace mtgr::hopper {

// The first copies then do not wait for their maps.
__device__ inline void prefetch_maps(const Maps& maps) {
  prefetch_map(&maps.q);
  prefetch_map(&maps.static_k);
  prefetch_map(&maps.static_v);
  prefetch_map(&maps.recent_k);
  prefetch_map(&maps.recent_v);
}

// Fills the work list.
__device__ inline void schedule(const Problem& p, Shared& shared) {
  Ring<kWorks> ring;
  auto push = [&](const Work& work) {
    wait(&shared.work_empty[ring.slot], ring.parity ^ 1);
    if (threadIdx.x % 32 == 0) {
      shared.work[ring.slot] = work;
      arrive(&shared.work_full[ring.slot]);
    }
    ring.advance();
  };
  for_each_work(p, blockIdx.x, gridDim.x, push);
  push(Work{});
}

// Copies the queries of each piece of work, 64 rows for each consumer.
__device__ inline void load_queries(const Maps& maps, Shared& shared) {
  WorkList list{shared};
  uint32_t parity = 0;
  for (; list.wait_next(); list.done(), parity ^= 1) {
    if (threadIdx.x % 32 != 0) continue;
    const Work& work = list.current();
    for (int i = 0; i < kConsumers; ++i) {
      wait(&shared.query_empty[i], parity ^ 1);
      arrive_expecting(&shared.query_full[i], kSlotBytes);
      copy_box(shared.query[i], &maps.q, work.query_row + i * kTileN, work.head,
               &shared.query_full[i]);
    }
  }
}

// Copies K and V of each unit in turn.
__device__ inline void load_keys(const Problem& p, const Maps& maps, Shared& shared) {
  WorkList list{shared};
  Ring<kSlots> ring;
  for (; list.wait_next(); list.done()) {
    if (threadIdx.x % 32 != 0) continue;
    const Work& work = list.current();
    const int kv_head = work.head / (p.heads / p.kv_heads);
    auto load = [&](const CUtensorMap& map, int row, uint64_t* barrier) {
      wait(&shared.empty[ring.slot], ring.parity ^ 1);
      arrive_expecting(&barrier[ring.slot], kSlotBytes);
      copy_box(shared.slot[ring.slot], &map, row, kv_head, &barrier[ring.slot]);
      ring.advance();
    };
    for (int unit = work.unit_begin; unit < work.unit_end; ++unit) {
      const Keys keys(work, unit);
      const bool fixed = keys.kind == Keys::kFixed;
      const int row = keys.row(p, work);
      load(fixed ? maps.static_k : maps.recent_k, row, shared.full);
      load(fixed ? maps.static_v : maps.recent_v, row,
           keys.count < kTileN ? shared.landed : shared.full);
    }
  }
}

// Zeroes the rows of a V tile that belong to no key of the request, whatever the copy found there:
// their weights are zero, but zero times NaN is not.
__device__ inline void clear_tails(Shared& shared) {
  WorkList list{shared};
  Ring<kSlots> ring;
  uint32_t parities = 0;  // of shared.landed, one bit a slot
  for (; list.wait_next(); list.done()) {
    const Work& work = list.current();
    for (int unit = work.unit_begin; unit < work.unit_end; ++unit, ring.advance()) {
      ring.advance();  // past K
      const Keys keys(work, unit);
      if (keys.count == kTileN) continue;
      wait(&shared.landed[ring.slot], parities >> ring.slot & 1);
      parities ^= 1u << ring.slot;
      const int lane = threadIdx.x % 32;
      for (int row = keys.count; row < kTileN; ++row) {
        unsigned char* vector = shared.slot[ring.slot] + lane / 8 * (kSlotBytes / kChunks) +
                                row * kChunk * 2 + lane % 8 * 16;
        *reinterpret_cast<uint4*>(vector) = uint4{0, 0, 0, 0};
      }
      fence_async_proxy();
      __syncwarp();
      if (lane == 0) arrive(&shared.full[ring.slot]);
    }
  }
}

}  // namespace mtgr::hopper
