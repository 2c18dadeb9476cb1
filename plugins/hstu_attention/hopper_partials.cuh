// Partial sums that the parts of a tile exchange through global memory.
#pragma once

#include "hopper_shared.cuh"
#include "numbers.cuh"

namespace mtgr::hopper {

// The 256 columns are shared by the owners of a tile in groups of 32; a set of them is a mask.
constexpr int kGroups = 8;
constexpr int kAllGroups = (1 << kGroups) - 1;
constexpr int kVectors = 64 * kDim / 128 / 8;  // of eight sums, a thread

// What a consumer hands to the other parts of a tile: in registers' order, and by what to multiply
// a thread's two rows.
struct Partial {
  uint4 sums[kVectors][128];
  float2 scales[128];

  // Sums cross as fp16 times a power of two of each row, which brings the largest just below 2^15:
  // each is off by 2^-12 of itself at most (an eighth of what rounding the result to bf16 does, and
  // a half for fp16), and half as many bytes leave and enter the multiprocessor.
  __device__ __forceinline__ void write(const float (&out)[128], int groups) {
    const int thread = threadIdx.x % 128;
    float largest[2] = {}, up[2], down[2];
#pragma unroll
    for (int at = 0; at < 128; ++at)
      largest[at / 2 % 2] = fmaxf(largest[at / 2 % 2], fabsf(out[at]));
    for (int i = 0; i < 2; ++i) {
      const int exponent = min(268 - (__float_as_int(largest[i]) >> 23), 253);
      up[i] = __int_as_float(exponent << 23);
      down[i] = __int_as_float((254 - exponent) << 23);
    }
    scales[thread] = {down[0], down[1]};
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if ((groups >> j / 2 & 1) == 0) continue;
      uint32_t pairs[4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        pairs[k] =
            pack2<__half>(out[8 * j + 2 * k] * up[k % 2], out[8 * j + 2 * k + 1] * up[k % 2]);
      __stcg(&sums[j][thread], uint4{pairs[0], pairs[1], pairs[2], pairs[3]});
    }
  }
};

// Half of a tile's groups, from kFirst on, of the sums of another part.
template <int kFirst>
struct Term {
  uint4 sums[kVectors / 2] = {};
  float2 scales{};

  __device__ __forceinline__ void load(const Partial& from, int groups) {
    const int thread = threadIdx.x % 128;
    scales = __ldcg(&from.scales[thread]);
#pragma unroll
    for (int j = 0; j < kVectors / 2; ++j)
      if (groups >> (kFirst + j / 2) & 1) sums[j] = __ldcg(&from.sums[kFirst * 2 + j][thread]);
  }
  __device__ __forceinline__ void add_to(float (&out)[128]) const {
#pragma unroll
    for (int j = 0; j < kVectors / 2; ++j)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint32_t pair = (&sums[j].x)[k];
        const float2 x = __half22float2(reinterpret_cast<const __half2&>(pair));
        float* to = out + (kFirst * 2 + j) * 8 + 2 * k;
        to[0] = fmaf(x.x, k % 2 ? scales.y : scales.x, to[0]);
        to[1] = fmaf(x.y, k % 2 ? scales.y : scales.x, to[1]);
      }
  }
};

// One consumer's dealings with the others that have a part of its tile.
class Exchange {
 public:
  __device__ Exchange(int index, Partial* partials, int* counters)
      : index_(index), partials_(partials), counters_(counters) {}

  // Exchanges partial sums with the other parts of the tile. Each owner adds those of its columns
  // to its own, in the order of the parts, so that results never depend on timing. Returns the
  // groups that this consumer now holds whole.
  __device__ int combine(const Work& work, float (&out)[128]) const {
    int owned = 0;
    for (int group = 0; group < kGroups; ++group)
      owned |= (group * work.owners / kGroups == work.part) << group;
    // The low half of the counter counts parts that have written their sums (all but an only
    // owner), the high half owners that have read them.
    int* counter = counters_ + work.first_part * kConsumers + index_;
    const int writers = work.parts - (work.owners == 1);
    if (owned != kAllGroups) {
      partial(work, work.part).write(out, ~owned);
      named_barrier(kOwn + index_, 128);
      if (threadIdx.x % 128 == 0) add_release(counter, 1);
    }
    if (owned == 0) return 0;
    if (threadIdx.x % 128 == 0)
      while ((load_acquire(counter) & 0xffff) != writers) continue;
    named_barrier(kOwn + index_, 128);
    add_others<0>(work, owned, out);
    add_others<kGroups / 2>(work, owned, out);
    return owned;
  }

  // The last owner that has read its sums leaves the counter as it was found.
  __device__ void leave(const Work& work) const {
    int* counter = counters_ + work.first_part * kConsumers + index_;
    named_barrier(kOwn + index_, 128);
    if (threadIdx.x % 128 == 0 &&
        atomicAdd(counter, 1 << 16) >> 16 == min(work.owners, kGroups) - 1)
      *counter = 0;
  }

 private:
  // Where a part of the tile leaves its partial sums. A block's first partial tile began in an
  // earlier block, its second one begins in it.
  __device__ Partial& partial(const Work& work, int part) const {
    const int place = 2 * (work.first_part + part) + (part == 0);
    return partials_[place * kConsumers + index_];
  }

  __device__ static void add_release(int* address, int value) {
    asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
  }

  __device__ static int load_acquire(const int* address) {
    int value;
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
  }

  // Adds what the other parts left of these groups, two parts' loads in flight at a time.
  template <int kFirst>
  __device__ void add_others(const Work& work, int owned, float (&out)[128]) const {
    if ((owned >> kFirst & (1 << kGroups / 2) - 1) == 0) return;
#pragma unroll 1
    for (int i = 0; i < work.parts - 1; i += 2) {
      Term<kFirst> one, two;
      one.load(partial(work, i + (i >= work.part)), owned);
      if (i + 2 < work.parts) two.load(partial(work, i + 1 + (i + 1 >= work.part)), owned);
      one.add_to(out);
      two.add_to(out);
    }
  }

  const int index_;
  Partial* const partials_;
  int* const counters_;
};

}  // namespace mtgr::hopper
