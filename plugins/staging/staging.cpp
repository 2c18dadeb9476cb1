// Packed requests -> the arrays of a bucket in its page-locked host buffer: one ragged batch.
#include <cstring>

#include "mtgr_ops.h"

namespace {

constexpr int64_t kAlignment = 16;  // of every array in a request; also the length of its head

struct Rows {
  int64_t of[MTGR_SEGMENTS];  // by mtgr_segment
};

// The counts in a request's head; false where there is none, or one is negative.
bool read_head(const uint8_t* packed, int64_t bytes, Rows* rows) {
  int32_t counts[4];
  if (bytes < static_cast<int64_t>(sizeof(counts))) return false;
  std::memcpy(counts, packed, sizeof(counts));
  *rows = {{1, counts[0], counts[1], counts[2]}};
  return counts[0] >= 0 && counts[1] >= 0 && counts[2] >= 0;
}

template <typename T>
bool at_most(const uint8_t* values, int64_t count, int64_t most, int64_t step) {
  bool within = true;
  for (int64_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, values + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    within &= static_cast<int64_t>(value) <= most + i * step;
  }
  return within;
}

// Whether what an engine follows without looking stays within its request.
bool plausible(const mtgr_packed_array& array, const uint8_t* source, const Rows& rows) {
  const int64_t count = rows.of[array.rows];
  const bool bytes = array.row_bytes == 1;
  int32_t pair[2];
  switch (array.content) {
    case MTGR_RT_VISIBLE:  // of row i, i at most
      return bytes ? at_most<uint8_t>(source, count, 0, 1) : at_most<int32_t>(source, count, 0, 1);
    case MTGR_CANDIDATE_VISIBLE: {
      const int64_t most = rows.of[MTGR_REALTIME];
      return bytes ? at_most<uint8_t>(source, count, most, 0)
                   : at_most<int32_t>(source, count, most, 0);
    }
    case MTGR_CONTEXT_CANDIDATES:
      std::memcpy(pair, source, sizeof(int32_t));
      return pair[0] == rows.of[MTGR_CANDIDATE];
    case MTGR_OFFSETS:
      std::memcpy(pair, source, sizeof(pair));
      return pair[0] == 0 && pair[1] == count;
    default:
      return true;
  }
}

int64_t bytes_of(const mtgr_packed_array& array, const Rows& rows) {
  return array.content == MTGR_OFFSETS ? 2 * static_cast<int64_t>(sizeof(int32_t))
                                       : rows.of[array.rows] * array.row_bytes;
}

}  // namespace

int mtgr_stage(const mtgr_packed_array* arrays, int32_t count, const mtgr_packed* requests,
               int32_t batch, const int32_t* capacity, void* bucket) {
  uint8_t* const out = static_cast<uint8_t*>(bucket);
  Rows before = {};  // staged of earlier requests
  for (int32_t r = 0; r < batch; ++r) {
    Rows rows;
    const uint8_t* source = static_cast<const uint8_t*>(requests[r].data);
    const uint8_t* const end = source + requests[r].bytes;
    if (!read_head(source, requests[r].bytes, &rows)) return MTGR_INVALID_ARGUMENT;
    for (int s = 0; s < MTGR_SEGMENTS; ++s) {
      if (before.of[s] + rows.of[s] > capacity[s]) return MTGR_INVALID_ARGUMENT;
    }
    source += kAlignment;
    for (int32_t a = 0; a < count; ++a) {
      const mtgr_packed_array& array = arrays[a];
      const int64_t size = bytes_of(array, rows);
      const int64_t padded = (size + kAlignment - 1) / kAlignment * kAlignment;
      if (end - source < padded || !plausible(array, source, rows)) return MTGR_INVALID_ARGUMENT;
      if (array.content == MTGR_OFFSETS) {
        int32_t* const offsets = reinterpret_cast<int32_t*>(out + array.place);
        if (r == 0) offsets[0] = 0;
        // Requests that the bucket has beyond these are empty.
        for (int32_t next = r; next < capacity[MTGR_REQUEST]; ++next) {
          offsets[next + 1] = static_cast<int32_t>(before.of[array.rows] + rows.of[array.rows]);
        }
      } else if (array.place >= 0) {
        std::memcpy(out + array.place + before.of[array.rows] * array.row_bytes, source, size);
      }
      source += padded;
    }
    if (source != end) return MTGR_INVALID_ARGUMENT;
    for (int s = 0; s < MTGR_SEGMENTS; ++s) before.of[s] += rows.of[s];
  }
  return MTGR_OK;
}
