// sm_90a building blocks: mbarriers, bulk tensor copies, warpgroup matrix products.
// Semantics and layouts are those of the PTX manual ("mbarrier", "cp.async.bulk.tensor",
// "Asynchronous warpgroup level matrix multiply-accumulate").
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "mma.cuh"

namespace mtgr::hopper {

__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals));
}

__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// Arrives and announces the bytes that bulk copies will complete on the barrier.
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Orders this thread's shared-memory stores before later reads by copies and matrix units.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Barrier `id` among `threads` threads.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Counts as one of the `threads`, without waiting for the others.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// A box of a [heads][4 column chunks][rows][64 columns] view lands as [4][box rows][64], each row
// of 128 bytes swizzled, at `shared` (1024-byte aligned).
__device__ __forceinline__ void copy_box(void* shared, const CUtensorMap* map, int row, int head,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %3, %5}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(0), "r"(row), "r"(head)
      : "memory");
}

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Matrix descriptor of a 128-byte-swizzled tile, its low word: `shared`, and for MN-major tiles (V)
// the distance between chunks of 64 columns; K-major ones (Q, K) ignore it. It counts 16 bytes, so
// small steps within a tile can be added to it.
//
// Read from lane 0, that is known to be the same in all lanes: the compiler cannot know it of what
// depends on threadIdx, and then makes each descriptor in vector registers and moves it to the
// uniform ones that products want, which takes as long as the product itself.
__device__ __forceinline__ uint32_t descriptor(const void* shared, int chunk_bytes) {
  const uint32_t low = uint32_t(chunk_bytes >> 4) << 16 | (shared_address(shared) & 0x3ffff) >> 4;
  return __shfl_sync(~0u, low, 0);
}

// The whole descriptor: groups of 8 rows lie 1024 bytes apart.
__device__ __forceinline__ uint64_t wide(uint32_t descriptor) {
  return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | descriptor;
}

__device__ __forceinline__ void products_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

#define MTGR_F4(x, i) "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3])
#define MTGR_F16(x, i) MTGR_F4(x, i), MTGR_F4(x, i + 4), MTGR_F4(x, i + 8), MTGR_F4(x, i + 12)
#define MTGR_F32(x, i) MTGR_F16(x, i), MTGR_F16(x, i + 16)
#define MTGR_F128(x) MTGR_F32(x, 0), MTGR_F32(x, 32), MTGR_F32(x, 64), MTGR_F32(x, 96)

// s (64 x 64, fp32) = or += A (64 x 16, K-major) * B (64 x 16, K-major)^T, both in shared memory.
#define MTGR_PRODUCT_QK(TYPE)                                                                    \
  asm volatile(                                                                                  \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                               \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE                                \
      " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
      "%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, p, 1, 1, 0, 0;\n}\n"                          \
      : MTGR_F32(s, 0)                                                                           \
      : "l"(wide(a)), "l"(wide(b)), "r"(accumulate))

template <class T>
__device__ __forceinline__ void product_qk(float (&s)[32], uint32_t a, uint32_t b, int accumulate) {
  if constexpr (std::is_same_v<T, __half>)
    MTGR_PRODUCT_QK("f16");
  else
    MTGR_PRODUCT_QK("bf16");
}

// o (64 x 256, fp32) += A (64 x 16, registers) * B (16 x 256, MN-major, shared memory).
#define MTGR_PRODUCT_PV(TYPE)                                                                    \
  asm volatile(                                                                                  \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE                               \
      " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
      "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45," \
      "%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67," \
      "%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89," \
      "%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,"    \
      "%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,"    \
      "%126,%127}, {%128,%129,%130,%131}, %132, 1, 1, 1, 1;\n"                                   \
      : MTGR_F128(o)                                                                             \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(wide(b)))

template <class T>
__device__ __forceinline__ void product_pv(float (&o)[128], const uint32_t* a, uint32_t b) {
  if constexpr (std::is_same_v<T, __half>)
    MTGR_PRODUCT_PV("f16");
  else
    MTGR_PRODUCT_PV("bf16");
}

#undef MTGR_PRODUCT_QK
#undef MTGR_PRODUCT_PV
#undef MTGR_F4
#undef MTGR_F16
#undef MTGR_F32
#undef MTGR_F128

}  // namespace mtgr::hopper
