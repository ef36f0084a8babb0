// Host shim: lets a C++17 compiler build the .cu files and run them on the CPU, one fiber per CUDA
// thread. Included by kernels/common/platform.cuh when the compiler is not nvcc.
//
// What it checks while it runs (every violation ends the process with a message):
//   - barriers and warp collectives are reached by all threads they name;
//   - shared arrays: NaN bits at block start, red zones around each, 48 KiB in all;
//   - with AddressSanitizer, UBSan or ThreadSanitizer: what those check. ThreadSanitizer sees
//     each CUDA thread as a thread, barriers as the only order within a block (a shuffle orders
//     nothing unless shim::Options says so) and fences as the only order between blocks.
// What it cannot show: the GPU's memory model, occupancy, speed.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <type_traits>

namespace shim {

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

struct Options {
    uint64_t seed = 1;               // schedules, block order
    unsigned resident_blocks = 2;    // blocks in flight at a time
    bool shuffles_order_memory = false;
};

// Runs body() once per CUDA thread of the grid and returns when all are done.
void launch(Dim3 grid, Dim3 block, const Options& options, const std::function<void()>& body);

const Dim3& thread_idx();
const Dim3& block_idx();
const Dim3& block_dim();
const Dim3& grid_dim();

void* shared_array(const void* key, const char* name, size_t bytes);
void barrier();
void warp_barrier(unsigned mask);
void fence();
void yield_sometimes();  // lets atomics of different threads meet in any order

enum class Shuffle { Index, Up, Down, Xor };
uint64_t shuffle(unsigned mask, uint64_t value, int lane, Shuffle how);
unsigned ballot(unsigned mask, bool predicate);
void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bf16);

[[noreturn]] void die(const char* format, ...) __attribute__((format(printf, 1, 2)));

// SplitMix64: steps the state, returns 64 random bits.
inline uint64_t split_mix(uint64_t& state) {
    uint64_t z = (state += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

template <class V> uint64_t to_bits(V v) {
    static_assert(sizeof(V) <= 8, "shuffles move at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof(V));
    return bits;
}
template <class V> V from_bits(uint64_t bits) {
    V v;
    memcpy(&v, &bits, sizeof(V));
    return v;
}

// IEEE half and bfloat16, round to nearest even, subnormals kept.
float half_to_float(uint16_t h);
uint16_t float_to_half(float f);
uint16_t float_to_bfloat16(float f);

}  // namespace shim

// ---- the part of CUDA C++ that the kernels use ----

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)

#define BDHS_SHARED(type, name, count)                                                         \
    type* const name = static_cast<type*>(shim::shared_array(                                  \
        [] { static char key; return static_cast<const void*>(&key); }(), #name,               \
        sizeof(type) * (count)))

#define threadIdx (shim::thread_idx())
#define blockIdx (shim::block_idx())
#define blockDim (shim::block_dim())
#define gridDim (shim::grid_dim())

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(8) float2 {
    float x, y;
};

struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
inline __half __ushort_as_half(uint16_t b) { return {b}; }
inline uint16_t __half_as_ushort(__half h) { return h.bits; }
inline float __half2float(__half h) { return shim::half_to_float(h.bits); }
inline __half __float2half_rn(float f) { return {shim::float_to_half(f)}; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return {shim::float_to_bfloat16(f)}; }

inline float __uint_as_float(uint32_t u) { return shim::from_bits<float>(u); }
inline uint32_t __float_as_uint(float f) { return (uint32_t)shim::to_bits(f); }
inline long long __double_as_longlong(double d) { return (long long)shim::to_bits(d); }
// Rounded on their own: through memory, so that no compiler fuses them.
inline float __fmul_rn(float a, float b) { const volatile float product = a * b; return product; }
inline float __fadd_rn(float a, float b) { const volatile float sum = a + b; return sum; }
inline float __fsub_rn(float a, float b) { const volatile float difference = a - b; return difference; }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint32_t)(((uint64_t)a * b) >> 32); }
inline int __popc(uint32_t v) { return __builtin_popcount(v); }
inline int __clz(uint32_t v) { return v ? __builtin_clz(v) : 32; }
inline int __ffs(uint32_t v) { return __builtin_ffs((int)v); }
using std::isfinite;
using std::max;
using std::min;

inline void __syncthreads() { shim::barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { shim::warp_barrier(mask); }
inline void __threadfence() { shim::fence(); }
inline unsigned __ballot_sync(unsigned mask, int predicate) { return shim::ballot(mask, predicate); }
inline int __any_sync(unsigned mask, int p) { return shim::ballot(mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) { return shim::ballot(mask, !p) == 0; }
template <class V> V __shfl_sync(unsigned mask, V v, int lane) {
    return shim::from_bits<V>(shim::shuffle(mask, shim::to_bits(v), lane, shim::Shuffle::Index));
}
template <class V> V __shfl_up_sync(unsigned mask, V v, int by) {
    return shim::from_bits<V>(shim::shuffle(mask, shim::to_bits(v), by, shim::Shuffle::Up));
}
template <class V> V __shfl_down_sync(unsigned mask, V v, int by) {
    return shim::from_bits<V>(shim::shuffle(mask, shim::to_bits(v), by, shim::Shuffle::Down));
}
template <class V> V __shfl_xor_sync(unsigned mask, V v, int by) {
    return shim::from_bits<V>(shim::shuffle(mask, shim::to_bits(v), by, shim::Shuffle::Xor));
}

template <class V> V atomicAdd(V* p, V v) {
    static_assert(!std::is_floating_point<V>::value, "float atomics have no fixed order");
    shim::yield_sometimes();
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
template <class V> V atomicOr(V* p, V v) {
    shim::yield_sometimes();
    return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}
template <class V> V atomicMin(V* p, V v) {
    shim::yield_sometimes();
    V seen = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (v < seen &&
           !__atomic_compare_exchange_n(p, &seen, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return seen;
}
template <class V> V atomicMax(V* p, V v) {
    shim::yield_sometimes();
    V seen = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (seen < v &&
           !__atomic_compare_exchange_n(p, &seen, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return seen;
}
