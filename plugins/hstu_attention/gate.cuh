// The way out of gated attention, as both kernels have it: the four lanes of a quad hold 32 columns
// of a row, four pairs each.
#pragma once

#include "numbers.cuh"
#include "statistics.h"

namespace mtgr {

// Two sums times a factor and their gates, in fp32, rounded once.
template <class T>
__device__ __forceinline__ uint32_t gated2(float x, float y, float factor, uint32_t gates) {
  const float2 gate = unpack2<T>(gates);
  return pack2<T>(x * factor * gate.x, y * factor * gate.y);
}

// Writes the statistics of what a quad has of one row. Warp-collective; the first lane of each quad
// whose row is `valid` writes.
template <class T>
__device__ __forceinline__ void store_statistics(float2* to, const uint32_t (&pairs)[4],
                                                 bool valid) {
  static_assert(kStatisticsColumns == 4 * 8);
  float x[8], sum = 0, squares = 0;
  unpack8<T>(x, uint4{pairs[0], pairs[1], pairs[2], pairs[3]});
#pragma unroll
  for (float value : x) sum += value;
  const float mean = sum_of_four(sum) * (1.f / kStatisticsColumns);
#pragma unroll
  for (float value : x) squares += (value - mean) * (value - mean);
  squares = sum_of_four(squares);
  if (valid && threadIdx.x % 4 == 0) *to = {mean, squares};
}

}  // namespace mtgr
