#include "plugin.h"

#include <cuda_runtime_api.h>

#include <memory>

#include "mtgr_ops.h"

namespace mtgr::trt {
namespace {

using namespace nvinfer1;

constexpr int32_t kOk = 0, kFailed = 1;
constexpr int kMaxInputs = 8;

// Counters live as long as the plugin object that an execution context owns.
using DeviceMemory = std::unique_ptr<void, decltype(&cudaFree)>;

class Plugin final : public IPluginV3,
                     public IPluginV3OneCore,
                     public IPluginV3OneBuild,
                     public IPluginV3OneRuntime {
 public:
  Plugin(const Op& op, std::vector<Field> fields) : op_(op), fields_(std::move(fields)) {
    for (const Field& field : fields_)
      serialized_.emplace_back(field.name, &field.integer, field.type, 1);
    collection_ = {static_cast<int32_t>(serialized_.size()), serialized_.data()};
  }

  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE:
        return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD:
        return static_cast<IPluginV3OneBuild*>(this);
      case PluginCapabilityType::kRUNTIME:
        return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return make_plugin(op_, fields_); }

  const char* getPluginName() const noexcept override { return op_.name(); }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t inputs,
                          const DynamicPluginTensorDesc*, int32_t) noexcept override {
    return expect_inputs(inputs);
  }
  int32_t getOutputDataTypes(DataType* output, int32_t, const DataType* types,
                             int32_t inputs) const noexcept override {
    if (expect_inputs(inputs) != kOk) return kFailed;
    output[0] = op_.output_type(types);
    return kOk;
  }
  int32_t getOutputShapes(const DimsExprs* shapes, int32_t inputs, const DimsExprs*, int32_t,
                          DimsExprs* output, int32_t, IExprBuilder&) noexcept override {
    if (expect_inputs(inputs) != kOk) return kFailed;
    op_.output_shape(shapes, output[0]);
    return kOk;
  }
  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                 int32_t inputs, int32_t) noexcept override {
    if (inputs != op_.inputs() || tensors[position].desc.format != TensorFormat::kLINEAR)
      return false;
    DataType types[kMaxInputs + 1];
    for (int i = 0; i <= position; ++i) types[i] = tensors[i].desc.type;
    return op_.accepts(position, types);
  }
  size_t getWorkspaceSize(const DynamicPluginTensorDesc* tensors, int32_t inputs,
                          const DynamicPluginTensorDesc*, int32_t) const noexcept override {
    PluginTensorDesc largest[kMaxInputs];
    for (int i = 0; i < inputs; ++i) {
      largest[i] = tensors[i].desc;
      largest[i].dims = tensors[i].max;
    }
    return op_.workspace_bytes(largest);
  }

  // Called before the first enqueue and outside of captures: the place to take memory.
  int32_t onShapeChange(const PluginTensorDesc*, int32_t inputs, const PluginTensorDesc*,
                        int32_t) noexcept override {
    if (expect_inputs(inputs) != kOk) return kFailed;
    const size_t bytes = op_.counter_bytes();
    if (bytes == 0 || counters_ != nullptr) return kOk;
    void* memory = nullptr;
    if (cudaMalloc(&memory, bytes) != cudaSuccess) return fail("no memory for counters");
    counters_.reset(memory);
    if (cudaMemset(memory, 0, bytes) != cudaSuccess) return fail("counters not cleared");
    return cudaDeviceSynchronize() == cudaSuccess ? kOk : fail("counters not cleared");
  }
  int32_t enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc*, const void* const* data,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    const Launch launch{inputs, data, outputs[0], workspace, counters_.get(), stream};
    return op_.launch(fields_, launch) == MTGR_OK ? kOk : fail(mtgr_last_error());
  }
  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

 private:
  int32_t fail(const char* message) const noexcept {
    log_error(std::string(op_.name()) + ": " + message);
    return kFailed;
  }
  int32_t expect_inputs(int32_t inputs) const noexcept {
    if (inputs == op_.inputs()) return kOk;
    return fail(
        ("expected " + std::to_string(op_.inputs()) + " inputs, got " + std::to_string(inputs))
            .c_str());
  }

  const Op& op_;
  std::vector<Field> fields_;
  std::vector<PluginField> serialized_;
  PluginFieldCollection collection_{};
  DeviceMemory counters_{nullptr, &cudaFree};
};

}  // namespace

IPluginV3* make_plugin(const Op& op, std::vector<Field> fields) {
  return new Plugin(op, std::move(fields));
}

}  // namespace mtgr::trt
