// The threads of a block that compute: a layer's gated norm, product, residual and next norm, of a
// quarter of the columns of 64 rows.
#pragma once

#include "launch.cuh"
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

// Eight neighbouring columns of a row.
template <class T>
struct alignas(16) Vector {
  uint32_t pairs[4];
  __device__ float operator[](int i) const { return unpack<T>(pairs[i / 2], i % 2); }
};

// A thread's part of the tile: of one row kHeads vectors, 64 columns apart, so that a row's eight
// threads read lines.
template <class T, int kHeads>
using Part = Vector<T>[kHeads];
template <int kHeads>
using Floats = float[kHeads][8];

__device__ __forceinline__ float row_sum(float x) {
  for (int step = kRowThreads / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// The threads that compute, of one block.
template <class T, int kHeads>
class Consumer {
  using S = Sizes<kHeads>;

 public:
  __device__ Consumer(const Launch& launch, Shared<kHeads>& shared, uint32_t rank)
      : launch_(launch),
        shared_(shared),
        rank_(rank),
        lane_(threadIdx.x % kRowThreads),
        tile_row_(threadIdx.x / kRowThreads),
        row_(blockIdx.x / kCluster * kRows + tile_row_),
        column_(rank * S::kColumns + lane_ * 8),
        present_(row_ < launch.rows) {}

  __device__ void run() {
    if (threadIdx.x < S::kColumns)
      shared_.bias[threadIdx.x] = __ldg(launch_.bias + rank_ * S::kColumns + threadIdx.x);
    const int affine = (present_ ? __ldg(launch_.group + row_) : 0) * S::kDim + column_;
    gate(affine);
    Part<T, kHeads> residual, weight, bias;
    load(residual, launch_.residual, launch_.residual_stride);
    if (threadIdx.x < kMultiplying) multiply();
    if (launch_.next) load(launch_.next_norm, affine, weight, bias);
    Floats<kHeads> y;
    named_barrier(kProduct, kConsumers);
    read_product(y);
    cluster_arrive();  // what others sent here is here
#pragma unroll
    for (int i = 0; i < kHeads; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) y[i][j] += residual[i][j];
    if (launch_.next) tell(1, y);
    store(launch_.out, y);
    if (launch_.next) {
      normalize(1, launch_.next_norm.eps, y, weight, bias);
      store(launch_.next, y);
    }
    cluster_wait();  // what this block sent was read, before its memory goes
  }

 private:
  __device__ void load(Part<T, kHeads>& part, const void* rows, int64_t stride) const {
    const T* from = static_cast<const T*>(rows) + row_ * stride + column_;
#pragma unroll
    for (int i = 0; i < kHeads; ++i)
      part[i] = present_ ? *reinterpret_cast<const Vector<T>*>(from + i * 64) : Vector<T>{};
  }
  __device__ void load(const Norm& norm, int at, Part<T, kHeads>& weight,
                       Part<T, kHeads>& bias) const {
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      weight[i] =
          *reinterpret_cast<const Vector<T>*>(static_cast<const T*>(norm.weight) + at + i * 64);
      bias[i] = *reinterpret_cast<const Vector<T>*>(static_cast<const T*>(norm.bias) + at + i * 64);
    }
  }
  __device__ static Vector<T> rounded(const float (&values)[8]) {
    Vector<T> out;
#pragma unroll
    for (int j = 0; j < 8; j += 2) out.pairs[j / 2] = pack2<T>(values[j], values[j + 1]);
    return out;
  }
  __device__ void store(void* rows, const Floats<kHeads>& values) const {
    T* to = static_cast<T*>(rows) + int64_t{row_} * S::kDim + column_;
#pragma unroll
    for (int i = 0; i < kHeads; ++i)
      if (present_) *reinterpret_cast<Vector<T>*>(to + i * 64) = rounded(values[i]);
  }

  // This block's quarter of norm(attended * gate), into its place among the operand's chunks.
  __device__ void gate(int affine) {
    Part<T, kHeads> attended, gates, weight, bias;
    load(gates, launch_.gate, launch_.gate_stride);
    load(launch_.gated_norm, affine, weight, bias);
    wait_for_inputs();
    load(attended, launch_.attended, launch_.attended_stride);
    Floats<kHeads> z;
#pragma unroll
    for (int i = 0; i < kHeads; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) z[i][j] = attended[i][j] * gates[i][j];
    tell(0, z);
    normalize(0, launch_.gated_norm.eps, z, weight, bias);
    const int at = tile_row_ * kRowBytes + (lane_ ^ tile_row_ % 8) * 16;  // swizzled
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      *reinterpret_cast<Vector<T>*>(shared_.gated[rank_ * kHeads + i] + at) = rounded(z[i]);
      fence_async_proxy();
      // Each chunk leaves as soon as it is whole; those who multiply wait for the last.
      if (i + 1 == kHeads && threadIdx.x < kMultiplying)
        named_barrier(kGated + i, kThreads);
      else
        named_barrier_arrive(kGated + i, kThreads);
    }
  }

  // Mean and squared differences of the row's quarter, to all blocks.
  __device__ void tell(int which, const Floats<kHeads>& z) {
    float sum = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < kHeads; ++i)
#pragma unroll
      for (float value : z[i]) sum += value;
    const float mean = row_sum(sum) / S::kColumns;
#pragma unroll
    for (int i = 0; i < kHeads; ++i)
#pragma unroll
      for (float value : z[i]) squares += (value - mean) * (value - mean);
    squares = row_sum(squares);
    if (lane_ < kCluster)
      send(&shared_.moments[which][rank_][tile_row_], &shared_.moments_full[which], lane_,
           float2{mean, squares});
  }

  // By whole rows, from what each block tells of its quarter (Chan, Golub and LeVeque's sums).
  __device__ void normalize(int which, float eps, Floats<kHeads>& z, const Part<T, kHeads>& weight,
                            const Part<T, kHeads>& bias) {
    wait(&shared_.moments_full[which], 0);
    float2 quarters[kCluster];
    float mean = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < kCluster; ++i) {
      quarters[i] = shared_.moments[which][i][tile_row_];
      mean += quarters[i].x / kCluster;
    }
#pragma unroll
    for (const float2& of : quarters) squares += of.y + S::kColumns * (of.x - mean) * (of.x - mean);
    const float scale = rsqrtf(squares / S::kDim + eps), shift = -mean * scale;
#pragma unroll
    for (int i = 0; i < kHeads; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) z[i][j] = (z[i][j] * scale + shift) * weight[i][j] + bias[i][j];
  }

  // gated W^T + bias of the tile's rows and the block's columns, into shared memory: each of the
  // two warpgroups has half of the columns. The block's own quarter comes first, while those of
  // others are on their way.
  __device__ void multiply() {
    constexpr int kHalf = S::kColumns / 2;
    const int half = __shfl_sync(~0u, threadIdx.x / 128, 0), lane = threadIdx.x % 32;
    float c[kHalf / 2];
    for (int i = 0; i < S::kChunks; ++i) {
      const int chunk = S::chunk(rank_, i), stage = i % S::kStages;
      if (i >= kHeads) wait(&shared_.gated_full[chunk], 0);
      wait(&shared_.weight_full[stage], i / S::kStages & 1);
      const uint32_t gated = descriptor(shared_.gated[chunk], 0);
      const uint32_t weight = descriptor(shared_.weight[stage] + half * kHalf * kRowBytes, 0);
      products_begin();
#pragma unroll
      for (int k = 0; k < kDepth / 16; ++k)  // descriptors count 16 bytes
        product<T, kHalf>(c, gated + k * 2, weight + k * 2, i + k);
      products_commit();
      products_wait<1>();
      if (i > 0 && lane == 0) arrive(&shared_.weight_empty[(i - 1) % S::kStages]);
    }
    products_wait<0>();
    named_barrier(kMultiplied, kMultiplying);  // nobody reads weights any more
    const int row = threadIdx.x / 32 % 4 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < kHalf / 4; ++i) {
      const int column = half * kHalf + i / 2 * 8 + lane % 4 * 2, r = row + i % 2 * 8;
      const float2 bias = *reinterpret_cast<const float2*>(&shared_.bias[column]);
      *reinterpret_cast<float2*>(&shared_.product[r * S::kPitch + swizzled(column)]) = {
          c[i * 2] + bias.x, c[i * 2 + 1] + bias.y};
    }
  }
  // Of each second 32 columns neighbouring fours change places, so that eight threads that read
  // every other four meet no bank conflict.
  __device__ static int swizzled(int column) { return column ^ (column >> 5 & 1) << 2; }

  __device__ void read_product(Floats<kHeads>& y) const {
    const float* row = &shared_.product[tile_row_ * S::kPitch];
#pragma unroll
    for (int i = 0; i < kHeads; ++i)
#pragma unroll
      for (int j = 0; j < 8; j += 4)
        *reinterpret_cast<float4*>(&y[i][j]) =
            *reinterpret_cast<const float4*>(row + swizzled(i * 64 + lane_ * 8 + j));
  }

  const Launch& launch_;
  Shared<kHeads>& shared_;
  const uint32_t rank_;
  const int lane_, tile_row_, row_, column_;
  const bool present_;  // whether the row exists
};

}  // namespace mtgr::tail
