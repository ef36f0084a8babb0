// The tiles of cosine_pairs.cuh on sm_90a: 128 x 256 scores a block at a time, from products that four warps issue
// together. One thread of a block fetches chunks of the planes, two groups of warps multiply 64 rows each and decide.
//
// Blocks stay for the whole launch. Warps decide alone: no barrier but those of the chunks.
//
// Without sm_90a the kernels do not exist, and the launch code takes their twins.
#pragma once
#include "common/hopper.cuh"
#include "cosine_pairs.cuh"

namespace bdhs {

constexpr int WGMMA_THREADS = 384, WGMMA_COLUMNS = 2 * TILE;
constexpr int WGMMA_STAGES = 4, WGMMA_STAGE = 3 * CHUNK * 2;
// Columns' scales: a tile's are read after its chunks have been given back, when up to a stage each of further tiles
// are under way.
constexpr int WGMMA_SCALES = 8, WGMMA_SCALE = WGMMA_COLUMNS * 4;
static_assert(WGMMA_SCALES > WGMMA_STAGES, "scales outlive their tile's chunks");
constexpr int WGMMA_BARRIERS = WGMMA_STAGES * WGMMA_STAGE + WGMMA_SCALES * WGMMA_SCALE;
// Bytes of dynamic shared memory; 1024 to begin at a multiple of 1024.
constexpr int WGMMA_SHARED = 1024 + WGMMA_BARRIERS + 2 * WGMMA_STAGES * 8;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int WGMMA_BAND = 8;

// ---- which tiles ----

// One tile of rows, and two of columns from 2 b on.
struct WideTile {
    uint32_t a, b;
};

struct WideTiles {
    uint32_t high, wide;

    static __device__ __forceinline__ WideTiles of(const CosineTileArgs& args) {
        return {(uint32_t)args.tiles_a, ((uint32_t)args.tiles_b + 1) / 2};
    }

    __device__ __forceinline__ uint32_t end() const { return high * wide; }

    // Blocks that run at the same time share rows and columns: bands of columns, walked along the rows.
    __device__ __forceinline__ WideTile at(uint32_t index) const {
        const uint32_t per_band = WGMMA_BAND * high, start = index / per_band * WGMMA_BAND;
        const uint32_t width = min(wide - start, (uint32_t)WGMMA_BAND), rest = index % per_band;
        return {rest / width, start + rest % width};
    }

    // The first index from `index` on that this block works on, or one that is not below end(). A symmetric call
    // leaves out tiles that have no pair i < j.
    __device__ __forceinline__ uint32_t wanted(const CosineTileArgs& args, uint32_t index) const {
        while (args.symmetric && index < end()) {
            const WideTile tile = at(index);
            if ((tile.b + 1) * 2 > tile.a) break;
            index += gridDim.x;
        }
        return index;
    }
};

// ---- shared memory ----

struct WideShared {
    uint32_t base;        // address of the stages: a's chunk, then both of b
    const float* scales;  // [WGMMA_SCALES, WGMMA_COLUMNS]

    __device__ __forceinline__ uint32_t stage(uint32_t slot) const { return base + slot * WGMMA_STAGE; }
    __device__ __forceinline__ uint32_t scale(uint32_t tile) const {
        return base + WGMMA_STAGES * WGMMA_STAGE + tile % WGMMA_SCALES * WGMMA_SCALE;
    }
    __device__ __forceinline__ uint32_t full(uint32_t slot) const { return base + WGMMA_BARRIERS + slot * 8; }
    __device__ __forceinline__ uint32_t empty(uint32_t slot) const { return full(WGMMA_STAGES + slot); }
};

// A place in the ring of stages, and the parity of its phase.
struct Place {
    uint32_t slot = 0, phase = 0;

    __device__ __forceinline__ Place next() const {
        Place place;
        place.slot = slot + 1 == WGMMA_STAGES ? 0 : slot + 1;
        place.phase = slot + 1 == WGMMA_STAGES ? phase ^ 1 : phase;
        return place;
    }
};

// ---- fetching: one thread ----

BDHS_DEVICE void fetch_tiles(const CosineTileArgs& args, const WideTiles& tiles, const WideShared& shared) {
    const int64_t chunks = args.padded_d / TILE_K;
    Place at;
    uint32_t seen = 0;
#pragma unroll 1
    for (uint32_t index = tiles.wanted(args, blockIdx.x); index < tiles.end();
         index = tiles.wanted(args, index + gridDim.x), ++seen) {
        const WideTile tile = tiles.at(index);
        // A tile behind the last one of columns is fetched from it, and not looked at.
        const int64_t b[2] = {(int64_t)tile.b * 2, (int64_t)min((uint64_t)tile.b * 2 + 1, args.tiles_b - 1)};
#pragma unroll 1
        for (uint32_t product = args.products == 3 ? 0 : 2; product < 3; ++product) {
            const uint16_t* rows = (product == 1 ? args.a.low : args.a.high) + tile.a * chunks * CHUNK;
            const uint16_t* plane = product == 0 ? args.b.low : args.b.high;
            const uint16_t* columns[2] = {plane + b[0] * chunks * CHUNK, plane + b[1] * chunks * CHUNK};
#pragma unroll 1
            for (int64_t chunk = 0; chunk < chunks; ++chunk, at = at.next()) {
                const uint32_t full = shared.full(at.slot), stage = shared.stage(at.slot);
                barrier_wait(shared.empty(at.slot), at.phase ^ 1);
                const bool scaled = chunk == 0 && product == 2;
                barrier_expect(full, WGMMA_STAGE + (scaled ? WGMMA_SCALE : 0));
                copy_bulk(stage, rows + chunk * CHUNK, CHUNK * 2, full);
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    copy_bulk(stage + (1 + h) * CHUNK * 2, columns[h] + chunk * CHUNK, CHUNK * 2, full);
                if (scaled) {
#pragma unroll
                    for (int h = 0; h < 2; ++h)
                        copy_bulk(shared.scale(seen) + h * TILE * 4, args.b.scale + b[h] * TILE, TILE * 4, full);
                }
            }
        }
    }
}

// ---- multiplying: four warps ----

// Gives a stage back: each warp of both groups does.
BDHS_DEVICE void give_back(const WideShared& shared, uint32_t slot) {
    if (lane_id() == 0) barrier_arrive(shared.empty(slot));
}

// c = add ? c + a b^T : a b^T over the next `chunks` chunks.
template <class T>
BDHS_DEVICE void multiply_chunks(const WideShared& shared, uint32_t group, int64_t chunks, uint32_t add, Place& at,
                                 float (&c)[128]) {
    uint32_t last = 0;
#pragma unroll 1
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        barrier_wait(shared.full(at.slot), at.phase);
        const uint64_t a = operand(shared.stage(at.slot) + group * CHUNK), b = operand(shared.stage(at.slot) + CHUNK * 2);
        products_fence();
#pragma unroll
        for (int k = 0; k < TILE_K / 16; ++k) {
            wgmma_m64n256k16<T>(c, a + 2 * k, b + 2 * k, add);
            add = 1;
        }
        products_commit();
        if (chunk > 0) {
            products_wait<1>();
            give_back(shared, last);
        }
        last = at.slot;
        at = at.next();
    }
    products_wait<0>();
    sums_fence(c);
    give_back(shared, last);
}

// ---- deciding: a warp ----

// A thread's sums in groups of eight: group 2 g + h has, of row lane / 4 + 8 h, the columns 32 g + e / 2 * 8 + lane % 4 * 2 +
// e % 2 for e = 0..8.
BDHS_DEVICE constexpr int sum_at(int group, int e) { return (group / 2 * 4 + e / 2) * 4 + group % 2 * 2 + e % 2; }

// The groups that may have a score of at least `lowest`, a bit each, of any thread of the warp. Sums are compared
// as integers, which is right where one is positive.
BDHS_DEVICE uint32_t groups_reaching(const float (&c)[128], const float* scales, const float (&rows)[2], float lowest) {
    if (!(lowest > 0.0f)) return lowest <= 0.0f ? 0xffffu : 0u;
    uint32_t mask = 0;
#pragma unroll
    for (int g = 0; g < 8; ++g) {
        float2 scale[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            scale[j] = *reinterpret_cast<const float2*>(scales + 32 * g + 8 * j + lane_id() % 4 * 2);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            int most = 0;
#pragma unroll
            for (int j = 0; j < 4; ++j)
                most = __vimax3_s32(most, __float_as_int(c[sum_at(2 * g + h, 2 * j)] * scale[j].x),
                                    __float_as_int(c[sum_at(2 * g + h, 2 * j + 1)] * scale[j].y));
            if (__int_as_float(most) * rows[h] >= lowest) mask |= 1u << (2 * g + h);
        }
    }
    return __reduce_or_sync(FULL_WARP, mask);
}

// A group's scores, eight a thread: score[e] is of row_of(lane) and column_of(lane, e). NaN where the call does not ask for
// the pair, so that no comparison holds.
struct GroupScores {
    uint64_t row, column;
    float score[8];

    __device__ __forceinline__ uint64_t row_of(int lane) const { return row + (uint64_t)(lane / 4); }
    __device__ __forceinline__ uint64_t column_of(int lane, int e) const {
        return column + (uint64_t)(e / 2 * 8 + lane % 4 * 2 + e % 2);
    }

    __device__ __forceinline__ bool wanted(const CosineTileArgs& args, int e) const {
        const uint64_t i = row_of(lane_id()), j = column_of(lane_id(), e);
        return i < args.a.count && j < args.b.count && (!args.symmetric || i < j) && !(args.a.nan[i] | args.b.nan[j]);
    }
};

// visit(e, score[e]) for e = 0..8. Not unrolled: what is done with a score is long. The scores move up instead, since
// registers have no index.
template <class Visit> BDHS_DEVICE void each_score(const GroupScores& s, Visit visit) {
    float score[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) score[e] = s.score[e];
#pragma unroll 1
    for (int e = 0; e < 8; ++e) {
        visit(e, score[0]);
#pragma unroll
        for (int i = 0; i < 7; ++i) score[i] = score[i + 1];
    }
}

// decide(lane, i, j, cosine) with the exact cosine of each lane's pair e whose bit is set.
template <class T, class Decide>
BDHS_DEVICE void each_exact(const CosineTileArgs& args, const GroupScores& s, int e, uint32_t lanes, Decide decide) {
#pragma unroll 1
    for (; lanes; lanes &= lanes - 1) {
        const int lane = __ffs((int)lanes) - 1;
        const uint64_t i = s.row_of(lane), j = s.column_of(lane, e);
        decide(lane, i, j, exact_original<T>(args, i, j));
    }
}

// Counts of one warp: lane t has those of thresholds t and t + 32.
template <class T> struct CountScores {
    unsigned long long counts[2] = {0, 0}, rechecked = 0;

    __device__ __forceinline__ void add(uint32_t t, uint32_t number) {
        if ((uint32_t)lane_id() == t % 32) counts[0] += t < 32 ? number : 0, counts[1] += t < 32 ? 0 : number;
    }

    // The fast score decides for each threshold whose band it is not in.
    __device__ __forceinline__ void visit(const CosineTileArgs& args, const GroupScores& s) {
        uint32_t near = 0;
#pragma unroll 1
        for (uint32_t t = 0; t < args.threshold_count; ++t) {
            const float low = args.low[t], high = args.high[t];
            uint32_t over = 0;
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                over += s.score[e] > high ? 1u : 0u;
                near |= s.score[e] >= low && s.score[e] <= high ? 1u << e : 0u;
            }
            add(t, __reduce_add_sync(FULL_WARP, over));
        }
        if (!__any_sync(FULL_WARP, near != 0)) return;
        each_score(s, [&](int e, float score) {
            const uint32_t lanes = __ballot_sync(FULL_WARP, near >> e & 1u);
            rechecked += (unsigned long long)__popc(lanes);
            each_exact<T>(args, s, e, lanes, [&](int lane, uint64_t, uint64_t, double cosine) {
                const float fast = __shfl_sync(FULL_WARP, score, lane);
#pragma unroll 1
                for (uint32_t t = 0; t < args.threshold_count; ++t)
                    add(t, fast >= args.low[t] && fast <= args.high[t] && above(args, cosine, t) ? 1u : 0u);
            });
        });
    }

    __device__ __forceinline__ void finish(const CosineTileArgs& args) const {
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            const uint32_t t = half * 32 + (uint32_t)lane_id();
            if (t < args.threshold_count && counts[half]) atomicAdd(&args.counts[t], counts[half]);
        }
        if (lane_id() == 0 && rechecked) atomicAdd(args.rechecked, rechecked * args.threshold_count);
    }
};

// Lists the pairs above one threshold.
template <class T> struct ListScores {
    unsigned long long rechecked = 0;

    __device__ __forceinline__ void visit(const CosineTileArgs& args, const GroupScores& s) {
        each_score(s, [&](int e, float score) {
            if (score > args.high[0])
                emit(args, s.row_of(lane_id()), s.column_of(lane_id(), e), clamp_score(score));
            const uint32_t lanes = __ballot_sync(FULL_WARP, score >= args.lowest && score <= args.high[0]);
            rechecked += (unsigned long long)__popc(lanes);
            each_exact<T>(args, s, e, lanes, [&](int, uint64_t i, uint64_t j, double cosine) {
                if (lane_id() == 0 && above(args, cosine, 0)) emit(args, i, j, (float)cosine);
            });
        });
    }

    __device__ __forceinline__ void finish(const CosineTileArgs& args) const {
        if (lane_id() == 0 && rechecked) atomicAdd(args.rechecked, rechecked);
    }
};

// The scores of the groups of `mask` to work.visit. `row`: of the warp's first sum.
template <class Work>
BDHS_DEVICE void visit_groups(const CosineTileArgs& args, const float (&c)[128], uint32_t mask, const float* scales,
                              const float (&rows)[2], uint64_t row, uint64_t column, Work& work) {
#pragma unroll 1
    for (; mask; mask &= mask - 1) {
        const int group = __ffs((int)mask) - 1, first = group / 2 * 32;
        GroupScores s = {row + (uint64_t)(group % 2 * 8), column + (uint64_t)first, {}};
#pragma unroll
        for (int g = 0; g < 16; ++g) {
            if (g != group) continue;
#pragma unroll
            for (int e = 0; e < 8; ++e) s.score[e] = c[sum_at(g, e)];
        }
        const float scale = group % 2 ? rows[1] : rows[0];
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            const int at = first + e / 2 * 8 + lane_id() % 4 * 2 + e % 2;
            s.score[e] = s.wanted(args, e) ? s.score[e] * (scale * scales[at]) : NAN;
        }
        work.visit(args, s);
    }
    __syncwarp();
}

template <class T, class Work>
BDHS_DEVICE void decide_tiles(const CosineTileArgs& args, const WideTiles& tiles, const WideShared& shared, uint32_t group) {
    const int64_t chunks = args.padded_d / TILE_K;
    Place at;
    Work work;
    uint32_t seen = 0;
#pragma unroll 1
    for (uint32_t index = tiles.wanted(args, blockIdx.x); index < tiles.end();
         index = tiles.wanted(args, index + gridDim.x)) {
        const WideTile tile = tiles.at(index);
        const uint64_t row = (uint64_t)tile.a * TILE + group * 64 + (uint64_t)(warp_id() % 4 * 16);
        float rows[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) rows[h] = args.a.scale[row + (uint64_t)(lane_id() / 4 + 8 * h)];
        float c[128];
        if (args.products == 3) {
            multiply_chunks<T>(shared, group, 2 * chunks, 0, at, c);
#pragma unroll
            for (int i = 0; i < 128; ++i) c[i] *= 1.0f / 2048.0f;
            sums_fence(c);
        }
        multiply_chunks<T>(shared, group, chunks, args.products == 3, at, c);
        const float* scales = shared.scales + seen++ % WGMMA_SCALES * WGMMA_COLUMNS;
        const uint32_t mask = groups_reaching(c, scales, rows, args.lowest);
        if (mask) visit_groups(args, c, mask, scales, rows, row, (uint64_t)tile.b * WGMMA_COLUMNS, work);
    }
    work.finish(args);
}

template <class T, class Work> BDHS_DEVICE void wide_tiles(const CosineTileArgs& args, uint8_t* memory) {
    const uint32_t start = shared_address(memory), base = (start + 1023) & ~1023u;
    const auto* scales = reinterpret_cast<const float*>(memory + (base - start) + WGMMA_STAGES * WGMMA_STAGE);
    const WideShared shared = {base, scales};
    if (threadIdx.x == 0) {
        for (uint32_t slot = 0; slot < WGMMA_STAGES; ++slot) {
            barrier_init(shared.full(slot), 1);
            barrier_init(shared.empty(slot), 8);
        }
        barrier_init_fence();
    }
    __syncthreads();
    const WideTiles tiles = WideTiles::of(args);
    const uint32_t group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0);
    if (group == 2) {
        registers_down<72>();
        if (threadIdx.x == 256) fetch_tiles(args, tiles, shared);
    } else {
        registers_up<216>();
        decide_tiles<T, Work>(args, tiles, shared, group);
    }
}

#define BDHS_COSINE_WIDE_KERNEL(name, T, Work)                                                              \
    extern "C" __global__ void __launch_bounds__(WGMMA_THREADS, 1) name(const CosineTileArgs args) {        \
        extern __shared__ __align__(1024) uint8_t wide_memory[];                                            \
        wide_tiles<T, Work<T>>(args, wide_memory);                                                          \
    }

BDHS_COSINE_WIDE_KERNEL(cosine_count_wgmma_f16, F16, CountScores)
BDHS_COSINE_WIDE_KERNEL(cosine_count_wgmma_bf16, BF16, CountScores)
BDHS_COSINE_WIDE_KERNEL(cosine_pairs_wgmma_f16, F16, ListScores)
BDHS_COSINE_WIDE_KERNEL(cosine_pairs_wgmma_bf16, BF16, ListScores)

#endif

}  // namespace bdhs
