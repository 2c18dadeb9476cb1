// The unit of work of the Hopper kernel, and the tiles of a request.
#pragma once

#include "problem.cuh"

namespace mtgr::hopper {

constexpr int kTileM = 128;
constexpr int kTileN = 64;
constexpr int kTileCost = 3;  // in units: loading queries and storing results
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

}  // namespace mtgr::hopper
