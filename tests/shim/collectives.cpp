// Warp collectives of the shim: lanes meet, the last to come computes what all of them get.
#include "runtime.hpp"

namespace shim {

namespace {

struct Lanes {
    Fiber* fiber[32];
};

void resolve_shuffle(const Lanes& lanes, unsigned mask, Fiber* f) {
    const int by = (int)(uint32_t)f->in[1];
    int source = 0;
    switch ((Shuffle)f->in[2]) {
        case Shuffle::Index: source = by & 31; break;
        case Shuffle::Up: source = (int)f->lane - by < 0 ? (int)f->lane : (int)f->lane - by; break;
        case Shuffle::Down: source = (int)f->lane + by > 31 ? (int)f->lane : (int)f->lane + by; break;
        case Shuffle::Xor: source = ((int)f->lane ^ by) & 31; break;
    }
    if (!(mask >> source & 1))
        die("thread %u shuffles from lane %d, which is not in the mask %08x", f->index, source, mask);
    f->out[0] = lanes.fiber[source]->in[0];
}

float widen(uint32_t bits, bool bf16) {
    return bf16 ? from_bits<float>((uint64_t)(bits << 16)) : half_to_float((uint16_t)bits);
}

// True if no lane holds an infinity or NaN and one operand is all zeros: nothing is added then.
bool adds_nothing(const Lanes& lanes, bool bf16) {
    const uint64_t exponent = bf16 ? 0x7f80 : 0x7c00;
    uint64_t a = 0, b = 0;
    for (const Fiber* f : lanes.fiber) {
        for (int word = 0; word < 3; ++word)
            for (int shift = 0; shift < 64; shift += 16)
                if ((f->in[word] >> shift & exponent) == exponent) return false;
        a |= f->in[0] | f->in[1];
        b |= f->in[2];
    }
    return (a & 0x7fff7fff7fff7fffull) == 0 || (b & 0x7fff7fff7fff7fffull) == 0;
}

void resolve_mma(const Lanes& lanes, bool bf16) {
    if (adds_nothing(lanes, bf16)) {
        for (Fiber* f : lanes.fiber) {
            f->out[0] = f->in[3];
            f->out[1] = f->in[4];
        }
        return;
    }
    float a[16][16], b[16][8], c[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const Fiber* f = lanes.fiber[lane];
        const int g = lane / 4, t = lane % 4;
        for (int r = 0; r < 4; ++r) {
            const uint32_t word = (uint32_t)(f->in[r / 2] >> (32 * (r % 2)));
            const int row = g + 8 * (r % 2), k = 2 * t + 8 * (r / 2);
            a[row][k] = widen(word & 0xffff, bf16);
            a[row][k + 1] = widen(word >> 16, bf16);
        }
        for (int r = 0; r < 2; ++r) {
            const uint32_t word = (uint32_t)(f->in[2] >> (32 * r));
            b[2 * t + 8 * r][g] = widen(word & 0xffff, bf16);
            b[2 * t + 8 * r + 1][g] = widen(word >> 16, bf16);
        }
        for (int r = 0; r < 4; ++r)
            c[g + 8 * (r / 2)][2 * t + r % 2] =
                from_bits<float>(f->in[3 + r / 2] >> (32 * (r % 2)) & 0xffffffffu);
    }
    for (int i = 0; i < 16; ++i)
        for (int k = 0; k < 16; ++k)
            for (int j = 0; j < 8; ++j) c[i][j] += a[i][k] * b[k][j];
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int r = 0; r < 2; ++r)
            lanes.fiber[lane]->out[r] =
                to_bits(c[g + 8 * r][2 * t]) | to_bits(c[g + 8 * r][2 * t + 1]) << 32;
    }
}

// Lanes of one warp on their way to one collective.
Group& join_group(Fiber* self, unsigned mask, Kind kind) {
    Block* b = self->block;
    const unsigned warp = self->index / 32, bit = 1u << self->lane;
    const char* name = KIND_NAMES[(int)kind];
    const unsigned existing = b->threads - warp * 32 >= 32 ? FULL : (1u << (b->threads - warp * 32)) - 1;
    if (!(mask & bit)) die("thread %u calls a %s whose mask %08x leaves it out", self->index, name, mask);
    if (mask & ~existing) die("%s: mask %08x names lanes that do not exist in warp %u", name, mask, warp);
    if (mask & b->done_lanes[warp])
        die("thread %u waits in a %s with mask %08x for lanes %08x, which have returned", self->index, name, mask,
            mask & b->done_lanes[warp]);
    Group* free_group = nullptr;
    for (Group& g : b->groups[warp]) {
        if (!g.arrived) {
            free_group = &g;
            continue;
        }
        if (g.mask == mask && g.kind == kind) {
            g.arrived |= bit;
            return g;
        }
        if (g.mask & mask)
            die("thread %u (%s, mask %08x) and lanes %08x (%s, mask %08x) disagree", self->index, name, mask, g.arrived,
                KIND_NAMES[(int)g.kind], g.mask);
    }
    if (!free_group) die("more than %u groups of lanes in a warp", MAX_GROUPS);
    *free_group = {mask, bit, kind};
    return *free_group;
}

// Waits until every lane of `mask` has come with the same kind and mask; the last one computes
// all results.
void collective(unsigned mask, Kind kind) {
    Fiber* self = scheduler.self;
    Block* b = self->block;
    const unsigned warp = self->index / 32, generation = b->warp_generation[warp];
    self->mask = mask;
    self->kind = kind;
    self->state = State::AtCollective;
    Group& group = join_group(self, mask, kind);
    const bool orders = kind == Kind::Sync || scheduler.options.shuffles_order_memory;
    if (orders) TSAN_RELEASE(&b->warp_key[warp][generation & 1]);
    if (group.arrived == mask) {
        group.arrived = 0;
        Lanes lanes = {};
        unsigned votes = 0;
        for (unsigned rest = mask; rest; rest &= rest - 1) {
            const int lane = __builtin_ctz(rest);
            Fiber* f = lanes.fiber[lane] = b->fibers[warp * 32 + lane];
            votes |= (unsigned)(f->in[0] & 1) << lane;
        }
        if (kind == Kind::MmaF16 || kind == Kind::MmaBf16) resolve_mma(lanes, kind == Kind::MmaBf16);
        b->warp_generation[warp]++;
        for (unsigned rest = mask; rest; rest &= rest - 1) {
            Fiber* f = lanes.fiber[__builtin_ctz(rest)];
            if (kind == Kind::Shuffle) resolve_shuffle(lanes, mask, f);
            if (kind == Kind::Ballot) f->out[0] = votes;
            make_ready(f);
        }
    }
    to_scheduler(false);
    if (orders) TSAN_ACQUIRE(&b->warp_key[warp][generation & 1]);
}

}  // namespace

void warp_barrier(unsigned mask) {
    scheduler.self->in[0] = 0;
    collective(mask, Kind::Sync);
}

uint64_t shuffle(unsigned mask, uint64_t value, int lane, Shuffle how) {
    Fiber* f = scheduler.self;
    f->in[0] = value;
    f->in[1] = (uint64_t)(uint32_t)lane;
    f->in[2] = (uint64_t)how;
    collective(mask, Kind::Shuffle);
    return f->out[0];
}

unsigned ballot(unsigned mask, bool predicate) {
    Fiber* f = scheduler.self;
    f->in[0] = predicate;
    collective(mask, Kind::Ballot);
    return (unsigned)f->out[0];
}

void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bf16) {
    Fiber* f = scheduler.self;
    f->in[0] = a[0] | (uint64_t)a[1] << 32;
    f->in[1] = a[2] | (uint64_t)a[3] << 32;
    f->in[2] = b[0] | (uint64_t)b[1] << 32;
    f->in[3] = to_bits(c[0]) | to_bits(c[1]) << 32;
    f->in[4] = to_bits(c[2]) | to_bits(c[3]) << 32;
    collective(0xffffffffu, bf16 ? Kind::MmaBf16 : Kind::MmaF16);
    for (int r = 0; r < 4; ++r) c[r] = from_bits<float>(f->out[r / 2] >> (32 * (r % 2)) & 0xffffffffu);
}

}  // namespace shim
