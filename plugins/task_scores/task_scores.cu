// The last step of every task's head: a dot product and the logistic function, one warp a score.
#include <cuda_runtime.h>

#include "error.h"
#include "launch.cuh"
#include "mtgr_ops.h"

namespace {

using namespace mtgr;

constexpr int kWarps = 8;  // a block

__global__ void __launch_bounds__(kWarps * 32) task_scores(const mtgr_scores_args a) {
  const int index = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = index / a.tasks, task = index % a.tasks;
  if (row >= a.rows) return;
  release_dependents();
  const float* weight = a.weight + int64_t{task} * a.width;
  const float* hidden = a.hidden + int64_t{index} * a.width;
  wait_for_inputs();
  float sum = 0;
  for (int i = lane; i < a.width; i += 32) sum += hidden[i] * weight[i];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane == 0) a.out[int64_t{task} * a.rows + row] = 1 / (1 + expf(-(sum + a.bias[task])));
}

}  // namespace

extern "C" int mtgr_task_scores(const mtgr_scores_args* args, mtgr_stream stream) {
  const mtgr_scores_args& a = *args;
  if (a.rows < 0 || a.tasks < 1 || a.width < 1)
    return invalid("hidden: [%d, %d, %d], expected some tasks and columns", a.rows, a.tasks,
                   a.width);
  if (a.rows == 0) return MTGR_OK;
  if (int64_t{a.rows} * a.tasks > INT32_MAX) return invalid("hidden: too many rows");
  if (!a.hidden || !a.weight || !a.bias || !a.out)
    return invalid("hidden, weight, bias, out: null pointer");
  const unsigned blocks = (unsigned(a.rows) * a.tasks + kWarps - 1) / kWarps;
  return cuda_status(mtgr::launch(task_scores, {blocks, kWarps * 32}, stream, a), "task_scores");
}
