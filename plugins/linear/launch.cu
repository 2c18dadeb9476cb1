// Encodes the tensor maps of a launch and starts the kernel of one tile shape.
#include "encoder.h"
#include "kernel.cuh"

namespace mtgr::linear {
namespace {

bool describe(Launch& launch, mtgr_dtype dtype, const mtgr_linear_args* problems, int count,
              const Tile& tile) {
  for (int i = 0; i < count; ++i) {
    const mtgr_linear_args& a = problems[i];
    if (a.rows == 0) continue;
    Problem& p = launch.problems[launch.count++];
    const int across = (a.columns - 1) / (tile.columns * tile.across) + 1;
    if (!encode_rows(p.x, dtype, a.x, a.rows, a.depth, a.x_stride, tile.loaded_rows()) ||
        !encode_weight(p.weight, dtype, a.weight, a.columns, a.depth, kVector,
                       tile.columns / kGroup, kVector / 2 / tile.down))
      return false;
    p.bias = a.bias;
    p.residual = a.residual;
    p.out_rows = a.out_rows;
    p.out = a.out;
    p.residual_stride = a.residual_stride;
    p.out_stride = a.out_stride;
    p.rows = a.rows;
    p.columns = a.columns;
    p.blocks_deep = (a.depth - 1) / kDepth + 1;
    p.across = across;
    p.first_unit = launch.units;
    p.float_output = a.out_dtype == MTGR_FLOAT32;
    launch.units += across * ((a.rows - 1) / (tile.rows() * tile.down) + 1);
  }
  return true;
}

template <class T, int kTile, Epilogue kEpilogue>
cudaError_t start(const Launch& launch, int processors, cudaStream_t stream) {
  constexpr Tile kShape = kTiles[kTile];
  if constexpr (kEpilogue == kAddResidual && !kShape.is_narrow()) {
    return cudaErrorNotSupported;
  } else {
    auto* kernel = linear<T, kTile, kEpilogue>;
    constexpr int kBytes = sizeof(Shared<kTile>);
    static_assert(kBytes <= kSharedLimit);
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    if (error != cudaSuccess) return error;
    const unsigned clusters = min(launch.units, processors / kShape.cluster());
    const Shape shape{clusters * kShape.cluster(), 128 * (1 + kConsumers), kBytes,
                      unsigned(kShape.cluster())};
    return mtgr::launch(kernel, shape, stream, launch);
  }
}

template <class T, Epilogue kEpilogue, int kTile = 0>
cudaError_t start(int tile, const Launch& launch, int processors, cudaStream_t stream) {
  if constexpr (kTile == kTileCount)
    return cudaErrorInvalidValue;
  else if (tile == kTile)
    return start<T, kTile, kEpilogue>(launch, processors, stream);
  else
    return start<T, kEpilogue, kTile + 1>(tile, launch, processors, stream);
}

template <class T>
cudaError_t start(Epilogue epilogue, int tile, const Launch& launch, int processors,
                  cudaStream_t stream) {
  switch (epilogue) {
    case kStore:
      return start<T, kStore>(tile, launch, processors, stream);
    case kSilu:
      return start<T, kSilu>(tile, launch, processors, stream);
    default:
      return start<T, kAddResidual>(tile, launch, processors, stream);
  }
}

}  // namespace

cudaError_t launch_linear(mtgr_dtype dtype, Epilogue epilogue, const mtgr_linear_args* problems,
                          int count, int tile, int processors, cudaStream_t stream) {
  if (tensor_map_encoder() == nullptr) return cudaErrorNotSupported;
  Launch launch{};
  if (!describe(launch, dtype, problems, count, kTiles[tile])) return cudaErrorInvalidValue;
  if (launch.units == 0) return cudaSuccess;
  auto* run = dtype == MTGR_FLOAT16 ? start<__half> : start<__nv_bfloat16>;
  return run(epilogue, tile, launch, processors, stream);
}

}  // namespace mtgr::linear
