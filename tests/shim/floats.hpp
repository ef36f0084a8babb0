// The kernels' float types seen from the host: values go in as doubles, come out as doubles.
#pragma once
#include "check.hpp"

namespace check {

template <class T> typename T::storage store(double value) { return T::encode((float)value); }
template <class T> double load(typename T::storage value) { return T::decode(value); }

template <class T> const char* dtype_name() {
    return sizeof(typename T::storage) == 4 ? "f32" : T::IS_BF16 ? "bf16" : "f16";
}

// Equal up to `absolute` + `relative` * |expected|; NaN equals NaN, an infinity itself.
inline bool close(double seen, double expected, double absolute, double relative) {
    if (expected != expected) return seen != seen;
    if (seen == expected) return true;
    return fabs(seen - expected) <= absolute + relative * fabs(expected);
}

}  // namespace check
