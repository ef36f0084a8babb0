// The one place that touches the tensor cores: D += A * B for a 16x16 tile of A, a 16x8 tile of B
// (column-major) and f32 sums. Under the shim the same function is a warp collective that computes
// the tile from the documented fragment layout, lane by lane.
//
// Fragments (g = lane / 4, t = lane % 4; every 32-bit register holds two neighbours in k):
//   a[0] = A[g][2t..], a[1] = A[g+8][2t..], a[2] = A[g][2t+8..], a[3] = A[g+8][2t+8..]
//   b[0] = B[2t..][g], b[1] = B[2t+8..][g]
//   c[0], c[1] = C[g][2t], C[g][2t+1];  c[2], c[3] = C[g+8][2t], C[g+8][2t+1]
#pragma once
#include "dtype.cuh"

namespace bdhs {

template <class T>
BDHS_DEVICE void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(__CUDACC__)
    if constexpr (T::IS_BF16) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
#else
    shim::mma_m16n8k16(c, a, b, T::IS_BF16);
#endif
}

// Two values as neighbours in a fragment, rounded to nearest even; the first in the low half.
template <class T>
BDHS_DEVICE uint32_t pack_pair(float first, float second) {
#if defined(__CUDACC__)
    if constexpr (T::IS_BF16) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
        return *reinterpret_cast<const uint32_t*>(&pair);
    } else {
        const __half2 pair = __floats2half2_rn(first, second);
        return *reinterpret_cast<const uint32_t*>(&pair);
    }
#else
    return (uint32_t)T::encode(first) | (uint32_t)T::encode(second) << 16;
#endif
}

// From shared memory, 16-byte aligned rows `pitch` values apart. B of 32 (k) x 8, whose columns are 8 rows of 32 values from
// `p` on: b[0], b[1] are the fragment of k = 0..16, b[2], b[3] that of k = 16..32. Whole warps only.
BDHS_DEVICE void load_b_rows(const uint16_t* p, int pitch, uint32_t (&b)[4]) {
#if defined(__CUDACC__)
    const uint16_t* row = p + (lane_id() % 8) * pitch + lane_id() / 8 * 8;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
#else
    const uint16_t* row = p + (lane_id() / 4) * pitch + lane_id() % 4 * 2;
    for (int i = 0; i < 4; ++i) b[i] = *reinterpret_cast<const uint32_t*>(row + 8 * i);
#endif
}

// B of 16 (k) x 16, stored as 16 rows (k) of 16 values: b[0], b[1] are the fragment of columns 0..8, b[2], b[3] that of 8..16.
BDHS_DEVICE void load_b_columns(const uint16_t* p, int pitch, uint32_t (&b)[4]) {
#if defined(__CUDACC__)
    const uint16_t* row = p + (lane_id() % 16) * pitch + lane_id() / 16 * 8;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
#else
    for (int i = 0; i < 4; ++i) {
        const uint16_t* at = p + (lane_id() % 4 * 2 + i % 2 * 8) * pitch + lane_id() / 4 + i / 2 * 8;
        b[i] = (uint32_t)at[0] | (uint32_t)at[pitch] << 16;
    }
#endif
}

}  // namespace bdhs
