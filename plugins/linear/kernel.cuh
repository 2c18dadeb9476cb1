// One persistent launch of up to four products: out = activation(x W^T + b) + residual, on sm_90a.
//
// A producer thread copies blocks of x and W through a ring of shared-memory stages, tile after
// tile; two consumer warpgroups multiply them in fp32 registers. They share each tile, or take turns
// at tiles: then one finishes its tile while the other keeps the matrix units busy. A finished tile
// passes through shared memory in strips of 64 columns, so that bias, SiLU, residual and stores work
// on rows of 16-byte vectors.
#pragma once

#include "launch.cuh"
#include "numbers.cuh"
#include "problem.h"
#include "ptx.cuh"

namespace mtgr::linear {

using namespace mtgr::hopper;

constexpr int kRowBytes = kDepth * 2;
constexpr int kStrip = 64;               // columns: a whole line of a 16-bit row
constexpr int kStripPitch = kStrip + 8;  // floats: rows of a strip start in different banks
constexpr int kRowLanes = kStrip / 8;    // lanes that store one row of a strip
constexpr int kPasses = 16 * kRowLanes / 32;
constexpr int kSharedLimit = 227 * 1024;

template <int kTile>
struct Shared {
  static constexpr Tile kShape = kTiles[kTile];
  static constexpr int kRows = kShape.rows(), kColumns = kShape.columns;
  static constexpr int kCluster = kShape.cluster();
  static constexpr int kLoadedRows = kShape.loaded_rows();
  static constexpr int kLoadedColumns = kShape.loaded_columns();
  static constexpr int kStageBytes = (kRows + kColumns) * kRowBytes;
  static constexpr int kBiasPitch = (kColumns - 1) / kStrip * kStrip + kStrip;
  static constexpr int kOutputBytes = kConsumers * (4 * 16 * kStripPitch + kBiasPitch) * 4;
  static constexpr int kFitting = (kSharedLimit - kOutputBytes - 256) / kStageBytes;
  static constexpr int kStages = kFitting < 8 ? kFitting : 8;

  alignas(1024) unsigned char x[kStages][kRows * kRowBytes];
  alignas(1024) unsigned char weight[kStages][kColumns * kRowBytes];
  float strip[kConsumers * 4][16 * kStripPitch];  // a warp's
  float bias[kConsumers][kBiasPitch];
  uint64_t full[kStages], empty[kStages];
  // A consumer's turn: the other has seen all stages of its tile arrive. Without it one would wait
  // for a stage two rounds ahead, which a barrier's parity cannot tell from one that has passed.
  uint64_t turn[kConsumers];
};

// Position in the ring of stages; the parity is that of the next completion to wait for.
template <int kStages>
struct Position {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  __device__ void advance(int steps) {
    parity ^= (stage + steps) / kStages & 1;
    stage = (stage + steps) % kStages;
  }
};

// Where a block is in its cluster, and whom the parts of x and W that it loads are for.
template <int kTile>
struct Member {
  static constexpr Tile kShape = kTiles[kTile];
  const int across, down;

  __device__ explicit Member(int rank)
      : across(rank % kShape.across), down(rank / kShape.across) {}
  // The blocks whose tiles lie in this one's row, and those in its column, a bit each.
  __device__ uint16_t of_row() const {
    return ((1 << kShape.across) - 1) << down * kShape.across;
  }
  __device__ uint16_t of_column() const {
    uint16_t all = 0;
    for (int i = 0; i < kShape.down; ++i) all |= 1 << (across + i * kShape.across);
    return all;
  }
};

// The tile that a block computes of one unit.
struct Place {
  const Problem& problem;
  int row, column;

  __device__ static const Problem& problem_of(const Launch& launch, int unit) {
    int i = 0;
    while (i + 1 < launch.count && unit >= launch.problems[i + 1].first_unit) ++i;
    return launch.problems[i];
  }
  template <int kTile>
  __device__ static Place of(const Launch& launch, int unit, const Member<kTile>& self) {
    using S = Shared<kTile>;
    const Problem& problem = problem_of(launch, unit);
    const int local = unit - problem.first_unit;
    const int row = local / problem.across * S::kShape.down + self.down;
    const int column = local % problem.across * S::kShape.across + self.across;
    return {problem, row * S::kRows, column * S::kColumns};
  }
};

// Copies part `part` of `kParts` of a stage's rows of x or W to the blocks of `mask`.
template <int kParts>
__device__ void copy_part(unsigned char* to, const CUtensorMap* map, int block, int row, int part,
                          int part_rows, uint64_t* full, uint16_t mask) {
  to += part * part_rows * kRowBytes;
  if constexpr (kParts == 1)
    copy_rows(to, map, block * kDepth, row, full);
  else
    copy_rows_to_all(to, map, block * kDepth, row + part * part_rows, full, mask);
}

template <int kTile>
__device__ void produce(const Launch& launch, Shared<kTile>& shared, const Member<kTile>& self) {
  using S = Shared<kTile>;
  constexpr Tile kShape = kTiles[kTile];
  const int first = blockIdx.x / S::kCluster, step = gridDim.x / S::kCluster;
  auto load_weight = [&](const Place& at, int block, int stage) {
    arrive_expecting(&shared.full[stage], S::kStageBytes);
    copy_part<kShape.down>(shared.weight[stage], &at.problem.weight, block, at.column, self.down,
                           S::kLoadedColumns, &shared.full[stage], self.of_column());
  };

  // Weights are nobody's output: those of the first stages come while earlier kernels end.
  int ahead = 0;
  if (first < launch.units) {
    const Place at = Place::of<kTile>(launch, first, self);
    for (; ahead < S::kStages && ahead < at.problem.blocks_deep; ++ahead)
      load_weight(at, ahead, ahead);
  }
  wait_for_inputs();

  Position<S::kStages> next;
  for (int unit = first; unit < launch.units; unit += step) {
    const Place at = Place::of<kTile>(launch, unit, self);
    const int blocks_deep = at.problem.blocks_deep;
    for (int block = 0; block < blocks_deep; ++block, next.advance()) {
      if (ahead > 0) {
        --ahead;
      } else {
        wait(&shared.empty[next.stage], next.parity ^ 1);
        load_weight(at, block, next.stage);
      }
      copy_part<kShape.across>(shared.x[next.stage], &at.problem.x, block, at.row, self.across,
                               S::kLoadedRows, &shared.full[next.stage], self.of_row());
    }
  }
}

// What a lane stores of one block of a tile: eight columns of each strip, of one row a pass. All
// that it needs of the problem is in registers, and nothing but stores depends on the tile's edges.
template <class T, int kColumns, Epilogue kEpilogue>
class Output {
  static constexpr int kStrips = (kColumns - 1) / kStrip + 1;
  static constexpr bool kResidual = kEpilogue == kAddResidual;

 public:
  // `row` is the first of the warp's 16.
  __device__ Output(const Place& at, int row, int lane) : lane_(lane) {
    const Problem& p = at.problem;
    const int column = at.column + lane % kRowLanes * 8;
    const int strips = (min(at.column + kColumns, p.columns) - column + kStrip - 1) / kStrip;
    float_output_ = p.float_output;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int r = row + lane / kRowLanes + pass * (16 / kPasses);
      count_[pass] = r < p.rows ? strips : 0;
      const int64_t to = count_[pass] == 0 ? 0 : p.out_rows ? __ldg(p.out_rows + r) : r;
      out_[pass] =
          static_cast<char*>(p.out) + (to * p.out_stride + column) * (float_output_ ? 4 : 2);
      if constexpr (kResidual) {
        const T* residual = static_cast<const T*>(p.residual) + r * p.residual_stride + column;
#pragma unroll
        for (int strip = 0; strip < kStrips; ++strip)
          residual_[strip][pass] = strip < count_[pass]
                                       ? *reinterpret_cast<const uint4*>(residual + strip * kStrip)
                                       : uint4{};
      }
    }
  }

  __device__ void store(float* strip_of_warp, const float* bias_of_tile,
                        const float (&c)[kColumns / 2]) const {
    float* put = strip_of_warp + lane_ / 4 * kStripPitch + lane_ % 4 * 2;
    const float* get = strip_of_warp + lane_ / kRowLanes * kStripPitch + lane_ % kRowLanes * 8;
    const float* bias_at = bias_of_tile + lane_ % kRowLanes * 8;
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      __syncwarp();
#pragma unroll
      for (int j = 0; j < kRowLanes && strip * kStrip + j * 8 < kColumns; ++j) {
        const float* from = c + (strip * kRowLanes + j) * 4;
        *reinterpret_cast<float2*>(put + j * 8) = {from[0], from[1]};
        *reinterpret_cast<float2*>(put + j * 8 + 8 * kStripPitch) = {from[2], from[3]};
      }
      __syncwarp();
      float bias[8];
      load8(bias, bias_at + strip * kStrip);
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        float y[8];
        load8(y, get + pass * (16 / kPasses) * kStripPitch);
        finish(y, bias, pass, strip);
        if (strip < count_[pass]) write(y, pass, strip);
      }
    }
  }

 private:
  __device__ static void load8(float (&to)[8], const float* from) {
    *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(from);
    *reinterpret_cast<float4*>(to + 4) = *reinterpret_cast<const float4*>(from + 4);
  }
  __device__ void finish(float (&y)[8], const float (&bias)[8], int pass, int strip) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if constexpr (kEpilogue == kSilu)
        y[i] = silu_of_twice(fmaf(y[i], .5f, bias[i]));  // half of the bias, see Bias
      else
        y[i] += bias[i];
      if constexpr (kResidual)
        y[i] += to_float(reinterpret_cast<const T*>(&residual_[strip][pass])[i]);
    }
  }
  __device__ void write(const float (&y)[8], int pass, int strip) const {
    if (float_output_) {
      auto* out = reinterpret_cast<float4*>(out_[pass] + strip * kStrip * 4);
      out[0] = {y[0], y[1], y[2], y[3]};
      out[1] = {y[4], y[5], y[6], y[7]};
    } else {
      *reinterpret_cast<uint4*>(out_[pass] + strip * kStrip * 2) = {
          pack2<T>(y[0], y[1]), pack2<T>(y[2], y[3]), pack2<T>(y[4], y[5]), pack2<T>(y[6], y[7])};
    }
  }

  int lane_, count_[kPasses];
  bool float_output_;
  char* out_[kPasses];
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
#pragma unroll
    for (int i = 0; i < kParts; ++i)
      if (const int column = threadIdx.x % 128 + i * 128; column < kColumns)
        shared[column] = values_[i];
    named_barrier(threadIdx.x / 128, 128);
  }

 private:
  float values_[kParts];
};

template <class T, int kTile, Epilogue kEpilogue>
__device__ void consume(const Launch& launch, Shared<kTile>& shared, const Member<kTile>& self) {
  using S = Shared<kTile>;
  constexpr Tile kShape = kTiles[kTile];
  constexpr int kBlocks = kShape.blocks, kColumns = kShape.columns, kCluster = S::kCluster;
  const int warp = threadIdx.x / 32 - 4, lane = threadIdx.x % 32, consumer = warp / 4;
  const int first_row = kShape.turns ? 0 : consumer * kBlocks * 64;  // of the tile's
  // To all whose copies come here.
  const bool releases = (self.of_row() | self.of_column()) >> lane & 1;
  auto release = [&](int stage) {
    if (releases) arrive_at(&shared.empty[stage], lane);
  };

  Position<S::kStages> next;
  const int step = gridDim.x / kCluster;
  uint32_t turn_parity = consumer ^ 1;  // the first tile is the first consumer's, without waiting
  bool mine = consumer == 0;
  for (int unit = blockIdx.x / kCluster; unit < launch.units; unit += step, mine = !mine) {
    const Place at = Place::of<kTile>(launch, unit, self);
    const int blocks_deep = at.problem.blocks_deep;
    if (kShape.turns && !mine) {
      next.advance(blocks_deep);
      continue;
    }
    const Bias<kColumns, kEpilogue> bias(at);
    float c[kBlocks][kColumns / 2];
    int previous = 0;
    if constexpr (kShape.turns) {
      wait(&shared.turn[consumer], turn_parity);
      turn_parity ^= 1;
    }
    for (int block = 0; block < blocks_deep; ++block) {
      wait(&shared.full[next.stage], next.parity);
      const uint64_t x = descriptor(shared.x[next.stage] + first_row * kRowBytes, 0);
      const uint64_t weight = descriptor(shared.weight[next.stage], 0);
      products_begin();
#pragma unroll
      for (int i = 0; i < kDepth / 16; ++i)  // descriptors count 16 bytes
#pragma unroll
        for (int b = 0; b < kBlocks; ++b)
          product<T, kColumns>(c[b], x + i * 2 + b * (64 * kRowBytes / 16), weight + i * 2,
                               block + i);
      products_commit();
      if (kShape.turns && block + 1 == blocks_deep && lane == 0)
        arrive(&shared.turn[consumer ^ 1]);
      products_wait<1>();
      if (block > 0) release(previous);
      previous = next.stage;
      next.advance();
    }
    wait_for_inputs();
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int row = at.row + first_row + b * 64 + warp % 4 * 16;
      const Output<T, kColumns, kEpilogue> output(at, row, lane);
      if (b == 0) {
        products_wait<0>();
        release(previous);
        bias.store(shared.bias[consumer]);
      }
      output.store(shared.strip[warp], shared.bias[consumer], c[b]);
    }
  }
}

template <class T, int kTile, Epilogue kEpilogue>
__global__ void __launch_bounds__(128 * (1 + kConsumers), 1)
    linear(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(1024) unsigned char raw[];
  using S = Shared<kTile>;
  constexpr Tile kShape = kTiles[kTile];
  auto& shared = *reinterpret_cast<S*>(raw);
  release_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i],
                   (kShape.across + kShape.down - 1) * (kShape.turns ? 4 : kConsumers * 4));
    }
    for (int i = 0; i < kConsumers; ++i) barrier_init(&shared.turn[i], 4);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    for (int i = 0; i < launch.count; ++i) {
      prefetch_map(&launch.problems[i].x);
      prefetch_map(&launch.problems[i].weight);
    }
  }
  const Member<kTile> self(cluster_rank());
  cluster_barrier();

  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) produce<kTile>(launch, shared, self);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    consume<T, kTile, kEpilogue>(launch, shared, self);
  }
  // No block leaves while another may still copy into it or arrive at its barriers.
  __syncwarp();
  cluster_barrier();
}

}  // namespace mtgr::linear
