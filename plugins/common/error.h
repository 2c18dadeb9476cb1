// How a launcher refuses: a status for the caller and a message that names the argument.
#pragma once

#include <cuda_runtime_api.h>

#include "mtgr_ops.h"

namespace mtgr {

// Records a printf-style message for mtgr_last_error() and returns MTGR_INVALID_ARGUMENT.
__attribute__((format(printf, 1, 2))) int invalid(const char* format, ...);

// MTGR_OK, or MTGR_CUDA_ERROR with `what` and CUDA's own words in the message.
int cuda_status(cudaError_t error, const char* what);

// True if the address and all strides (in elements of `size` bytes) are multiples of 16 bytes.
bool aligned16(const void* data, int size, long long stride_a, long long stride_b = 0);

}  // namespace mtgr
