// One ragged attention problem: its shape, its device memory, a call of the kernel, and the error
// against a dense float64 reference that shares no code with it.
#pragma once

#include <cstdint>
#include <vector>

#include "device.h"

namespace check {

struct AttentionShape {
  mtgr_dtype dtype = MTGR_BFLOAT16;
  int head_dim = 256, heads = 1, kv_heads = 1, first_query_segment = 0;
  std::vector<int> lengths[3];  // static, real-time, candidate rows of each request
  int padding[3] = {0, 0, 0};   // rows after the last request of each segment
  bool uniform = true;          // every candidate sees all real-time rows
};

class AttentionCase {
 public:
  AttentionCase(const AttentionShape& shape, uint64_t seed);

  void launch(cudaStream_t stream) const;

  // Relative Frobenius error of `out` against the reference; infinity if a padding row is not
  // zero or a value not finite.
  double error() const;

  // Runs once on poisoned output.
  void run();

  // Overwrites the rows of one request (or, with -1, the padding rows) of q, k and v with NaN.
  void poison(int request);

  std::vector<uint16_t> output() const { return out_.host(); }
  // Marks, for each query row, the request it belongs to; -1 for padding.
  std::vector<int> query_requests() const;
  double useful_flops() const;
  int row_elements() const { return shape_.heads * shape_.head_dim; }

 private:
  mtgr_attention_args args() const;
  mtgr_attention_memory memory() const;
  int rows(int segment) const;

  AttentionShape shape_;
  std::vector<int> offsets_[3], visible_[2];
  DeviceArray<uint16_t> uvqk_, out_;
  DeviceArray<int32_t> static_offsets_, rt_offsets_, candidate_offsets_, rt_visible_,
      candidate_visible_;
  DeviceArray<uint8_t> partials_, counters_;
};

}  // namespace check
