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
// f16 and bf16 go through the tensor cores (attend_half.cuh), where weights are split into a rounded value and its rounded
// rest, so that they count as f32 but for about 2^-17 of each (bf16); f32 through fused multiply-adds (attend_float.cuh).
#include "attend_float.cuh"
#include "attend_half.cuh"

namespace bdhs {

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
    const void* rows;       // [count, row_bytes], pitch apart
    void* arena;
    const uint32_t* slots;  // where each row goes, WRITE_NOWHERE for some
    uint64_t count, row_bytes;
    uint64_t pitch;         // bytes from a row to the next
    uint32_t unit;          // bytes of a load: 16, 4 or 2
    uint32_t reserved;
};
static_assert(sizeof(WriteArgs) == 56, "the launch code relies on this layout");

constexpr int WRITE_THREADS = 256;
constexpr uint32_t WRITE_NOWHERE = 0xffffffff;

template <class V> BDHS_DEVICE void write_units(const WriteArgs& args) {
    const uint64_t warps = WRITE_THREADS / 32, units = args.row_bytes / sizeof(V);
    for (uint64_t r = blockIdx.x * warps + warp_id(); r < args.count; r += gridDim.x * warps) {
        const uint32_t slot = args.slots[r];
        if (slot == WRITE_NOWHERE) continue;
        const V* from = reinterpret_cast<const V*>(static_cast<const char*>(args.rows) + r * args.pitch);
        V* to = reinterpret_cast<V*>(static_cast<char*>(args.arena) + slot * args.row_bytes);
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
