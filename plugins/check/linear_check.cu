// The products with every tile shape against float64, and their time at the layer's shapes.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <memory>
#include <numeric>
#include <random>

#include "device.h"
#include "linear/problem.h"
#include "linear_check.h"

namespace check {
namespace {

namespace linear = mtgr::linear;
using linear::kTiles;

template <class T>
T number(float value);
template <>
__half number<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__nv_bfloat16 number<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

template <class T>
std::vector<T> normals(size_t count, float scale, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<T> out(count);
  for (size_t i = 0; i < count; ++i)  // large arrays repeat themselves: drawing is slow
    out[i] = i < 1 << 17 ? number<T>(scale * normal(random)) : out[i - (1 << 17)];
  return out;
}

std::vector<float> floats(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(count);
  for (float& value : out) value = normal(random);
  return out;
}

template <class T>
__global__ void reference(const mtgr_linear_args a, bool silu, double* out) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= int64_t(a.rows) * a.columns) return;
  const int row = i / a.columns, column = i % a.columns;
  double sum = a.bias ? a.bias[column] : 0;
  for (int d = 0; d < a.depth; ++d)
    sum += double(float(static_cast<const T*>(a.x)[row * a.x_stride + d])) *
           double(float(static_cast<const T*>(a.weight)[int64_t(column) * a.depth + d]));
  if (silu) sum /= 1 + exp(-sum);
  if (a.residual)
    sum += double(float(static_cast<const T*>(a.residual)[row * a.residual_stride + column]));
  out[i] = sum;
}

struct Options {
  int rows, columns, depth;
  linear::Epilogue epilogue;
  bool bias, scattered, float_output;
  int beyond = 0;  // columns of out and x that belong to others
};

template <class T>
struct Case {
  Options o;
  DeviceArray<T> x, weight, residual;
  DeviceArray<float> bias;
  std::vector<int32_t> order;
  DeviceArray<int32_t> out_rows;
  DeviceArray<unsigned char> out;

  Case(const Options& options, uint64_t seed)
      : o(options),
        x(normals<T>(size_t(o.rows) * (o.depth + o.beyond), 1, seed)),
        weight(normals<T>(size_t(o.columns) * o.depth, 1 / std::sqrt(float(o.depth)), seed + 1)),
        residual(normals<T>(has_residual() ? size_t(o.rows) * o.columns : 0, 1, seed + 2)),
        bias(floats(o.columns, seed + 3)),
        order(shuffled(o, seed)),
        out_rows(order),
        out(size_t(o.rows) * (o.columns + o.beyond) * size()) {}

  static std::vector<int32_t> shuffled(const Options& o, uint64_t seed) {
    std::vector<int32_t> order(o.rows);
    std::iota(order.begin(), order.end(), 0);
    std::mt19937_64 random(seed);
    if (o.scattered) std::shuffle(order.begin(), order.end(), random);
    return order;
  }
  static mtgr_dtype dtype() { return std::is_same_v<T, __half> ? MTGR_FLOAT16 : MTGR_BFLOAT16; }
  bool has_residual() const { return o.epilogue == linear::kAddResidual; }
  size_t size() const { return o.float_output ? 4 : 2; }

  mtgr_linear_args args() const {
    return {o.rows,
            o.columns,
            o.depth,
            o.float_output ? MTGR_FLOAT32 : dtype(),
            x.data(),
            weight.data(),
            o.bias ? bias.data() : nullptr,
            has_residual() ? residual.data() : nullptr,
            o.scattered ? out_rows.data() : nullptr,
            out.data(),
            o.depth + o.beyond,
            o.columns,
            o.columns + o.beyond};
  }

  // Relative error; NaN if a value was not written, or one written that is not ours.
  double error() const {
    const mtgr_linear_args a = args();
    DeviceArray<double> want(size_t(o.rows) * o.columns);
    reference<T>
        <<<(o.rows * o.columns + 255) / 256, 256>>>(a, o.epilogue == linear::kSilu, want.data());
    CHECK_CUDA(cudaGetLastError());
    const auto wanted = want.host();
    const auto bytes = out.host();
    double difference = 0, norm = 0;
    for (int row = 0; row < o.rows; ++row)
      for (int column = 0; column < o.columns + o.beyond; ++column) {
        const size_t at = size_t(order[row]) * (o.columns + o.beyond) + column;
        const double got = o.float_output
                               ? reinterpret_cast<const float*>(bytes.data())[at]
                               : double(float(reinterpret_cast<const T*>(bytes.data())[at]));
        if (column >= o.columns) {
          if (!std::isnan(got)) return NAN;
          continue;
        }
        const double w = wanted[size_t(row) * o.columns + column];
        difference += (got - w) * (got - w);
        norm += w * w;
      }
    return std::sqrt(difference / norm);
  }
};

template <class T>
int check_one(uint64_t seed) {
  std::mt19937_64 random(seed);
  auto below = [&](int n) { return int(random() % n); };
  const auto epilogue = linear::Epilogue(below(3));
  std::vector<std::unique_ptr<Case<T>>> cases;
  std::vector<mtgr_linear_args> args;
  for (int i = 0, count = 1 + below(3); i < count; ++i) {
    const Options options{below(8) ? 1 + below(700) : 0,
                          16 * (1 + below(45)),
                          8 * (1 + below(60)),
                          epilogue,
                          bool(below(4)),
                          bool(below(2)),
                          below(4) == 0,
                          8 * below(2)};
    cases.push_back(std::make_unique<Case<T>>(options, seed * 8 + i));
    args.push_back(cases.back()->args());
  }
  int failures = 0;
  for (int tile = 0; tile < linear::kTileCount; ++tile) {
    if (!linear::suits(kTiles[tile], epilogue, args.data(), args.size())) continue;
    for (auto& one : cases) one->out.fill_bytes(0xff);
    const int processors = 4 + 2 * below(60);
    CHECK_CUDA(linear::launch_linear(Case<T>::dtype(), epilogue, args.data(), args.size(), tile,
                                     processors, nullptr));
    CHECK_CUDA(cudaDeviceSynchronize());
    for (auto& one : cases) {
      if (one->o.rows == 0) continue;
      const double limit = std::is_same_v<T, __half> ? 1e-3 : 4e-3;
      if (const double got = one->error(); !(got < limit)) {
        ++failures;
        std::printf("FAIL linear seed %d tile %d [%d, %d] x %d epilogue %d: error %g\n", int(seed),
                    tile, one->o.rows, one->o.columns, one->o.depth, epilogue, got);
      }
    }
  }
  return failures;
}

}  // namespace

int check_linears(int cases) {
  int failures = 0;
  for (int seed = 0; seed < cases; ++seed)
    failures += seed % 2 ? check_one<__half>(seed) : check_one<__nv_bfloat16>(seed);
  std::printf("linear: %d groups of products with each of %d tiles, %d failures\n", cases,
              linear::kTileCount, failures);
  return failures;
}

void bench_linears() {
  const struct {
    const char* what;
    int rows, columns, depth;
    linear::Epilogue epilogue;
  } shapes[] = {{"projection B 1", 1700, 3072, 768, linear::kSilu},
                {"output B 1", 1700, 768, 768, linear::kAddResidual},
                {"projection B 8", 13600, 3072, 768, linear::kSilu},
                {"output B 8", 13600, 768, 768, linear::kAddResidual},
                {"projection B 16", 27200, 3072, 768, linear::kSilu},
                {"small projection", 1700, 2048, 512, linear::kSilu},
                {"small output", 1700, 512, 512, linear::kAddResidual},
                {"heads", 500, 384, 768, linear::kSilu},
                {"candidates' u, q", 500, 1536, 768, linear::kSilu}};
  std::printf("linear bf16, us by tile");
  for (const auto& tile : kTiles)
    std::printf("  %s%dx%d/%dx%d", tile.turns ? "t" : "", tile.rows(), tile.columns, tile.down,
                tile.across);
  std::printf("  | chosen, us, TFLOP/s\n");
  int processors = 0;
  CHECK_CUDA(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
  for (const auto& shape : shapes) {
    const Case<__nv_bfloat16> one(
        {shape.rows, shape.columns, shape.depth, shape.epilogue, true, false, false}, 1);
    const mtgr_linear_args args = one.args();
    std::printf("%-18s", shape.what);
    const int chosen = linear::choose_tile(shape.epilogue, &args, 1, processors);
    double us_chosen = 0;
    for (int tile = 0; tile < linear::kTileCount; ++tile) {
      if (!linear::suits(kTiles[tile], shape.epilogue, &args, 1)) {
        std::printf("       -");
        continue;
      }
      const double us = median_us([&](cudaStream_t stream) {
        CHECK_CUDA(linear::launch_linear(MTGR_BFLOAT16, shape.epilogue, &args, 1, tile, processors,
                                         stream));
      });
      std::printf(" %7.2f", us);
      if (tile == chosen) us_chosen = us;
    }
    std::printf(" | %d %6.2f %4.0f\n", chosen, us_chosen,
                2e-6 * shape.rows * shape.columns * shape.depth / us_chosen);
  }
}

}  // namespace check
