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
#define MTGR_ABI_VERSION 6

typedef enum { MTGR_FLOAT32 = 0, MTGR_FLOAT16 = 1, MTGR_BFLOAT16 = 2 } mtgr_dtype;

typedef enum {
  MTGR_OK = 0,
  MTGR_INVALID_ARGUMENT = 1, /* the caller's fault */
  MTGR_CUDA_ERROR = 2        /* the driver refused a launch */
} mtgr_status;

typedef struct CUstream_st* mtgr_stream;   /* cudaStream_t */
typedef struct CUgraphExec_st* mtgr_graph; /* cudaGraphExec_t */

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
 * or x[t] * gate[t] if gate is given; statistics in fp32. gate rows may be strided. */
typedef struct {
  int32_t dtype;           /* of x, gate and out */
  int32_t parameter_dtype; /* of weight and bias: dtype or MTGR_FLOAT32 */
  int32_t rows;
  int32_t dim; /* a multiple of 8, at most 8192 */
  int32_t groups;
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

/* What a launch of products makes of y = x W^T + bias. */
typedef enum {
  MTGR_LINEAR_STORE = 0,
  MTGR_LINEAR_SILU = 1,    /* silu(y) */
  MTGR_LINEAR_RESIDUAL = 2 /* y + residual */
} mtgr_linear_epilogue;

/* One product; row i of the result goes to row out_rows[i] of out, or i. All sums are in fp32 and
 * rounded once. Addresses and row strides are multiples of 16 bytes. */
typedef struct {
  int32_t rows;
  int32_t columns;         /* of out; a multiple of 16 */
  int32_t depth;           /* columns of x and of the weight; a multiple of 8 */
  int32_t out_dtype;       /* that of x, or MTGR_FLOAT32 */
  const void* x;           /* [rows, depth] */
  const void* weight;      /* [columns, depth], contiguous */
  const float* bias;       /* [columns], or null */
  const void* residual;    /* [rows, columns] in x's dtype; null without its epilogue */
  const int32_t* out_rows; /* [rows], or null */
  void* out;
  int64_t x_stride; /* elements from row to row */
  int64_t residual_stride;
  int64_t out_stride;
} mtgr_linear_args;

/* Up to 4 products in one launch, none of which reads what another writes. fp16 or bf16; compute
 * capability 9.0. Weights and biases must have been written before
 * the stream's last kernel started. */
MTGR_API int mtgr_linear(int32_t dtype, int32_t epilogue, const mtgr_linear_args* problems,
                         int32_t count, mtgr_stream stream);

/* An affine norm as of mtgr_norm_args; its parameters are in the type of what it norms. */
typedef struct {
  const void* weight; /* [groups, dim] */
  const void* bias;
  float eps;
} mtgr_norm;

/* The end of a layer: out = norm(attended * gate) weight^T + bias + residual, and, if `next` is
 * given, next = norm(out), with which the next layer begins. Sums and statistics in fp32, the first
 * norm's result rounded before the product. Compute capability 9.0. All inputs but `attended` must
 * have been written before the stream's last kernel started. */
typedef struct {
  int32_t dtype; /* of all but bias */
  int32_t rows;
  int32_t dim;             /* 512 or 768 */
  const void* attended;    /* [rows, dim] */
  const void* gate;        /* [rows, dim] */
  const void* residual;    /* [rows, dim] */
  int64_t attended_stride; /* elements from row to row */
  int64_t gate_stride;
  int64_t residual_stride;
  const int32_t* group; /* [rows], each in [0, groups) */
  const void* weight;   /* [dim, dim], contiguous */
  const float* bias;    /* [dim] */
  mtgr_norm gated_norm;
  mtgr_norm next_norm;
  void* out;  /* [rows, dim], contiguous */
  void* next; /* the same, or null */
} mtgr_layer_tail_args;

MTGR_API int mtgr_layer_tail(const mtgr_layer_tail_args* args, mtgr_stream stream);

/* rows_out[i] = the row of ids[i] in a frozen open-addressing table, 0 if absent.
 * capacity is a power of two; a slot whose row is 0 is empty; at most max_probe slots are read. */
MTGR_API int mtgr_id_lookup(const int64_t* ids, int32_t count, const int64_t* keys,
                            const int32_t* rows, int64_t capacity, int32_t max_probe,
                            int32_t* rows_out, mtgr_stream stream);

/* Features of a packed batch -> 16-bit rows for a product, and the frame of its tokens. What of it
 * never changes (vectors, numbers, tables) lies in device memory, written once. */
typedef enum {
  MTGR_SOURCE_INT64 = 0,
  MTGR_SOURCE_INT32 = 1,
  MTGR_SOURCE_UINT8 = 2,
  MTGR_SOURCE_FLOAT32 = 3,
  MTGR_SOURCE_FLOAT16 = 4
} mtgr_source_dtype;

/* One array of the batch, row-major. */
typedef struct {
  const void* data;
  int32_t dtype;      /* mtgr_source_dtype */
  int32_t width;      /* values a row */
  int32_t of_request; /* 1: a row a request, read by all rows of the request; 0: a row of its own */
} mtgr_source;

/* Vectors by id through a frozen open-addressing table (see mtgr_id_lookup), or by the value itself
 * where keys is null; then one of `count` or more reads row 0. */
typedef struct {
  const int64_t* keys;
  const int32_t* rows;
  const void* values;   /* [count, width], in the type of the output */
  int32_t log_capacity; /* of keys and rows */
  int32_t max_probe;
  int32_t count;
  int32_t width; /* a multiple of 8 */
} mtgr_table;

typedef enum {
  MTGR_NUMBER_PLAIN = 0,   /* (x - shift) * scale */
  MTGR_NUMBER_LOG = 1,     /* (sign(x) log(1 + |x|) - shift) * scale */
  MTGR_NUMBER_BIN = 2,     /* (x - shift) * scale, clamped to [0, 1] */
  MTGR_NUMBER_CONSTANT = 3 /* shift */
} mtgr_number_kind;

typedef struct {
  int32_t kind;   /* mtgr_number_kind */
  int32_t column; /* of the vector's source */
  float shift;
  float scale;
} mtgr_number;

/* Eight columns of the output: a part of one embedding, or eight numbers of one source. */
typedef struct {
  int32_t source; /* index of mtgr_features.sources */
  int32_t table;  /* index of mtgr_features.tables; -1: numbers */
  int32_t column; /* of the source: the id's */
  int32_t first;  /* the embedding's first column, or the index of the first of eight numbers */
  int32_t token;  /* the only token of its row that has it, the others' being 0; -1: all have it */
} mtgr_vector;

#define MTGR_SOURCES 6

/* One segment: out[row] = its vectors one after the other. Each source row makes `tokens` rows. */
typedef struct {
  int32_t rows; /* of out */
  int32_t tokens;
  int32_t vectors; /* columns of out / 8 */
  int32_t batch;
  const mtgr_vector* vector;  /* [vectors], and so on: device memory */
  const mtgr_number* numbers; /* address a multiple of 16 bytes */
  const mtgr_table* tables;
  const int32_t* offsets; /* [batch + 1]: the requests' rows, for sources of requests */
  mtgr_source sources[MTGR_SOURCES];
  void* out; /* [rows, 8 vectors], contiguous */
} mtgr_features;

/* Where each token of the batch stands. Tokens are made by segment: all profile tokens, then all
 * lifelong ones; among the static rows each request's profile comes before its sequence. */
typedef struct {
  int32_t batch;
  int32_t profile_tokens;          /* of one request */
  int32_t rows[3];                 /* lifelong, real-time, candidate; padding rows included */
  int32_t groups[4];               /* of profile, lifelong, real-time, candidate */
  int32_t visible_dtype;           /* MTGR_SOURCE_UINT8 or MTGR_SOURCE_INT32 */
  const int32_t* lifelong_offsets; /* [batch + 1] */
  const void* rt_visible;          /* [rows[1]] */
  const void* candidate_visible;   /* [rows[2]] */
  int32_t* static_offsets;         /* out [batch + 1] */
  int32_t* static_rows;           /* out [batch * profile_tokens + rows[0]]: a token's static row */
  int32_t* group;                 /* out [static, then rows[1], then rows[2]] */
  int32_t* rt_visible_out;        /* out [rows[1]] */
  int32_t* candidate_visible_out; /* out [rows[2]] */
} mtgr_frame;

/* Up to 4 segments and the frame in one launch. */
MTGR_API int mtgr_tokens(int32_t dtype, const mtgr_features* segments, int32_t count,
                         const mtgr_frame* frame, mtgr_stream stream);

/* out[task][row] = sigmoid(hidden[row][task] . weight[task] + bias[task]), all in fp32. */
typedef struct {
  int32_t rows;
  int32_t tasks;
  int32_t width;       /* of one task's hidden layer */
  const float* hidden; /* [rows, tasks, width] */
  const float* weight; /* [tasks, width] */
  const float* bias;   /* [tasks] */
  float* out;          /* [tasks, rows] */
} mtgr_scores_args;

MTGR_API int mtgr_task_scores(const mtgr_scores_args* args, mtgr_stream stream);

/* What the rows of a packed request's array are. A profile and a context have one each. */
typedef enum {
  MTGR_REQUEST = 0,
  MTGR_LIFELONG = 1,
  MTGR_REALTIME = 2,
  MTGR_CANDIDATE = 3,
  MTGR_SEGMENTS = 4
} mtgr_segment;

typedef enum {
  MTGR_VALUES = 0,
  MTGR_RT_VISIBLE = 1,         /* uint8 or int32: of row i, i at most */
  MTGR_CANDIDATE_VISIBLE = 2,  /* the same: the request's real-time rows at most */
  MTGR_CONTEXT_CANDIDATES = 3, /* int32: the request's candidates */
  MTGR_OFFSETS = 4             /* int32 [0, rows]; of the batch [requests + 1] */
} mtgr_content;

/* An array of a packed request, and of a bucket. */
typedef struct {
  int32_t rows;    /* mtgr_segment; of offsets, the segment that they count */
  int32_t content; /* mtgr_content */
  int64_t row_bytes;
  int64_t place; /* bytes from the bucket's beginning; -1: it has no such array */
} mtgr_packed_array;

/* A request as it came: int32 [lifelong, realtime, candidates, unused], then its arrays one after
 * the other, each padded to 16 bytes. */
typedef struct {
  const void* data;
  int64_t bytes;
} mtgr_packed;

/* On the host: copies `batch` requests' arrays, `count` of them in this order, into a bucket of
 * `capacity` rows by segment. The one call that reads contents: MTGR_INVALID_ARGUMENT, without a
 * message, where any of a request contradicts its head or does not fit; the bucket then holds part
 * of the batch. */
MTGR_API int mtgr_stage(const mtgr_packed_array* arrays, int32_t count, const mtgr_packed* requests,
                        int32_t batch, const int32_t* capacity, void* bucket);

/* Runs a captured graph on the stream, and returns once it has run. */
MTGR_API int mtgr_replay(mtgr_graph graph, mtgr_stream stream);

#ifdef __cplusplus
}
#endif
#endif
