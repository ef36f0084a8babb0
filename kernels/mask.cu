// Masked-image sampling: draws the image tokens that stay (mask_draw) and packs kept rows of
// embeddings between rows of text (pack_rows). Contract: src/ops/mask.rs, which draws the same
// bits on the CPU.
//
// mask_draw: one block a row of the call, any number of rows in one launch. A thread takes four
// neighbouring tokens, which are one Philox block. Kept indices are written in ascending order
// with a block-wide prefix sum.
// pack_rows: one warp an output row, 16 bytes a lane and step where alignment allows.
#include "common/philox.cuh"
#include "common/select.cuh"

namespace bdhs {

enum Law : int32_t { LAW_BERNOULLI = 0, LAW_EXACT_K = 1, LAW_BLOCKS = 2 };

struct MaskGrid {
    uint32_t start, rows, cols, stride;
};

struct MaskRow {
    uint64_t seed;
    uint64_t index_start;  // into `indices`: the row's cu_seqlens entry
    uint64_t word_start;   // into `bitmask`
    uint32_t sample, attempt, sentence;
    uint32_t tokens;
    uint32_t first_grid, grids;
    uint32_t keep;  // exact-k: how many of the drawn tokens stay
    uint32_t drawn;  // exact-k: how many are drawn
};
static_assert(sizeof(MaskRow) == 56, "the launch code relies on this layout");

struct MaskArgs {
    const MaskRow* rows;
    const MaskGrid* grids;
    uint32_t* indices;  // null: not wanted
    uint32_t* bitmask;  // null: not wanted
    uint64_t bar;       // a word below it goes; 2^32 = all go
    uint32_t law, block, exempt_newlines, row_count;
};
static_assert(sizeof(MaskArgs) == 56, "the launch code relies on this layout");

constexpr int MASK_THREADS = 256;

// What one token draws: nothing (it stays), or a word.
struct TokenDraw {
    uint32_t word;
    bool exempt;
};

// `own` is the token's own word.
BDHS_DEVICE TokenDraw token_draw(const MaskArgs& args, const MaskRow& row, const Stream& stream,
                                 uint32_t token, uint32_t own) {
    if (args.law != LAW_BLOCKS && !args.exempt_newlines) return {own, false};
    for (uint32_t g = 0; g < row.grids; ++g) {
        const MaskGrid grid = args.grids[row.first_grid + g];
        if (token < grid.start || grid.stride == 0) continue;
        const uint32_t line = (token - grid.start) / grid.stride;
        const uint32_t col = (token - grid.start) % grid.stride;
        if (line >= grid.rows || col >= grid.cols) continue;
        if (args.law != LAW_BLOCKS) return {own, false};
        const uint32_t corner =
            grid.start + line / args.block * args.block * grid.stride + col / args.block * args.block;
        return {corner == token ? own : draw_word(stream, corner), false};
    }
    return {own, args.exempt_newlines != 0};
}

// Calls visit(slot 0..3, word, exempt) for the existing tokens of one quad.
template <class Visit>
BDHS_DEVICE void each_token(const MaskArgs& args, const MaskRow& row, const Stream& stream,
                            uint32_t quad, Visit visit) {
    if ((uint64_t)quad * 4 >= row.tokens) return;
    const Words4 own = draw_quad(stream, quad);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint64_t token = (uint64_t)quad * 4 + i;
        if (token < row.tokens) {
            const TokenDraw d = token_draw(args, row, stream, (uint32_t)token, own.w[i]);
            visit(i, d.word, d.exempt);
        }
    }
}

// The row's last kept word and how many of its ties stay, if not all: exact-k keeps the smallest words.
struct Cutoff {
    uint32_t word;
    uint64_t ties;
    bool none, all, all_ties;
};

BDHS_DEVICE Cutoff exact_k_cutoff(const MaskArgs& args, const MaskRow& row, const Stream& stream,
                                  unsigned* bins, uint64_t* scratch, uint64_t* found) {
    if (row.keep == 0 || row.keep >= row.drawn) return {0, 0, row.keep == 0, row.keep != 0, true};
    const uint32_t quads = (uint32_t)ceil_div(row.tokens, 4);
    const Selected last = radix_select_items(row.keep - 1, bins, scratch, found, [&](auto visit) {
        for (uint64_t q = threadIdx.x; q < quads; q += blockDim.x)
            each_token(args, row, stream, (uint32_t)q, [&](int, uint32_t word, bool exempt) {
                if (!exempt) visit(word);
            });
    });
    return {last.key, last.within + 1, false, false, last.within + 1 == last.weight};
}

extern "C" __global__ void __launch_bounds__(MASK_THREADS, 4) mask_draw(const MaskArgs args) {
    BDHS_SHARED(unsigned, bins, RADIX_BINS);
    BDHS_SHARED(uint64_t, found, 3);
    BDHS_SHARED(uint64_t, scratch, MASK_THREADS / 32);
    const MaskRow row = args.rows[blockIdx.x];
    const Stream stream = {row.seed, row.sample, row.attempt, row.sentence};  // purpose Mask is 0
    const bool exact = args.law == LAW_EXACT_K;
    Cutoff cutoff = {0, 0, false, false, true};
    if (exact) cutoff = exact_k_cutoff(args, row, stream, bins, scratch, found);

    uint64_t written = 0, ties_seen = 0;
    const uint64_t quads = (uint64_t)ceil_div(row.tokens, 4);
    const uint64_t words = (uint64_t)ceil_div(row.tokens, 32);
    for (uint64_t base = 0; base < quads; base += blockDim.x) {
        const uint64_t quad = base + threadIdx.x;
        uint32_t keep = 0, tied = 0;  // a bit a token
        if (quad < quads)
            each_token(args, row, stream, (uint32_t)quad, [&](int i, uint32_t word, bool exempt) {
                bool stays = exempt || (!exact && word >= args.bar);
                if (exact && !exempt) {
                    const bool last = !cutoff.all && !cutoff.none && word == cutoff.word;
                    stays = cutoff.all || (!cutoff.none && word < cutoff.word) || (last && cutoff.all_ties);
                    if (last && !cutoff.all_ties) tied |= 1u << i;
                }
                if (stays) keep |= 1u << i;
            });
        if (!cutoff.all_ties) {  // of equal words the first ones stay
            uint64_t total = 0;
            uint64_t rank = ties_seen + block_exclusive_scan<uint64_t>(__popc(tied), scratch, &total);
            ties_seen += total;
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (tied >> i & 1u) {
                    if (rank < cutoff.ties) keep |= 1u << i;
                    ++rank;
                }
        }
        uint64_t total = 0;
        uint64_t at = written + block_exclusive_scan<uint64_t>(__popc(keep), scratch, &total);
        written += total;
        if (args.indices) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (keep >> i & 1u) args.indices[row.index_start + at++] = (uint32_t)(quad * 4 + i);
        }
        if (args.bitmask) {  // eight threads share a word
            uint32_t word = keep << (4 * (lane_id() & 7));
#pragma unroll
            for (int step = 1; step < 8; step <<= 1) word |= __shfl_xor_sync(FULL_WARP, word, step);
            if ((lane_id() & 7) == 0 && quad / 8 < words) args.bitmask[row.word_start + quad / 8] = word;
        }
    }
}

struct PackArgs {
    const uint64_t* sources;    // base addresses
    const uint32_t* source_of;  // [rows]
    const uint64_t* row_of;     // [rows]: row within its source
    uint8_t* out;               // [rows, row_bytes]
    uint64_t rows, row_bytes;
    uint32_t unit;  // 16, 4 or 2: divides row_bytes and every base address
    uint32_t reserved;
};
static_assert(sizeof(PackArgs) == 56, "the launch code relies on this layout");

constexpr int PACK_THREADS = 256;

// Four independent loads in flight a lane.
template <class V>
BDHS_DEVICE void copy_row(const V* from, V* to, uint64_t count) {
    uint64_t i = lane_id();
    for (; i + 96 < count; i += 128) {
        const V a = from[i], b = from[i + 32], c = from[i + 64], d = from[i + 96];
        to[i] = a;
        to[i + 32] = b;
        to[i + 64] = c;
        to[i + 96] = d;
    }
    for (; i < count; i += 32) to[i] = from[i];
}

extern "C" __global__ void __launch_bounds__(PACK_THREADS) pack_rows(const PackArgs args) {
    const uint64_t warps = (uint64_t)gridDim.x * (PACK_THREADS / 32);
    for (uint64_t r = (uint64_t)blockIdx.x * (PACK_THREADS / 32) + warp_id(); r < args.rows; r += warps) {
        const uint8_t* from = reinterpret_cast<const uint8_t*>(args.sources[args.source_of[r]]) +
                              args.row_of[r] * args.row_bytes;
        uint8_t* to = args.out + r * args.row_bytes;
        if (args.unit == 16)
            copy_row(reinterpret_cast<const uint4*>(from), reinterpret_cast<uint4*>(to), args.row_bytes / 16);
        else if (args.unit == 4)
            copy_row(reinterpret_cast<const uint32_t*>(from), reinterpret_cast<uint32_t*>(to), args.row_bytes / 4);
        else
            copy_row(reinterpret_cast<const uint16_t*>(from), reinterpret_cast<uint16_t*>(to), args.row_bytes / 2);
    }
}

}  // namespace bdhs
