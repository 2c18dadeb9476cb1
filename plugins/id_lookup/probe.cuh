// The row of an id in a frozen open-addressing table, 0 if absent; see README.md for the hash.
#pragma once

#include <cstdint>

namespace mtgr {

__device__ __forceinline__ int32_t find_row(int64_t id, const int64_t* keys, const int32_t* rows,
                                            int log_capacity, int max_probe) {
  const uint64_t x = static_cast<uint64_t>(id);
  const uint64_t hash = (x ^ (x >> 32)) * 0x9E3779B97F4A7C15ull;
  const uint64_t mask = (uint64_t{1} << log_capacity) - 1;
  uint64_t slot = log_capacity == 0 ? 0 : hash >> (64 - log_capacity);
  for (int probe = 0; probe < max_probe; ++probe, slot = (slot + 1) & mask) {
    const int32_t row = __ldg(rows + slot);
    const int64_t key = __ldg(keys + slot);
    // An empty slot, whose row is 0, ends the chain: nothing is ever deleted. Without a branch for
    // either, both loads are awaited at once.
    if ((row == 0) | (key == id)) return row;
  }
  return 0;
}

}  // namespace mtgr
