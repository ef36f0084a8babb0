// Ragged attention over a key/value arena, and writing rows into one. Contract: src/ops/attend/mod.rs.
//
//   line  = a query row of a block and one of the `group` query heads that share a key head:
//           number row * group + query head within the group
//   item  = up to 64 lines of one block, with all their keys
//   share = up to 16 lines of blocks of few lines, with a chunk of 64 keys that they all see. Rows of several blocks share a
//           chunk if it lies in the same slots for all (forks of a prefix), so that it is read once for them
//
// A block of threads works on an item and a key head. In f16 and bf16 each warp has a share of its own, in f32 each block a
// piece of an item or share.
//
// The online softmax goes through tiles of keys in order, in f32. Chunks leave (maximum, sum, unnormalised values) of each
// line in the workspace; whoever takes the last integer ticket of a line joins them in order. Tiles and chunks are counted
// from a row's first key, and a line's sums are its own, so a row's bits depend on its own block alone, whoever shares its
// chunks. A chunk is shared between blocks only if all of them see all of it: what one does not see, NaN for one, is never
// multiplied for it.
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

// Of a block of many lines.
struct AttendItem {
    uint32_t first_row, rows;      // of its block
    uint32_t first_segment, keys;  // of its block
    uint32_t causal;
    uint32_t first_line, lines;    // within its block
    uint32_t reserved;
};
static_assert(sizeof(AttendItem) == 32, "the launch code relies on this layout");

// A row of a block of few lines.
struct AttendRow {
    uint32_t row, position;  // of q and out; within its block
    uint32_t keys;           // that it sees, at least 1
    uint32_t part;           // first of group * chunks places in `parts`, if it has several chunks
    uint32_t ticket;         // first of group tickets, likewise
};
static_assert(sizeof(AttendRow) == 20, "the launch code relies on this layout");

// Lines that go through a chunk together.
struct AttendShare {
    uint32_t members;            // where its rows are named
    uint32_t first_line, lines;  // of the lines of its rows
    uint32_t first_segment;      // where key `from` is; its base and end, again
    uint32_t base, end;
    uint32_t from, to;           // keys, of each row's own
};
static_assert(sizeof(AttendShare) == 32, "the launch code relies on this layout");

struct AttendArgs {
    const void *q, *k, *v;
    void* out;                      // [rows, kv_heads * group, dim]
    const float* bias;              // [kv_heads * group, 2 bias_max - 1], below 2^32; null: none
    const AttendItem* items;
    const AttendShare* shares;
    const AttendSegment* segments;
    const AttendRow* rows;
    const uint32_t* members;        // numbers of `rows`
    float* parts;                   // [places, kv_heads, dim + 2]: maximum, sum, values
    uint32_t* tickets;              // [tickets, kv_heads] zeros
    int64_t q_pitch, k_pitch, v_pitch;  // values from a row to the next
    uint32_t dim, kv_heads, group, bias_max;
    float scale;                    // times log2 e: scores are powers of two
    uint32_t aligned;               // rows and heads of q, k and v at multiples of 16 bytes
    uint32_t share_count, reserved;
};
static_assert(sizeof(AttendArgs) == 152, "the launch code relies on this layout");

constexpr int ATTEND_THREADS = 128, ATTEND_LINES = 64, ATTEND_FEW = 16, ATTEND_CHUNK = 64;
// Of a block of shares in f16 and bf16, a warp each.
constexpr int ATTEND_FEW_THREADS = 64;
// Lines of a block of threads in f32: of the two kinds of items, and of many lines where D is above 128.
constexpr int ATTEND_FLOAT_LINES = 32, ATTEND_FLOAT_FEW = 4, ATTEND_FLOAT_WIDE = 16;
constexpr float LOG2_E = 1.44269504088896341f;

// Lines of an item, or some of them.
struct AttendMany {
    AttendItem item;
    uint32_t head;     // of k and v
    int first, lines;  // within the item
    int from, to;      // keys

    // The row within its block, and the query head, of a line.
    __device__ __forceinline__ uint32_t position(const AttendArgs& args, int line) const {
        return (item.first_line + first + line) / args.group;
    }
    __device__ __forceinline__ uint32_t query_head(const AttendArgs& args, int line) const {
        return head * args.group + (item.first_line + first + line) % args.group;
    }
    __device__ __forceinline__ int64_t row(const AttendArgs& args, int line) const {
        return (int64_t)item.first_row + position(args, line);
    }
    // How many keys a line sees; none if there is no such line.
    __device__ __forceinline__ int visible(const AttendArgs& args, int line) const {
        if (line >= lines) return 0;
        if (!item.causal) return (int)item.keys;
        const int64_t seen = (int64_t)item.keys + position(args, line) + 1 - item.rows;
        return seen > 0 ? (int)seen : 0;
    }
};

// Lines of a share, or some of them.
struct AttendFew {
    AttendShare item;
    uint32_t head;     // of k and v
    int first, lines;  // within the share
    int from, to;      // keys

    __device__ __forceinline__ uint32_t number(int line) const { return item.first_line + first + line; }
    __device__ __forceinline__ const AttendRow& of(const AttendArgs& args, int line) const {
        return args.rows[args.members[item.members + number(line) / args.group]];
    }
    __device__ __forceinline__ uint32_t position(const AttendArgs& args, int line) const { return of(args, line).position; }
    __device__ __forceinline__ uint32_t query_head(const AttendArgs& args, int line) const {
        return head * args.group + number(line) % args.group;
    }
    __device__ __forceinline__ int64_t row(const AttendArgs& args, int line) const { return of(args, line).row; }
    __device__ __forceinline__ int visible(const AttendArgs& args, int line) const {
        return line < lines ? (int)of(args, line).keys : 0;
    }
    // Chunks of a line.
    __device__ __forceinline__ uint32_t chunks(const AttendArgs& args, int line) const {
        return (of(args, line).keys + ATTEND_CHUNK - 1) / ATTEND_CHUNK;
    }
    // A line's place in the workspace, for a chunk: this and `chunk` times `parts_pitch`.
    __device__ __forceinline__ float* parts(const AttendArgs& args, int line) const {
        const int64_t place = (int64_t)of(args, line).part + number(line) % args.group;
        return args.parts + (place * args.kv_heads + head) * (args.dim + 2);
    }
    __device__ __forceinline__ int64_t parts_pitch(const AttendArgs& args) const {
        return (int64_t)args.group * args.kv_heads * (args.dim + 2);
    }
    __device__ __forceinline__ float* part(const AttendArgs& args, int line) const {
        return parts(args, line) + from / ATTEND_CHUNK * parts_pitch(args);
    }
    // Takes a line's next ticket: whether it is the last.
    __device__ __forceinline__ bool comes_last(const AttendArgs& args, int line) const {
        const uint32_t count = chunks(args, line);
        if (count == 1) return false;
        const int64_t ticket = (int64_t)of(args, line).ticket + number(line) % args.group;
        return atomicAdd(&args.tickets[ticket * args.kv_heads + head], 1u) == count - 1;
    }
};

// Where a line's values begin in `out`.
template <class W> BDHS_DEVICE int64_t attend_place(const AttendArgs& args, const W& w, int line) {
    return (w.row(args, line) * args.kv_heads * args.group + w.query_head(args, line)) * args.dim;
}

// Where the biases of a line are in their table: that of key j at this + j.
template <class W> BDHS_DEVICE uint32_t attend_biases(const AttendArgs& args, const W& w, int line) {
    if (!args.bias || line >= w.lines) return 0;
    return w.query_head(args, line) * (2 * args.bias_max - 1) + args.bias_max - 1 - w.position(args, line);
}

// Piece `piece` of an item, of `size` lines.
BDHS_DEVICE AttendMany attend_many(const AttendArgs& args, uint32_t item, uint32_t head, int piece, int size) {
    AttendMany w;
    w.item = args.items[item];
    w.head = head;
    w.first = piece * size;
    const int left = (int)w.item.lines - w.first;
    w.lines = left < size ? left : size;
    w.from = 0;
    w.to = w.lines > 0 ? w.visible(args, w.lines - 1) : 0;
    return w;
}

// The same of a share.
BDHS_DEVICE AttendFew attend_few(const AttendArgs& args, uint32_t share, uint32_t head, int piece, int size) {
    AttendFew w;
    w.item = args.shares[share];
    w.head = head;
    w.first = piece * size;
    const int left = (int)w.item.lines - w.first;
    w.lines = left < size ? left : size;
    w.from = (int)w.item.from;
    w.to = (int)w.item.to;
    return w;
}

// Writes the slots of keys key .. key + KEYS, one a thread; `segment` only ever moves on.
template <int KEYS, class W>
BDHS_DEVICE void attend_slots(const AttendArgs& args, const W& w, int key, uint32_t& segment, uint32_t* slots) {
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

// Joins the chunks of a line, in order: values thread, thread + threads, ..
template <class T>
BDHS_DEVICE void attend_join(const AttendArgs& args, const AttendFew& w, int line, int thread, int threads) {
    const int chunks = (int)w.chunks(args, line);
    const int64_t pitch = w.parts_pitch(args);
    const float* parts = w.parts(args, line);
    float max = -INFINITY;
#pragma unroll 4
    for (int c = 0; c < chunks; ++c) max = fmaxf(max, parts[c * pitch]);
    const float base = attend_base(max);
    typename T::storage* out = static_cast<typename T::storage*>(args.out) + attend_place(args, w, line);
    for (int d = thread; d < (int)args.dim; d += threads) {
        float sum = 0.0f, value = 0.0f;
#pragma unroll 4
        for (int c = 0; c < chunks; ++c) {
            const float* part = parts + c * pitch;
            const float weight = exp2f(part[0] - base);
            sum = fmaf(part[1], weight, sum);
            value = fmaf(part[2 + d], weight, value);
        }
        out[d] = T::encode(value / sum);
    }
}

// Which of the warp's first `lines` lines have all their parts in the workspace now, one bit each. Every part of the lines was
// written by the warp, or before a barrier.
BDHS_DEVICE uint32_t attend_complete(const AttendArgs& args, const AttendFew& w) {
    __threadfence();
    __syncwarp();
    const bool last = lane_id() < w.lines && w.comes_last(args, lane_id());
    const uint32_t complete = __ballot_sync(FULL_WARP, last);
    __threadfence();
    return complete;
}

// ---- f16 and bf16: tensor cores ----
//
// An item: warp w has lines 16 w .. 16 w + 16 and goes through all keys, in tiles that the block shares. A share: one warp has
// all 16 lines and goes through the keys on its own, 16 at a time.

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

#define BDHS_ATTEND_HALF(name, T, DP)                                                                         \
    extern "C" __global__ void __launch_bounds__(ATTEND_THREADS, AttendTile<DP>::RESIDENT)                    \
        attend_##name(const AttendArgs args) {                                                                \
        using Tile = AttendTile<DP>;                                                                          \
        BDHS_SHARED(uint16_t, tiles, 2 * Tile::KEYS * Tile::PITCH);                                           \
        BDHS_SHARED(uint32_t, slots, 2 * Tile::KEYS);                                                         \
        attend_half<T, DP>(args, tiles, slots);                                                               \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(ATTEND_FEW_THREADS, AttendRing<DP>::RESIDENT)                \
        attend_few_##name(const AttendArgs args) {                                                            \
        using Ring = AttendRing<DP>;                                                                          \
        BDHS_SHARED(uint16_t, tiles, Ring::WARPS * 2 * Ring::STAGES * Ring::TILE);                            \
        attend_half_few<T, DP>(args, tiles);                                                                  \
    }
#define BDHS_ATTEND_HALVES(DP)               \
    BDHS_ATTEND_HALF(f16_##DP, F16, DP)      \
    BDHS_ATTEND_HALF(bf16_##DP, BF16, DP)

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

#define BDHS_ATTEND_FLOAT(name, DP, FEW, work)                                                              \
    extern "C" __global__ void __launch_bounds__(ATTEND_THREADS, AttendFloats<DP, FEW>::RESIDENT)           \
        name(const AttendArgs args) {                                                                       \
        using F = AttendFloats<DP, FEW>;                                                                    \
        BDHS_SHARED(float, q, F::M * F::PITCH);                                                             \
        BDHS_SHARED(float, tile, F::N * F::PITCH);                                                          \
        BDHS_SHARED(float, weights, F::M * F::WEIGHTS);                                                     \
        BDHS_SHARED(float, shrink, F::M);                                                                   \
        BDHS_SHARED(float, max, F::M);                                                                      \
        BDHS_SHARED(float, sum, F::M);                                                                      \
        BDHS_SHARED(uint32_t, slots, F::N);                                                                 \
        BDHS_SHARED(uint32_t, complete, 1);                                                                 \
        const uint32_t unit = blockIdx.x / F::PIECES;                                                       \
        const auto w = work(args, unit / args.kv_heads, unit % args.kv_heads, blockIdx.x % F::PIECES, F::M); \
        attend_float<DP, FEW>(args, w, {q, tile, weights, shrink, max, sum, slots, complete});              \
    }
#define BDHS_ATTEND_FLOATS(DP)                                 \
    BDHS_ATTEND_FLOAT(attend_f32_##DP, DP, false, attend_many) \
    BDHS_ATTEND_FLOAT(attend_few_f32_##DP, DP, true, attend_few)

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
