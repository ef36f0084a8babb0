// Tiles of 128 x 128 cosines of all pairs: products on the tensor cores, then counts, pairs or scores. The kernels of
// cosine.cu are instances of what is here.
#pragma once
#include "common/mma.cuh"
#include "cosine_exact.cuh"

namespace bdhs {

// A plane is stored in chunks of TILE rows and TILE_K columns: all of a tile's rows, one chunk after another. A row of a
// chunk is 128 bytes, and its eight pieces of 16 bytes are permuted by the row's number: what the sm_90a kernels' matrix
// operands look like in shared memory, so that a chunk is one contiguous copy.
constexpr int TILE = 128, TILE_K = 64, CHUNK = TILE * TILE_K;

// Where column c of row r lies in a plane.
BDHS_DEVICE int64_t plane_at(uint64_t r, int64_t c, int64_t padded_d) {
    const int64_t row = (int64_t)(r % TILE), chunk = (int64_t)(r / TILE) * (padded_d / TILE_K) + c / TILE_K;
    return chunk * CHUNK + row * TILE_K + ((c % TILE_K / 8) ^ (row % 8)) * 8 + c % 8;
}

// One side, prepared, and its original rows. The planes begin with a tile.
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
// Columns of a stage. A row of 32 values takes 40 places: the eight rows of a fragment then lie in different banks.
constexpr int STAGE_K = 32, PITCH = STAGE_K + 8, STAGE = TILE * PITCH;

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

BDHS_DEVICE void fetch(const uint16_t* a, const uint16_t* b, int64_t k, Staged& s) {
    const int64_t at = plane_at(threadIdx.x / 4, k + (threadIdx.x % 4) * 8, 0);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        s.a[h] = *reinterpret_cast<const uint4*>(a + at + 64 * h * TILE_K);
        s.b[h] = *reinterpret_cast<const uint4*>(b + at + 64 * h * TILE_K);
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
    for (int k = 0; k < STAGE_K; k += 16) {
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
    fetch(a, b, 0, next);
    int side = 0;
#pragma unroll 1
    for (int64_t k = 0; k < padded_d; k += STAGE_K) {
        uint16_t *sa = shared + side * 2 * STAGE, *sb = sa + STAGE;
        stage(next, sa, sb);
        __syncthreads();
        if (k + STAGE_K < padded_d) fetch(a, b, k + STAGE_K, next);
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

}  // namespace bdhs
