// Work that is as many vectors a row, each on its own: which one comes where.
#pragma once
#include "platform.cuh"

namespace bdhs {

struct Place {
    uint64_t row, rest;
};

// i = row * per_row + rest. 64-bit divisions are slow, and few calls need them.
BDHS_DEVICE Place place_of(uint64_t i, uint64_t per_row) {
    if (((i | per_row) >> 32) == 0) {
        const uint32_t row = (uint32_t)i / (uint32_t)per_row;
        return {row, (uint32_t)i - row * (uint32_t)per_row};
    }
    return {i / per_row, i % per_row};
}

}  // namespace bdhs
