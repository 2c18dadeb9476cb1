// What both steps of a layer's end know about rows: the launch, a thread's part of a row, and the
// statistics of a whole row from those of its parts.
#pragma once

#include "numbers.cuh"
#include "tile.cuh"

namespace mtgr::tail {

// An affine norm; weight and bias [groups, dim].
struct Norm {
  const void* weight;
  const void* bias;
  float eps;
};

struct Launch {
  CUtensorMap weight;
  const void *attended, *gate, *residual;
  int64_t attended_stride, gate_stride, residual_stride;  // elements
  const int32_t* group;
  const float* bias;
  Norm gated_norm, next_norm;
  void *out, *next;  // next: or null
  int rows;
};

// A thread's part of a row: kCount times kColumns (4 or 8) neighbouring columns, kPitch from one to
// the next.
template <class T, int kCount, int kColumns, int kPitch>
struct Part {
  using Vector = std::conditional_t<kColumns == 8, uint4, uint2>;
  static constexpr int kValues = kCount * kColumns;

  Vector vectors[kCount];

  __device__ __forceinline__ void load(const T* from) {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      vectors[i] = *reinterpret_cast<const Vector*>(from + i * kPitch);
  }
  // Zeros if there is no such row.
  __device__ __forceinline__ void load(const T* from, bool present) {
#pragma unroll
    for (Vector& vector : vectors) vector = Vector{};
    if (present) load(from);
  }
  __device__ __forceinline__ void store(T* to) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) *reinterpret_cast<Vector*>(to + i * kPitch) = vectors[i];
  }
  __device__ __forceinline__ float operator[](int i) const {
    return unpack<T>((&vectors[i / kColumns].x)[i % kColumns / 2], i % 2);
  }
  __device__ __forceinline__ void round(const float (&values)[kValues]) {
#pragma unroll
    for (int i = 0; i < kValues; i += 2)
      (&vectors[i / kColumns].x)[i % kColumns / 2] = pack2<T>(values[i], values[i + 1]);
  }
};

// Sum over `kLanes` neighbouring lanes.
template <int kLanes>
__device__ __forceinline__ float lane_sum(float x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// Sum of f(value) over the values of a thread: four sums at a time, since each addition waits for
// the one before it.
template <int kCount, class F>
__device__ __forceinline__ float sum_of(const float (&z)[kCount], F f) {
  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[i % 4] += f(z[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Mean of the values of kLanes lanes, kCount each, and the sum of squared differences from it.
template <int kLanes, int kCount>
__device__ __forceinline__ float2 moments_of(const float (&z)[kCount]) {
  const float sum = lane_sum<kLanes>(sum_of(z, [](float x) { return x; }));
  const float mean = sum / (kLanes * kCount);
  return {mean, lane_sum<kLanes>(sum_of(z, [=](float x) { return (x - mean) * (x - mean); }))};
}

// What norms a whole row of `dim` columns, from the moments of its parts (Chan, Golub and LeVeque's
// sums): x scale + shift.
struct Scale {
  float scale, shift;

  template <int kParts>
  __device__ __forceinline__ Scale(const Moments<kParts>& moments, int row, int dim, float eps) {
    float2 parts[kParts];
    float mean = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < kParts; i += 2) {
      const float4 two = *reinterpret_cast<const float4*>(&moments.of[row][i]);
      parts[i] = {two.x, two.y};
      parts[i + 1] = {two.z, two.w};
      mean += (two.x + two.z) / kParts;
    }
#pragma unroll
    for (const float2& of : parts) squares += of.y + dim / kParts * (of.x - mean) * (of.x - mean);
    scale = rsqrtf(squares / dim + eps);
    shift = -mean * scale;
  }
  template <int kCount, class P>
  __device__ __forceinline__ void apply(float (&z)[kCount], const P& weight, const P& bias) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) z[i] = (z[i] * scale + shift) * weight[i] + bias[i];
  }
};

}  // namespace mtgr::tail
