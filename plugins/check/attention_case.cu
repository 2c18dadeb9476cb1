#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "attention_case.h"
#include "numbers.cuh"

namespace check {
namespace {

std::vector<int> prefix(const std::vector<int>& lengths) {
  std::vector<int> offsets(1, 0);
  for (int length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

int last(const std::vector<int>& offsets) { return offsets.back(); }

std::vector<int> visible_rows(const AttentionShape& shape, int segment, uint64_t seed) {
  std::mt19937_64 random(seed + segment);
  std::vector<int> out;
  for (size_t b = 0; b < shape.lengths[segment].size(); ++b)
    for (int i = 0; i < shape.lengths[segment][b]; ++i) {
      const int most = segment == 1 ? i : shape.lengths[1][b];
      out.push_back(shape.uniform ? most : int(random() % (most + 1)));
    }
  out.resize(out.size() + shape.padding[segment], 0);
  return out;
}

// Normal values; a pool is drawn once and read from random places, which is much faster.
std::vector<uint16_t> random_values(size_t count, mtgr_dtype dtype, uint64_t seed) {
  static const std::vector<float> pool = [] {
    std::mt19937 random(0);
    std::normal_distribution<float> normal;
    std::vector<float> out((1 << 20) + 7);
    for (auto& x : out) x = normal(random);
    return out;
  }();
  std::mt19937_64 random(seed);
  std::vector<uint16_t> out(count);
  for (size_t begin = 0; begin < count; begin += 4096) {
    size_t at = random() % pool.size();
    for (size_t i = begin; i < std::min(begin + 4096, count); ++i, ++at) {
      const float value = pool[at % pool.size()];
      out[i] = dtype == MTGR_FLOAT16 ? __half_as_ushort(__float2half(value))
                                     : __bfloat16_as_ushort(__float2bfloat16(value));
    }
  }
  return out;
}

// One block a (query row, head): every key of its request, the mask as the contract words it.
template <class T>
__global__ void reference(mtgr_attention_args a, double* out) {
  const int rows[3] = {a.static_rows, a.rt_rows, a.candidate_rows};
  const int32_t* offsets[3] = {a.static_offsets, a.rt_offsets, a.candidate_offsets};
  int row = blockIdx.x, segment = a.first_query_segment;
  while (row >= rows[segment]) row -= rows[segment++];
  extern __shared__ double sum[];
  for (int c = threadIdx.x; c < a.head_dim; c += blockDim.x) sum[c] = 0;
  int b = 0;
  while (b < a.batch && row >= offsets[segment][b + 1]) ++b;
  __syncthreads();
  if (b < a.batch) {
    const int visible = segment == 0   ? 0
                        : segment == 1 ? a.rt_visible[row]
                                       : a.candidate_visible[row];
    const T* q = static_cast<const T*>(a.q.data) + blockIdx.x * a.q.row_stride +
                 blockIdx.y * a.q.head_stride;
    const int kv_head = blockIdx.y / (a.heads / a.kv_heads);
    auto add = [&](const mtgr_rows& k, const mtgr_rows& v, int64_t key) {
      const T* kr = static_cast<const T*>(k.data) + key * k.row_stride + kv_head * k.head_stride;
      const T* vr = static_cast<const T*>(v.data) + key * v.row_stride + kv_head * v.head_stride;
      double dot = 0;
      for (int c = threadIdx.x; c < a.head_dim; c += 32)
        dot += double(mtgr::to_float(q[c])) * double(mtgr::to_float(kr[c]));
      for (int step = 16; step > 0; step /= 2) dot += __shfl_xor_sync(~0u, dot, step);
      const double x = dot * a.alpha;
      const double weight = x / (1 + exp(-x));
      for (int c = threadIdx.x; c < a.head_dim; c += 32)
        sum[c] += weight * double(mtgr::to_float(vr[c]));
    };
    for (int j = offsets[0][b]; j < offsets[0][b + 1]; ++j) add(a.static_k, a.static_v, j);
    for (int j = 0; j < visible; ++j) add(a.recent_k, a.recent_v, offsets[1][b] + j);
    if (segment > 0) add(a.recent_k, a.recent_v, (segment == 2 ? a.rt_rows : 0) + row);
  }
  for (int c = threadIdx.x; c < a.head_dim; c += 32)
    out[(size_t(blockIdx.x) * a.heads + blockIdx.y) * a.head_dim + c] = sum[c] * a.inv_n;
}

}  // namespace

AttentionCase::AttentionCase(const AttentionShape& shape, uint64_t seed)
    : shape_(shape),
      offsets_{prefix(shape.lengths[0]), prefix(shape.lengths[1]), prefix(shape.lengths[2])},
      visible_{visible_rows(shape, 1, seed), visible_rows(shape, 2, seed)},
      uvqk_(random_values(size_t(rows(0) + rows(1) + rows(2)) * 4 * row_elements(), shape.dtype,
                          seed)),
      out_(size_t((shape.first_query_segment < 1 ? rows(0) : 0) +
                  (shape.first_query_segment < 2 ? rows(1) : 0) + rows(2)) *
           row_elements()),
      static_offsets_(offsets_[0]),
      rt_offsets_(offsets_[1]),
      candidate_offsets_(offsets_[2]),
      rt_visible_(visible_[0]),
      candidate_visible_(visible_[1]),
      partials_(memory().partials),
      counters_(memory().counters) {
  counters_.fill_bytes(0);
  partials_.fill_bytes(0xff);
}

int AttentionCase::rows(int segment) const {
  return last(offsets_[segment]) + shape_.padding[segment];
}

mtgr_attention_args AttentionCase::args() const {
  const int64_t row = 4 * row_elements();
  const auto column = [&](int index, int first_row) {
    return mtgr_rows{uvqk_.data() + index * row_elements() + first_row * row, row, shape_.head_dim};
  };
  const int skipped = (shape_.first_query_segment > 0 ? rows(0) : 0) +
                      (shape_.first_query_segment > 1 ? rows(1) : 0);
  return {shape_.dtype,
          shape_.head_dim,
          shape_.heads,
          shape_.kv_heads,
          int(shape_.lengths[0].size()),
          rows(0),
          rows(1),
          rows(2),
          shape_.first_query_segment,
          1 / std::sqrt(float(shape_.head_dim)),
          1.f / 1024,
          column(2, skipped),
          column(3, 0),
          column(1, 0),
          column(3, rows(0)),
          column(1, rows(0)),
          out_.data(),
          static_offsets_.data(),
          rt_offsets_.data(),
          candidate_offsets_.data(),
          rt_visible_.data(),
          candidate_visible_.data()};
}

mtgr_attention_memory AttentionCase::memory() const {
  mtgr_attention_args args{};
  args.head_dim = shape_.head_dim;
  args.heads = shape_.heads;
  args.batch = int(shape_.lengths[0].size());
  args.static_rows = rows(0), args.rt_rows = rows(1), args.candidate_rows = rows(2);
  args.first_query_segment = shape_.first_query_segment;
  mtgr_attention_memory needed{};
  CHECK_MTGR(mtgr_attention_memory_needed(&args, &needed));
  return needed;
}

void AttentionCase::launch(cudaStream_t stream) const {
  const auto arguments = args();
  CHECK_MTGR(mtgr_attention(&arguments, partials_.data(), counters_.data(), stream));
}

void AttentionCase::run() {
  out_.fill_bytes(0xff);
  launch(nullptr);
  CHECK_CUDA(cudaDeviceSynchronize());
}

double AttentionCase::error() const {
  const int query_rows = int(out_.count() / row_elements());
  if (query_rows == 0) return 0;
  DeviceArray<double> expected(out_.count());
  const dim3 grid(query_rows, shape_.heads);
  const size_t shared = shape_.head_dim * sizeof(double);
  if (shape_.dtype == MTGR_FLOAT16)
    reference<__half><<<grid, 32, shared>>>(args(), expected.data());
  else
    reference<__nv_bfloat16><<<grid, 32, shared>>>(args(), expected.data());
  CHECK_CUDA(cudaGetLastError());
  const auto want = expected.host();
  const auto got = out_.host();
  const auto requests = query_requests();
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double value = shape_.dtype == MTGR_FLOAT16
                             ? __half2float(__ushort_as_half(got[i]))
                             : __bfloat162float(__ushort_as_bfloat16(got[i]));
    const bool padding = requests[i / row_elements()] < 0;
    if (!std::isfinite(value) || (padding && value != 0))
      return std::numeric_limits<double>::infinity();
    difference += (value - want[i]) * (value - want[i]);
    norm += want[i] * want[i];
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

void AttentionCase::poison(int request) {
  const int batch = int(shape_.lengths[0].size());
  int base = 0;
  for (int s = 0; s < 3; base += rows(s++)) {
    const int begin = request < 0 ? offsets_[s][batch] : offsets_[s][request];
    const int end = request < 0 ? rows(s) : offsets_[s][request + 1];
    const size_t row = 4 * size_t(row_elements());
    CHECK_CUDA(cudaMemset(uvqk_.data() + (base + begin) * row, 0xff, (end - begin) * row * 2));
  }
}

std::vector<int> AttentionCase::query_requests() const {
  std::vector<int> out;
  for (int s = shape_.first_query_segment; s < 3; ++s) {
    for (size_t b = 0; b < shape_.lengths[s].size(); ++b)
      out.insert(out.end(), shape_.lengths[s][b], int(b));
    out.insert(out.end(), shape_.padding[s], -1);
  }
  return out;
}

double AttentionCase::useful_flops() const {
  double pairs = 0;
  for (size_t b = 0; b < shape_.lengths[0].size(); ++b) {
    const double s = shape_.lengths[0][b], r = shape_.lengths[1][b], c = shape_.lengths[2][b];
    if (shape_.first_query_segment < 1) pairs += s * s;
    if (shape_.first_query_segment < 2) pairs += r * s + r * (r + 1) / 2;
    pairs += (s + r) * c + c;
  }
  return 4 * pairs * shape_.heads * shape_.head_dim;
}

}  // namespace check
