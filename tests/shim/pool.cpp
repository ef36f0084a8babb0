// Runs kernels/pool.cu against float64, and bit for bit against the documented order of additions
// in f32 where no LayerNorm or normalisation follows.
#include "driver.hpp"
#include "floats.hpp"

#include "pool.cu"

using check::Buffer;
using check::Rng;
using check::Suite;
using namespace bdhs;

namespace {

const char* const MODES[] = {"cls", "mean", "max", "last", "weighted", "sqrt"};
const char* const DTYPES[] = {"f32", "f16", "bf16", "i8"};
using Bits = std::vector<uint32_t>;

double roundoff(uint32_t dtype) {
    return dtype == DTYPE_F32 ? 0x1p-24 : dtype == DTYPE_F16 ? 0x1p-11 : dtype == DTYPE_BF16 ? 0x1p-8 : 0;
}

struct Layout {
    bool padded;
    uint64_t width = 0;                        // padded
    std::vector<uint32_t> cu, lengths;         // packed offsets; tokens of each sequence
    std::vector<uint8_t> mask;                 // padded
    std::vector<std::vector<uint64_t>> rows;   // rows of each sequence's tokens
    uint64_t total = 0;                        // rows of the states

    uint64_t batch() const { return rows.size(); }

    // Fills what follows from `padded`, `width`, and `cu` or `mask`.
    void index(uint64_t batch) {
        for (uint64_t b = 0; b < batch; ++b) {
            std::vector<uint64_t> own;
            for (uint64_t i = padded ? b * width : cu[b]; i < (padded ? (b + 1) * width : cu[b + 1]); ++i)
                if (!padded || mask[i]) own.push_back(i);
            lengths.push_back((uint32_t)own.size());
            rows.push_back(own);
        }
        total = padded ? batch * width : cu[batch];
    }
};

Layout random_layout(Rng& rng) {
    Layout l;
    l.padded = rng.chance(0.4);
    const uint64_t batch = rng.below(5);
    std::vector<uint64_t> n;
    for (uint64_t b = 0; b < batch; ++b)
        n.push_back(rng.pick<uint64_t>({rng.below(5), rng.below(5), rng.below(70), 63 + rng.below(3), 127 + rng.below(3), rng.below(330)}));
    l.cu.push_back(0);
    for (uint64_t x : n) l.width = std::max(l.width, x);
    l.width += rng.below(3);
    l.mask.assign(batch * l.width, 0);
    const uint64_t style = rng.below(3);  // right padding, left padding, holes
    for (uint64_t b = 0; b < batch; ++b) {
        l.cu.push_back(l.cu[b] + (uint32_t)n[b]);
        for (uint64_t i = 0; i < l.width; ++i)
            l.mask[b * l.width + i] = style == 0 ? i < n[b] : style == 1 ? i >= l.width - n[b] : rng.chance(0.7);
    }
    l.index(batch);
    return l;
}

// The layout on the "device"; a padded one's places are found by pool_places.
struct DeviceRows {
    Buffer<uint32_t> cu, order, lengths;
    PoolRows rows = {};

    DeviceRows(Suite& suite, Rng& rng, const Layout& l)
        : cu(l.cu), order(l.padded ? l.total : 0), lengths(l.padded ? l.batch() : 0) {
        if (!l.padded) {
            rows.cu = cu.data();
            return;
        }
        rows = {nullptr, lengths.data(), order.data(), l.width};
        if (l.batch() == 0) return;
        const uint32_t bytes = rng.pick<uint32_t>({1, 4, 8});
        Buffer<uint8_t> mask(l.total * bytes);
        for (size_t i = 0; i < l.total; ++i)
            for (uint32_t k = 0; k < bytes; ++k) mask[i * bytes + k] = l.mask[i] && k == bytes - 1 ? 0x80 : 0;
        const PoolMaskArgs args = {mask.data(), order.data(), lengths.data(), l.width, bytes, 0};
        shim::launch({(unsigned)l.batch()}, {POOL_MASK_THREADS}, {rng.next()}, [&] { pool_places(args); });
        for (uint64_t b = 0; b < l.batch(); ++b) {
            if (lengths[b] != l.lengths[b]) suite.fail("a sequence of the mask has another length");
            for (uint32_t i = 0; i < lengths[b]; ++i)
                if (order[b * l.width + i] != l.rows[b][i] - b * l.width) suite.fail("a place is wrong");
        }
    }
};

template <class T> struct Case {
    Layout layout;
    PoolArgs args = {};
    size_t misalign;
    std::vector<typename T::storage> states;
    std::vector<double> residual;  // as stored, [total, hidden]
    std::vector<float> weight, bias;
    uint32_t residual_dtype = 0;

    double at(uint64_t row, int64_t c) const {
        const double x = T::decode(states[row * args.state_stride + c]);
        return residual.empty() ? x : (double)((float)x + (float)residual[row * args.hidden + c]);
    }
};

template <class T> Case<T> random_case(Rng& rng, bool plain) {
    Case<T> c;
    c.layout = random_layout(rng);
    PoolArgs& a = c.args;
    a.hidden = rng.pick<int64_t>({1, 1 + (int64_t)rng.below(70), 8 * (1 + (int64_t)rng.below(16)), 384});
    if (rng.chance(0.02)) a.hidden = rng.pick<int64_t>({768, 1100, 2100});
    a.dim = rng.chance(0.6) ? a.hidden : 1 + (int64_t)rng.below(a.hidden);
    a.state_stride = a.hidden + rng.pick<int64_t>({0, 0, 1, 16});
    a.batch = (uint32_t)c.layout.batch();
    a.mode = (uint32_t)rng.below(6);
    a.out_dtype = plain ? (uint32_t)DTYPE_F32 : (uint32_t)rng.below(4);
    a.normalize = !plain && (a.out_dtype == DTYPE_I8 || rng.chance(0.6));
    a.eps = 1e-3f;
    c.misalign = rng.chance(0.2) ? 1 : 0;
    a.aligned = c.misalign == 0 && a.state_stride * sizeof(typename T::storage) % 16 == 0;
    c.states.assign(c.layout.total * a.state_stride, T::encode(NAN));
    const double scale = rng.pick({1.0, 1.0, 100.0, 1e-4});
    const bool zero = rng.chance(0.04), nan = rng.chance(0.04);
    for (const auto& rows : c.layout.rows) {
        for (uint64_t row : rows)
            for (int64_t k = 0; k < a.hidden; ++k)
                c.states[row * a.state_stride + k] = check::store<T>(zero ? 0.0 : rng.normal() * scale);
        if (nan && !rows.empty()) c.states[rows[rng.below(rows.size())] * a.state_stride + rng.below(a.hidden)] = T::encode(NAN);
    }
    if (plain || rng.chance(0.6)) return c;
    for (int64_t k = 0; k < a.hidden; ++k) {
        c.weight.push_back((float)rng.normal());
        c.bias.push_back((float)rng.normal());
    }
    if (rng.chance(0.5)) c.bias.clear();
    if (rng.chance(0.5)) {
        c.residual_dtype = (uint32_t)rng.below(3);
        for (uint64_t i = 0; i < c.layout.total * (uint64_t)a.hidden; ++i) {
            const float x = (float)(rng.normal() * scale);
            c.residual.push_back(c.residual_dtype == DTYPE_F32   ? x
                                 : c.residual_dtype == DTYPE_F16 ? F16::decode(F16::encode(x))
                                                                 : BF16::decode(BF16::encode(x)));
        }
    }
    return c;
}

// A vector and a bound on the error of each value.
struct Reference {
    std::vector<double> value, bound;
};

template <class T> Reference reference_row(const Case<T>& c, uint64_t b) {
    const PoolArgs& a = c.args;
    const auto& rows = c.layout.rows[b];
    const int64_t n = (int64_t)rows.size();
    Reference r{std::vector<double>(a.dim, 0.0), std::vector<double>(a.dim, 0.0)};
    if (n == 0) return r;
    const Span span = a.mode == POOL_CLS ? Span{0, 1} : a.mode == POOL_LAST ? Span{n - 1, n} : Span{0, n};
    std::vector<double> magnitude(a.dim, 0.0);
    if (a.mode == POOL_MAX) r.value.assign(a.dim, -INFINITY);
    for (int64_t t = span.from; t < span.to; ++t) {
        double mean = 0, variance = 0;
        for (int64_t k = 0; k < a.hidden && !c.weight.empty(); ++k) mean += c.at(rows[t], k) / a.hidden;
        for (int64_t k = 0; k < a.hidden && !c.weight.empty(); ++k) variance += pow(c.at(rows[t], k) - mean, 2) / a.hidden;
        for (int64_t k = 0; k < a.dim; ++k) {
            double x = c.at(rows[t], k), size = fabs(x);
            if (!c.weight.empty()) {
                const double inverse = 1 / sqrt(variance + a.eps);
                // The mean may cancel, and its own sum carries roundings.
                size = (fabs(x) + 8 * fabs(mean) + 8 * sqrt(variance)) * inverse * fabs(c.weight[k]) * 8;
                x = (x - mean) * inverse * c.weight[k];
                if (!c.bias.empty()) x += c.bias[k], size += fabs(c.bias[k]);
            }
            const double w = a.mode == POOL_WEIGHTED ? (double)(t + 1) : 1.0;
            if (a.mode == POOL_MAX) {
                if (x != x || x > r.value[k]) r.value[k] = r.value[k] != r.value[k] ? r.value[k] : x;
                magnitude[k] = std::max(magnitude[k], size);
            } else {
                r.value[k] += w * x;
                magnitude[k] += w * size;
            }
        }
    }
    const double nd = (double)n, divisor = a.mode == POOL_MEAN ? nd : a.mode == POOL_SQRT ? sqrt(nd)
                                         : a.mode == POOL_WEIGHTED ? nd * (nd + 1) / 2 : 1.0;
    for (int64_t k = 0; k < a.dim; ++k) {
        r.value[k] /= divisor;
        r.bound[k] = (70 + nd / 64) * 0x1p-24 * magnitude[k] / divisor;
    }
    if (!a.normalize) return r;
    double squares = 0, spread = 0;
    for (int64_t k = 0; k < a.dim; ++k) squares += r.value[k] * r.value[k], spread += r.bound[k] * r.bound[k];
    const double norm = sqrt(squares);
    if (norm == 0) return r;
    for (int64_t k = 0; k < a.dim; ++k) {
        r.value[k] /= norm;
        r.bound[k] = (r.bound[k] + fabs(r.value[k]) * sqrt(spread)) / norm * 1.01 + 0x1p-40;
    }
    return r;
}

double stored_at(const Buffer<uint8_t>& out, uint64_t i, uint32_t dtype) {
    if (dtype == DTYPE_F32) return reinterpret_cast<const float*>(out.data())[i];
    if (dtype == DTYPE_F16) return F16::decode(reinterpret_cast<const uint16_t*>(out.data())[i]);
    if (dtype == DTYPE_BF16) return BF16::decode(reinterpret_cast<const uint16_t*>(out.data())[i]);
    return reinterpret_cast<const int8_t*>(out.data())[i];
}

unsigned columns_for(int64_t dim, int vec) {
    return (unsigned)std::min<int64_t>(256, ceil_div(ceil_div(dim, vec), 32) * 32);
}

template <class T> void launch_pool(Case<T>& c, PoolRows rows, void* out, uint32_t parts_per_block, Rng& rng) {
    PoolArgs a = c.args;
    const Buffer<typename T::storage> states(c.states, c.misalign);
    const Buffer<float> weight(c.weight), bias(c.bias);
    const size_t residual_misalign = rng.chance(0.3) ? 1 : 0;
    Buffer<float> residual32(c.residual_dtype == DTYPE_F32 ? c.residual.size() : 0, residual_misalign);
    Buffer<uint16_t> residual16(c.residual_dtype == DTYPE_F32 ? 0 : c.residual.size(), residual_misalign);
    for (size_t i = 0; i < residual32.size(); ++i) residual32[i] = (float)c.residual[i];
    for (size_t i = 0; i < residual16.size(); ++i)
        residual16[i] = c.residual_dtype == DTYPE_F16 ? F16::encode((float)c.residual[i]) : BF16::encode((float)c.residual[i]);
    a.states = states.data();
    a.rows = rows;
    a.out = out;
    if (!c.residual.empty()) {
        a.residual = c.residual_dtype == DTYPE_F32 ? (const void*)residual32.data() : residual16.data();
        a.residual_dtype = c.residual_dtype;
        a.residual_stride = a.hidden;
        a.residual_aligned = !residual_misalign && a.hidden * (c.residual_dtype == DTYPE_F32 ? 4 : 2) % 16 == 0;
    }
    if (!c.weight.empty()) a.weight = weight.data();
    if (!c.bias.empty()) a.bias = bias.data();
    a.columns = columns_for(a.dim, T::VEC);
    a.parts_per_block = std::min(parts_per_block, POOL_THREADS / a.columns);
    int64_t longest = 0;
    for (const auto& tokens : c.layout.rows) longest = std::max(longest, (int64_t)tokens.size());
    if (c.layout.padded) longest = (int64_t)c.layout.width;
    a.groups = (uint32_t)std::max<int64_t>(1, ceil_div(ceil_div(longest, POOL_PART), a.parts_per_block));
    const uint64_t parts = a.groups > 1 ? c.layout.total / POOL_PART + a.batch : 0;
    Buffer<float> workspace(parts * a.dim), pooled(a.dim > POOL_SHARED_ROW ? a.batch * a.dim : 0);
    Buffer<uint32_t> tickets(std::vector<uint32_t>(a.groups > 1 ? a.batch : 0, 0));
    a.parts = workspace.data();
    a.pooled = pooled.data();
    a.tickets = tickets.data();
    if (a.batch == 0) return;
    shim::launch({a.batch * a.groups}, {a.columns * a.parts_per_block}, {rng.next()}, [&] {
        if (a.weight) check::kernel_for<T>(pool_norm_f32, pool_norm_f16, pool_norm_bf16)(a);
        else check::kernel_for<T>(pool_f32, pool_f16, pool_bf16)(a);
    });
}

// The documented order, in f32: parts of 64 tokens, then the parts.
template <class T> float ordered_value(const Case<T>& c, uint64_t b, int64_t k) {
    const auto& rows = c.layout.rows[b];
    const PoolArgs& a = c.args;
    const int64_t n = (int64_t)rows.size();
    if (n == 0) return 0;
    if (a.mode == POOL_CLS || a.mode == POOL_LAST) return (float)c.at(rows[a.mode == POOL_CLS ? 0 : n - 1], k);
    float total = 0;
    for (int64_t p = 0; p < n; p += POOL_PART) {
        float part = 0;
        for (int64_t t = p; t < std::min(n, p + POOL_PART); ++t)
            part = fmaf((float)c.at(rows[t], k), a.mode == POOL_WEIGHTED ? (float)(t + 1) : 1.0f, part);
        total = p == 0 ? part : total + part;
    }
    const double nd = (double)n;
    const float divisor = (float)(a.mode == POOL_MEAN ? nd : a.mode == POOL_SQRT ? sqrt(nd) : nd * (nd + 1) / 2);
    return total / divisor;
}

template <class T> void forward_case(Suite& suite, Rng& rng) {
    const bool plain = rng.chance(0.25);
    Case<T> c = random_case<T>(rng, plain);
    const PoolArgs& a = c.args;
    suite.begin(check::text("%s, %s%s", check::dtype_name<T>(), MODES[a.mode], plain ? ", bit for bit" : ""));
    ++suite.counts[check::text("to %s%s", DTYPES[a.out_dtype], a.normalize ? ", normalised" : "")];
    ++suite.counts[c.layout.padded ? "padded" : "packed"];
    if (!c.weight.empty()) ++suite.counts[c.residual.empty() ? "LayerNorm" : "residual + LayerNorm"];
    DeviceRows device(suite, rng, c.layout);
    const size_t size = a.out_dtype == DTYPE_F32 ? 4 : a.out_dtype == DTYPE_I8 ? 1 : 2;
    Buffer<uint8_t> out(a.batch * a.dim * size);
    launch_pool(c, device.rows, out.data(), (uint32_t)rng.range(1, 6), rng);
    for (uint64_t b = 0; b < a.batch; ++b) {
        const Reference r = reference_row(c, b);
        for (int64_t k = 0; k < a.dim; ++k) {
            const double seen = stored_at(out, b * a.dim + k, a.out_dtype);
            double want = r.value[k], slack = r.bound[k] * 1.1 + roundoff(a.out_dtype) * fabs(want) * 1.01 + 1e-30;
            if (a.out_dtype == DTYPE_F16) slack += 0x1p-25;
            if (a.out_dtype == DTYPE_I8) slack = 127 * r.bound[k] + 0.5001, want = want != want ? -128 : want * 127;
            if (!check::close(seen, want, slack, 0) && !(a.out_dtype == DTYPE_F16 && fabs(want) > 65500))
                suite.fail(check::text("sequence %d of %d tokens, column %d of %d: %.9g, expected %.9g +- %.2g", (int)b,
                                       (int)c.layout.lengths[b], (int)k, (int)a.dim, seen, want, slack));
            if (plain && a.mode != POOL_MAX && !check::close(seen, ordered_value(c, b, k), 0, 0))
                suite.fail(check::text("column %d: %.9g, in the documented order %.9g", (int)k, seen, ordered_value(c, b, k)));
        }
    }
    // Another split over blocks, another schedule: the same bits.
    Buffer<uint8_t> again(out.size());
    launch_pool(c, device.rows, again.data(), (uint32_t)rng.range(1, 6), rng);
    if (memcmp(out.data(), again.data(), out.size())) suite.fail("another split over blocks gives other bits");
}

template <class T> void backward_case(Suite& suite, Rng& rng) {
    Case<T> c = random_case<T>(rng, true);
    PoolArgs& a = c.args;
    const bool normalize = rng.chance(0.5);
    suite.begin(check::text("backward, %s, %s%s", check::dtype_name<T>(), MODES[a.mode], normalize ? ", normalised" : ""));
    DeviceRows device(suite, rng, c.layout);
    Buffer<uint8_t> pooled(a.batch * a.dim * 4);
    launch_pool(c, device.rows, pooled.data(), 2, rng);
    Buffer<float> grad(a.batch * a.dim);
    for (size_t i = 0; i < grad.size(); ++i) grad[i] = (float)rng.normal();
    using S = typename T::storage;
    Buffer<S> out(std::vector<S>(c.layout.total * a.hidden, 0));
    const Buffer<S> states(c.states, c.misalign);
    int64_t longest = 1;
    for (const auto& tokens : c.layout.rows) longest = std::max(longest, (int64_t)tokens.size());
    const uint32_t chunks = (uint32_t)(a.mode == POOL_MAX ? ceil_div(a.dim, POOL_GRAD_THREADS)
                                       : a.mode == POOL_CLS || a.mode == POOL_LAST ? 1 : ceil_div(longest, POOL_PART));
    const PoolGradArgs g = {states.data(), device.rows, grad.data(), reinterpret_cast<float*>(pooled.data()), out.data(),
                            a.hidden, a.dim, a.state_stride, a.batch, a.mode, normalize, chunks};
    if (a.batch)
        shim::launch({a.batch * chunks}, {POOL_GRAD_THREADS}, {rng.next()}, [&] {
            check::kernel_for<T>(pool_grad_f32, pool_grad_f16, pool_grad_bf16)(g);
        });
    std::vector<double> want(out.size(), 0.0);
    for (uint64_t b = 0; b < a.batch; ++b) {
        const auto& rows = c.layout.rows[b];
        const double n = (double)rows.size();
        double squares = 0, along = 0;
        std::vector<double> v(a.dim);
        for (int64_t k = 0; k < a.dim; ++k) {
            v[k] = stored_at(pooled, b * a.dim + k, DTYPE_F32);
            squares += v[k] * v[k];
            along += v[k] * grad[b * a.dim + k];
        }
        for (int64_t k = 0; k < a.dim && !rows.empty(); ++k) {
            double through = grad[b * a.dim + k];
            if (normalize) through = squares == 0 ? 0 : (through - v[k] * along / squares) / sqrt(squares);
            for (size_t t = 0; t < rows.size(); ++t) {
                double& to = want[rows[t] * a.hidden + k];
                if (a.mode == POOL_MEAN) to = through / n;
                if (a.mode == POOL_SQRT) to = through / sqrt(n);
                if (a.mode == POOL_WEIGHTED) to = through * (double)(t + 1) / (n * (n + 1) / 2);
                if ((a.mode == POOL_CLS && t == 0) || (a.mode == POOL_LAST && t + 1 == rows.size())) to = through;
                const double x = c.at(rows[t], k);
                if (a.mode == POOL_MAX && (x == v[k] || x != x)) {
                    to = through;
                    break;
                }
            }
        }
        const double unit = sizeof(S) == 4 ? 0x1p-24 : T::IS_BF16 ? 0x1p-8 : 0x1p-11;
        const double floor = sizeof(S) == 2 && !T::IS_BF16 ? 0x1p-24 : 1e-30;
        for (uint64_t row : rows)
            for (int64_t k = 0; k < a.hidden; ++k) {
                const double seen = T::decode(out[row * a.hidden + k]), w = want[row * a.hidden + k];
                const double lost = normalize && squares > 0 ? 1e-6 * fabs(along) / squares : 0;  // cancellation
                if (fabs(w) < 65500 && !check::close(seen, w, floor + lost, 2 * unit + 1e-6))
                    suite.fail(check::text("row %d, column %d: %.9g, expected %.9g", (int)row, (int)k, seen, w));
            }
    }
    for (size_t i = 0; i < out.size(); ++i)
        if (want[i] == 0 && c.layout.padded && !c.layout.mask[i / a.hidden] && T::decode(out[i]) != 0)
            suite.fail("padding has a gradient");
}

// Elements past 2^32: offsets must be 64 bits wide.
void far_case(Suite& suite, Rng& rng) {
    suite.begin("bf16, mean, offsets past 2^32");
    constexpr uint64_t HIDDEN = 4096, ROWS = 1 << 21;
    check::SparseBuffer<uint16_t> states(HIDDEN * ROWS, 3 * HIDDEN);
    uint16_t* last = states.data() + (ROWS - 3) * HIDDEN;
    for (uint64_t i = 0; i < 3 * HIDDEN; ++i) last[i] = check::store<BF16>(rng.normal());
    Buffer<uint32_t> cu(std::vector<uint32_t>{(uint32_t)ROWS - 3, (uint32_t)ROWS});
    Buffer<float> out(HIDDEN), pooled(HIDDEN);
    PoolArgs a = {};
    a.states = states.data();
    a.rows.cu = cu.data();
    a.out = out.data();
    a.pooled = pooled.data();
    a.hidden = a.dim = a.state_stride = HIDDEN;
    a.batch = 1;
    a.mode = POOL_MEAN;
    a.aligned = a.groups = a.parts_per_block = 1;
    a.columns = columns_for(HIDDEN, BF16::VEC);
    shim::launch({1}, {a.columns}, {rng.next()}, [&] { pool_bf16(a); });
    for (uint64_t k = 0; k < HIDDEN; ++k) {
        const double want = (BF16::decode(last[k]) + BF16::decode(last[HIDDEN + k]) + BF16::decode(last[2 * HIDDEN + k])) / 3.0;
        if (!check::close(out[k], want, 1e-6, 1e-6)) suite.fail("the last rows are not read");
    }
}

template <class T> void any_case(Suite& suite, Rng& rng) {
    if (rng.chance(0.75)) forward_case<T>(suite, rng);
    else backward_case<T>(suite, rng);
}

// Forward: dtypes, shape, options, then the arrays.
void replay(Suite& suite, Rng& rng, check::Reader& in, check::Writer& out) {
    check::with_dtype(in.value<uint64_t>(), [&](auto type) {
        using T = decltype(type);
        Case<T> c;
        PoolArgs& a = c.args;
        a.out_dtype = (uint32_t)in.value<uint64_t>();
        a.mode = (uint32_t)in.value<uint64_t>();
        a.normalize = (uint32_t)in.value<uint64_t>();
        a.batch = (uint32_t)in.value<uint64_t>();
        a.hidden = a.state_stride = in.value<int64_t>();
        a.dim = in.value<int64_t>();
        a.eps = (float)in.value<double>();
        c.layout.width = in.value<uint64_t>();
        c.layout.cu = in.array<uint32_t>();
        c.layout.mask = in.array<uint8_t>();
        c.layout.padded = c.layout.cu.empty();
        c.layout.index(a.batch);
        c.states = in.array<typename T::storage>();
        c.weight = in.array<float>();
        c.bias = in.array<float>();
        const auto residual = in.array<typename T::storage>();
        for (auto x : residual) c.residual.push_back(T::decode(x));
        c.residual_dtype = sizeof(typename T::storage) == 4 ? DTYPE_F32 : T::IS_BF16 ? DTYPE_BF16 : DTYPE_F16;
        c.misalign = rng.chance(0.2) ? 1 : 0;
        a.aligned = c.misalign == 0 && a.state_stride * sizeof(typename T::storage) % 16 == 0;
        DeviceRows device(suite, rng, c.layout);
        Buffer<uint8_t> pooled(a.batch * a.dim * (a.out_dtype == DTYPE_F32 ? 4 : a.out_dtype == DTYPE_I8 ? 1 : 2));
        launch_pool(c, device.rows, pooled.data(), (uint32_t)rng.range(1, 6), rng);
        out.array(pooled);
    });
}

void random_any(Suite& suite, Rng& rng) {
    check::with_dtype(rng.below(3), [&](auto type) { any_case<decltype(type)>(suite, rng); });
}

void first_cases(Suite& suite, Rng& rng, uint64_t) { far_case(suite, rng); }

}  // namespace

int main(int argc, char** argv) {
    return check::run({"pool", 5000, first_cases, random_any, nullptr, replay}, argc, argv);
}
