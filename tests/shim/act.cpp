// Runs kernels/act.cu against float64.
#include "driver.hpp"
#include "floats.hpp"

#include "act.cu"

using check::Buffer;
using check::Rng;
using check::Suite;
using namespace bdhs;

namespace {

const char* const NAMES[] = {"identity", "gelu by erf", "gelu by tanh", "quick gelu", "relu", "silu", "tanh"};

// f(x) and a bound on the error of f32, relative to it and absolute.
struct Exact {
    double value, relative, absolute;
};

// What is rounded in front of an exponential counts as often as the exponent is large.
Exact exact(uint32_t activation, double x) {
    constexpr double ULP = 0x1p-23;
    const double inner = 0.7978845608028654 * (x + 0.044715 * x * x * x);
    switch (activation) {
        case ACT_GELU_ERF: return {0.5 * x * (1 + erf(x * M_SQRT1_2)), 0, 2e-7 * std::max(1.0, fabs(x))};
        case ACT_GELU_TANH: return {x / (1 + exp(-2 * inner)), 4 * ULP * (1 + fabs(inner)), 1e-36};
        case ACT_QUICK_GELU: return {x / (1 + exp(-1.702 * x)), 4 * ULP * (1 + fabs(x)), 1e-36};
        case ACT_RELU: return {x < 0 ? 0 : x, 0, 0};
        case ACT_SILU: return {x / (1 + exp(-x)), 4 * ULP, 1e-36};
        case ACT_TANH: return {tanh(x), 4 * ULP, 0};
        default: return {x, 0, 0};
    }
}

template <class T> struct Case {
    using S = typename T::storage;
    ActArgs args = {};
    bool gated = false;
    std::vector<S> x, other;
    size_t misalign = 0;

    Exact at(int64_t row, int64_t c) const {
        const float v = T::decode(x[row * args.x_stride + c]);
        if (gated) {
            Exact e = exact(ACT_SILU, v);
            e.value *= T::decode(other[row * args.other_stride + c]);
            e.relative += 0x1p-24;
            e.absolute *= 1 + fabs((double)T::decode(other[row * args.other_stride + c]));
            return e;
        }
        return exact(args.activation, other.empty() ? v : v + T::decode(other[c]));
    }
};

template <class T> Case<T> random_case(Rng& rng) {
    Case<T> c;
    ActArgs& a = c.args;
    a.width = rng.pick<int64_t>({1, 1 + (int64_t)rng.below(70), 8 * (1 + (int64_t)rng.below(60)), 1000});
    if (rng.chance(0.05)) a.width = rng.pick<int64_t>({4096, 4099, 11008});
    a.rows = a.width > 2000 ? rng.below(3) : rng.pick<uint64_t>({0, 1, 2, rng.below(20)});
    a.x_stride = a.width + rng.pick<int64_t>({0, 0, 1, 16});
    a.activation = (uint32_t)rng.below(7);
    c.gated = rng.chance(0.35);
    c.misalign = rng.chance(0.2) ? 1 : 0;
    const double scale = rng.pick({1.0, 1.0, 5.0, 40.0, 1e-3});
    const auto fill = [&](auto& to, uint64_t count) {
        for (uint64_t i = 0; i < count; ++i) {
            const double special = rng.pick({(double)NAN, (double)INFINITY, -(double)INFINITY, 0.0, -0.0, 1e30, -1e30});
            to.push_back(check::store<T>(rng.chance(0.005) ? special : rng.normal() * scale));
        }
    };
    fill(c.x, a.rows * (uint64_t)a.x_stride);
    if (c.gated) {
        a.other_stride = a.width + rng.pick<int64_t>({0, 0, 8});
        fill(c.other, a.rows * (uint64_t)a.other_stride);
    } else if (rng.chance(0.6)) {
        fill(c.other, (uint64_t)a.width);
    }
    return c;
}

template <class T> void launch(const Case<T>& c, typename T::storage* out, size_t misalign, Rng& rng) {
    using S = typename T::storage;
    ActArgs a = c.args;
    const Buffer<S> x(c.x, misalign), other(c.other, misalign);
    a.x = x.data();
    a.other = c.other.empty() ? nullptr : other.data();
    a.out = out;
    a.vectors = (uint64_t)ceil_div(a.width, T::VEC);
    a.aligned = 1;
    for (const void* p : {a.x, a.other, (const void*)out}) a.aligned &= (uintptr_t)p % 16 == 0;
    for (int64_t stride : {a.x_stride, a.other_stride, a.width}) a.aligned &= a.rows == 1 || stride * sizeof(S) % 16 == 0;
    const uint64_t blocks = (uint64_t)ceil_div((int64_t)(a.rows * a.vectors), ACT_THREADS * ACT_FLIGHT);
    if (blocks == 0) return;
    const unsigned grid = (unsigned)(rng.chance(0.3) ? 1 + rng.below(blocks) : blocks);
    shim::launch({grid}, {ACT_THREADS}, {rng.next()}, [&] {
        if (c.gated) check::kernel_for<T>(act_gated_f32, act_gated_f16, act_gated_bf16)(a);
        else check::kernel_for<T>(act_bias_f32, act_bias_f16, act_bias_bf16)(a);
    });
}

template <class T> void random_of(Suite& suite, Rng& rng) {
    using S = typename T::storage;
    const Case<T> c = random_case<T>(rng);
    const ActArgs& a = c.args;
    suite.begin(check::text("%s, %s", check::dtype_name<T>(), c.gated ? "silu(gate) * up" : NAMES[a.activation]));
    if (!c.gated) ++suite.counts[c.other.empty() ? "no bias" : "bias"];
    const size_t count = (size_t)a.rows * (size_t)a.width;
    Buffer<S> out(count), again(count);
    launch(c, out.data(), c.misalign, rng);
    const double unit = sizeof(S) == 4 ? 0 : T::IS_BF16 ? 0x1p-8 : 0x1p-11, floor = sizeof(S) == 2 && !T::IS_BF16 ? 0x1p-25 : 0;
    for (int64_t row = 0; row < (int64_t)a.rows; ++row)
        for (int64_t k = 0; k < a.width; ++k) {
            const Exact e = c.at(row, k);
            const double seen = T::decode(out[row * a.width + k]);
            const bool overflows = fabs(e.value) > (sizeof(S) == 2 && !T::IS_BF16 ? 65500 : 3.3e38);
            if (!check::close(seen, e.value, e.absolute * 1.01 + floor, e.relative + unit * 1.01) && !overflows)
                suite.fail(check::text("row %d, column %d of %d: %.9g, expected %.9g", (int)row, (int)k, (int)a.width, seen, e.value));
        }
    // Otherwise aligned, another grid: the same bits.
    launch(c, again.data(), 1 - c.misalign, rng);
    if (memcmp(out.data(), again.data(), count * sizeof(S))) suite.fail("another launch gives other bits");
}

// Elements past 2^32: offsets must be 64 bits wide.
void far_case(Suite& suite, Rng& rng) {
    constexpr uint64_t WIDTH = 40, STRIDE = 1ull << 32;
    suite.begin("bf16, offsets past 2^32");
    check::SparseBuffer<uint16_t> x(STRIDE + WIDTH, STRIDE + WIDTH);
    Buffer<uint16_t> out(2 * WIDTH);
    for (uint64_t k = 0; k < WIDTH; ++k) x.data()[STRIDE + k] = check::store<BF16>(rng.normal());
    ActArgs a = {};
    a.x = x.data();
    a.out = out.data();
    a.rows = 2;
    a.vectors = WIDTH / BF16::VEC;
    a.width = WIDTH;
    a.x_stride = STRIDE;
    a.aligned = 1;
    shim::launch({1}, {ACT_THREADS}, {rng.next()}, [&] { act_bias_bf16(a); });
    if (memcmp(out.data() + WIDTH, x.data() + STRIDE, WIDTH * 2)) suite.fail("the far row is not read");
}

// The numbers of vectors that need a 64-bit division, and those that do not, give places alike.
void place_case(Suite& suite, Rng& rng) {
    suite.begin("places");
    for (int n = 0; n < 100000; ++n) {
        const uint64_t per_row = 1 + (rng.next() >> rng.range(16, 63)), i = rng.next() >> rng.range(1, 63);
        const Place at = place_of(i, per_row);
        if (at.rest >= per_row || at.row * per_row + at.rest != i) suite.fail("a wrong place");
    }
}

void random_any(Suite& suite, Rng& rng) {
    check::with_dtype(rng.below(3), [&](auto type) { random_of<decltype(type)>(suite, rng); });
}

void first_cases(Suite& suite, Rng& rng, uint64_t) {
    far_case(suite, rng);
    place_case(suite, rng);
}

}  // namespace

int main(int argc, char** argv) {
    return check::run({"act", 5000, first_cases, random_any, nullptr, nullptr}, argc, argv);
}
