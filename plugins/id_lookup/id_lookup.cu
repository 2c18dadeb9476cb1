// Raw 64-bit ids to rows of a frozen open-addressing table in device memory; one thread an id.
#include <cuda_runtime.h>

#include "error.h"
#include "mtgr_ops.h"
#include "probe.cuh"

namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    id_lookup(const int64_t* ids, int count, const int64_t* keys, const int32_t* rows,
              int log_capacity, int max_probe, int32_t* rows_out) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  rows_out[i] = mtgr::find_row(ids[i], keys, rows, log_capacity, max_probe);
}

}  // namespace

extern "C" int mtgr_id_lookup(const int64_t* ids, int32_t count, const int64_t* keys,
                              const int32_t* rows, int64_t capacity, int32_t max_probe,
                              int32_t* rows_out, mtgr_stream stream) {
  using mtgr::invalid;
  if (count < 0) return invalid("ids: %d, expected no negative count", count);
  if (capacity < 1 || (capacity & (capacity - 1)) != 0)
    return invalid("keys: capacity %lld, expected a power of two", (long long)capacity);
  if (max_probe < 1) return invalid("max_probe: %d, expected at least 1", max_probe);
  if (count == 0) return MTGR_OK;
  if (!ids || !keys || !rows || !rows_out)
    return invalid("ids, keys, rows, rows_out: null pointer");
  int log_capacity = 0;
  while ((int64_t{1} << log_capacity) < capacity) ++log_capacity;
  id_lookup<<<(count + kThreads - 1) / kThreads, kThreads, 0, stream>>>(
      ids, count, keys, rows, log_capacity, max_probe, rows_out);
  return mtgr::cuda_status(cudaGetLastError(), "id_lookup");
}
