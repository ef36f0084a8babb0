// Runs kernels/mask.cu against a plain reference: same kept indices, same bits.
#include "driver.hpp"
#include "philox.hpp"

#include "mask.cu"

using check::Buffer;
using namespace bdhs;

namespace {

uint32_t reference_word(const MaskRow& row, uint64_t index) {
    return check::philox_word(row.seed, row.sample, row.attempt, row.sentence, index);
}

struct Case {
    MaskArgs args = {};
    std::vector<MaskRow> rows;
    std::vector<MaskGrid> grids;
};

// One launch of the kernel and what it wrote: `kept` indices, `words` of bitmask.
struct Drawn {
    Buffer<uint32_t> index, mask;

    Drawn(const Case& c, uint64_t kept, uint64_t words, bool indices, bool bits, uint64_t seed) : index(kept), mask(words) {
        const Buffer<MaskRow> rows(c.rows);
        const Buffer<MaskGrid> grids(c.grids);
        MaskArgs args = c.args;
        args.rows = rows.data();
        args.grids = grids.data();
        args.indices = indices ? index.data() : nullptr;
        args.bitmask = bits ? mask.data() : nullptr;
        args.row_count = (uint32_t)c.rows.size();
        if (!c.rows.empty()) shim::launch({(unsigned)c.rows.size()}, {MASK_THREADS}, {seed}, [&] { mask_draw(args); });
    }
};

// What the launch derives from rho.
void set_rho(Case& c, double rho) {
    c.args.bar = (uint64_t)ceil(rho * 4294967296.0);
    for (MaskRow& row : c.rows) {
        row.drawn = row.tokens;
        if (c.args.exempt_newlines) {
            row.drawn = 0;
            for (uint32_t g = row.first_grid; g < row.first_grid + row.grids; ++g)
                row.drawn += c.grids[g].rows * c.grids[g].cols;
        }
        row.keep = (uint32_t)llround(row.drawn - rho * row.drawn);
    }
}

std::vector<uint32_t> reference_row(const Case& c, const MaskRow& row) {
    std::vector<uint32_t> word(row.tokens), kept;
    std::vector<int> cell(row.tokens, 0);
    for (uint32_t i = 0; i < row.tokens; ++i) word[i] = reference_word(row, i);
    const std::vector<uint32_t> own = word;
    for (uint32_t g = row.first_grid; g < row.first_grid + row.grids; ++g) {
        const MaskGrid& grid = c.grids[g];
        for (uint32_t y = 0; y < grid.rows; ++y)
            for (uint32_t x = 0; x < grid.cols; ++x) {
                const uint32_t token = grid.start + y * grid.stride + x;
                cell[token] = 1;
                if (c.args.law == LAW_BLOCKS)
                    word[token] = own[grid.start + (y - y % c.args.block) * grid.stride + x - x % c.args.block];
            }
    }
    std::vector<std::pair<uint32_t, uint32_t>> drawn;
    for (uint32_t i = 0; i < row.tokens; ++i) {
        const bool exempt = c.args.exempt_newlines && !cell[i];
        if (c.args.law == LAW_EXACT_K && !exempt)
            drawn.push_back({word[i], i});
        else if (exempt || word[i] >= c.args.bar)
            kept.push_back(i);
    }
    std::sort(drawn.begin(), drawn.end());
    for (size_t i = 0; i < drawn.size() && i < row.keep; ++i) kept.push_back(drawn[i].second);
    std::sort(kept.begin(), kept.end());
    return kept;
}

// Tiles with a newline after each line, as AnyRes packs them, or bare squares.
void add_grids(check::Rng& rng, Case& c, MaskRow& row) {
    row.first_grid = (uint32_t)c.grids.size();
    uint32_t next = (uint32_t)rng.below(3);
    for (uint64_t g = rng.below(4); g > 0; --g) {
        MaskGrid grid;
        grid.start = next;
        grid.rows = (uint32_t)rng.range(0, 9);
        grid.cols = (uint32_t)rng.range(0, 11);
        grid.stride = grid.cols + (uint32_t)rng.below(2);
        next += grid.rows * grid.stride + (uint32_t)rng.below(2);
        c.grids.push_back(grid);
        row.grids++;
    }
    row.tokens = next + (uint32_t)rng.below(5);
}

Case make_case(check::Rng& rng) {
    Case c;
    c.args.law = (uint32_t)rng.below(3);
    c.args.exempt_newlines = (uint32_t)rng.below(2);
    c.args.block = (uint32_t)rng.range(1, 5);
    const double rho = rng.pick({0.0, 1.0, 0.99, 0.5, rng.uniform()});
    for (int64_t n = rng.range(0, 4); n > 0; --n) {
        MaskRow row = {};
        row.seed = rng.next();
        row.sample = (uint32_t)rng.next();
        row.attempt = (uint32_t)rng.below(6);
        row.sentence = rng.chance(0.3) ? 0xFFFFFF : 0;
        if (rng.chance(0.8)) {
            add_grids(rng, c, row);
        } else {
            row.tokens = (uint32_t)rng.pick<uint64_t>({0, 1, 31, 32, 33, 1024, 1025, rng.below(3200)});
        }
        c.rows.push_back(row);
    }
    set_rho(c, rho);
    return c;
}

// With a narrowed counter space many words are equal: ties must go by index. Philox itself never
// repeats so often, so the tie rule is driven through radix_select directly.
void tie_case(check::Suite& suite, check::Rng& rng) {
    suite.begin("select, ties");
    const uint32_t n = (uint32_t)rng.range(1, 700), distinct = (uint32_t)rng.range(1, 5);
    std::vector<uint32_t> key(n), weight(n);
    uint64_t total = 0;
    for (uint32_t i = 0; i < n; ++i) {
        key[i] = (uint32_t)rng.below(distinct) * (rng.chance(0.5) ? 0x01000001u : 1u);
        total += weight[i] = (uint32_t)rng.below(3);
    }
    if (total == 0) total = weight[0] = 1;
    const bool items = rng.chance(0.5);  // of weight 1 each
    if (items) std::fill(weight.begin(), weight.end(), 1u), total = n;
    const uint64_t rank = rng.below(total);
    std::vector<std::pair<uint32_t, uint32_t>> sorted;
    for (uint32_t i = 0; i < n; ++i) sorted.push_back({key[i], weight[i]});
    std::sort(sorted.begin(), sorted.end());
    uint64_t before_key = 0, running = 0, of_key = 0;
    uint32_t expected = 0;
    for (size_t i = 0; i < n; ++i) {
        if (i == 0 || sorted[i].first != sorted[i - 1].first) before_key = running;
        running += sorted[i].second;
        if (running > rank) {
            expected = sorted[i].first;
            break;
        }
    }
    for (uint32_t i = 0; i < n; ++i)
        if (key[i] == expected) of_key += weight[i];
    const Buffer<uint32_t> keys(key), weights(weight);
    Buffer<uint64_t> result(3);
    shim::launch({}, {128}, {rng.next()}, [&] {
        BDHS_SHARED(unsigned long long, bins, RADIX_BINS);
        BDHS_SHARED(unsigned, counts, RADIX_BINS);
        BDHS_SHARED(uint64_t, scratch, 4);
        BDHS_SHARED(uint64_t, found, 3);
        const auto each = [&](auto visit) {
            for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) visit(i);
        };
        const Selected s =
            items ? radix_select_items(rank, counts, scratch, found, [&](auto visit) { each([&](uint32_t i) { visit(keys[i]); }); })
                  : radix_select(rank, bins, scratch, found, [&](auto visit) {
                        each([&](uint32_t i) { visit(keys[i], (unsigned long long)weights[i]); });
                    });
        if (threadIdx.x == 77) result[0] = s.key, result[1] = s.within, result[2] = s.weight;
    });
    if (result[0] != expected || result[1] != rank - before_key || result[2] != of_key)
        suite.fail(check::text("selected %llx + %llu of %llu, expected %x + %llu of %llu", (unsigned long long)result[0],
                               (unsigned long long)result[1], (unsigned long long)result[2], expected,
                               (unsigned long long)(rank - before_key), (unsigned long long)of_key));
}

void draw_case(check::Suite& suite, check::Rng& rng) {
    static const char* const laws[] = {"bernoulli", "exact_k", "blocks"};
    Case c = make_case(rng);
    const bool indices = rng.chance(0.8), bits = !indices || rng.chance(0.7);
    suite.begin(check::text("draw, %s%s%s%s", laws[c.args.law], c.args.exempt_newlines ? ", exempt" : "",
                            indices ? ", indices" : "", bits ? ", bitmask" : ""));
    std::vector<std::vector<uint32_t>> expected;
    uint64_t kept = 0, words = 0;
    for (MaskRow& row : c.rows) {
        row.index_start = kept;
        row.word_start = words;
        expected.push_back(reference_row(c, row));
        kept += expected.back().size();
        words += (row.tokens + 31) / 32;
    }
    const Drawn drawn(c, kept, words, indices, bits, rng.next());
    for (size_t r = 0; r < c.rows.size(); ++r) {
        const MaskRow& row = c.rows[r];
        std::vector<uint32_t> word((row.tokens + 31) / 32, 0);
        for (size_t i = 0; i < expected[r].size(); ++i) {
            if (indices && drawn.index[row.index_start + i] != expected[r][i])
                suite.fail(check::text("row %zu, kept %zu is %u, expected %u", r, i, drawn.index[row.index_start + i], expected[r][i]));
            word[expected[r][i] / 32] |= 1u << (expected[r][i] % 32);
        }
        for (size_t i = 0; bits && i < word.size(); ++i)
            if (drawn.mask[row.word_start + i] != word[i])
                suite.fail(check::text("row %zu, word %zu is %08x, expected %08x", r, i, drawn.mask[row.word_start + i], word[i]));
    }
}

void pack_case(check::Suite& suite, check::Rng& rng) {
    const uint32_t unit = rng.pick<uint32_t>({16, 4, 2});
    suite.begin(check::text("pack, %u-byte units", unit));
    const uint64_t row_bytes = unit * rng.pick<uint64_t>({1, 3, 31, 32, 33, 128, 1 + rng.below(300)});
    const size_t per_row = row_bytes / 2;
    std::vector<std::unique_ptr<Buffer<uint16_t>>> sources;
    std::vector<uint64_t> base, source_rows;
    for (int64_t s = rng.range(1, 3); s > 0; --s) {
        const uint64_t n = (uint64_t)rng.range(1, 20);
        const size_t misalign = unit == 16 ? 0 : unit / 2;
        sources.push_back(std::make_unique<Buffer<uint16_t>>(n * per_row, misalign));
        for (size_t i = 0; i < n * per_row; ++i) (*sources.back())[i] = (uint16_t)rng.next();
        base.push_back((uint64_t)(uintptr_t)sources.back()->data());
        source_rows.push_back(n);
    }
    const uint64_t rows = rng.below(40);
    std::vector<uint32_t> source_of;
    std::vector<uint64_t> row_of;
    for (uint64_t r = 0; r < rows; ++r) {
        source_of.push_back((uint32_t)rng.below(base.size()));
        row_of.push_back(rng.below(source_rows[source_of.back()]));
    }
    Buffer<uint64_t> bases(base), rows_of(row_of);
    Buffer<uint32_t> sources_of(source_of);
    Buffer<uint16_t> out(rows * per_row, unit == 16 ? 0 : unit / 2);
    const PackArgs args = {bases.data(), sources_of.data(), rows_of.data(), reinterpret_cast<uint8_t*>(out.data()),
                           rows, row_bytes, unit, 0};
    if (rows)
        shim::launch({(unsigned)rng.range(1, 6)}, {PACK_THREADS}, {rng.next()}, [&] { pack_rows(args); });
    for (uint64_t r = 0; r < rows; ++r)
        if (memcmp(&out[r * per_row], &(*sources[source_of[r]])[row_of[r] * per_row], row_bytes))
            suite.fail(check::text("row %llu differs from its source", (unsigned long long)r));
}

// A source past 2^32 bytes: offsets must be 64 bits wide.
void far_pack_case(check::Suite& suite, check::Rng& rng) {
    suite.begin("pack, offsets past 2^32");
    const uint64_t row_bytes = 4096, rows = (uint64_t)1 << 21;
    check::SparseBuffer<uint8_t> source(rows * row_bytes, row_bytes);
    uint8_t* last = source.data() + (rows - 1) * row_bytes;
    for (uint64_t i = 0; i < row_bytes; ++i) last[i] = (uint8_t)rng.next();
    Buffer<uint64_t> bases(std::vector<uint64_t>{(uint64_t)(uintptr_t)source.data()});
    Buffer<uint64_t> row_of(std::vector<uint64_t>{rows - 1});
    Buffer<uint32_t> source_of(std::vector<uint32_t>{0});
    Buffer<uint8_t> out(row_bytes);
    const PackArgs args = {bases.data(), source_of.data(), row_of.data(), out.data(), 1, row_bytes, 16, 0};
    shim::launch({1}, {PACK_THREADS}, {rng.next()}, [&] { pack_rows(args); });
    if (memcmp(out.data(), last, row_bytes)) suite.fail("the last row differs from its source");
}

// Of one call: law, block, whether newlines are exempt, rho, kept indices, words of bitmask, rows, grids.
void replay(check::Suite&, check::Rng& rng, check::Reader& in, check::Writer& out) {
    Case c;
    c.args.law = (uint32_t)in.value<uint64_t>();
    c.args.block = (uint32_t)in.value<uint64_t>();
    c.args.exempt_newlines = (uint32_t)in.value<uint64_t>();
    const double rho = in.value<double>();
    const uint64_t kept = in.value<uint64_t>(), words = in.value<uint64_t>();
    c.rows = in.array<MaskRow>();
    c.grids = in.array<MaskGrid>();
    set_rho(c, rho);
    const Drawn drawn(c, kept, words, true, true, rng.next());
    out.array(drawn.index);
    out.array(drawn.mask);
}

void random_case(check::Suite& suite, check::Rng& rng) {
    const uint64_t kind = rng.below(10);
    if (kind < 6) draw_case(suite, rng);
    else if (kind < 8) pack_case(suite, rng);
    else tie_case(suite, rng);
}

void first_cases(check::Suite& suite, check::Rng& rng, uint64_t) { far_pack_case(suite, rng); }

}  // namespace

int main(int argc, char** argv) {
    return check::run({"mask", 6000, first_cases, random_case, nullptr, replay}, argc, argv);
}
