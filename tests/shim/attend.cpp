// Runs kernels/attend.cu against float64, and bit for bit against itself: in another schedule, with a block alone, and with
// forks of one prefix that read it together.
#include "driver.hpp"
#include "floats.hpp"

#include "attend.cu"

using check::Buffer;
using check::Rng;
using check::Suite;
using namespace bdhs;

namespace {

struct Segment {
    uint64_t start, length;
};

struct Block {
    uint64_t first_row, rows;
    std::vector<Segment> segments;
    bool causal;

    std::vector<uint64_t> slots() const {
        std::vector<uint64_t> all;
        for (const Segment& s : segments)
            for (uint64_t i = 0; i < s.length; ++i) all.push_back(s.start + i);
        return all;
    }
};

template <class T> struct Case {
    uint64_t rows, arena, dim, kv_heads, group, bias_max = 0;
    uint64_t q_pitch, k_pitch, v_pitch, misalign = 0;
    float scale;
    std::vector<Block> blocks;
    std::vector<typename T::storage> q, k, v;
    std::vector<float> bias;

    uint64_t heads() const { return kv_heads * group; }
    uint64_t width() const { return 2 * bias_max - 1; }
};

// ---- what the launch code does: src/ops/cuda/attend ----

constexpr uint64_t FEW_LINES = 32;

// A row and a chunk of its keys, in the order that brings together what is read together.
struct Pair {
    uint32_t slot, from, block, row, segment;
    auto key() const { return std::make_tuple(slot, from, block); }
    bool operator<(const Pair& o) const { return std::make_pair(key(), row) < std::make_pair(o.key(), o.row); }
};

struct Items {
    std::vector<AttendItem> many;
    std::vector<AttendShare> few;
    std::vector<AttendSegment> segments;
    std::vector<AttendRow> rows;
    std::vector<Pair> pairs;
    std::vector<uint32_t> members;
    uint32_t parts = 0, tickets = 0;
};

void add_few(Items& to, const Block& block, uint32_t number, uint32_t first_segment, uint32_t keys, uint64_t group) {
    for (uint32_t t = 0; t < block.rows; ++t) {
        const uint32_t hidden = block.causal ? (uint32_t)block.rows - 1 - t : 0;
        if (keys <= hidden) continue;
        const uint32_t seen = keys - hidden, chunks = (seen + ATTEND_CHUNK - 1) / ATTEND_CHUNK, row = (uint32_t)to.rows.size();
        to.rows.push_back({(uint32_t)block.first_row + t, t, seen, to.parts, to.tickets});
        if (chunks > 1) to.parts += chunks * (uint32_t)group, to.tickets += (uint32_t)group;
        uint32_t segment = first_segment;
        for (uint32_t from = 0; from < seen; from += ATTEND_CHUNK) {
            while (to.segments[segment].end <= from) ++segment;
            const bool whole = from + ATTEND_CHUNK <= std::min(seen, to.segments[segment].end);
            to.pairs.push_back({to.segments[segment].base + from, from, whole ? 0 : number + 1, row, segment});
        }
    }
}

void add_block(Items& to, const Block& block, uint32_t number, uint64_t group) {
    AttendItem item = {};
    item.first_row = (uint32_t)block.first_row;
    item.rows = (uint32_t)block.rows;
    item.first_segment = (uint32_t)to.segments.size();
    item.causal = block.causal;
    for (const Segment& s : block.segments) {
        if (s.length == 0) continue;
        const uint32_t before = item.keys;
        item.keys += (uint32_t)s.length;
        to.segments.push_back({(uint32_t)s.start - before, item.keys});
    }
    if (item.keys == 0) return;
    const uint64_t lines = block.rows * group;
    if (block.rows == 1 || lines <= FEW_LINES) return add_few(to, block, number, item.first_segment, item.keys, group);
    for (uint64_t line = 0; line < lines; line += ATTEND_LINES) {
        item.first_line = (uint32_t)line;
        item.lines = (uint32_t)std::min<uint64_t>(ATTEND_LINES, lines - line);
        to.many.push_back(item);
    }
}

void add_shares(Items& to, uint64_t group) {
    std::sort(to.pairs.begin(), to.pairs.end());
    const size_t most = std::max<uint64_t>(1, ATTEND_FEW / group);
    for (size_t first = 0, last; first < to.pairs.size(); first = last) {
        const Pair& pair = to.pairs[first];
        uint32_t seen = 0;
        for (last = first; last < to.pairs.size() && last - first < most && to.pairs[last].key() == pair.key(); ++last) {
            seen = std::max(seen, to.rows[to.pairs[last].row].keys);
            to.members.push_back(to.pairs[last].row);
        }
        const AttendSegment& segment = to.segments[pair.segment];
        const uint32_t lines = (uint32_t)((last - first) * group), end = std::min(seen, pair.from + ATTEND_CHUNK);
        for (uint32_t line = 0; line < lines; line += ATTEND_FEW)
            to.few.push_back({(uint32_t)first, line, std::min<uint32_t>(ATTEND_FEW, lines - line), pair.segment, segment.base,
                              segment.end, pair.from, end});
    }
}

using KernelFn = void (*)(const AttendArgs);
#define KERNELS_OF(T, D) \
    { attend_##T##_##D, attend_few_##T##_##D }

template <class T> KernelFn kernel_of(uint64_t dim, bool few) {
    static const KernelFn F32S[4][2] = {KERNELS_OF(f32, 64), KERNELS_OF(f32, 128), KERNELS_OF(f32, 128), KERNELS_OF(f32, 256)};
    static const KernelFn F16S[4][2] = {KERNELS_OF(f16, 64), KERNELS_OF(f16, 96), KERNELS_OF(f16, 128), KERNELS_OF(f16, 256)};
    static const KernelFn BF16S[4][2] = {KERNELS_OF(bf16, 64), KERNELS_OF(bf16, 96), KERNELS_OF(bf16, 128), KERNELS_OF(bf16, 256)};
    return check::kernel_for<T>(F32S, F16S, BF16S)[dim <= 64 ? 0 : dim <= 96 ? 1 : dim <= 128 ? 2 : 3][few];
}

// Lines of a piece of an item.
template <class T> uint64_t pieces(uint64_t dim, bool few) {
    if (sizeof(typename T::storage) == 2) return 1;
    if (few) return AttendFloats<64, true>::PIECES;
    return dim <= 128 ? (uint64_t)AttendFloats<128, false>::PIECES : (uint64_t)AttendFloats<256, false>::PIECES;
}

template <class T> using Bits = std::vector<typename T::storage>;

// Runs the blocks of a case; rows of none are zeros.
template <class T> Bits<T> run_blocks(const Case<T>& c, const std::vector<Block>& blocks, Rng& rng) {
    using S = typename T::storage;
    Items items;
    for (size_t i = 0; i < blocks.size(); ++i) add_block(items, blocks[i], (uint32_t)i, c.group);
    add_shares(items, c.group);
    // Room that a plan has left.
    if (!items.few.empty() && rng.chance(0.3)) items.few.resize(items.few.size() + 1 + rng.below(5));
    const Buffer<S> q(c.q, c.misalign), k(c.k, c.misalign), v(c.v, c.misalign);
    const Buffer<float> bias(c.bias);
    Buffer<S> out(c.rows * c.heads() * c.dim, c.misalign);
    for (size_t i = 0; i < out.size(); ++i) out[i] = 0;
    const Buffer<AttendItem> many(items.many);
    const Buffer<AttendShare> few_items(items.few);
    const Buffer<AttendSegment> segments(items.segments);
    const Buffer<AttendRow> few_rows(items.rows);
    const Buffer<uint32_t> members(items.members);
    Buffer<float> parts(items.parts * c.kv_heads * (c.dim + 2));
    Buffer<uint32_t> tickets(std::vector<uint32_t>(items.tickets * c.kv_heads, 0));
    for (const bool few : {false, true}) {
        const size_t count = few ? items.few.size() : items.many.size();
        if (count == 0) continue;
        AttendArgs a = {};
        a.q = q.data(), a.k = k.data(), a.v = v.data(), a.out = out.data();
        if (c.bias_max) a.bias = bias.data(), a.bias_max = (uint32_t)c.bias_max;
        a.items = many.data();
        a.shares = few_items.data();
        a.share_count = (uint32_t)items.few.size();
        a.segments = segments.data();
        a.rows = few_rows.data();
        a.members = members.data();
        a.parts = parts.data();
        a.tickets = tickets.data();
        a.q_pitch = (int64_t)c.q_pitch, a.k_pitch = (int64_t)c.k_pitch, a.v_pitch = (int64_t)c.v_pitch;
        a.dim = (uint32_t)c.dim, a.kv_heads = (uint32_t)c.kv_heads, a.group = (uint32_t)c.group;
        a.scale = (float)(c.scale * 1.4426950408889634);
        a.aligned = !c.misalign && (c.q_pitch | c.k_pitch | c.v_pitch | c.dim) * sizeof(S) % 16 == 0;
        const bool warps = few && sizeof(S) == 2;  // a share a warp
        const uint64_t share_warps = ATTEND_FEW_THREADS / 32;
        const unsigned grid = (unsigned)((warps ? (count + share_warps - 1) / share_warps : count) * c.kv_heads * pieces<T>(c.dim, few));
        const KernelFn kernel = kernel_of<T>(c.dim, few);
        shim::launch({grid}, {(unsigned)(warps ? ATTEND_FEW_THREADS : ATTEND_THREADS)}, {rng.next()}, [&] { kernel(a); });
    }
    return Bits<T>(out.data(), out.data() + out.size());
}

// Shares of several rows; all; and those there would be if none had several.
struct Sharing {
    uint64_t shared = 0, reads = 0, pairs = 0;
};

template <class T> Sharing sharing(const Case<T>& c) {
    Items items;
    for (size_t i = 0; i < c.blocks.size(); ++i) add_block(items, c.blocks[i], (uint32_t)i, c.group);
    add_shares(items, c.group);
    Sharing s;
    s.reads = items.few.size(), s.pairs = items.pairs.size();
    for (const AttendShare& share : items.few) s.shared += share.lines > c.group;
    return s;
}

// ---- cases ----

std::vector<Segment> random_segments(Rng& rng, uint64_t arena) {
    std::vector<Segment> segments;
    for (uint64_t n = rng.below(4); n; --n) {
        const uint64_t length = std::min(arena, rng.pick<uint64_t>({0, rng.below(4), rng.below(20), 63 + rng.below(3), rng.below(arena)}));
        segments.push_back({rng.below(arena - length + 1), length});
    }
    return segments;
}

template <class T> Case<T> random_case(Rng& rng) {
    Case<T> c;
    c.dim = rng.pick<uint64_t>({1 + rng.below(20), 8 * (1 + rng.below(8)), 64, 64, 1 + rng.below(128)});
    if (rng.chance(0.05)) c.dim = rng.pick<uint64_t>({128, 129, 200, 256});
    c.kv_heads = 1 + rng.below(2);
    c.group = rng.pick<uint64_t>({1, 1, 2, 7});
    c.rows = 1 + rng.below(rng.pick<uint64_t>({2, 8, 20}));
    if (rng.chance(0.05)) c.rows = 60 + rng.below(10);
    const bool bias = rng.chance(0.2);
    c.arena = bias ? c.rows : 1 + rng.below(rng.pick<uint64_t>({4, 40, 150}));
    if (!bias && rng.chance(0.04)) c.arena = 500 + rng.below(300);
    uint64_t row = 0;
    while (row < c.rows) {
        row += rng.chance(0.2);  // in no block
        const uint64_t n = std::min(c.rows - std::min(row, c.rows), rng.pick<uint64_t>({1, 1, 1 + rng.below(8), 70}));
        if (n == 0) break;
        Block block = {row, n, random_segments(rng, c.arena), rng.chance(0.5)};
        if (bias) block.segments = {{rng.below(c.arena - n + 1), n}};
        c.blocks.push_back(block);
        row += n;
    }
    for (size_t i = c.blocks.size(); i > 1; --i) std::swap(c.blocks[i - 1], c.blocks[rng.below(i)]);
    const uint64_t extra = rng.pick<uint64_t>({0, 0, 8, 1});
    c.q_pitch = c.heads() * c.dim + extra;
    c.k_pitch = c.kv_heads * c.dim + rng.pick<uint64_t>({0, extra, 16});
    c.v_pitch = c.kv_heads * c.dim + extra;
    c.misalign = rng.chance(0.1) ? 1 : 0;
    c.scale = (float)((rng.chance(0.05) ? -1 : 1) / sqrt((double)c.dim));
    const double size = rng.pick({1.0, 1.0, 1.0, 3.0});
    for (auto* x : {&c.q, &c.k, &c.v}) {
        const uint64_t count = x == &c.q ? c.rows : c.arena, pitch = x == &c.q ? c.q_pitch : x == &c.k ? c.k_pitch : c.v_pitch;
        const uint64_t width = x == &c.q ? c.heads() * c.dim : c.kv_heads * c.dim;
        x->assign(count * pitch, T::encode(NAN));
        for (uint64_t r = 0; r < count; ++r)
            for (uint64_t i = 0; i < width; ++i) (*x)[r * pitch + i] = check::store<T>(rng.normal() * size);
    }
    if (bias) {
        c.bias_max = c.rows + rng.below(3);
        for (uint64_t i = 0; i < c.heads() * c.width(); ++i) c.bias.push_back((float)rng.normal());
    }
    // NaN in a row of q stays in its row; in a slot that no block sees it reaches none.
    if (rng.chance(0.1)) c.q[rng.below(c.rows) * c.q_pitch + rng.below(c.heads() * c.dim)] = T::encode(NAN);
    std::vector<bool> seen(c.arena);
    for (const Block& block : c.blocks)
        for (uint64_t slot : block.slots()) seen[slot] = true;
    for (uint64_t slot = 0; slot < c.arena; ++slot)
        for (uint64_t i = 0; !seen[slot] && i < c.kv_heads * c.dim; ++i)
            c.k[slot * c.k_pitch + i] = c.v[slot * c.v_pitch + i] = T::encode(NAN);
    return c;
}

// Forks of one or two prefixes: each leaves at a place of its own for some slots of its own, one row or two. The last slot that
// any of them sees of the first prefix may be NaN, which must reach only those that see it.
template <class T> Case<T> fork_case(Rng& rng) {
    Case<T> c;
    c.dim = rng.pick<uint64_t>({8, 31, 64, 64, 80, 128});
    c.kv_heads = 1 + rng.below(2);
    c.group = rng.pick<uint64_t>({1, 1, 2, 4, 7, 17});
    const uint64_t prefix = 64 + rng.below(300), forks = 2 + rng.below(rng.pick<uint64_t>({4, 20}));
    uint64_t slot = 2 * prefix, row = 0, last = 0;
    for (uint64_t f = 0; f < forks; ++f) {
        const uint64_t start = rng.chance(0.2) ? prefix : 0, n = rng.pick<uint64_t>({1, 1, 1, 2});
        const uint64_t cut = rng.pick<uint64_t>({prefix, 64 * (1 + rng.below(prefix / 64)), 1 + rng.below(prefix)});
        const uint64_t own = n + rng.below(rng.pick<uint64_t>({1, 3, 90}));
        c.blocks.push_back({row, n, {{start, cut}, {slot, own}}, true});
        row += n, slot += own, last = start == 0 ? std::max(last, cut) : last;
    }
    for (size_t i = c.blocks.size(); i > 1; --i) std::swap(c.blocks[i - 1], c.blocks[rng.below(i)]);
    c.rows = row, c.arena = slot;
    c.q_pitch = c.heads() * c.dim, c.k_pitch = c.v_pitch = c.kv_heads * c.dim;
    c.scale = (float)(1 / sqrt((double)c.dim));
    for (uint64_t i = 0; i < c.rows * c.q_pitch; ++i) c.q.push_back(check::store<T>(rng.normal()));
    for (auto* x : {&c.k, &c.v})
        for (uint64_t i = 0; i < c.arena * c.k_pitch; ++i) x->push_back(check::store<T>(rng.normal()));
    if (last && rng.chance(0.3))
        for (uint64_t i = 0; i < c.k_pitch; ++i) c.v[(last - 1) * c.v_pitch + i] = T::encode(NAN);
    return c;
}

template <class T> void check_line(Suite& suite, const Case<T>& c, const Block& block, const std::vector<uint64_t>& slots,
                                   uint64_t t, uint64_t h, const typename T::storage* out) {
    const int64_t limit = block.causal ? (int64_t)slots.size() + (int64_t)t + 1 - (int64_t)block.rows : (int64_t)slots.size();
    const uint64_t keys = limit > 0 ? (uint64_t)limit : 0;
    const auto* q = &c.q[(block.first_row + t) * c.q_pitch + h * c.dim];
    std::vector<double> score(keys);
    double most = -INFINITY, error = 0, largest = 0, total = 0;
    for (uint64_t j = 0; j < keys; ++j) {
        const auto* k = &c.k[slots[j] * c.k_pitch + h / c.group * c.dim];
        double sum = 0, size = 0;
        for (uint64_t d = 0; d < c.dim; ++d) {
            const double x = check::load<T>(q[d]) * check::load<T>(k[d]);
            sum += x, size += fabs(x);
        }
        score[j] = sum * c.scale;
        if (c.bias_max) score[j] += c.bias[h * c.width() + j + c.bias_max - 1 - t];
        most = std::max(most, score[j]);
        if (score[j] != score[j]) most = NAN;
        error = std::max(error, size * fabs(c.scale) * (8.0 + (double)c.dim / 4) + fabs(score[j]) * 4);
    }
    std::vector<double> want(c.dim, 0.0);
    for (uint64_t j = 0; j < keys; ++j) total += exp(score[j] - most);
    for (uint64_t j = 0; j < keys; ++j)
        for (uint64_t d = 0; d < c.dim; ++d) {
            const double v = check::load<T>(c.v[slots[j] * c.v_pitch + h / c.group * c.dim + d]);
            want[d] += exp(score[j] - most) / total * v;
            largest = std::max(largest, fabs(v));
        }
    const double roundoff = sizeof(typename T::storage) == 4 ? 0x1p-24 : T::IS_BF16 ? 0x1p-8 : 0x1p-11;
    const double bound = largest * (0x1p-23 * error + (roundoff == 0x1p-24 ? 4e-6 : 2e-5)) + 0x1p-24;
    for (uint64_t d = 0; d < c.dim; ++d) {
        const double seen = check::load<T>(out[h * c.dim + d]);
        if (!check::close(seen, keys ? want[d] : 0.0, bound, roundoff))
            suite.fail(check::text("row %d of %d, head %d, value %d of %d: %.9g, expected %.9g +- %.2g (%d keys)", (int)t,
                                   (int)block.rows, (int)h, (int)d, (int)c.dim, seen, want[d], bound, (int)keys));
    }
}

template <class T> void check_case(Suite& suite, const Case<T>& c, Rng& rng, bool forks = false) {
    suite.begin(check::text("%s, D up to %d", check::dtype_name<T>(), c.dim <= 64 ? 64 : c.dim <= 96 ? 96 : c.dim <= 128 ? 128 : 256));
    const Bits<T> out = run_blocks(c, c.blocks, rng);
    std::vector<bool> covered(c.rows);
    for (const Block& block : c.blocks) {
        const std::vector<uint64_t> slots = block.slots();
        const uint64_t lines = block.rows * c.group;
        ++suite.counts[slots.empty() ? "blocks without keys" : block.rows > 1 && lines > FEW_LINES ? "blocks of many lines"
                       : slots.size() > ATTEND_CHUNK ? "blocks of few lines, in chunks" : "blocks of few lines"];
        for (uint64_t t = 0; t < block.rows; ++t) {
            covered[block.first_row + t] = true;
            for (uint64_t h = 0; h < c.heads(); ++h)
                check_line(suite, c, block, slots, t, h, &out[(block.first_row + t) * c.heads() * c.dim]);
        }
    }
    if (c.bias_max) ++suite.counts["with a bias"];
    for (uint64_t i = 0; i < out.size(); ++i)
        if (!covered[i / (c.heads() * c.dim)] && out[i] != 0) suite.fail("a row of no block was written");
    if (c.blocks.empty()) return;
    // In another schedule, and alone.
    const uint64_t width = c.heads() * c.dim;
    const auto check_alone = [&](const Block& one) {
        const Bits<T> alone = run_blocks(c, {one}, rng);
        if (memcmp(&alone[one.first_row * width], &out[one.first_row * width], one.rows * width * sizeof(typename T::storage)))
            suite.fail("a block alone gives other bits");
    };
    if (!forks) return check_alone(c.blocks[rng.below(c.blocks.size())]);
    for (const Block& one : c.blocks) check_alone(one);
    const Sharing s = sharing(c);
    suite.counts["chunks that forks share"] += s.shared;
    suite.counts["reads of them spared"] += s.pairs - std::min(s.pairs, s.reads);
}

void random(Suite& suite, Rng& rng) {
    switch (rng.below(20)) {
        case 0: return check_case(suite, fork_case<F32>(rng), rng, true);
        case 1: return check_case(suite, fork_case<F16>(rng), rng, true);
        case 2: return check_case(suite, fork_case<BF16>(rng), rng, true);
    }
    switch (rng.below(3)) {
        case 0: check_case(suite, random_case<F32>(rng), rng); break;
        case 1: check_case(suite, random_case<F16>(rng), rng); break;
        default: check_case(suite, random_case<BF16>(rng), rng);
    }
}

// write_rows: what is written and what is left, for every unit.
void write_case(Suite& suite, Rng& rng) {
    const uint64_t width = 1 + rng.below(40), arena = 1 + rng.below(30), unit = rng.pick<uint64_t>({2, 4, 16});
    std::vector<uint32_t> slots;
    for (uint32_t s = 0; s < arena; ++s)
        if (rng.chance(0.5)) slots.insert(slots.begin() + (long)rng.below(slots.size() + 1), s);
    if (slots.empty()) return;
    for (uint64_t nowhere = rng.below(3); nowhere; --nowhere)
        slots.insert(slots.begin() + (long)rng.below(slots.size() + 1), WRITE_NOWHERE);
    suite.begin(check::text("writes in units of %d", (int)unit));
    const uint64_t bytes = width * unit, pitch = bytes + rng.below(3) * unit;
    Buffer<uint8_t> rows((slots.size() - 1) * pitch + bytes), to(arena * bytes);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = (uint8_t)rng.next();
    for (size_t i = 0; i < to.size(); ++i) to[i] = (uint8_t)rng.next();
    std::vector<uint8_t> want(to.data(), to.data() + to.size());
    for (size_t i = 0; i < slots.size(); ++i)
        if (slots[i] != WRITE_NOWHERE) memcpy(&want[slots[i] * bytes], rows.data() + i * pitch, bytes);
    const Buffer<uint32_t> where(slots);
    const WriteArgs a = {rows.data(), to.data(), where.data(), slots.size(), bytes, pitch, (uint32_t)unit, 0};
    shim::launch({1 + (unsigned)rng.below(3)}, {WRITE_THREADS}, {rng.next()}, [&] { write_rows(a); });
    if (memcmp(to.data(), want.data(), want.size())) suite.fail("other bytes than a copy gives");
}

void any_case(Suite& suite, Rng& rng) {
    if (rng.chance(0.1)) write_case(suite, rng);
    else random(suite, rng);
}

// Shapes that random ones rarely meet: a long prefix with forks, causal tiles past one another, scores that overflow.
void first(Suite& suite, Rng& rng, uint64_t) {
    Case<BF16> c;
    c.dim = 128, c.kv_heads = 1, c.group = 2, c.arena = 620, c.rows = 140, c.scale = 0.09f;
    c.q_pitch = c.heads() * c.dim, c.k_pitch = c.v_pitch = c.dim;
    c.blocks = {{0, 133, {{0, 133}}, true}, {133, 1, {{0, 600}, {601, 1}}, true}, {134, 1, {{0, 100}}, true}, {135, 3, {{0, 550}, {610, 3}}, true}};
    for (uint64_t i = 0; i < c.rows * c.q_pitch; ++i) c.q.push_back(check::store<BF16>(rng.normal()));
    for (uint64_t i = 0; i < c.arena * c.dim; ++i) {
        c.k.push_back(check::store<BF16>(rng.normal()));
        c.v.push_back(check::store<BF16>(rng.normal()));
    }
    check_case(suite, c, rng);
    // Eighteen forks of a prefix, in MHA: sixteen lines and two; chunk 2 for those that reach its end.
    c.group = 1, c.q_pitch = c.dim, c.rows = 18, c.blocks.clear(), c.q.resize(c.rows * c.q_pitch);
    for (uint64_t f = 0; f < c.rows; ++f) c.blocks.push_back({f, 1, {{10, 170 + 2 * f}, {500 + f, 1}}, true});
    check_case(suite, c, rng, true);
    const Sharing s = sharing(c);
    // Chunks 0 and 1 twice each, chunk 2 (from key 128) once for the seven from 192 on, and a rest of each.
    if (s.reads != 4 + 1 + 18 || s.shared != 5) suite.fail(check::text("%d reads, %d shared", (int)s.reads, (int)s.shared));
    Case<F32> f;
    f.dim = 2, f.kv_heads = 1, f.group = 1, f.arena = 3, f.rows = 1, f.scale = 1;
    f.q_pitch = f.k_pitch = f.v_pitch = 2;
    f.blocks = {{0, 1, {{0, 3}}, false}};
    f.q = {1e3f, 0}, f.k = {100, 0, -100, 0, 0, 0}, f.v = {100, 0, -100, 1, 0, 2};
    suite.begin("scores of 1e5");
    const Bits<F32> out = run_blocks(f, f.blocks, rng);
    if (out[0] != 100 || out[1] != 0) suite.fail("the largest score does not win");
}

}  // namespace

int main(int argc, char** argv) {
    const check::Driver driver = {"attend", 1500, first, any_case, nullptr, nullptr};
    return check::run(driver, argc, argv);
}
