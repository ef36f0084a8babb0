// What attend.cu works on: the arguments of its kernels, items, shares and their lines, and how the chunks of a line are joined.
#pragma once
#include "common/async.cuh"
#include "common/dtype.cuh"

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
    uint32_t first_line, lines;  // of the lines of its rows; none: room that is left
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

}  // namespace bdhs
