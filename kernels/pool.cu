// Fused embedding pooling, forward and backward. Contract: src/ops/pool/mod.rs.
//
// Tokens of a sequence are cut into parts of 64, added in order within a part, then part by part: the
// order of additions, and so every bit, is a property of the sequence alone (and the CPU's).
//
//   block = one sequence's group of `parts_per_block` parts
//   thread (tx, ty): part ty of the group, columns tx * VEC .. + VEC of each tile of `tx` * VEC columns
//
// Sequences of one group are finished by their block. Longer ones leave their parts in the
// workspace; the block that takes the last integer ticket of the sequence adds them.
#include "common/async.cuh"
#include "common/dtype.cuh"
#include "common/reduce.cuh"

namespace bdhs {

// Numbered as in src/ops/cuda/args.rs.
enum PoolMode : uint32_t { POOL_CLS, POOL_MEAN, POOL_MAX, POOL_LAST, POOL_WEIGHTED, POOL_SQRT };

// Which rows of the flattened states belong to which sequence.
struct PoolRows {
    const uint32_t* cu;       // packed: batch + 1 offsets; null = padded
    const uint32_t* lengths;  // padded: tokens of each sequence
    const uint32_t* order;    // padded: order[b * width + i] = place of token i within sequence b
    uint64_t width;           // padded: places of a sequence
};

struct PoolArgs {
    const void* states;
    PoolRows rows;
    const void* residual;  // null: none
    const float* weight;   // of the LayerNorm kernels
    const float* bias;     // null: none
    void* out;             // [batch, dim]
    float* parts;          // [sum of (length / 64 + 1), dim]; null if `groups` is 1
    float* pooled;         // [batch, dim]; null if dim <= POOL_SHARED_ROW
    uint32_t* tickets;     // [batch] zeros; null if `groups` is 1
    int64_t hidden, dim, state_stride, residual_stride;
    uint32_t batch, mode, out_dtype, residual_dtype;
    uint32_t normalize, aligned, residual_aligned;
    uint32_t columns;          // threads along the columns, a multiple of 32
    uint32_t parts_per_block;  // threads = columns * parts_per_block
    uint32_t groups;           // blocks a sequence
    float eps;
    uint32_t reserved;
};
static_assert(sizeof(PoolArgs) == 176, "the launch code relies on this layout");

constexpr int POOL_THREADS = 256, POOL_PART = 64, POOL_SHARED_ROW = 2048;
constexpr int POOL_SLOTS = 8;  // of 16 bytes a thread

// The tokens of one sequence.
struct Sequence {
    const uint32_t* order;  // null: consecutive
    uint64_t first;         // row of the first place
    int64_t length;
    int64_t part_start;  // of the sequence in `parts`

    __device__ __forceinline__ int64_t row(int64_t i) const {
        return (int64_t)(first + (order ? order[i] : (uint64_t)i));
    }
};

BDHS_DEVICE Sequence sequence_of(const PoolRows& rows, uint64_t b) {
    const uint64_t first = rows.cu ? rows.cu[b] : b * rows.width;
    const int64_t length = rows.cu ? (int64_t)rows.cu[b + 1] - (int64_t)first : (int64_t)rows.lengths[b];
    const uint32_t* order = rows.cu ? nullptr : rows.order + first;
    // Sequence b needs at most length / 64 + 1 parts, so starts at first / 64 + b cannot overlap.
    return {order, first, length, (int64_t)(first / POOL_PART + b)};
}

BDHS_DEVICE float pool_divisor(uint32_t mode, int64_t length) {
    const double n = (double)length;
    if (mode == POOL_MEAN) return (float)n;
    if (mode == POOL_SQRT) return (float)sqrt(n);
    if (mode == POOL_WEIGHTED) return (float)(n * (n + 1.0) / 2.0);
    return 1.0f;
}

BDHS_DEVICE float max_or_nan(float a, float b) { return a != a || a > b ? a : b; }

// VEC values of a token's row; for LayerNorm with the residual added.
template <class T, bool NORM>
BDHS_DEVICE void load_token(const PoolArgs& args, int64_t row, int64_t column, float (&x)[T::VEC]) {
    const auto* p = static_cast<const typename T::storage*>(args.states) + row * args.state_stride + column;
    load_vec<T>(p, args.hidden - column, args.aligned != 0, x);
    if (NORM && args.residual) {
        float r[T::VEC];
        load_any(args.residual, row * args.residual_stride + column, args.hidden - column,
                 args.residual_aligned != 0, (int32_t)args.residual_dtype, r);
#pragma unroll
        for (int i = 0; i < T::VEC; ++i) x[i] += r[i];
    }
}

// Mean and 1 / deviation of a token, two passes; one warp.
template <class T>
BDHS_DEVICE float2 token_moments(const PoolArgs& args, int64_t row) {
    float sum = 0.0f, squares = 0.0f;
    for (int64_t c = lane_id() * T::VEC; c < args.hidden; c += 32 * T::VEC) {
        float x[T::VEC];
        load_token<T, true>(args, row, c, x);
#pragma unroll
        for (int i = 0; i < T::VEC; ++i) sum += x[i];
    }
    const float mean = warp_reduce<Sum>(sum) / (float)args.hidden;
    for (int64_t c = lane_id() * T::VEC; c < args.hidden; c += 32 * T::VEC) {
        float x[T::VEC];
        load_token<T, true>(args, row, c, x);
#pragma unroll
        for (int i = 0; i < T::VEC; ++i)
            if (c + i < args.hidden) squares += (x[i] - mean) * (x[i] - mean);
    }
    const float variance = warp_reduce<Sum>(squares) / (float)args.hidden;
    return {mean, 1.0f / sqrtf(variance + args.eps)};
}

// Adds tokens [from, to) of the sequence, in order. `moments` are those of the part's tokens, for LayerNorm.
template <class T, bool MAX, bool NORM>
BDHS_DEVICE void accumulate(const PoolArgs& args, const Sequence& seq, int64_t from, int64_t to,
                            int64_t column, const float2* moments, float (&acc)[T::VEC]) {
    constexpr int FLIGHT = NORM ? 4 : 1;
#pragma unroll
    for (int i = 0; i < T::VEC; ++i) acc[i] = MAX ? -INFINITY : 0.0f;
    [[maybe_unused]] float scale[T::VEC], shift[T::VEC];
    if constexpr (NORM) {
#pragma unroll
        for (int i = 0; i < T::VEC; ++i) {
            const bool exists = column + i < args.hidden;
            scale[i] = exists ? args.weight[column + i] : 0.0f;
            shift[i] = exists && args.bias ? args.bias[column + i] : 0.0f;
        }
    }
#pragma unroll 1
    for (int64_t t = from; t < to; t += FLIGHT) {
        float x[FLIGHT][T::VEC];
#pragma unroll
        for (int u = 0; u < FLIGHT; ++u)
            if (t + u < to) load_token<T, NORM>(args, seq.row(t + u), column, x[u]);
#pragma unroll
        for (int u = 0; u < FLIGHT; ++u) {
            if (t + u >= to) continue;
            const float w = args.mode == POOL_WEIGHTED ? (float)(t + u + 1) : 1.0f;
#pragma unroll
            for (int i = 0; i < T::VEC; ++i) {
                float v = x[u][i];
                if constexpr (NORM) v = (v - moments[t + u - from].x) * moments[t + u - from].y * scale[i] + shift[i];
                acc[i] = MAX ? max_or_nan(acc[i], v) : fmaf(v, w, acc[i]);
            }
        }
    }
}

// The same without LayerNorm, where the column's VEC values can be loaded at once: seven tokens are on their way to the
// thread's own slots in shared memory while it adds one. What is under way does not take registers, so there is enough of
// it, all the time.
template <class T, bool MAX>
BDHS_DEVICE void accumulate_whole(const PoolArgs& args, const Sequence& seq, int64_t from, int64_t to, int64_t column,
                                  uint4* ring, float (&acc)[T::VEC]) {
    const auto* states = static_cast<const typename T::storage*>(args.states) + column;
    const int count = (int)(to - from);
    uint4* own = ring + threadIdx.x;
    const auto fetch = [&](int t) {
        if (t < count) copy_async(own + t % POOL_SLOTS * POOL_THREADS, states + seq.row(from + t) * args.state_stride, false);
        commit_copies();
    };
#pragma unroll
    for (int i = 0; i < T::VEC; ++i) acc[i] = MAX ? -INFINITY : 0.0f;
#pragma unroll 1
    for (int t = 0; t < POOL_SLOTS - 1; ++t) fetch(t);
#pragma unroll 1
    for (int t = 0; t < count; ++t) {
        wait_copies<POOL_SLOTS - 2>();
        float x[T::VEC];
        decode_raw<T>(own[t % POOL_SLOTS * POOL_THREADS], x);
        // Into the slot of the token before this one.
        fetch(t + POOL_SLOTS - 1);
        const float w = args.mode == POOL_WEIGHTED ? (float)(from + t + 1) : 1.0f;
#pragma unroll
        for (int i = 0; i < T::VEC; ++i) acc[i] = MAX ? max_or_nan(acc[i], x[i]) : fmaf(x[i], w, acc[i]);
    }
    wait_copies<0>();
}

template <class T, bool NORM>
BDHS_DEVICE void accumulate_any(const PoolArgs& args, const Sequence& seq, int64_t from, int64_t to,
                                int64_t column, const float2* moments, uint4* ring, float (&acc)[T::VEC]) {
    const bool max = args.mode == POOL_MAX;
    if (!NORM && args.aligned && column + T::VEC <= args.hidden) {
        if (max) accumulate_whole<T, true>(args, seq, from, to, column, ring, acc);
        else accumulate_whole<T, false>(args, seq, from, to, column, ring, acc);
    } else {
        if (max) accumulate<T, true, NORM>(args, seq, from, to, column, moments, acc);
        else accumulate<T, false, NORM>(args, seq, from, to, column, moments, acc);
    }
}

// The tokens that count: all, or one.
struct Span {
    int64_t from, to;
};

BDHS_DEVICE Span span_of(uint32_t mode, int64_t length) {
    if (length == 0) return {0, 0};
    if (mode == POOL_CLS) return {0, 1};
    if (mode == POOL_LAST) return {length - 1, length};
#ifdef BDHS_PLANTED_FAULT  // scripts/gpu-check must fail on this
    return {0, length > 64 ? length - 1 : length};
#else
    return {0, length};
#endif
}

struct PoolShared {
    uint4* ring;      // POOL_SLOTS * POOL_THREADS; without LayerNorm
    float* parts;     // POOL_THREADS * VEC; may be where the ring is
    float* row;       // POOL_SHARED_ROW
    float2* moments;  // parts_per_block * 64, at most POOL_THREADS / 32 * 64
    double* scratch;
    uint32_t* ticket;
};

// Normalises the pooled vector and writes it. The order of the sum of squares depends on `columns` alone:
// threads of other parts add exact zeros.
BDHS_DEVICE void finish_row(const PoolArgs& args, uint64_t b, const float* row, double* scratch) {
    double inverse = 1.0;
    if (args.normalize) {
        double squares = 0.0;
        if (threadIdx.x < args.columns)
            for (int64_t c = threadIdx.x; c < args.dim; c += args.columns) squares += (double)row[c] * (double)row[c];
        const double norm = sqrt(block_reduce<Sum>(squares, scratch));
        inverse = norm == 0.0 ? 1.0 : 1.0 / norm;
    }
    for (int64_t c = threadIdx.x; c < args.dim; c += blockDim.x) {
        const float value = args.normalize ? (float)((double)row[c] * inverse) : row[c];
        store_as(args.out, (int64_t)b * args.dim + c, value, (int32_t)args.out_dtype);
    }
}

BDHS_DEVICE float join_parts(uint32_t mode, float a, float b) {
    return mode == POOL_MAX ? max_or_nan(a, b) : a + b;
}

// The moments of this block's parts; each warp takes every so manyeth token of its own part.
template <class T>
BDHS_DEVICE void block_moments(const PoolArgs& args, const Sequence& seq, Span own, const PoolShared& s) {
    const int warps = (int)args.columns / 32, ty = (int)(threadIdx.x / args.columns);
    const int warp = (int)(threadIdx.x % args.columns) / 32;
    for (int64_t t = own.from + warp; t < own.to; t += warps) {
        const float2 m = token_moments<T>(args, seq.row(t));
        if (lane_id() == 0) s.moments[ty * POOL_PART + (t - own.from)] = m;
    }
    __syncthreads();
}

// Sums this block's parts into `row` (a sequence of one group) or into the workspace.
template <class T, bool NORM>
BDHS_DEVICE void block_parts(const PoolArgs& args, const Sequence& seq, Span span, uint32_t group,
                             bool single, float* row, const PoolShared& s) {
    const int tx = (int)(threadIdx.x % args.columns), ty = (int)(threadIdx.x / args.columns);
    const int64_t part = (int64_t)group * args.parts_per_block + ty;
    const int64_t begin = span.from + part * POOL_PART;
    const Span own = {begin, begin + POOL_PART < span.to ? begin + POOL_PART : span.to};
    if (NORM) block_moments<T>(args, seq, own, s);
    const float divisor = pool_divisor(args.mode, seq.length);
    const int tile = (int)args.columns * T::VEC;
    for (int64_t base = 0; base < args.dim; base += tile) {
        const int64_t column = base + tx * T::VEC;
        float acc[T::VEC];
        if (column < args.dim && own.from < own.to)
            accumulate_any<T, NORM>(args, seq, own.from, own.to, column, NORM ? s.moments + ty * POOL_PART : nullptr, s.ring, acc);
        if (!single) {
            float* to = args.parts + (seq.part_start + part) * args.dim + column;
#pragma unroll
            for (int i = 0; i < T::VEC; ++i)
                if (own.from < own.to && column + i < args.dim) to[i] = acc[i];
            continue;
        }
        // The slots become the parts.
        if (!NORM) __syncthreads();
#pragma unroll
        for (int i = 0; i < T::VEC; ++i) s.parts[ty * tile + tx * T::VEC + i] = acc[i];
        __syncthreads();
        const int64_t parts = ceil_div(span.to - span.from, POOL_PART);
        for (int c = (int)threadIdx.x; c < tile && base + c < args.dim; c += (int)blockDim.x) {
            float v = s.parts[c];
            for (int p = 1; p < parts; ++p) v = join_parts(args.mode, v, s.parts[p * tile + c]);
            row[base + c] = v / divisor;
        }
        __syncthreads();
    }
}

// True in the one block of the sequence that comes last, when all parts are in the workspace.
BDHS_DEVICE bool takes_last_ticket(const PoolArgs& args, uint64_t b, uint32_t groups, uint32_t* shared) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *shared = atomicAdd(&args.tickets[b], 1u);
    __syncthreads();
    __threadfence();
    return *shared == groups - 1;
}

template <class T, bool NORM> BDHS_DEVICE void pool_block(const PoolArgs& args, const PoolShared& s) {
    const uint64_t b = blockIdx.x / args.groups;
    const uint32_t group = blockIdx.x % args.groups;
    const Sequence seq = sequence_of(args.rows, b);
    const Span span = span_of(args.mode, seq.length);
    const int64_t parts = ceil_div(span.to - span.from, POOL_PART);
    const uint32_t groups = parts ? (uint32_t)ceil_div(parts, args.parts_per_block) : 1u;
    if (group >= groups) return;
    float* row = args.dim <= POOL_SHARED_ROW ? s.row : args.pooled + b * args.dim;
    if (parts == 0) {
        for (int64_t c = threadIdx.x; c < args.dim; c += blockDim.x) row[c] = 0.0f;
    } else {
        block_parts<T, NORM>(args, seq, span, group, groups == 1, row, s);
        if (groups > 1) {
            if (!takes_last_ticket(args, b, groups, s.ticket)) return;
            const float divisor = pool_divisor(args.mode, seq.length);
            const float* from = args.parts + seq.part_start * args.dim;
            for (int64_t c = threadIdx.x; c < args.dim; c += blockDim.x) {
                float v = from[c];
                for (int64_t p = 1; p < parts; ++p) v = join_parts(args.mode, v, from[p * args.dim + c]);
                row[c] = v / divisor;
            }
        }
    }
    __syncthreads();
    finish_row(args, b, row, s.scratch);
}

#define BDHS_POOL_KERNEL(name, T)                                                             \
    extern "C" __global__ void __launch_bounds__(POOL_THREADS, 1) name(const PoolArgs args) { \
        BDHS_SHARED(uint4, ring, POOL_SLOTS * POOL_THREADS);                                  \
        BDHS_SHARED(float, row, POOL_SHARED_ROW);                                             \
        BDHS_SHARED(double, scratch, POOL_THREADS / 32);                                      \
        BDHS_SHARED(uint32_t, ticket, 1);                                                     \
        float* parts = reinterpret_cast<float*>(ring);                                        \
        pool_block<T, false>(args, {ring, parts, row, nullptr, scratch, ticket});             \
    }

#define BDHS_POOL_NORM_KERNEL(name, T)                                                        \
    extern "C" __global__ void __launch_bounds__(POOL_THREADS, 1) name(const PoolArgs args) { \
        BDHS_SHARED(float, parts, POOL_THREADS * T::VEC);                                     \
        BDHS_SHARED(float, row, POOL_SHARED_ROW);                                             \
        BDHS_SHARED(float2, moments, POOL_THREADS / 32 * POOL_PART);                          \
        BDHS_SHARED(double, scratch, POOL_THREADS / 32);                                      \
        BDHS_SHARED(uint32_t, ticket, 1);                                                     \
        pool_block<T, true>(args, {nullptr, parts, row, moments, scratch, ticket});           \
    }

BDHS_POOL_KERNEL(pool_f32, F32)
BDHS_POOL_KERNEL(pool_f16, F16)
BDHS_POOL_KERNEL(pool_bf16, BF16)
BDHS_POOL_NORM_KERNEL(pool_norm_f32, F32)
BDHS_POOL_NORM_KERNEL(pool_norm_f16, F16)
BDHS_POOL_NORM_KERNEL(pool_norm_bf16, BF16)

// Padded input: the places of each sequence's tokens, in order, and their number, from a mask on the device.
struct PoolMaskArgs {
    const void* mask;   // [batch, width], zero = padding
    uint32_t* order;    // [batch, width]
    uint32_t* lengths;  // [batch]
    uint64_t width;
    uint32_t mask_bytes;  // 1, 4 or 8 an element
    uint32_t reserved;
};
static_assert(sizeof(PoolMaskArgs) == 40, "the launch code relies on this layout");

constexpr int POOL_MASK_THREADS = 256;

BDHS_DEVICE bool is_marked(const void* mask, uint64_t index, uint32_t bytes) {
    if (bytes == 1) return static_cast<const uint8_t*>(mask)[index] != 0;
    if (bytes == 4) return static_cast<const uint32_t*>(mask)[index] != 0;
    return static_cast<const uint64_t*>(mask)[index] != 0;
}

extern "C" __global__ void __launch_bounds__(POOL_MASK_THREADS) pool_places(const PoolMaskArgs args) {
    BDHS_SHARED(uint32_t, scratch, POOL_MASK_THREADS / 32);
    const uint64_t first = (uint64_t)blockIdx.x * args.width;
    uint32_t written = 0;
    for (uint64_t base = 0; base < args.width; base += POOL_MASK_THREADS) {
        const uint64_t place = base + threadIdx.x;
        const bool marked = place < args.width && is_marked(args.mask, first + place, args.mask_bytes);
        uint32_t total = 0;
        const uint32_t at = written + block_exclusive_scan<uint32_t>(marked ? 1u : 0u, scratch, &total);
        if (marked) args.order[first + at] = (uint32_t)place;
        written += total;
    }
    if (threadIdx.x == 0) args.lengths[blockIdx.x] = written;
}

// Gradient of the states. Places where nothing flows must hold zeros before the launch.
struct PoolGradArgs {
    const void* states;   // read for max only
    PoolRows rows;
    const float* grad;    // [batch, dim]
    const float* pooled;  // [batch, dim], before normalisation; null: no normalisation and not max
    void* out;            // [rows, hidden], contiguous, dtype of the states
    int64_t hidden, dim, state_stride;
    uint32_t batch, mode, normalize;
    uint32_t chunks;  // blocks a sequence: parts of 64 tokens, or for max POOL_GRAD_THREADS columns
};
static_assert(sizeof(PoolGradArgs) == 104, "the launch code relies on this layout");

constexpr int POOL_GRAD_THREADS = 256;

// Through v / |v|: (g - v (v . g) / |v|^2) / |v|; nothing passes a zero vector.
struct Unnormalise {
    double along, inverse;
    bool on;

    __device__ __forceinline__ float apply(float g, const float* pooled, int64_t at) const {
        return on ? (float)(((double)g - (double)pooled[at] * inverse * along) * inverse) : g;
    }
};

BDHS_DEVICE Unnormalise unnormalise(const PoolGradArgs& args, uint64_t b, double* scratch) {
    if (!args.normalize) return {0.0, 0.0, false};
    double squares = 0.0, dot = 0.0;
    for (int64_t c = threadIdx.x; c < args.dim; c += blockDim.x) {
        const double v = args.pooled[b * args.dim + c], g = args.grad[b * args.dim + c];
        squares += v * v;
        dot += v * g;
    }
    const double norm = sqrt(block_reduce<Sum>(squares, scratch));
    const double inverse = norm == 0.0 ? 0.0 : 1.0 / norm;
    return {block_reduce<Sum>(dot, scratch) * inverse, inverse, true};
}

template <class T> BDHS_DEVICE void pool_grad_block(const PoolGradArgs& args, double* scratch) {
    using S = typename T::storage;
    const uint64_t b = blockIdx.x / args.chunks;
    const int64_t chunk = blockIdx.x % args.chunks;
    const Sequence seq = sequence_of(args.rows, b);
    S* out = static_cast<S*>(args.out);
    if (seq.length == 0) return;
    if (args.mode == POOL_MAX) {
        const Unnormalise through = unnormalise(args, b, scratch);
        const int64_t c = chunk * POOL_GRAD_THREADS + threadIdx.x;
        if (c >= args.dim) return;
        const float max = args.pooled[b * args.dim + c];
        const S* states = static_cast<const S*>(args.states);
        for (int64_t t = 0; t < seq.length; ++t) {
            const float x = T::decode(states[seq.row(t) * args.state_stride + c]);
            if (x == max || x != x) {  // the first token that attains it, or its NaN
                out[seq.row(t) * args.hidden + c] =
                    T::encode(through.apply(args.grad[b * args.dim + c], args.pooled, b * args.dim + c));
                break;
            }
        }
        return;
    }
    const Span span = span_of(args.mode, seq.length);
    const int64_t from = span.from + chunk * POOL_PART;
    if (from >= span.to) return;
    const int64_t to = from + POOL_PART < span.to ? from + POOL_PART : span.to;
    const Unnormalise through = unnormalise(args, b, scratch);
    const float divisor = pool_divisor(args.mode, seq.length);
    for (int64_t c = threadIdx.x; c < args.dim; c += POOL_GRAD_THREADS) {
        const float g = through.apply(args.grad[b * args.dim + c], args.pooled, b * args.dim + c);
        for (int64_t t = from; t < to; ++t) {
            const float w = args.mode == POOL_WEIGHTED ? (float)(t + 1) : 1.0f;
            out[seq.row(t) * args.hidden + c] = T::encode(g * w / divisor);
        }
    }
}

#define BDHS_POOL_GRAD_KERNEL(name, T)                                                           \
    extern "C" __global__ void __launch_bounds__(POOL_GRAD_THREADS) name(const PoolGradArgs args) { \
        BDHS_SHARED(double, scratch, POOL_GRAD_THREADS / 32);                                    \
        pool_grad_block<T>(args, scratch);                                                       \
    }

BDHS_POOL_GRAD_KERNEL(pool_grad_f32, F32)
BDHS_POOL_GRAD_KERNEL(pool_grad_f16, F16)
BDHS_POOL_GRAD_KERNEL(pool_grad_bf16, BF16)

}  // namespace bdhs
