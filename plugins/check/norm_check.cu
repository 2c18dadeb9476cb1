#include <cuda_bf16.h>

#include <cmath>
#include <random>

#include "device.h"
#include "norm_check.h"

namespace check {
namespace {

constexpr int kGroups = 4;

// bf16 rows and parameters; the gate is a column block of a wider tensor, as in uvqk.
struct NormCase {
  int rows, dim;
  bool gated;
  float eps;
  DeviceArray<__nv_bfloat16> x, uvqk, out, weight, bias;
  DeviceArray<int32_t> group;

  static std::vector<__nv_bfloat16> halves(size_t count, int seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<__nv_bfloat16> out(count);
    for (size_t i = 0; i < count; ++i)
      out[i] = i < 1 << 18 ? __float2bfloat16(normal(random)) : out[i - (1 << 18)];
    return out;
  }
  static std::vector<int32_t> groups(int rows) {
    std::mt19937 random(3);
    std::vector<int32_t> out(rows);
    for (auto& value : out) value = random() % kGroups;
    return out;
  }

  NormCase(int rows, int dim, bool gated, float eps = 1e-6f)
      : rows(rows),
        dim(dim),
        gated(gated),
        eps(eps),
        x(halves(size_t(rows) * dim, 1)),
        uvqk(halves(gated ? size_t(rows) * 4 * dim : 0, 2)),
        out(size_t(rows) * dim),
        weight(halves(kGroups * dim, 4)),
        bias(halves(kGroups * dim, 5)),
        group(groups(rows)) {}

  void launch(cudaStream_t stream) const {
    const mtgr_norm_args args{MTGR_BFLOAT16, MTGR_BFLOAT16, rows,
                              dim,           kGroups,       eps,
                              x.data(),      gated ? uvqk.data() : nullptr,
                              dim,           4 * dim,       group.data(),
                              weight.data(), bias.data(),   out.data()};
    CHECK_MTGR(mtgr_group_layer_norm(&args, stream));
  }

  double error() const {
    const auto xs = x.host(), gates = uvqk.host(), got = out.host();
    const auto weights = weight.host(), biases = bias.host();
    const auto of = group.host();
    double difference = 0, norm = 0;
    std::vector<double> z(dim);
    for (int row = 0; row < rows; ++row) {
      double mean = 0, variance = 0;
      for (int c = 0; c < dim; ++c) {
        z[c] = __bfloat162float(xs[size_t(row) * dim + c]);
        if (gated) z[c] *= __bfloat162float(gates[size_t(row) * 4 * dim + c]);
        mean += z[c] / dim;
      }
      for (int c = 0; c < dim; ++c) variance += (z[c] - mean) * (z[c] - mean) / dim;
      for (int c = 0; c < dim; ++c) {
        const int at = of[row] * dim + c;
        const double want =
            (z[c] - mean) / std::sqrt(variance + eps) * __bfloat162float(weights[at]) +
            __bfloat162float(biases[at]);
        const double have = __bfloat162float(got[size_t(row) * dim + c]);
        difference += (have - want) * (have - want);
        norm += want * want;
      }
    }
    return std::sqrt(difference / norm);
  }

  double bytes() const { return double(rows) * dim * 2 * (gated ? 3 : 2); }
};

__global__ void copy(uint4* to, const uint4* from, size_t count) {
  const size_t first = size_t(blockIdx.x) * 1024 + threadIdx.x;
  uint4 values[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (first + i * 256 < count) values[i] = from[first + i * 256];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (first + i * 256 < count) to[first + i * 256] = values[i];
}

}  // namespace

int check_norms() {
  int failures = 0;
  for (int dim : {8, 64, 264, 512, 768, 1024, 1032, 4096, 8192})
    for (bool gated : {false, true}) {
      NormCase problem(37, dim, gated, gated ? 1e-12f : 1e-6f);
      problem.out.fill_bytes(0xff);
      problem.launch(nullptr);
      CHECK_CUDA(cudaDeviceSynchronize());
      const double error = problem.error();
      if (error < 4e-3) continue;
      ++failures;
      std::printf("FAIL norm dim %d gated %d: error %g\n", dim, gated, error);
    }
  std::printf("norms: 18 cases, %d failures\n", failures);
  return failures;
}

// Bytes read and written a microsecond by a copy of `vectors` 16-byte words, in TB/s.
double copy_rate(size_t vectors, int calls) {
  DeviceArray<uint4> from(vectors * calls), to(vectors * calls);
  from.fill_bytes(1);
  int next = 0;
  const double us = median_us(
      [&](cudaStream_t stream) {
        const size_t at = next++ % calls * vectors;
        copy<<<unsigned((vectors + 1023) / 1024), 256, 0, stream>>>(to.data() + at,
                                                                    from.data() + at, vectors);
        CHECK_CUDA(cudaGetLastError());
      },
      calls, 20);
  return 32.0 * vectors / us * 1e-6;
}

void bench_norms() {
  const double copy = copy_rate(size_t{1} << 27, 2);
  std::printf("copy: %.2f TB/s (2 GiB), %.2f TB/s (13,600 x 768 bf16, ten in turn)\n", copy,
              copy_rate(13600 * 768 / 8, 10));
  for (int rows : {1700, 13600})
    for (bool gated : {false, true}) {
      // Ten sets in turn: more than the L2 cache holds at 13,600 rows.
      std::vector<NormCase> sets;
      for (int i = 0; i < 10; ++i) sets.emplace_back(rows, 768, gated);
      int next = 0;
      const double us = median_us([&](cudaStream_t stream) { sets[next++ % 10].launch(stream); });
      const double rate = sets[0].bytes() / us * 1e-6;
      std::printf("norm %5d x 768 gated %d: %6.2f us, %.2f TB/s, %.0f%% of copy\n", rows, gated, us,
                  rate, 100 * rate / copy);
    }
}

}  // namespace check
