// The kernels' float types seen from the host: values go in as doubles, come out as doubles.
#pragma once
#include "check.hpp"

#include "common/dtype.cuh"

namespace check {

template <class T> typename T::storage store(double value) { return T::encode((float)value); }
template <class T> double load(typename T::storage value) { return T::decode(value); }

template <class T> const char* dtype_name() {
    return sizeof(typename T::storage) == 4 ? "f32" : T::IS_BF16 ? "bf16" : "f16";
}

// The kernel of one op for the type T.
template <class T, class A, class B, class C> auto& kernel_for(A& f32, B& f16, C& bf16) {
    if constexpr (sizeof(typename T::storage) == 4) return f32;
    else if constexpr (T::IS_BF16) return bf16;
    else return f16;
}

// visit(T{}) with the type that a kernel's dtype code names.
template <class Visit> void with_dtype(uint64_t code, Visit visit) {
    switch (code) {
        case bdhs::DTYPE_F32: visit(bdhs::F32{}); break;
        case bdhs::DTYPE_F16: visit(bdhs::F16{}); break;
        case bdhs::DTYPE_BF16: visit(bdhs::BF16{}); break;
        default: shim::die("no float type %d", (int)code);
    }
}

// Equal up to `absolute` + `relative` * |expected|; NaN equals NaN, an infinity itself.
inline bool close(double seen, double expected, double absolute, double relative) {
    if (expected != expected) return seen != seen;
    if (seen == expected) return true;
    return fabs(seen - expected) <= absolute + relative * fabs(expected);
}

}  // namespace check
