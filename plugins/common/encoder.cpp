#include "encoder.h"

#include <cuda_runtime_api.h>

namespace mtgr {

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

bool encode_rows(CUtensorMap& map, mtgr_dtype dtype, const void* data, int rows, int columns,
                 int64_t stride, int box_rows) {
  constexpr int kSize = 2;  // bytes of fp16 and bf16
  const cuuint64_t shape[2] = {cuuint64_t(columns), cuuint64_t(rows)};
  const cuuint64_t strides[1] = {cuuint64_t(stride) * kSize};
  const cuuint32_t box[2] = {128 / kSize, cuuint32_t(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const auto type =
      dtype == MTGR_FLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  return tensor_map_encoder()(&map, type, 2, const_cast<void*>(data), shape, strides, box, steps,
                              CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace mtgr
