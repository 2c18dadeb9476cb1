// Layer norm with one affine per token group, optionally of a product, in one pass over memory.
//
// A row is held in registers between the statistics and the output: each of its threads owns up to
// four vectors of eight elements. A warp serves a row of up to 1024 elements, a block a longer one.
#include <type_traits>

#include "error.h"
#include "launch.cuh"
#include "mtgr_ops.h"
#include "numbers.cuh"

namespace {

using namespace mtgr;

constexpr int kMaxVectors = 4;                     // of 8 elements, a thread
constexpr int kWarpRowDim = 32 * kMaxVectors * 8;  // a warp's longest row
constexpr int kMaxDim = 8 * kWarpRowDim;
constexpr int kShortRows = 4096;  // of a short launch

// Threads a row, and a block.
template <bool kBlockRow>
constexpr int kRowThreads = kBlockRow ? 256 : 32;
template <bool kBlockRow>
constexpr int kBlockThreads = kBlockRow ? 256 : 128;

template <class T>
struct alignas(16) Vector {
  T value[8];
};

template <class T>
__device__ Vector<T> load(const T* source) {
  return *reinterpret_cast<const Vector<T>*>(source);
}

// The same for rows that are read once: they do not push the affine parameters out of L1.
template <class T>
__device__ Vector<T> load_once(const T* source) {
  Vector<T> out;
  auto* words = reinterpret_cast<uint4*>(&out);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Vector<T>) / 16); ++i)
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(words[i].x), "=r"(words[i].y), "=r"(words[i].z), "=r"(words[i].w)
        : "l"(reinterpret_cast<const uint4*>(source) + i));
  return out;
}

// The sum over the threads of a row; every thread gets it.
template <bool kBlockRow>
__device__ float row_sum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  if constexpr (kBlockRow) {
    __shared__ float part[kRowThreads<true> / 32];
    __syncthreads();
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (float p : part) x += p;
  }
  return x;
}

// A `kShort` launch loads the affine before the statistics: it would wait for it after them, where
// a long one has other rows to go on with and needs the registers for those.
template <class T, class P, bool kGated, bool kBlockRow, int kVectors, bool kShort>
__global__ void __launch_bounds__(kBlockThreads<kBlockRow>)
    group_layer_norm(const __grid_constant__ mtgr_norm_args a) {
  constexpr int kThreads = kRowThreads<kBlockRow>, kRows = kBlockThreads<kBlockRow> / kThreads;
  const int row = blockIdx.x * kRows + threadIdx.x / kThreads;
  release_dependents();
  if (row >= a.rows) return;
  wait_for_inputs();
  auto column = [&](int i) { return (threadIdx.x % kThreads + i * kThreads) * 8; };
  auto load_row = [&](const auto* source, auto(&vectors)[kVectors]) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      if (column(i) < a.dim) vectors[i] = load_once(source + column(i));
  };

  Vector<T> x[kVectors] = {}, gate[kVectors] = {};
  load_row(static_cast<const T*>(a.x) + row * a.x_stride, x);
  if constexpr (kGated) load_row(static_cast<const T*>(a.gate) + row * a.gate_stride, gate);
  const int64_t affine = int64_t{__ldg(a.group + row)} * a.dim;
  const P* weights = static_cast<const P*>(a.weight) + affine;
  const P* biases = static_cast<const P*>(a.bias) + affine;
  Vector<P> weight[kVectors], bias[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (kShort && column(i) < a.dim)
      weight[i] = load(weights + column(i)), bias[i] = load(biases + column(i));

  float z[kVectors][8], sum = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      z[i][j] = to_float(x[i].value[j]);
      if constexpr (kGated) z[i][j] *= to_float(gate[i].value[j]);
      sum += z[i][j];
    }
  const float mean = row_sum<kBlockRow>(sum) / a.dim;
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (column(i) < a.dim)
#pragma unroll
      for (float value : z[i]) squares += (value - mean) * (value - mean);
  const float scale = rsqrtf(row_sum<kBlockRow>(squares) / a.dim + a.eps);

  T* out = static_cast<T*>(a.out) + int64_t{row} * a.dim;
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (column(i) < a.dim) {
      if constexpr (!kShort)
        weight[i] = load(weights + column(i)), bias[i] = load(biases + column(i));
      Vector<T> y;
#pragma unroll
      for (int j = 0; j < 8; ++j)
        y.value[j] = from_float<T>((z[i][j] - mean) * scale * to_float(weight[i].value[j]) +
                                   to_float(bias[i].value[j]));
      *reinterpret_cast<Vector<T>*>(out + column(i)) = y;
    }
}

template <class T, class P, bool kGated, bool kBlockRow, int kVectors>
cudaError_t launch(const mtgr_norm_args& a, cudaStream_t stream) {
  constexpr int kThreads = kBlockThreads<kBlockRow>, kRows = kThreads / kRowThreads<kBlockRow>;
  const unsigned blocks = (a.rows + kRows - 1) / kRows;
  auto* kernel = a.rows <= kShortRows ? group_layer_norm<T, P, kGated, kBlockRow, kVectors, true>
                                      : group_layer_norm<T, P, kGated, kBlockRow, kVectors, false>;
  return mtgr::launch(kernel, {blocks, kThreads}, stream, a);
}

template <class T, class P, bool kGated, bool kBlockRow>
cudaError_t launch(const mtgr_norm_args& a, cudaStream_t stream) {
  constexpr int kColumns = kRowThreads<kBlockRow> * 8;
  switch ((a.dim + kColumns - 1) / kColumns) {
    case 1:
      return launch<T, P, kGated, kBlockRow, 1>(a, stream);
    case 2:
      return launch<T, P, kGated, kBlockRow, 2>(a, stream);
    case 3:
      return launch<T, P, kGated, kBlockRow, 3>(a, stream);
    default:
      return launch<T, P, kGated, kBlockRow, 4>(a, stream);
  }
}

template <class T, class P>
cudaError_t launch(const mtgr_norm_args& a, cudaStream_t stream) {
  if (a.dim <= kWarpRowDim)
    return a.gate ? launch<T, P, true, false>(a, stream) : launch<T, P, false, false>(a, stream);
  return a.gate ? launch<T, P, true, true>(a, stream) : launch<T, P, false, true>(a, stream);
}

template <class T>
cudaError_t launch(const mtgr_norm_args& a, cudaStream_t stream) {
  return a.parameter_dtype == MTGR_FLOAT32 ? launch<T, float>(a, stream) : launch<T, T>(a, stream);
}

cudaError_t launch(const mtgr_norm_args& a, cudaStream_t stream) {
  switch (a.dtype) {
    case MTGR_FLOAT32:
      return launch<float, float>(a, stream);
    case MTGR_FLOAT16:
      return launch<__half>(a, stream);
    default:
      return launch<__nv_bfloat16>(a, stream);
  }
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
  return cuda_status(launch(*args, stream), "group_layer_norm");
}
