/* The plain C face of the kernels: no PyTorch, no TensorRT, no C++ types.
 *
 * Every launcher checks what the host can see (dtypes, dimensions, alignment, null pointers),
 * enqueues on `stream` and returns. It never allocates and never blocks, so it can be captured
 * into a graph. Contents of device arrays (offsets, visible lengths) are preconditions here; the
 * kernels clamp offsets to their segment so that a wrong one cannot reach foreign memory.
 *
 * Return value: MTGR_OK, or a status whose message, naming the argument, is mtgr_last_error().
 */
#ifndef MTGR_OPS_H_
#define MTGR_OPS_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MTGR_API __attribute__((visibility("default")))

/* Raised with every change of a signature or a struct below; the loaders compare it. */
#define MTGR_ABI_VERSION 2

typedef enum { MTGR_FLOAT32 = 0, MTGR_FLOAT16 = 1, MTGR_BFLOAT16 = 2 } mtgr_dtype;

typedef enum {
  MTGR_OK = 0,
  MTGR_INVALID_ARGUMENT = 1, /* the caller's fault */
  MTGR_CUDA_ERROR = 2        /* the driver refused a launch */
} mtgr_status;

typedef struct CUstream_st* mtgr_stream; /* cudaStream_t */

MTGR_API int mtgr_abi_version(void);

/* The message of this thread's last failed call; empty if none failed. */
MTGR_API const char* mtgr_last_error(void);

/* The identifier of the graph capture under way on the stream, 0 if none: launches captured by
 * different captures need counters of their own (below). */
MTGR_API int mtgr_capture_id(mtgr_stream stream, uint64_t* id);

/* A [rows, heads, head_dim] view. Strides count elements, the last dimension is contiguous;
 * `data` and both strides are multiples of 16 bytes. */
typedef struct {
  const void* data;
  int64_t row_stride;
  int64_t head_stride;
} mtgr_rows;

/* Masked HSTU attention over segment-major rows (static, real-time, candidate; ragged batch). */
typedef struct {
  int32_t dtype;    /* MTGR_FLOAT16 or MTGR_BFLOAT16 */
  int32_t head_dim; /* 32, 64, 128 or 256 */
  int32_t heads;
  int32_t kv_heads; /* divides heads */
  int32_t batch;
  int32_t static_rows; /* rows of each segment, padding rows included */
  int32_t rt_rows;
  int32_t candidate_rows;
  int32_t first_query_segment; /* 0 static, 1 real-time, 2 candidate */
  float alpha;
  float inv_n;
  mtgr_rows q;        /* rows of the segments >= first_query_segment, in order */
  mtgr_rows static_k; /* may live in memory of its own, such as a cache */
  mtgr_rows static_v;
  mtgr_rows recent_k; /* real-time rows, then candidate rows */
  mtgr_rows recent_v;
  void* out;                        /* [query rows, heads, head_dim], contiguous */
  const int32_t* static_offsets;    /* [batch + 1], each within its segment */
  const int32_t* rt_offsets;        /* [batch + 1] */
  const int32_t* candidate_offsets; /* [batch + 1] */
  const int32_t* rt_visible;        /* [rt_rows]: leading real-time rows that a row sees */
  const int32_t* candidate_visible; /* [candidate_rows] */
} mtgr_attention_args;

/* Device memory that a launch needs, in bytes. `partials` may hold anything. `counters` must be
 * zero before its first launch, is left zero by every launch, and must not be shared by launches
 * that can run at the same time. Both are 0 where the generic kernel runs. */
typedef struct {
  size_t partials;
  size_t counters;
} mtgr_attention_memory;

MTGR_API int mtgr_attention_memory_needed(const mtgr_attention_args* args,
                                          mtgr_attention_memory* memory);
MTGR_API int mtgr_attention(const mtgr_attention_args* args, void* partials, void* counters,
                            mtgr_stream stream);

/* out[t] = (z - mean(z)) / sqrt(var(z) + eps) * weight[group[t]] + bias[group[t]], where z = x[t],
 * or x[t] * gate[t] if gate is given, or x[t] * silu(gate[t]) if silu_gate is set too; statistics
 * in fp32. gate rows may be strided. */
typedef struct {
  int32_t dtype;           /* of x, gate and out */
  int32_t parameter_dtype; /* of weight and bias: dtype or MTGR_FLOAT32 */
  int32_t rows;
  int32_t dim; /* a multiple of 8, at most 8192 */
  int32_t groups;
  int32_t silu_gate; /* saves a pass over the u columns of a projection */
  float eps;
  const void* x;
  const void* gate; /* or null */
  int64_t x_stride; /* elements from row to row */
  int64_t gate_stride;
  const int32_t* group; /* [rows], each in [0, groups) */
  const void* weight;   /* [groups, dim] */
  const void* bias;
  void* out; /* [rows, dim], contiguous */
} mtgr_norm_args;

MTGR_API int mtgr_group_layer_norm(const mtgr_norm_args* args, mtgr_stream stream);

/* x = silu(x) in place, on rows of `columns` (a multiple of 8) elements. */
MTGR_API int mtgr_silu(int32_t dtype, void* x, int32_t rows, int32_t columns, int64_t row_stride,
                       mtgr_stream stream);

/* rows_out[i] = the row of ids[i] in a frozen open-addressing table, 0 if absent.
 * capacity is a power of two; a slot whose row is 0 is empty; at most max_probe slots are read. */
MTGR_API int mtgr_id_lookup(const int64_t* ids, int32_t count, const int64_t* keys,
                            const int32_t* rows, int64_t capacity, int32_t max_probe,
                            int32_t* rows_out, mtgr_stream stream);

#ifdef __cplusplus
}
#endif
#endif
