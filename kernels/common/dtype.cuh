// Storage types and vector access. Every load widens to f32, every store rounds to nearest even.
#pragma once
#include "platform.cuh"

namespace bdhs {

// Codes shared with the Rust launch code (src/ops/cuda/args.rs).
enum DType : int32_t { DTYPE_F32 = 0, DTYPE_F16 = 1, DTYPE_BF16 = 2, DTYPE_I8 = 3 };

struct F32 {
    using storage = float;
    static constexpr bool IS_BF16 = false;
    static constexpr int VEC = 4;
    static __device__ __forceinline__ float decode(float x) { return x; }
    static __device__ __forceinline__ float encode(float x) { return x; }
};

struct F16 {
    using storage = uint16_t;
    static constexpr bool IS_BF16 = false;
    static constexpr int VEC = 8;
    static __device__ __forceinline__ float decode(uint16_t x) {
        return __half2float(__ushort_as_half(x));
    }
    static __device__ __forceinline__ uint16_t encode(float x) {
        return __half_as_ushort(__float2half_rn(x));
    }
};

struct BF16 {
    using storage = uint16_t;
    static constexpr bool IS_BF16 = true;
    static constexpr int VEC = 8;
    static __device__ __forceinline__ float decode(uint16_t x) {
        return __uint_as_float((uint32_t)x << 16);
    }
    static __device__ __forceinline__ uint16_t encode(float x) {
        return __bfloat16_as_ushort(__float2bfloat16_rn(x));
    }
};

// VEC elements as they lie in memory. To have several loads in flight, take them all as this, without a branch between, and
// decode afterwards: a decoded value has to be waited for.
template <class T> BDHS_DEVICE uint4 load_raw(const typename T::storage* p) {
    return *reinterpret_cast<const uint4*>(p);
}

template <class T> BDHS_DEVICE void decode_raw(const uint4& raw, float (&out)[T::VEC]) {
    const uint32_t word[4] = {raw.x, raw.y, raw.z, raw.w};
    if constexpr (T::VEC == 4) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[i] = __uint_as_float(word[i]);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            out[2 * i] = T::decode((uint16_t)(word[i] & 0xffffu));
            out[2 * i + 1] = T::decode((uint16_t)(word[i] >> 16));
        }
    }
}

// `count` elements from `p` (at most VEC), zeros behind them. `aligned` promises that `p` is a
// multiple of 16 bytes; the result does not depend on it.
template <class T>
BDHS_DEVICE void load_vec(const typename T::storage* p, int64_t count, bool aligned,
                          float (&out)[T::VEC]) {
    if (aligned && count >= T::VEC) {
        decode_raw<T>(load_raw<T>(p), out);
    } else {
#pragma unroll
        for (int i = 0; i < T::VEC; ++i) out[i] = i < count ? T::decode(p[i]) : 0.0f;
    }
}

// The inverse of load_vec: rounds the first `count` of VEC values (all, if there are that many) and writes them to `p`.
template <class T>
BDHS_DEVICE void store_vec(typename T::storage* p, int64_t count, bool aligned, const float (&in)[T::VEC]) {
    if (aligned && count >= T::VEC) {
        uint32_t word[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (T::VEC == 4) word[i] = __float_as_uint(in[i]);
            else word[i] = (uint32_t)T::encode(in[2 * i]) | (uint32_t)T::encode(in[2 * i + 1]) << 16;
        }
        *reinterpret_cast<uint4*>(p) = {word[0], word[1], word[2], word[3]};
    } else {
#pragma unroll
        for (int i = 0; i < T::VEC; ++i)
            if (i < count) p[i] = T::encode(in[i]);
    }
}

// As load_vec, of a type known only at run time.
template <int N>
BDHS_DEVICE void load_any(const void* base, int64_t index, int64_t count, bool aligned, int32_t dtype,
                          float (&out)[N]) {
    if (dtype == DTYPE_F32) {
        const float* p = static_cast<const float*>(base) + index;
#pragma unroll
        for (int part = 0; part < N; part += 4) {
            float four[4];
            load_vec<F32>(p + part, count - part, aligned, four);
#pragma unroll
            for (int i = 0; i < 4; ++i) out[part + i] = four[i];
        }
        return;
    }
    const uint16_t* p = static_cast<const uint16_t*>(base) + index;
#pragma unroll
    for (int i = 0; i < N; ++i)
        out[i] = i >= count ? 0.0f : dtype == DTYPE_F16 ? F16::decode(p[i]) : BF16::decode(p[i]);
}

// One f32 value into an output of any dtype. i8 is round(127 v), clamped; -128 marks NaN.
BDHS_DEVICE void store_as(void* out, int64_t index, float value, int32_t dtype) {
    switch (dtype) {
        case DTYPE_F32: static_cast<float*>(out)[index] = value; break;
        case DTYPE_F16: static_cast<uint16_t*>(out)[index] = F16::encode(value); break;
        case DTYPE_BF16: static_cast<uint16_t*>(out)[index] = BF16::encode(value); break;
        default: {
            const float scaled = fminf(fmaxf(value * 127.0f, -127.0f), 127.0f);
            static_cast<int8_t*>(out)[index] = value == value ? (int8_t)rintf(scaled) : (int8_t)-128;
        }
    }
}

}  // namespace bdhs
