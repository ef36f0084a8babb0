// Philox4x32-10 written a second time, from the paper's definition.
#pragma once
#include <stdint.h>
#include <string.h>

namespace check {

// Word `index` of a stream; `tag` is purpose << 24 | sentence.
inline uint32_t philox_word(uint64_t seed, uint32_t sample, uint32_t attempt, uint32_t tag, uint64_t index) {
    uint32_t c[4] = {(uint32_t)(index / 4), sample, attempt, tag};
    uint32_t k[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = (uint64_t)0xD2511F53 * c[0], p1 = (uint64_t)0xCD9E8D57 * c[2];
        const uint32_t n[4] = {(uint32_t)(p1 >> 32) ^ c[1] ^ k[0], (uint32_t)p1,
                               (uint32_t)(p0 >> 32) ^ c[3] ^ k[1], (uint32_t)p0};
        memcpy(c, n, sizeof c);
        k[0] += 0x9E3779B9;
        k[1] += 0xBB67AE85;
    }
    return c[index % 4];
}

}  // namespace check
