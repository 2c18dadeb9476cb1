// What the products need beside hstu_attention/hopper_ptx.cuh: two-dimensional bulk copies,
// clusters, and warpgroup products of every tile width. Semantics are those of the PTX manual.
#pragma once

#include "hstu_attention/hopper_ptx.cuh"

namespace mtgr::hopper {

// A box of a [rows, columns] view lands as rows of 128 bytes, swizzled, at `shared`.
__device__ __forceinline__ void copy_rows(void* shared, const CUtensorMap* map, int column, int row,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
}

// The same to every block of `mask`, at the same addresses and barriers within each.
__device__ __forceinline__ void copy_rows_to_all(void* shared, const CUtensorMap* map, int column,
                                                 int row, uint64_t* barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "h"(mask)
      : "memory");
}

// A box of a weight (encode_weight) lands as rows of 128 bytes, swizzled, at `shared`.
__device__ __forceinline__ void copy_weight(void* shared, const CUtensorMap* map, int depth,
                                            int group, int pair, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(depth), "r"(0), "r"(group), "r"(pair)
      : "memory");
}
__device__ __forceinline__ void copy_weight_to_all(void* shared, const CUtensorMap* map, int depth,
                                                   int group, int pair, uint64_t* barrier,
                                                   uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %4, %5, %6}], [%2], %7;" ::"r"(
          shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(depth), "r"(0), "r"(group), "r"(pair), "h"(mask)
      : "memory");
}

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Every thread of every block of the cluster. What it orders is initialized barriers, by their own
// fence: one of all memory would wait for every store.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_barrier() {
  cluster_arrive();
  cluster_wait();
}

// Arrives on the barrier at this address in block `rank` of the cluster. What it hands over was
// read by the matrix units and is written by bulk copies, so no fence of a wider scope, which costs
// as much as a stage's products, is needed.
__device__ __forceinline__ void arrive_at(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

// Operand numbers %<10 t> to %<10 t + 9>, each with a comma.
#define MTGR_TEN(t) \
  "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define MTGR_TO_29 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," MTGR_TEN(1) MTGR_TEN(2)
#define MTGR_TO_39 MTGR_TO_29 MTGR_TEN(3)
#define MTGR_TO_59 MTGR_TO_39 MTGR_TEN(4) MTGR_TEN(5)
#define MTGR_TO_79 MTGR_TO_59 MTGR_TEN(6) MTGR_TEN(7)
#define MTGR_TO_89 MTGR_TO_79 MTGR_TEN(8)
#define MTGR_TO_119 MTGR_TO_89 MTGR_TEN(9) MTGR_TEN(10) MTGR_TEN(11)

#define MTGR_C4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define MTGR_C16(i) MTGR_C4(i), MTGR_C4(i + 4), MTGR_C4(i + 8), MTGR_C4(i + 12)
#define MTGR_C32(i) MTGR_C16(i), MTGR_C16(i + 16)
#define MTGR_C64(i) MTGR_C32(i), MTGR_C32(i + 32)

#define MTGR_PRODUCT(N, TYPE, REGISTERS, A, B, ACCUMULATE, ...)                               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ACCUMULATE                               \
               ", 0;\n"                                                                       \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" REGISTERS \
               "}, %" #A ", %" #B ", p, 1, 1, 0, 0;\n}\n"                                     \
               : __VA_ARGS__                                                                  \
               : "l"(wide(a)), "l"(wide(b)), "r"(accumulate))

#define MTGR_PRODUCTS(TYPE)                                                                        \
  if constexpr (kN == 64)                                                                          \
    MTGR_PRODUCT(64, TYPE, MTGR_TO_29 "%30,%31", 32, 33, 34, MTGR_C32(0));                         \
  else if constexpr (kN == 96)                                                                     \
    MTGR_PRODUCT(96, TYPE, MTGR_TO_39 "%40,%41,%42,%43,%44,%45,%46,%47", 48, 49, 50, MTGR_C32(0),  \
                 MTGR_C16(32));                                                                    \
  else if constexpr (kN == 128)                                                                    \
    MTGR_PRODUCT(128, TYPE, MTGR_TO_59 "%60,%61,%62,%63", 64, 65, 66, MTGR_C64(0));                \
  else if constexpr (kN == 176)                                                                    \
    MTGR_PRODUCT(176, TYPE, MTGR_TO_79 "%80,%81,%82,%83,%84,%85,%86,%87", 88, 89, 90, MTGR_C64(0), \
                 MTGR_C16(64), MTGR_C4(80), MTGR_C4(84));                                          \
  else if constexpr (kN == 192)                                                                    \
    MTGR_PRODUCT(192, TYPE, MTGR_TO_89 "%90,%91,%92,%93,%94,%95", 96, 97, 98, MTGR_C64(0),         \
                 MTGR_C32(64));                                                                    \
  else                                                                                             \
    MTGR_PRODUCT(256, TYPE, MTGR_TO_119 "%120,%121,%122,%123,%124,%125,%126,%127", 128, 129, 130,  \
                 MTGR_C64(0), MTGR_C64(64))

// c (64 x kN, fp32) = or += A (64 x 16) * B (kN x 16)^T, both K-major in shared memory.
template <class T, int kN>
__device__ __forceinline__ void product(float (&c)[kN / 2], uint32_t a, uint32_t b,
                                        int accumulate) {
  static_assert(kN == 64 || kN == 96 || kN == 128 || kN == 176 || kN == 192 || kN == 256);
  if constexpr (std::is_same_v<T, __half>) {
    MTGR_PRODUCTS("f16");
  } else {
    MTGR_PRODUCTS("bf16");
  }
}

#undef MTGR_PRODUCTS
#undef MTGR_PRODUCT
#undef MTGR_C64
#undef MTGR_C32
#undef MTGR_C16
#undef MTGR_C4
#undef MTGR_TO_119
#undef MTGR_TO_89
#undef MTGR_TO_79
#undef MTGR_TO_59
#undef MTGR_TO_39
#undef MTGR_TO_29
#undef MTGR_TEN

}  // namespace mtgr::hopper
