// Which part of the work each block of the Hopper kernel does.
//
// The unit of work is one tile of 128 query rows of one head against 64 keys. With few tiles, every
// tile is split evenly among as many blocks as there are for it. With many, all units form a line
// (plus kTileCost per tile, for loading queries and storing results) that is cut into equal
// stretches ("stream-K"), so that all multiprocessors finish together whatever the batch. A block
// takes one stretch, or, of a long line, one in each of several rounds: the keys in use at one time
// then fit the L2 cache.
//
// A tile shared by several stretches has parts, and partial sums to add. The adding is shared as
// well, by the "owners": those parts that are the last work of their stretch. So a block waits only
// at the end of a stretch, and only for the first work of the stretches that follow it on the line.
#pragma once

#include "problem.cuh"

namespace mtgr::hopper {

constexpr int kTileM = 128;
constexpr int kTileN = 64;
constexpr int kTileCost = 3;       // in units
constexpr int kMinStretch = 4;     // units a block: less is not worth a partial sum
constexpr int kMaxParts = 8;       // of an evenly split tile
constexpr int kRoundStretch = 64;  // units a block and round, about
constexpr int kMaxRounds = 4;      // bounds the memory for partial sums

// Whether each tile gets blocks of its own.
__host__ __device__ constexpr bool few_tiles(int tiles, int blocks) { return 2 * tiles <= blocks; }

// The units [unit_begin, unit_end) of one tile: first static keys, then real-time keys, then
// (candidates) a self unit for each 64 query rows.
struct Work {
  int rows;  // valid query rows; 0 ends the list
  int head;
  int segment;
  int query_row;    // row of q and out
  int segment_row;  // the same row within its segment
  int request_row;  // the same row within its request
  int static_row, static_keys;
  int rt_row, rt_keys;
  int unit_begin, unit_end;
  int first_part;  // stretch of the tile's first part; the others follow
  int part;
  int parts;
  int owners;  // the first ones of the parts

  __device__ int static_units() const { return ceil_div(static_keys, kTileN); }
  __device__ int ranged_units() const { return static_units() + ceil_div(rt_keys, kTileN); }
  __device__ int units() const {
    return ranged_units() + (segment == kCandidate ? ceil_div(rows, kTileN) : 0);
  }
};

// The tiles of one head of one request: those of the first query segment, then of the next.
struct Request {
  Range rows[kSegments];
  int first_segment;

  __device__ Request(const Problem& p, int request) : first_segment(p.first_query_segment) {
#pragma unroll
    for (int s = 0; s < kSegments; ++s) rows[s] = request_rows(p, s, request);
  }
  __device__ int tiles(int segment) const {
    return segment < first_segment ? 0 : ceil_div(rows[segment].size(), kTileM);
  }
  __device__ int tiles() const { return tiles(kStatic) + tiles(kRealtime) + tiles(kCandidate); }

  // Everything about a tile but its units and parts.
  __device__ Work tile(const Problem& p, int head, int index) const {
    int segment = kStatic;
    if (index >= tiles(kStatic)) index -= tiles(kStatic), segment = kRealtime;
    if (segment == kRealtime && index >= tiles(kRealtime))
      index -= tiles(kRealtime), segment = kCandidate;
    const Range queries = segment == kStatic     ? rows[kStatic]
                          : segment == kRealtime ? rows[kRealtime]
                                                 : rows[kCandidate];
    const int first = index * kTileM, recent = rows[kRealtime].size();
    Work work{};
    work.rows = min(kTileM, queries.size() - first);
    work.head = head;
    work.segment = segment;
    work.query_row = p.query_base(segment) + queries.begin + first;
    work.segment_row = queries.begin + first;
    work.request_row = first;
    work.static_row = rows[kStatic].begin;
    work.static_keys = rows[kStatic].size();
    work.rt_row = rows[kRealtime].begin;
    work.rt_keys = segment == kStatic     ? 0
                   : segment == kRealtime ? min(recent, first + kTileM)
                                          : recent;
    return work;
  }
};

// Units and tile costs of one head.
__device__ inline int head_cost(const Problem& p, const Request& request) {
  const int fixed = ceil_div(request.rows[kStatic].size(), kTileN) + kTileCost;
  int sum = request.tiles(kStatic) * fixed +
            request.tiles(kCandidate) * (fixed + ceil_div(request.rows[kRealtime].size(), kTileN)) +
            ceil_div(request.rows[kCandidate].size(), kTileN);
  for (int t = 0; t < request.tiles(kRealtime); ++t)
    sum += request.tile(p, 0, request.tiles(kStatic) + t).units() + kTileCost;
  return sum;
}

// Few tiles: an equal share of one of them.
template <class Emit>
__device__ void emit_share(const Problem& p, int block, int shares, Emit emit) {
  int position = block / shares;  // of the tile
  const int b =
      find_stretch(p.batch, position, [&](int i) { return p.heads * Request(p, i).tiles(); });
  if (b == p.batch) return;
  const Request request(p, b);
  const int tiles = request.tiles();
  Work work = request.tile(p, position / tiles, position % tiles);
  const int part = block % shares, all = work.units();
  work.first_part = block - part;
  work.part = part;
  work.parts = work.owners = min(shares, all);
  if (part >= work.parts) return;
  work.unit_begin = all * part / work.parts;
  work.unit_end = all * (part + 1) / work.parts;
  emit(work);
}

// Many tiles: the index-th stretch of a line of `total` units and tile costs.
template <class Emit>
__device__ void emit_stretch(const Problem& p, int index, int stretch, int total, Emit emit) {
  const int begin = index * stretch, end = min(begin + stretch, total);
  if (begin >= end) return;
  int position = begin;
  int b =
      find_stretch(p.batch, position, [&](int i) { return p.heads * head_cost(p, Request(p, i)); });
  for (int start = begin - position; start < end; ++b) {
    const Request request(p, b);
    const int cost = head_cost(p, request);
    if (cost == 0) continue;
    int head = position / cost;
    position %= cost;
    int tile = find_stretch(request.tiles(), position,
                            [&](int i) { return request.tile(p, 0, i).units() + kTileCost; });
    start = max(start, begin - position);
    position = 0;
    for (; head < p.heads && start < end; ++head, tile = 0)
      for (; tile < request.tiles() && start < end; ++tile) {
        Work work = request.tile(p, head, tile);
        const int first_unit = start + kTileCost;
        start = first_unit + work.units();
        work.unit_begin = max(begin - first_unit, 0);
        work.unit_end = min(end - first_unit, work.units());
        const int last_part = (start - 1) / stretch;
        work.first_part = first_unit / stretch;
        work.part = index - work.first_part;
        work.parts = last_part - work.first_part + 1;
        work.owners = work.parts - (start < min((last_part + 1) * stretch, total));
        if (work.unit_begin < work.unit_end) emit(work);
      }
  }
}

// Warp-collective: hands all work of a block to emit(Work), in order.
template <class Emit>
__device__ void for_each_work(const Problem& p, int block, int blocks, Emit emit) {
  int tiles = 0, total = 0;
  for (int b = threadIdx.x % 32; b < p.batch; b += 32) {
    const Request request(p, b);
    tiles += p.heads * request.tiles();
    total += p.heads * head_cost(p, request);
  }
  tiles = __reduce_add_sync(~0u, tiles);
  total = __reduce_add_sync(~0u, total);
  if (tiles == 0) return;
  if (few_tiles(tiles, blocks)) return emit_share(p, block, min(blocks / tiles, kMaxParts), emit);
  const int rounds = min(ceil_div(total, blocks * kRoundStretch), kMaxRounds);
  const int stretch = max(ceil_div(total, blocks * rounds), kMinStretch);
  for (int round = 0; round < rounds; ++round)
    emit_stretch(p, round * blocks + block, stretch, total, emit);
}

}  // namespace mtgr::hopper
