// A consumer warpgroup: 64 query rows of each piece of work, from scores to stored results.
//
// Register layout of a 64-row product ("D fragment" of wgmma in the PTX manual): a thread holds two
// rows, r = warp * 16 + lane / 4 and r + 8; element 4 j + 2 i + c is row i, column 8 j +
// lane % 4 * 2 + c.
#pragma once

#include "hopper_shared.cuh"
#include "numbers.cuh"

namespace mtgr::hopper {

template <class T>
class Consumer {
 public:
  __device__ Consumer(const Problem& p, Shared& shared, int index, float4* partials, int* counters)
      : p_(p), shared_(shared), index_(index), partials_(partials), counters_(counters) {}

  __device__ void run() {
    WorkList list{shared_};
    for (Work work = list.next(); work.rows > 0; work = list.next()) {
      begin(work);
      attend(work);
      if (combine(work)) store(work);
    }
  }

 private:
  __device__ int thread() const { return threadIdx.x % 128; }
  __device__ int lane() const { return threadIdx.x % 32; }
  // Row of the tile, i = 0 or 1.
  __device__ int row(int i) const {
    return index_ * 64 + thread() / 32 * 16 + lane() / 4 + 8 * i;
  }
  __device__ void release(uint64_t* barrier) {
    if (lane() == 0) arrive(barrier);
  }

  __device__ void begin(const Work& work) {
    const int32_t* visible = work.segment == kRealtime ? p_.rt_visible : p_.candidate_visible;
    for (int i = 0; i < 2; ++i)
      seen_[i] = work.segment != kStatic && row(i) < work.rows
                     ? min(visible[work.segment_row + row(i)], work.rt_keys)
                     : 0;
#pragma unroll
    for (float& x : out_) x = 0.f;
    wait(&shared_.query_full, query_parity_);
    query_parity_ ^= 1;
  }

  // Issues S = Q K^T for the K tile in `slot`.
  __device__ void issue_scores(int slot) {
    wait(&shared_.full[slot], ring_.parity);
    const uint64_t q = descriptor(shared_.query + index_ * 64 * 128, 0);
    const uint64_t k = descriptor(shared_.slot[slot], 0);
    products_begin();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const int chunk = step / 4, inside = step % 4 * 32;
      product_qk<T>(s_, q + ((chunk * kTileM * 128 + inside) >> 4),
                    k + ((chunk * kTileN * 128 + inside) >> 4), step > 0);
    }
    products_commit();
  }

  // Issues out += P V for the V tile at `value`; P is s_ rounded to 16 bits.
  __device__ void issue_sum(const Ring<kSlots>& value, const uint32_t (&weights)[16]) {
    wait(&shared_.full[value.slot], value.parity);
    const uint64_t v = descriptor(shared_.slot[value.slot], kTileN * 128);
    products_begin();
#pragma unroll
    for (int step = 0; step < kTileN / 16; ++step)
      product_pv<T>(out_, weights + 4 * step, v + (step * 16 * 128 >> 4));
    products_commit();
  }

  // s_ = silu(alpha s_), zero where row i sees neither a key below limit[i] nor key self[i].
  __device__ void activate(int limit0, int limit1, int self0, int self1) {
#pragma unroll
    for (float& x : s_) x = silu_of_twice(x * p_.half_alpha);
    if (__all_sync(~0u, min(limit0, limit1) >= kTileN)) return;
#pragma unroll
    for (int j = 0; j < kTileN / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = j * 8 + lane() % 4 * 2 + i % 2;
        const bool seen = i < 2 ? key < limit0 || key == self0 : key < limit1 || key == self1;
        if (!seen) s_[4 * j + i] = 0.f;
      }
  }

  __device__ void activate(const Work& work, int unit) {
    const int rt_key = (unit - work.static_units()) * kTileN;
    if (rt_key < 0) {
      const int count = work.static_keys - unit * kTileN;
      activate(count, count, -1, -1);
    } else {
      const int diagonal = work.segment == kRealtime ? work.request_row - rt_key : INT32_MIN / 2;
      activate(seen_[0] - rt_key, seen_[1] - rt_key, diagonal + row(0), diagonal + row(1));
    }
  }

  __device__ void pack(uint32_t (&weights)[16]) {
#pragma unroll
    for (int i = 0; i < 16; ++i) weights[i] = pack2<T>(s_[2 * i], s_[2 * i + 1]);
  }

  // Adds all units of this piece of work to out_.
  __device__ void attend(const Work& work) {
    const int ranged_end = min(work.unit_end, work.ranged_units());
    uint32_t weights[16];
    if (work.unit_begin < ranged_end) {
      issue_scores(ring_.slot);
      products_wait<0>();
      release(&shared_.empty[ring_.slot]);
      ring_.advance();
      activate(work, work.unit_begin);
      for (int unit = work.unit_begin + 1; unit < ranged_end; ++unit) {
        pack(weights);
        const Ring<kSlots> value = ring_;
        ring_.advance();
        issue_scores(ring_.slot);
        issue_sum(value, weights);
        products_wait<1>();
        release(&shared_.empty[ring_.slot]);
        ring_.advance();
        activate(work, unit);
        products_wait<0>();
        release(&shared_.empty[value.slot]);
      }
      pack(weights);
      issue_sum(ring_, weights);
      products_wait<0>();
      release(&shared_.empty[ring_.slot]);
      ring_.advance();
    }
    for (int unit = max(work.unit_begin, work.ranged_units()); unit < work.unit_end; ++unit)
      attend_self(unit - work.ranged_units() == index_, weights);
    release(&shared_.query_empty);
  }

  // Candidates: each row's own key, in the tile of keys that are the warpgroup's own rows.
  __device__ void attend_self(bool own, uint32_t (&weights)[16]) {
    if (own) {
      issue_scores(ring_.slot);
      products_wait<0>();
      activate(0, 0, row(0) - index_ * 64, row(1) - index_ * 64);
      pack(weights);
    } else {
      // A slot may be released only once it is full: earlier arrivals would count for its last use.
      wait(&shared_.full[ring_.slot], ring_.parity);
    }
    release(&shared_.empty[ring_.slot]);
    ring_.advance();
    if (own) {
      issue_sum(ring_, weights);
      products_wait<0>();
    } else {
      wait(&shared_.full[ring_.slot], ring_.parity);
    }
    release(&shared_.empty[ring_.slot]);
    ring_.advance();
  }

  // Adds the partial sums of a tile shared by several blocks, in the order of the parts, so that
  // results do not depend on who comes last. True for whoever holds the whole sum.
  __device__ bool combine(const Work& work) {
    const int parts = work.last_part - work.first_part + 1;
    if (parts == 1) return true;
    const int own = blockIdx.x - work.first_part;
    // A block's first partial tile began in an earlier block, its second one begins in it.
    auto partial = [&](int part) {
      const int place = 2 * (work.first_part + part) + (part == 0);
      return partials_ + (place * kConsumers + index_) * (64 * kDim / 4) + thread();
    };
    float4* mine = partial(own);
#pragma unroll
    for (int j = 0; j < 32; ++j)
      __stcg(mine + j * 128,
             make_float4(out_[4 * j], out_[4 * j + 1], out_[4 * j + 2], out_[4 * j + 3]));
    __threadfence();
    named_barrier(1 + index_, 128);
    int* counter = counters_ + work.first_part * kConsumers + index_;
    if (thread() == 0) shared_.arrival[index_] = atomicAdd(counter, 1);
    named_barrier(1 + index_, 128);
    if (shared_.arrival[index_] != parts - 1) return false;
    __threadfence();
    if (thread() == 0) *counter = 0;

    constexpr int kGroup = 8;
#pragma unroll
    for (int group = 0; group < 32; group += kGroup) {
      float before[4 * kGroup] = {};
      for (int part = 0; part < own; ++part) add<kGroup>(before, partial(part) + group * 128);
#pragma unroll
      for (int i = 0; i < 4 * kGroup; ++i) out_[4 * group + i] += before[i];
      for (int part = own + 1; part < parts; ++part)
        add<kGroup>(out_ + 4 * group, partial(part) + group * 128);
    }
    return true;
  }

  template <int kGroup>
  __device__ static void add(float* sum, const float4* terms) {
    float4 x[kGroup];
#pragma unroll
    for (int j = 0; j < kGroup; ++j) x[j] = __ldcg(terms + j * 128);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      sum[4 * j] += x[j].x;
      sum[4 * j + 1] += x[j].y;
      sum[4 * j + 2] += x[j].z;
      sum[4 * j + 3] += x[j].w;
    }
  }

  // Scales, rounds and stores the valid rows. The four lanes of a row exchange their pairs of
  // columns, so that each stores 16 contiguous bytes.
  __device__ void store(const Work& work) {
    const int c = lane() % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      T* out = static_cast<T*>(p_.out) +
               (int64_t{work.query_row + row(i)} * p_.heads + work.head) * kDim;
#pragma unroll
      for (int group = 0; group < 8; ++group) {
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
        if (row(i) < work.rows)
          *reinterpret_cast<uint4*>(out + (group * 4 + c) * 8) = uint4{x[0], x[1], x[2], x[3]};
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
  float4* const partials_;
  int* const counters_;
  Ring<kSlots> ring_{};
  uint32_t query_parity_ = 0;
  int seen_[2];      // real-time keys that each row sees
  float s_[32];      // scores of 64 rows x 64 keys
  float out_[128];   // 64 rows x 256 columns
};

}  // namespace mtgr::hopper
