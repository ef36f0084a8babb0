// attend.cu in f16 and bf16, through the tensor cores.
//
// An item: warp w has lines 16 w .. 16 w + 16 and goes through all keys, in tiles that the block shares. A share: one warp has
// all 16 lines and goes through the keys on its own, 16 at a time.
#pragma once
#include "attend_work.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"

namespace bdhs {

template <int DP> struct AttendTile {
    static constexpr int KEYS = DP <= 128 ? 64 : 16, PITCH = DP + 8;
    static constexpr int RESIDENT = 2;  // blocks a multiprocessor, which bounds registers
};

// A warp's tiles: the next STAGES of keys and of values are under way while it computes.
template <int DP> struct AttendRing {
    static constexpr int KEYS = 16, PITCH = DP + 8, TILE = KEYS * PITCH, STAGES = DP <= 128 ? 2 : 1;
    static constexpr int WARPS = ATTEND_FEW_THREADS / 32;
    static constexpr int RESIDENT = DP <= 64 ? 8 : DP <= 128 ? 6 : 4;
};

// Two neighbouring values of a query, as they are stored.
template <class T>
BDHS_DEVICE uint32_t attend_query_pair(const AttendArgs& args, const uint16_t* q, int d) {
    if (!q || d >= (int)args.dim) return 0;
    if (args.aligned) return *reinterpret_cast<const uint32_t*>(q + d);
    return (uint32_t)q[d] | (d + 1 < (int)args.dim ? (uint32_t)q[d + 1] << 16 : 0u);
}

// Queries of a lane's two lines. Up to 128 values each stay in registers; longer ones are read for every tile of keys.
template <class T, int DP> struct AttendQueries {
    static constexpr bool KEPT = DP <= 128;
    const uint16_t* rows[2];
    uint32_t kept[KEPT ? DP / 16 : 1][4];

    // The fragment of 16 lines and values 16 k to 16 k + 16.
    __device__ __forceinline__ void read(const AttendArgs& args, int k, uint32_t (&q)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            q[i] = attend_query_pair<T>(args, rows[i % 2], 16 * k + 8 * (i / 2) + lane_id() % 4 * 2);
    }

    template <class W> __device__ __forceinline__ AttendQueries(const AttendArgs& args, const W& w, int line) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int l = line + 8 * r;
            rows[r] = nullptr;
            if (l < w.lines)
                rows[r] = static_cast<const uint16_t*>(args.q) + w.row(args, l) * args.q_pitch + (int64_t)w.query_head(args, l) * args.dim;
        }
        if constexpr (KEPT) {
#pragma unroll
            for (int k = 0; k < DP / 16; ++k) read(args, k, kept[k]);
        }
    }

    __device__ __forceinline__ void get(const AttendArgs& args, int k, uint32_t (&q)[4]) const {
        if constexpr (KEPT) {
#pragma unroll
            for (int i = 0; i < 4; ++i) q[i] = kept[k][i];
        } else {
            read(args, k, q);
        }
    }
};

// The two lines of a lane, g and g + 8 of 16: where they are in the softmax.
struct AttendLines {
    int seen[2];
    uint32_t bias[2];
    float max[2], sum[2];  // the sum is over the lane's own keys

    template <class W> __device__ __forceinline__ AttendLines(const AttendArgs& args, const W& w, int line) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            seen[r] = w.visible(args, line + 8 * r);
            if (seen[r] > w.to) seen[r] = w.to;
            bias[r] = attend_biases(args, w, line + 8 * r);
            max[r] = -INFINITY;
            sum[r] = 0.0f;
        }
    }
    // Makes the sums those of all keys.
    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            sum[r] += __shfl_xor_sync(FULL_WARP, sum[r], 1);
            sum[r] += __shfl_xor_sync(FULL_WARP, sum[r], 2);
        }
    }
};

// Scores of 8 N keys from `key` on, in c, to weights; returns in `shrink` what earlier sums are to be multiplied by.
template <int N>
BDHS_DEVICE void attend_softmax(const AttendArgs& args, AttendLines& lines, int key, float (&c)[N][4],
                                float (&shrink)[2]) {
    const int t = lane_id() % 4;
    const bool all = lines.seen[0] >= key + 8 * N && lines.seen[1] >= key + 8 * N;
    float max[2] = {lines.max[0], lines.max[1]};
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int j = key + 8 * n + 2 * t + i % 2;
            float x = c[n][i] * args.scale;
            if (!all && j >= lines.seen[i / 2]) x = -INFINITY;
            else if (args.bias) x = fmaf(args.bias[lines.bias[i / 2] + (uint32_t)j], LOG2_E, x);
            c[n][i] = x;
            max[i / 2] = fmaxf(max[i / 2], x);
        }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        max[r] = fmaxf(max[r], __shfl_xor_sync(FULL_WARP, max[r], 1));
        max[r] = fmaxf(max[r], __shfl_xor_sync(FULL_WARP, max[r], 2));
        shrink[r] = exp2f(lines.max[r] - attend_base(max[r]));
        lines.max[r] = max[r];
        lines.sum[r] *= shrink[r];
    }
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            c[n][i] = exp2f(c[n][i] - attend_base(max[i / 2]));
            lines.sum[i / 2] += c[n][i];
        }
}

// c = q k^T for 8 N keys, the rows of `keys`.
template <class T, int DP, int N>
BDHS_DEVICE void attend_scores(const AttendArgs& args, const AttendQueries<T, DP>& q, const uint16_t* keys, float (&c)[N][4]) {
    constexpr int PITCH = DP + 8;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) c[n][i] = 0.0f;
#pragma unroll(DP > 128 ? 2 : DP / 32)
    for (int k = 0; k < DP / 32; ++k) {
        uint32_t first[4], second[4];
        q.get(args, 2 * k, first);
        q.get(args, 2 * k + 1, second);
#pragma unroll
        for (int n = 0; n < N; ++n) {
            uint32_t b[4];
            load_b_rows(keys + 8 * n * PITCH + 32 * k, PITCH, b);
            mma_m16n8k16<T>(c[n], first, {b[0], b[1]});
            mma_m16n8k16<T>(c[n], second, {b[2], b[3]});
        }
    }
}

// o += weights times the 8 N rows of `values`.
template <class T, int DP, int N>
BDHS_DEVICE void attend_values(const float (&c)[N][4], const uint16_t* values, float (&o)[DP / 8][4]) {
    constexpr int PITCH = DP + 8;
#pragma unroll
    for (int s = 0; s < N / 2; ++s) {
        uint32_t high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float x = c[2 * s + i / 2][i % 2 * 2], y = c[2 * s + i / 2][i % 2 * 2 + 1];
            high[i] = pack_pair<T>(x, y);
            low[i] = pack_pair<T>(x - T::decode((uint16_t)(high[i] & 0xffffu)), y - T::decode((uint16_t)(high[i] >> 16)));
        }
#pragma unroll
        for (int n = 0; n < DP / 16; ++n) {
            uint32_t b[4];
            load_b_columns(values + 16 * s * PITCH + 16 * n, PITCH, b);
            mma_m16n8k16<T>(o[2 * n], high, {b[0], b[1]});
            mma_m16n8k16<T>(o[2 * n + 1], high, {b[2], b[3]});
            mma_m16n8k16<T>(o[2 * n], low, {b[0], b[1]});
            mma_m16n8k16<T>(o[2 * n + 1], low, {b[2], b[3]});
        }
    }
}

// Writes a line's values from the fragment, r = 0 for line g and 1 for g + 8.
template <class T, int DP, class W>
BDHS_DEVICE void attend_write(const AttendArgs& args, const W& w, int line, int r, float scale, const float (&o)[DP / 8][4]) {
    const int dim = (int)args.dim;
    const bool pairs = dim % 2 == 0 && reinterpret_cast<uintptr_t>(args.out) % 4 == 0;
    uint16_t* out = static_cast<uint16_t*>(args.out) + attend_place(args, w, line);
#pragma unroll
    for (int n = 0; n < DP / 8; ++n) {
        const int d = 8 * n + lane_id() % 4 * 2;
        const float x = o[n][2 * r] * scale, y = o[n][2 * r + 1] * scale;
        if (pairs && d < dim) {
            *reinterpret_cast<uint32_t*>(out + d) = pack_pair<T>(x, y);
        } else {
            if (d < dim) out[d] = T::encode(x);
            if (d + 1 < dim) out[d + 1] = T::encode(y);
        }
    }
}

template <class T, int DP> BDHS_DEVICE void attend_half(const AttendArgs& args, uint16_t* tiles, uint32_t* slots) {
    using Tile = AttendTile<DP>;
    constexpr int KEYS = Tile::KEYS, PITCH = Tile::PITCH, N = KEYS / 8;
    const uint32_t item = blockIdx.x / args.kv_heads, head = blockIdx.x % args.kv_heads;
    const AttendMany w = attend_many(args, item, head, 0, ATTEND_LINES);
    const int line = lane_id() / 4 + 16 * warp_id();
    uint16_t *keys = tiles, *values = tiles + KEYS * PITCH;
    const AttendQueries<T, DP> q(args, w, line);
    AttendLines lines(args, w, line);
    float o[DP / 8][4];
#pragma unroll
    for (int n = 0; n < DP / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] = 0.0f;

    uint32_t segment = w.item.first_segment;
    attend_slots<KEYS>(args, w, 0, segment, slots);
    __syncthreads();
    if (w.to > 0) attend_fetch<T, DP, KEYS>(args, args.k, args.k_pitch, w.head, slots, w.to, keys);
    commit_copies();
    int side = 0;
    // Copies are always one tile ahead: the values come while scores are computed, the next keys while values are added.
#pragma unroll 1
    for (int key = 0; key < w.to; key += KEYS, side ^= 1) {
        uint32_t *now = slots + side * KEYS, *next = slots + (side ^ 1) * KEYS;
        attend_slots<KEYS>(args, w, key + KEYS, segment, next);
        attend_fetch<T, DP, KEYS>(args, args.v, args.v_pitch, w.head, now, w.to - key, values);
        commit_copies();
        wait_copies<1>();
        __syncthreads();
        float c[N][4], shrink[2];
        attend_scores<T, DP, N>(args, q, keys, c);
        __syncthreads();
        if (key + KEYS < w.to)
            attend_fetch<T, DP, KEYS>(args, args.k, args.k_pitch, w.head, next, w.to - key - KEYS, keys);
        commit_copies();
        attend_softmax<N>(args, lines, key, c, shrink);
#pragma unroll
        for (int n = 0; n < DP / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) o[n][i] *= shrink[i / 2];
        wait_copies<1>();
        __syncthreads();
        attend_values<T, DP, N>(c, values, o);
        __syncthreads();
    }
    lines.finish();
    // Read again, rather than kept in registers all along.
    const AttendMany done = attend_many(args, item, head, 0, ATTEND_LINES);
#pragma unroll
    for (int r = 0; r < 2; ++r)
        if (line + 8 * r < done.lines)
            attend_write<T, DP>(args, done, line + 8 * r, r, lines.seen[r] ? 1.0f / lines.sum[r] : 0.0f, o);
}

// Slots of the share's keys lane and 32 + lane.
BDHS_DEVICE void attend_lane_slots(const AttendArgs& args, const AttendFew& w, uint32_t (&slots)[2]) {
    uint32_t segment = w.item.first_segment, base = w.item.base, end = w.item.end;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t key = w.from + 32 * i + lane_id();
        while ((int)key < w.to && key >= end) {
            ++segment;
            base = args.segments[segment].base;
            end = args.segments[segment].end;
        }
        slots[i] = base + key;
    }
}

// One head of the share's rows 16 step .. 16 step + 16 of k or v, as 16 rows of DP values; zeros behind dim and its keys.
template <class T, int DP>
BDHS_DEVICE void attend_fetch_step(const AttendArgs& args, const AttendFew& w, const void* from, int64_t pitch,
                                   const uint32_t (&slots)[2], int step, uint16_t* to) {
    constexpr int VECS = DP / T::VEC;
    const uint16_t* values = static_cast<const uint16_t*>(from) + (int64_t)w.head * args.dim;
    const uint32_t own = step < 2 ? slots[0] : slots[1];
#pragma unroll(DP > 128 ? 2 : VECS / 2)
    for (int j = 0; j < VECS / 2; ++j) {
        const int i = 32 * j + lane_id(), row = i / VECS, column = i % VECS * T::VEC, key = 16 * step + row;
        const uint32_t slot = __shfl_sync(FULL_WARP, own, key % 32);
        const bool exists = w.from + key < w.to && column < (int)args.dim;
        const uint16_t* source = exists ? values + (int64_t)slot * pitch + column : values;
        uint16_t* target = to + row * AttendRing<DP>::PITCH + column;
        if (args.aligned) {
            copy_async(target, source, !exists);
        } else {
#pragma unroll
            for (int k = 0; k < T::VEC; ++k) target[k] = exists && column + k < (int)args.dim ? source[k] : (uint16_t)0;
        }
    }
}

// The results of lines with one chunk, the parts of others.
template <class T, int DP>
BDHS_DEVICE void attend_leave(const AttendArgs& args, const AttendFew& w, const AttendLines& lines, const float (&o)[DP / 8][4]) {
    const int g = lane_id() / 4, t = lane_id() % 4, dim = (int)args.dim;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int line = g + 8 * r;
        if (line >= w.lines) continue;
        if (w.chunks(args, line) == 1) {
            attend_write<T, DP>(args, w, line, r, 1.0f / lines.sum[r], o);
            continue;
        }
        float* part = w.part(args, line);
        if (t == 0) part[0] = lines.max[r], part[1] = lines.sum[r];
#pragma unroll
        for (int n = 0; n < DP / 8; ++n) {
            const int d = 8 * n + 2 * t;
            if (dim % 2 == 0 && d < dim) {
                *reinterpret_cast<float2*>(part + 2 + d) = {o[n][2 * r], o[n][2 * r + 1]};
            } else {
                if (d < dim) part[2 + d] = o[n][2 * r];
                if (d + 1 < dim) part[3 + d] = o[n][2 * r + 1];
            }
        }
    }
}

template <class T, int DP> BDHS_DEVICE void attend_half_few(const AttendArgs& args, uint16_t* tiles) {
    using Ring = AttendRing<DP>;
    constexpr int STAGES = Ring::STAGES;
    const uint32_t share = blockIdx.x / args.kv_heads * Ring::WARPS + warp_id();
    if (share >= args.share_count) return;
    const AttendFew w = attend_few(args, share, blockIdx.x % args.kv_heads, 0, ATTEND_FEW);
    if (w.lines <= 0) return;
    uint16_t *keys = tiles + warp_id() * 2 * STAGES * Ring::TILE, *values = keys + STAGES * Ring::TILE;
    const int steps = (w.to - w.from + Ring::KEYS - 1) / Ring::KEYS, line = lane_id() / 4;
    uint32_t slots[2];
    attend_lane_slots(args, w, slots);
#pragma unroll
    for (int step = 0; step < STAGES; ++step) {
        if (step < steps) attend_fetch_step<T, DP>(args, w, args.k, args.k_pitch, slots, step, keys + step * Ring::TILE);
        commit_copies();
        if (step < steps) attend_fetch_step<T, DP>(args, w, args.v, args.v_pitch, slots, step, values + step * Ring::TILE);
        commit_copies();
    }
    const AttendQueries<T, DP> q(args, w, line);
    AttendLines lines(args, w, line);
    float o[DP / 8][4];
#pragma unroll
    for (int n = 0; n < DP / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] = 0.0f;
    // All but the last 2 STAGES - 1 groups of copies have come whenever a tile is needed.
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        const int tile = step % STAGES * Ring::TILE, later = step + STAGES;
        wait_copies<2 * STAGES - 1>();
        __syncwarp();
        float c[2][4], shrink[2];
        attend_scores<T, DP, 2>(args, q, keys + tile, c);
        __syncwarp();
        if (later < steps) attend_fetch_step<T, DP>(args, w, args.k, args.k_pitch, slots, later, keys + tile);
        commit_copies();
        attend_softmax<2>(args, lines, w.from + Ring::KEYS * step, c, shrink);
#pragma unroll
        for (int n = 0; n < DP / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) o[n][i] *= shrink[i / 2];
        wait_copies<2 * STAGES - 1>();
        __syncwarp();
        attend_values<T, DP, 2>(c, values + tile, o);
        __syncwarp();
        if (later < steps) attend_fetch_step<T, DP>(args, w, args.v, args.v_pitch, slots, later, values + tile);
        commit_copies();
    }
    lines.finish();
    attend_leave<T, DP>(args, w, lines, o);
    for (uint32_t complete = attend_complete(args, w); complete; complete &= complete - 1)
        attend_join<T>(args, w, __ffs(complete) - 1, lane_id(), 32);
}

}  // namespace bdhs
