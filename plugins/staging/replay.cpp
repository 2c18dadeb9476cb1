// A captured graph, run: what is left to do once a batch is staged.
#include <cuda_runtime_api.h>

#include "error.h"
#include "mtgr_ops.h"

int mtgr_replay(mtgr_graph graph, mtgr_stream stream) {
  const cudaError_t launched = cudaGraphLaunch(graph, stream);
  return mtgr::cuda_status(launched == cudaSuccess ? cudaStreamSynchronize(stream) : launched,
                           "graph");
}
