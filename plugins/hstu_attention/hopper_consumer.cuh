// A consumer warpgroup: 64 query rows of each piece of work, from scores to stored results.
//
// Register layout of a 64-row product ("D fragment" of wgmma in the PTX manual): a thread holds two
// rows, r = warp * 16 + lane / 4 and r + 8; element 4 j + 2 i + c is row i, column 8 j +
// lane % 4 * 2 + c.
#pragma once

#include "hopper_partials.cuh"

namespace mtgr::hopper {

template <class T>
class Consumer {
 public:
  __device__ Consumer(const Problem& p, Shared& shared, int index, Partial* partials, int* counters)
      : p_(p), shared_(shared), index_(index), exchange_(index, partials, counters) {}

  __device__ void run() {
    WorkList list{shared_};
    if (index_ == 1) pass_turn();  // the first one is the other's
    for (; list.wait_next(); list.done()) {
      const Work& work = list.current();
      if (work.rows > index_ * 64) {
        begin(work);
        wait_query();
        attend(work);
        if (work.parts == 1) {
          store<true>(work, kAllGroups);
        } else if (const int owned = exchange_.combine(work, out_)) {
          store<false>(work, owned);
          exchange_.leave(work);
        }
      } else {  // all of the tile's rows belong to the other consumer
        wait_query();
        for (int unit = work.unit_begin; unit < work.unit_end; ++unit) skip();
        release(&shared_.query_empty[index_]);
      }
    }
  }

 private:
  __device__ int thread() const { return threadIdx.x % 128; }
  __device__ int lane() const { return threadIdx.x % 32; }
  // Row of the tile, i = 0 or 1.
  __device__ int row(int i) const { return index_ * 64 + thread() / 32 * 16 + lane() / 4 + 8 * i; }
  __device__ void release(uint64_t* barrier) {
    if (lane() == 0) arrive(barrier);
  }

  __device__ void wait_query() {
    wait(&shared_.query_full[index_], query_parity_);
    query_parity_ ^= 1;
  }

  __device__ void begin(const Work& work) {
    const int32_t* visible = work.segment == kRealtime ? p_.rt_visible : p_.candidate_visible;
    for (int i = 0; i < 2; ++i)
      seen_[i] = work.segment != kStatic && row(i) < work.rows
                     ? min(visible[work.segment_row + row(i)], work.rt_keys)
                     : 0;
#pragma unroll
    for (float& x : out_) x = 0.f;
  }

  __device__ void wait_slot(const Ring<kSlots>& ring) {
    wait(&shared_.full[ring.slot], ring.parity);
  }

  // Issues S = Q K^T for the K tile at ring_.
  __device__ void issue_scores() {
    wait_slot(ring_);
    const uint32_t q = descriptor(shared_.query[index_], 0);
    const uint32_t k = descriptor(shared_.slot[ring_.slot], 0);
    wait_turn();
    products_begin();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const int offset = step / 4 * (kSlotBytes / kChunks) + step % 4 * 32;
      product_qk<T>(s_, q + (offset >> 4), k + (offset >> 4), step > 0);
    }
    products_commit();
  }

  // Issues out += P V for the V tile in `slot`.
  __device__ void issue_sum(int slot, const uint32_t (&weights)[16]) {
    const uint32_t v = descriptor(shared_.slot[slot], kSlotBytes / kChunks);
    products_begin();
#pragma unroll
    for (int step = 0; step < kTileN / 16; ++step)
      product_pv<T>(out_, weights + 4 * step, v + (step * 16 * kChunk * 2 >> 4));
    products_commit();
  }

  // s_ = silu(alpha s_), zero where a row does not see the key.
  __device__ void activate(const Work& work, const Keys& keys) {
    // Row i sees the keys below limit[i], and key self[i].
    int limit[2] = {keys.count, keys.count}, self[2] = {-1, -1};
    if (keys.kind != Keys::kFixed) {
      const bool diagonal = keys.kind == Keys::kSelf || work.segment == kRealtime;
      const int first = keys.first - (keys.kind == Keys::kSelf ? 0 : work.request_row);
      for (int i = 0; i < 2; ++i) {
        limit[i] = keys.kind == Keys::kSelf ? 0 : seen_[i] - keys.first;
        if (diagonal) self[i] = row(i) - first;
      }
    }
#pragma unroll
    for (float& x : s_) x = silu_of_twice(x * p_.half_alpha);
    if (__all_sync(~0u, min(limit[0], limit[1]) >= kTileN)) return;
    const int column = lane() % 4 * 2;
#pragma unroll
    for (int j = 0; j < kTileN / 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int key = j * 8 + c;
          if (key >= limit[i] - column && key != self[i] - column) s_[4 * j + 2 * i + c] = 0.f;
        }
  }

  __device__ void pack(uint32_t (&weights)[16]) {
#pragma unroll
    for (int i = 0; i < 16; ++i) weights[i] = pack2<T>(s_[2 * i], s_[2 * i + 1]);
  }

  // Adds all units of this piece of work to out_, pipelined: the scores of a unit are under way
  // before the sum of the last one, and SiLU runs under that sum.
  __device__ void attend(const Work& work) {
    // Of the two self units, this consumer passes by the other's.
    const int other = work.ranged_units() + 1 - index_, end = work.unit_end;
    int unit = work.unit_begin;
    if (unit == other) skip(), ++unit;
    if (unit == end) return release(&shared_.query_empty[index_]);
    uint32_t weights[16];
    issue_scores();
    pass_turn();
    products_wait<0>();
    release_slot();
    activate(work, Keys(work, unit));
    while (true) {
      pack(weights);
      const Ring<kSlots> value = ring_;
      ring_.advance();
      if (++unit == other && unit < end) skip(), ++unit;
      if (unit == end) {
        release(&shared_.query_empty[index_]);  // all scores are there
        wait_slot(value);
        issue_sum(value.slot, weights);
        products_wait<0>();
        release(&shared_.empty[value.slot]);
        return;
      }
      issue_scores();
      wait_slot(value);
      issue_sum(value.slot, weights);
      pass_turn();
      products_wait<1>();
      release_slot();
      activate(work, Keys(work, unit));
      products_wait<0>();
      release(&shared_.empty[value.slot]);
    }
  }

  // The consumers take turns at issuing a unit's products, so that one's registers change hands
  // while the other's products keep the matrix units busy. Left alone they fall into step, and both
  // leave them idle at once.
  __device__ void wait_turn() { named_barrier(kTurn + index_, 2 * 128); }
  __device__ void pass_turn() { named_barrier_arrive(kTurn + (index_ ^ 1), 2 * 128); }

  // Passes by a unit of the other consumer. A slot may be released only once it is full: an earlier
  // arrival would count for its last use.
  __device__ void skip() {
    wait_turn();
    pass_turn();
    for (int i = 0; i < 2; ++i) {
      wait_slot(ring_);
      release_slot();
    }
  }

  __device__ void release_slot() {
    release(&shared_.empty[ring_.slot]);
    ring_.advance();
  }

  // Scales, rounds and stores the valid rows of some column groups, known at compile time if all.
  // The four lanes of a row exchange their pairs of columns, so that each stores 16 contiguous
  // bytes.
  template <bool kAll>
  __device__ void store(const Work& work, int groups) {
    const int c = lane() % 4;
    T* out = static_cast<T*>(p_.out) +
             (int64_t{work.query_row + row(0)} * p_.heads + work.head) * kDim + c * 8;
    const int64_t eight_rows = int64_t{8} * p_.heads * kDim;
    const bool valid[2] = {row(0) < work.rows, row(1) < work.rows};
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      if (!kAll && (groups >> group & 1) == 0) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t x[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int at = (group * 4 + k) * 4 + 2 * i;
          x[k] = pack2<T>(out_[at] * p_.inv_n, out_[at + 1] * p_.inv_n);
        }
        exchange(x[0], x[1], 1, c & 1);
        exchange(x[2], x[3], 1, c & 1);
        exchange(x[0], x[2], 2, c & 2);
        exchange(x[1], x[3], 2, c & 2);
        if (valid[i])
          *reinterpret_cast<uint4*>(out + i * eight_rows + group * 32) =
              uint4{x[0], x[1], x[2], x[3]};
      }
    }
  }

  // Half of a 2 x 2 transpose between lanes that differ in bit `distance`.
  __device__ static void exchange(uint32_t& low, uint32_t& high, int distance, bool upper) {
    const uint32_t received = __shfl_xor_sync(~0u, upper ? low : high, distance);
    (upper ? low : high) = received;
  }

  const Problem& p_;
  Shared& shared_;
  const int index_;
  Exchange exchange_;
  Ring<kSlots> ring_{};
  uint32_t query_parity_ = 0;
  int seen_[2];     // real-time keys that each row sees
  float s_[32];     // scores of 64 rows x 64 keys
  float out_[128];  // 64 rows x 256 columns
};

}  // namespace mtgr::hopper
