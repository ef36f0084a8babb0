// Activations with their bias, and silu(gate) * up. Contract: src/ops/act.rs.
//
// A thread has ACT_FLIGHT vectors of a row at a time, loaded before the first is computed.
#include "common/dtype.cuh"
#include "common/grid.cuh"

namespace bdhs {

// Numbered as in src/ops/cuda/args.rs.
enum Activation : uint32_t {
    ACT_IDENTITY,
    ACT_GELU_ERF,
    ACT_GELU_TANH,
    ACT_QUICK_GELU,
    ACT_RELU,
    ACT_SILU,
    ACT_TANH
};

struct ActArgs {
    const void* x;       // the gate, if there is one
    const void* other;   // the bias or up; null: no bias
    void* out;           // [rows, width]
    uint64_t rows, vectors;  // vectors of a row: the last one may be cut
    int64_t width, x_stride, other_stride;  // other_stride of a bias: 0
    uint32_t activation;
    uint32_t aligned;  // every row of every operand starts at a multiple of 16 bytes
};
static_assert(sizeof(ActArgs) == 72, "the launch code relies on this layout");

constexpr int ACT_THREADS = 256, ACT_FLIGHT = 2;

BDHS_DEVICE float silu(float x) { return x / (1.0f + expf(-x)); }

BDHS_DEVICE float gelu_erf(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

BDHS_DEVICE float gelu_tanh(float x) {
    // (1 + tanh u) / 2 = 1 / (1 + e^(-2u)).
    const float u = 0.7978846f * (x + 0.044715f * x * x * x);
    return x / (1.0f + expf(-2.0f * u));
}

template <int N> BDHS_DEVICE void activate(uint32_t activation, float (&v)[N]) {
#define BDHS_EACH(code, value)                   \
    case code:                                   \
        _Pragma("unroll") for (int i = 0; i < N; ++i) { \
            const float x = v[i];                \
            v[i] = value;                        \
        }                                        \
        break;
    switch (activation) {
        BDHS_EACH(ACT_GELU_ERF, gelu_erf(x))
        BDHS_EACH(ACT_GELU_TANH, gelu_tanh(x))
        BDHS_EACH(ACT_QUICK_GELU, x / (1.0f + expf(-1.702f * x)))
        // Not fmaxf, which would turn NaN into 0.
        BDHS_EACH(ACT_RELU, x < 0.0f ? 0.0f : x)
        BDHS_EACH(ACT_SILU, silu(x))
        BDHS_EACH(ACT_TANH, tanhf(x))
        default: break;
    }
#undef BDHS_EACH
}

template <class T, bool GATED, bool ALIGNED> BDHS_DEVICE void act_vectors(const ActArgs& args, uint64_t first) {
    using S = typename T::storage;
    const S* x = static_cast<const S*>(args.x);
    const S* other = static_cast<const S*>(args.other);
    float v[ACT_FLIGHT][T::VEC], w[ACT_FLIGHT][T::VEC];
    Place at[ACT_FLIGHT];
    bool exists[ACT_FLIGHT];
#pragma unroll
    for (int f = 0; f < ACT_FLIGHT; ++f) {
        const uint64_t i = first + (uint64_t)f * ACT_THREADS;
        exists[f] = i < args.rows * args.vectors;
        if (!exists[f]) continue;
        at[f] = place_of(i, args.vectors);
        const int64_t row = (int64_t)at[f].row, column = (int64_t)at[f].rest * T::VEC;
        load_vec<T>(x + row * args.x_stride + column, args.width - column, ALIGNED, v[f]);
        if (GATED || other) load_vec<T>(other + row * args.other_stride + column, args.width - column, ALIGNED, w[f]);
    }
#pragma unroll
    for (int f = 0; f < ACT_FLIGHT; ++f) {
        if (!exists[f]) continue;
        if constexpr (GATED) {
#pragma unroll
            for (int i = 0; i < T::VEC; ++i) v[f][i] = silu(v[f][i]) * w[f][i];
        } else {
            if (other) {
#pragma unroll
                for (int i = 0; i < T::VEC; ++i) v[f][i] += w[f][i];
            }
            activate(args.activation, v[f]);
        }
        const int64_t column = (int64_t)at[f].rest * T::VEC;
        store_vec<T>(static_cast<S*>(args.out) + (int64_t)at[f].row * args.width + column, args.width - column, ALIGNED, v[f]);
    }
}

template <class T, bool GATED> BDHS_DEVICE void act_grid(const ActArgs& args) {
    constexpr uint64_t TILE = (uint64_t)ACT_THREADS * ACT_FLIGHT;
    for (uint64_t base = blockIdx.x * TILE; base < args.rows * args.vectors; base += gridDim.x * TILE) {
        if (args.aligned) act_vectors<T, GATED, true>(args, base + threadIdx.x);
        else act_vectors<T, GATED, false>(args, base + threadIdx.x);
    }
}

#define BDHS_ACT_KERNEL(name, T, GATED)                                                        \
    extern "C" __global__ void __launch_bounds__(ACT_THREADS, 4) name(const ActArgs args) { \
        act_grid<T, GATED>(args);                                                              \
    }

BDHS_ACT_KERNEL(act_bias_f32, F32, false)
BDHS_ACT_KERNEL(act_bias_f16, F16, false)
BDHS_ACT_KERNEL(act_bias_bf16, BF16, false)
BDHS_ACT_KERNEL(act_gated_f32, F32, true)
BDHS_ACT_KERNEL(act_gated_f16, F16, true)
BDHS_ACT_KERNEL(act_gated_bf16, BF16, true)

}  // namespace bdhs
