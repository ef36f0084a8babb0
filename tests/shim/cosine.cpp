// Runs kernels/cosine.cu against long-double cosines: scores within the stated bounds, decisions equal except
// within 1e-12 of a threshold.
#include "driver.hpp"
#include "floats.hpp"

#include "cosine.cu"

using check::Buffer;
using check::Rng;
using check::Suite;
using namespace bdhs;

namespace {

uint64_t decisions = 0, rechecked_pairs = 0;

template <class T> constexpr uint32_t code() { return T::VEC == 4 ? DTYPE_F32 : T::IS_BF16 ? DTYPE_BF16 : DTYPE_F16; }

// `count` rows of `d` values, `stride` apart; NaN between them.
template <class T> struct Matrix {
    uint64_t count;
    int64_t d, stride;
    size_t misalign;
    std::vector<typename T::storage> values;

    const typename T::storage* row(uint64_t i) const { return &values[i * stride]; }
    bool aligned() const { return misalign == 0 && stride * sizeof(values[0]) % 16 == 0; }
};

// Random rows among repeated, scaled, opposite and orthogonal ones; sometimes zero, not finite, huge or tiny.
template <class T> Matrix<T> random_matrix(Rng& rng, uint64_t count, int64_t d, const Matrix<T>* like = nullptr) {
    Matrix<T> m{count, d, d + rng.pick<int64_t>({0, 0, 3, (8 - d % 8) % 8}), rng.chance(0.2) ? 1u : 0u, {}};
    m.values.assign(count * m.stride, T::encode(NAN));
    const double spread = rng.pick({1.0, 0.1, 0.01});
    std::vector<double> centre(d);
    for (double& c : centre) c = rng.normal();
    if (like && like->count)
        for (int64_t c = 0; c < d; ++c) centre[c] = T::decode(like->row(rng.below(like->count))[c]);
    for (double& c : centre)
        if (!std::isfinite(c)) c = 1;
    for (uint64_t i = 0; i < count; ++i) {
        const uint64_t kind = rng.below(40);
        double scale = kind == 0 ? 0.0 : rng.pick({1.0, 1.0, 3.0, -1.0});
        if (kind == 1 && T::VEC == 4) scale = rng.pick({1e30, 1e-30, 1e-40});
        if (kind == 1 && T::IS_BF16) scale = rng.pick({1e34, 1e-30});
        for (int64_t c = 0; c < d; ++c) {
            double x = (centre[c] + (kind < 12 ? 0.0 : spread * rng.normal())) * scale;
            if (kind == 12) x = c == (int64_t)(i % (uint64_t)d) ? 1 : 0;
            if (T::VEC == 8 && !T::IS_BF16) x = std::max(-60000.0, std::min(60000.0, x));
            m.values[i * m.stride + c] = check::store<T>(x);
        }
        if (kind == 2) m.values[i * m.stride + rng.below(d)] = check::store<T>(rng.pick({(double)NAN, (double)INFINITY}));
        if (kind == 3 && i > 0) std::copy_n(&m.values[(i - 1) * m.stride], d, &m.values[i * m.stride]);
    }
    return m;
}

template <class T> double reference(const Matrix<T>& a, uint64_t i, const Matrix<T>& b, uint64_t j) {
    long double xy = 0, xx = 0, yy = 0;
    for (int64_t c = 0; c < a.d; ++c) {
        const long double x = T::decode(a.row(i)[c]), y = T::decode(b.row(j)[c]);
        xy += x * y;
        xx += x * x;
        yy += y * y;
    }
    if (!std::isfinite(xx) || !std::isfinite(yy)) return NAN;
    if (xx == 0 || yy == 0) return 0;
    return (double)std::max(-1.0L, std::min(1.0L, xy / sqrtl(xx * yy)));
}

// Thresholds at, next to and away from cosines that occur.
template <class T>
std::vector<double> random_thresholds(Rng& rng, const Matrix<T>& a, const Matrix<T>& b, uint64_t most) {
    std::vector<double> thresholds;
    for (uint64_t t = rng.below(most + 1); t > 0; --t) {
        double x = rng.pick({0.97, 0.9, 1.0, 0.0, -1.0, 2 * rng.uniform() - 1});
        if (a.count && b.count && rng.chance(0.5)) {
            x = reference(a, rng.below(a.count), b, rng.below(b.count)) + rng.pick({0.0, 1e-9, -1e-9, 1e-7, -1e-7, 1e-5, -1e-4});
            if (!(x >= -1 && x <= 1)) x = 0.5;
        }
        thresholds.push_back(x);
    }
    return thresholds;
}

double row_bound(int64_t d, int vec) {
    const double n = (double)(ceil_div(d, 32 * vec) * vec + 5), g = n * 0x1p-24 / (1 - n * 0x1p-24);
    return 2 * g / (1 - g) + d * 0x1p-58 + 1e-14;
}

// Of a tile's score. Tensor cores may cut instead of rounding: 2^-22 for each of the padded d additions.
double tile_bound(int64_t padded_d, bool f32, uint32_t products) {
    double bound = (1.01 * padded_d + 16) * 0x1p-22;
    if (f32) bound += products == 1 ? 0x1p-10 * 1.001 + 2 * sqrt(padded_d) * 0x1p-25 : sqrt(padded_d) * 0x1p-34;
    return bound;
}

// ---- rows ----

// One launch of the kernel and what it wrote.
template <class T> struct Rows {
    Buffer<float> scores;
    Buffer<uint32_t> first;
    Buffer<unsigned long long> tally;

    // No groups: candidate i to reference i.
    Rows(Rng& rng, const Matrix<T>& x, const Matrix<T>& y, const std::vector<uint32_t>& groups,
         const std::vector<double>& thresholds)
        : scores(x.count), first(std::vector<uint32_t>(y.count * thresholds.size(), ~0u)),
          tally(std::vector<unsigned long long>{0, 0}) {
        const Buffer<typename T::storage> xs(x.values, x.misalign), ys(y.values, y.misalign);
        const Buffer<uint32_t> offsets(groups);
        const Buffer<double> limits(thresholds);
        const CosineRowsArgs args = {xs.data(), ys.data(), groups.empty() ? nullptr : offsets.data(), limits.data(),
                                     scores.data(), first.data(), tally.data(), x.count, y.count, x.d, x.stride, y.stride,
                                     row_bound(x.d, T::VEC), (uint32_t)thresholds.size(), x.aligned() && y.aligned()};
        shim::launch({(unsigned)rng.range(1, 3)}, {COSINE_ROW_THREADS}, {rng.next()}, [&] {
            check::kernel_for<T>(cosine_rows_f32, cosine_rows_f16, cosine_rows_bf16)(args);
        });
    }
};

template <class T> void rows_case(Suite& suite, Rng& rng) {
    const bool grouped = rng.chance(0.6);
    suite.begin(check::text("rows, %s%s", check::dtype_name<T>(), grouped ? ", grouped" : ""));
    const int64_t d = rng.pick<int64_t>({1, 1 + (int64_t)rng.below(40), 1 + (int64_t)rng.below(600), 384, 768});
    const uint64_t references = rng.below(grouped ? 80 : 8);
    std::vector<uint32_t> groups{0};
    for (uint64_t r = 0; r < references; ++r) groups.push_back(groups[r] + (grouped ? (uint32_t)rng.below(4) : 1));
    const Matrix<T> y = random_matrix<T>(rng, references, d), x = random_matrix<T>(rng, groups.back(), d, &y);
    const std::vector<double> thresholds = random_thresholds(rng, x, y, 4);
    const double bound = row_bound(d, T::VEC);
    const Rows<T> run(rng, x, y, grouped ? groups : std::vector<uint32_t>{}, thresholds);
    uint64_t nans = 0;
    for (uint64_t r = 0; r < references; ++r) {
        for (size_t t = 0; t < thresholds.size(); ++t) {
            // The first surely below, unless an earlier one lies within 1e-12 of the threshold.
            const uint32_t seen = run.first[r * thresholds.size() + t];
            bool fine = seen == ~0u;
            for (uint32_t k = groups[r]; k < groups[r + 1]; ++k) {
                const double c = reference(x, k, y, r);
                const bool edge = fabs(c - thresholds[t]) < 1e-12;
                ++decisions;
                if (seen == k - groups[r]) fine = edge || c < thresholds[t];
                if (seen == k - groups[r] || (c < thresholds[t] && !edge)) {
                    fine &= seen == k - groups[r];
                    break;
                }
            }
            if (!fine) suite.fail(check::text("reference %d, threshold %.17g: first below is %d", (int)r, thresholds[t], (int)seen));
        }
        for (uint32_t k = groups[r]; k < groups[r + 1]; ++k) {
            const double c = reference(x, k, y, r);
            nans += c != c;
            if (!check::close(run.scores[k], c, bound, 0x1p-23) || fabs(run.scores[k]) > 1)
                suite.fail(check::text("candidate %d, d %d: %.9g, expected %.9g", (int)k, (int)d, run.scores[k], c));
        }
    }
    if (run.tally[0] != nans) suite.fail("another number of NaN scores");
    rechecked_pairs += run.tally[1];
}

// ---- tiles ----

template <class T> struct Prepared {
    int64_t padded_d;
    uint64_t padded;
    Buffer<typename T::storage> rows;
    Buffer<uint16_t> high, low;
    Buffer<float> scale;
    Buffer<uint32_t> nan;
    CosineSide side;

    Prepared(Suite& suite, Rng& rng, const Matrix<T>& m)
        : padded_d(ceil_div(m.d, TILE_K) * TILE_K), padded((uint64_t)ceil_div((int64_t)m.count, TILE) * TILE),
          rows(m.values, m.misalign), high(padded * padded_d), low(T::VEC == 4 ? padded * padded_d : 0), scale(padded),
          nan(padded) {
        Buffer<unsigned long long> tally(std::vector<unsigned long long>{0});
        const CosinePrepareArgs args = {rows.data(), high.data(), T::VEC == 4 ? low.data() : nullptr, scale.data(), nan.data(),
                                        tally.data(), m.count, padded, m.d, padded_d, m.stride};
        shim::launch({(unsigned)rng.range(1, 3)}, {COSINE_ROW_THREADS}, {rng.next()}, [&] {
            check::kernel_for<T>(cosine_prepare_f32, cosine_prepare_f16, cosine_prepare_bf16)(args);
        });
        uint64_t nans = 0;
        for (uint64_t i = 0; i < m.count; ++i) {
            bool bad = false;
            for (int64_t c = 0; c < m.d; ++c) bad |= !std::isfinite(T::decode(m.row(i)[c]));
            if (bad != (nan[i] != 0)) suite.fail("a row that is not finite is not marked");
            nans += bad;
        }
        if (tally[0] != nans) suite.fail("another number of rows that are not finite");
        side = {high.data(), low.data(), scale.data(), nan.data(), rows.data(), m.count, m.stride};
    }
};

template <class T> struct TileCase {
    Matrix<T> a, b;
    bool symmetric;
    uint32_t products;
    std::unique_ptr<Prepared<T>> pa, pb;
    CosineTileArgs args = {};

    TileCase(Suite& suite, Rng& rng, bool may_be_symmetric) {
        const int64_t d = rng.pick<int64_t>({1, 1 + (int64_t)rng.below(40), 1 + (int64_t)rng.below(100)});
        const auto rows = [&] { return rng.chance(0.12) ? 120 + rng.below(150) : rng.below(24); };
        symmetric = may_be_symmetric && rng.chance(0.4);
        a = random_matrix<T>(rng, rows(), d);
        b = symmetric ? a : random_matrix<T>(rng, rows(), d, &a);
        products = T::VEC == 4 && rng.chance(0.5) ? 3 : 1;
        pa = std::make_unique<Prepared<T>>(suite, rng, a);
        if (!symmetric) pb = std::make_unique<Prepared<T>>(suite, rng, b);
        args.a = pa->side;
        args.b = symmetric ? pa->side : pb->side;
        args.d = d;
        args.padded_d = pa->padded_d;
        args.tiles_a = (uint64_t)ceil_div((int64_t)a.count, TILE);
        args.tiles_b = (uint64_t)ceil_div((int64_t)b.count, TILE);
        args.products = products;
        args.symmetric = symmetric;
        args.dtype = code<T>();
    }

    double bound() const { return tile_bound(args.padded_d, T::VEC == 4, products); }

    template <class Kernel> void run(Rng& rng, Kernel kernel) const {
        const uint64_t tiles = args.tiles_a * args.tiles_b;
        if (tiles) shim::launch({(unsigned)tiles}, {COSINE_TILE_THREADS}, {rng.next()}, kernel);
    }

    template <class Visit> void each(Visit visit) const {
        for (uint64_t i = 0; i < a.count; ++i)
            for (uint64_t j = symmetric ? i + 1 : 0; j < b.count; ++j) visit(i, j, reference(a, i, b, j));
    }
};

float round_down(double x) {
    const float near = (float)x;
    return (double)near > x ? nextafterf(near, -INFINITY) : near;
}

struct Bands {
    Buffer<double> thresholds;
    Buffer<float> low, high;
    float lowest = INFINITY;

    Bands(const std::vector<double>& t, double bound) : thresholds(t), low(t.size()), high(t.size()) {
        for (size_t i = 0; i < t.size(); ++i) {
            low[i] = round_down(t[i] - bound);
            high[i] = -round_down(-(t[i] + bound));
            lowest = std::min(lowest, low[i]);
        }
    }
    void put(CosineTileArgs& args) const {
        args.thresholds = thresholds.data();
        args.low = low.data();
        args.high = high.data();
        args.lowest = lowest;
        args.threshold_count = (uint32_t)thresholds.size();
    }
};

template <class T> std::string tile_name(const char* what, const TileCase<T>& c) {
    return check::text("%s, %s%s%s", what, check::dtype_name<T>(), c.products == 3 ? " in 3 products" : "",
                       c.symmetric ? ", symmetric" : "");
}

template <class T> void matrix_case(Suite& suite, Rng& rng) {
    TileCase<T> c(suite, rng, false);
    suite.begin(tile_name("matrix", c));
    Buffer<float> scores(c.a.count * c.b.count);
    c.args.scores = scores.data();
    c.run(rng, [&] {
        if constexpr (T::IS_BF16) cosine_matrix_bf16(c.args);
        else cosine_matrix_f16(c.args);
    });
    c.each([&](uint64_t i, uint64_t j, double want) {
        const float seen = scores[i * c.b.count + j];
        if (!check::close(seen, want, c.bound(), 0x1p-23) || fabs(seen) > 1)
            suite.fail(check::text("(%d, %d), d %d: %.9g, expected %.9g", (int)i, (int)j, (int)c.a.d, seen, want));
    });
}

template <class T> void count_case(Suite& suite, Rng& rng) {
    TileCase<T> c(suite, rng, true);
    suite.begin(tile_name("count", c));
    const std::vector<double> thresholds = random_thresholds(rng, c.a, c.b, 5);
    const Bands bands(thresholds, c.bound());
    Buffer<unsigned long long> counts(std::vector<unsigned long long>(thresholds.size(), 0));
    Buffer<unsigned long long> rechecked(std::vector<unsigned long long>{0});
    bands.put(c.args);
    c.args.counts = counts.data();
    c.args.rechecked = rechecked.data();
    c.args.strict = (uint32_t)rng.below(2);
    c.run(rng, [&] {
        if constexpr (T::IS_BF16) cosine_count_bf16(c.args);
        else cosine_count_f16(c.args);
    });
    std::vector<uint64_t> least(thresholds.size(), 0), most(thresholds.size(), 0);
    c.each([&](uint64_t, uint64_t, double cosine) {
        for (size_t t = 0; t < thresholds.size(); ++t) {
            const bool edge = fabs(cosine - thresholds[t]) < 1e-12;
            ++decisions;
            least[t] += !edge && cosine > thresholds[t];
            most[t] += edge || cosine > thresholds[t];
        }
    });
    for (size_t t = 0; t < thresholds.size(); ++t)
        if (counts[t] < least[t] || counts[t] > most[t])
            suite.fail(check::text("threshold %.17g: %llu pairs, expected %llu to %llu", thresholds[t], counts[t],
                                   (unsigned long long)least[t], (unsigned long long)most[t]));
    if (!thresholds.empty()) rechecked_pairs += rechecked[0] / thresholds.size();
}

template <class T> void pairs_case(Suite& suite, Rng& rng) {
    TileCase<T> c(suite, rng, true);
    suite.begin(tile_name("pairs", c));
    std::vector<double> threshold = random_thresholds(rng, c.a, c.b, 3);
    threshold.resize(1, 0.97);
    const Bands bands(threshold, c.bound());
    const uint64_t capacity = rng.chance(0.8) ? c.a.count * c.b.count : rng.below(4);
    Buffer<unsigned long long> counts(std::vector<unsigned long long>{0}), rechecked(std::vector<unsigned long long>{0});
    Buffer<FoundPair> found(capacity);
    bands.put(c.args);
    c.args.counts = counts.data();
    c.args.rechecked = rechecked.data();
    c.args.found = found.data();
    c.args.capacity = capacity;
    c.args.strict = 1;
    c.run(rng, [&] {
        if constexpr (T::IS_BF16) cosine_pairs_bf16(c.args);
        else cosine_pairs_f16(c.args);
    });
    std::map<std::pair<uint32_t, uint32_t>, float> seen;
    const uint64_t kept = std::min<uint64_t>(counts[0], capacity);
    for (uint64_t p = 0; p < kept; ++p) seen[{found[p].i, found[p].j}] = found[p].score;
    if (seen.size() != kept) suite.fail("a pair is listed twice");
    uint64_t least = 0, most = 0;
    c.each([&](uint64_t i, uint64_t j, double cosine) {
        const bool edge = fabs(cosine - threshold[0]) < 1e-12, over = cosine > threshold[0];
        ++decisions;
        least += over && !edge;
        most += over || edge;
        const auto at = seen.find({(uint32_t)i, (uint32_t)j});
        if (at != seen.end() && !((over || edge) && check::close(at->second, cosine, c.bound(), 0x1p-23)))
            suite.fail(check::text("(%d, %d): %.9g is listed, its cosine is %.9g", (int)i, (int)j, at->second, cosine));
    });
    if (counts[0] < least || counts[0] > most) suite.fail("another number of pairs");
    rechecked_pairs += rechecked[0];
}

// ---- top k ----

// Scores off by up to the bound, as a tile's may be: the order must still be that of the cosines.
template <class T> void top_k_case(Suite& suite, Rng& rng) {
    suite.begin(check::text("top k, %s", check::dtype_name<T>()));
    const int64_t d = 1 + (int64_t)rng.below(30);
    const Matrix<T> a = random_matrix<T>(rng, 1 + rng.below(3), d), b = random_matrix<T>(rng, 1 + rng.below(rng.chance(0.2) ? 700 : 60), d, &a);
    const uint64_t k = 1 + rng.below(rng.chance(0.7) ? std::min<uint64_t>(b.count, 8) : b.count);
    const double bound = rng.pick({1e-7, 1e-3, 0.1});
    Buffer<float> scores(a.count * b.count), best(a.count * k);
    Buffer<uint32_t> candidate(a.count * b.count), index(a.count * k);
    Buffer<double> exact(a.count * b.count);
    Buffer<unsigned long long> rechecked(std::vector<unsigned long long>{0});
    for (uint64_t i = 0; i < a.count; ++i)
        for (uint64_t j = 0; j < b.count; ++j)
            scores[i * b.count + j] = (float)(reference(a, i, b, j) + bound * 0.99 * (2 * rng.uniform() - 1));
    const Buffer<typename T::storage> as(a.values, a.misalign), bs(b.values, b.misalign);
    const TopKArgs args = {scores.data(), as.data(), bs.data(), candidate.data(), exact.data(), best.data(), index.data(),
                           rechecked.data(), 0, b.count, k, d, a.stride, b.stride, 2 * bound + 1e-6};
    shim::launch({(unsigned)a.count}, {TOP_K_THREADS}, {rng.next()}, [&] {
        check::kernel_for<T>(cosine_top_k_f32, cosine_top_k_f16, cosine_top_k_bf16)(args);
    });
    for (uint64_t i = 0; i < a.count; ++i) {
        std::vector<double> cosine(b.count);
        for (uint64_t j = 0; j < b.count; ++j) cosine[j] = reference(a, i, b, j);
        std::vector<uint32_t> order(b.count);
        for (uint64_t j = 0; j < b.count; ++j) order[j] = (uint32_t)j;
        std::stable_sort(order.begin(), order.end(), [&](uint32_t x, uint32_t y) {
            return cosine[x] != cosine[x] ? false : cosine[y] != cosine[y] ? true : cosine[x] > cosine[y];
        });
        std::vector<bool> used(b.count, false);
        for (uint64_t r = 0; r < k; ++r) {
            const uint32_t j = index[i * k + r];
            if (j >= b.count || used[j]) suite.fail("an index is out of range or listed twice");
            used[j] = true;
            const double want = cosine[order[r]], seen = cosine[j];
            // Cosines equal within 1e-12 may change places; NaN may not.
            if (!check::close(seen, want, 1e-12, 0) || (want != want && j != order[r]) ||
                !check::close(best[i * k + r], seen, 1e-12, 0x1p-23))
                suite.fail(check::text("row %d, place %d: column %d (%.17g), expected %d (%.17g)", (int)i, (int)r, (int)j, seen,
                                       (int)order[r], want));
        }
    }
    rechecked_pairs += rechecked[0];
}

// Exact ties go by index: copies of one row, whose cosines are equal bit for bit.
void tie_case(Suite& suite, Rng& rng) {
    suite.begin("top k, ties by index");
    const uint64_t columns = 1 + rng.below(600), k = 1 + rng.below(columns);
    Matrix<F32> a = random_matrix<F32>(rng, 1, 3), b{columns, 3, 3, 0, {}};
    a.values = {1, 2, 3};
    a.stride = 3;
    for (uint64_t j = 0; j < columns; ++j)
        for (int c = 0; c < 3; ++c) b.values.push_back(j % 3 == 0 ? 2.0f * (float)(c + 1) : (float)(c == 0));
    Buffer<float> scores(columns), best(k);
    Buffer<uint32_t> candidate(columns), index(k);
    Buffer<double> exact(columns);
    Buffer<unsigned long long> rechecked(std::vector<unsigned long long>{0});
    for (uint64_t j = 0; j < columns; ++j) scores[j] = (float)reference(a, 0, b, j);
    const Buffer<float> as(a.values), bs(b.values);
    const TopKArgs args = {scores.data(), as.data(), bs.data(), candidate.data(), exact.data(), best.data(), index.data(),
                           rechecked.data(), 0, columns, k, 3, 3, 3, 1e-5};
    shim::launch({1}, {TOP_K_THREADS}, {rng.next()}, [&] { cosine_top_k_f32(args); });
    const uint64_t ones = (uint64_t)ceil_div((int64_t)columns, 3);
    for (uint64_t r = 0; r < k; ++r) {
        const uint64_t other = r - ones, want = r < ones ? 3 * r : other / 2 * 3 + 1 + other % 2;
        if (index[r] != want) suite.fail(check::text("place %d: column %d, expected %d", (int)r, (int)index[r], (int)want));
    }
}

// One mma against plain products: the fragment layout itself, and sums in f32.
template <class T> void mma_case(Suite& suite, Rng& rng) {
    suite.begin(check::text("mma, %s", check::dtype_name<T>()));
    double a[16][16], b[16][8], c[16][8];
    for (auto& row : a) for (double& x : row) x = T::decode(check::store<T>(rng.normal()));
    for (auto& row : b) for (double& x : row) x = T::decode(check::store<T>(rng.normal()));
    for (auto& row : c) for (double& x : row) x = (float)rng.normal();
    Buffer<float> out(128);
    shim::launch({1}, {32}, {rng.next()}, [&] {
        const int g = lane_id() / 4, t = lane_id() % 4;
        const auto two = [](double x, double y) { return T::encode((float)x) | (uint32_t)T::encode((float)y) << 16; };
        const uint32_t fa[4] = {two(a[g][2 * t], a[g][2 * t + 1]), two(a[g + 8][2 * t], a[g + 8][2 * t + 1]),
                                two(a[g][2 * t + 8], a[g][2 * t + 9]), two(a[g + 8][2 * t + 8], a[g + 8][2 * t + 9])};
        const uint32_t fb[2] = {two(b[2 * t][g], b[2 * t + 1][g]), two(b[2 * t + 8][g], b[2 * t + 9][g])};
        float fc[4] = {(float)c[g][2 * t], (float)c[g][2 * t + 1], (float)c[g + 8][2 * t], (float)c[g + 8][2 * t + 1]};
        mma_m16n8k16<T>(fc, fa, fb);
        for (int i = 0; i < 4; ++i) out[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = fc[i];
    });
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 8; ++j) {
            double want = c[i][j];
            for (int k = 0; k < 16; ++k) want += a[i][k] * b[k][j];
            if (!check::close(out[i * 8 + j], want, 2e-5, 0)) suite.fail(check::text("(%d, %d): %g, expected %g", i, j, out[i * 8 + j], want));
        }
}

// Rows past 2^32 elements: offsets must be 64 bits wide.
void far_case(Suite& suite, Rng& rng) {
    suite.begin("rows, offsets past 2^32");
    constexpr uint64_t D = 4096, ROWS = (1 << 20) + 4;
    check::SparseBuffer<uint16_t> x(D * ROWS, 2 * D);
    check::SparseBuffer<float> scores(ROWS, 2);
    uint16_t* last = x.data() + (ROWS - 2) * D;
    for (uint64_t i = 0; i < 2 * D; ++i) last[i] = check::store<BF16>(rng.normal());
    Buffer<unsigned long long> tally(std::vector<unsigned long long>{0, 0});
    CosineRowsArgs args = {x.data(), x.data(), nullptr, nullptr, scores.data(), nullptr, tally.data(), ROWS, ROWS, (int64_t)D,
                           (int64_t)D, (int64_t)D, row_bound(D, 8), 0, 1};
    shim::launch({1}, {32}, {rng.next()}, [&] { score_candidate<BF16>(args, ROWS - 1); });
    if (!check::close(scores.data()[ROWS - 1], 1.0, 1e-5, 0)) suite.fail("the last row is not read");
}

template <class T> void any_case(Suite& suite, Rng& rng) {
    const uint64_t kind = rng.below(20);
    if (kind < 9) rows_case<T>(suite, rng);
    else if (kind < 11) matrix_case<T>(suite, rng);
    else if (kind < 13) count_case<T>(suite, rng);
    else if (kind < 15) pairs_case<T>(suite, rng);
    else if (kind < 18) top_k_case<T>(suite, rng);
    else if (kind < 19) tie_case(suite, rng);
    else if constexpr (T::VEC == 8) mma_case<T>(suite, rng);
}

template <class T> Matrix<T> read_matrix(check::Reader& in, int64_t d) {
    Matrix<T> m{0, d, d, 0, in.array<typename T::storage>()};
    m.count = m.values.size() / d;
    return m;
}

// Of `rows`: dtype, D, candidates, references, offsets of the groups (none: one to one), thresholds.
void replay(Suite&, Rng& rng, check::Reader& in, check::Writer& out) {
    check::with_dtype(in.value<uint64_t>(), [&](auto type) {
        using T = decltype(type);
        const int64_t d = in.value<int64_t>();
        const Matrix<T> x = read_matrix<T>(in, d), y = read_matrix<T>(in, d);
        const std::vector<uint32_t> groups = in.array<uint32_t>();
        const Rows<T> run(rng, x, y, groups, in.array<double>());
        out.array(run.scores);
        out.array(run.first);
        out.array(run.tally);
    });
}

void random_case(Suite& suite, Rng& rng) {
    check::with_dtype(rng.below(3), [&](auto type) { any_case<decltype(type)>(suite, rng); });
}

void first_cases(Suite& suite, Rng& rng, uint64_t) { far_case(suite, rng); }

void report(const Suite&) {
    printf("  decisions compared %llu, pairs computed in f64 %llu\n", (unsigned long long)decisions, (unsigned long long)rechecked_pairs);
}

}  // namespace

int main(int argc, char** argv) {
    return check::run({"cosine", 5000, first_cases, random_case, report, replay}, argc, argv);
}
