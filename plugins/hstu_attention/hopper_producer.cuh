// The producer warpgroup: one warp each for the schedule, the bulk copies, and clearing the rows of
// V that lie past the end of a segment.
#pragma once

#include "hopper_shared.cuh"
#include "tensor_map.h"

namespace mtgr::hopper {

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

// Copies the queries of each piece of work, and K and V of each unit in turn.
__device__ inline void load_tiles(const Problem& p, const Maps& maps, Shared& shared) {
  WorkList list{shared};
  Ring<kSlots> ring;
  uint32_t query_parity = 0;
  const bool leader = threadIdx.x % 32 == 0;
  for (Work work = list.next(); work.rows > 0; work = list.next()) {
    if (!leader) continue;
    wait(&shared.query_empty, query_parity ^ 1);
    arrive_expecting(&shared.query_full, kQueryBytes);
    copy_box(shared.query, &maps.q, work.query_row, work.head, &shared.query_full);
    query_parity ^= 1;

    const int kv_head = work.head / (p.heads / p.kv_heads);
    auto load = [&](const CUtensorMap& map, int row, uint64_t* barrier) {
      wait(&shared.empty[ring.slot], ring.parity ^ 1);
      arrive_expecting(&barrier[ring.slot], kSlotBytes);
      copy_box(shared.slot[ring.slot], &map, row, kv_head, &barrier[ring.slot]);
      ring.advance();
    };
    for (int unit = work.unit_begin; unit < work.unit_end; ++unit) {
      const Keys keys(p, work, unit);
      load(keys.fixed ? maps.static_k : maps.recent_k, keys.row, shared.full);
      load(keys.fixed ? maps.static_v : maps.recent_v, keys.row,
           keys.count < kTileN ? shared.landed : shared.full);
    }
  }
}

// Zeroes the rows of a V tile that belong to no key of the request, whatever the copy found there:
// their weights are zero, but zero times NaN is not.
__device__ inline void clear_tails(const Problem& p, Shared& shared) {
  WorkList list{shared};
  Ring<kSlots> ring;
  uint32_t parities = 0;  // of shared.landed, one bit a slot
  for (Work work = list.next(); work.rows > 0; work = list.next())
    for (int unit = work.unit_begin; unit < work.unit_end; ++unit, ring.advance()) {
      ring.advance();  // past K
      const Keys keys(p, work, unit);
      if (keys.count == kTileN) continue;
      wait(&shared.landed[ring.slot], parities >> ring.slot & 1);
      parities ^= 1u << ring.slot;
      const int bytes = (kTileN - keys.count) * kChunk * 2;  // the end of each column chunk
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        unsigned char* end = shared.slot[ring.slot] + (chunk + 1) * (kSlotBytes / kChunks);
        for (int i = 16 * (threadIdx.x % 32); i < bytes; i += 16 * 32)
          *reinterpret_cast<uint4*>(end - bytes + i) = uint4{0, 0, 0, 0};
      }
      fence_async_proxy();
      __syncwarp();
      if (threadIdx.x % 32 == 0) arrive(&shared.full[ring.slot]);
    }
}

}  // namespace mtgr::hopper
