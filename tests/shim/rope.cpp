// Runs kernels/rope.cu against float64, and bit for bit against unfused products and sums in f32.
#include "driver.hpp"
#include "floats.hpp"

#include "rope.cu"

using check::Buffer;
using check::Rng;
using check::Suite;
using namespace bdhs;

namespace {

template <class T> void random_of(Suite& suite, Rng& rng) {
    using S = typename T::storage;
    RopeArgs a = {};
    a.half = rng.pick<int64_t>({1, 1 + (int64_t)rng.below(40), 8 * (1 + (int64_t)rng.below(10)), 64});
    a.heads = rng.pick<uint64_t>({1, 1 + rng.below(6), 32});
    a.rows = rng.pick<uint64_t>({0, 1, 2, rng.below(12)});
    const int64_t width = (int64_t)a.heads * 2 * a.half;
    a.x_stride = width + rng.pick<int64_t>({0, 0, 1, 16});
    a.vectors = (uint64_t)ceil_div(a.half, T::VEC);
    suite.begin(check::text("%s, D %s", check::dtype_name<T>(), a.half % T::VEC ? "not whole vectors" : "whole vectors"));
    std::vector<S> x;
    std::vector<float> cosines, sines;
    const double scale = rng.pick({1.0, 1.0, 100.0, 1e-3});
    for (uint64_t i = 0; i < a.rows * (uint64_t)a.x_stride; ++i)
        x.push_back(rng.chance(0.002) ? T::encode(rng.pick({NAN, INFINITY, -INFINITY})) : check::store<T>(rng.normal() * scale));
    for (uint64_t i = 0; i < a.rows * (uint64_t)a.half; ++i) {
        const double angle = rng.normal() * 100;
        cosines.push_back((float)cos(angle));
        sines.push_back((float)sin(angle));
    }
    const size_t count = (size_t)a.rows * (size_t)width;
    Buffer<S> out(count), again(count);
    const size_t misalign = rng.chance(0.2) ? 1 : 0;
    const auto launch = [&](S* to, size_t shift) {
        const Buffer<S> from(x, shift);
        const Buffer<float> cos(cosines, shift), sin(sines);
        RopeArgs b = a;
        b.x = from.data();
        b.cos = cos.data();
        b.sin = sin.data();
        b.out = to;
        b.aligned = b.half * sizeof(S) % 16 == 0 && b.x_stride * sizeof(S) % 16 == 0;
        for (const void* p : {b.x, (const void*)b.cos, (const void*)b.sin, (const void*)to}) b.aligned &= (uintptr_t)p % 16 == 0;
        const int64_t blocks = ceil_div((int64_t)(a.rows * a.heads * a.vectors), ROPE_THREADS);
        if (blocks == 0) return;
        const unsigned grid = (unsigned)(rng.chance(0.3) ? 1 + rng.below((uint64_t)blocks) : (uint64_t)blocks);
        shim::launch({grid}, {ROPE_THREADS}, {rng.next()}, [&] { check::kernel_for<T>(rope_f32, rope_f16, rope_bf16)(b); });
    };
    launch(out.data(), misalign);
    const double unit = sizeof(S) == 4 ? 0 : T::IS_BF16 ? 0x1p-8 : 0x1p-11;
    for (int64_t row = 0; row < (int64_t)a.rows; ++row)
        for (int64_t k = 0; k < width; ++k) {
            const int64_t d = k % (2 * a.half), other = d < a.half ? k + a.half : k - a.half;
            const float own = T::decode(x[row * a.x_stride + k]), pair = T::decode(x[row * a.x_stride + other]);
            const float c = cosines[row * a.half + d % a.half], s = sines[row * a.half + d % a.half];
            const volatile float along = own * c, across = pair * s;
            const float plain = d < a.half ? along - across : along + across;
            const S want = T::encode(plain), seen = out[row * width + k];
            if (memcmp(&want, &seen, sizeof want) && plain == plain)
                suite.fail(check::text("row %d, column %d: %.9g, unfused %.9g", (int)row, (int)k, (double)T::decode(seen), (double)plain));
            const double exact = (double)own * c + (d < a.half ? -1 : 1) * ((double)pair * s);
            const double slack = 0x1p-23 * (fabs((double)own * c) + fabs((double)pair * s)) + unit * fabs(exact) * 1.01 + 0x1p-24 * (T::VEC == 8) + 1e-37;
            if (!check::close(T::decode(seen), exact, slack, 0))
                suite.fail(check::text("row %d, column %d: %.9g, expected %.9g", (int)row, (int)k, (double)T::decode(seen), exact));
        }
    // Otherwise aligned, another grid: the same bits.
    launch(again.data(), 1 - misalign);
    if (memcmp(out.data(), again.data(), count * sizeof(S))) suite.fail("another launch gives other bits");
}

// Elements past 2^32: offsets must be 64 bits wide.
void far_case(Suite& suite, Rng& rng) {
    constexpr uint64_t WIDTH = 32, STRIDE = 1ull << 32;
    suite.begin("bf16, offsets past 2^32");
    check::SparseBuffer<uint16_t> x(STRIDE + WIDTH, STRIDE + WIDTH);
    Buffer<uint16_t> out(2 * WIDTH);
    const Buffer<float> cos(std::vector<float>(WIDTH, 1.0f)), sin(std::vector<float>(WIDTH, 0.0f));
    for (uint64_t k = 0; k < WIDTH; ++k) x.data()[STRIDE + k] = check::store<BF16>(rng.normal());
    RopeArgs a = {};
    a.x = x.data();
    a.cos = cos.data();
    a.sin = sin.data();
    a.out = out.data();
    a.rows = 2;
    a.heads = 1;
    a.vectors = 2;
    a.half = WIDTH / 2;
    a.x_stride = STRIDE;
    a.aligned = 1;
    shim::launch({1}, {ROPE_THREADS}, {rng.next()}, [&] { rope_bf16(a); });
    if (memcmp(out.data() + WIDTH, x.data() + STRIDE, WIDTH * 2)) suite.fail("the far row is not read");
}

void random_any(Suite& suite, Rng& rng) {
    check::with_dtype(rng.below(3), [&](auto type) { random_of<decltype(type)>(suite, rng); });
}

void first_cases(Suite& suite, Rng& rng, uint64_t) { far_case(suite, rng); }

}  // namespace

int main(int argc, char** argv) {
    return check::run({"rope", 5000, first_cases, random_any, nullptr, nullptr}, argc, argv);
}
