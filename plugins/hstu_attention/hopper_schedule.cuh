// Which part of the work each block of the Hopper kernel does.
//
// The unit of work is one tile of 128 query rows of one head against 64 keys. With few tiles, every
// tile is split evenly among as many blocks as there are for it. Otherwise the units form a line
// (plus kTileCost per tile) that is cut into equal stretches ("stream-K"), so that all
// multiprocessors finish together whatever the batch. Of very many tiles, blocks first take whole
// ones in turn, which need no partial sums; one or two for each are left to the line.
//
// A tile shared by several stretches has parts, and partial sums to add. The adding is shared as
// well, by the "owners": those parts that are the last work of their stretch. So a block waits only
// at the end of a stretch, and only for the first work of the stretches that follow it on the line.
#pragma once

#include "hopper_work.cuh"

namespace mtgr::hopper {

constexpr int kMinStretch = 4;  // units a block: less is not worth a partial sum
constexpr int kMaxParts = 8;    // of an evenly split tile
constexpr int kManyTiles = 4;   // a block: of fewer, some blocks would get the longer ones

// Whether each tile gets blocks of its own.
__host__ __device__ constexpr bool few_tiles(int tiles, int blocks) { return 2 * tiles <= blocks; }

// A tile by its number among all: request by request, head by head.
struct TilePlace {
  int request, head, tile;
  // Warp-collective.
  __device__ TilePlace(const Problem& p, int number) : tile(number) {
    request = find_stretch(p.batch, tile, [&](int i) { return p.heads * Request(p, i).all_tiles; });
    const int tiles = Request(p, request).all_tiles;
    head = tile / tiles;
    tile -= head * tiles;
  }
  // Warp-collective: units and tile costs of all tiles before this one.
  __device__ int cost_before(const Problem& p) const {
    int sum = 0;
#pragma unroll 1
    for (int b = threadIdx.x % 32; b <= request; b += 32)
      sum += Request(p, b).cost() * (b < request ? p.heads : head);
    const Request own(p, request);
#pragma unroll 1
    for (int i = threadIdx.x % 32; i < tile; i += 32) sum += own.units(i) + kTileCost;
    return __reduce_add_sync(~0u, sum);
  }
};

// The part of an evenly split tile that this block has; the other parts' blocks are neighbours.
template <class Emit>
__device__ void emit_part(const Problem& p, const Request& request, int head, int tile, int block,
                          int part, int parts, Emit emit) {
  Work work = request.work(p, head, tile);
  const int units = work.units();
  work.part = part;
  work.first_part = block - part;
  work.parts = work.owners = min(parts, units);
  if (part >= work.parts) return;
  work.unit_begin = units * part / work.parts;
  work.unit_end = units * (part + 1) / work.parts;
  emit(work);
}

// Few tiles of one request: each in as many parts as there are blocks for. Those of candidates,
// which have self units as well, get one more if blocks are left.
template <class Emit>
__device__ void emit_part_of_only(const Problem& p, const Request& only, int block, int blocks,
                                  Emit emit) {
  const int parts = min(blocks / (p.heads * only.all_tiles), kMaxParts);
  const int candidates = only.tiles[kCandidate], others = only.all_tiles - candidates;
  const int left = blocks - p.heads * only.all_tiles * parts;
  const int more = parts < kMaxParts && p.heads * candidates <= left;
  const int of_others = others * parts, of_head = of_others + candidates * (parts + more);
  const int head = block / of_head;
  if (head >= p.heads) return;
  const int at = block - head * of_head;
  const bool candidate = at >= of_others;
  const int from = candidate ? of_others : 0, own = parts + (candidate ? more : 0);
  const int tile = (at - from) / own;
  emit_part(p, only, head, tile + (candidate ? others : 0), block, at - from - tile * own, own,
            emit);
}

// Sums over all requests; and, as most batches have no more requests than a warp has lanes, the
// cost of each lane's, so that looking for one among them needs no second look at any.
struct Batch {
  int tiles = 0, cost = 0;
  int lane_cost = 0;

  // Warp-collective.
  __device__ explicit Batch(const Problem& p) {
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int b = lane; b < p.batch; b += 32) {
      const Request request(p, b);
      const int own = p.heads * request.cost();
      tiles += p.heads * request.all_tiles;
      cost += own;
      if (b == lane) lane_cost = own;
    }
    tiles = __reduce_add_sync(~0u, tiles);
    cost = __reduce_add_sync(~0u, cost);
  }
};

// A block's stretch of the line of all tiles from `first` on.
template <class Emit>
__device__ void emit_stretch(const Problem& p, const Batch& batch, int block, int blocks, int first,
                             Emit emit) {
  const int total = batch.cost;
  const int origin = first == 0 ? 0 : TilePlace(p, first).cost_before(p);
  const int stretch = max(ceil_div(total - origin, blocks), kMinStretch);
  const int begin = origin + block * stretch, end = min(begin + stretch, total);
  if (begin >= end) return;
  int position = begin;
  int b = find_stretch(p.batch, position, [&](int i) {
    return i < 32 ? batch.lane_cost : p.heads * Request(p, i).cost();
  });
#pragma unroll 1
  for (int start = begin - position; start < end; ++b) {
    const Request request(p, b);
    const int cost = request.cost();
    if (cost == 0) continue;
    int head = position / cost;
    position -= head * cost;
    int tile = find_stretch(request.all_tiles, position,
                            [&](int i) { return request.units(i) + kTileCost; });
    start = max(start, begin - position);
    position = 0;
#pragma unroll 1
    while (head < p.heads && start < end) {
      Work work = request.work(p, head, tile);
      const int units = work.units(), first_unit = start + kTileCost;
      start = first_unit + units;
      const int last_part = (start - 1 - origin) / stretch;
      work.unit_begin = max(begin - first_unit, 0);
      work.unit_end = min(end - first_unit, units);
      work.first_part = (first_unit - origin) / stretch;
      work.part = block - work.first_part;
      work.parts = last_part - work.first_part + 1;
      const bool goes_on = start < min(origin + (last_part + 1) * stretch, total);
      work.owners = work.parts - goes_on;
      if (work.unit_begin < work.unit_end) emit(work);
      if (++tile == request.all_tiles) tile = 0, ++head;
    }
  }
}

// Warp-collective: hands all work of a block to emit(Work), in order. Loops are not unrolled: a
// block's first work waits for the instructions as well, so that short code is faster.
template <class Emit>
__device__ void for_each_work(const Problem& p, int block, int blocks, Emit emit) {
  if (p.batch == 1) {  // the same as below, without looking for the request
    const Request only(p, 0);
    const int tiles = p.heads * only.all_tiles;
    if (tiles == 0) return;
    if (few_tiles(tiles, blocks)) return emit_part_of_only(p, only, block, blocks, emit);
  }
  const Batch batch(p);
  const int tiles = batch.tiles;
  if (tiles == 0) return;
  const bool few = few_tiles(tiles, blocks);
  const int shares = few ? min(blocks / tiles, kMaxParts) : 1;
  const bool very_many = tiles >= kManyTiles * blocks;
  const int whole = few ? tiles : very_many ? (tiles / blocks - 1) * blocks : 0;
#pragma unroll 1
  for (int number = block; number < whole * shares; number += blocks) {
    const TilePlace place(p, number / shares);
    emit_part(p, Request(p, place.request), place.head, place.tile, number, number % shares, shares,
              emit);
  }
  if (few) return;
  emit_stretch(p, batch, block, blocks, whole, emit);
}

}  // namespace mtgr::hopper
