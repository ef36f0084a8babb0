// Runs kernels/token.cu against a float64 reference of the contract in src/ops/token.rs: the same
// token, unless the draw or a filter lies within 1e-6 of a boundary, which is counted.
#include "driver.hpp"
#include "floats.hpp"
#include "philox.hpp"

#include "token.cu"

using check::Buffer;
using namespace bdhs;

namespace {

uint32_t reference_word(const TokenRow& row) {
    return check::philox_word(row.seed, row.sample, row.attempt, 3u << 24 | row.sentence, row.step);
}

struct Expected {
    uint32_t status = TOKEN_OK, token = 0;
    double log_prob = NAN;
};

// `nudge`: how far to push top-p, min-p and the draw, in units of 1e-6.
Expected reference(const std::vector<float>& logits, const TokenRow& row, const int (&nudge)[3]) {
    const size_t vocab = logits.size();
    Expected e;
    float max = -INFINITY;
    bool nan = false;
    for (float l : logits) {
        nan |= l != l;
        max = l > max ? l : max;
    }
    e.status = nan ? TOKEN_NAN : max == INFINITY ? TOKEN_INFINITE : max == -INFINITY ? TOKEN_EMPTY : TOKEN_OK;
    if (e.status != TOKEN_OK) return e;
    const bool greedy = row.scale == 0;
    const double scale = greedy ? 1.0 : row.scale;
    std::vector<double> weight(vocab);
    for (size_t i = 0; i < vocab; ++i) weight[i] = exp((double)(logits[i] - max) * scale);
    std::vector<uint32_t> order(vocab);
    for (size_t i = 0; i < vocab; ++i) order[i] = (uint32_t)i;
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
        return logits[a] > logits[b];
    });
    if (!greedy && row.top_k && row.top_k < vocab)
        for (size_t i = 0; i < vocab; ++i)
            if (logits[i] < logits[order[row.top_k - 1]]) weight[i] = 0;
    double total = 0;
    for (double w : weight) total += w;
    if (!greedy && row.top_p < 1) {
        double before = 0;
        for (size_t i = 0; i < vocab; ++i) {
            const double w = weight[order[i]];
            if (i > 0 && before >= (row.top_p + 1e-6 * nudge[0]) * total) weight[order[i]] = 0;
            before += w;
        }
    }
    double left = 0;
    for (double& w : weight) {
        if (!greedy && w < row.min_p * (1 + 1e-6 * nudge[1])) w = 0;
        left += w;
    }
    if (greedy) {
        e.token = 0;
        while (logits[e.token] != max) ++e.token;
    } else {
        const double u = ((double)(reference_word(row) >> 8) + 0.5) * 0x1p-24 + 1e-6 * nudge[2];
        double running = 0;
        for (size_t i = 0; i < vocab; ++i) {
            if (weight[i] == 0) continue;
            e.token = (uint32_t)i;
            running += weight[i];
            if (running > u * left) break;
        }
    }
    e.log_prob = (double)(logits[e.token] - max) * scale - log(left);
    return e;
}

template <class T> struct Case {
    uint32_t vocab;
    int64_t stride;
    size_t misalign;
    std::vector<TokenRow> rows;
    std::vector<typename T::storage> logits;
    std::vector<uint32_t> history;

    std::vector<float> penalised(size_t r) const {
        std::vector<float> l(vocab);
        for (uint32_t i = 0; i < vocab; ++i) l[i] = T::decode(logits[r * stride + i]);
        const std::vector<float> own = l;
        for (uint32_t h = 0; h < rows[r].history; ++h) {
            const uint32_t t = history[rows[r].history_start + h];
            if (rows[r].penalty != 1) l[t] = own[t] < 0 ? own[t] * rows[r].penalty : own[t] / rows[r].penalty;
        }
        return l;
    }
};

TokenRow random_row(check::Rng& rng, uint32_t vocab) {
    TokenRow row = {};
    row.seed = rng.next();
    row.sample = (uint32_t)rng.next();
    row.attempt = (uint32_t)rng.below(6);
    row.sentence = rng.chance(0.3) ? 0xFFFFFF : (uint32_t)rng.below(9);
    row.step = rng.chance(0.1) ? (1ull << 34) - 1 : rng.below(500);
    row.scale = rng.chance(0.15) ? 0.0f : (float)(1.0 / rng.pick({1.0, 0.7, 0.2, 2.5, 1e-4, 1e4}));
    row.top_k = rng.chance(0.5) ? 0 : (uint32_t)rng.pick<uint64_t>({1, vocab, vocab + 5ull, 1 + rng.below(vocab)});
    row.top_p = rng.chance(0.5) ? 1.0 : rng.pick({0.9, 0.5, 1e-9, 0.999999, rng.uniform() + 1e-12});
    row.min_p = rng.chance(0.6) ? 0.0 : rng.pick({0.05, 0.5, 1.0, rng.uniform()});
    row.penalty = rng.chance(0.6) ? 1.0f : (float)rng.pick({1.3, 0.8, 1e4, 1e-4});
    return row;
}

template <class T> Case<T> make_case(check::Rng& rng) {
    Case<T> c;
    c.vocab = (uint32_t)rng.pick<uint64_t>({1, 2, 31, 33, 1 + rng.below(80), 1 + rng.below(700), 4096, 4100 + rng.below(900)});
    c.stride = c.vocab + (int64_t)rng.pick<uint64_t>({0, 0, 3, (8 - c.vocab % 8) % 8});
    c.misalign = rng.chance(0.2) ? 1 : 0;
    const uint64_t rows = 1 + rng.below(c.vocab > 1000 ? 1 : 3);
    c.logits.assign(rows * c.stride, T::encode(NAN));
    for (uint64_t r = 0; r < rows; ++r) {
        const double spread = rng.pick({0.0, 0.5, 3.0, 30.0}), grid = rng.pick({0.0, 0.25, 2.0});
        for (uint32_t i = 0; i < c.vocab; ++i) {
            double l = rng.normal() * spread;
            if (grid > 0) l = rint(l / grid) * grid;  // many ties, zeros of both signs
            if (rng.chance(0.02)) l = -INFINITY;
            c.logits[r * c.stride + i] = check::store<T>(l);
        }
        auto& some = c.logits[r * c.stride + rng.below(c.vocab)];
        if (rng.chance(0.03)) some = check::store<T>(NAN);
        if (rng.chance(0.03)) some = check::store<T>(INFINITY);
        if (rng.chance(0.02))
            for (uint32_t i = 0; i < c.vocab; ++i) c.logits[r * c.stride + i] = check::store<T>(-INFINITY);
        TokenRow row = random_row(rng, c.vocab);
        row.history_start = c.history.size();
        row.history = (uint32_t)rng.below(20);
        for (uint32_t h = 0; h < row.history; ++h) c.history.push_back((uint32_t)rng.below(c.vocab));
        c.rows.push_back(row);
    }
    return c;
}

template <class T> struct Outcome {
    Buffer<uint32_t> token, status;
    Buffer<float> log_prob;

    void run(const Case<T>& c, uint64_t seed) {
        const Buffer<typename T::storage> logits(c.logits, c.misalign);
        const Buffer<TokenRow> rows(c.rows);
        const Buffer<uint32_t> history(c.history);
        Buffer<uint32_t> bits(c.rows.size() * ((c.vocab + 31) / 32));
        const size_t size = sizeof(typename T::storage);
        const bool aligned = c.misalign == 0 && c.stride * size % 16 == 0;
        const TokenArgs args = {logits.data(), rows.data(), history.data(), bits.data(), token.data(),
                                log_prob.data(), status.data(), c.stride, c.vocab, aligned};
        shim::launch({(unsigned)c.rows.size()}, {TOKEN_THREADS}, {seed}, [&] {
            check::kernel_for<T>(token_sample_f32, token_sample_f16, token_sample_bf16)(args);
        });
    }
};

const char* mode(const TokenRow& row) {
    if (row.scale == 0) return "greedy";
    const int filters = (row.top_k != 0) + 2 * (row.top_p < 1) + 4 * (row.min_p > 0);
    static const char* const names[] = {"plain", "top-k", "top-p", "top-k + top-p",
                                        "min-p", "top-k + min-p", "top-p + min-p", "all filters"};
    return names[filters];
}

uint64_t near_boundary = 0, compared = 0;

bool agrees(const Expected& e, uint32_t token, uint32_t status, float log_prob) {
    return e.status == status && (status != TOKEN_OK || e.token == token) &&
           check::close(log_prob, e.log_prob, 2e-5, 1e-6);
}

template <class T> void sample_case(check::Suite& suite, check::Rng& rng) {
    const Case<T> c = make_case<T>(rng);
    suite.begin(check::text("%s, %s%s", check::dtype_name<T>(), mode(c.rows[0]),
                            c.rows[0].penalty != 1 ? ", penalty" : ""));
    Outcome<T> out{{c.rows.size()}, {c.rows.size()}, {c.rows.size()}};
    out.run(c, rng.next());
    for (size_t r = 0; r < c.rows.size(); ++r) {
        const std::vector<float> logits = c.penalised(r);
        const Expected e = reference(logits, c.rows[r], {0, 0, 0});
        ++compared;
        bool fine = agrees(e, out.token[r], out.status[r], out.log_prob[r]);
        if (!fine) ++near_boundary;
        for (int n = 0; n < 27 && !fine; ++n) {
            const Expected other = reference(logits, c.rows[r], {n / 9 - 1, n / 3 % 3 - 1, n % 3 - 1});
            fine = agrees(other, out.token[r], out.status[r], out.log_prob[r]);
        }
        if (!fine)
            suite.fail(check::text("row %zu of %zu, vocab %u: token %u, log-prob %g, status %u; expected %u, %g, %u", r,
                                   c.rows.size(), c.vocab, out.token[r], out.log_prob[r], out.status[r], e.token,
                                   e.log_prob, e.status));
    }
}

// One row drawn at many steps: frequencies fit the distribution, and a row is the same in any batch.
void frequency_case(check::Suite& suite, check::Rng& rng) {
    suite.begin("f32, frequencies");
    constexpr int VOCAB = 12, DRAWS = 3000;
    Case<F32> c;
    c.vocab = c.stride = VOCAB;
    c.misalign = 0;
    TokenRow row = random_row(rng, VOCAB);
    row.scale = 1;
    row.top_p = 1;
    row.top_k = row.history = 0;
    row.min_p = 0;
    row.penalty = 1;
    std::vector<float> one;
    double total = 0;
    for (int i = 0; i < VOCAB; ++i) one.push_back(i == 5 ? -INFINITY : (float)rng.normal());
    for (float l : one) total += exp(l);
    for (int d = 0; d < DRAWS; ++d) {
        row.step = (uint64_t)d;
        c.rows.push_back(row);
        c.logits.insert(c.logits.end(), one.begin(), one.end());
    }
    Outcome<F32> out{{DRAWS}, {DRAWS}, {DRAWS}};
    out.run(c, rng.next());
    double chi = 0;
    for (int i = 0; i < VOCAB; ++i) {
        double seen = 0;
        for (int d = 0; d < DRAWS; ++d) seen += out.token[d] == (uint32_t)i;
        const double expected = DRAWS * exp(one[i]) / total;
        if (expected == 0 && seen > 0) suite.fail("a token of zero probability was drawn");
        if (expected > 0) chi += (seen - expected) * (seen - expected) / expected;
    }
    if (chi > 33.1) suite.fail(check::text("chi-square %g over 10 degrees of freedom", chi));  // p = 0.00025
}

// Of one call: dtype, vocabulary, rows, logits, history.
void replay(check::Suite&, check::Rng& rng, check::Reader& in, check::Writer& out) {
    check::with_dtype(in.value<uint64_t>(), [&](auto type) {
        using T = decltype(type);
        Case<T> c;
        c.vocab = (uint32_t)in.value<uint64_t>();
        c.stride = c.vocab;
        c.misalign = rng.chance(0.2) ? 1 : 0;
        c.rows = in.array<TokenRow>();
        c.logits = in.array<typename T::storage>();
        c.history = in.array<uint32_t>();
        Outcome<T> result{{c.rows.size()}, {c.rows.size()}, {c.rows.size()}};
        result.run(c, rng.next());
        out.array(result.token);
        out.array(result.log_prob);
        out.array(result.status);
    });
}

void random_case(check::Suite& suite, check::Rng& rng) {
    check::with_dtype(rng.below(3), [&](auto type) { sample_case<decltype(type)>(suite, rng); });
}

void first_cases(check::Suite& suite, check::Rng& rng, uint64_t cases) {
    if (cases >= 1000) frequency_case(suite, rng);
}

void report(const check::Suite& suite) {
    printf("  rows compared %llu, within 1e-6 of a boundary and decided the other way %llu\n",
           (unsigned long long)compared, (unsigned long long)near_boundary);
    if (near_boundary * 100 > compared) suite.fail("too many draws near a boundary");
}

}  // namespace

int main(int argc, char** argv) {
    return check::run({"token", 5000, first_cases, random_case, report, replay}, argc, argv);
}
