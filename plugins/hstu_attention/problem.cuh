// What both attention kernels know about one launch: shapes, strides, offsets, and how to find the
// request that a position in a ragged batch belongs to.
#pragma once

#include <cstdint>

#include "mtgr_ops.h"

namespace mtgr {

enum Segment { kStatic = 0, kRealtime = 1, kCandidate = 2, kSegments = 3 };

struct Problem {
  int batch, heads, kv_heads;
  int rows[kSegments];  // padding included
  int first_query_segment;
  float half_alpha, inv_n;
  mtgr_rows q, static_k, static_v, recent_k, recent_v;
  void* out;
  const int32_t* offsets[kSegments];
  const int32_t* rt_visible;
  const int32_t* candidate_visible;

  // Row of q and out where a segment starts; only for segments that have queries.
  __host__ __device__ int query_base(int segment) const {
    int base = 0;
    for (int s = first_query_segment; s < segment; ++s) base += rows[s];
    return base;
  }

  // Row of recent_k / recent_v where a segment (real-time or candidate) starts.
  __host__ __device__ int recent_base(int segment) const {
    return segment == kCandidate ? rows[kRealtime] : 0;
  }
};

struct Range {
  int begin, end;
  __device__ int size() const { return end - begin; }
};

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// The rows of one request in one segment, clamped so that bad offsets stay inside the segment.
__device__ inline Range request_rows(const Problem& p, int segment, int request) {
  const int32_t* offsets = p.offsets[segment] + request;
  const int begin = min(max(__ldg(offsets), 0), p.rows[segment]);
  return {begin, min(max(__ldg(offsets + 1), begin), p.rows[segment])};
}

// Warp-collective: starts to bring the offsets of the first requests close.
__device__ inline void prefetch_offsets(const Problem& p) {
  const int request = min(static_cast<int>(threadIdx.x % 32), p.batch);
#pragma unroll
  for (int s = 0; s < kSegments; ++s)
    asm volatile("prefetch.global.L1 [%0];" ::"l"(p.offsets[s] + request));
}

// Warp-collective: in a row of `size` neighbouring stretches, the i-th count(i) long, the stretch
// that holds `position`; `position` becomes relative to its start. Past the end: returns `size`,
// and the whole length is subtracted from position.
template <class Count>
__device__ int find_stretch(int size, int& position, Count count) {
  const int lane = threadIdx.x % 32;
  for (int base = 0; base < size; base += 32) {
    const int own = base + lane < size ? count(base + lane) : 0;
    int sum = own;
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += left;
    }
    const int total = __shfl_sync(~0u, sum, 31);
    if (position < total) {
      const int hit = __ffs(__ballot_sync(~0u, sum > position)) - 1;
      position -= __shfl_sync(~0u, sum - own, hit);
      return base + hit;
    }
    position -= total;
  }
  return size;
}

// Rows after the last request of each query segment are written as zero, whatever lies in them.
// Called by `workers` threads in total, of which this is number `worker`.
template <class T>
__device__ void zero_padding(const Problem& p, int row_elements, int worker, int workers) {
  for (int segment = p.first_query_segment; segment < kSegments; ++segment) {
    const int used = min(max(p.offsets[segment][p.batch], 0), p.rows[segment]);
    const int64_t base = p.query_base(segment);
    uint4* begin = reinterpret_cast<uint4*>(static_cast<T*>(p.out) + (base + used) * row_elements);
    const int64_t vectors = int64_t{p.rows[segment] - used} * row_elements * sizeof(T) / 16;
    for (int64_t i = worker; i < vectors; i += workers) begin[i] = uint4{0, 0, 0, 0};
  }
}

}  // namespace mtgr
