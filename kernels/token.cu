// Batched token sampling: one token and its log-probability a row of logits. Contract:
// src/ops/token.rs, whose order of filters and order of the draw this follows.
//
// One block a row. Weights exp((logit - max) / t) are turned into integers in steps of 2^-40 and
// summed as such: sums do not depend on the order of threads, top-p and the draw are exact selections
// in them, and what is lost per token is below 2^-40 of the largest weight. The logits are read
// again in each pass, from the L2 cache after the first: two passes without filters, three more
// for top-k, four for top-p. A pass goes through the row in stripes, 16 bytes a thread.
#include "common/dtype.cuh"
#include "common/philox.cuh"
#include "common/select.cuh"

namespace bdhs {

struct TokenRow {
    uint64_t seed;
    uint64_t step;
    uint64_t history_start;
    double top_p, min_p;
    float scale;    // 1 / temperature; 0 = greedy
    float penalty;  // 1 = off
    uint32_t sample, attempt, sentence;
    uint32_t top_k;  // 0 = off
    uint32_t history;
    uint32_t reserved;
};
static_assert(sizeof(TokenRow) == 72, "the launch code relies on this layout");

struct TokenArgs {
    const void* logits;
    const TokenRow* rows;
    const uint32_t* history;
    uint32_t* penalised;  // [rows, ceil(vocab / 32)] bits, written here; null: no row has a penalty
    uint32_t* token;
    float* log_prob;
    uint32_t* status;
    int64_t row_stride;  // in elements
    uint32_t vocab;      // at most 2^22, so that sums of weights fit 64 bits
    uint32_t aligned;    // every row starts at a multiple of 16 bytes
};
static_assert(sizeof(TokenArgs) == 72, "the launch code relies on this layout");

// `status` of a row: why it has no distribution.
enum TokenStatus : uint32_t { TOKEN_OK = 0, TOKEN_NAN = 1, TOKEN_INFINITE = 2, TOKEN_EMPTY = 3 };

constexpr int TOKEN_THREADS = 512;
constexpr float MASS_ONE = 1099511627776.0f;  // 2^40
constexpr uint32_t PURPOSE_TOKEN = 3;

// What is left of a row after the filters, as far as known.
struct Filter {
    float max, scale;
    float lowest;        // top-k: logits below it go
    uint32_t cut;        // top-p: keys below it go
    uint64_t cut_stays;  // top-p: how many tokens with the key `cut` stay, by index
    float min_p;         // rounded up: a weight is below it iff it is below the row's
};

BDHS_DEVICE float round_up(double x) {
    const float f = (float)x;
    return (double)f < x ? __uint_as_float(__float_as_uint(f) + 1) : f;
}

BDHS_DEVICE uint64_t mass_of(const Filter& f, float logit) {
    if (!(logit >= f.lowest)) return 0;
    return (uint64_t)(expf((logit - f.max) * f.scale) * MASS_ONE);
}

// The mass after min-p: a weight is relative to the largest, which is exp(0) = 1.
BDHS_DEVICE uint64_t mass_after_min_p(const Filter& f, float logit) {
    if (!(logit >= f.lowest)) return 0;
    const float weight = expf((logit - f.max) * f.scale);
    return weight < f.min_p ? 0 : (uint64_t)(weight * MASS_ONE);
}

template <class T> struct Logits {
    const typename T::storage* row;
    const uint32_t* bits;  // null: no penalty
    float penalty;
    uint32_t vocab;
    bool aligned;

    // VEC neighbours from `first` on as they lie in memory, if they can be taken at once.
    __device__ __forceinline__ uint4 fetch(uint32_t first) const {
        const uint4 zero = {0, 0, 0, 0};
        return whole(first) ? load_raw<T>(row + first) : zero;
    }

    // Their values, penalty applied; -inf past the end.
    __device__ __forceinline__ void values(uint32_t first, const uint4& raw, float (&out)[T::VEC]) const {
        if (whole(first)) decode_raw<T>(raw, out);
        else load_vec<T>(row + first, (int64_t)vocab - first, false, out);
        const uint32_t penalised = bits ? bits[first / 32] >> (first % 32) : 0;
#pragma unroll
        for (int i = 0; i < T::VEC; ++i) {
            if (penalised >> i & 1u) out[i] = punished(out[i]);
            if (first + i >= vocab) out[i] = -INFINITY;
        }
    }

    __device__ __forceinline__ float one(uint32_t token) const {
        const float l = T::decode(row[token]);
        return bits && bits[token / 32] >> (token % 32) & 1u ? punished(l) : l;
    }

    // visit(stripe, first, values) for every stripe, by all threads: with -inf where the row has ended. The next
    // stripe is on its way meanwhile.
    template <class Visit> __device__ __forceinline__ void stripes(Visit visit) const {
        uint32_t first = threadIdx.x * T::VEC;
        uint4 raw = fetch(first);
#pragma unroll 1
        for (uint32_t stripe = 0; stripe * STRIPE < vocab; ++stripe, first += STRIPE) {
            const uint4 next = fetch(first + STRIPE);
            float l[T::VEC];
#pragma unroll
            for (int i = 0; i < T::VEC; ++i) l[i] = -INFINITY;
            if (first < vocab) values(first, raw, l);
            visit(stripe, first, l);
            raw = next;
        }
    }

    // visit(token, logit) for the calling thread's share.
    template <class Visit> __device__ __forceinline__ void each(Visit visit) const {
        stripes([&](uint32_t, uint32_t first, const float (&l)[T::VEC]) {
#pragma unroll
            for (int i = 0; i < T::VEC; ++i)
                if (first + i < vocab) visit(first + i, l[i]);
        });
    }

    static constexpr uint32_t STRIPE = TOKEN_THREADS * T::VEC;

private:
    __device__ __forceinline__ bool whole(uint32_t first) const {
        return aligned && first + T::VEC <= vocab;
    }
    __device__ __forceinline__ float punished(float l) const { return l < 0.0f ? l * penalty : l / penalty; }
};

struct TokenScratch {
    unsigned long long* bins;  // RADIX_BINS; then the mass of each stripe
    uint32_t* ties;            // RADIX_BINS: tokens of each stripe that are tied at the cut
    uint64_t *words, *found;   // one a warp; three
};
static_assert(RADIX_BINS * TOKEN_THREADS * F32::VEC >= 1 << 22, "a stripe of the longest row each");

BDHS_DEVICE void mark_history(const TokenArgs& args, const TokenRow& row, uint32_t* bits) {
    const uint32_t words = (args.vocab + 31) / 32;
    for (uint32_t i = threadIdx.x; i < words; i += TOKEN_THREADS) bits[i] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < row.history; i += TOKEN_THREADS) {
        const uint32_t token = args.history[row.history_start + i];
        atomicOr(&bits[token / 32], 1u << (token % 32));
    }
    __syncthreads();
}

// The largest logit and the first token that has it, as key << 32 | ~token; all ones if there is
// a NaN.
template <class T> BDHS_DEVICE uint64_t peak(const Logits<T>& logits, uint64_t* scratch) {
    float best = -INFINITY;
    uint32_t at = 0xffffffffu;
    bool nan = false;
    logits.stripes([&](uint32_t, uint32_t first, const float (&l)[T::VEC]) {
        float most = l[0];
#pragma unroll
        for (int i = 0; i < T::VEC; ++i) {
            nan |= l[i] != l[i];
            most = fmaxf(most, l[i]);
        }
        if (most > best) {
            best = most;
#pragma unroll
            for (int i = T::VEC - 1; i >= 0; --i)
                if (l[i] == most) at = first + i;
        }
    });
    const uint64_t packed = nan ? ~(uint64_t)0 : (uint64_t)ordered_key(best) << 32 | (uint32_t)~at;
    return block_reduce<Max>(packed, scratch);
}

// Applies top-k, then top-p; the mass left is what `draw_token` sums.
template <class T>
BDHS_DEVICE void apply_filters(const Logits<T>& logits, const TokenRow& row, const TokenScratch& s,
                               Filter& f) {
    if (row.top_k != 0 && row.top_k < logits.vocab) {
        uint32_t* counts = reinterpret_cast<uint32_t*>(s.bins);
        const Selected kth = radix_select(row.top_k - 1, counts, s.words, s.found, [&](auto visit) {
            logits.each([&](uint32_t, float l) { visit(~ordered_key(l), 1u); });
        });
        f.lowest = key_to_float(~kth.key);
    }
    if (row.top_p < 1.0) {
        uint64_t own = 0;
        logits.each([&](uint32_t, float l) { own += mass_of(f, l); });
        const uint64_t total = block_reduce<Sum>(own, s.words);
        // A token stays iff the mass before it is below p * total: the last to stay covers the
        // unit of mass number ceil(p * total) - 1.
        uint64_t covered = (uint64_t)ceil(row.top_p * (double)total);
        covered = covered < 1 ? 1 : covered > total ? total : covered;
        const Selected last = radix_select(covered - 1, s.bins, s.words, s.found, [&](auto visit) {
            logits.each([&](uint32_t, float l) {
                const uint64_t mass = mass_of(f, l);
                if (mass) visit(~ordered_key(l), (unsigned long long)mass);
            });
        });
        f.cut = ~last.key;
        // Tokens of one key have one mass.
        f.cut_stays = last.within / mass_of(f, key_to_float(f.cut)) + 1;
    }
}

struct Drawn {
    uint32_t token;
    uint64_t total;
};

// floor(u * total) for u = (word / 256 + 0.5) / 2^24, exactly.
BDHS_DEVICE uint64_t scale_draw(uint32_t word, uint64_t total) {
    const uint64_t odd = 2 * (uint64_t)(word >> 8) + 1;
    return (total >> 32) * odd * 128 + ((total & 0xffffffffu) * odd >> 25);
}

// What a token's mass is if it stays: those above the cut, and of those at it the first ones.
template <class T>
BDHS_DEVICE void stripe_masses(const Logits<T>& logits, const TokenScratch& s, const Filter& f) {
    for (uint32_t i = threadIdx.x; i < RADIX_BINS; i += TOKEN_THREADS) s.bins[i] = s.ties[i] = 0;
    __syncthreads();
    logits.stripes([&](uint32_t stripe, uint32_t first, const float (&l)[T::VEC]) {
        uint64_t mass = 0;
        uint32_t ties = 0;
        // Past the end of the row lies -inf, whose mass is none.
        if (f.cut) {
#pragma unroll
            for (int i = 0; i < T::VEC; ++i) {
                const uint32_t key = ordered_key(l[i]);
                if (key > f.cut) mass += mass_after_min_p(f, l[i]);
                ties += key == f.cut && first + i < logits.vocab;
            }
            ties = warp_reduce<Sum>(ties);
            if (lane_id() == 0 && ties) atomicAdd(&s.ties[stripe], ties);
        } else {
#pragma unroll
            for (int i = 0; i < T::VEC; ++i) mass += mass_after_min_p(f, l[i]);
        }
        mass = warp_reduce<Sum>(mass);
        if (lane_id() == 0 && mass) add_to_bin(&s.bins[stripe], mass);
    });
    __syncthreads();
    // Ties that stay join their stripe's mass; what is left in `ties` is their number before the stripe.
    if (!f.cut) return;
    constexpr int OWN = RADIX_BINS / TOKEN_THREADS;
    const int at = (int)threadIdx.x * OWN;
    uint64_t own = 0, all = 0;
    for (int i = at; i < at + OWN; ++i) own += s.ties[i];
    uint64_t before = block_exclusive_scan<uint64_t>(own, s.words, &all);
    const uint64_t each = mass_after_min_p(f, key_to_float(f.cut));
    for (int i = at; i < at + OWN; ++i) {
        const uint64_t end = before + s.ties[i];
        const uint64_t staying = end < f.cut_stays ? end : f.cut_stays;
        if (staying > before) s.bins[i] += (staying - before) * each;
        s.ties[i] = (uint32_t)before;
        before = end;
    }
    __syncthreads();
}

// The first token, in index order, at which the running mass exceeds u * total: its stripe first, then its place there.
template <class T>
BDHS_DEVICE Drawn draw_token(const Logits<T>& logits, const TokenRow& row, const TokenScratch& s,
                             const Filter& f) {
    stripe_masses(logits, s, f);
    constexpr int OWN = RADIX_BINS / TOKEN_THREADS;
    const int at = (int)threadIdx.x * OWN;
    uint64_t own = 0, total = 0;
    for (int i = at; i < at + OWN; ++i) own += s.bins[i];
    uint64_t before = block_exclusive_scan<uint64_t>(own, s.words, &total);
    const Stream stream = {row.seed, row.sample, row.attempt, PURPOSE_TOKEN << 24 | row.sentence};
    const uint64_t target = scale_draw(draw_word(stream, row.step), total);
    if (before <= target && target < before + own) {
        int stripe = at;
        while (before + s.bins[stripe] <= target) before += s.bins[stripe++];
        s.found[1] = (uint64_t)stripe;
        s.found[2] = before;
    }
    __syncthreads();
    const uint32_t stripe = (uint32_t)s.found[1], first = stripe * Logits<T>::STRIPE + threadIdx.x * T::VEC;
    float l[T::VEC];
#pragma unroll
    for (int i = 0; i < T::VEC; ++i) l[i] = -INFINITY;
    if (first < logits.vocab) logits.values(first, logits.fetch(first), l);
    uint64_t tied = 0, rank = 0, sum = 0, all = 0;
#pragma unroll
    for (int i = 0; i < T::VEC; ++i) tied += first + i < logits.vocab && ordered_key(l[i]) == f.cut;
    if (f.cut) rank = s.ties[stripe] + block_exclusive_scan<uint64_t>(tied, s.words, &all);
    // Twice the same, which takes fewer registers than keeping the masses.
    const auto each_mass = [&](uint64_t rank, auto visit) {
#pragma unroll
        for (int i = 0; i < T::VEC; ++i) {
            const uint32_t key = ordered_key(l[i]);
            const bool stays = key > f.cut || (key == f.cut && rank < f.cut_stays);
            rank += key == f.cut;
            visit(i, stays && first + i < logits.vocab ? mass_after_min_p(f, l[i]) : 0);
        }
    };
    each_mass(rank, [&](int, uint64_t mass) { sum += mass; });
    uint64_t running = s.found[2] + block_exclusive_scan<uint64_t>(sum, s.words, &all);
    each_mass(rank, [&](int i, uint64_t mass) {
        if (running <= target && target < running + mass) s.found[0] = first + i;
        running += mass;
    });
    __syncthreads();
    return {(uint32_t)s.found[0], total};
}

BDHS_DEVICE uint32_t status_of(uint64_t best) {
    if (best == ~(uint64_t)0) return TOKEN_NAN;
    const float max = key_to_float((uint32_t)(best >> 32));
    return max == INFINITY ? TOKEN_INFINITE : max == -INFINITY ? TOKEN_EMPTY : TOKEN_OK;
}

template <class T> BDHS_DEVICE void sample_row(const TokenArgs& args, const TokenScratch& s) {
    const uint64_t r = blockIdx.x;
    const TokenRow row = args.rows[r];
    const bool penalise = row.penalty != 1.0f && row.history != 0;
    uint32_t* bits = penalise ? args.penalised + r * ((args.vocab + 31) / 32) : nullptr;
    if (penalise) mark_history(args, row, bits);
    const Logits<T> logits = {
        static_cast<const typename T::storage*>(args.logits) + (int64_t)r * args.row_stride, bits,
        row.penalty, args.vocab, args.aligned != 0};

    const uint64_t best = peak(logits, s.words);
    const uint32_t status = status_of(best);
    if (status != TOKEN_OK) {
        if (threadIdx.x == 0) {
            args.status[r] = status;
            args.token[r] = 0;
            args.log_prob[r] = NAN;
        }
        return;
    }
    const bool greedy = row.scale == 0.0f;
    Filter f = {key_to_float((uint32_t)(best >> 32)), greedy ? 1.0f : row.scale, -INFINITY, 0, 0,
                greedy ? 0.0f : round_up(row.min_p)};
    if (!greedy) apply_filters(logits, row, s, f);
    Drawn drawn = draw_token(logits, row, s, f);
    if (greedy) drawn.token = ~(uint32_t)best;
    if (threadIdx.x == 0) {
        args.status[r] = TOKEN_OK;
        args.token[r] = drawn.token;
        args.log_prob[r] = (float)((double)((logits.one(drawn.token) - f.max) * f.scale) -
                                   log((double)drawn.total / (double)MASS_ONE));
    }
}

#define BDHS_TOKEN_KERNEL(name, T)                                                              \
    extern "C" __global__ void __launch_bounds__(TOKEN_THREADS, 2) name(const TokenArgs args) {    \
        BDHS_SHARED(unsigned long long, bins, RADIX_BINS);                                      \
        BDHS_SHARED(uint32_t, ties, RADIX_BINS);                                                \
        BDHS_SHARED(uint64_t, words, TOKEN_THREADS / 32);                                       \
        BDHS_SHARED(uint64_t, found, 3);                                                        \
        sample_row<T>(args, {bins, ties, words, found});                                        \
    }

BDHS_TOKEN_KERNEL(token_sample_f32, F32)
BDHS_TOKEN_KERNEL(token_sample_f16, F16)
BDHS_TOKEN_KERNEL(token_sample_bf16, BF16)

}  // namespace bdhs
