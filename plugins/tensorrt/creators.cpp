// What TensorRT's plugin registry looks for in a library: creators, and a way to log.
#include <atomic>
#include <cstring>

#include "plugin.h"

namespace mtgr::trt {
namespace {

using namespace nvinfer1;

std::atomic<ILoggerFinder*> logger_finder{nullptr};

class Creator final : public IPluginCreatorV3One {
 public:
  explicit Creator(const Op& op) : op_(op) {
    for (const Field& field : op.fields()) names_.emplace_back(field.name, nullptr, field.type, 1);
    collection_ = {static_cast<int32_t>(names_.size()), names_.data()};
  }

  const char* getPluginName() const noexcept override { return op_.name(); }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
  const PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }

  // The same in both phases: an engine stores the fields and nothing else.
  IPluginV3* createPlugin(const char*, const PluginFieldCollection* given,
                          TensorRTPhase) noexcept override {
    std::vector<Field> fields = op_.fields();
    for (Field& field : fields)
      if (!read(given, field)) {
        log_error(std::string(op_.name()) + ": expected one attribute " + field.name + " of type " +
                  (field.type == PluginFieldType::kFLOAT32 ? "float" : "int"));
        return nullptr;
      }
    return make_plugin(op_, std::move(fields));
  }

 private:
  static bool read(const PluginFieldCollection* given, Field& field) {
    for (int32_t i = 0; i < given->nbFields; ++i) {
      const PluginField& from = given->fields[i];
      if (std::strcmp(from.name, field.name) != 0) continue;
      if (from.type != field.type || from.length != 1 || from.data == nullptr) return false;
      std::memcpy(&field.integer, from.data, sizeof field.integer);
      return true;
    }
    return false;
  }

  const Op& op_;
  std::vector<PluginField> names_;
  PluginFieldCollection collection_{};
};

}  // namespace

void log_error(const std::string& message) noexcept {
  ILoggerFinder* finder = logger_finder;
  ILogger* logger = finder ? finder->findLogger() : nullptr;
  if (logger) logger->log(ILogger::Severity::kERROR, message.c_str());
}

}  // namespace mtgr::trt

#define MTGR_EXPORT extern "C" __attribute__((visibility("default")))

MTGR_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static const auto creators = [] {
    std::vector<nvinfer1::IPluginCreatorInterface*> out;  // of the process, never destroyed
    for (const mtgr::trt::Op* op : mtgr::trt::all_ops()) out.push_back(new mtgr::trt::Creator(*op));
    return out;
  }();
  count = static_cast<int32_t>(creators.size());
  return creators.data();
}

MTGR_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  mtgr::trt::logger_finder = finder;
}
