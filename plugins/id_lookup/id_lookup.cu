// Raw 64-bit ids to rows of a frozen open-addressing table in device memory; one thread an id.
#include <cuda_runtime.h>

#include "error.h"
#include "mtgr_ops.h"

namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    id_lookup(const int64_t* ids, int count, const int64_t* keys, const int32_t* rows,
              int log_capacity, int max_probe, int32_t* rows_out) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t id = ids[i];
  const uint64_t x = static_cast<uint64_t>(id);
  const uint64_t hash = (x ^ (x >> 32)) * 0x9E3779B97F4A7C15ull;
  const uint64_t mask = (uint64_t{1} << log_capacity) - 1;
  uint64_t slot = log_capacity == 0 ? 0 : hash >> (64 - log_capacity);
  int32_t row = 0;
  for (int probe = 0; probe < max_probe; ++probe, slot = (slot + 1) & mask) {
    const int32_t candidate = __ldg(rows + slot);
    if (candidate == 0) break;  // an empty slot ends the chain: nothing is ever deleted
    if (__ldg(keys + slot) == id) {
      row = candidate;
      break;
    }
  }
  rows_out[i] = row;
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
