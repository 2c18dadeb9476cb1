// The C launcher of a layer's end: checks what the host can see, and starts the kernel.
#include "encoder.h"
#include "error.h"
#include "kernel.cuh"

namespace mtgr::tail {
namespace {

template <class T, int kHeads>
cudaError_t start(const Launch& launch, cudaStream_t stream) {
  auto* kernel = layer_tail<T, kHeads>;
  constexpr int kBytes = sizeof(Shared<kHeads>);
  static_assert(kBytes <= 227 * 1024);
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  const unsigned blocks = ((launch.rows - 1) / kRows + 1) * kCluster;
  return mtgr::launch(kernel, {blocks, kThreads, kBytes, kCluster}, stream, launch);
}

template <class T>
cudaError_t start(int dim, const Launch& launch, cudaStream_t stream) {
  return dim == 512 ? start<T, 2>(launch, stream) : start<T, 3>(launch, stream);
}

cudaError_t start(const mtgr_layer_tail_args& a, cudaStream_t stream) {
  if (tensor_map_encoder() == nullptr) return cudaErrorNotSupported;
  const auto dtype = static_cast<mtgr_dtype>(a.dtype);
  Launch launch{};
  const int half_groups = a.dim / kCluster / 2 / kGroup;
  if (!encode_weight(launch.weight, dtype, a.weight, a.dim, a.dim, kVector, half_groups,
                     kVector / 2))
    return cudaErrorInvalidValue;
  launch.attended = a.attended;
  launch.gate = a.gate;
  launch.residual = a.residual;
  launch.attended_stride = a.attended_stride;
  launch.gate_stride = a.gate_stride;
  launch.residual_stride = a.residual_stride;
  launch.group = a.group;
  launch.bias = a.bias;
  launch.gated_norm = {a.gated_norm.weight, a.gated_norm.bias, a.gated_norm.eps};
  launch.next_norm = {a.next_norm.weight, a.next_norm.bias, a.next_norm.eps};
  launch.out = a.out;
  launch.next = a.next;
  launch.rows = a.rows;
  return dtype == MTGR_FLOAT16 ? start<__half>(a.dim, launch, stream)
                               : start<__nv_bfloat16>(a.dim, launch, stream);
}

int check(const mtgr_layer_tail_args& a) {
  if (a.dtype != MTGR_FLOAT16 && a.dtype != MTGR_BFLOAT16)
    return invalid("dtype: %d, expected float16 or bfloat16", a.dtype);
  if (a.dim != 512 && a.dim != 768)
    return invalid("attended: %d columns, expected 512 or 768", a.dim);
  if (a.rows < 0) return invalid("attended: %d rows", a.rows);
  if (a.rows == 0) return MTGR_OK;
  const struct {
    const char* name;
    const void* data;
    int64_t stride;
    bool needed;
  } rows[] = {{"attended", a.attended, a.attended_stride, true},
              {"gate", a.gate, a.gate_stride, true},
              {"residual", a.residual, a.residual_stride, true},
              {"weight", a.weight, 0, true},
              {"bias", a.bias, 0, true},
              {"out", a.out, 0, true},
              {"gated_norm.weight", a.gated_norm.weight, 0, true},
              {"gated_norm.bias", a.gated_norm.bias, 0, true},
              {"next", a.next, 0, false},
              {"next_norm.weight", a.next_norm.weight, 0, a.next != nullptr},
              {"next_norm.bias", a.next_norm.bias, 0, a.next != nullptr}};
  for (const auto& of : rows)
    if ((of.needed && !of.data) || !aligned16(of.data, 2, of.stride))
      return invalid("%s: expected an address and a row stride that are multiples of 16 bytes",
                     of.name);
  if (!a.group) return invalid("group: null pointer");
  return MTGR_OK;
}

}  // namespace
}  // namespace mtgr::tail

extern "C" int mtgr_layer_tail(const mtgr_layer_tail_args* args, mtgr_stream stream) {
  using namespace mtgr;
  if (int status = tail::check(*args)) return status;
  if (args->rows == 0) return MTGR_OK;
  int major = 0;
  if (const cudaError_t error = compute_capability(major); error != cudaSuccess)
    return cuda_status(error, "device properties");
  if (major != 9) return invalid("device: compute capability %d.x, expected 9.0", major);
  return cuda_status(tail::start(*args, stream), "layer_tail (sm_90a)");
}
