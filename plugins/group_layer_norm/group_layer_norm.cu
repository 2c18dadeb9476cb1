// Layer norm with one affine per token group, optionally of a product, in one pass over memory.
//
// A row is held in registers between the statistics and the output: each of its threads owns up to
// four vectors of eight elements. A warp serves a row of up to 1024 elements, a block a longer one.
#include <type_traits>

#include "error.h"
#include "mtgr_ops.h"
#include "numbers.cuh"

namespace {

using namespace mtgr;

constexpr int kVectors = 4;  // of 8 elements, a thread
constexpr int kWarps = 8;    // a block
constexpr int kMaxDim = kWarps * 32 * kVectors * 8;

template <class T>
__device__ void load8(float (&out)[8], const T* source) {
  T values[8];
  for (int i = 0; i < static_cast<int>(sizeof(T)) / 2; ++i)
    reinterpret_cast<uint4*>(values)[i] = reinterpret_cast<const uint4*>(source)[i];
#pragma unroll
  for (int i = 0; i < 8; ++i) out[i] = to_float(values[i]);
}

template <class T>
__device__ void store8(T* target, const float (&in)[8]) {
  T values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = from_float<T>(in[i]);
  for (int i = 0; i < static_cast<int>(sizeof(T)) / 2; ++i)
    reinterpret_cast<uint4*>(target)[i] = reinterpret_cast<const uint4*>(values)[i];
}

// The sum over the threads of a row; every thread gets it.
template <bool kBlockRow>
__device__ float row_sum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  if constexpr (kBlockRow) {
    __shared__ float part[kWarps];
    __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (float p : part) x += p;
  }
  return x;
}

template <class T, class P, bool kGated, bool kBlockRow>
__global__ void __launch_bounds__(kWarps * 32) group_layer_norm(const mtgr_norm_args a) {
  constexpr int kThreads = kBlockRow ? kWarps * 32 : 32;
  const int row = kBlockRow ? blockIdx.x : blockIdx.x * kWarps + threadIdx.x / 32;
  if (row >= a.rows) return;
  const int first = threadIdx.x % kThreads * 8;
  const T* x = static_cast<const T*>(a.x) + row * a.x_stride;
  const T* gate = static_cast<const T*>(a.gate) + row * a.gate_stride;
  const int64_t affine = int64_t{a.group[row]} * a.dim;

  float z[kVectors][8] = {};
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (const int column = first + i * kThreads * 8; column < a.dim) load8(z[i], x + column);
  if constexpr (kGated) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      if (const int column = first + i * kThreads * 8; column < a.dim) {
        float factor[8];
        load8(factor, gate + column);
#pragma unroll
        for (int j = 0; j < 8; ++j) z[i][j] *= factor[j];
      }
  }

  float sum = 0;
#pragma unroll
  for (auto& vector : z)
#pragma unroll
    for (float value : vector) sum += value;
  const float mean = row_sum<kBlockRow>(sum) / a.dim;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (first + i * kThreads * 8 < a.dim)
#pragma unroll
      for (float value : z[i]) squares += (value - mean) * (value - mean);
  const float scale = rsqrtf(row_sum<kBlockRow>(squares) / a.dim + a.eps);

#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (const int column = first + i * kThreads * 8; column < a.dim) {
      float weight[8], bias[8];
      load8(weight, static_cast<const P*>(a.weight) + affine + column);
      load8(bias, static_cast<const P*>(a.bias) + affine + column);
#pragma unroll
      for (int j = 0; j < 8; ++j) z[i][j] = (z[i][j] - mean) * scale * weight[j] + bias[j];
      store8(static_cast<T*>(a.out) + int64_t{row} * a.dim + column, z[i]);
    }
}

template <class T, class P>
void launch(const mtgr_norm_args& a, cudaStream_t stream) {
  const bool block_row = a.dim > 32 * kVectors * 8;
  const int blocks = block_row ? a.rows : (a.rows + kWarps - 1) / kWarps;
  auto* kernel = a.gate ? (block_row ? group_layer_norm<T, P, true, true>
                                     : group_layer_norm<T, P, true, false>)
                        : (block_row ? group_layer_norm<T, P, false, true>
                                     : group_layer_norm<T, P, false, false>);
  kernel<<<blocks, kWarps * 32, 0, stream>>>(a);
}

template <class T>
void launch(const mtgr_norm_args& a, cudaStream_t stream) {
  if (a.parameter_dtype == MTGR_FLOAT32)
    launch<T, float>(a, stream);
  else
    launch<T, T>(a, stream);
}

int check(const mtgr_norm_args& a) {
  if (a.dtype < MTGR_FLOAT32 || a.dtype > MTGR_BFLOAT16)
    return invalid("dtype: %d, expected float32, float16 or bfloat16", a.dtype);
  if (a.parameter_dtype != a.dtype && a.parameter_dtype != MTGR_FLOAT32)
    return invalid("weight: dtype %d, expected that of x or float32", a.parameter_dtype);
  if (a.dim < 8 || a.dim > kMaxDim || a.dim % 8 != 0)
    return invalid("x: %d columns, expected a multiple of 8 up to %d", a.dim, kMaxDim);
  if (a.rows < 0) return invalid("x: %d rows", a.rows);
  if (a.groups < 1) return invalid("weight: %d groups, expected at least 1", a.groups);
  const int size = a.dtype == MTGR_FLOAT32 ? 4 : 2;
  if (a.rows > 0 && (!a.x || !aligned16(a.x, size, a.x_stride)))
    return invalid("x: address and row stride must be multiples of 16 bytes");
  if (a.gate && !aligned16(a.gate, size, a.gate_stride))
    return invalid("gate: address and row stride must be multiples of 16 bytes");
  if (!a.weight || !a.bias || !aligned16(a.weight, 1, 0) || !aligned16(a.bias, 1, 0))
    return invalid("weight, bias: expected pointers that are multiples of 16 bytes");
  if (a.rows > 0 && (!a.group || !a.out || !aligned16(a.out, 1, 0)))
    return invalid("group, out: null or misaligned pointer");
  return MTGR_OK;
}

}  // namespace

extern "C" int mtgr_group_layer_norm(const mtgr_norm_args* args, mtgr_stream stream) {
  if (int status = check(*args)) return status;
  if (args->rows == 0) return MTGR_OK;
  switch (args->dtype) {
    case MTGR_FLOAT32: launch<float, float>(*args, stream); break;
    case MTGR_FLOAT16: launch<__half>(*args, stream); break;
    default: launch<__nv_bfloat16>(*args, stream);
  }
  return cuda_status(cudaGetLastError(), "group_layer_norm");
}
