// The first step: this block's quarter of gated = norm(attended * gate), by all threads.
#pragma once

#include "launch.cuh"
#include "rows.cuh"

namespace mtgr::tail {

// Eight neighbouring threads have a quarter of a row, each eight columns of each 64, so that
// they read and write whole lines.
template <class T, int kHeads>
class Gated {
  using S = Sizes<kHeads>;
  static constexpr int kLanes = kThreads / kRows, kColumns = kDepth / kLanes;
  using RowPart = Part<T, kHeads, kColumns, kDepth>;

 public:
  __device__ Gated(const Launch& launch, Shared<kHeads>& shared, uint32_t rank)
      : launch_(launch),
        shared_(shared),
        rank_(rank),
        lane_(threadIdx.x % kLanes),
        row_(threadIdx.x / kLanes) {}

  __device__ void run() const {
    const int row = blockIdx.x / kCluster * kRows + row_;
    const int column = rank_ * S::kColumns + lane_ * kColumns;
    const bool present = row < launch_.rows;
    const int affine = (present ? __ldg(launch_.group + row) : 0) * S::kDim + column;
    const Norm& norm = launch_.gated_norm;
    RowPart gate, weight, bias, attended;
    gate.load(static_cast<const T*>(launch_.gate) + row * launch_.gate_stride + column, present);
    weight.load(static_cast<const T*>(norm.weight) + affine);
    bias.load(static_cast<const T*>(norm.bias) + affine);
    wait_for_inputs();
    attended.load(static_cast<const T*>(launch_.attended) + row * launch_.attended_stride + column,
                  present);
    float z[RowPart::kValues];
#pragma unroll
    for (int i = 0; i < RowPart::kValues; ++i) z[i] = attended[i] * gate[i];
    const float2 moments = moments_of<kLanes>(z);
    if (lane_ < kCluster)  // each tells a block
      send(&shared_.gated_moments.of[row_][rank_], &shared_.gated_moments_full, lane_, moments);
    wait(&shared_.gated_moments_full, 0);
    Scale(shared_.gated_moments, row_, S::kDim, norm.eps).apply(z, weight, bias);
    hand_over(z);
  }

 private:
  // Into the quarter's place among the product's operand. Each chunk leaves for the other blocks as
  // soon as it is whole: the warp that sends them waits for each, those who multiply for the last.
  __device__ void hand_over(const float (&z)[RowPart::kValues]) const {
    RowPart rounded;
    rounded.round(z);
    const int at = row_ * kRowBytes + (lane_ ^ row_ % 8) * 16;  // swizzled
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      *reinterpret_cast<uint4*>(shared_.gated[rank_ * kHeads + i] + at) = rounded.vectors[i];
      fence_async_proxy();
      if (threadIdx.x >= kCopying) continue;
      if (i + 1 == kHeads && threadIdx.x < kMultiplying)
        named_barrier(kGated + i, kThreads);
      else
        named_barrier_arrive(kGated + i, kThreads);
    }
  }

  const Launch& launch_;
  Shared<kHeads>& shared_;
  const uint32_t rank_;
  const int lane_, row_;  // row_: of the tile
};

}  // namespace mtgr::tail
