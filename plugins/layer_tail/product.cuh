// The second step: out = gated W^T + bias + residual of this block's quarter of the columns, and
// next = norm(out), by two warpgroups. All of it happens where the products leave their result, in
// registers: no other layout, no way through shared memory.
#pragma once

#include "rows.cuh"

namespace mtgr::tail {

// A warpgroup has half of the quarter. Of two rows, eight apart, a thread has kGroups vectors of
// neighbouring columns, a group from one to the next (encode_weight): four lanes share a row.
template <class T, int kHeads>
class Product {
  using S = Sizes<kHeads>;
  static constexpr int kGroups = S::kHalf / kGroup;
  using RowPart = Part<T, kGroups, kVector, kGroup>;
  static constexpr int kValues = RowPart::kValues;

 public:
  __device__ Product(const Launch& launch, Shared<kHeads>& shared, uint32_t rank)
      : launch_(launch),
        shared_(shared),
        rank_(rank),
        // From lane 0, so that the compiler knows it to be the same in all lanes.
        half_(__shfl_sync(~0u, threadIdx.x / 128, 0)),
        lane_(threadIdx.x % 4),
        row_(threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4),
        column_(rank * S::kColumns + half_ * S::kHalf + lane_ * kVector) {}

  // The residual, while earlier kernels end.
  __device__ void begin() {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      residual_[i].load(
          static_cast<const T*>(launch_.residual) + row(i) * launch_.residual_stride + column_,
          row(i) < launch_.rows);
  }

  __device__ void run() const {
    const Norm& norm = launch_.next_norm;
    RowPart weight[2], bias[2];
    if (launch_.next) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // while products run
        const int group = row(i) < launch_.rows ? __ldg(launch_.group + row(i)) : 0;
        weight[i].load(static_cast<const T*>(norm.weight) + group * S::kDim + column_);
        bias[i].load(static_cast<const T*>(norm.bias) + group * S::kDim + column_);
      }
    }
    float y[2][kValues];
    multiply(y);
    if (launch_.next) {
#pragma unroll
      for (int i = 0; i < 2; ++i)  // each of the four lanes tells a block
        send(&shared_.out_moments.of[row_ + 8 * i][rank_ * 2 + half_], &shared_.out_moments_full,
             lane_, moments_of<4>(y[i]));
    }
    store(launch_.out, y);
    if (launch_.next) wait(&shared_.out_moments_full, 0);
    cluster_arrive();  // all that others sent here is here
    if (launch_.next) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        Scale(shared_.out_moments, row_ + 8 * i, S::kDim, norm.eps).apply(y[i], weight[i], bias[i]);
      store(launch_.next, y);
    }
  }

 private:
  __device__ int row(int i) const { return blockIdx.x / kCluster * kRows + row_ + 8 * i; }

  // Where value k of row i is among the sums.
  __device__ static constexpr int at(int i, int k) {
    return (k % kVector / 2 * kGroups + k / kVector) * 4 + i * 2 + k % 2;
  }

  // y = gated W^T + bias + residual. The block's own quarter of `gated` comes first, while those of
  // others are on their way.
  __device__ void multiply(float (&y)[2][kValues]) const {
    float c[S::kHalf / 2];
    const float* bias = launch_.bias + column_;
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
#pragma unroll
      for (int v = 0; v < kVector; v += 4) {
        const float4 four = __ldg(reinterpret_cast<const float4*>(bias + g * kGroup + v));
        const float add[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int k = 0; k < 4; ++k)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int value = g * kVector + v + k;
            c[at(i, value)] = residual_[i][value] + add[k];
          }
      }
    int previous = 0;
    for (int i = 0; i < S::kChunks; ++i) {
      const int chunk = S::chunk(rank_, i), stage = i % S::kStages;
      if (i >= kHeads) wait(&shared_.gated_full[chunk], 0);
      wait(&shared_.weight_full[stage], i / S::kStages & 1);
      const uint32_t gated = descriptor(shared_.gated[chunk], 0);
      const uint32_t weight = descriptor(shared_.weight[stage] + half_ * S::kHalf * kRowBytes, 0);
      products_begin();
#pragma unroll
      for (int k = 0; k < kDepth / 16; ++k)  // descriptors count 16 bytes
        product<T, S::kHalf>(c, gated + k * 2, weight + k * 2, true);
      products_commit();
      products_wait<1>();
      if (i > 0 && threadIdx.x % 32 == 0) arrive(&shared_.weight_empty[previous]);
      previous = stage;
    }
    products_wait<0>();
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int k = 0; k < kValues; ++k) y[i][k] = c[at(i, k)];
  }

  __device__ void store(void* to, const float (&y)[2][kValues]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      RowPart rounded;
      rounded.round(y[i]);
      if (row(i) < launch_.rows)
        rounded.store(static_cast<T*>(to) + int64_t{row(i)} * S::kDim + column_);
    }
  }

  const Launch& launch_;
  Shared<kHeads>& shared_;
  const uint32_t rank_;
  const int half_, lane_, row_;  // row_: of the tile, the first of the two
  const int column_;
  RowPart residual_[2];
};

}  // namespace mtgr::tail
