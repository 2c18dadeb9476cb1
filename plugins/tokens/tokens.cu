// A packed batch's raw arrays -> the rows that the tokenizers' first products take, and the frame,
// in one launch: a thread makes eight columns of one row, or places one token.
#include <cuda_runtime.h>

#include "error.h"
#include "id_lookup/probe.cuh"
#include "launch.cuh"
#include "mtgr_ops.h"
#include "numbers.cuh"

namespace {

using namespace mtgr;

constexpr int kThreads = 128;
constexpr int kMostSegments = 4;
constexpr int kVector = 8;  // columns that a thread makes
static_assert(sizeof(mtgr_number) == sizeof(int4));

struct Launch {
  mtgr_features segments[kMostSegments];
  mtgr_frame frame;
  int count;
  int first_block[kMostSegments + 1];  // of each segment, then of the frame
};

// The request that owns a row; padding rows go to the last one.
__device__ int owner_of(int row, const int32_t* offsets, int batch) {
  int low = 0, high = batch - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (row >= __ldg(offsets + middle + 1))
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

__device__ int64_t whole(const mtgr_source& source, int64_t at) {
  switch (source.dtype) {
    case MTGR_SOURCE_INT64:
      return static_cast<const int64_t*>(source.data)[at];
    case MTGR_SOURCE_INT32:
      return static_cast<const int32_t*>(source.data)[at];
    default:
      return static_cast<const uint8_t*>(source.data)[at];
  }
}

template <class X>
__device__ void load(const mtgr_number (&numbers)[kVector], const mtgr_source& source,
                     int64_t row_start, float (&values)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    values[i] = numbers[i].kind == MTGR_NUMBER_CONSTANT
                    ? 0.f
                    : to_float(static_cast<const X*>(source.data)[row_start + numbers[i].column]);
}

__device__ float encode(const mtgr_number& number, float x) {
  if (number.kind == MTGR_NUMBER_CONSTANT) return number.shift;
  if (number.kind == MTGR_NUMBER_LOG) x = copysignf(log1pf(fabsf(x)), x);
  x = (x - number.shift) * number.scale;
  return number.kind == MTGR_NUMBER_BIN ? fminf(fmaxf(x, 0.f), 1.f) : x;
}

// Eight numbers of a row. What describes them, then what they are, is loaded all at once: waiting
// for one after the other would take most of the launch.
template <class T>
__device__ uint4 encoded(const mtgr_number* first, const mtgr_source& source, int64_t row_start) {
  mtgr_number numbers[kVector];
  float x[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const int4 raw = __ldg(reinterpret_cast<const int4*>(first + i));
    numbers[i] = {raw.x, raw.y, __int_as_float(raw.z), __int_as_float(raw.w)};
  }
  if (source.dtype == MTGR_SOURCE_FLOAT16)
    load<__half>(numbers, source, row_start, x);
  else
    load<float>(numbers, source, row_start, x);
#pragma unroll
  for (int i = 0; i < kVector; ++i) x[i] = encode(numbers[i], x[i]);
  return {pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]), pack2<T>(x[4], x[5]), pack2<T>(x[6], x[7])};
}

template <class T>
__device__ uint4 embedding(const mtgr_table& table, int64_t id, int first) {
  int64_t row = id;
  if (table.keys != nullptr)
    row = find_row(id, table.keys, table.rows, table.log_capacity, table.max_probe);
  if (row < 0 || row >= table.count) row = 0;
  return __ldg(reinterpret_cast<const uint4*>(static_cast<const T*>(table.values) +
                                              row * table.width + first));
}

// All of a table's description at once: the compiler would put each load off to the branch that
// uses it.
__device__ mtgr_table load_table(const mtgr_table* from) {
  constexpr int kWords = sizeof(mtgr_table) / 8;
  union {
    int64_t words[kWords];
    mtgr_table table;
  };
#pragma unroll
  for (int i = 0; i < kWords; ++i)
    asm volatile("ld.global.nc.b64 %0, [%1];"
                 : "=l"(words[i])
                 : "l"(reinterpret_cast<const int64_t*>(from) + i));
  return table;
}

template <class T>
__device__ void features(const mtgr_features& s, int index) {
  const int row = index / s.vectors, column = index % s.vectors;
  if (row >= s.rows) return;
  const mtgr_vector v = s.vector[column];
  uint4 out{};
  wait_for_inputs();
  if (v.token < 0 || row % s.tokens == v.token) {
    const mtgr_source& source = s.sources[v.source];
    const int own = row / s.tokens;
    const int64_t start =
        int64_t{source.of_request ? owner_of(own, s.offsets, s.batch) : own} * source.width;
    out = v.table >= 0 ? embedding<T>(load_table(s.tables + v.table),
                                      whole(source, start + v.column), v.first)
                       : encoded<T>(s.numbers + v.first, source, start);
  }
  static_cast<uint4*>(s.out)[index] = out;
}

__device__ int visible(const void* data, int dtype, int i) {
  return dtype == MTGR_SOURCE_UINT8 ? static_cast<const uint8_t*>(data)[i]
                                    : static_cast<const int32_t*>(data)[i];
}

__device__ void frame(const mtgr_frame& f, int token) {
  wait_for_inputs();
  const int profile = f.batch * f.profile_tokens, static_rows = profile + f.rows[0];
  if (token <= f.batch)
    f.static_offsets[token] = f.lifelong_offsets[token] + token * f.profile_tokens;
  if (token < profile) {
    const int at = token + f.lifelong_offsets[token / f.profile_tokens];
    f.static_rows[token] = at;
    f.group[at] = f.groups[0];
  } else if (token < static_rows) {
    const int row = token - profile;
    const int at = row + (owner_of(row, f.lifelong_offsets, f.batch) + 1) * f.profile_tokens;
    f.static_rows[token] = at;
    f.group[at] = f.groups[1];
  } else if (const int i = token - static_rows; i < f.rows[1]) {
    f.group[token] = f.groups[2];
    f.rt_visible_out[i] = visible(f.rt_visible, f.visible_dtype, i);
  } else if (const int j = i - f.rows[1]; j < f.rows[2]) {
    f.group[token] = f.groups[3];
    f.candidate_visible_out[j] = visible(f.candidate_visible, f.visible_dtype, j);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) tokens(const __grid_constant__ Launch launch) {
  release_dependents();
  int part = 0;
  while (part < launch.count && int(blockIdx.x) >= launch.first_block[part + 1]) ++part;
  const int index = (blockIdx.x - launch.first_block[part]) * kThreads + threadIdx.x;
  if (part < launch.count)
    features<T>(launch.segments[part], index);
  else
    frame(launch.frame, index);
}

int check(const mtgr_features& s) {
  if (s.rows < 0 || s.batch < 1) return invalid("segment: %d rows of %d", s.rows, s.batch);
  if (s.tokens < 1 || s.vectors < 1)
    return invalid("segment: %d tokens of %d vectors, expected some", s.tokens, s.vectors);
  if (int64_t{s.rows} * s.vectors > INT32_MAX / 2) return invalid("segment: too many vectors");
  if (!s.vector || !s.offsets) return invalid("vector, offsets: null pointer");
  if (!aligned16(s.numbers, 1, 0))
    return invalid("numbers: expected an address that is a multiple of 16 bytes");
  if (s.rows > 0 && (!s.out || !aligned16(s.out, 1, 0)))
    return invalid("out: expected an address that is a multiple of 16 bytes");
  for (const mtgr_source& source : s.sources)
    if (source.dtype < MTGR_SOURCE_INT64 || source.dtype > MTGR_SOURCE_FLOAT16)
      return invalid("source: dtype %d", source.dtype);
  return MTGR_OK;
}

int check(const mtgr_frame& f) {
  if (f.batch < 1 || f.profile_tokens < 0 || f.rows[0] < 0 || f.rows[1] < 0 || f.rows[2] < 0)
    return invalid("frame: batch %d, %d profile tokens, %d, %d, %d rows", f.batch, f.profile_tokens,
                   f.rows[0], f.rows[1], f.rows[2]);
  if (f.visible_dtype != MTGR_SOURCE_UINT8 && f.visible_dtype != MTGR_SOURCE_INT32)
    return invalid("visible: dtype %d, expected uint8 or int32", f.visible_dtype);
  if (!f.lifelong_offsets || !f.static_offsets || !f.static_rows || !f.group)
    return invalid("frame: null pointer");
  if (f.rows[1] > 0 && (!f.rt_visible || !f.rt_visible_out))
    return invalid("rt_visible: null pointer");
  if (f.rows[2] > 0 && (!f.candidate_visible || !f.candidate_visible_out))
    return invalid("candidate_visible: null pointer");
  return MTGR_OK;
}

int blocks_for(int64_t threads) { return int((threads + kThreads - 1) / kThreads); }

}  // namespace

extern "C" int mtgr_tokens(int32_t dtype, const mtgr_features* segments, int32_t count,
                           const mtgr_frame* frame, mtgr_stream stream) {
  if (dtype != MTGR_FLOAT16 && dtype != MTGR_BFLOAT16)
    return invalid("dtype: %d, expected float16 or bfloat16", dtype);
  if (count < 0 || count > kMostSegments)
    return invalid("segments: %d, expected at most %d", count, kMostSegments);
  if (int status = check(*frame)) return status;
  Launch launch{};
  launch.frame = *frame;
  launch.count = count;
  int blocks = 0;
  for (int i = 0; i < count; ++i) {
    if (int status = check(segments[i])) return status;
    launch.segments[i] = segments[i];
    launch.first_block[i] = blocks;
    blocks += blocks_for(int64_t{segments[i].rows} * segments[i].vectors);
  }
  launch.first_block[count] = blocks;
  const int64_t tokens_placed = int64_t{frame->batch} * frame->profile_tokens + frame->rows[0] +
                                frame->rows[1] + frame->rows[2];
  blocks += blocks_for(tokens_placed > frame->batch ? tokens_placed : frame->batch + 1);
  auto* kernel = dtype == MTGR_FLOAT16 ? tokens<__half> : tokens<__nv_bfloat16>;
  return cuda_status(mtgr::launch(kernel, {unsigned(blocks), kThreads}, stream, launch), "tokens");
}
