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

// Where the item number `rank` (from 0) falls: its key, the weight of items of that very key that
// comes before it, and the weight of all of them.
struct Selected {
    uint32_t key;
    uint64_t within, weight;
};

// A selection under way: the first `bits` of the key are known, and the rest is `within` the items
// that have them, of so much weight.
struct Radix {
    uint32_t prefix;
    int bits;
    uint64_t within, weight;
};

// The next bits of the key.
template <class W, class Each>
BDHS_DEVICE void radix_step(Radix& at, W* bins, uint64_t* scratch, uint64_t* found, Each each) {
    const int per_thread = (RADIX_BINS + (int)blockDim.x - 1) / (int)blockDim.x;
    const int width = 32 - at.bits < RADIX_BITS ? 32 - at.bits : RADIX_BITS, shift = 32 - at.bits - width;
    for (int i = (int)threadIdx.x; i < RADIX_BINS; i += (int)blockDim.x) bins[i] = 0;
    __syncthreads();
    each([&](uint32_t key, W weight) {
        // In 64 bits, so that the first pass, where no bit is known, compares nothing.
        if (((uint64_t)(key ^ at.prefix) >> (32 - at.bits)) == 0)
            add_to_bin(&bins[key >> shift & ((1u << width) - 1)], weight);
    });
    __syncthreads();
    const int first = (int)threadIdx.x * per_thread;
    uint64_t own = 0, total = 0;
    for (int i = first; i < first + per_thread && i < RADIX_BINS; ++i) own += bins[i];
    uint64_t before = block_exclusive_scan<uint64_t>(own, scratch, &total);
    if (before <= at.within && at.within < before + own) {
        int bin = first;
        while (before + bins[bin] <= at.within) before += bins[bin++];
        found[0] = (uint64_t)bin;
        found[1] = at.within - before;
        found[2] = bins[bin];
    }
    __syncthreads();
    at = {at.prefix | (uint32_t)found[0] << shift, at.bits + width, found[1], found[2]};
    __syncthreads();
}

// Finds, in ascending order of keys, the key at which the running weight first exceeds `rank`.
// `each(visit)` calls visit(key, weight) for the calling thread's share of the items, the same
// items each time. `rank` is below the total weight, which must fit W. `bins` holds RADIX_BINS
// values, `scratch` one a warp, `found` three; all are free again on return. Every thread gets the
// result.
template <class W, class Each>
BDHS_DEVICE Selected radix_select(uint64_t rank, W* bins, uint64_t* scratch, uint64_t* found,
                                  Each each) {
    Radix at = {0, 0, rank, 0};
#pragma unroll 1
    while (at.bits < 32) radix_step(at, bins, scratch, found, each);
    return {at.prefix, at.within, at.weight};
}

// radix_select for items of weight 1, `each(visit)` calling visit(key). Keys that are spread leave few
// items after the first bits: those are set beside each other at once, a thread an item.
template <class Each>
BDHS_DEVICE Selected radix_select_items(uint64_t rank, unsigned* bins, uint64_t* scratch, uint64_t* found,
                                        Each each) {
    const auto counted = [&](auto visit) { each([&](uint32_t key) { visit(key, 1u); }); };
    Radix at = {0, 0, rank, 0};
    radix_step(at, bins, scratch, found, counted);
    if (at.weight > blockDim.x) {
#pragma unroll 1
        while (at.bits < 32) radix_step(at, bins, scratch, found, counted);
        return {at.prefix, at.within, at.weight};
    }
    unsigned* few = bins + 1;  // in any order: bins[0] counts them
    if (threadIdx.x == 0) bins[0] = 0;
    __syncthreads();
    each([&](uint32_t key) {
        if ((key ^ at.prefix) >> (32 - at.bits) == 0) few[atomicAdd(&bins[0], 1u)] = key;
    });
    __syncthreads();
    if (threadIdx.x < at.weight) {
        const uint32_t own = few[threadIdx.x];
        uint32_t less = 0, same = 0, earlier = 0;
        for (uint32_t i = 0; i < at.weight; ++i) {
            less += few[i] < own;
            same += few[i] == own;
            earlier += few[i] == own && i < threadIdx.x;
        }
        if (earlier == 0 && less <= at.within && at.within < less + same) {
            found[0] = own;
            found[1] = at.within - less;
            found[2] = same;
        }
    }
    __syncthreads();
    const Selected selected = {(uint32_t)found[0], found[1], found[2]};
    __syncthreads();
    return selected;
}

}  // namespace bdhs
