// Cosine similarity in batches. Contract: src/ops/cosine/mod.rs.
//
// cosine_rows     one warp a candidate: score, and by integer minimum the first candidate below each threshold
// cosine_prepare  rows to operands of the tensor cores: padded planes of f16 or bf16, and a scale a row
// cosine_matrix / cosine_count / cosine_pairs   tiles of 128 x 128 scores; only the first writes them
// cosine_count_wgmma / cosine_pairs_wgmma       the same on sm_90a: cosine_hopper.cuh
// cosine_top_k    the best columns of rows of cosine_matrix's scores
//
// A fast score decides only where it is further from the threshold than a bound on its error that the caller
// derives (src/ops/cuda/geometry.rs); the pairs between are queued in shared memory and computed in f64 from the
// original inputs, a warp each. Counts are integers: no result depends on the order of threads.
#include "common/select.cuh"
#include "cosine_hopper.cuh"

namespace bdhs {

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

template <class T> BDHS_DEVICE void add_products(const float (&a)[T::VEC], const float (&b)[T::VEC], RowSums<T>& s) {
#pragma unroll
    for (int i = 0; i < T::VEC; ++i) {
        s.xy = fmaf(a[i], b[i], s.xy);
        s.xx = fmaf(a[i], a[i], s.xx);
        s.yy = fmaf(b[i], b[i], s.yy);
    }
}

// Four loads of each side in flight a lane; the order depends on d alone.
template <class T>
BDHS_DEVICE RowSums<T> row_sums(const typename T::storage* x, const typename T::storage* y, int64_t d, bool aligned) {
    RowSums<T> s = {0.0f, 0.0f, 0.0f};
    constexpr int FLIGHT = 4, STEP = 32 * T::VEC;
    if (aligned && d % T::VEC == 0) {
        const uint4 zero = {0, 0, 0, 0};
#pragma unroll 1
        for (int64_t base = lane_id() * T::VEC; base < d; base += FLIGHT * STEP) {
            uint4 a[FLIGHT], b[FLIGHT];
#pragma unroll
            for (int u = 0; u < FLIGHT; ++u) {
                const int64_t c = base + u * STEP;
                a[u] = c < d ? load_raw<T>(x + c) : zero;
                b[u] = c < d ? load_raw<T>(y + c) : zero;
            }
            // Zeros change no sum.
#pragma unroll
            for (int u = 0; u < FLIGHT; ++u) {
                float p[T::VEC], q[T::VEC];
                decode_raw<T>(a[u], p);
                decode_raw<T>(b[u], q);
                add_products<T>(p, q, s);
            }
        }
        return {warp_reduce<Sum>(s.xy), warp_reduce<Sum>(s.xx), warp_reduce<Sum>(s.yy)};
    }
#pragma unroll 1
    for (int64_t c = lane_id() * T::VEC; c < d; c += STEP) {
        float p[T::VEC], q[T::VEC];
        load_vec<T>(x + c, d - c, aligned, p);
        load_vec<T>(y + c, d - c, aligned, q);
        add_products<T>(p, q, s);
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
    extern "C" __global__ void __launch_bounds__(COSINE_ROW_THREADS, 4) name(const CosineRowsArgs args) { \
        const uint64_t warps = (uint64_t)gridDim.x * (COSINE_ROW_THREADS / 32);                         \
        const uint64_t first = (uint64_t)blockIdx.x * (COSINE_ROW_THREADS / 32) + warp_id();            \
        for (uint64_t i = first; i < args.candidate_count; i += warps) score_candidate<T>(args, i);     \
    }

BDHS_COSINE_ROWS_KERNEL(cosine_rows_f32, F32)
BDHS_COSINE_ROWS_KERNEL(cosine_rows_f16, F16)
BDHS_COSINE_ROWS_KERNEL(cosine_rows_bf16, BF16)

// ---- operands of the tensor cores ----

// f32 rows become unit rows in f16: `high`, and what it leaves times 2^11 in `low`. f16 and bf16 rows are
// copied, bf16 ones times a power of two (so that no sum leaves f32's range): no rounding. Rows are
// padded with zeros to a multiple of TILE_K, and their number to one of TILE. Where a value lies: plane_at.
struct CosinePrepareArgs {
    const void* rows;
    uint16_t *high, *low;      // planes of padded rows x padded d; low: f32 only, null = not wanted
    float* scale;              // [padded rows]: 1 / norm of what is stored; 0 for zero and NaN rows
    uint32_t* nan;             // [padded rows]: 1 = the row has a value that is not finite
    unsigned long long* tally;  // [0] number of such rows
    uint64_t count, padded;
    int64_t d, padded_d, stride;
};
static_assert(sizeof(CosinePrepareArgs) == 88, "the launch code relies on this layout");

// Eight columns from c on, zeros from column d on.
template <class T>
BDHS_DEVICE void load_piece(const typename T::storage* x, int64_t c, int64_t d, bool aligned, float (&out)[8]) {
#pragma unroll
    for (int part = 0; part < 8; part += T::VEC) {
        float values[T::VEC];
        load_vec<T>(x + c + part, d - c - part, aligned, values);
#pragma unroll
        for (int i = 0; i < T::VEC; ++i) out[part + i] = values[i];
    }
}

BDHS_DEVICE void store_piece(uint16_t* plane, const uint16_t (&p)[8]) {
    const auto pair = [&](int i) { return (uint32_t)p[i] | (uint32_t)p[i + 1] << 16; };
    *reinterpret_cast<uint4*>(plane) = {pair(0), pair(2), pair(4), pair(6)};
}

template <class T> BDHS_DEVICE void prepare_row(const CosinePrepareArgs& args, uint64_t r) {
    constexpr bool SPLIT = T::VEC == 4;  // f32
    const auto* x = static_cast<const typename T::storage*>(args.rows) + (int64_t)r * args.stride;
    const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
    const int64_t d = r < args.count ? args.d : 0;
    double squares = 0.0;
    for (int64_t c = lane_id() * 8; c < d; c += 32 * 8) {
        float values[8];
        load_piece<T>(x, c, d, aligned, values);
#pragma unroll
        for (int i = 0; i < 8; ++i) squares += (double)values[i] * (double)values[i];
    }
    squares = warp_reduce<Sum>(squares);
    const bool finite = isfinite(squares), live = finite && squares > 0.0;
    double factor = 1.0;  // on the stored values
    if (SPLIT) factor = live ? 1.0 / sqrt(squares) : 0.0;
    if (T::IS_BF16 && live) factor = scalbn(1.0, -ilogb(squares) / 2);
    for (int64_t c = lane_id() * 8; c < args.padded_d; c += 32 * 8) {
        float values[8];
        uint16_t high[8], low[8];
        load_piece<T>(x, c, live ? d : 0, aligned, values);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float value = (float)((double)values[i] * factor);
            if constexpr (SPLIT) {
                high[i] = F16::encode(value);
                low[i] = F16::encode((value - F16::decode(high[i])) * 2048.0f);
            } else {
                high[i] = T::encode(value);
            }
        }
        const int64_t at = plane_at(r, c, args.padded_d);
        store_piece(args.high + at, high);
        if constexpr (SPLIT)
            if (args.low) store_piece(args.low + at, low);
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

// ---- tiles of all pairs: cosine_pairs.cuh, and for sm_90a cosine_hopper.cuh ----

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
        BDHS_SHARED(uint64_t, found, 3);                                                 \
        top_k_row<T>(args, {bins, scratch, found});                                      \
    }

BDHS_TOP_K_KERNEL(cosine_top_k_f32, F32)
BDHS_TOP_K_KERNEL(cosine_top_k_f16, F16)
BDHS_TOP_K_KERNEL(cosine_top_k_bf16, BF16)

}  // namespace bdhs
