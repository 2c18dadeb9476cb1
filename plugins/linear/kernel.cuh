// One persistent launch of up to four products: out = activation(x W^T + b) + residual, on sm_90a.
//
// A producer thread copies blocks of x and W through a ring of shared-memory stages, tile after
// tile; two consumer warpgroups multiply them in fp32 registers. They share each tile, or take
// turns at tiles: then one finishes its tile while the other keeps the matrix units busy. Bias,
// SiLU and residual are applied in registers, from where the result leaves.
#pragma once

#include "launch.cuh"
#include "output.cuh"
#include "place.cuh"

namespace mtgr::linear {

// Copies this block's part of a stage's rows of x to all blocks that share them.
template <int kTile>
__device__ void load_rows(Shared<kTile>& shared, const Place& at, int block, int stage,
                          const Member<kTile>& self) {
  using S = Shared<kTile>;
  unsigned char* to = shared.x[stage] + self.across * S::kLoadedRows * kRowBytes;
  if constexpr (S::kShape.across == 1)
    copy_rows(to, &at.problem.x, block * kDepth, at.row, &shared.full[stage]);
  else
    copy_rows_to_all(to, &at.problem.x, block * kDepth, at.row + self.across * S::kLoadedRows,
                     &shared.full[stage], self.of_row());
}

// The same of W. Those who share its columns load some pairs of each lane's vectors.
template <int kTile>
__device__ void load_weight(Shared<kTile>& shared, const Place& at, int block, int stage,
                            const Member<kTile>& self) {
  using S = Shared<kTile>;
  const int group = at.column / kGroup;
  arrive_expecting(&shared.full[stage], S::kStageBytes);
  if constexpr (S::kShape.down == 1)
    copy_weight(shared.weight[stage], &at.problem.weight, block * kDepth, group, 0,
                &shared.full[stage]);
  else
    copy_weight_to_all(shared.weight[stage] + self.down * S::kLoadedColumns * kRowBytes,
                       &at.problem.weight, block * kDepth, group, self.down * S::kPairs,
                       &shared.full[stage], self.of_column());
}

template <int kTile>
__device__ void produce(const Launch& launch, Shared<kTile>& shared, const Member<kTile>& self) {
  using S = Shared<kTile>;
  const int first = blockIdx.x / S::kCluster, step = gridDim.x / S::kCluster;

  // Weights are nobody's output: those of the first stages come while earlier kernels end.
  int ahead = 0;
  if (first < launch.units) {
    const Place at = Place::of<kTile>(launch, first, self);
    for (; ahead < S::kStages && ahead < at.problem.blocks_deep; ++ahead)
      load_weight<kTile>(shared, at, ahead, ahead, self);
  }
  wait_for_inputs();

  Position<S::kStages> next;
  for (int unit = first; unit < launch.units; unit += step) {
    const Place at = Place::of<kTile>(launch, unit, self);
    const int blocks_deep = at.problem.blocks_deep;
    for (int block = 0; block < blocks_deep; ++block, next.advance()) {
      if (ahead > 0) {
        --ahead;
      } else {
        wait(&shared.empty[next.stage], next.parity ^ 1);
        load_weight<kTile>(shared, at, block, next.stage, self);
      }
      load_rows<kTile>(shared, at, block, next.stage, self);
    }
  }
  // No block leaves while another may still arrive at its barriers.
  for (int i = 0; i < S::kStages; ++i, next.advance())
    wait(&shared.empty[next.stage], next.parity ^ 1);
}

template <class T, int kTile, Epilogue kEpilogue>
__device__ void consume(const Launch& launch, Shared<kTile>& shared, const Member<kTile>& self) {
  using S = Shared<kTile>;
  constexpr Tile kShape = kTiles[kTile];
  constexpr int kBlocks = kShape.blocks, kColumns = kShape.columns, kCluster = S::kCluster;
  const int warp = threadIdx.x / 32 - 4, lane = threadIdx.x % 32, consumer = warp / 4;
  const int first_row = kShape.turns ? 0 : consumer * kBlocks * 64;  // of the tile's
  // To all whose copies come here.
  const bool releases = (self.of_row() | self.of_column()) >> lane & 1;
  auto release = [&](int stage) {
    if (releases) arrive_at(&shared.empty[stage], lane);
  };

  Position<S::kStages> next;
  const int step = gridDim.x / kCluster;
  uint32_t turn_parity = consumer ^ 1;  // the first tile is the first consumer's, without waiting
  bool mine = consumer == 0;
  for (int unit = blockIdx.x / kCluster; unit < launch.units; unit += step, mine = !mine) {
    const Place at = Place::of<kTile>(launch, unit, self);
    const int blocks_deep = at.problem.blocks_deep;
    if (kShape.turns && !mine) {
      next.advance(blocks_deep);
      continue;
    }
    const Bias<kColumns, kEpilogue> bias(at);
    float c[kBlocks][kColumns / 2];
    int previous = 0;
    if constexpr (kShape.turns) {
      wait(&shared.turn[consumer], turn_parity);
      turn_parity ^= 1;
    }
    for (int block = 0; block < blocks_deep; ++block) {
      wait(&shared.full[next.stage], next.parity);
      const uint32_t x = descriptor(shared.x[next.stage] + first_row * kRowBytes, 0);
      const uint32_t weight = descriptor(shared.weight[next.stage], 0);
      products_begin();
#pragma unroll
      for (int i = 0; i < kDepth / 16; ++i)  // descriptors count 16 bytes
#pragma unroll
        for (int b = 0; b < kBlocks; ++b)
          product<T, kColumns>(c[b], x + i * 2 + b * (64 * kRowBytes / 16), weight + i * 2,
                               block + i);
      products_commit();
      if (kShape.turns && block + 1 == blocks_deep && lane == 0) arrive(&shared.turn[consumer ^ 1]);
      products_wait<1>();
      if (block > 0) release(previous);
      previous = next.stage;
      next.advance();
    }
    wait_for_inputs();
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int row = at.row + first_row + b * 64 + warp % 4 * 16;
      const Output<T, kTile, kEpilogue> output(at, row, lane);
      if (b == 0) {
        products_wait<0>();
        release(previous);
        bias.store(shared.bias[consumer]);
      }
      output.store(shared.bias[consumer], c[b]);
    }
  }
}

template <class T, int kTile, Epilogue kEpilogue>
__global__ void __launch_bounds__(128 * (1 + kConsumers), 1)
    linear(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(1024) unsigned char raw[];
  using S = Shared<kTile>;
  constexpr Tile kShape = kTiles[kTile];
  auto& shared = *reinterpret_cast<S*>(raw);
  release_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i],
                   (kShape.across + kShape.down - 1) * (kShape.turns ? 4 : kConsumers * 4));
    }
    for (int i = 0; i < kConsumers; ++i) barrier_init(&shared.turn[i], 4);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    for (int i = 0; i < launch.count; ++i) {
      prefetch_map(&launch.problems[i].x);
      prefetch_map(&launch.problems[i].weight);
    }
  }
  const Member<kTile> self(cluster_rank());
  cluster_barrier();  // nobody copies or arrives before barriers are there

  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(S::kLoading));
    if (threadIdx.x == 0) produce<kTile>(launch, shared, self);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(S::kMultiplying));
    consume<T, kTile, kEpilogue>(launch, shared, self);
  }
}

}  // namespace mtgr::linear
