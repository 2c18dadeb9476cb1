// Which part of the work each block of the Hopper kernel does.
//
// The unit of work is one tile of 128 query rows of one head against 64 keys. With few tiles, every
// tile is split evenly among blocks of its own, more of them for a tile of more units. With many,
// all units form a line (plus kTileCost per tile, for loading queries and storing results) that is
// cut into equal stretches ("stream-K"), so that all multiprocessors finish together whatever the
// batch. A block takes one stretch, or, of a long line, one in each of several rounds: the keys in
// use at one time then fit the L2 cache.
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

// Units of static keys, then of real-time keys.
__device__ inline int units_of(int static_keys, int rt_keys) {
  return ceil_div(static_keys, kTileN) + ceil_div(rt_keys, kTileN);
}

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
  __device__ int ranged_units() const { return units_of(static_keys, rt_keys); }
  __device__ int units() const {
    return ranged_units() + (segment == kCandidate ? ceil_div(rows, kTileN) : 0);
  }
};

// The tiles of one head of one request: those of the first query segment, then of the next.
struct Request {
  Range rows[kSegments];
  int tiles[kSegments], all_tiles = 0;

  __device__ Request(const Problem& p, int request) {
#pragma unroll
    for (int s = 0; s < kSegments; ++s) {
      rows[s] = request_rows(p, s, request);
      tiles[s] = s < p.first_query_segment ? 0 : ceil_div(rows[s].size(), kTileM);
      all_tiles += tiles[s];
    }
  }

  // Real-time keys of a tile of a segment.
  __device__ int rt_keys(int segment, int tile) const {
    const int recent = rows[kRealtime].size();
    return segment == kStatic     ? 0
           : segment == kRealtime ? min(recent, (tile + 1) * kTileM)
                                  : recent;
  }
  // Units of static and real-time keys of a tile.
  __device__ int ranged_units(int segment, int tile) const {
    return units_of(rows[kStatic].size(), rt_keys(segment, tile));
  }
  __device__ int self_units(int tile) const {
    return ceil_div(min(rows[kCandidate].size() - tile * kTileM, kTileM), kTileN);
  }
  // Units and tile costs of the head.
  __device__ int cost() const {
    int sum = all_tiles * kTileCost + tiles[kStatic] * ranged_units(kStatic, 0) +
              tiles[kCandidate] * ranged_units(kCandidate, 0) +
              ceil_div(rows[kCandidate].size(), kTileN);
#pragma unroll 1
    for (int t = 0; t < tiles[kRealtime]; ++t) sum += ranged_units(kRealtime, t);
    return sum;
  }

  // The segment of a tile; its index becomes relative to the segment's first.
  __device__ int segment(int& tile) const {
    int segment = kStatic;
    if (tile >= tiles[kStatic]) tile -= tiles[kStatic], segment = kRealtime;
    if (segment == kRealtime && tile >= tiles[kRealtime])
      tile -= tiles[kRealtime], segment = kCandidate;
    return segment;
  }
  __device__ int units(int tile) const {
    const int s = segment(tile);
    return ranged_units(s, tile) + (s == kCandidate ? self_units(tile) : 0);
  }
  // Everything about a tile but its units and parts.
  __device__ Work work(const Problem& p, int head, int tile) const {
    Work work{};
    work.segment = segment(tile);
    const Range queries = work.segment == kStatic     ? rows[kStatic]
                          : work.segment == kRealtime ? rows[kRealtime]
                                                      : rows[kCandidate];
    work.head = head;
    work.request_row = tile * kTileM;
    work.rows = min(kTileM, queries.size() - work.request_row);
    work.segment_row = queries.begin + work.request_row;
    work.query_row = p.query_base(work.segment) + work.segment_row;
    work.static_row = rows[kStatic].begin;
    work.static_keys = rows[kStatic].size();
    work.rt_row = rows[kRealtime].begin;
    work.rt_keys = rt_keys(work.segment, tile);
    return work;
  }
};

// How few tiles are split: into `shares` parts, or more where a part would exceed `stretch` units.
struct Split {
  int shares, stretch;
  __device__ int parts(int units) const {
    return min(min(max(ceil_div(units, stretch), shares), kMaxParts), units);
  }
  // Warp-collective: parts of one head.
  __device__ int parts(const Request& request) const {
    int sum = 0;
    for (int tile = threadIdx.x % 32; tile < request.all_tiles; tile += 32)
      sum += parts(request.units(tile));
    return __reduce_add_sync(~0u, sum);
  }
  // Warp-collective: blocks needed.
  __device__ int all_parts(const Problem& p) const {
    int sum = 0;
#pragma unroll 1
    for (int b = 0; b < p.batch; ++b) sum += p.heads * parts(Request(p, b));
    return sum;
  }
};

// Few tiles: an even part of one of them. Blocks that equal shares would leave idle go to the tiles
// with the most units, as long as that shortens the longest parts.
template <class Emit>
__device__ void emit_part(const Problem& p, int block, int blocks, int tiles, int most_units,
                          Emit emit) {
  Split split{min(blocks / tiles, kMaxParts), 0};
  split.stretch = ceil_div(most_units, split.shares);
  for (Split shorter = split; --shorter.stretch * kMaxParts >= most_units; split = shorter)
    if (shorter.all_parts(p) > blocks) break;

  int part = block;
#pragma unroll 1
  for (int b = 0; b < p.batch; ++b) {
    const Request request(p, b);
    const int parts = split.parts(request);
    if (part >= p.heads * parts) {
      part -= p.heads * parts;
      continue;
    }
    const int head = part / parts;
    part -= head * parts;
    const int tile = find_stretch(request.all_tiles, part,
                                  [&](int i) { return split.parts(request.units(i)); });
    Work work = request.work(p, head, tile);
    const int units = work.units();
    work.parts = work.owners = split.parts(units);
    work.part = part;
    work.first_part = block - part;
    work.unit_begin = units * part / work.parts;
    work.unit_end = units * (part + 1) / work.parts;
    return emit(work);
  }
}

// Warp-collective: hands all work of a block to emit(Work), in order. Loops are not unrolled: a
// block's first work waits for the instructions as well, so that short code is faster.
template <class Emit>
__device__ void for_each_work(const Problem& p, int block, int blocks, Emit emit) {
  int tiles = 0, total = 0, most_units = 0;  // of one tile
#pragma unroll 1
  for (int b = threadIdx.x % 32; b < p.batch; b += 32) {
    const Request request(p, b);
    tiles += p.heads * request.all_tiles;
    total += p.heads * request.cost();
    most_units = max(most_units, request.ranged_units(kCandidate, 0) + kTileM / kTileN);
  }
  tiles = __reduce_add_sync(~0u, tiles);
  total = __reduce_add_sync(~0u, total);
  if (tiles == 0) return;
  if (few_tiles(tiles, blocks))
    return emit_part(p, block, blocks, tiles, __reduce_max_sync(~0u, most_units), emit);

  // Many: in each round, a stretch of the line.
  const int rounds = min(ceil_div(total, blocks * kRoundStretch), kMaxRounds);
  const int stretch = max(ceil_div(total, blocks * rounds), kMinStretch);
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    const int index = round * blocks + block;
    const int begin = index * stretch, end = min(begin + stretch, total);
    if (begin >= end) return;
    int position = begin;
    int b = find_stretch(p.batch, position, [&](int i) { return p.heads * Request(p, i).cost(); });
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
        const int last_part = (start - 1) / stretch;
        work.unit_begin = max(begin - first_unit, 0);
        work.unit_end = min(end - first_unit, units);
        work.first_part = first_unit / stretch;
        work.part = index - work.first_part;
        work.parts = last_part - work.first_part + 1;
        work.owners = work.parts - (start < min((last_part + 1) * stretch, total));
        if (work.unit_begin < work.unit_end) emit(work);
        if (++tile == request.all_tiles) tile = 0, ++head;
      }
    }
  }
}

}  // namespace mtgr::hopper
