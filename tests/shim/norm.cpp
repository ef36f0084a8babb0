// Runs kernels/norm.cu against float64; what was normalised, bit for bit.
#include "driver.hpp"
#include "floats.hpp"

#include "norm.cu"

using check::Buffer;
using check::Rng;
using check::Suite;
using namespace bdhs;

namespace {

template <class T> struct Case {
    using S = typename T::storage;
    NormArgs args = {};
    std::vector<S> x, residual, weight, bias, add_bias;  // x and residual with their strides
    size_t misalign = 0;

    // What is normalised: formed in f32, not rounded.
    float sum_at(int64_t row, int64_t c) const {
        float v = T::decode(x[row * args.x_stride + c]);
        if (!add_bias.empty()) v += T::decode(add_bias[c]);
        if (!residual.empty()) v += T::decode(residual[row * args.residual_stride + c]);
        return v;
    }
};

int64_t random_width(Rng& rng) {
    if (rng.chance(0.03)) return rng.pick<int64_t>({4096, 5120, 8192, 8200, 8209});
    if (rng.chance(0.06)) return rng.pick<int64_t>({1025, 1032, 1280, 2048, 1999});
    return rng.pick<int64_t>({1, 1 + (int64_t)rng.below(70), 8 * (1 + (int64_t)rng.below(40)), 384, 768, 1024});
}

template <class T> Case<T> random_case(Rng& rng) {
    Case<T> c;
    NormArgs& a = c.args;
    a.width = random_width(rng);
    a.rows = a.width > 1024 ? rng.range(0, 2) : rng.pick<int64_t>({0, 1, 2, rng.range(1, 12)});
    a.x_stride = a.width + rng.pick<int64_t>({0, 0, 1, 16});
    a.residual_stride = a.width + rng.pick<int64_t>({0, 0, 8});
    a.law = (uint32_t)rng.below(2);
    a.eps = rng.pick({0.0f, 1e-5f, 1e-2f});
    c.misalign = rng.chance(0.2) ? 1 : 0;
    const double scale = rng.pick({1.0, 1.0, 100.0, 1e-2}), shift = rng.pick({0.0, 0.0, 1.0}) * scale;
    const auto fill = [&](auto& to, int64_t count, double shift) {
        for (int64_t i = 0; i < count; ++i) to.push_back(check::store<T>(rng.normal() * scale + shift));
    };
    fill(c.x, a.rows * a.x_stride, shift);
    if (rng.chance(0.5)) fill(c.residual, a.rows * a.residual_stride, 0);
    if (rng.chance(0.3)) fill(c.add_bias, a.width, 0);
    fill(c.weight, a.width, 0);
    if (rng.chance(0.5)) fill(c.bias, a.width, 0);
    if (a.rows && rng.chance(0.03)) c.x[rng.below(a.rows) * a.x_stride + rng.below(a.width)] = T::encode(NAN);
    if (a.rows && rng.chance(0.03)) c.x[rng.below(a.rows) * a.x_stride + rng.below(a.width)] = T::encode(INFINITY);
    return c;
}

// As src/ops/cuda/geometry.rs.
bool is_warp(int64_t width) { return width <= 32 * NORM_KEPT; }
unsigned threads_for(int64_t width, int vec) {
    if (is_warp(width)) return NORM_THREADS;
    const int64_t vectors = ceil_div(width, vec), each = ceil_div(vectors, NORM_THREADS);
    return (unsigned)(ceil_div(ceil_div(vectors, each), 32) * 32);
}

// Rows `first` .. `first` + `rows` by a grid of any size.
template <class T> void launch(const Case<T>& c, int64_t first, int64_t rows, typename T::storage* sum,
                               typename T::storage* out, size_t misalign, Rng& rng) {
    using S = typename T::storage;
    NormArgs a = c.args;
    const Buffer<S> x(c.x, misalign), residual(c.residual, misalign), weight(c.weight), bias(c.bias), add_bias(c.add_bias);
    a.x = x.data() + first * a.x_stride;
    a.residual = c.residual.empty() ? nullptr : residual.data() + first * a.residual_stride;
    a.weight = weight.data();
    a.bias = c.bias.empty() ? nullptr : bias.data();
    a.add_bias = c.add_bias.empty() ? nullptr : add_bias.data();
    a.sum = sum;
    a.out = out;
    a.rows = rows;
    a.aligned = a.width % T::VEC == 0;
    for (const void* p : {a.x, a.residual, (const void*)sum, (const void*)out}) a.aligned &= (uintptr_t)p % 16 == 0;
    for (int64_t stride : {a.x_stride, a.residual_stride}) a.aligned &= stride * sizeof(S) % 16 == 0;
    const int64_t blocks = is_warp(a.width) ? ceil_div(rows, NORM_THREADS / 32) : rows;
    if (blocks == 0) return;
    const unsigned grid = (unsigned)(rng.chance(0.3) ? 1 + rng.below(blocks) : blocks);
    shim::launch({grid}, {threads_for(a.width, T::VEC)}, {rng.next()}, [&] {
        if (is_warp(a.width)) check::kernel_for<T>(norm_warp_f32, norm_warp_f16, norm_warp_bf16)(a);
        else check::kernel_for<T>(norm_block_f32, norm_block_f16, norm_block_bf16)(a);
    });
}

template <class T> void check_row(const Suite& suite, const Case<T>& c, int64_t row, const Buffer<typename T::storage>& out) {
    const NormArgs& a = c.args;
    double mean = 0, size = 0, variance = 0;
    for (int64_t k = 0; k < a.width; ++k) {
        mean += (double)c.sum_at(row, k) / (double)a.width;
        size += fabs((double)c.sum_at(row, k)) / (double)a.width;
    }
    if (a.law == NORM_RMS) mean = 0;
    for (int64_t k = 0; k < a.width; ++k) variance += pow(c.sum_at(row, k) - mean, 2) / (double)a.width;
    const double deviation = sqrt(variance + a.eps), inverse = 1 / deviation;
    // Roundings of the longest chain of additions: a thread's vectors and their values, shuffles, warps.
    const double lost = (T::VEC + NORM_KEPT + 15 + (double)a.width / NORM_THREADS / T::VEC) * 0x1p-24;
    // A constant row, whose mean may be rounded, has nothing but its roundings.
    if (variance < 1e-10 * mean * mean) return;
    const double unit = sizeof(typename T::storage) == 4 ? 0x1p-24 : T::IS_BF16 ? 0x1p-8 : 0x1p-11;
    for (int64_t k = 0; k < a.width; ++k) {
        const double v = c.sum_at(row, k), w = T::decode(c.weight[k]), b = c.bias.empty() ? 0 : T::decode(c.bias[k]);
        const double want = (v - mean) * inverse * w + b, seen = T::decode(out[row * a.width + k]);
        // The mean's error moves every value and the deviation.
        const double slack = (size * (a.law == NORM_LAYER) * (1 + fabs(v - mean) * inverse) + fabs(v - mean)) * inverse * fabs(w) * lost +
                             4 * 0x1p-24 * (fabs((v - mean) * inverse * w) + fabs(b)) + unit * fabs(want) * 1.01 + 0x1p-25 * (T::VEC == 8) + 1e-30;
        if (!check::close(seen, want, slack, 0) && !(T::VEC == 8 && !T::IS_BF16 && fabs(want) > 65500))
            suite.fail(check::text("row %d of %d, column %d of %d: %.9g, expected %.9g +- %.2g", (int)row, (int)a.rows, (int)k,
                                   (int)a.width, seen, want, slack));
    }
}

template <class T> void random_of(Suite& suite, Rng& rng) {
    using S = typename T::storage;
    const Case<T> c = random_case<T>(rng);
    const NormArgs& a = c.args;
    const bool both = rng.chance(0.5);
    suite.begin(check::text("%s, %s, %s a row", check::dtype_name<T>(), a.law == NORM_LAYER ? "layer" : "rms",
                            is_warp(a.width) ? "a warp" : "a block"));
    ++suite.counts[check::text("%s%s%s", c.residual.empty() ? "no residual" : "residual",
                               c.add_bias.empty() ? "" : " + bias before", both ? ", the sum too" : "")];
    const size_t count = (size_t)(a.rows * a.width);
    Buffer<S> out(count), sum(both ? count : 0);
    launch(c, 0, a.rows, both ? sum.data() : nullptr, out.data(), c.misalign, rng);
    for (int64_t row = 0; row < a.rows; ++row) {
        check_row(suite, c, row, out);
        for (int64_t k = 0; k < a.width && both; ++k) {
            const S want = T::encode(c.sum_at(row, k)), seen = sum[row * a.width + k];
            if (memcmp(&want, &seen, sizeof want) && T::decode(want) == T::decode(want))
                suite.fail(check::text("the sum of row %d, column %d: %.9g, expected %.9g", (int)row, (int)k,
                                       (double)T::decode(seen), (double)T::decode(want)));
        }
    }
    if (a.rows == 0) return;
    // A row alone, otherwise aligned, without the sum: the same bits.
    const int64_t row = (int64_t)rng.below(a.rows);
    Buffer<S> alone(a.width);
    launch(c, row, 1, (S*)nullptr, alone.data(), 1 - c.misalign, rng);
    if (memcmp(alone.data(), out.data() + row * a.width, a.width * sizeof(S))) suite.fail("a row alone has other bits");
}

// Elements past 2^32: offsets must be 64 bits wide.
void far_case(Suite& suite, Rng& rng) {
    constexpr uint64_t WIDTH = 40, STRIDE = 1ull << 32;
    check::SparseBuffer<uint16_t> x(STRIDE + WIDTH, STRIDE + WIDTH);
    Buffer<uint16_t> out(2 * WIDTH), weight(WIDTH), again(WIDTH);
    for (uint64_t k = 0; k < WIDTH; ++k) {
        x.data()[STRIDE + k] = check::store<BF16>(rng.normal());
        weight[k] = check::store<BF16>(rng.normal());
    }
    NormArgs a = {};
    a.x = x.data();
    a.weight = weight.data();
    a.out = out.data();
    a.rows = 2;
    a.width = WIDTH;
    a.x_stride = STRIDE;
    a.eps = 1e-5f;
    // Kept in registers, and read again.
    for (const uint32_t aligned : {1u, 0u}) {
        suite.begin("bf16, layer, offsets past 2^32");
        NormArgs near = a;
        near.x = x.data() + STRIDE;
        near.out = again.data();
        near.rows = 1;
        near.aligned = a.aligned = aligned;
        shim::launch({1}, {NORM_THREADS}, {rng.next()}, [&] { norm_warp_bf16(a); });
        shim::launch({1}, {NORM_THREADS}, {rng.next()}, [&] { norm_warp_bf16(near); });
        if (memcmp(again.data(), out.data() + WIDTH, WIDTH * 2)) suite.fail("the far row is not read");
    }
}

void random_any(Suite& suite, Rng& rng) {
    check::with_dtype(rng.below(3), [&](auto type) { random_of<decltype(type)>(suite, rng); });
}

void first_cases(Suite& suite, Rng& rng, uint64_t) { far_case(suite, rng); }

}  // namespace

int main(int argc, char** argv) {
    return check::run({"norm", 5000, first_cases, random_any, nullptr, nullptr}, argc, argv);
}
