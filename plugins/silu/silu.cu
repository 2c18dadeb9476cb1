// SiLU in place on a block of columns of a row-major tensor: one pass, 16 bytes a thread and
// access.
#include <cuda_runtime.h>

#include "error.h"
#include "mtgr_ops.h"
#include "numbers.cuh"

namespace {

using namespace mtgr;

constexpr int kThreads = 256;
constexpr int kVectors = 4;  // a thread, so that enough loads are in flight

template <class T>
struct alignas(16) Vector {
  T value[8];
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    silu(T* x, uint32_t vectors, uint32_t row_vectors, int64_t row_stride) {
  const uint32_t first = blockIdx.x * kThreads * kVectors + threadIdx.x;
  Vector<T>* at[kVectors];
  Vector<T> v[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (const uint32_t index = first + i * kThreads; index < vectors) {
      at[i] = reinterpret_cast<Vector<T>*>(x + index / row_vectors * row_stride +
                                           index % row_vectors * 8);
      v[i] = *at[i];
    }
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (first + i * kThreads < vectors) {
#pragma unroll
      for (T& value : v[i].value) value = from_float<T>(silu_of_twice(to_float(value) / 2));
      *at[i] = v[i];
    }
}

template <class T>
void launch(void* x, int rows, int columns, int64_t row_stride, cudaStream_t stream) {
  const uint32_t row_vectors = columns / 8, vectors = rows * row_vectors;
  const uint32_t blocks = (vectors - 1) / (kThreads * kVectors) + 1;
  silu<<<blocks, kThreads, 0, stream>>>(static_cast<T*>(x), vectors, row_vectors, row_stride);
}

}  // namespace

extern "C" int mtgr_silu(int32_t dtype, void* x, int32_t rows, int32_t columns, int64_t row_stride,
                         mtgr_stream stream) {
  if (dtype != MTGR_FLOAT16 && dtype != MTGR_BFLOAT16)
    return invalid("dtype: %d, expected float16 or bfloat16", dtype);
  if (rows < 0 || columns < 0 || columns % 8 != 0)
    return invalid("x: [%d, %d], expected a multiple of 8 columns", rows, columns);
  if (rows == 0 || columns == 0) return MTGR_OK;
  if (int64_t{rows} * columns / 8 > INT32_MAX)
    return invalid("x: [%d, %d], expected fewer than 2^34 elements", rows, columns);
  if (!x || !aligned16(x, 2, row_stride))
    return invalid("x: address and row stride must be multiples of 16 bytes");
  if (dtype == MTGR_FLOAT16)
    launch<__half>(x, rows, columns, row_stride, stream);
  else
    launch<__nv_bfloat16>(x, rows, columns, row_stride, stream);
  return cuda_status(cudaGetLastError(), "silu");
}
