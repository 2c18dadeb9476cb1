// One IPluginV3 for all ops: the TensorRT interfaces on one side, a small description of an op
// (what it takes, what it returns, how to launch it) on the other. Written against what
// TensorRT 10.8 and 11 have in common.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

namespace mtgr::trt {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "mtgr";

// An attribute of the ONNX node; every field holds four bytes.
struct Field {
  const char* name;
  PluginFieldType type;  // kFLOAT32 or kINT32
  union {
    float real;
    int32_t integer;
  };
};

// What a launch of an op gets.
struct Launch {
  const PluginTensorDesc* inputs;
  const void* const* data;
  void* output;
  void* workspace;
  void* counters;
  cudaStream_t stream;
};

// An op: its node's name, fields, and behaviour. Stateless; one object of each exists.
class Op {
 public:
  virtual ~Op() = default;
  virtual const char* name() const = 0;
  virtual std::vector<Field> fields() const = 0;
  virtual int inputs() const = 0;
  // Whether input `position` (or the output, at inputs()) may have this type, given those before
  // it.
  virtual bool accepts(int position, const DataType* types) const = 0;
  virtual DataType output_type(const DataType* input_types) const = 0;
  virtual void output_shape(const DimsExprs* inputs, DimsExprs& output) const {
    output = inputs[0];
  }
  virtual size_t workspace_bytes(const PluginTensorDesc*) const { return 0; }
  // Zeroed device memory that belongs to one execution context.
  virtual size_t counter_bytes() const { return 0; }
  // An mtgr_status.
  virtual int launch(const std::vector<Field>& fields, const Launch& launch) const = 0;
};

const std::vector<const Op*>& all_ops();

// Passes mtgr_last_error() or another message to TensorRT's log.
void log_error(const std::string& message) noexcept;

nvinfer1::IPluginV3* make_plugin(const Op& op, std::vector<Field> fields);

}  // namespace mtgr::trt
