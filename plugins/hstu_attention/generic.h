// The kernel for every supported head dimension on sm_80 and newer (mma.sync, cp.async).
#pragma once

#include <cuda_runtime_api.h>

#include "problem.cuh"

namespace mtgr {

cudaError_t launch_generic(const Problem& problem, mtgr_dtype dtype, int head_dim,
                           cudaStream_t stream);

}  // namespace mtgr
