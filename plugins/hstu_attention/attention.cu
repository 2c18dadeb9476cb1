// The C launcher: checks what the host can see, then picks the kernel.
#include "error.h"
#include "generic.h"
#include "hopper.h"
#include "mtgr_ops.h"
#include "problem.cuh"

namespace mtgr {
namespace {

int check_view(const char* name, const mtgr_rows& view, int rows) {
  if (rows == 0) return MTGR_OK;
  if (view.data == nullptr) return invalid("%s: null pointer for %d rows", name, rows);
  if (!aligned16(view.data, 2, view.row_stride, view.head_stride))
    return invalid("%s: address and strides must be multiples of 16 bytes", name);
  return MTGR_OK;
}

int check(const mtgr_attention_args& a) {
  if (a.dtype != MTGR_FLOAT16 && a.dtype != MTGR_BFLOAT16)
    return invalid("dtype: %d, expected float16 or bfloat16", a.dtype);
  if (a.head_dim != 32 && a.head_dim != 64 && a.head_dim != 128 && a.head_dim != 256)
    return invalid("head_dim: %d, expected 32, 64, 128 or 256", a.head_dim);
  if (a.heads < 1 || a.heads > 65535) return invalid("heads: %d, expected 1 to 65535", a.heads);
  if (a.kv_heads < 1 || a.heads % a.kv_heads != 0)
    return invalid("kv_heads: %d does not divide heads %d", a.kv_heads, a.heads);
  if (a.batch < 1) return invalid("batch: %d, expected at least 1", a.batch);
  if (a.static_rows < 0 || a.rt_rows < 0 || a.candidate_rows < 0)
    return invalid("static_rows, rt_rows, candidate_rows: %d, %d, %d, expected none negative",
                   a.static_rows, a.rt_rows, a.candidate_rows);
  if (a.first_query_segment < 0 || a.first_query_segment > 2)
    return invalid("first_query_segment: %d, expected 0, 1 or 2", a.first_query_segment);
  if (!a.static_offsets || !a.rt_offsets || !a.candidate_offsets)
    return invalid("static_offsets, rt_offsets, candidate_offsets: null pointer");
  if (a.rt_rows > 0 && !a.rt_visible) return invalid("rt_visible: null pointer");
  if (a.candidate_rows > 0 && !a.candidate_visible)
    return invalid("candidate_visible: null pointer");
  const int recent = a.rt_rows + a.candidate_rows;
  const int queries = (a.first_query_segment == 0 ? a.static_rows : 0) +
                      (a.first_query_segment <= 1 ? a.rt_rows : 0) + a.candidate_rows;
  if (queries > 0 && (!a.out || !aligned16(a.out, 2, 0)))
    return invalid("out: expected a pointer that is a multiple of 16 bytes");
  if (int status = check_view("q", a.q, queries)) return status;
  if (int status = check_view("static_k", a.static_k, a.static_rows)) return status;
  if (int status = check_view("static_v", a.static_v, a.static_rows)) return status;
  if (int status = check_view("recent_k", a.recent_k, recent)) return status;
  return check_view("recent_v", a.recent_v, recent);
}

Problem problem_of(const mtgr_attention_args& a) {
  return {a.batch,
          a.heads,
          a.kv_heads,
          {a.static_rows, a.rt_rows, a.candidate_rows},
          a.first_query_segment,
          a.alpha / 2,
          a.inv_n,
          a.q,
          a.static_k,
          a.static_v,
          a.recent_k,
          a.recent_v,
          a.out,
          {a.static_offsets, a.rt_offsets, a.candidate_offsets},
          a.rt_visible,
          a.candidate_visible};
}

// Blocks of the Hopper kernel on the current device, 0 where the generic kernel runs.
int hopper_blocks(const mtgr_attention_args& args, int& blocks) {
  blocks = 0;
  int device = 0, major = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return cuda_status(error, "device properties");
  if (major == 9 && args.head_dim == 256) blocks = processors;
  return MTGR_OK;
}

}  // namespace
}  // namespace mtgr

using namespace mtgr;

extern "C" int mtgr_attention_memory_needed(const mtgr_attention_args* args,
                                            mtgr_attention_memory* memory) {
  int blocks = 0;
  if (int status = hopper_blocks(*args, blocks)) return status;
  *memory = {hopper_partial_bytes(blocks), hopper_counter_bytes(blocks)};
  return MTGR_OK;
}

extern "C" int mtgr_attention(const mtgr_attention_args* args, void* partials, void* counters,
                              mtgr_stream stream) {
  if (int status = check(*args)) return status;
  int blocks = 0;
  if (int status = hopper_blocks(*args, blocks)) return status;
  const Problem problem = problem_of(*args);
  const auto dtype = static_cast<mtgr_dtype>(args->dtype);
  if (blocks == 0)
    return cuda_status(launch_generic(problem, dtype, args->head_dim, stream), "hstu_attention");
  if (!partials || !aligned16(partials, 1, 0))
    return invalid("partials: expected a pointer that is a multiple of 16 bytes");
  if (!counters) return invalid("counters: null pointer");
  return cuda_status(launch_hopper(problem, dtype, blocks, partials, counters, stream),
                     "hstu_attention (sm_90a)");
}
