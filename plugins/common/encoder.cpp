#include "encoder.h"

#include <cuda_runtime_api.h>

namespace mtgr {

constexpr int kSize = 2;  // bytes of fp16 and bf16
constexpr int kBoxColumns = 128 / kSize;

PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const auto function = [] {
    void* pointer = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &pointer,
                                                               12000, cudaEnableDefault, &found);
    return error == cudaSuccess ? reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(pointer)
                                : nullptr;
  }();
  return function;
}

namespace {

// 16-bit numbers in boxes whose rows are 128 bytes, swizzled; strides in elements, from the second
// dimension on.
template <int kRank>
bool encode(CUtensorMap& map, mtgr_dtype dtype, const void* data, const cuuint64_t (&shape)[kRank],
            const int64_t (&strides)[kRank - 1], const cuuint32_t (&box)[kRank]) {
  cuuint64_t bytes[kRank - 1];
  cuuint32_t steps[kRank];
  for (int i = 0; i < kRank - 1; ++i) bytes[i] = cuuint64_t(strides[i]) * kSize;
  for (cuuint32_t& step : steps) step = 1;
  const auto type =
      dtype == MTGR_FLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  return tensor_map_encoder()(&map, type, kRank, const_cast<void*>(data), shape, bytes, box, steps,
                              CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

bool encode_rows(CUtensorMap& map, mtgr_dtype dtype, const void* data, int rows, int columns,
                 int64_t stride, int box_rows) {
  return encode<2>(map, dtype, data, {cuuint64_t(columns), cuuint64_t(rows)}, {stride},
                   {kBoxColumns, cuuint32_t(box_rows)});
}

bool encode_weight(CUtensorMap& map, mtgr_dtype dtype, const void* data, int columns, int depth,
                   int vector, int box_groups, int box_pairs) {
  const int64_t row = depth;
  return encode<5>(
      map, dtype, data,
      {cuuint64_t(depth), 2, 4, cuuint64_t(columns / (4 * vector)), cuuint64_t(vector / 2)},
      {row, row * vector, row * vector * 4, row * 2},
      {kBoxColumns, 2, 4, cuuint32_t(box_groups), cuuint32_t(box_pairs)});
}

}  // namespace mtgr
