// sm_90a alone: barriers that count bytes, bulk copies into shared memory, and products by a group of four warps. The
// host shim does not run what is here; cosine_pairs.cuh has the twin that it does run.
#pragma once
#include "dtype.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace bdhs {

BDHS_DEVICE uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

// ---- barriers in shared memory ----

BDHS_DEVICE void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to copies.
BDHS_DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and lets the phase wait for `bytes` of copies.
BDHS_DEVICE void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

BDHS_DEVICE void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Waits until the phase of that parity is over.
BDHS_DEVICE void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "AGAIN:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
        "@over bra OVER;\n"
        "bra AGAIN;\n"
        "OVER:\n"
        "}" ::"r"(barrier), "r"(parity) : "memory");
}

// ---- copies ----

// `bytes` from global to shared memory, both multiples of 16; the barrier gets their number when they are there.
BDHS_DEVICE void copy_bulk(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier)
                 : "memory");
}

// ---- registers ----

// Registers a thread from here on, for all four warps of a group.
template <int N> BDHS_DEVICE void registers_down() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> BDHS_DEVICE void registers_up() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

// ---- products ----

// An operand of rows of 128 bytes whose 16-byte pieces are permuted as plane_at does; groups of eight rows are 1024
// bytes apart. The first row of all is at a multiple of 1024 bytes; 16 columns further on is 2 more.
BDHS_DEVICE uint64_t operand(uint32_t address) {
    return (uint64_t)((address & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

// Before the first product, and after ordinary instructions wrote sums.
BDHS_DEVICE void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
BDHS_DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most N committed groups are unfinished.
template <int N> BDHS_DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

#define BDHS_SUMS_4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define BDHS_SUMS_16(i) BDHS_SUMS_4(i), BDHS_SUMS_4(i + 4), BDHS_SUMS_4(i + 8), BDHS_SUMS_4(i + 12)
#define BDHS_SUMS_64(i) BDHS_SUMS_16(i), BDHS_SUMS_16(i + 16), BDHS_SUMS_16(i + 32), BDHS_SUMS_16(i + 48)
#define BDHS_WGMMA(type)                                                                             \
    asm volatile(                                                                                    \
        "{\n"                                                                                        \
        ".reg .pred add;\n"                                                                          \
        "setp.ne.b32 add, %130, 0;\n"                                                                \
        "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {"                            \
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                     \
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                           \
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                           \
        "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"                           \
        "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"                           \
        "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"                           \
        "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"               \
        "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127},"          \
        " %128, %129, add, 1, 1, 0, 0;\n"                                                            \
        "}"                                                                                          \
        : BDHS_SUMS_64(0), BDHS_SUMS_64(64)                                                          \
        : "l"(a), "l"(b), "r"(add))

// c = add ? c + a b^T : a b^T for 64 rows of a, 256 of b and 16 columns; asynchronous. Thread t of the group has, as in
// mma_m16n8k16, of row t / 32 * 16 + t % 32 / 4 the columns 8 j + t % 4 * 2 and the next in c[4 j] and c[4 j + 1], and
// those of the eighth row after it in c[4 j + 2] and c[4 j + 3].
template <class T> BDHS_DEVICE void wgmma_m64n256k16(float (&c)[128], uint64_t a, uint64_t b, uint32_t add) {
    if constexpr (T::IS_BF16) BDHS_WGMMA("bf16");
    else BDHS_WGMMA("f16");
}

// Keeps the compiler from moving uses of the sums to before the wait that stands above this.
BDHS_DEVICE void sums_fence(float (&c)[128]) {
#pragma unroll
    for (int i = 0; i < 128; ++i) asm volatile("" : "+f"(c[i])::"memory");
}

}  // namespace bdhs

#endif
