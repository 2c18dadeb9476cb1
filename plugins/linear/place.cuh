// What the blocks and warps of a launch of products share: stages, barriers, and who is where.
#pragma once

#include "problem.h"
#include "ptx.cuh"

namespace mtgr::linear {

using namespace mtgr::hopper;

constexpr int kRowBytes = kDepth * 2;
constexpr int kSharedLimit = 227 * 1024;

template <int kTile>
struct Shared {
  static constexpr Tile kShape = kTiles[kTile];
  static constexpr int kRows = kShape.rows(), kColumns = kShape.columns;
  static constexpr int kCluster = kShape.cluster();
  static constexpr int kPairs = kVector / 2 / kShape.down;  // of a vector, that a block loads
  // Registers of a thread that loads, and of one that multiplies: of 64,512 for 128 and 256.
  static constexpr int kLoading = kShape.is_narrow() ? 40 : 24;
  static constexpr int kMultiplying = kShape.is_narrow() ? 232 : 240;
  static constexpr int kLoadedRows = kShape.loaded_rows();
  static constexpr int kLoadedColumns = kShape.loaded_columns();
  static constexpr int kStageBytes = (kRows + kColumns) * kRowBytes;
  static constexpr int kBiasBytes = kConsumers * kColumns * 4;
  static constexpr int kFitting = (kSharedLimit - kBiasBytes - 256) / kStageBytes;
  static constexpr int kStages = kFitting < 8 ? kFitting : 8;

  alignas(1024) unsigned char x[kStages][kRows * kRowBytes];
  alignas(1024) unsigned char weight[kStages][kColumns * kRowBytes];
  alignas(16) float bias[kConsumers][kColumns];
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

  __device__ explicit Member(int rank) : across(rank % kShape.across), down(rank / kShape.across) {}
  // The blocks whose tiles lie in this one's row, and those in its column, a bit each.
  __device__ uint16_t of_row() const { return ((1 << kShape.across) - 1) << down * kShape.across; }
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

}  // namespace mtgr::linear
