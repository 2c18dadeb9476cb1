// Attention with mma.sync: one block computes 64 query rows of one head, 16 rows a warp, over key
// tiles of 32 rows. Simple and right on sm_80 and newer; the Hopper kernel is the fast one.
#include "generic.h"
#include "mma.cuh"
#include "numbers.cuh"

namespace mtgr {
namespace {

constexpr int kTileM = 64;
constexpr int kTileN = 32;
constexpr int kThreads = 128;
constexpr int kPad = 8;  // elements; a 16-byte skew keeps ldmatrix free of bank conflicts

template <class T, int D>
constexpr size_t shared_bytes() {
  return (kTileM + 2 * kTileN) * (D + kPad) * sizeof(T);
}

// 64 rows of one segment of one request.
struct Tile {
  int segment;
  int request;
  int first;  // row within the request
};

__device__ bool find_tile(const Problem& p, int position, Tile& tile) {
  for (int segment = p.first_query_segment; segment < kSegments; ++segment) {
    const int request = find_stretch(p.batch, position, [&](int b) {
      return ceil_div(request_rows(p, segment, b).size(), kTileM);
    });
    if (request < p.batch) {
      tile = {segment, request, position * kTileM};
      return true;
    }
  }
  return false;
}

// Rows [first, first + count) of a view into shared memory; rows past `count` become zero, so that
// a NaN in a neighbour's rows meets no product.
template <class T, int D>
__device__ void load_rows(T* shared, int tile_rows, const mtgr_rows& view, int head, int64_t first,
                          int count) {
  const T* source = static_cast<const T*>(view.data) + head * view.head_stride;
  for (int i = threadIdx.x; i < tile_rows * (D / 8); i += kThreads) {
    const int row = i / (D / 8), column = i % (D / 8) * 8;
    const bool valid = row < count;
    copy_async16(shared + row * (D + kPad) + column,
                 source + (first + (valid ? row : 0)) * view.row_stride + column, valid);
  }
}

template <class T, int D>
struct Block {
  T *q, *k, *v;         // shared memory
  float out[D / 8][4];  // this warp's 16 x D accumulator
  float half_alpha;
  int warp, lane;

  // Adds the keys of one tile. Row i of the thread's two rows sees keys below limit[i], and
  // key self[i]; both count from the start of the tile.
  __device__ void add_keys(const int (&limit)[2], const int (&self)[2]) {
    float s[kTileN / 8][4] = {};
    for (int depth = 0; depth < D; depth += 16) {
      uint32_t a[4];
      load_a(a, q + warp * 16 * (D + kPad) + depth, D + kPad, lane);
#pragma unroll
      for (int n = 0; n < kTileN / 16; ++n) {
        uint32_t b[4];
        load_b(b, k + n * 16 * (D + kPad) + depth, D + kPad, lane);
        mma<T>(s[2 * n], a, b[0], b[1]);
        mma<T>(s[2 * n + 1], a, b[2], b[3]);
      }
    }
#pragma unroll
    for (int n = 0; n < kTileN / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = n * 8 + lane % 4 * 2 + i % 2;
        const bool seen = key < limit[i / 2] || key == self[i / 2];
        s[n][i] = seen ? silu_of_twice(s[n][i] * half_alpha) : 0.f;
      }
#pragma unroll
    for (int step = 0; step < kTileN / 16; ++step) {
      const float (&left)[4] = s[2 * step], (&right)[4] = s[2 * step + 1];
      const uint32_t a[4] = {pack2<T>(left[0], left[1]), pack2<T>(left[2], left[3]),
                             pack2<T>(right[0], right[1]), pack2<T>(right[2], right[3])};
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        uint32_t b[4];
        load_b_transposed(b, v + step * 16 * (D + kPad) + n * 16, D + kPad, lane);
        mma<T>(out[2 * n], a, b[0], b[1]);
        mma<T>(out[2 * n + 1], a, b[2], b[3]);
      }
    }
  }
};

template <class T, int D>
__global__ void __launch_bounds__(kThreads) attention_generic(const __grid_constant__ Problem p) {
  extern __shared__ __align__(16) unsigned char shared[];
  zero_padding<T>(p, p.heads * D, (blockIdx.y * gridDim.x + blockIdx.x) * kThreads + threadIdx.x,
                  gridDim.x * gridDim.y * kThreads);
  Tile tile;
  if (!find_tile(p, blockIdx.x, tile)) return;

  Block<T, D> block;
  block.q = reinterpret_cast<T*>(shared);
  block.k = block.q + kTileM * (D + kPad);
  block.v = block.k + kTileN * (D + kPad);
  block.half_alpha = p.half_alpha;
  block.warp = threadIdx.x / 32;
  block.lane = threadIdx.x % 32;
#pragma unroll
  for (auto& column : block.out)
#pragma unroll
    for (float& x : column) x = 0.f;

  const int head = blockIdx.y, kv_head = head / (p.heads / p.kv_heads);
  const Range queries = request_rows(p, tile.segment, tile.request);
  const int rows = min(kTileM, queries.size() - tile.first);
  const int64_t query_row = p.query_base(tile.segment) + queries.begin + tile.first;
  load_rows<T, D>(block.q, kTileM, p.q, head, query_row, rows);

  // Adds keys [0, count) of a segment, of which this thread's rows see the first limit[i].
  auto add_range = [&](const mtgr_rows& k, const mtgr_rows& v, int64_t first, int count,
                       const int (&limit)[2], const int (&self)[2]) {
    for (int key = 0; key < count; key += kTileN) {
      load_rows<T, D>(block.k, kTileN, k, kv_head, first + key, count - key);
      load_rows<T, D>(block.v, kTileN, v, kv_head, first + key, count - key);
      copy_async_wait();
      __syncthreads();
      block.add_keys({limit[0] - key, limit[1] - key}, {self[0] - key, self[1] - key});
      __syncthreads();
    }
  };

  const int local[2] = {block.warp * 16 + block.lane / 4, block.warp * 16 + block.lane / 4 + 8};
  const Range fixed = request_rows(p, kStatic, tile.request);
  const int all = fixed.size();
  add_range(p.static_k, p.static_v, fixed.begin, all, {all, all}, {-1, -1});

  if (tile.segment != kStatic) {
    const Range recent = request_rows(p, kRealtime, tile.request);
    const int32_t* visible = tile.segment == kRealtime ? p.rt_visible : p.candidate_visible;
    int seen[2];
    for (int i = 0; i < 2; ++i)
      seen[i] = local[i] < rows ? visible[queries.begin + tile.first + local[i]] : 0;
    add_range(p.recent_k, p.recent_v, recent.begin, recent.size(),
              {min(seen[0], recent.size()), min(seen[1], recent.size())}, {-1, -1});
    add_range(p.recent_k, p.recent_v, p.recent_base(tile.segment) + queries.begin + tile.first,
              rows, {0, 0}, {local[0], local[1]});
  }

  for (int i = 0; i < 2; ++i) {
    if (local[i] >= rows) continue;
    T* out = static_cast<T*>(p.out) + ((query_row + local[i]) * p.heads + head) * D;
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      *reinterpret_cast<uint32_t*>(out + n * 8 + block.lane % 4 * 2) =
          pack2<T>(block.out[n][2 * i] * p.inv_n, block.out[n][2 * i + 1] * p.inv_n);
  }
}

template <class T, int D>
cudaError_t launch(const Problem& p, cudaStream_t stream) {
  auto* kernel = attention_generic<T, D>;
  constexpr size_t bytes = shared_bytes<T, D>();
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;
  int tiles = 0;  // at most: offsets are known to the device only
  for (int s = p.first_query_segment; s < kSegments; ++s)
    tiles += p.rows[s] == 0 ? 0 : p.rows[s] / kTileM + p.batch;
  if (tiles == 0) return cudaSuccess;
  kernel<<<dim3(tiles, p.heads), kThreads, bytes, stream>>>(p);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch(const Problem& p, int head_dim, cudaStream_t stream) {
  switch (head_dim) {
    case 32:
      return launch<T, 32>(p, stream);
    case 64:
      return launch<T, 64>(p, stream);
    case 128:
      return launch<T, 128>(p, stream);
    case 256:
      return launch<T, 256>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_generic(const Problem& problem, mtgr_dtype dtype, int head_dim,
                           cudaStream_t stream) {
  return dtype == MTGR_FLOAT16 ? launch<__half>(problem, head_dim, stream)
                               : launch<__nv_bfloat16>(problem, head_dim, stream);
}

}  // namespace mtgr
