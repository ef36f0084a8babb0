// Reductions in a fixed order: the same bits in any batch and any run.
#pragma once
#include "platform.cuh"

namespace bdhs {

struct Sum {
    template <class V> static __device__ __forceinline__ V apply(V a, V b) { return a + b; }
};
struct Max {
    template <class V> static __device__ __forceinline__ V apply(V a, V b) { return a < b ? b : a; }
};
struct Min {
    template <class V> static __device__ __forceinline__ V apply(V a, V b) { return b < a ? b : a; }
};

// Every lane gets the result. All 32 lanes must take part.
template <class Op, class V>
BDHS_DEVICE V warp_reduce(V v) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) v = Op::apply(v, __shfl_xor_sync(FULL_WARP, v, step));
    return v;
}

// Every thread gets the result. `scratch` holds at least one V per warp and is free again on
// return. The block's size is a multiple of 32.
template <class Op, class V>
BDHS_DEVICE V block_reduce(V v, V* scratch) {
    const int warps = (int)(blockDim.x >> 5);
    v = warp_reduce<Op>(v);
    if (lane_id() == 0) scratch[warp_id()] = v;
    __syncthreads();
    V total = scratch[0];
    for (int w = 1; w < warps; ++w) total = Op::apply(total, scratch[w]);
    __syncthreads();
    return total;
}

// Exclusive prefix sum over the block in thread order; `total` is the sum of all. `scratch` holds
// at least one V per warp and is free again on return.
template <class V>
BDHS_DEVICE V block_exclusive_scan(V v, V* scratch, V* total) {
    const int lane = lane_id(), warps = (int)(blockDim.x >> 5);
    V inclusive = v;
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
        const V below = __shfl_up_sync(FULL_WARP, inclusive, step);
        if (lane >= step) inclusive += below;
    }
    if (lane == 31) scratch[warp_id()] = inclusive;
    __syncthreads();
    V before = 0, sum = 0;
    for (int w = 0; w < warps; ++w) {
        if (w == warp_id()) before = sum;
        sum += scratch[w];
    }
    __syncthreads();
    *total = sum;
    return before + inclusive - v;
}

}  // namespace bdhs
