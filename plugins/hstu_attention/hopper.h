// The kernel for head dimension 256 on sm_90a (wgmma, bulk tensor copies, warp specialization).
#pragma once

#include <cuda_runtime_api.h>

#include "problem.cuh"

namespace mtgr {

// Of a launch of `blocks` blocks, one a multiprocessor.
size_t hopper_partial_bytes(int blocks);
size_t hopper_counter_bytes(int blocks);

// `partials` and `counters` as in mtgr_ops.h.
cudaError_t launch_hopper(const Problem& problem, mtgr_dtype dtype, int blocks, void* partials,
                          void* counters, cudaStream_t stream);

}  // namespace mtgr
