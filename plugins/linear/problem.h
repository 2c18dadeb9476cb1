// One launch of the products as the kernel gets it, and the tile shapes that exist.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "mtgr_ops.h"

namespace mtgr::linear {

constexpr int kMostProblems = 4;  // of one launch
constexpr int kDepth = 64;        // columns of x and of the weight a stage holds: 128 bytes a row
// Neighbouring columns that a lane holds together, and those of the four lanes of a row
// (encode_weight).
constexpr int kVector = 4, kGroup = 4 * kVector;

constexpr int kConsumers = 2;  // warpgroups that multiply

// What happens to x W^T + bias.
enum Epilogue { kStore, kSilu, kAddResidual };

// A tile of the output. A consumer holds `blocks` times 64 rows by `columns` in registers, which is
// the tile where consumers take `turns` at tiles, and half of it where they share each: then no
// tile waits for a turn, but nothing multiplies while one is finished. A cluster of thread blocks
// takes `across` neighbouring tiles of `down` rows of tiles, and loads what they share of x and W
// once for all: what L2 hands out is what bounds the large products.
struct Tile {
  bool turns;
  int blocks, columns, across, down;
  constexpr int rows() const { return 64 * blocks * (turns ? 1 : kConsumers); }
  constexpr int cluster() const { return across * down; }
  // Rows of x and of W that a thread block loads of each stage, for itself and its cluster.
  constexpr int loaded_rows() const { return rows() / across; }
  constexpr int loaded_columns() const { return columns / down; }
  // Whether registers are left to hold residual rows while they are awaited, or to write fp32.
  constexpr bool is_narrow() const { return blocks * columns <= 256; }
};

constexpr Tile kTiles[] = {{false, 1, 64, 2, 1},  {false, 1, 96, 2, 1},  {false, 1, 128, 2, 1},
                           {false, 1, 256, 1, 2}, {false, 2, 176, 2, 1}, {true, 1, 64, 2, 1},
                           {true, 2, 128, 2, 1},  {true, 2, 176, 1, 2}};
constexpr int kTileCount = sizeof kTiles / sizeof *kTiles;

struct Problem {
  CUtensorMap x, weight;
  const float* bias;
  const void* residual;
  const int32_t* out_rows;
  void* out;
  int64_t residual_stride, out_stride;  // elements
  int rows, columns;
  int blocks_deep;   // of kDepth
  int across;        // clusters in a row of tiles
  int first_unit;    // of this problem among all units; a unit is one cluster's tiles
  int float_output;  // a flag
};

struct Launch {
  Problem problems[kMostProblems];
  int count, units;
};

// Whether these problems can be run with a tile shape.
bool suits(const Tile& tile, Epilogue epilogue, const mtgr_linear_args* problems, int count);

// The fastest tile shape for these problems, as an index of kTiles.
int choose_tile(Epilogue epilogue, const mtgr_linear_args* problems, int count, int processors);

// Runs checked problems with the given tile shape.
cudaError_t launch_linear(mtgr_dtype dtype, Epilogue epilogue, const mtgr_linear_args* problems,
                          int count, int tile, int processors, cudaStream_t stream);

}  // namespace mtgr::linear
