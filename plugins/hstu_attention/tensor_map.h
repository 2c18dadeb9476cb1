// Tensor maps of the views that the Hopper kernel loads by bulk copies.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "problem.cuh"

namespace mtgr::hopper {

struct Maps {
  CUtensorMap q, static_k, static_v, recent_k, recent_v;
};

cudaError_t make_maps(const Problem& problem, mtgr_dtype dtype, Maps& maps);

}  // namespace mtgr::hopper
