// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011), keyed as src/ops/philox.rs documents. Host and
// device draw the same bits: a draw is a function of what it is for, never of where it runs.
#pragma once
#include "platform.cuh"

namespace bdhs {

struct Words4 {
    uint32_t w[4];
};

// Who draws: the seed, the sample's index in the dataset, the attempt, and
// purpose << 24 | sentence.
struct Stream {
    uint64_t seed;
    uint32_t sample, attempt, tag;
};

BDHS_DEVICE Words4 philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint32_t hi0 = __umulhi(0xD2511F53u, c0), lo0 = 0xD2511F53u * c0;
        const uint32_t hi1 = __umulhi(0xCD9E8D57u, c2), lo1 = 0xCD9E8D57u * c2;
        c0 = hi1 ^ c1 ^ k0;
        c2 = hi0 ^ c3 ^ k1;
        c1 = lo1;
        c3 = lo0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// The four draws with indices 4 * quad .. 4 * quad + 3.
BDHS_DEVICE Words4 draw_quad(const Stream& s, uint32_t quad) {
    return philox(s.seed, quad, s.sample, s.attempt, s.tag);
}

// One draw.
BDHS_DEVICE uint32_t draw_word(const Stream& s, uint64_t index) {
    const Words4 q = draw_quad(s, (uint32_t)(index >> 2));
    const uint32_t low = index & 1 ? q.w[1] : q.w[0], high = index & 1 ? q.w[3] : q.w[2];
    return index & 2 ? high : low;
}

}  // namespace bdhs
