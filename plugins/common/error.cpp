#include "error.h"

#include <cstdarg>
#include <cstdint>
#include <cstdio>

namespace {
thread_local char last_error[512] = "";
}

namespace mtgr {

int invalid(const char* format, ...) {
  va_list list;
  va_start(list, format);
  std::vsnprintf(last_error, sizeof last_error, format, list);
  va_end(list);
  return MTGR_INVALID_ARGUMENT;
}

int cuda_status(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return MTGR_OK;
  std::snprintf(last_error, sizeof last_error, "%s: %s", what, cudaGetErrorString(error));
  return MTGR_CUDA_ERROR;
}

bool aligned16(const void* data, int size, long long stride_a, long long stride_b) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride_a * size % 16 == 0 &&
         stride_b * size % 16 == 0;
}

}  // namespace mtgr

extern "C" int mtgr_abi_version(void) { return MTGR_ABI_VERSION; }
extern "C" int mtgr_capture_id(mtgr_stream stream, uint64_t* id) {
  cudaStreamCaptureStatus status;
  unsigned long long capture = 0;
  const cudaError_t error = cudaStreamGetCaptureInfo(stream, &status, &capture);
  *id = status == cudaStreamCaptureStatusActive ? capture : 0;
  return mtgr::cuda_status(error, "stream");
}
extern "C" const char* mtgr_last_error(void) { return last_error; }
