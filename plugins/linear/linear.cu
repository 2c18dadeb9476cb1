// The C launcher: checks what the host can see, and picks the tile shape.
#include <algorithm>
#include <cstdint>

#include "error.h"
#include "launch.cuh"
#include "problem.h"

namespace mtgr::linear {
namespace {

int check(const mtgr_linear_args& a) {
  if (a.rows < 0) return invalid("x: %d rows", a.rows);
  if (a.columns < 16 || a.columns % 16 != 0 || a.depth < 8 || a.depth % 8 != 0)
    return invalid("weight: [%d, %d], expected multiples of 16 and of 8", a.columns, a.depth);
  if (a.rows == 0) return MTGR_OK;
  if (!a.x || !aligned16(a.x, 2, a.x_stride))
    return invalid("x: expected an address and a row stride that are multiples of 16 bytes");
  if (!a.weight || !aligned16(a.weight, 2, 0))
    return invalid("weight: expected an address that is a multiple of 16 bytes");
  if (!aligned16(a.bias, 4, 0)) return invalid("bias: expected a multiple of 16 bytes");
  if (!aligned16(a.residual, 2, a.residual_stride))
    return invalid("residual: expected multiples of 16 bytes");
  if (!a.out || !aligned16(a.out, 2, a.out_stride))
    return invalid("out: expected an address and a row stride that are multiples of 16 bytes");
  return MTGR_OK;
}

// Clocks of a launch, roughly, fitted to the README's table. The slowest block's tiles take their
// stages, each bound by the matrix units or by what the block loads, and their way out; where
// consumers take turns only the last one's way out is not hidden. And all blocks together wait for
// what L2 hands out.
double clocks(const mtgr_linear_args* problems, int count, int processors, const Tile& tile) {
  constexpr double kStart = 2000, kProductsAClock = 2000, kBytesAClock = 38, kShareOfL2 = 25.4;
  const double tile_out = (tile.turns ? 0.35 : 0.245) * tile.rows() * tile.columns;
  const double loaded = (tile.loaded_rows() + tile.loaded_columns()) * kDepth * 2;
  const double stage =
      std::max(tile.rows() * tile.columns * kDepth / kProductsAClock, loaded / kBytesAClock);
  double work = 0, deepest = 0, bytes = 0;
  int units = 0;
  for (int i = 0; i < count; ++i) {
    const mtgr_linear_args& a = problems[i];
    if (a.rows == 0) continue;
    const int across = (a.columns - 1) / (tile.columns * tile.across) + 1;
    const int mine = across * ((a.rows - 1) / (tile.rows() * tile.down) + 1);
    const int deep = (a.depth - 1) / kDepth + 1;
    const double taken = deep * stage + (tile.turns ? 0 : tile_out);
    units += mine;
    work += mine * taken;
    deepest = std::max(deepest, taken);
    bytes += mine * tile.cluster() * deep * loaded;
  }
  if (units == 0) return 0;
  const int rounds = (units - 1) / (processors / tile.cluster()) + 1;
  const double slowest = std::max(deepest, rounds * work / units) + (tile.turns ? tile_out : 0);
  return kStart + std::max(slowest, bytes / (kShareOfL2 * processors));
}

}  // namespace

bool suits(const Tile& tile, Epilogue epilogue, const mtgr_linear_args* problems, int count) {
  if (epilogue == kAddResidual && !tile.is_narrow()) return false;
  for (int i = 0; i < count; ++i)
    if (problems[i].out_dtype == MTGR_FLOAT32 && !tile.is_narrow()) return false;
  return true;
}

int choose_tile(Epilogue epilogue, const mtgr_linear_args* problems, int count, int processors) {
  int best = 0;
  double least = 1e300;
  for (int i = 0; i < kTileCount; ++i) {
    if (!suits(kTiles[i], epilogue, problems, count)) continue;
    const double taken = clocks(problems, count, processors, kTiles[i]);
    if (taken < least) best = i, least = taken;
  }
  return best;
}

}  // namespace mtgr::linear

using namespace mtgr;

extern "C" int mtgr_linear(int32_t dtype, int32_t epilogue, const mtgr_linear_args* problems,
                           int32_t count, mtgr_stream stream) {
  if (dtype != MTGR_FLOAT16 && dtype != MTGR_BFLOAT16)
    return invalid("dtype: %d, expected float16 or bfloat16", dtype);
  if (count < 0 || count > linear::kMostProblems)
    return invalid("problems: %d, expected at most %d", count, linear::kMostProblems);
  if (epilogue < MTGR_LINEAR_STORE || epilogue > MTGR_LINEAR_RESIDUAL)
    return invalid("epilogue: %d", epilogue);
  for (int i = 0; i < count; ++i) {
    if ((problems[i].residual != nullptr) != (epilogue == MTGR_LINEAR_RESIDUAL) &&
        problems[i].rows > 0)
      return invalid("residual: expected with its epilogue, and with no other");
    if (problems[i].out_dtype != dtype && problems[i].out_dtype != MTGR_FLOAT32)
      return invalid("out: dtype %d, expected that of x or float32", problems[i].out_dtype);
    if (int status = linear::check(problems[i])) return status;
  }
  int device = 0, major = 0, processors = 0;
  cudaError_t error = compute_capability(major);
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return cuda_status(error, "device properties");
  if (major != 9) return invalid("device: compute capability %d.x, expected 9.0", major);
  const auto last = static_cast<linear::Epilogue>(epilogue);
  const int tile = linear::choose_tile(last, problems, count, processors);
  return cuda_status(linear::launch_linear(static_cast<mtgr_dtype>(dtype), last, problems, count,
                                           tile, processors, stream),
                     "linear (sm_90a)");
}
