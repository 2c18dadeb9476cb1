// Which part of the work each block of the Hopper kernel does.
//
// The work of a launch is a line of equal units: for every request, head and tile of 128 query
// rows, one unit per 64 keys, plus kTileCost for starting a tile. Every block takes an equal
// stretch of that line ("stream-K"), so 132 multiprocessors finish together whatever the batch.
// A tile cut by block boundaries has several parts, whose partial sums are added by the block that
// arrives last, in the order of the parts.
#pragma once

#include "problem.cuh"

namespace mtgr::hopper {

constexpr int kTileM = 128;
constexpr int kTileN = 64;
#ifndef MTGR_TILE_COST
#define MTGR_TILE_COST 1
#endif
constexpr int kTileCost = MTGR_TILE_COST;  // units that loading queries and storing results are worth
constexpr int kMinStretch = 4;

// The units [unit_begin, unit_end) of one tile. Units count static tiles, then real-time tiles,
// then (candidates) one self tile for each 64 query rows.
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
  int first_part, last_part;  // blocks that share this tile

  __device__ int static_units() const { return ceil_div(static_keys, kTileN); }
  __device__ int ranged_units() const { return static_units() + ceil_div(rt_keys, kTileN); }
};

// Counts of one request, and the cost of its tiles.
struct Request {
  Range rows[kSegments];

  __device__ Request(const Problem& p, int request) {
    for (int s = 0; s < kSegments; ++s) rows[s] = request_rows(p, s, request);
  }
  __device__ int tiles(int segment) const { return ceil_div(rows[segment].size(), kTileM); }
  __device__ int tile_rows(int segment, int tile) const {
    return min(kTileM, rows[segment].size() - tile * kTileM);
  }
  // Real-time keys that a tile can see: none for static rows, earlier rows for real-time ones.
  __device__ int rt_keys(int segment, int tile) const {
    if (segment == kStatic) return 0;
    const int all = rows[kRealtime].size();
    return segment == kRealtime ? min(all, (tile + 1) * kTileM) : all;
  }
  __device__ int units(int segment, int tile) const {
    const int self = segment == kCandidate ? ceil_div(tile_rows(segment, tile), kTileN) : 0;
    return ceil_div(rows[kStatic].size(), kTileN) + ceil_div(rt_keys(segment, tile), kTileN) +
           self;
  }
  // Cost of all tiles of one head.
  __device__ int cost(int first_segment) const {
    const int fixed = ceil_div(rows[kStatic].size(), kTileN) + kTileCost;
    int sum = tiles(kCandidate) * (fixed + ceil_div(rows[kRealtime].size(), kTileN)) +
              ceil_div(rows[kCandidate].size(), kTileN);
    if (first_segment <= kRealtime)
      for (int t = 0; t < tiles(kRealtime); ++t) sum += units(kRealtime, t) + kTileCost;
    if (first_segment <= kStatic) sum += tiles(kStatic) * fixed;
    return sum;
  }
};

// Warp-collective: hands every part of this block's stretch to emit(Work), in order.
template <class Emit>
__device__ void for_each_work(const Problem& p, int block, int blocks, Emit emit) {
  auto request_cost = [&](int b) {
    return p.heads * Request(p, b).cost(p.first_query_segment);
  };
  int rest = INT32_MAX;
  find_request(p.batch, rest, request_cost);
  const int total = INT32_MAX - rest;
  const int stretch = max(ceil_div(total, blocks), kMinStretch);
  const int begin = block * stretch, end = min(begin + stretch, total);
  if (begin >= end) return;

  int position = begin;
  int b = find_request(p.batch, position, request_cost);
  int start = begin - position;  // of the next tile, on the line
  for (; start < end; ++b) {
    const Request request(p, b);
    const int head_cost = request.cost(p.first_query_segment);
    if (head_cost == 0) continue;
    int head = max(begin - start, 0) / head_cost;
    start += head * head_cost;
    for (; head < p.heads && start < end; ++head)
      for (int s = p.first_query_segment; s < kSegments; ++s)
        for (int tile = 0; tile < request.tiles(s) && start < end; ++tile) {
          const int units = request.units(s, tile), first_unit = start + kTileCost;
          start = first_unit + units;
          const int unit_begin = max(begin - first_unit, 0);
          const int unit_end = min(end - first_unit, units);
          if (unit_begin >= unit_end) continue;
          emit(Work{request.tile_rows(s, tile), head, s,
                    p.query_base(s) + request.rows[s].begin + tile * kTileM,
                    request.rows[s].begin + tile * kTileM, tile * kTileM,
                    request.rows[kStatic].begin, request.rows[kStatic].size(),
                    request.rows[kRealtime].begin, request.rt_keys(s, tile), unit_begin, unit_end,
                    first_unit / stretch, (start - 1) / stretch});
        }
  }
}

}  // namespace mtgr::hopper
