// A finished tile's way out: bias, SiLU or residual, rounding and stores.
#pragma once

#include "numbers.cuh"
#include "place.cuh"

namespace mtgr::linear {

// The way out of 16 rows of a tile, a warp's, straight from registers: of two rows a lane holds a
// vector of neighbouring columns in each group of columns (encode_weight), and the four lanes of a
// row store whole sectors of it.
template <class T, int kTile, Epilogue kEpilogue>
class Output {
  static constexpr Tile kShape = kTiles[kTile];
  static constexpr int kGroups = kShape.columns / kGroup;
  static constexpr bool kResidual = kEpilogue == kAddResidual, kMayBeFloat = kShape.is_narrow();
  using Sums = float[kShape.columns / 2];

 public:
  // `row` is the first of the 16.
  __device__ Output(const Place& at, int row, int lane)
      : problem_(at.problem), column_(lane % 4 * kVector) {
    const int groups = min((problem_.columns - at.column) / kGroup, kGroups);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = row + lane / 4 + 8 * i;
      groups_[i] = r < problem_.rows ? groups : 0;
      to_[i] = destination(r) * problem_.out_stride + at.column + column_;
      if constexpr (kResidual) {
        const T* residual = static_cast<const T*>(problem_.residual) +
                            r * problem_.residual_stride + at.column + column_;
#pragma unroll
        for (int g = 0; g < kGroups; ++g)
          residual_[i][g] =
              g < groups_[i] ? *reinterpret_cast<const uint2*>(residual + g * kGroup) : uint2{};
      }
    }
  }

  __device__ void store(const float* bias_of_tile, const Sums& c) const {
    if (kMayBeFloat && problem_.float_output)
      store(static_cast<float*>(problem_.out), bias_of_tile + column_, c);
    else
      store(static_cast<T*>(problem_.out), bias_of_tile + column_, c);
  }

 private:
  // The row of `out` that row r goes to.
  __device__ int64_t destination(int r) const {
    return problem_.out_rows && r < problem_.rows ? __ldg(problem_.out_rows + r) : r;
  }

  template <class Out>
  __device__ void store(Out* out, const float* bias, const Sums& c) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const float4 four = *reinterpret_cast<const float4*>(bias + g * kGroup);
      const float add[kVector] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float y[kVector];
#pragma unroll
        for (int k = 0; k < kVector; ++k)
          y[k] = finished(c[(k / 2 * kGroups + g) * 4 + i * 2 + k % 2], add[k], i, g, k);
        if (g < groups_[i]) write(out + to_[i] + g * kGroup, y);
      }
    }
  }
  __device__ float finished(float sum, float bias, int i, int g, int k) const {
    if constexpr (kEpilogue == kSilu)
      return silu_of_twice(fmaf(sum, .5f, bias));  // half of the bias, see Bias
    else if constexpr (kResidual)
      return sum + bias + unpack<T>((&residual_[i][g].x)[k / 2], k % 2);
    else
      return sum + bias;
  }
  __device__ static void write(float* to, const float (&y)[kVector]) {
    *reinterpret_cast<float4*>(to) = {y[0], y[1], y[2], y[3]};
  }
  __device__ static void write(T* to, const float (&y)[kVector]) {
    *reinterpret_cast<uint2*>(to) = {pack2<T>(y[0], y[1]), pack2<T>(y[2], y[3])};
  }

  const Problem& problem_;
  int column_;     // of the tile
  int groups_[2];  // of each row that exist
  int64_t to_[2];  // elements
  uint2 residual_[2][kResidual ? kGroups : 1];
};

// A tile's bias on its way to the shared memory of a warpgroup: loaded before the products, so that
// nobody waits for it, and like the weights before other kernels have ended. SiLU takes the half of
// it.
template <int kColumns, Epilogue kEpilogue>
class Bias {
  static constexpr int kParts = (kColumns - 1) / 128 + 1;  // columns a thread

 public:
  __device__ explicit Bias(const Place& at) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int column = at.column + threadIdx.x % 128 + i * 128;
      const bool present = at.problem.bias != nullptr && column < at.problem.columns;
      values_[i] = present ? __ldg(at.problem.bias + column) : 0.f;
      if constexpr (kEpilogue == kSilu) values_[i] *= .5f;
    }
  }
  __device__ void store(float* shared) const {
    named_barrier(threadIdx.x / 128, 128);  // every warp is done with the last tile's
#pragma unroll
    for (int i = 0; i < kParts; ++i)
      if (const int column = threadIdx.x % 128 + i * 128; column < kColumns)
        shared[column] = values_[i];
    named_barrier(threadIdx.x / 128, 128);
  }

 private:
  float values_[kParts];
};

}  // namespace mtgr::linear
