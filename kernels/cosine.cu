// Cosine similarity in batches. Contract: src/ops/cosine/mod.rs.
//
// cosine_rows     one warp a candidate: score, and by integer minimum the first candidate below each threshold
// cosine_prepare  rows to operands of the tensor cores: padded planes of f16 or bf16, and a scale a row
// cosine_matrix / cosine_count / cosine_pairs   tiles of 128 x 128 scores; only the first writes them
// cosine_top_k    the best columns of rows of cosine_matrix's scores
//
// A fast score decides only where it is further from the threshold than a bound on its error that the caller
// derives (src/ops/cuda/geometry.rs); the pairs between are queued in shared memory and computed in f64 from the
// original inputs, a warp each. Counts are integers: no result depends on the order of threads.
#include "common/mma.cuh"
#include "common/select.cuh"

namespace bdhs {

struct Dots {
    double xy, xx, yy;
};

// NaN if a value is not finite, else 0 with a zero vector, else within [-1, 1]; -0 becomes 0.
BDHS_DEVICE double cosine_of(const Dots& d) {
    if (!isfinite(d.xx) || !isfinite(d.yy)) return NAN;
    if (d.xx == 0.0 || d.yy == 0.0) return 0.0;
    const double c = d.xy / sqrt(d.xx * d.yy);
    return (c > 1.0 ? 1.0 : c < -1.0 ? -1.0 : c) + 0.0;
}

// The cosine in f64 from the original values; one warp, every lane gets it.
template <class T>
BDHS_DEVICE double exact_cosine(const typename T::storage* x, const typename T::storage* y, int64_t d) {
    Dots sum = {0.0, 0.0, 0.0};
    for (int64_t c = lane_id(); c < d; c += 32) {
        const double a = T::decode(x[c]), b = T::decode(y[c]);
        sum.xy += a * b;
        sum.xx += a * a;
        sum.yy += b * b;
    }
    return cosine_of({warp_reduce<Sum>(sum.xy), warp_reduce<Sum>(sum.xx), warp_reduce<Sum>(sum.yy)});
}

// ---- rows ----

struct CosineRowsArgs {
    const void *candidates, *references;
    const uint32_t* groups;     // references + 1 offsets; null: candidate i to reference i
    const double* thresholds;
    float* scores;              // [candidates]
    uint32_t* first_below;      // [references, thresholds], all ones before the launch
    unsigned long long* tally;  // [0] NaN, [1] rechecked
    uint64_t candidate_count, reference_count;
    int64_t d, candidate_stride, reference_stride;
    double bound;               // of the fast score's error
    uint32_t threshold_count;
    uint32_t aligned;
};
static_assert(sizeof(CosineRowsArgs) == 112, "the launch code relies on this layout");

constexpr int COSINE_ROW_THREADS = 256;
constexpr double SAFE_LOW = 0x1p-90, SAFE_HIGH = 0x1p100;

// The group that holds candidate i: the last offset that is not above it. 32 places at a time.
BDHS_DEVICE uint64_t owner_of(const uint32_t* groups, uint64_t count, uint64_t i) {
    uint64_t low = 0, high = count;  // groups[low] <= i, and the answer is below high
    while (high - low > 1) {
        const uint64_t step = (uint64_t)ceil_div((int64_t)(high - low), 32);
        const uint64_t at = low + step * lane_id();
        const unsigned below = __ballot_sync(FULL_WARP, at < high && groups[at] <= i);
        low += step * (uint64_t)(31 - __clz(below));
        high = low + step < high ? low + step : high;
    }
    return low;
}

template <class T> struct RowSums {
    float xy, xx, yy;
};

// Four loads of each side in flight a lane; the order depends on d alone.
template <class T>
BDHS_DEVICE RowSums<T> row_sums(const typename T::storage* x, const typename T::storage* y, int64_t d, bool aligned) {
    RowSums<T> s = {0.0f, 0.0f, 0.0f};
    constexpr int FLIGHT = 4, STEP = 32 * T::VEC;
#pragma unroll 1
    for (int64_t base = lane_id() * T::VEC; base < d; base += FLIGHT * STEP) {
        float a[FLIGHT][T::VEC], b[FLIGHT][T::VEC];
#pragma unroll
        for (int u = 0; u < FLIGHT; ++u) {
            const int64_t c = base + u * STEP;
            if (c >= d) continue;
            load_vec<T>(x + c, d - c, aligned, a[u]);
            load_vec<T>(y + c, d - c, aligned, b[u]);
        }
#pragma unroll
        for (int u = 0; u < FLIGHT; ++u) {
            if (base + u * STEP >= d) continue;
#pragma unroll
            for (int i = 0; i < T::VEC; ++i) {
                s.xy = fmaf(a[u][i], b[u][i], s.xy);
                s.xx = fmaf(a[u][i], a[u][i], s.xx);
                s.yy = fmaf(b[u][i], b[u][i], s.yy);
            }
        }
    }
    return {warp_reduce<Sum>(s.xy), warp_reduce<Sum>(s.xx), warp_reduce<Sum>(s.yy)};
}

BDHS_DEVICE bool near_any(double score, const double* thresholds, uint32_t count, double bound) {
    bool near = false;
    for (uint32_t t = lane_id(); t < count; t += 32) near |= fabs(score - thresholds[t]) <= bound;
    return __any_sync(FULL_WARP, near);
}

template <class T> BDHS_DEVICE void score_candidate(const CosineRowsArgs& args, uint64_t i) {
    const uint64_t r = args.groups ? owner_of(args.groups, args.reference_count, i) : i;
    const auto* x = static_cast<const typename T::storage*>(args.candidates) + (int64_t)i * args.candidate_stride;
    const auto* y = static_cast<const typename T::storage*>(args.references) + (int64_t)r * args.reference_stride;
    const RowSums<T> s = row_sums<T>(x, y, args.d, args.aligned != 0);
    double score = (double)s.xy / sqrt((double)s.xx * (double)s.yy);
    const bool safe = s.xx >= SAFE_LOW && s.xx <= SAFE_HIGH && s.yy >= SAFE_LOW && s.yy <= SAFE_HIGH;
    if (!safe || near_any(score, args.thresholds, args.threshold_count, args.bound)) {
        score = exact_cosine<T>(x, y, args.d);
        if (lane_id() == 0) {
            atomicAdd(&args.tally[1], 1ull);
            if (score != score) atomicAdd(&args.tally[0], 1ull);
        }
    }
    score = score > 1.0 ? 1.0 : score < -1.0 ? -1.0 : score;
    if (lane_id() == 0) args.scores[i] = (float)score;
    const uint32_t within = args.groups ? (uint32_t)(i - args.groups[r]) : 0;
    for (uint32_t t = lane_id(); t < args.threshold_count; t += 32)
        if (score < args.thresholds[t]) atomicMin(&args.first_below[r * args.threshold_count + t], within);
}

#define BDHS_COSINE_ROWS_KERNEL(name, T)                                                                \
    extern "C" __global__ void __launch_bounds__(COSINE_ROW_THREADS) name(const CosineRowsArgs args) {  \
        const uint64_t warps = (uint64_t)gridDim.x * (COSINE_ROW_THREADS / 32);                         \
        const uint64_t first = (uint64_t)blockIdx.x * (COSINE_ROW_THREADS / 32) + warp_id();            \
        for (uint64_t i = first; i < args.candidate_count; i += warps) score_candidate<T>(args, i);     \
    }

BDHS_COSINE_ROWS_KERNEL(cosine_rows_f32, F32)
BDHS_COSINE_ROWS_KERNEL(cosine_rows_f16, F16)
BDHS_COSINE_ROWS_KERNEL(cosine_rows_bf16, BF16)

// ---- operands of the tensor cores ----

constexpr int TILE = 128, TILE_K = 32;

// f32 rows become unit rows in f16: `high`, and what it leaves times 2^11 in `low`. f16 and bf16 rows are
// copied, bf16 ones times a power of two (so that no sum leaves f32's range): no rounding. Rows are
// padded with zeros to a multiple of TILE_K, and their number to one of TILE.
struct CosinePrepareArgs {
    const void* rows;
    uint16_t *high, *low;      // [padded rows, padded d]; low: f32 only, null = not wanted
    float* scale;              // [padded rows]: 1 / norm of what is stored; 0 for zero and NaN rows
    uint32_t* nan;             // [padded rows]: 1 = the row has a value that is not finite
    unsigned long long* tally;  // [0] number of such rows
    uint64_t count, padded;
    int64_t d, padded_d, stride;
};
static_assert(sizeof(CosinePrepareArgs) == 88, "the launch code relies on this layout");

template <class T> BDHS_DEVICE void prepare_row(const CosinePrepareArgs& args, uint64_t r) {
    const auto* x = static_cast<const typename T::storage*>(args.rows) + (int64_t)r * args.stride;
    double squares = 0.0;
    if (r < args.count)
        for (int64_t c = lane_id(); c < args.d; c += 32) squares += (double)T::decode(x[c]) * (double)T::decode(x[c]);
    squares = warp_reduce<Sum>(squares);
    const bool finite = isfinite(squares), live = finite && squares > 0.0;
    double factor = 1.0;  // on the stored values
    if (T::VEC == 4) factor = live ? 1.0 / sqrt(squares) : 0.0;
    if (T::IS_BF16 && live) factor = scalbn(1.0, -ilogb(squares) / 2);
    uint16_t* high = args.high + (int64_t)r * args.padded_d;
    uint16_t* low = args.low ? args.low + (int64_t)r * args.padded_d : nullptr;
    for (int64_t c = lane_id(); c < args.padded_d; c += 32) {
        const bool value = live && c < args.d;
        if constexpr (T::VEC == 4) {
            const float unit = value ? (float)((double)T::decode(x[c]) * factor) : 0.0f;
            high[c] = F16::encode(unit);
            if (low) low[c] = F16::encode((unit - F16::decode(high[c])) * 2048.0f);
        } else {
            high[c] = value ? T::encode((float)((double)T::decode(x[c]) * factor)) : (uint16_t)0;
        }
    }
    if (lane_id() == 0) {
        args.scale[r] = !live ? 0.0f : T::VEC == 4 ? 1.0f : (float)(1.0 / (sqrt(squares) * factor));
        args.nan[r] = finite ? 0u : 1u;
        if (!finite) atomicAdd(&args.tally[0], 1ull);
    }
}

#define BDHS_COSINE_PREPARE_KERNEL(name, T)                                                              \
    extern "C" __global__ void __launch_bounds__(COSINE_ROW_THREADS) name(const CosinePrepareArgs args) { \
        const uint64_t warps = (uint64_t)gridDim.x * (COSINE_ROW_THREADS / 32);                          \
        const uint64_t first = (uint64_t)blockIdx.x * (COSINE_ROW_THREADS / 32) + warp_id();             \
        for (uint64_t r = first; r < args.padded; r += warps) prepare_row<T>(args, r);                   \
    }

BDHS_COSINE_PREPARE_KERNEL(cosine_prepare_f32, F32)
BDHS_COSINE_PREPARE_KERNEL(cosine_prepare_f16, F16)
BDHS_COSINE_PREPARE_KERNEL(cosine_prepare_bf16, BF16)

// ---- tiles of all pairs ----

// One side, prepared, and its original rows.
struct CosineSide {
    const uint16_t *high, *low;
    const float* scale;
    const uint32_t* nan;
    const void* rows;
    uint64_t count;
    int64_t stride;
};

struct FoundPair {
    uint32_t i, j;
    float score;
};

struct CosineTileArgs {
    CosineSide a, b;
    int64_t d, padded_d;
    uint64_t tiles_a, tiles_b;
    float* scores;              // matrix: [a.count, b.count]
    const double* thresholds;   // count, pairs
    const float *low, *high;    // their guard bands, rounded outwards
    unsigned long long* counts;  // count: [thresholds]; pairs: [0] pairs found
    unsigned long long* rechecked;
    FoundPair* found;           // pairs: the first `capacity` found, in any order
    uint64_t capacity;
    float lowest;               // smallest of `low`
    uint32_t threshold_count;   // at most COSINE_THRESHOLDS
    uint32_t products;          // 1: high x high; 3: with both cross terms
    uint32_t symmetric;         // only the pairs i < j
    uint32_t strict;            // above means > rather than >=
    uint32_t dtype;             // of the original rows
};
static_assert(sizeof(CosineTileArgs) == 232, "the launch code relies on this layout");

constexpr int COSINE_TILE_THREADS = 256, COSINE_THRESHOLDS = 64;
// A row of 32 values takes 40 places: the eight rows of a fragment then lie in different banks.
constexpr int PITCH = TILE_K + 8, STAGE = TILE * PITCH;

// Neighbouring blocks share columns: bands of 16 tiles of b, walked along a.
struct TileAt {
    uint64_t a, b;
};

BDHS_DEVICE TileAt tile_at(const CosineTileArgs& args, uint64_t index) {
    const uint64_t band = 16, per_band = band * args.tiles_a, first = index / per_band * band;
    const uint64_t width = args.tiles_b - first < band ? args.tiles_b - first : band;
    const uint64_t rest = index % per_band;
    return {rest / width, first + rest % width};
}

// 64 x 32 scores a warp: 4 x 4 products of 16 x 8.
struct Accumulators {
    float c[4][4][4];
};

// One 16-byte piece a thread and half: rows t / 4 and t / 4 + 64, piece t % 4.
struct Staged {
    uint4 a[2], b[2];
};

BDHS_DEVICE void fetch(const uint16_t* a, const uint16_t* b, int64_t pitch, int64_t k, Staged& s) {
    const int64_t row = threadIdx.x / 4, at = k + (threadIdx.x % 4) * 8;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        s.a[h] = *reinterpret_cast<const uint4*>(a + (row + 64 * h) * pitch + at);
        s.b[h] = *reinterpret_cast<const uint4*>(b + (row + 64 * h) * pitch + at);
    }
}

BDHS_DEVICE void stage(const Staged& s, uint16_t* a, uint16_t* b) {
    const int row = (int)threadIdx.x / 4, at = (int)(threadIdx.x % 4) * 8;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        *reinterpret_cast<uint4*>(a + (row + 64 * h) * PITCH + at) = s.a[h];
        *reinterpret_cast<uint4*>(b + (row + 64 * h) * PITCH + at) = s.b[h];
    }
}

BDHS_DEVICE uint32_t pair_at(const uint16_t* p) { return *reinterpret_cast<const uint32_t*>(p); }

template <class T>
BDHS_DEVICE void multiply_stage(const uint16_t* a, const uint16_t* b, Accumulators& acc) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    const uint16_t* rows = a + (warp_id() / 4 * 64 + g) * PITCH + 2 * t;
    const uint16_t* cols = b + (warp_id() % 4 * 32 + g) * PITCH + 2 * t;
#pragma unroll
    for (int k = 0; k < TILE_K; k += 16) {
        uint32_t fa[4][4], fb[4][2];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
            const uint16_t* p = rows + m * 16 * PITCH + k;
            fa[m][0] = pair_at(p);
            fa[m][1] = pair_at(p + 8 * PITCH);
            fa[m][2] = pair_at(p + 8);
            fa[m][3] = pair_at(p + 8 * PITCH + 8);
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const uint16_t* p = cols + n * 8 * PITCH + k;
            fb[n][0] = pair_at(p);
            fb[n][1] = pair_at(p + 8);
        }
#pragma unroll
        for (int m = 0; m < 4; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n) mma_m16n8k16<T>(acc.c[m][n], fa[m], fb[n]);
    }
}

// acc += a b^T over one pair of planes; two stages in shared memory, the next one on its way.
template <class T>
BDHS_DEVICE void multiply_planes(const uint16_t* a, const uint16_t* b, int64_t padded_d, uint16_t* shared,
                                 Accumulators& acc) {
    Staged next;
    fetch(a, b, padded_d, 0, next);
    int side = 0;
#pragma unroll 1
    for (int64_t k = 0; k < padded_d; k += TILE_K) {
        uint16_t *sa = shared + side * 2 * STAGE, *sb = sa + STAGE;
        stage(next, sa, sb);
        __syncthreads();
        if (k + TILE_K < padded_d) fetch(a, b, padded_d, k + TILE_K, next);
        multiply_stage<T>(sa, sb, acc);
        side ^= 1;
    }
    __syncthreads();
}

template <class T>
BDHS_DEVICE void multiply_tile(const CosineTileArgs& args, const TileAt& at, uint16_t* shared, Accumulators& acc) {
    const int64_t a = (int64_t)at.a * TILE * args.padded_d, b = (int64_t)at.b * TILE * args.padded_d;
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) acc.c[m][n][i] = 0.0f;
    if (args.products == 3) {
        multiply_planes<T>(args.a.high + a, args.b.low + b, args.padded_d, shared, acc);
        multiply_planes<T>(args.a.low + a, args.b.high + b, args.padded_d, shared, acc);
#pragma unroll
        for (int m = 0; m < 4; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) acc.c[m][n][i] *= 1.0f / 2048.0f;
    }
    multiply_planes<T>(args.a.high + a, args.b.high + b, args.padded_d, shared, acc);
    // From sums to cosines.
    const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = warp_id() / 4 * 64 + m * 16 + g + 8 * (i / 2);
                const int col = warp_id() % 4 * 32 + n * 8 + 2 * t + i % 2;
                acc.c[m][n][i] *= args.a.scale[at.a * TILE + row] * args.b.scale[at.b * TILE + col];
            }
}

// visit(local row, local column, score) for every pair of the tile that the call asks for.
template <class Visit>
BDHS_DEVICE void each_pair(const CosineTileArgs& args, const TileAt& at, int m, int n, const float (&c)[4],
                           Visit visit) {
    const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = warp_id() / 4 * 64 + m * 16 + g + 8 * (i / 2);
        const int col = warp_id() % 4 * 32 + n * 8 + 2 * t + i % 2;
        const uint64_t r = at.a * TILE + row, s = at.b * TILE + col;
        if (r < args.a.count && s < args.b.count && (!args.symmetric || r < s)) visit(row, col, c[i]);
    }
}

template <class T> BDHS_DEVICE double exact_pair(const CosineTileArgs& args, uint64_t i, uint64_t j) {
    using S = typename T::storage;
    return exact_cosine<T>(static_cast<const S*>(args.a.rows) + (int64_t)i * args.a.stride,
                           static_cast<const S*>(args.b.rows) + (int64_t)j * args.b.stride, args.d);
}

// The bf16 tile serves bf16 rows only; the f16 tile serves f16 and f32.
template <class T> BDHS_DEVICE double exact_original(const CosineTileArgs& args, uint64_t i, uint64_t j) {
    if constexpr (T::IS_BF16) {
        return exact_pair<BF16>(args, i, j);
    } else {
        return args.dtype == DTYPE_F32 ? exact_pair<F32>(args, i, j) : exact_pair<F16>(args, i, j);
    }
}

struct TileShared {
    uint16_t* stages;  // 4 STAGE; after the products, the queue of pairs to be decided in f64
    uint32_t* queued;
    uint32_t* counts;  // COSINE_THRESHOLDS
};
static_assert(4 * STAGE >= TILE * TILE, "the queue holds every pair of a tile");

BDHS_DEVICE void enqueue(const TileShared& s, int row, int col) {
    s.stages[atomicAdd(s.queued, 1u)] = (uint16_t)(row * TILE + col);
}

BDHS_DEVICE bool above(const CosineTileArgs& args, double cosine, uint32_t t) {
    return args.strict ? cosine > args.thresholds[t] : cosine >= args.thresholds[t];
}

// Groups of eight scores whose maximum is below every band, nearly all of them, cost one comparison.
template <class Slow>
BDHS_DEVICE void each_group_reaching(const Accumulators& acc, float lowest, Slow slow) {
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
            float most = acc.c[m][n][0];
#pragma unroll
            for (int i = 1; i < 8; ++i) most = fmaxf(most, acc.c[m][n + i / 4][i % 4]);
            if (most >= lowest) {
                slow(m, n, acc.c[m][n]);
                slow(m, n + 1, acc.c[m][n + 1]);
            }
        }
}

template <class T> BDHS_DEVICE void count_tile(const CosineTileArgs& args, const TileAt& at, const TileShared& s) {
    Accumulators acc;
    multiply_tile<T>(args, at, s.stages, acc);
    if (threadIdx.x == 0) *s.queued = 0;
    for (int t = (int)threadIdx.x; t < COSINE_THRESHOLDS; t += COSINE_TILE_THREADS) s.counts[t] = 0;
    __syncthreads();
    each_group_reaching(acc, args.lowest, [&](int m, int n, const float (&c)[4]) {
        each_pair(args, at, m, n, c, [&](int row, int col, float score) {
            if (args.a.nan[at.a * TILE + row] | args.b.nan[at.b * TILE + col]) return;
            bool near = false;
            // Not unrolled: this code is repeated for each of a thread's 64 scores.
#pragma unroll 1
            for (uint32_t t = 0; t < args.threshold_count; ++t) near |= score >= args.low[t] && score <= args.high[t];
            if (near) {
                enqueue(s, row, col);
                return;
            }
#pragma unroll 1
            for (uint32_t t = 0; t < args.threshold_count; ++t)
                if (score > args.high[t]) atomicAdd(&s.counts[t], 1u);
        });
    });
    __syncthreads();
    const uint32_t queued = *s.queued;
    for (uint32_t q = (uint32_t)warp_id(); q < queued; q += COSINE_TILE_THREADS / 32) {
        const uint32_t entry = s.stages[q];
        const double cosine = exact_original<T>(args, at.a * TILE + entry / TILE, at.b * TILE + entry % TILE);
        for (uint32_t t = (uint32_t)lane_id(); t < args.threshold_count; t += 32)
            if (above(args, cosine, t)) atomicAdd(&s.counts[t], 1u);
    }
    __syncthreads();
    for (uint32_t t = threadIdx.x; t < args.threshold_count; t += COSINE_TILE_THREADS)
        if (s.counts[t]) atomicAdd(&args.counts[t], (unsigned long long)s.counts[t]);
    if (threadIdx.x == 0 && queued)
        atomicAdd(args.rechecked, (unsigned long long)queued * args.threshold_count);
}

BDHS_DEVICE float clamp_score(float s) { return s > 1.0f ? 1.0f : s < -1.0f ? -1.0f : s; }

BDHS_DEVICE void emit(const CosineTileArgs& args, uint64_t i, uint64_t j, float score) {
    const unsigned long long slot = atomicAdd(&args.counts[0], 1ull);
    if (slot < args.capacity) args.found[slot] = {(uint32_t)i, (uint32_t)j, score};
}

template <class T> BDHS_DEVICE void pairs_tile(const CosineTileArgs& args, const TileAt& at, const TileShared& s) {
    Accumulators acc;
    multiply_tile<T>(args, at, s.stages, acc);
    if (threadIdx.x == 0) *s.queued = 0;
    __syncthreads();
    each_group_reaching(acc, args.lowest, [&](int m, int n, const float (&c)[4]) {
        each_pair(args, at, m, n, c, [&](int row, int col, float score) {
            const uint64_t i = at.a * TILE + row, j = at.b * TILE + col;
            if (score < args.lowest || (args.a.nan[i] | args.b.nan[j])) return;
            if (score <= args.high[0]) enqueue(s, row, col);
            else emit(args, i, j, clamp_score(score));
        });
    });
    __syncthreads();
    const uint32_t queued = *s.queued;
    for (uint32_t q = (uint32_t)warp_id(); q < queued; q += COSINE_TILE_THREADS / 32) {
        const uint32_t entry = s.stages[q];
        const uint64_t i = at.a * TILE + entry / TILE, j = at.b * TILE + entry % TILE;
        const double cosine = exact_original<T>(args, i, j);
        if (lane_id() == 0 && above(args, cosine, 0)) emit(args, i, j, (float)cosine);
    }
    if (threadIdx.x == 0 && queued) atomicAdd(args.rechecked, (unsigned long long)queued);
}

template <class T> BDHS_DEVICE void matrix_tile(const CosineTileArgs& args, const TileAt& at, const TileShared& s) {
    Accumulators acc;
    multiply_tile<T>(args, at, s.stages, acc);
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
            each_pair(args, at, m, n, acc.c[m][n], [&](int row, int col, float score) {
                const uint64_t i = at.a * TILE + row, j = at.b * TILE + col;
                args.scores[i * args.b.count + j] = args.a.nan[i] | args.b.nan[j] ? NAN : clamp_score(score);
            });
}

#define BDHS_COSINE_TILE_KERNEL(name, tile, T)                                                              \
    extern "C" __global__ void __launch_bounds__(COSINE_TILE_THREADS, 1) name(const CosineTileArgs args) {  \
        BDHS_SHARED(uint16_t, stages, 4 * STAGE);                                                           \
        BDHS_SHARED(uint32_t, queued, 1);                                                                   \
        BDHS_SHARED(uint32_t, counts, COSINE_THRESHOLDS);                                                   \
        const TileAt at = tile_at(args, blockIdx.x);                                                        \
        if (args.symmetric && at.b < at.a) return;                                                          \
        tile<T>(args, at, {stages, queued, counts});                                                        \
    }

BDHS_COSINE_TILE_KERNEL(cosine_matrix_f16, matrix_tile, F16)
BDHS_COSINE_TILE_KERNEL(cosine_matrix_bf16, matrix_tile, BF16)
BDHS_COSINE_TILE_KERNEL(cosine_count_f16, count_tile, F16)
BDHS_COSINE_TILE_KERNEL(cosine_count_bf16, count_tile, BF16)
BDHS_COSINE_TILE_KERNEL(cosine_pairs_f16, pairs_tile, F16)
BDHS_COSINE_TILE_KERNEL(cosine_pairs_bf16, pairs_tile, BF16)

// ---- the best columns of each row ----

struct TopKArgs {
    const float* scores;  // [rows, columns]
    const void *a, *b;    // original rows
    uint32_t* candidate;  // [rows, columns], workspace
    double* exact;        // [rows, columns], workspace
    float* best;          // [rows, k]
    uint32_t* index;      // [rows, k]
    unsigned long long* rechecked;
    uint64_t first_row;   // of `a`
    uint64_t columns, k;  // 0 < k <= columns
    int64_t d, a_stride, b_stride;
    double margin;        // twice the bound of the scores' error
};
static_assert(sizeof(TopKArgs) == 120, "the launch code relies on this layout");

constexpr int TOP_K_THREADS = 256;

struct TopKShared {
    uint32_t* bins;
    uint64_t *scratch, *found;
};

BDHS_DEVICE uint32_t score_key(float s) { return s == s ? ordered_key(s) : 0u; }

// Order-preserving map from f64 (no NaN) to u64.
BDHS_DEVICE uint64_t ordered_key64(double x) {
    const uint64_t bits = (uint64_t)__double_as_longlong(x);
    return bits >> 63 ? ~bits : bits | 0x8000000000000000ull;
}

// Moves what keep(i) picks out of 0..count to the front of a list, in order: put(to, i). In place is fine: all of a round
// is read before any of it is written. Returns how many; at most `limit` are put.
template <class Keep, class Put>
BDHS_DEVICE uint64_t compact(uint64_t count, uint64_t limit, uint64_t* scratch, Keep keep, Put put) {
    uint64_t written = 0;
    for (uint64_t base = 0; base < count && written < limit; base += TOP_K_THREADS) {
        const uint64_t i = base + threadIdx.x;
        const bool stays = i < count && keep(i);
        uint64_t total = 0;
        const uint64_t at = written + block_exclusive_scan<uint64_t>(stays ? 1 : 0, scratch, &total);
        if (stays && at < limit) put(at, i);
        written += total;
    }
    __syncthreads();
    return written < limit ? written : limit;
}

// Of `count` exact cosines the k-th largest, as a key, and how many of that key are among the k.
BDHS_DEVICE void exact_cut(const double* exact, uint64_t count, uint64_t k, const TopKShared& s, uint64_t* cut,
                           uint64_t* ties) {
    const Selected upper = radix_select(k - 1, s.bins, s.scratch, s.found, [&](auto visit) {
        for (uint64_t i = threadIdx.x; i < count; i += TOP_K_THREADS)
            visit((uint32_t)(~ordered_key64(exact[i]) >> 32), 1u);
    });
    const Selected lower = radix_select(upper.within, s.bins, s.scratch, s.found, [&](auto visit) {
        for (uint64_t i = threadIdx.x; i < count; i += TOP_K_THREADS) {
            const uint64_t key = ~ordered_key64(exact[i]);
            if ((uint32_t)(key >> 32) == upper.key) visit((uint32_t)key, 1u);
        }
    });
    *cut = ~((uint64_t)upper.key << 32 | lower.key);
    *ties = lower.within + 1;
}

template <class T> BDHS_DEVICE void top_k_row(const TopKArgs& args, const TopKShared& s) {
    using S = typename T::storage;
    const uint64_t r = blockIdx.x;
    const float* scores = args.scores + r * args.columns;
    uint32_t* candidate = args.candidate + r * args.columns;
    double* exact = args.exact + r * args.columns;
    // A column whose score is below the k-th best by more than the margin cannot be among the k best cosines.
    const Selected kth = radix_select(args.k - 1, s.bins, s.scratch, s.found, [&](auto visit) {
        for (uint64_t j = threadIdx.x; j < args.columns; j += TOP_K_THREADS) visit(~score_key(scores[j]), 1u);
    });
    const double cutoff = ~kth.key ? (double)key_to_float(~kth.key) - args.margin : -2.0;
    uint64_t count = compact(
        args.columns, args.columns, s.scratch, [&](uint64_t j) { return (double)scores[j] >= cutoff; },
        [&](uint64_t to, uint64_t j) { candidate[to] = (uint32_t)j; });
    const S* x = static_cast<const S*>(args.a) + (int64_t)(args.first_row + r) * args.a_stride;
    for (uint64_t i = (uint64_t)warp_id(); i < count; i += TOP_K_THREADS / 32) {
        const double c = exact_cosine<T>(x, static_cast<const S*>(args.b) + (int64_t)candidate[i] * args.b_stride, args.d);
        if (lane_id() == 0) exact[i] = c;
    }
    if (threadIdx.x == 0) atomicAdd(args.rechecked, (unsigned long long)count);
    __syncthreads();
    if (count > args.k) {
        uint64_t cut = 0, ties = 0, seen = 0;
        exact_cut(exact, count, args.k, s, &cut, &ties);
        // Of those tied at the cut the first ones stay: number them, a round at a time, before moving anything.
        uint64_t written = 0;
        for (uint64_t base = 0; base < count; base += TOP_K_THREADS) {
            const uint64_t i = base + threadIdx.x;
            const double c = i < count ? exact[i] : -2.0;
            const uint32_t j = i < count ? candidate[i] : 0;
            const uint64_t key = ordered_key64(c);
            uint64_t tied = 0, kept = 0;
            const uint64_t rank = seen + block_exclusive_scan<uint64_t>(key == cut ? 1 : 0, s.scratch, &tied);
            const bool stays = key > cut || (key == cut && rank < ties);
            const uint64_t at = written + block_exclusive_scan<uint64_t>(stays ? 1 : 0, s.scratch, &kept);
            if (stays) exact[at] = c, candidate[at] = j;
            seen += tied;
            written += kept;
        }
        count = args.k;
        __syncthreads();
    }
    for (uint64_t i = threadIdx.x; i < count; i += TOP_K_THREADS) {
        uint64_t rank = 0;
        for (uint64_t other = 0; other < count; ++other)
            rank += exact[other] > exact[i] || (exact[other] == exact[i] && other < i);
        args.best[r * args.k + rank] = (float)exact[i];
        args.index[r * args.k + rank] = candidate[i];
    }
    // NaN ranks last, by index.
    compact(
        count < args.k ? args.columns : 0, args.k - count, s.scratch,
        [&](uint64_t j) { return scores[j] != scores[j]; },
        [&](uint64_t to, uint64_t j) {
            args.best[r * args.k + count + to] = NAN;
            args.index[r * args.k + count + to] = (uint32_t)j;
        });
}

#define BDHS_TOP_K_KERNEL(name, T)                                                       \
    extern "C" __global__ void __launch_bounds__(TOP_K_THREADS, 1) name(const TopKArgs args) { \
        BDHS_SHARED(uint32_t, bins, RADIX_BINS);                                         \
        BDHS_SHARED(uint64_t, scratch, TOP_K_THREADS / 32);                              \
        BDHS_SHARED(uint64_t, found, 2);                                                 \
        top_k_row<T>(args, {bins, scratch, found});                                      \
    }

BDHS_TOP_K_KERNEL(cosine_top_k_f32, F32)
BDHS_TOP_K_KERNEL(cosine_top_k_f16, F16)
BDHS_TOP_K_KERNEL(cosine_top_k_bf16, BF16)

}  // namespace bdhs
