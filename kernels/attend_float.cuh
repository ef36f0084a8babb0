// attend.cu in f32, by fused multiply-adds.
//
// A block has M lines and goes through tiles of N keys; keys and values share one tile. Scores: thread (tx, ty) has LINES lines
// from ty * LINES on and keys tx, tx + TX, ... Values: thread (cx, cy) has ROWS lines and columns 4 cx .. 4 cx + 4, and
// those 128 further on.
#pragma once
#include "attend_work.cuh"
#include "common/reduce.cuh"

namespace bdhs {

template <int DP, bool FEW> struct AttendFloats {
    static constexpr int M = FEW ? ATTEND_FLOAT_FEW : DP > 128 ? ATTEND_FLOAT_WIDE : ATTEND_FLOAT_LINES;
    static constexpr int N = !FEW && DP > 128 ? 16 : 32;
    static constexpr int TX = FEW ? 32 : 8, LINES = M * TX / ATTEND_THREADS, KEYS = N / TX;
    static constexpr int CX = DP / 4 < 32 ? DP / 4 : 32, CY = ATTEND_THREADS / CX, COLUMNS = DP / (4 * CX);
    static constexpr int ROWS = M > CY ? M / CY : 1;
    static constexpr int PITCH = DP + 4, WEIGHTS = N + 4;
    static constexpr int RESIDENT = FEW || DP != 128 ? 4 : 3;  // blocks a multiprocessor, which bounds registers
    static constexpr int PIECES = FEW ? ATTEND_FEW / M : ATTEND_LINES / M;
};

struct AttendFloatShared {
    float *q, *tile;           // [M, PITCH], [N, PITCH]
    float* weights;            // [M, WEIGHTS]
    float *shrink, *max, *sum;  // [M]
    uint32_t *slots, *complete;  // [N], [1]: lines to join
};

// Four values at a multiple of 16 bytes.
BDHS_DEVICE void attend_four(const float* p, float (&x)[4]) {
    const uint4 raw = *reinterpret_cast<const uint4*>(p);
    x[0] = __uint_as_float(raw.x), x[1] = __uint_as_float(raw.y);
    x[2] = __uint_as_float(raw.z), x[3] = __uint_as_float(raw.w);
}

template <int DP, bool FEW, class W>
BDHS_DEVICE void attend_float_scores(const AttendArgs& args, const W& w, int key, float (&max)[AttendFloats<DP, FEW>::LINES],
                                     float (&sum)[AttendFloats<DP, FEW>::LINES], const AttendFloatShared& s) {
    using F = AttendFloats<DP, FEW>;
    const int tx = (int)threadIdx.x % F::TX, ty = (int)threadIdx.x / F::TX;
    float c[F::LINES][F::KEYS] = {};
#pragma unroll 2
    for (int d = 0; d < (int)args.dim; d += 4) {
        float q[F::LINES][4], k[F::KEYS][4];
#pragma unroll
        for (int a = 0; a < F::LINES; ++a) attend_four(s.q + (ty * F::LINES + a) * F::PITCH + d, q[a]);
#pragma unroll
        for (int b = 0; b < F::KEYS; ++b) attend_four(s.tile + (tx + F::TX * b) * F::PITCH + d, k[b]);
#pragma unroll
        for (int a = 0; a < F::LINES; ++a)
#pragma unroll
            for (int b = 0; b < F::KEYS; ++b)
#pragma unroll
                for (int i = 0; i < 4; ++i) c[a][b] = fmaf(q[a][i], k[b][i], c[a][b]);
    }
#pragma unroll
    for (int a = 0; a < F::LINES; ++a) {
        const int line = ty * F::LINES + a;
        int seen = w.visible(args, line);
        if (seen > w.to) seen = w.to;
        const uint32_t bias = attend_biases(args, w, line);
        float most = max[a], part = 0.0f;
#pragma unroll
        for (int b = 0; b < F::KEYS; ++b) {
            const int j = key + tx + F::TX * b;
            float x = c[a][b] * args.scale;
            if (j >= seen) x = -INFINITY;
            else if (args.bias) x = fmaf(args.bias[bias + (uint32_t)j], LOG2_E, x);
            c[a][b] = x;
            most = fmaxf(most, c[a][b]);
        }
#pragma unroll
        for (int step = F::TX / 2; step > 0; step >>= 1) most = fmaxf(most, __shfl_xor_sync(FULL_WARP, most, step));
        const float base = attend_base(most), shrink = exp2f(max[a] - base);
#pragma unroll
        for (int b = 0; b < F::KEYS; ++b) {
            const float p = exp2f(c[a][b] - base);
            s.weights[line * F::WEIGHTS + tx + F::TX * b] = p;
            part += p;
        }
        if (tx == 0) s.shrink[line] = shrink;
        max[a] = most;
        sum[a] = fmaf(sum[a], shrink, part);
    }
}

template <int DP, bool FEW>
BDHS_DEVICE void attend_float_values(float (&o)[AttendFloats<DP, FEW>::ROWS][AttendFloats<DP, FEW>::COLUMNS][4],
                                     const AttendFloatShared& s) {
    using F = AttendFloats<DP, FEW>;
    const int cx = (int)threadIdx.x % F::CX, cy = (int)threadIdx.x / F::CX;
#pragma unroll
    for (int r = 0; r < F::ROWS; ++r)
#pragma unroll
        for (int c = 0; c < F::COLUMNS; ++c)
#pragma unroll
            for (int i = 0; i < 4; ++i) o[r][c][i] *= s.shrink[cy * F::ROWS + r];
#pragma unroll 1
    for (int j = 0; j < F::N; j += 4) {
        float p[F::ROWS][4];
#pragma unroll
        for (int r = 0; r < F::ROWS; ++r) attend_four(s.weights + (cy * F::ROWS + r) * F::WEIGHTS + j, p[r]);
#pragma unroll
        for (int u = 0; u < 4; ++u)
#pragma unroll
            for (int c = 0; c < F::COLUMNS; ++c) {
                float v[4];
                attend_four(s.tile + (j + u) * F::PITCH + 4 * (cx + F::CX * c), v);
#pragma unroll
                for (int r = 0; r < F::ROWS; ++r)
#pragma unroll
                    for (int i = 0; i < 4; ++i) o[r][c][i] = fmaf(p[r][u], v[i], o[r][c][i]);
            }
    }
}

// The queries of the block's lines; zeros behind them.
template <int DP, bool FEW, class W>
BDHS_DEVICE void attend_float_queries(const AttendArgs& args, const W& w, float* to) {
    using F = AttendFloats<DP, FEW>;
    for (int i = (int)threadIdx.x; i < F::M * DP; i += ATTEND_THREADS) {
        const int line = i / DP, d = i % DP;
        float x = 0.0f;
        if (line < w.lines && d < (int)args.dim)
            x = static_cast<const float*>(args.q)[w.row(args, line) * args.q_pitch + (int64_t)w.query_head(args, line) * args.dim + d];
        to[line * F::PITCH + d] = x;
    }
}

// The results of lines with one chunk, the parts of others.
template <int DP, bool FEW, class W>
BDHS_DEVICE void attend_float_write(const AttendArgs& args, const W& w, const AttendFloatShared& s,
                                    const float (&o)[AttendFloats<DP, FEW>::ROWS][AttendFloats<DP, FEW>::COLUMNS][4]) {
    using F = AttendFloats<DP, FEW>;
    const int cx = (int)threadIdx.x % F::CX, cy = (int)threadIdx.x / F::CX;
#pragma unroll
    for (int r = 0; r < F::ROWS; ++r) {
        const int line = cy * F::ROWS + r;
        if (line >= w.lines) continue;
        float* to = static_cast<float*>(args.out) + attend_place(args, w, line);
        float scale = w.visible(args, line) ? 1.0f / s.sum[line] : 0.0f;
        if constexpr (FEW) {
            if (w.chunks(args, line) > 1) {
                float* part = w.part(args, line);
                if (cx == 0) part[0] = s.max[line], part[1] = s.sum[line];
                to = part + 2;
                scale = 1.0f;
            }
        }
#pragma unroll
        for (int c = 0; c < F::COLUMNS; ++c)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int d = 4 * (cx + F::CX * c) + i;
                if (d < (int)args.dim) to[d] = o[r][c][i] * scale;
            }
    }
}

template <int DP, bool FEW, class W>
BDHS_DEVICE void attend_float(const AttendArgs& args, const W& w, const AttendFloatShared& s) {
    using F = AttendFloats<DP, FEW>;
    if (w.lines <= 0) return;
    const int tx = (int)threadIdx.x % F::TX, ty = (int)threadIdx.x / F::TX;
    const bool adds = (int)threadIdx.x / F::CX * F::ROWS < F::M;
    attend_float_queries<DP, FEW>(args, w, s.q);
    float max[F::LINES], sum[F::LINES], o[F::ROWS][F::COLUMNS][4] = {};
#pragma unroll
    for (int a = 0; a < F::LINES; ++a) max[a] = -INFINITY, sum[a] = 0.0f;
    uint32_t segment = w.item.first_segment;
#pragma unroll 1
    for (int key = w.from; key < w.to; key += F::N) {
        attend_slots<F::N>(args, w, key, segment, s.slots);
        __syncthreads();
        attend_fetch<F32, DP, F::N>(args, args.k, args.k_pitch, w.head, s.slots, w.to - key, s.tile);
        commit_copies();
        wait_copies<0>();
        __syncthreads();
        attend_float_scores<DP, FEW>(args, w, key, max, sum, s);
        __syncthreads();
        attend_fetch<F32, DP, F::N>(args, args.v, args.v_pitch, w.head, s.slots, w.to - key, s.tile);
        commit_copies();
        wait_copies<0>();
        __syncthreads();
        if (adds) attend_float_values<DP, FEW>(o, s);
        __syncthreads();
    }
#pragma unroll
    for (int a = 0; a < F::LINES; ++a) {
#pragma unroll
        for (int step = F::TX / 2; step > 0; step >>= 1) sum[a] += __shfl_xor_sync(FULL_WARP, sum[a], step);
        if (tx == 0) s.max[ty * F::LINES + a] = max[a], s.sum[ty * F::LINES + a] = sum[a];
    }
    __syncthreads();
    if (adds) attend_float_write<DP, FEW>(args, w, s, o);
    if constexpr (FEW) {
        __threadfence();
        __syncthreads();
        if (warp_id() == 0) {
            const uint32_t complete = attend_complete(args, w);
            if (lane_id() == 0) *s.complete = complete;
        }
        __syncthreads();
        __threadfence();
        for (uint32_t complete = *s.complete; complete; complete &= complete - 1)
            attend_join<F32>(args, w, __ffs(complete) - 1, (int)threadIdx.x, ATTEND_THREADS);
    }
}

}  // namespace bdhs
