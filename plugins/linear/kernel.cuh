// One persistent launch of up to four products: out = activation(x W^T + b) + residual, on sm_90a.
//
// A producer thread copies blocks of x and W through a ring of shared-memory stages, tile after
// tile; two consumer warpgroups multiply them in fp32 registers. They share each tile, or take turns
// at tiles: then one finishes its tile while the other keeps the matrix units busy. Bias and
// SiLU are applied in registers, and the result passes through shared memory to leave as whole lines.
#pragma once

#include "launch.cuh"
#include "numbers.cuh"
#include "problem.h"
#include "ptx.cuh"

namespace mtgr::linear {

using namespace mtgr::hopper;

constexpr int kRowBytes = kDepth * 2;
constexpr int kStrip = 64;             // columns: a whole line of a 16-bit row
constexpr int kRowLanes = kStrip / 8;  // lanes that store one row of a strip
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
  static constexpr int kOutputBytes = kConsumers * (4 * 16 * kRowBytes + kBiasPitch * 4);
  static constexpr int kFitting = (kSharedLimit - kOutputBytes - 256) / kStageBytes;
  static constexpr int kStages = kFitting < 8 ? kFitting : 8;

  alignas(1024) unsigned char x[kStages][kRows * kRowBytes];
  alignas(1024) unsigned char weight[kStages][kColumns * kRowBytes];
  alignas(128) unsigned char strip[kConsumers * 4][16 * kRowBytes];  // a warp's
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
  // No block leaves while another may still arrive at its barriers.
  for (int i = 0; i < S::kStages; ++i, next.advance())
    wait(&shared.empty[next.stage], next.parity ^ 1);
}

// The way out of 16 rows of a tile, a warp's. In registers a lane holds pairs of columns of two rows;
// bias and SiLU are applied there. The 16-bit result passes through shared memory in strips of 64
// columns, swizzled so that neither side meets bank conflicts, and leaves as whole lines: a lane
// stores eight columns of a strip, of one row a pass. Residuals come the same way in reverse. fp32
// results leave from registers.
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
        *reinterpret_cast<uint4*>(vector_at(strip_of_warp, pass)) =
            residual_[strip][pass];
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
        store_matrices(matrix_row(strip_of_warp, part), pack2<T>(y[0], y[1]),
                       pack2<T>(y[2], y[3]), pack2<T>(y[4], y[5]), pack2<T>(y[6], y[7]));
      }
      __syncwarp();
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const uint4 value = *reinterpret_cast<const uint4*>(
            vector_at(strip_of_warp, pass));
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
  cluster_barrier();  // nobody copies or arrives before barriers are there

  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) produce<kTile>(launch, shared, self);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    consume<T, kTile, kEpilogue>(launch, shared, self);
  }
}

}  // namespace mtgr::linear
