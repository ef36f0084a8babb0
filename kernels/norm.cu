// Layer and RMS normalisation with the addition before it. Contract: src/ops/norm.rs.
//
// A warp has a row of up to 32 NORM_KEPT values, a block a wider one. Thread t of the row's n threads has the vectors
// t, t + n, ..: it adds up each vector, then its vectors in order; shuffles and warps follow in a fixed order. n is a function of
// H and the dtype, so a row's bits depend on neither the other rows nor the grid. Up to NORM_KEPT values a thread stay in
// registers: the row is read once. Wider rows, and those without whole vectors, are read again, from the caches.
//
// Products and sums that could be fused are written as fmaf, so that the copies of the code (whole vectors or not) agree.
#include "common/dtype.cuh"
#include "common/reduce.cuh"

namespace bdhs {

// Numbered as in src/ops/cuda/args.rs.
enum NormLaw : uint32_t { NORM_LAYER, NORM_RMS };

struct NormArgs {
    const void* x;
    const void* residual;  // null: none
    const void* weight;    // [width]
    const void* bias;      // [width]; null: none
    const void* add_bias;  // [width]; null: none
    void* sum;             // [rows, width]; null: not wanted
    void* out;             // [rows, width]
    int64_t rows, width, x_stride, residual_stride;
    uint32_t law;
    uint32_t aligned;  // every vector of every row and parameter is whole and starts at a multiple of 16 bytes
    float eps;
    uint32_t reserved;
};
static_assert(sizeof(NormArgs) == 104, "the launch code relies on this layout");

constexpr int NORM_THREADS = 256, NORM_KEPT = 32;

// One row, as one of its threads sees it.
template <class T, bool WARP, bool ALIGNED> struct NormRow {
    using S = typename T::storage;
    using Vector = float[T::VEC];
    const NormArgs& args;
    int64_t row;
    float* scratch;

    static __device__ __forceinline__ int threads() { return WARP ? 32 : (int)blockDim.x; }
    static __device__ __forceinline__ int thread() { return WARP ? lane_id() : (int)threadIdx.x; }
    // The first column of this thread's vector number k.
    static __device__ __forceinline__ int64_t column(int64_t k) { return (thread() + k * threads()) * T::VEC; }

    __device__ __forceinline__ int64_t count(int64_t column) const { return ALIGNED ? T::VEC : args.width - column; }

    __device__ __forceinline__ void load(const void* base, int64_t at, int64_t column, Vector& v) const {
        load_vec<T>(static_cast<const S*>(base) + at + column, count(column), ALIGNED, v);
    }
    __device__ __forceinline__ void store(void* base, int64_t column, const Vector& v) const {
        store_vec<T>(static_cast<S*>(base) + row * args.width + column, count(column), ALIGNED, v);
    }
    __device__ __forceinline__ void add(const void* base, int64_t at, int64_t column, Vector& v) const {
        Vector more;
        load(base, at, column, more);
#pragma unroll
        for (int i = 0; i < T::VEC; ++i) v[i] += more[i];
    }

    static __device__ __forceinline__ float total(const Vector& v) {
        float sum = v[0];
#pragma unroll
        for (int i = 1; i < T::VEC; ++i) sum += v[i];
        return sum;
    }
    // Squares of the distances from the mean; what lies past the row has none.
    __device__ __forceinline__ float squares(int64_t column, float mean, const Vector& v) const {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < T::VEC; ++i) {
            const float d = ALIGNED || column + i < args.width ? v[i] - mean : 0.0f;
            sum = fmaf(d, d, sum);
        }
        return sum;
    }
    __device__ __forceinline__ float join(float part) const {
        if constexpr (WARP) return warp_reduce<Sum>(part);
        else return block_reduce<Sum>(part, scratch);
    }
    __device__ __forceinline__ float mean_of(float part) const { return join(part) / (float)args.width; }
    __device__ __forceinline__ float inverse_of(float part) const {
        return 1.0f / sqrtf(join(part) / (float)args.width + args.eps);
    }

    __device__ __forceinline__ void finish(int64_t column, float mean, float inverse, Vector& v) const {
        Vector weight;
        load(args.weight, 0, column, weight);
#pragma unroll
        for (int i = 0; i < T::VEC; ++i) v[i] = (v[i] - mean) * inverse;
        if (args.bias) {
            Vector bias;
            load(args.bias, 0, column, bias);
#pragma unroll
            for (int i = 0; i < T::VEC; ++i) v[i] = fmaf(v[i], weight[i], bias[i]);
        } else {
#pragma unroll
            for (int i = 0; i < T::VEC; ++i) v[i] *= weight[i];
        }
        store(args.out, column, v);
    }

    // All of the row in registers. One operand after the other, so that many loads are in flight.
    __device__ __forceinline__ void kept() const {
        constexpr int VECTORS = NORM_KEPT / T::VEC;
        float v[VECTORS][T::VEC];
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) {
            if (column(k) < args.width) {
                load(args.x, row * args.x_stride, column(k), v[k]);
            } else {
#pragma unroll
                for (int i = 0; i < T::VEC; ++i) v[k][i] = 0.0f;
            }
        }
        if (args.add_bias) {
#pragma unroll
            for (int k = 0; k < VECTORS; ++k)
                if (column(k) < args.width) add(args.add_bias, 0, column(k), v[k]);
        }
        if (args.residual) {
#pragma unroll
            for (int k = 0; k < VECTORS; ++k)
                if (column(k) < args.width) add(args.residual, row * args.residual_stride, column(k), v[k]);
        }
        if (args.sum) {
#pragma unroll
            for (int k = 0; k < VECTORS; ++k)
                if (column(k) < args.width) store(args.sum, column(k), v[k]);
        }
        float mean = 0.0f, part = 0.0f;
        if (args.law == NORM_LAYER) {
#pragma unroll
            for (int k = 0; k < VECTORS; ++k) part += total(v[k]);
            mean = mean_of(part);
        }
        part = 0.0f;
#pragma unroll
        for (int k = 0; k < VECTORS; ++k)
            if (column(k) < args.width) part += squares(column(k), mean, v[k]);
        const float inverse = inverse_of(part);
#pragma unroll
        for (int k = 0; k < VECTORS; ++k)
            if (column(k) < args.width) finish(column(k), mean, inverse, v[k]);
    }

    __device__ __forceinline__ void load_sum(int64_t column, Vector& v) const {
        load(args.x, row * args.x_stride, column, v);
        if (args.add_bias) add(args.add_bias, 0, column, v);
        if (args.residual) add(args.residual, row * args.residual_stride, column, v);
    }

    // A row of any width, read in each pass.
    __device__ __forceinline__ void reread() const {
        const int64_t step = (int64_t)threads() * T::VEC;
        Vector v;
        float mean = 0.0f, part = 0.0f;
        if (args.law == NORM_LAYER || args.sum) {
            for (int64_t c = column(0); c < args.width; c += step) {
                load_sum(c, v);
                if (args.sum) store(args.sum, c, v);
                part += total(v);
            }
            if (args.law == NORM_LAYER) mean = mean_of(part);
        }
        part = 0.0f;
        for (int64_t c = column(0); c < args.width; c += step) {
            load_sum(c, v);
            part += squares(c, mean, v);
        }
        const float inverse = inverse_of(part);
        for (int64_t c = column(0); c < args.width; c += step) {
            load_sum(c, v);
            finish(c, mean, inverse, v);
        }
    }

    __device__ __forceinline__ void run() const {
        if constexpr (ALIGNED) {
            // A warp's rows always fit.
            if (WARP || args.width <= (int64_t)threads() * NORM_KEPT) return kept();
        }
        if constexpr (!WARP || !ALIGNED) reread();
    }
};

// Rows first, first + step, ..
template <class T, bool WARP>
BDHS_DEVICE void norm_rows(const NormArgs& args, int64_t first, int64_t step, float* scratch) {
    for (int64_t row = first; row < args.rows; row += step) {
        if (args.aligned) NormRow<T, WARP, true>{args, row, scratch}.run();
        else NormRow<T, WARP, false>{args, row, scratch}.run();
    }
}

// Blocks that a multiprocessor must have room for: as many as registers allow without spills.
template <class T> constexpr int norm_blocks() { return T::VEC == 4 ? 3 : 4; }

#define BDHS_NORM_KERNELS(warp, block, T)                                                                  \
    extern "C" __global__ void __launch_bounds__(NORM_THREADS, norm_blocks<T>()) warp(const NormArgs args) { \
        constexpr int WARPS = NORM_THREADS / 32;                                                           \
        norm_rows<T, true>(args, (int64_t)blockIdx.x * WARPS + warp_id(), (int64_t)gridDim.x * WARPS, nullptr); \
    }                                                                                                      \
    extern "C" __global__ void __launch_bounds__(NORM_THREADS, norm_blocks<T>()) block(const NormArgs args) { \
        BDHS_SHARED(float, scratch, NORM_THREADS / 32);                                                    \
        norm_rows<T, false>(args, (int64_t)blockIdx.x, (int64_t)gridDim.x, scratch);                       \
    }

BDHS_NORM_KERNELS(norm_warp_f32, norm_block_f32, F32)
BDHS_NORM_KERNELS(norm_warp_f16, norm_block_f16, F16)
BDHS_NORM_KERNELS(norm_warp_bf16, norm_block_bf16, BF16)

}  // namespace bdhs
