// A finished tile's way out: bias, SiLU or residual, rounding and stores.
#pragma once

#include "numbers.cuh"
#include "place.cuh"

namespace mtgr::linear {

// The way out of 16 rows of a tile, a warp's. In registers a lane holds pairs of columns of two
// rows; bias and SiLU are applied there. The 16-bit result passes through shared memory in strips
// of 64 columns, swizzled so that neither side meets bank conflicts, and leaves as whole lines: a
// lane stores eight columns of a strip, of one row a pass. Residuals come the same way in reverse.
// fp32 results leave from registers.
template <class T, int kColumns, Epilogue kEpilogue>
class Output {
  static constexpr int kStrips = (kColumns - 1) / kStrip + 1;
  static constexpr bool kResidual = kEpilogue == kAddResidual;

 public:
  // `row` is the first of the 16.
  __device__ Output(const Place& at, int row, int lane)
      : problem_(at.problem), row_(row), column_(at.column), lane_(lane) {
    const int column = column_ + lane % kRowLanes * 8, first = row + lane / kRowLanes;
    strips_ = (min(at.column + kColumns, problem_.columns) - column + kStrip - 1) / kStrip;
    passes_ = (problem_.rows - first + row_of_pass(1) - 1) / row_of_pass(1);
    out_ = static_cast<uint4*>(problem_.out) + column / 8;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int r = first + row_of_pass(pass);
      to_[pass] = destination(r) * uint32_t(problem_.out_stride / 8);
      if constexpr (kResidual) {
        const T* residual =
            static_cast<const T*>(problem_.residual) + r * problem_.residual_stride + column;
#pragma unroll
        for (int strip = 0; strip < kStrips; ++strip)
          residual_[strip][pass] = strip < strips_ && pass < passes_
                                       ? *reinterpret_cast<const uint4*>(residual + strip * kStrip)
                                       : uint4{};
      }
    }
  }

  __device__ void store(unsigned char* strip_of_warp, const float* bias_of_tile,
                        const float (&c)[kColumns / 2]) const {
    if (problem_.float_output)
      store_floats(strip_of_warp, bias_of_tile, c);
    else
      store_halves(strip_of_warp, bias_of_tile, c);
  }

 private:
  __device__ static constexpr int row_of_pass(int pass) { return pass * (16 / kPasses); }
  // The row of `out` that row r goes to.
  __device__ int destination(int r) const {
    return problem_.out_rows && r < problem_.rows ? __ldg(problem_.out_rows + r) : r;
  }
  // Vector v of row r of a strip lies at vector v ^ r % 8 of it. That of this lane in a pass:
  __device__ unsigned char* vector_at(unsigned char* strip, int pass) const {
    const int row = lane_ / kRowLanes, first = row * kRowBytes + (lane_ % kRowLanes ^ row) * 16;
    return strip + (first ^ row_of_pass(pass) % 8 * 16) + row_of_pass(pass) * kRowBytes;
  }
  // Where this lane's row of the four 8 x 8 matrices lies that make up 16 columns.
  __device__ unsigned char* matrix_row(unsigned char* strip, int part) const {
    const int first = lane_ % 16 * kRowBytes + (lane_ / 16 ^ lane_ % 8) * 16;
    return strip + (first ^ part * 32);
  }

  // Columns `part * 16` on of a strip: four values of eight columns, then of the next eight.
  __device__ void finish(float (&y)[8], const float* c, const float* bias_of_tile, int strip,
                         int part, unsigned char* strip_of_warp) const {
    const float* bias = bias_of_tile + strip * kStrip + part * 16 + lane_ % 4 * 2;
    uint32_t residual[4];
    if constexpr (kResidual) load_matrices(residual, matrix_row(strip_of_warp, part));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 b = *reinterpret_cast<const float2*>(bias + i / 2 * 8);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float x = c[(strip * kRowLanes + part * 2) * 4 + i * 2 + k], add = k ? b.y : b.x;
        float& to = y[i * 2 + k];
        if constexpr (kEpilogue == kSilu)
          to = silu_of_twice(fmaf(x, .5f, add));  // half of the bias, see Bias
        else
          to = x + add;
        if constexpr (kResidual) to += to_float(reinterpret_cast<const T*>(&residual[i])[k]);
      }
    }
  }
  // Makes the strip free, and puts the residual into it.
  __device__ void begin(unsigned char* strip_of_warp, int strip) const {
    __syncwarp();
    if constexpr (kResidual) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass)
        *reinterpret_cast<uint4*>(vector_at(strip_of_warp, pass)) = residual_[strip][pass];
      __syncwarp();
    }
  }

  __device__ void store_halves(unsigned char* strip_of_warp, const float* bias_of_tile,
                               const float (&c)[kColumns / 2]) const {
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      begin(strip_of_warp, strip);
#pragma unroll
      for (int part = 0; part < kStrip / 16 && strip * kStrip + part * 16 < kColumns; ++part) {
        float y[8];
        finish(y, c, bias_of_tile, strip, part, strip_of_warp);
        store_matrices(matrix_row(strip_of_warp, part), pack2<T>(y[0], y[1]), pack2<T>(y[2], y[3]),
                       pack2<T>(y[4], y[5]), pack2<T>(y[6], y[7]));
      }
      __syncwarp();
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const uint4 value = *reinterpret_cast<const uint4*>(vector_at(strip_of_warp, pass));
        if (strip < strips_ && pass < passes_) out_[to_[pass] + strip * kRowLanes] = value;
      }
    }
  }

  __device__ void store_floats(unsigned char* strip_of_warp, const float* bias_of_tile,
                               const float (&c)[kColumns / 2]) const {
    const int row = row_ + lane_ / 4;
    float* const out = static_cast<float*>(problem_.out);
    float* const to[2] = {out + destination(row) * problem_.out_stride,
                          out + destination(row + 8) * problem_.out_stride};
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      begin(strip_of_warp, strip);
#pragma unroll
      for (int part = 0; part < kStrip / 16 && strip * kStrip + part * 16 < kColumns; ++part) {
        float y[8];
        finish(y, c, bias_of_tile, strip, part, strip_of_warp);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = column_ + strip * kStrip + part * 16 + i / 2 * 8 + lane_ % 4 * 2;
          if (column < problem_.columns && row + i % 2 * 8 < problem_.rows)
            *reinterpret_cast<float2*>(to[i % 2] + column) = {y[i * 2], y[i * 2 + 1]};
        }
      }
    }
  }

  const Problem& problem_;
  int row_, column_, lane_, strips_, passes_;  // how many of each this lane stores
  uint4* out_;
  uint32_t to_[kPasses];  // from there, in vectors
  uint4 residual_[kResidual ? kStrips : 1][kPasses];
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
