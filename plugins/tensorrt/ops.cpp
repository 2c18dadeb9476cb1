// The four ops as TensorRT sees them: the ONNX nodes' inputs in order, and calls of the C
// launchers.
#include "mtgr_ops.h"
#include "plugin.h"

namespace mtgr::trt {
namespace {

using nvinfer1::Dims;

bool is_half(DataType type) { return type == DataType::kHALF || type == DataType::kBF16; }

int dtype_of(DataType type) {
  return type == DataType::kFLOAT  ? MTGR_FLOAT32
         : type == DataType::kHALF ? MTGR_FLOAT16
                                   : MTGR_BFLOAT16;
}

int rows_of(const PluginTensorDesc& tensor) { return static_cast<int>(tensor.dims.d[0]); }

// hstu_attention(uq, vk, static_offsets, rt_offsets, candidate_offsets, rt_visible,
// candidate_visible). uq is [T_q, 4 or 2, H, D] with columns (u, v, q, k) or (u, q); vk is
// [T, 4 or 2, H_kv, D] with columns (u, v, q, k) or (v, k).
class Attention final : public Op {
  enum Input { kUq, kVk, kStatic, kRealtime, kCandidate, kRtVisible, kCandidateVisible, kInputs };
  enum Attribute { kAlpha, kInvN, kFirstSegment };

 public:
  const char* name() const override { return "hstu_attention"; }
  std::vector<Field> fields() const override {
    return {{"alpha", PluginFieldType::kFLOAT32, {}},
            {"inv_n", PluginFieldType::kFLOAT32, {}},
            {"first_query_segment", PluginFieldType::kINT32, {}}};
  }
  int inputs() const override { return kInputs; }
  bool accepts(int position, const DataType* types) const override {
    if (position == kUq) return is_half(types[kUq]);
    if (position == kVk || position == kInputs) return types[position] == types[kUq];
    return types[position] == DataType::kINT32;
  }
  DataType output_type(const DataType* types) const override { return types[kUq]; }
  void output_shape(const DimsExprs* inputs, DimsExprs& output) const override {
    output.nbDims = 3;
    for (int i = 0; i < 3; ++i) output.d[i] = inputs[kUq].d[i == 0 ? 0 : i + 1];
  }
  size_t workspace_bytes(const PluginTensorDesc* inputs) const override {
    // Fewer query segments never need more memory.
    const auto args = arguments(inputs, 0);
    mtgr_attention_memory memory{};
    if (mtgr_attention_memory_needed(&args, &memory) != MTGR_OK) log_error(mtgr_last_error());
    return memory.partials;
  }
  size_t counter_bytes() const override {
    mtgr_attention_args args{};
    args.head_dim = 256;  // the one that needs counters
    mtgr_attention_memory memory{};
    if (mtgr_attention_memory_needed(&args, &memory) != MTGR_OK) log_error(mtgr_last_error());
    return memory.counters;
  }
  int launch(const std::vector<Field>& fields, const Launch& l) const override {
    mtgr_attention_args args = arguments(l.inputs, fields[kFirstSegment].integer);
    args.alpha = fields[kAlpha].real;
    args.inv_n = fields[kInvN].real;
    const Dims& uq = l.inputs[kUq].dims;
    const Dims& vk = l.inputs[kVk].dims;
    args.q = column(l.data[kUq], uq, uq.d[1] == 4 ? 2 : 1, 0);
    args.static_v = column(l.data[kVk], vk, vk.d[1] == 4 ? 1 : 0, 0);
    args.static_k = column(l.data[kVk], vk, vk.d[1] == 4 ? 3 : 1, 0);
    args.recent_v = column(l.data[kVk], vk, vk.d[1] == 4 ? 1 : 0, args.static_rows);
    args.recent_k = column(l.data[kVk], vk, vk.d[1] == 4 ? 3 : 1, args.static_rows);
    args.out = l.output;
    args.static_offsets = static_cast<const int32_t*>(l.data[kStatic]);
    args.rt_offsets = static_cast<const int32_t*>(l.data[kRealtime]);
    args.candidate_offsets = static_cast<const int32_t*>(l.data[kCandidate]);
    args.rt_visible = static_cast<const int32_t*>(l.data[kRtVisible]);
    args.candidate_visible = static_cast<const int32_t*>(l.data[kCandidateVisible]);
    return mtgr_attention(&args, l.workspace, l.counters, l.stream);
  }

 private:
  static mtgr_attention_args arguments(const PluginTensorDesc* inputs, int first_segment) {
    const Dims& uq = inputs[kUq].dims;
    mtgr_attention_args args{};
    args.dtype = dtype_of(inputs[kUq].type);
    args.head_dim = static_cast<int>(uq.d[3]);
    args.heads = static_cast<int>(uq.d[2]);
    args.kv_heads = static_cast<int>(inputs[kVk].dims.d[2]);
    args.batch = rows_of(inputs[kStatic]) - 1;
    args.rt_rows = rows_of(inputs[kRtVisible]);
    args.candidate_rows = rows_of(inputs[kCandidateVisible]);
    args.static_rows = rows_of(inputs[kVk]) - args.rt_rows - args.candidate_rows;
    args.first_query_segment = first_segment;
    return args;
  }
  static mtgr_rows column(const void* data, const Dims& dims, int index, int64_t first_row) {
    const int64_t width = dims.d[2] * dims.d[3], row = dims.d[1] * width;
    return {static_cast<const uint16_t*>(data) + first_row * row + index * width, row, dims.d[3]};
  }
};

// group_layer_norm(x, group, weight, bias); gated_group_layer_norm(x, uq, group, weight, bias),
// whose gate is column 0 of uq [T, 4 or 2, ...].
class GroupLayerNorm final : public Op {
 public:
  explicit GroupLayerNorm(bool gated) : gated_(gated) {}
  const char* name() const override {
    return gated_ ? "gated_group_layer_norm" : "group_layer_norm";
  }
  std::vector<Field> fields() const override { return {{"eps", PluginFieldType::kFLOAT32, {}}}; }
  int inputs() const override { return 4 + gated_; }
  bool accepts(int position, const DataType* types) const override {
    if (position == 0) return is_half(types[0]) || types[0] == DataType::kFLOAT;
    if (position == group()) return types[position] == DataType::kINT32;
    if (position == weight())
      return types[position] == types[0] || types[position] == DataType::kFLOAT;
    if (position == weight() + 1) return types[position] == types[weight()];
    return types[position] == types[0];
  }
  DataType output_type(const DataType* types) const override { return types[0]; }
  int launch(const std::vector<Field>& fields, const Launch& l) const override {
    mtgr_norm_args args{};
    args.dtype = dtype_of(l.inputs[0].type);
    args.parameter_dtype = dtype_of(l.inputs[weight()].type);
    args.rows = rows_of(l.inputs[0]);
    args.dim = width(l.inputs[0].dims, 1);
    args.groups = rows_of(l.inputs[weight()]);
    args.eps = fields[0].real;
    args.x = l.data[0];
    args.x_stride = args.dim;
    args.gate = gated_ ? l.data[1] : nullptr;
    args.gate_stride = gated_ ? width(l.inputs[1].dims, 1) : 0;
    args.group = static_cast<const int32_t*>(l.data[group()]);
    args.weight = l.data[weight()];
    args.bias = l.data[weight() + 1];
    args.out = l.output;
    return mtgr_group_layer_norm(&args, l.stream);
  }

 private:
  int group() const { return 1 + gated_; }
  int weight() const { return 2 + gated_; }
  static int width(const Dims& dims, int from) {
    int64_t product = 1;
    for (int i = from; i < dims.nbDims; ++i) product *= dims.d[i];
    return static_cast<int>(product);
  }

  const bool gated_;
};

// id_lookup(ids, keys, rows).
class IdLookup final : public Op {
 public:
  const char* name() const override { return "id_lookup"; }
  std::vector<Field> fields() const override {
    return {{"max_probe", PluginFieldType::kINT32, {}}};
  }
  int inputs() const override { return 3; }
  bool accepts(int position, const DataType* types) const override {
    return types[position] == (position < 2 ? DataType::kINT64 : DataType::kINT32);
  }
  DataType output_type(const DataType*) const override { return DataType::kINT32; }
  int launch(const std::vector<Field>& fields, const Launch& l) const override {
    return mtgr_id_lookup(static_cast<const int64_t*>(l.data[0]), rows_of(l.inputs[0]),
                          static_cast<const int64_t*>(l.data[1]),
                          static_cast<const int32_t*>(l.data[2]), rows_of(l.inputs[1]),
                          fields[0].integer, static_cast<int32_t*>(l.output), l.stream);
  }
};

}  // namespace

const std::vector<const Op*>& all_ops() {
  static const Attention attention;
  static const GroupLayerNorm norm(false), gated_norm(true);
  static const IdLookup lookup;
  static const std::vector<const Op*> ops{&attention, &norm, &gated_norm, &lookup};
  return ops;
}

}  // namespace mtgr::trt
