#include "encoder.h"
#include "hopper_shared.cuh"
#include "tensor_map.h"

namespace mtgr::hopper {
namespace {

// A [rows, heads, 256] view as [heads][4][rows][64] with boxes of [1][4][64][64]: what lands
// in shared memory is four swizzled tiles of 128-byte rows, as wgmma wants them.
bool encode(CUtensorMap& map, mtgr_dtype dtype, const mtgr_rows& view, int rows, int heads) {
  constexpr int kSize = 2;  // bytes of fp16 and bf16
  const cuuint64_t shape[4] = {kChunk, cuuint64_t(rows), kChunks, cuuint64_t(heads)};
  const cuuint64_t strides[3] = {cuuint64_t(view.row_stride) * kSize, kChunk * kSize,
                                 cuuint64_t(view.head_stride) * kSize};
  const cuuint32_t box[4] = {kChunk, kTileN, kChunks, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const auto type =
      dtype == MTGR_FLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  return tensor_map_encoder()(&map, type, 4, const_cast<void*>(view.data), shape, strides, box,
                              steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                              CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                              CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

cudaError_t make_maps(const Problem& p, mtgr_dtype dtype, Maps& maps) {
  if (tensor_map_encoder() == nullptr) return cudaErrorNotSupported;
  const int recent = p.rows[kRealtime] + p.rows[kCandidate];
  int queries = 0;
  for (int s = p.first_query_segment; s < kSegments; ++s) queries += p.rows[s];
  // A map of an empty segment is never used, but must describe some memory: that of q.
  auto add = [&](CUtensorMap& map, const mtgr_rows& view, int rows, int heads) {
    return rows > 0 ? encode(map, dtype, view, rows, heads) : encode(map, dtype, p.q, 1, 1);
  };
  const bool done = add(maps.q, p.q, queries, p.heads) &&
                    add(maps.static_k, p.static_k, p.rows[kStatic], p.kv_heads) &&
                    add(maps.static_v, p.static_v, p.rows[kStatic], p.kv_heads) &&
                    add(maps.recent_k, p.recent_k, recent, p.kv_heads) &&
                    add(maps.recent_v, p.recent_v, recent, p.kv_heads);
  return done ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace mtgr::hopper
