// Which part of the work each block of the Hopper kernel does.
//
// The unit of work is one tile of 128 query rows of one head against 64 keys. With few tiles, every
// tile is split evenly among as many blocks as there are for it. Otherwise the units form a line
// (plus kTileCost per tile, for loading queries and storing results) that is cut into equal
// stretches
// ("stream-K"), so that all multiprocessors finish together whatever the batch. Of very many tiles,
// blocks first take whole ones in turn, which need no partial sums; one or two for each are left to
// the line.
//
// A tile shared by several stretches has parts, and partial sums to add. The adding is shared as
// well, by the "owners": those parts that are the last work of their stretch. So a block waits only
// at the end of a stretch, and only for the first work of the stretches that follow it on the line.
#pragma once

#include "problem.cuh"

namespace mtgr::hopper {

constexpr int kTileM = 128;
constexpr int kTileN = 64;
constexpr int kTileCost = 3;    // in units
constexpr int kMinStretch = 4;  // units a block: less is not worth a partial sum
constexpr int kMaxParts = 8;    // of an evenly split tile
constexpr int kManyTiles = 4;   // a block: of fewer, some blocks would get the longer ones

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

// Share `number` of all shares, of the tile number / shares.
template <class Emit>
__device__ void emit_share(const Problem& p, const Request& request, int head, int tile, int number,
                           int shares, Emit emit) {
  Work work = request.work(p, head, tile);
  const int units = work.units();
  work.part = number % shares;
  work.first_part = number - work.part;
  work.parts = work.owners = min(shares, units);
  if (work.part >= work.parts) return;
  work.unit_begin = units * work.part / work.parts;
  work.unit_end = units * (work.part + 1) / work.parts;
  emit(work);
}

// A block's stretch of the line of all tiles from `first` on.
template <class Emit>
__device__ void emit_stretch(const Problem& p, int block, int blocks, int first, Emit emit) {
  int total = 0;
#pragma unroll 1
  for (int b = threadIdx.x % 32; b < p.batch; b += 32) total += p.heads * Request(p, b).cost();
  total = __reduce_add_sync(~0u, total);
  const int origin = first == 0 ? 0 : TilePlace(p, first).cost_before(p);
  const int stretch = max(ceil_div(total - origin, blocks), kMinStretch);
  const int begin = origin + block * stretch, end = min(begin + stretch, total);
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
    if (few_tiles(tiles, blocks)) {
      const int shares = min(blocks / tiles, kMaxParts), number = block / shares;
      const int head = number / only.all_tiles, tile = number - head * only.all_tiles;
      if (head < p.heads) emit_share(p, only, head, tile, block, shares, emit);
      return;
    }
  }
  int tiles = 0;
#pragma unroll 1
  for (int b = threadIdx.x % 32; b < p.batch; b += 32) tiles += p.heads * Request(p, b).all_tiles;
  tiles = __reduce_add_sync(~0u, tiles);
  if (tiles == 0) return;
  const bool few = few_tiles(tiles, blocks);
  const int shares = few ? min(blocks / tiles, kMaxParts) : 1;
  const bool very_many = tiles >= kManyTiles * blocks;
  const int whole = few ? tiles : very_many ? (tiles / blocks - 1) * blocks : 0;
#pragma unroll 1
  for (int number = block; number < whole * shares; number += blocks) {
    const TilePlace place(p, number / shares);
    emit_share(p, Request(p, place.request), place.head, place.tile, number, shares, emit);
  }
  if (few) return;
  emit_stretch(p, block, blocks, whole, emit);
}

}  // namespace mtgr::hopper
