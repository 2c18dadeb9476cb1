#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstring>
#include <random>
#include <type_traits>

#include "device.h"
#include "tail_check.h"

namespace check {
namespace {

constexpr int kGroups = 4;

// Norm and product in float64 of what float32 values of the inputs are.
struct Exact {
  int rows, dim;
  std::vector<double> values;  // [rows, dim]

  template <class T>
  void normalize(const std::vector<T>& weight, const std::vector<T>& bias,
                 const std::vector<int32_t>& group, double eps) {
    for (int row = 0; row < rows; ++row) {
      double* z = &values[size_t(row) * dim];
      double mean = 0, variance = 0;
      for (int c = 0; c < dim; ++c) mean += z[c] / dim;
      for (int c = 0; c < dim; ++c) variance += (z[c] - mean) * (z[c] - mean) / dim;
      for (int c = 0; c < dim; ++c) {
        const int at = group[row] * dim + c;
        z[c] = (z[c] - mean) / std::sqrt(variance + eps) * double(float(weight[at])) +
               double(float(bias[at]));
      }
    }
  }
  template <class T>
  double error(const std::vector<T>& got) const {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      difference += (double(float(got[i])) - values[i]) * (double(float(got[i])) - values[i]);
      norm += values[i] * values[i];
    }
    return std::sqrt(difference / norm);
  }
};

// The gate is a column block of a wider tensor, as in uvqk.
template <class T>
struct TailCase {
  static constexpr float kEps[2] = {1e-12f, 1e-6f};
  int rows, dim;
  DeviceArray<T> attended, uvqk, residual, weight, affine[4];
  DeviceArray<float> bias;
  DeviceArray<int32_t> group;
  DeviceArray<T> gated, out, next;

  static std::vector<float> normals(size_t count, float scale, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (size_t i = 0; i < count; ++i)  // large arrays repeat themselves: drawing is slow
      values[i] = i < 1 << 17 ? scale * normal(random) : values[i - (1 << 17)];
    return values;
  }
  static std::vector<T> halves(size_t count, float scale, uint64_t seed) {
    const auto values = normals(count, scale, seed);
    return {values.begin(), values.end()};
  }
  static std::vector<int32_t> groups(int rows, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<int32_t> values(rows);
    for (auto& value : values) value = random() % kGroups;
    return values;
  }

  TailCase(int rows, int dim, uint64_t seed)
      : rows(rows),
        dim(dim),
        attended(halves(size_t(rows) * dim, 1, seed)),
        uvqk(halves(size_t(rows) * 4 * dim, 1, seed + 1)),
        residual(halves(size_t(rows) * dim, 1, seed + 2)),
        weight(halves(size_t(dim) * dim, 1 / std::sqrt(float(dim)), seed + 3)),
        affine{DeviceArray<T>(halves(kGroups * dim, 1, seed + 4)),
               DeviceArray<T>(halves(kGroups * dim, 1, seed + 5)),
               DeviceArray<T>(halves(kGroups * dim, 1, seed + 6)),
               DeviceArray<T>(halves(kGroups * dim, 1, seed + 7))},
        bias(normals(dim, 1, seed + 8)),
        group(groups(rows, seed)),
        gated(size_t(rows) * dim),
        out(size_t(rows) * dim),
        next(size_t(rows) * dim) {}

  static constexpr mtgr_dtype kDtype = std::is_same_v<T, __half> ? MTGR_FLOAT16 : MTGR_BFLOAT16;

  void launch(cudaStream_t stream, bool with_next = true) const {
    const mtgr_layer_tail_args args{kDtype,
                                    rows,
                                    dim,
                                    attended.data(),
                                    uvqk.data(),
                                    residual.data(),
                                    dim,
                                    4 * dim,
                                    dim,
                                    group.data(),
                                    weight.data(),
                                    bias.data(),
                                    {affine[0].data(), affine[1].data(), kEps[0]},
                                    {affine[2].data(), affine[3].data(), kEps[1]},
                                    out.data(),
                                    with_next ? next.data() : nullptr};
    CHECK_MTGR(mtgr_layer_tail(&args, stream));
  }
  void launch_norm(cudaStream_t stream, bool gate) const {
    const mtgr_norm_args args{kDtype,
                              kDtype,
                              rows,
                              dim,
                              kGroups,
                              kEps[!gate],
                              gate ? attended.data() : out.data(),
                              gate ? uvqk.data() : nullptr,
                              dim,
                              4 * dim,
                              group.data(),
                              affine[gate ? 0 : 2].data(),
                              affine[gate ? 1 : 3].data(),
                              gate ? gated.data() : next.data()};
    CHECK_MTGR(mtgr_group_layer_norm(&args, stream));
  }
  void launch_parts(cudaStream_t stream, bool with_next = true) const {
    launch_norm(stream, true);
    const mtgr_linear_args args{
        rows,    dim,        dim, kDtype, gated.data(), weight.data(), bias.data(), residual.data(),
        nullptr, out.data(), dim, dim,    dim};
    CHECK_MTGR(mtgr_linear(kDtype, MTGR_LINEAR_RESIDUAL, &args, 1, stream));
    if (with_next) launch_norm(stream, false);
  }

  // The worse relative error of the two results.
  double error() const {
    const auto a = attended.host(), u = uvqk.host(), r = residual.host(), w = weight.host();
    const auto b = bias.host();
    const auto of = group.host();
    const size_t count = size_t(rows) * dim;
    Exact exact{rows, dim, std::vector<double>(count)};
    for (size_t i = 0; i < count; ++i)
      exact.values[i] = double(float(a[i])) * double(float(u[i / dim * 4 * dim + i % dim]));
    exact.normalize(affine[0].host(), affine[1].host(), of, kEps[0]);
    const std::vector<double> normed = exact.values;
    for (int row = 0; row < rows; ++row)
      for (int column = 0; column < dim; ++column) {
        double sum = b[column] + double(float(r[size_t(row) * dim + column]));
        for (int d = 0; d < dim; ++d)
          sum += normed[size_t(row) * dim + d] * double(float(w[size_t(column) * dim + d]));
        exact.values[size_t(row) * dim + column] = sum;
      }
    const double of_out = exact.error(out.host());
    exact.normalize(affine[2].host(), affine[3].host(), of, kEps[1]);
    const double of_next = exact.error(next.host());
    return std::isnan(of_out) || of_out > of_next ? of_out : of_next;
  }
};

template <class T>
int check_one(int rows, int dim, uint64_t seed) {
  TailCase<T> one(rows, dim, seed);
  for (auto* to : {&one.out, &one.next}) to->fill_bytes(0xff);
  one.launch(nullptr);
  CHECK_CUDA(cudaDeviceSynchronize());
  const double error = one.error();
  const auto out = one.out.host(), next = one.next.host();
  one.out.fill_bytes(0xff);
  one.next.fill_bytes(0xff);
  for (int i = 0; i < 20; ++i) one.launch(nullptr, i % 2);  // also back to back
  CHECK_CUDA(cudaDeviceSynchronize());
  const bool same = !memcmp(out.data(), one.out.host().data(), out.size() * sizeof(T)) &&
                    !memcmp(next.data(), one.next.host().data(), next.size() * sizeof(T));
  if (error < (std::is_same_v<T, __half> ? 1e-3 : 4e-3) && same) return 0;
  std::printf("FAIL tail [%d, %d] seed %d: error %g, repeats equal: %d\n", rows, dim, int(seed),
              error, same);
  return 1;
}

}  // namespace

int check_tails(int cases) {
  int failures = 0;
  for (int seed = 0; seed < cases; ++seed) {
    std::mt19937_64 random(seed);
    constexpr int kEdges[] = {1, 63, 64, 65, 128, 500};
    const int rows = random() % 2 ? kEdges[random() % 6] : 1 + random() % 300;
    const int dim = random() % 2 ? 512 : 768;
    failures += seed % 2 ? check_one<__half>(rows, dim, seed * 16)
                         : check_one<__nv_bfloat16>(rows, dim, seed * 16);
  }
  std::printf("layer tails: %d cases, %d failures\n", cases, failures);
  return failures;
}

void bench_tails() {
  std::printf("layer tail bf16, us: one launch | its parts | without the next norm: one | parts\n");
  for (int dim : {512, 768})
    for (int rows : {500, 1000, 1200, 1700, 1920, 3400, 13600}) {
      const TailCase<__nv_bfloat16> one(rows, dim, 1);
      double us[4];
      for (int i = 0; i < 4; ++i)
        us[i] = median_us([&](cudaStream_t stream) {
          i % 2 ? one.launch_parts(stream, i < 2) : one.launch(stream, i < 2);
        });
      std::printf(" %5d x %d: %6.2f | %6.2f | %6.2f | %6.2f\n", rows, dim, us[0], us[1], us[2],
                  us[3]);
    }
}

}  // namespace check
