// Partial sums that the parts of a tile exchange through global memory.
#pragma once

#include "hopper_shared.cuh"
#include "numbers.cuh"

namespace mtgr::hopper {

// The 256 columns are shared by the owners of a tile in groups of 32; a set of them is a mask.
constexpr int kGroups = 8;
constexpr int kAllGroups = (1 << kGroups) - 1;
constexpr int kVectors = 64 * kDim / 128 / 8;  // of eight sums, a thread

// What a consumer hands to the other parts of a tile: in registers' order, and by what to multiply
// a thread's two rows.
struct Partial {
  uint4 sums[kVectors][128];
  float2 scales[128];

  // Sums cross as fp16 times a power of two of each row, which brings the largest just below 2^15:
  // each is off by 2^-12 of itself at most (an eighth of what rounding the result to bf16 does, and
  // a half for fp16), and half as many bytes leave and enter the multiprocessor.
  __device__ __forceinline__ void write(const float (&out)[128], int groups) {
    const int thread = threadIdx.x % 128;
    float largest[2] = {}, up[2], down[2];
#pragma unroll
    for (int at = 0; at < 128; ++at)
      largest[at / 2 % 2] = fmaxf(largest[at / 2 % 2], fabsf(out[at]));
    for (int i = 0; i < 2; ++i) {
      const int exponent = min(268 - (__float_as_int(largest[i]) >> 23), 253);
      up[i] = __int_as_float(exponent << 23);
      down[i] = __int_as_float((254 - exponent) << 23);
    }
    scales[thread] = {down[0], down[1]};
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if ((groups >> j / 2 & 1) == 0) continue;
      uint32_t pairs[4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        pairs[k] =
            pack2<__half>(out[8 * j + 2 * k] * up[k % 2], out[8 * j + 2 * k + 1] * up[k % 2]);
      __stcg(&sums[j][thread], uint4{pairs[0], pairs[1], pairs[2], pairs[3]});
    }
  }
};

// Half of a tile's groups, from kFirst on, of the sums of another part.
template <int kFirst>
struct Term {
  uint4 sums[kVectors / 2] = {};
  float2 scales{};

  __device__ __forceinline__ void load(const Partial& from, int groups) {
    const int thread = threadIdx.x % 128;
    scales = __ldcg(&from.scales[thread]);
#pragma unroll
    for (int j = 0; j < kVectors / 2; ++j)
      if (groups >> (kFirst + j / 2) & 1) sums[j] = __ldcg(&from.sums[kFirst * 2 + j][thread]);
  }
  __device__ __forceinline__ void add_to(float (&out)[128]) const {
#pragma unroll
    for (int j = 0; j < kVectors / 2; ++j)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint32_t pair = (&sums[j].x)[k];
        const float2 x = __half22float2(reinterpret_cast<const __half2&>(pair));
        float* to = out + (kFirst * 2 + j) * 8 + 2 * k;
        to[0] = fmaf(x.x, k % 2 ? scales.y : scales.x, to[0]);
        to[1] = fmaf(x.y, k % 2 ? scales.y : scales.x, to[1]);
      }
  }
};

}  // namespace mtgr::hopper
