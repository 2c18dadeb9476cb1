// Drives the TensorRT plugins as an engine would, without an engine: each is created through its
// creator, asked for formats and shapes, serialized and created again, attached, and enqueued
// inside a captured graph, whose replay must give the golden outputs.
//   mtgr_tensorrt_check <libmtgr_tensorrt.so> <folder of unpack_golden.py>
#include <NvInferRuntime.h>
#include <cuda_fp16.h>
#include <dlfcn.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "device.h"

namespace {

using namespace nvinfer1;

int failures = 0;
void expect(bool good, const std::string& what) {
  if (!good) ++failures, std::printf("FAIL %s\n", what.c_str());
}

std::vector<__half> halves(const std::vector<float>& in) {
  std::vector<__half> out(in.size());
  for (size_t i = 0; i < in.size(); ++i) out[i] = __float2half(in[i]);
  return out;
}

struct Tensor {
  PluginTensorDesc desc{};
  const void* data;
  Tensor(DataType type, std::vector<int64_t> shape, const void* data) : data(data) {
    desc.type = type;
    desc.format = TensorFormat::kLINEAR;
    desc.dims.nbDims = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), desc.dims.d);
  }
};

struct NoBuilder : IExprBuilder {};

IPluginCreatorV3One* find_creator(void* library, const std::string& name) {
  auto* list = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(
      dlsym(library, "getCreators"));
  int32_t count = 0;
  auto* creators = list(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
    if (name == creator->getPluginName()) return creator;
  }
  std::fprintf(stderr, "no creator for %s\n", name.c_str());
  std::exit(2);
}

// Runs one plugin on `inputs`; the output has `shape` and goes to `output`.
void run(void* library, const std::string& name, std::vector<PluginField> fields,
         const std::vector<Tensor>& inputs, Tensor output, void* output_data) {
  auto* creator = find_creator(library, name);
  const PluginFieldCollection given{static_cast<int32_t>(fields.size()), fields.data()};
  std::unique_ptr<IPluginV3> built(creator->createPlugin("", &given, TensorRTPhase::kBUILD));
  expect(built != nullptr, name + ": not created");
  const PluginFieldCollection none{};
  expect(creator->createPlugin("", &none, TensorRTPhase::kBUILD) == nullptr,
         name + ": created without its fields");

  auto* build =
      static_cast<IPluginV3OneBuild*>(built->getCapabilityInterface(PluginCapabilityType::kBUILD));
  std::vector<DynamicPluginTensorDesc> dynamic;
  std::vector<DimsExprs> shapes;
  for (const Tensor& tensor : inputs) {
    dynamic.push_back({tensor.desc, tensor.desc.dims, tensor.desc.dims, tensor.desc.dims});
    DimsExprs expressions{tensor.desc.dims.nbDims, {}};
    for (int i = 0; i < tensor.desc.dims.nbDims; ++i)  // stand-ins: only passed on, never read
      expressions.d[i] = reinterpret_cast<const IDimensionExpr*>(tensor.desc.dims.d[i] * 16 + 16);
    shapes.push_back(expressions);
  }
  dynamic.push_back({output.desc, output.desc.dims, output.desc.dims, output.desc.dims});
  const int count = static_cast<int>(inputs.size());
  for (int i = 0; i <= count; ++i)
    expect(build->supportsFormatCombination(i, dynamic.data(), count, 1),
           name + ": format refused at " + std::to_string(i));
  auto wrong = dynamic;
  wrong[0].desc.type = DataType::kINT8;
  expect(!build->supportsFormatCombination(0, wrong.data(), count, 1), name + ": int8 accepted");

  NoBuilder builder;
  DimsExprs shape{};
  expect(build->getOutputShapes(shapes.data(), count, nullptr, 0, &shape, 1, builder) == 0 &&
             shape.nbDims == output.desc.dims.nbDims,
         name + ": output rank");
  for (int i = 0; i < shape.nbDims; ++i)
    expect(reinterpret_cast<int64_t>(shape.d[i]) == output.desc.dims.d[i] * 16 + 16,
           name + ": output dimension " + std::to_string(i));
  std::vector<DataType> types;
  DataType type{};
  for (const Tensor& tensor : inputs) types.push_back(tensor.desc.type);
  expect(build->getOutputDataTypes(&type, 1, types.data(), count) == 0 && type == output.desc.type,
         name + ": output type");
  check::DeviceArray<uint8_t> workspace(
      build->getWorkspaceSize(dynamic.data(), count, &dynamic[count], 1));

  // As a deserialized engine: a second plugin from the first one's fields.
  auto* fields_of = static_cast<IPluginV3OneRuntime*>(
      built->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  std::unique_ptr<IPluginV3> loaded(
      creator->createPlugin("", fields_of->getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
  built.reset();
  auto* runtime = static_cast<IPluginV3OneRuntime*>(
      loaded->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  std::unique_ptr<IPluginV3> attached(runtime->attachToContext(nullptr));
  loaded.reset();
  runtime = static_cast<IPluginV3OneRuntime*>(
      attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  std::vector<PluginTensorDesc> descs;
  std::vector<const void*> data;
  for (const Tensor& tensor : inputs) descs.push_back(tensor.desc), data.push_back(tensor.data);
  expect(runtime->onShapeChange(descs.data(), count, &output.desc, 1) == 0, name + ": shapes");

  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK_CUDA(cudaStreamCreate(&stream));
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  expect(runtime->enqueue(descs.data(), &output.desc, data.data(), &output_data, workspace.data(),
                          stream) == 0,
         name + ": enqueue");
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  CHECK_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  for (int i = 0; i < 3; ++i) CHECK_CUDA(cudaGraphLaunch(executable, stream));
  CHECK_CUDA(cudaStreamSynchronize(stream));
  CHECK_CUDA(cudaGraphExecDestroy(executable));
  CHECK_CUDA(cudaGraphDestroy(graph));
  CHECK_CUDA(cudaStreamDestroy(stream));
}

double relative_error(const std::vector<__half>& got, const std::vector<float>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double value = __half2float(got[i]);
    if (!std::isfinite(value)) return INFINITY;
    difference += (value - want[i]) * (value - want[i]), norm += double(want[i]) * want[i];
  }
  return std::sqrt(difference / norm);
}

template <class T>
std::vector<T> read(std::ifstream& file, size_t count) {
  std::vector<T> out(count);
  file.read(reinterpret_cast<char*>(out.data()), count * sizeof(T));
  return out;
}

void check_attention(void* library, const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const auto header = read<int32_t>(file, 6);
  const auto scales = read<float>(file, 2);
  const int dim = header[0], heads = header[1], batch = header[2];
  std::vector<check::DeviceArray<int32_t>> indices;
  for (int i = 0; i < 3; ++i) indices.emplace_back(read<int32_t>(file, batch + 1));
  for (int i = 4; i < 6; ++i) indices.emplace_back(read<int32_t>(file, header[i]));
  const int rows = header[3] + header[4] + header[5], width = heads * dim;
  const size_t count = size_t(rows) * width;
  const auto q = read<float>(file, count), k = read<float>(file, count),
             v = read<float>(file, count), want = read<float>(file, count);
  // Once from the whole projection uvqk, as ordinary layers; once from (u, q) of the candidate rows
  // and (v, k) of all rows, as the last layer.
  for (const bool last : {false, true}) {
    const int skipped = last ? header[3] + header[4] : 0, columns = last ? 2 : 4;
    std::vector<float> uq(size_t(rows - skipped) * columns * width),
        vk(size_t(rows) * columns * width);
    for (int row = 0; row < rows; ++row)
      for (int c = 0; c < width; ++c) {
        const size_t at = size_t(row) * width + c;
        auto put = [&](std::vector<float>& into, int from, int column, float value) {
          if (row >= from) into[(size_t(row - from) * columns + column) * width + c] = value;
        };
        put(vk, 0, last ? 0 : 1, v[at]), put(vk, 0, last ? 1 : 3, k[at]);
        put(uq, skipped, last ? 1 : 2, q[at]);
      }
    const check::DeviceArray<__half> uq_device(halves(uq)), vk_device(halves(vk));
    check::DeviceArray<__half> out(size_t(rows - skipped) * width);
    out.fill_bytes(0xff);
    std::vector<Tensor> inputs{
        {DataType::kHALF, {rows - skipped, columns, heads, dim}, uq_device.data()},
        {DataType::kHALF, {rows, columns, heads, dim}, vk_device.data()}};
    for (const auto& index : indices)
      inputs.emplace_back(DataType::kINT32, std::vector<int64_t>{int64_t(index.count())},
                          index.data());
    const int32_t first_segment = last ? 2 : 0;
    run(library, "hstu_attention",
        {{"alpha", &scales[0], PluginFieldType::kFLOAT32, 1},
         {"inv_n", &scales[1], PluginFieldType::kFLOAT32, 1},
         {"first_query_segment", &first_segment, PluginFieldType::kINT32, 1}},
        inputs, {DataType::kHALF, {rows - skipped, heads, dim}, nullptr}, out.data());
    const std::vector<float> part(want.begin() + size_t(skipped) * width, want.end());
    const double error = relative_error(out.host(), part);
    expect(error < 1e-3, path.filename().string() + ": error " + std::to_string(error));
    std::printf("hstu_attention %s first segment %d: error %.1e\n", path.filename().c_str(),
                first_segment, error);
  }
}

void check_norm(void* library, bool gated) {
  constexpr int kRows = 50, kDim = 96, kGroups = 4;
  std::vector<float> x(kRows * kDim), uq(kRows * 2 * kDim), weight(kGroups * kDim), bias(weight),
      want(x);
  std::vector<int32_t> group(kRows);
  for (size_t i = 0; i < x.size(); ++i) x[i] = __half2float(__float2half(std::sin(float(i))));
  for (size_t i = 0; i < uq.size(); ++i) uq[i] = __half2float(__float2half(std::cos(0.7f * i)));
  for (size_t i = 0; i < weight.size(); ++i)
    weight[i] = 1 + 0.01f * (i % 7), bias[i] = 0.1f * (i % 5);
  const float eps = 1e-6f;
  for (int row = 0; row < kRows; ++row) {
    group[row] = row % kGroups;
    std::vector<double> z(kDim);
    double mean = 0, variance = 0;
    for (int c = 0; c < kDim; ++c) {
      z[c] = x[row * kDim + c] * (gated ? uq[row * 2 * kDim + c] : 1.f);
      mean += z[c] / kDim;
    }
    for (double value : z) variance += (value - mean) * (value - mean) / kDim;
    for (int c = 0; c < kDim; ++c)
      want[row * kDim + c] =
          float((z[c] - mean) / std::sqrt(variance + eps) * weight[group[row] * kDim + c] +
                bias[group[row] * kDim + c]);
  }
  const check::DeviceArray<__half> x_device(halves(x)), uq_device(halves(uq));
  const check::DeviceArray<float> weight_device(weight), bias_device(bias);
  const check::DeviceArray<int32_t> group_device(group);
  check::DeviceArray<__half> out(x.size());
  out.fill_bytes(0xff);
  std::vector<Tensor> inputs{{DataType::kHALF, {kRows, kDim}, x_device.data()}};
  if (gated)
    inputs.emplace_back(DataType::kHALF, std::vector<int64_t>{kRows, 2, 3, kDim / 3},
                        uq_device.data());
  inputs.emplace_back(DataType::kINT32, std::vector<int64_t>{kRows}, group_device.data());
  inputs.emplace_back(DataType::kFLOAT, std::vector<int64_t>{kGroups, kDim}, weight_device.data());
  inputs.emplace_back(DataType::kFLOAT, std::vector<int64_t>{kGroups, kDim}, bias_device.data());
  const std::string name = gated ? "gated_group_layer_norm" : "group_layer_norm";
  run(library, name, {{"eps", &eps, PluginFieldType::kFLOAT32, 1}}, inputs,
      {DataType::kHALF, {kRows, kDim}, nullptr}, out.data());
  const double error = relative_error(out.host(), want);
  expect(error < 1e-3, name + ": error " + std::to_string(error));
  std::printf("%s: error %.1e\n", name.c_str(), error);
}

void check_lookup(void* library) {
  // Ids hashing anywhere, filled by the rule that the table's builder follows.
  constexpr int kLog = 8, kCapacity = 1 << kLog, kIds = 150;
  std::vector<int64_t> keys(kCapacity), ids;
  std::vector<int32_t> rows(kCapacity), want;
  int32_t max_probe = 1;
  for (int i = 0; i < 2 * kIds; ++i) {
    const int64_t id = int64_t(i) * 1234567890123457 - 77;
    ids.push_back(id);
    want.push_back(i < kIds ? i + 1 : 0);
    if (i >= kIds) continue;
    const uint64_t x = uint64_t(id), hash = (x ^ (x >> 32)) * 0x9E3779B97F4A7C15ull;
    int slot = int(hash >> (64 - kLog)), probes = 1;
    for (; rows[slot] != 0; slot = (slot + 1) % kCapacity) ++probes;
    keys[slot] = id, rows[slot] = i + 1, max_probe = std::max(max_probe, probes);
  }
  const check::DeviceArray<int64_t> ids_device(ids), keys_device(keys);
  const check::DeviceArray<int32_t> rows_device(rows);
  check::DeviceArray<int32_t> out(ids.size());
  run(library, "id_lookup", {{"max_probe", &max_probe, PluginFieldType::kINT32, 1}},
      {{DataType::kINT64, {2 * kIds}, ids_device.data()},
       {DataType::kINT64, {kCapacity}, keys_device.data()},
       {DataType::kINT32, {kCapacity}, rows_device.data()}},
      {DataType::kINT32, {2 * kIds}, nullptr}, out.data());
  expect(out.host() == want, "id_lookup: wrong rows");
  std::printf("id_lookup: %d ids, at most %d probes\n", 2 * kIds, max_probe);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s <libmtgr_tensorrt.so> <golden folder>\n", argv[0]);
    return 2;
  }
  void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(argv[2]))
    if (entry.path().extension() == ".bin") check_attention(library, entry.path()), ++files;
  expect(files > 0, "no golden files");
  check_norm(library, false);
  check_norm(library, true);
  check_lookup(library);
  std::printf(failures ? "%d failures\n" : "all good\n", failures);
  return failures ? 1 : 0;
}
