// The cosine that decides: in f64, from the original values. Contract: src/ops/cosine/mod.rs.
#pragma once
#include "common/dtype.cuh"
#include "common/reduce.cuh"

namespace bdhs {

struct Dots {
    double xy, xx, yy;
};

// NaN if a value is not finite, else 0 with a zero vector, else within [-1, 1]; -0 becomes 0.
BDHS_DEVICE double cosine_of(const Dots& d) {
    if (!isfinite(d.xx) || !isfinite(d.yy)) return NAN;
    if (d.xx == 0.0 || d.yy == 0.0) return 0.0;
    const double c = d.xy / sqrt(d.xx * d.yy);
    return (c > 1.0 ? 1.0 : c < -1.0 ? -1.0 : c) + 0.0;
}

// The cosine in f64 from the original values; one warp, every lane gets it.
template <class T>
BDHS_DEVICE double exact_cosine(const typename T::storage* x, const typename T::storage* y, int64_t d) {
    Dots sum = {0.0, 0.0, 0.0};
    for (int64_t c = lane_id(); c < d; c += 32) {
        const double a = T::decode(x[c]), b = T::decode(y[c]);
        sum.xy += a * b;
        sum.xx += a * a;
        sum.yy += b * b;
    }
    return cosine_of({warp_reduce<Sum>(sum.xy), warp_reduce<Sum>(sum.xx), warp_reduce<Sum>(sum.yy)});
}

}  // namespace bdhs
