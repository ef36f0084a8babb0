// IEEE half and bfloat16 from and to f32, round to nearest even.
#include "shim.hpp"

namespace shim {

float half_to_float(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return from_bits<float>(sign | 0x7f800000u | mantissa << 13);
    if (exponent) return from_bits<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    const float value = (float)mantissa * 0x1p-24f;
    return sign ? -value : value;
}

uint16_t float_to_half(float f) {
    const uint32_t bits = (uint32_t)to_bits(f), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000u) return sign | 0x7fff;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00;  // 65520 and above round to infinity
    if (magnitude < 0x38800000u) {                       // below 2^-14: multiples of 2^-24
        const float scaled = from_bits<float>(magnitude) * 0x1p24f;
        return sign | (uint16_t)nearbyintf(scaled);
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return sign | (uint16_t)((rounded >> 13) - (112u << 10));
}

uint16_t float_to_bfloat16(float f) {
    const uint32_t bits = (uint32_t)to_bits(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace shim
