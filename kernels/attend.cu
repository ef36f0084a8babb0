// Ragged attention over a key/value arena, and writing rows into one. Contract: src/ops/attend/mod.rs.
//
//   line  = a query row of a block and one of the `group` query heads that share a key head:
//           number row * group + query head within the group
//   item  = lines of one block, and keys of it: up to 64 lines with all their keys, or, of blocks of few lines, up to 16
//           lines with a chunk of 256 keys
//   block = an item and a key head
//
// The online softmax goes through tiles of keys in order, in f32. Chunks leave (maximum, sum, unnormalised values) in the
// workspace; the block that takes the last integer ticket of its lines joins them in order. Tiles and chunks are counted from
// a block's first line and key, so a row's bits depend on its own block alone.
//
// f16 and bf16 go through the tensor cores. Weights are split there into a rounded value and its rounded rest, so that they
// count as f32 but for about 2^-17 of each (bf16).
#include "common/async.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"

namespace bdhs {

// Keys before `end` (and not of an earlier segment) lie at slot base + key, in 32 bits.
struct AttendSegment {
    uint32_t base, end;
};

struct AttendItem {
    uint32_t first_row, rows;          // of its block
    uint32_t first_segment, keys;      // of its block
    uint32_t causal;
    uint32_t first_line, lines;        // within its block
    uint32_t chunk, chunks;            // chunks = 0: all keys
    uint32_t part;                     // first of lines * chunks places in `parts`
    uint32_t ticket;
    uint32_t reserved;
};
static_assert(sizeof(AttendItem) == 48, "the launch code relies on this layout");

struct AttendArgs {
    const void *q, *k, *v;
    void* out;                      // [rows, kv_heads * group, dim]
    const float* bias;              // [kv_heads * group, 2 bias_max - 1], below 2^32; null: none
    const AttendItem* items;
    const AttendSegment* segments;
    float* parts;                   // [places, kv_heads, dim + 2]: maximum, sum, values
    uint32_t* tickets;              // [tickets, kv_heads, 4] zeros
    int64_t q_pitch, k_pitch, v_pitch;  // values from a row to the next
    uint32_t dim, kv_heads, group, bias_max;
    float scale;                    // times log2 e: scores are powers of two
    uint32_t aligned;               // rows and heads of q, k and v at multiples of 16 bytes
};
static_assert(sizeof(AttendArgs) == 120, "the launch code relies on this layout");

constexpr int ATTEND_THREADS = 128, ATTEND_LINES = 64, ATTEND_FEW = 16, ATTEND_CHUNK = 256;
// Lines of a block of threads in f32: of the two kinds of items, and of many lines where D is above 128.
constexpr int ATTEND_FLOAT_LINES = 32, ATTEND_FLOAT_FEW = 4, ATTEND_FLOAT_WIDE = 16;
constexpr float LOG2_E = 1.44269504088896341f;

// What a block works on.
struct AttendWork {
    AttendItem item;
    uint32_t head;  // of k and v
    int first, lines;  // lines of this block, within the item
    int from, to;      // keys

    // The row within its block, and the query head, of a line of this block.
    __device__ __forceinline__ uint32_t row(const AttendArgs& args, int line) const {
        return (item.first_line + first + line) / args.group;
    }
    __device__ __forceinline__ uint32_t query_head(const AttendArgs& args, int line) const {
        return head * args.group + (item.first_line + first + line) % args.group;
    }
    // How many keys a line sees; none if there is no such line.
    __device__ __forceinline__ int visible(const AttendArgs& args, int line) const {
        if (line >= lines) return 0;
        if (!item.causal) return (int)item.keys;
        const int64_t seen = (int64_t)item.keys + row(args, line) + 1 - item.rows;
        return seen > 0 ? (int)seen : 0;
    }
    // Where a line's values begin in `out`.
    __device__ __forceinline__ int64_t place(const AttendArgs& args, int line) const {
        const int64_t r = (int64_t)item.first_row + row(args, line);
        return (r * args.kv_heads * args.group + query_head(args, line)) * args.dim;
    }
    // Where the biases of a line are in their table: that of key j at this + j.
    __device__ __forceinline__ uint32_t biases(const AttendArgs& args, int line) const {
        if (!args.bias || line >= lines) return 0;
        return query_head(args, line) * (2 * args.bias_max - 1) + args.bias_max - 1 - row(args, line);
    }
    // A line's place in the workspace, for a chunk.
    __device__ __forceinline__ float* part(const AttendArgs& args, uint32_t chunk, int line) const {
        const int64_t place = (int64_t)item.part + (int64_t)chunk * item.lines + first + line;
        return args.parts + (place * args.kv_heads + head) * (args.dim + 2);
    }
};

// The work of this block, where items are cut into pieces of `size` lines, `pieces` an item.
BDHS_DEVICE AttendWork attend_work(const AttendArgs& args, int size, int pieces) {
    AttendWork w;
    const uint32_t unit = blockIdx.x / pieces;
    w.head = unit % args.kv_heads;
    w.item = args.items[unit / args.kv_heads];
    w.first = (int)(blockIdx.x % pieces) * size;
    const int left = (int)w.item.lines - w.first;
    w.lines = left < size ? left : size;
    w.from = w.item.chunks ? (int)w.item.chunk * ATTEND_CHUNK : 0;
    const int seen = w.lines > 0 ? w.visible(args, w.lines - 1) : 0;
    w.to = w.item.chunks && seen - w.from > ATTEND_CHUNK ? w.from + ATTEND_CHUNK : seen;
    return w;
}

// Writes the slots of keys key .. key + KEYS, one a thread; `segment` only ever moves on.
template <int KEYS>
BDHS_DEVICE void attend_slots(const AttendArgs& args, const AttendWork& w, int key, uint32_t& segment, uint32_t* slots) {
    const int own = key + (int)threadIdx.x;
    if ((int)threadIdx.x >= KEYS || own >= w.to) return;
    while ((uint32_t)own >= args.segments[segment].end) ++segment;
    slots[threadIdx.x] = args.segments[segment].base + (uint32_t)own;
}

// One head of the rows at `slots`, `count` of them, as KEYS rows of DP values; zeros behind dim and count.
template <class T, int DP, int KEYS>
BDHS_DEVICE void attend_fetch(const AttendArgs& args, const void* from, int64_t pitch, uint32_t head,
                              const uint32_t* slots, int count, typename T::storage* to) {
    using S = typename T::storage;
    constexpr int VECS = DP / T::VEC, PITCH = DP + T::VEC;
    const S* values = static_cast<const S*>(from) + (int64_t)head * args.dim;
#pragma unroll(DP > 128 ? 1 : 4)
    for (int i = (int)threadIdx.x; i < KEYS * VECS; i += ATTEND_THREADS) {
        const int row = i / VECS, column = i % VECS * T::VEC;
        const bool exists = row < count && column < (int)args.dim;
        const S* source = exists ? values + (int64_t)slots[row] * pitch + column : values;
        S* target = to + row * PITCH + column;
        if (args.aligned) {
            copy_async(target, source, !exists);
        } else {
#pragma unroll
            for (int k = 0; k < T::VEC; ++k) target[k] = exists && column + k < (int)args.dim ? source[k] : (S)0;
        }
    }
}

// A finite maximum to subtract where no score has been seen.
BDHS_DEVICE float attend_base(float max) { return max == -INFINITY ? 0.0f : max; }

// True in the one block of a piece's chunks that comes last, when all parts are in the workspace.
BDHS_DEVICE bool attend_comes_last(const AttendArgs& args, const AttendWork& w, int piece, uint32_t* shared) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        *shared = atomicAdd(&args.tickets[((int64_t)w.item.ticket * args.kv_heads + w.head) * 4 + piece], 1u);
    __syncthreads();
    __threadfence();
    return *shared == w.item.chunks - 1;
}

// Joins the chunks of every line, in order.
template <class T> BDHS_DEVICE void attend_join(const AttendArgs& args, const AttendWork& w) {
    const int dim = (int)args.dim;
    for (int i = (int)threadIdx.x; i < w.lines * dim; i += ATTEND_THREADS) {
        const int line = i / dim, d = i % dim;
        float max = -INFINITY, sum = 0.0f, value = 0.0f;
        for (uint32_t c = 0; c < w.item.chunks; ++c) max = fmaxf(max, w.part(args, c, line)[0]);
        const float base = attend_base(max);
        for (uint32_t c = 0; c < w.item.chunks; ++c) {
            const float* part = w.part(args, c, line);
            const float weight = exp2f(part[0] - base);
            sum = fmaf(part[1], weight, sum);
            value = fmaf(part[2 + d], weight, value);
        }
        const float result = w.visible(args, line) ? value / sum : 0.0f;
        static_cast<typename T::storage*>(args.out)[w.place(args, line) + d] = T::encode(result);
    }
}

// ---- f16 and bf16: tensor cores ----
//
// Many lines: warp w has lines 16 w .. 16 w + 16 and goes through all keys. Few: each warp has all 16 lines and every so
// manyeth 16 keys; the warps' sums are joined at the end.

template <int DP, bool FEW> struct AttendTile {
    static constexpr int KEYS = DP <= 128 ? 64 : FEW ? 32 : 16, PITCH = DP + 8, WARPS = KEYS / 16;
    static constexpr int RESIDENT = FEW && DP <= 128 ? 3 : 2;  // blocks a multiprocessor, which bounds registers
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

    __device__ __forceinline__ AttendQueries(const AttendArgs& args, const AttendWork& w, int line) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int l = line + 8 * r;
            rows[r] = nullptr;
            if (l < w.lines)
                rows[r] = static_cast<const uint16_t*>(args.q) + ((int64_t)w.item.first_row + w.row(args, l)) * args.q_pitch +
                          (int64_t)w.query_head(args, l) * args.dim;
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

// Many lines: each warp has its own.
template <class T, int DP>
BDHS_DEVICE void attend_write(const AttendArgs& args, const AttendWork& w, int line, const AttendLines& lines,
                              const float (&o)[DP / 8][4]) {
    const int dim = (int)args.dim;
    const bool pairs = dim % 2 == 0 && reinterpret_cast<uintptr_t>(args.out) % 4 == 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int l = line + 8 * r;
        if (l >= w.lines) continue;
        const float scale = lines.seen[r] ? 1.0f / lines.sum[r] : 0.0f;
        uint16_t* out = static_cast<uint16_t*>(args.out) + w.place(args, l);
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
}

struct AttendFew {
    float *max, *sum;  // [WARPS, 16]
    float* values;     // [WARPS, 16, DP], where the tiles were
    uint32_t* ticket;
};

// Few lines: joins the warps' sums; then writes the result, or a part of it.
template <class T, int DP>
BDHS_DEVICE void attend_finish_few(const AttendArgs& args, const AttendWork& w, const AttendLines& lines,
                                   const float (&o)[DP / 8][4], const AttendFew& s) {
    constexpr int WARPS = AttendTile<DP, true>::WARPS;
    const int g = lane_id() / 4, t = lane_id() % 4, dim = (int)args.dim;
    if (warp_id() < WARPS) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int line = warp_id() * 16 + g + 8 * r;
            if (t == 0) {
                s.max[line] = lines.max[r];
                s.sum[line] = lines.sum[r];
            }
#pragma unroll
            for (int n = 0; n < DP / 8; ++n)
                *reinterpret_cast<float2*>(s.values + line * DP + 8 * n + 2 * t) = {o[n][2 * r], o[n][2 * r + 1]};
        }
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < w.lines * dim; i += ATTEND_THREADS) {
        const int line = i / dim, d = i % dim;
        float max = -INFINITY, sum = 0.0f, value = 0.0f;
#pragma unroll
        for (int k = 0; k < WARPS; ++k) max = fmaxf(max, s.max[k * 16 + line]);
#pragma unroll
        for (int k = 0; k < WARPS; ++k) {
            const float weight = exp2f(s.max[k * 16 + line] - attend_base(max));
            sum = fmaf(s.sum[k * 16 + line], weight, sum);
            value = fmaf(s.values[(k * 16 + line) * DP + d], weight, value);
        }
        if (w.item.chunks > 1) {
            float* part = w.part(args, w.item.chunk, line);
            part[2 + d] = value;
            if (d == 0) part[0] = max, part[1] = sum;
        } else {
            const float result = w.visible(args, line) ? value / sum : 0.0f;
            static_cast<uint16_t*>(args.out)[w.place(args, line) + d] = T::encode(result);
        }
    }
    if (w.item.chunks > 1 && attend_comes_last(args, w, 0, s.ticket)) attend_join<T>(args, w);
}

template <class T, int DP, bool FEW>
BDHS_DEVICE void attend_half(const AttendArgs& args, uint16_t* tiles, uint32_t* slots, const AttendFew& few) {
    using Tile = AttendTile<DP, FEW>;
    constexpr int KEYS = Tile::KEYS, PITCH = Tile::PITCH, N = FEW ? 2 : KEYS / 8;
    const AttendWork w = attend_work(args, FEW ? ATTEND_FEW : ATTEND_LINES, 1);
    const int line = lane_id() / 4 + (FEW ? 0 : 16 * warp_id()), own = FEW ? 16 * warp_id() : 0;
    const bool works = !FEW || warp_id() < Tile::WARPS;
    uint16_t *keys = tiles, *values = tiles + KEYS * PITCH;
    const AttendQueries<T, DP> q(args, w, line);
    AttendLines lines;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        lines.seen[r] = w.visible(args, line + 8 * r);
        if (lines.seen[r] > w.to) lines.seen[r] = w.to;
        lines.bias[r] = w.biases(args, line + 8 * r);
        lines.max[r] = -INFINITY;
        lines.sum[r] = 0.0f;
    }
    float o[DP / 8][4];
#pragma unroll
    for (int n = 0; n < DP / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] = 0.0f;

    uint32_t segment = w.item.first_segment;
    attend_slots<KEYS>(args, w, w.from, segment, slots);
    __syncthreads();
    if (w.from < w.to) attend_fetch<T, DP, KEYS>(args, args.k, args.k_pitch, w.head, slots, w.to - w.from, keys);
    commit_copies();
    int side = 0;
    // Copies are always one tile ahead: the values come while scores are computed, the next keys while values are added.
#pragma unroll 1
    for (int key = w.from; key < w.to; key += KEYS, side ^= 1) {
        uint32_t *now = slots + side * KEYS, *next = slots + (side ^ 1) * KEYS;
        attend_slots<KEYS>(args, w, key + KEYS, segment, next);
        attend_fetch<T, DP, KEYS>(args, args.v, args.v_pitch, w.head, now, w.to - key, values);
        commit_copies();
        wait_copies<1>();
        __syncthreads();
        float c[N][4], shrink[2];
        if (works) attend_scores<T, DP, N>(args, q, keys + own * PITCH, c);
        __syncthreads();
        if (key + KEYS < w.to)
            attend_fetch<T, DP, KEYS>(args, args.k, args.k_pitch, w.head, next, w.to - key - KEYS, keys);
        commit_copies();
        if (works) {
            attend_softmax<N>(args, lines, key + own, c, shrink);
#pragma unroll
            for (int n = 0; n < DP / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) o[n][i] *= shrink[i / 2];
        }
        wait_copies<1>();
        __syncthreads();
        if (works) attend_values<T, DP, N>(c, values + own * PITCH, o);
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        lines.sum[r] += __shfl_xor_sync(FULL_WARP, lines.sum[r], 1);
        lines.sum[r] += __shfl_xor_sync(FULL_WARP, lines.sum[r], 2);
    }
    // Read again, rather than kept in registers all along.
    const AttendWork done = attend_work(args, FEW ? ATTEND_FEW : ATTEND_LINES, 1);
    if constexpr (FEW) attend_finish_few<T, DP>(args, done, lines, o, few);
    else attend_write<T, DP>(args, done, line, lines, o);
}

#define BDHS_ATTEND_HALF(name, T, DP, FEW)                                                                \
    extern "C" __global__ void __launch_bounds__(ATTEND_THREADS, AttendTile<DP, FEW>::RESIDENT)     \
        name(const AttendArgs args) {                                                                     \
        using Tile = AttendTile<DP, FEW>;                                                                 \
        BDHS_SHARED(uint16_t, tiles, 2 * Tile::KEYS * Tile::PITCH);                                       \
        BDHS_SHARED(uint32_t, slots, 2 * Tile::KEYS);                                                     \
        BDHS_SHARED(float, max, Tile::KEYS);                                                              \
        BDHS_SHARED(float, sum, Tile::KEYS);                                                              \
        BDHS_SHARED(uint32_t, ticket, 1);                                                                 \
        attend_half<T, DP, FEW>(args, tiles, slots, {max, sum, reinterpret_cast<float*>(tiles), ticket}); \
    }
#define BDHS_ATTEND_HALVES(DP)                           \
    BDHS_ATTEND_HALF(attend_f16_##DP, F16, DP, false)    \
    BDHS_ATTEND_HALF(attend_bf16_##DP, BF16, DP, false)  \
    BDHS_ATTEND_HALF(attend_few_f16_##DP, F16, DP, true) \
    BDHS_ATTEND_HALF(attend_few_bf16_##DP, BF16, DP, true)

BDHS_ATTEND_HALVES(64)
BDHS_ATTEND_HALVES(96)
BDHS_ATTEND_HALVES(128)
BDHS_ATTEND_HALVES(256)

// ---- f32: fused multiply-adds ----
//
// A block has M lines and goes through tiles of N keys; keys and values share one tile. Scores: thread (tx, ty) has LINES lines
// from ty * LINES on and keys tx, tx + TX, ... Values: thread (cx, cy) has ROWS lines and columns 4 cx .. 4 cx + 4, and
// those 128 further on.

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
    uint32_t *slots, *ticket;  // [N], [1]
};

// Four values at a multiple of 16 bytes.
BDHS_DEVICE void attend_four(const float* p, float (&x)[4]) {
    const uint4 raw = *reinterpret_cast<const uint4*>(p);
    x[0] = __uint_as_float(raw.x), x[1] = __uint_as_float(raw.y);
    x[2] = __uint_as_float(raw.z), x[3] = __uint_as_float(raw.w);
}

template <int DP, bool FEW>
BDHS_DEVICE void attend_float_scores(const AttendArgs& args, const AttendWork& w, int key, float (&max)[AttendFloats<DP, FEW>::LINES],
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
        const uint32_t bias = w.biases(args, line);
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
template <int DP, bool FEW>
BDHS_DEVICE void attend_float_queries(const AttendArgs& args, const AttendWork& w, float* to) {
    using F = AttendFloats<DP, FEW>;
    for (int i = (int)threadIdx.x; i < F::M * DP; i += ATTEND_THREADS) {
        const int line = i / DP, d = i % DP;
        float x = 0.0f;
        if (line < w.lines && d < (int)args.dim)
            x = static_cast<const float*>(args.q)[((int64_t)w.item.first_row + w.row(args, line)) * args.q_pitch +
                                                  (int64_t)w.query_head(args, line) * args.dim + d];
        to[line * F::PITCH + d] = x;
    }
}

// Results, or the parts of a chunk.
template <int DP, bool FEW>
BDHS_DEVICE void attend_float_write(const AttendArgs& args, const AttendWork& w, const AttendFloatShared& s,
                                    const float (&o)[AttendFloats<DP, FEW>::ROWS][AttendFloats<DP, FEW>::COLUMNS][4]) {
    using F = AttendFloats<DP, FEW>;
    const int cx = (int)threadIdx.x % F::CX, cy = (int)threadIdx.x / F::CX;
#pragma unroll
    for (int r = 0; r < F::ROWS; ++r) {
        const int line = cy * F::ROWS + r;
        if (line >= w.lines) continue;
        const bool whole = w.item.chunks <= 1;
        const float sum = s.sum[line], scale = !whole ? 1.0f : w.visible(args, line) ? 1.0f / sum : 0.0f;
        float* part = whole ? nullptr : w.part(args, w.item.chunk, line);
        float* to = whole ? static_cast<float*>(args.out) + w.place(args, line) : part + 2;
        if (!whole && cx == 0) part[0] = s.max[line], part[1] = sum;
#pragma unroll
        for (int c = 0; c < F::COLUMNS; ++c)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int d = 4 * (cx + F::CX * c) + i;
                if (d < (int)args.dim) to[d] = o[r][c][i] * scale;
            }
    }
}

template <int DP, bool FEW> BDHS_DEVICE void attend_float(const AttendArgs& args, const AttendFloatShared& s) {
    using F = AttendFloats<DP, FEW>;
    const AttendWork w = attend_work(args, F::M, F::PIECES);
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
    if (FEW && w.item.chunks > 1 && attend_comes_last(args, w, (int)blockIdx.x % F::PIECES, s.ticket))
        attend_join<F32>(args, w);
}

#define BDHS_ATTEND_FLOAT(name, DP, FEW)                                                                   \
    extern "C" __global__ void __launch_bounds__(ATTEND_THREADS, AttendFloats<DP, FEW>::RESIDENT)         \
        name(const AttendArgs args) {                                                                      \
        using F = AttendFloats<DP, FEW>;                                                                   \
        BDHS_SHARED(float, q, F::M * F::PITCH);                                                            \
        BDHS_SHARED(float, tile, F::N * F::PITCH);                                                         \
        BDHS_SHARED(float, weights, F::M * F::WEIGHTS);                                                    \
        BDHS_SHARED(float, shrink, F::M);                                                                  \
        BDHS_SHARED(float, max, F::M);                                                                     \
        BDHS_SHARED(float, sum, F::M);                                                                     \
        BDHS_SHARED(uint32_t, slots, F::N);                                                                \
        BDHS_SHARED(uint32_t, ticket, 1);                                                                  \
        attend_float<DP, FEW>(args, {q, tile, weights, shrink, max, sum, slots, ticket});                  \
    }
#define BDHS_ATTEND_FLOATS(DP)                    \
    BDHS_ATTEND_FLOAT(attend_f32_##DP, DP, false) \
    BDHS_ATTEND_FLOAT(attend_few_f32_##DP, DP, true)

BDHS_ATTEND_FLOATS(64)
BDHS_ATTEND_FLOATS(128)
BDHS_ATTEND_FLOATS(256)

// ---- writing rows ----

struct WriteArgs {
    const void* rows;       // [count, row_bytes]
    void* arena;
    const uint32_t* slots;  // where each row goes
    uint64_t count, row_bytes;
    uint32_t unit;          // bytes of a load: 16, 4 or 2
    uint32_t reserved;
};
static_assert(sizeof(WriteArgs) == 48, "the launch code relies on this layout");

constexpr int WRITE_THREADS = 256;

template <class V> BDHS_DEVICE void write_units(const WriteArgs& args) {
    const uint64_t warps = WRITE_THREADS / 32, units = args.row_bytes / sizeof(V);
    for (uint64_t r = blockIdx.x * warps + warp_id(); r < args.count; r += gridDim.x * warps) {
        const V* from = reinterpret_cast<const V*>(static_cast<const char*>(args.rows) + r * args.row_bytes);
        V* to = reinterpret_cast<V*>(static_cast<char*>(args.arena) + args.slots[r] * args.row_bytes);
        uint64_t i = (uint64_t)lane_id();
        for (; i + 96 < units; i += 128) {
            const V a = from[i], b = from[i + 32], c = from[i + 64], d = from[i + 96];
            to[i] = a, to[i + 32] = b, to[i + 64] = c, to[i + 96] = d;
        }
        for (; i < units; i += 32) to[i] = from[i];
    }
}

extern "C" __global__ void __launch_bounds__(WRITE_THREADS) write_rows(const WriteArgs args) {
    if (args.unit == 16) write_units<uint4>(args);
    else if (args.unit == 4) write_units<uint32_t>(args);
    else write_units<uint16_t>(args);
}

}  // namespace bdhs
