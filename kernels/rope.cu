// Rotary position embedding. Contract: src/ops/rope.rs.
//
// A thread turns a vector of pairs of one head: columns c .. c + VEC of both halves. Products and sums are not fused, so the
// bits are the CPU's.
#include "common/dtype.cuh"
#include "common/grid.cuh"

namespace bdhs {

struct RopeArgs {
    const void* x;      // [rows, heads, 2 half], rows x_stride apart
    const float* cos;   // [rows, half]
    const float* sin;   // [rows, half]
    void* out;          // [rows, heads, 2 half]
    uint64_t rows, heads, vectors;  // vectors of a half: the last one may be cut
    int64_t half, x_stride;
    uint32_t aligned;  // every half of every head and table starts at a multiple of 16 bytes
    uint32_t reserved;
};
static_assert(sizeof(RopeArgs) == 80, "the launch code relies on this layout");

constexpr int ROPE_THREADS = 256;

template <class T, bool ALIGNED> BDHS_DEVICE void rope_vector(const RopeArgs& args, uint64_t i) {
    using S = typename T::storage;
    const Place in_head = place_of(i, args.vectors), in_row = place_of(in_head.row, args.heads);
    const int64_t row = (int64_t)in_row.row, column = (int64_t)in_head.rest * T::VEC, count = args.half - column;
    const int64_t head = (int64_t)in_row.rest * 2 * args.half + column;
    const S* from = static_cast<const S*>(args.x) + row * args.x_stride + head;
    S* to = static_cast<S*>(args.out) + row * (int64_t)args.heads * 2 * args.half + head;
    float a[T::VEC], b[T::VEC], cos[T::VEC], sin[T::VEC];
    load_vec<T>(from, count, ALIGNED, a);
    load_vec<T>(from + args.half, count, ALIGNED, b);
    load_any(args.cos, row * args.half + column, count, ALIGNED, DTYPE_F32, cos);
    load_any(args.sin, row * args.half + column, count, ALIGNED, DTYPE_F32, sin);
#pragma unroll
    for (int k = 0; k < T::VEC; ++k) {
        const float first = __fsub_rn(__fmul_rn(a[k], cos[k]), __fmul_rn(b[k], sin[k]));
        b[k] = __fadd_rn(__fmul_rn(b[k], cos[k]), __fmul_rn(a[k], sin[k]));
        a[k] = first;
    }
    store_vec<T>(to, count, ALIGNED, a);
    store_vec<T>(to + args.half, count, ALIGNED, b);
}

template <class T> BDHS_DEVICE void rope_grid(const RopeArgs& args) {
    const uint64_t total = args.rows * args.heads * args.vectors, step = (uint64_t)gridDim.x * ROPE_THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * ROPE_THREADS + threadIdx.x; i < total; i += step) {
        if (args.aligned) rope_vector<T, true>(args, i);
        else rope_vector<T, false>(args, i);
    }
}

#define BDHS_ROPE_KERNEL(name, T) \
    extern "C" __global__ void __launch_bounds__(ROPE_THREADS) name(const RopeArgs args) { rope_grid<T>(args); }

BDHS_ROPE_KERNEL(rope_f32, F32)
BDHS_ROPE_KERNEL(rope_f16, F16)
BDHS_ROPE_KERNEL(rope_bf16, BF16)

}  // namespace bdhs
