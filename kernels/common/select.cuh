// Selection by radix: 11 bits of the key at a time, from the top, with integer histograms. Integer
// additions commute, so the result does not depend on the order of the threads. Eleven bits reach
// past a float's exponent, so that the first histogram of logits or scores is spread over many bins.
#pragma once
#include "reduce.cuh"

namespace bdhs {

constexpr int RADIX_BITS = 11, RADIX_BINS = 1 << RADIX_BITS;

// Order-preserving map from f32 (no NaN) to u32: a < b iff key(a) < key(b); adding 0 makes -0 a 0, so
// that they tie.
BDHS_DEVICE uint32_t ordered_key(float x) {
    const uint32_t bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

BDHS_DEVICE float key_to_float(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Adds to a 64-bit bin in shared memory that is not read meanwhile. Two additions of 32 bits, since one of 64 is a loop of
// compare-and-swap.
BDHS_DEVICE void add_to_bin(unsigned long long* bin, uint64_t value) {
    uint32_t* half = reinterpret_cast<uint32_t*>(bin);  // the low one first
    const uint32_t low = (uint32_t)value, before = atomicAdd(&half[0], low);
    const uint32_t high = (uint32_t)(value >> 32) + (before + low < before ? 1u : 0u);
    if (high) atomicAdd(&half[1], high);
}

BDHS_DEVICE void add_to_bin(uint32_t* bin, uint32_t value) { atomicAdd(bin, value); }

// Where the item number `rank` (from 0) falls: its key, and the weight of items of that very key
// that comes before it.
struct Selected {
    uint32_t key;
    uint64_t within;
};

// Finds, in ascending order of keys, the key at which the running weight first exceeds `rank`.
// `each(visit)` calls visit(key, weight) for the calling thread's share of the items, the same
// items each time. `rank` is below the total weight, which must fit W. `bins` holds RADIX_BINS
// values, `scratch` one a warp, `found` two; all are free again on return. Every thread gets the
// result.
template <class W, class Each>
BDHS_DEVICE Selected radix_select(uint64_t rank, W* bins, uint64_t* scratch, uint64_t* found,
                                  Each each) {
    const int per_thread = (RADIX_BINS + (int)blockDim.x - 1) / (int)blockDim.x;
    uint32_t prefix = 0;
    int bits = 0;  // of the key known so far
#pragma unroll 1
    while (bits < 32) {
        const int width = 32 - bits < RADIX_BITS ? 32 - bits : RADIX_BITS, shift = 32 - bits - width;
        for (int i = (int)threadIdx.x; i < RADIX_BINS; i += (int)blockDim.x) bins[i] = 0;
        __syncthreads();
        each([&](uint32_t key, W weight) {
            // In 64 bits, so that the first pass, where no bit is known, compares nothing.
            if (((uint64_t)(key ^ prefix) >> (32 - bits)) == 0)
                add_to_bin(&bins[key >> shift & ((1u << width) - 1)], weight);
        });
        __syncthreads();
        const int first = (int)threadIdx.x * per_thread;
        uint64_t own = 0, total = 0;
        for (int i = first; i < first + per_thread && i < RADIX_BINS; ++i) own += bins[i];
        uint64_t before = block_exclusive_scan<uint64_t>(own, scratch, &total);
        if (before <= rank && rank < before + own) {
            int bin = first;
            while (before + bins[bin] <= rank) before += bins[bin++];
            found[0] = (uint64_t)bin;
            found[1] = rank - before;
        }
        __syncthreads();
        prefix |= (uint32_t)found[0] << shift;
        rank = found[1];
        bits += width;
        __syncthreads();
    }
    return {prefix, rank};
}

}  // namespace bdhs
