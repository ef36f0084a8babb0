// The shim's fibers and scheduler. Under ThreadSanitizer this file is compiled without it (and
// with -DSHIM_TSAN), so that the scheduler's own bookkeeping is neither reported nor taken for
// order between CUDA threads.
#include "shim.hpp"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SHIM_ASAN 1
#endif

#if defined(SHIM_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#define TSAN_ACQUIRE(p) __tsan_acquire(p)
#define TSAN_RELEASE(p) __tsan_release(p)
#else
#define TSAN_ACQUIRE(p) (void)(p)
#define TSAN_RELEASE(p) (void)(p)
#endif

namespace shim {

void die(const char* format, ...) {
    va_list list;
    va_start(list, format);
    fprintf(stderr, "shim: ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    va_end(list);
    fflush(nullptr);
    _exit(86);
}

namespace {

constexpr unsigned MAX_THREADS = 1024, MAX_RESIDENT = 3;
constexpr unsigned READY_RING = 4096;  // a power of two, room for all resident threads
constexpr size_t STACK_BYTES = 256 * 1024, SHARED_LIMIT = 48 * 1024, RED_ZONE = 64;
constexpr size_t ARENA_BYTES = SHARED_LIMIT + 64 * 2 * RED_ZONE;
constexpr unsigned MAX_ARRAYS = 48, MAX_GROUPS = 8, FULL = 0xffffffffu;
constexpr unsigned char POISON = 0xff;  // a NaN in every float type

enum class State { Ready, AtBarrier, AtCollective, Done };
enum class Kind { Sync, Shuffle, Ballot, MmaF16, MmaBf16 };
const char* const KIND_NAMES[] = {"__syncwarp", "shuffle", "ballot", "mma (f16)", "mma (bf16)"};

struct Block;

struct Fiber {
#if defined(__x86_64__)
    void* sp;
#else
    ucontext_t context;
#endif
    char* stack;
    void* tsan;
    void* asan_fake;
    Block* block;
    Dim3 tid;
    unsigned index, lane;
    State state;
    unsigned mask;
    Kind kind;
    uint64_t in[5], out[2];
};

// Lanes of a warp waiting for each other; arrived = 0: free.
struct Group {
    unsigned mask, arrived;
    Kind kind;
};

struct SharedArray {
    const void* key;
    const char* name;
    size_t offset, bytes;
};

struct Block {
    Fiber* fibers[MAX_THREADS];
    unsigned threads, at_barrier, done, generation;
    Dim3 idx;
    char* arena;
    SharedArray arrays[MAX_ARRAYS];
    unsigned array_count;
    size_t arena_used, shared_used;
    bool active;
    // ThreadSanitizer's clocks: their addresses only. Two per barrier, since one alone would let
    // a late thread acquire what an early one released after the barrier.
    char start_key, end_key, barrier_key[2], warp_key[MAX_THREADS / 32][2];
    unsigned warp_generation[MAX_THREADS / 32];
    Group groups[MAX_THREADS / 32][MAX_GROUPS];
    unsigned done_lanes[MAX_THREADS / 32];
};

struct Scheduler {
    Block blocks[MAX_RESIDENT];
    std::vector<Fiber*> pool[MAX_RESIDENT];
    Fiber* ready[READY_RING];  // a ring: ready_count fibers from ready_head on
    unsigned ready_head = 0, ready_count = 0;
    Fiber* self = nullptr;
    const std::function<void()>* body = nullptr;
    Dim3 grid, block;
    Options options;
    uint64_t random = 1;
    unsigned order = 0;  // 0, 1: random; 2: in order; 3: in reverse
    char fence_key;
#if defined(__x86_64__)
    void* sp;
#else
    ucontext_t context;
#endif
    void* tsan = nullptr;
    void* asan_fake = nullptr;
    const void* asan_bottom = nullptr;
    size_t asan_size = 0;
};

Scheduler scheduler;

uint64_t next_random() {
    uint64_t z = (scheduler.random += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

unsigned linear(const Dim3& d) { return d.x * d.y * d.z; }

// ---- switching ----

#if defined(__x86_64__)
extern "C" void shim_switch(void** save, void* load);
asm(R"(
.text
.type shim_switch,@function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size shim_switch,.-shim_switch
)");
#endif

void to_scheduler(bool last) {
    Fiber* f = scheduler.self;
#if defined(SHIM_ASAN)
    __sanitizer_start_switch_fiber(last ? nullptr : &f->asan_fake, scheduler.asan_bottom,
                                   scheduler.asan_size);
#endif
#if defined(SHIM_TSAN)
    __tsan_switch_to_fiber(scheduler.tsan, 1);
#endif
#if defined(__x86_64__)
    shim_switch(&f->sp, scheduler.sp);
#else
    swapcontext(&f->context, &scheduler.context);
#endif
#if defined(SHIM_ASAN)
    __sanitizer_finish_switch_fiber(f->asan_fake, nullptr, nullptr);
#endif
    (void)last;
}

void to_fiber(Fiber* f) {
    scheduler.self = f;
#if defined(SHIM_ASAN)
    __sanitizer_start_switch_fiber(&scheduler.asan_fake, f->stack, STACK_BYTES);
#endif
#if defined(SHIM_TSAN)
    __tsan_switch_to_fiber(f->tsan, 1);
#endif
#if defined(__x86_64__)
    shim_switch(&scheduler.sp, f->sp);
#else
    swapcontext(&scheduler.context, &f->context);
#endif
#if defined(SHIM_ASAN)
    __sanitizer_finish_switch_fiber(scheduler.asan_fake, nullptr, nullptr);
#endif
    scheduler.self = nullptr;
}

void fiber_main() {
#if defined(SHIM_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler.asan_bottom, &scheduler.asan_size);
#endif
    Fiber* f = scheduler.self;
    TSAN_ACQUIRE(&f->block->start_key);
    (*scheduler.body)();
    TSAN_RELEASE(&f->block->end_key);
    f->state = State::Done;
    f->block->done++;
    f->block->done_lanes[f->index / 32] |= 1u << f->lane;
    to_scheduler(true);
    die("a finished fiber was resumed");
}

void prepare(Fiber* f) {
#if defined(__x86_64__)
    // As if shim_switch had been called from a function whose return address is fiber_main.
    // The tops are staggered, or all stacks would share the same few sets of the cache.
    void** top = reinterpret_cast<void**>(f->stack + STACK_BYTES - f->index % 61 * 192) - 2;
    *top = reinterpret_cast<void*>(&fiber_main);
    for (int i = 1; i <= 6; ++i) top[-i] = nullptr;
    f->sp = top - 6;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK_BYTES;
    f->context.uc_link = nullptr;
    makecontext(&f->context, fiber_main, 0);
#endif
}

Fiber* new_fiber() {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char* base = static_cast<char*>(mmap(nullptr, STACK_BYTES + page, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (base == MAP_FAILED) die("no memory for a fiber's stack");
    mprotect(base, page, PROT_NONE);
    Fiber* f = new Fiber();
    f->stack = base + page;
#if defined(SHIM_TSAN)
    f->tsan = __tsan_create_fiber(0);
#endif
    return f;
}

// ---- blocks ----

Fiber*& ready_at(unsigned i) { return scheduler.ready[(scheduler.ready_head + i) % READY_RING]; }

void make_ready(Fiber* f) {
    f->state = State::Ready;
    ready_at(scheduler.ready_count++) = f;
}

void start_block(unsigned slot, unsigned linear_block) {
    Block& b = scheduler.blocks[slot];
    const unsigned threads = linear(scheduler.block);
    b.threads = threads;
    b.at_barrier = b.done = b.array_count = 0;
    b.arena_used = b.shared_used = 0;
    for (unsigned& lanes : b.done_lanes) lanes = 0;
    b.active = true;
    b.idx.x = linear_block % scheduler.grid.x;
    b.idx.y = linear_block / scheduler.grid.x % scheduler.grid.y;
    b.idx.z = linear_block / scheduler.grid.x / scheduler.grid.y;
    std::vector<Fiber*>& pool = scheduler.pool[slot];
    while (pool.size() < threads) pool.push_back(new_fiber());
    TSAN_RELEASE(&b.start_key);
    for (unsigned t = 0; t < threads; ++t) {
        Fiber* f = b.fibers[t] = pool[t];
        f->block = &b;
        f->index = t;
        f->lane = t % 32;
        f->tid.x = t % scheduler.block.x;
        f->tid.y = t / scheduler.block.x % scheduler.block.y;
        f->tid.z = t / scheduler.block.x / scheduler.block.y;
        prepare(f);
        make_ready(f);
    }
}

void check_red_zones(const Block& b) {
    for (unsigned i = 0; i < b.array_count; ++i) {
        const SharedArray& a = b.arrays[i];
        const char* start = b.arena + a.offset;
        for (size_t j = 1; j <= RED_ZONE; ++j) {
            if ((unsigned char)start[a.bytes + j - 1] != POISON || (unsigned char)start[-(ptrdiff_t)j] != POISON)
                die("block (%u,%u): a write outside of the shared array %s (%zu bytes)", b.idx.x,
                    b.idx.y, a.name, a.bytes);
        }
    }
}

void finish_block(Block& b) {
    TSAN_ACQUIRE(&b.end_key);
#if defined(SHIM_ASAN)
    ASAN_UNPOISON_MEMORY_REGION(b.arena, ARENA_BYTES);
#endif
    check_red_zones(b);
    b.active = false;
}

[[noreturn]] void report_stuck() {
    for (const Block& b : scheduler.blocks) {
        if (!b.active) continue;
        for (unsigned t = 0; t < b.threads; ++t) {
            const Fiber* f = b.fibers[t];
            if (f->state == State::AtCollective)
                die("block (%u,%u): thread %u waits in a %s with mask %08x that not all of these lanes reach",
                    b.idx.x, b.idx.y, t, KIND_NAMES[(int)f->kind], f->mask);
        }
        if (b.at_barrier)
            die("block (%u,%u): %u of %u threads wait at a barrier that the others do not reach",
                b.idx.x, b.idx.y, b.at_barrier, b.threads);
    }
    die("no thread can run");
}

Fiber* pick() {
    if (scheduler.order == 2) {
        scheduler.ready_count--;
        return scheduler.ready[scheduler.ready_head++ % READY_RING];
    }
    unsigned i = scheduler.ready_count - 1;
    if (scheduler.order < 2) i = (unsigned)(next_random() % scheduler.ready_count);
    Fiber* f = ready_at(i);
    ready_at(i) = ready_at(--scheduler.ready_count);
    return f;
}

// ---- warp collectives ----

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

// ---- what kernels call ----

const Dim3& thread_idx() { return scheduler.self->tid; }
const Dim3& block_idx() { return scheduler.self->block->idx; }
const Dim3& block_dim() { return scheduler.block; }
const Dim3& grid_dim() { return scheduler.grid; }

void* shared_array(const void* key, const char* name, size_t bytes) {
    Block& b = *scheduler.self->block;
    for (unsigned i = 0; i < b.array_count; ++i)
        if (b.arrays[i].key == key) return b.arena + b.arrays[i].offset;
    if (b.array_count == MAX_ARRAYS) die("more than %u shared arrays", MAX_ARRAYS);
    b.shared_used += (bytes + 15) / 16 * 16;
    if (b.shared_used > SHARED_LIMIT) die("%zu bytes of shared memory, at most %zu", b.shared_used, SHARED_LIMIT);
    const size_t offset = b.arena_used + RED_ZONE;
    b.arena_used = (offset + bytes + RED_ZONE + 15) / 16 * 16;
    b.arrays[b.array_count++] = {key, name, offset, bytes};
    // Volatile, so that no intercepted memset reports this as a write by one CUDA thread.
    volatile unsigned char* p = reinterpret_cast<unsigned char*>(b.arena) + offset - RED_ZONE;
    for (size_t i = 0; i < bytes + 2 * RED_ZONE; ++i) p[i] = POISON;
#if defined(SHIM_ASAN)
    ASAN_POISON_MEMORY_REGION(b.arena + offset - RED_ZONE, RED_ZONE);
    ASAN_POISON_MEMORY_REGION(b.arena + offset + bytes, RED_ZONE);
#endif
    return b.arena + offset;
}

void barrier() {
    Fiber* self = scheduler.self;
    Block* b = self->block;
    const unsigned generation = b->generation;
    TSAN_RELEASE(&b->barrier_key[generation & 1]);
    self->state = State::AtBarrier;
    if (++b->at_barrier == b->threads) {
        b->at_barrier = 0;
        b->generation++;
        for (unsigned t = 0; t < b->threads; ++t) make_ready(b->fibers[t]);
    }
    to_scheduler(false);
    TSAN_ACQUIRE(&b->barrier_key[generation & 1]);
}

void warp_barrier(unsigned mask) {
    scheduler.self->in[0] = 0;
    collective(mask, Kind::Sync);
}

// A relaxed atomic between two fences orders them on the GPU; here every fence orders with every
// later one, which can only miss a race, not invent one.
void fence() {
    TSAN_ACQUIRE(&scheduler.fence_key);
    TSAN_RELEASE(&scheduler.fence_key);
}

void yield_sometimes() {
    if (next_random() % 4) return;
    make_ready(scheduler.self);
    to_scheduler(false);
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

void launch(Dim3 grid, Dim3 block, const Options& options, const std::function<void()>& body) {
    const unsigned threads = linear(block), blocks = linear(grid);
    if (threads == 0 || threads > MAX_THREADS) die("a block of %u threads", threads);
    if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        die("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
    scheduler.grid = grid;
    scheduler.block = block;
    scheduler.options = options;
    scheduler.random = options.seed;
    scheduler.order = (unsigned)(next_random() % 4);
    scheduler.body = &body;
#if defined(SHIM_TSAN)
    scheduler.tsan = __tsan_get_current_fiber();
#endif
    const unsigned resident = std::max(1u, std::min(options.resident_blocks, MAX_RESIDENT));
    for (unsigned s = 0; s < resident; ++s)
        if (!scheduler.blocks[s].arena)
            scheduler.blocks[s].arena = static_cast<char*>(aligned_alloc(64, (ARENA_BYTES + 63) / 64 * 64));
    // Blocks start in an order of their own: an odd multiplier modulo a power of two.
    unsigned span = 1;
    while (span < blocks) span *= 2;
    const unsigned factor = (unsigned)next_random() | 1, shift = (unsigned)next_random();
    unsigned position = 0, started = 0, running = 0;
    for (;;) {
        for (unsigned s = 0; s < resident && started < blocks; ++s) {
            if (scheduler.blocks[s].active) continue;
            unsigned next = 0;
            do next = (position++ * factor + shift) & (span - 1);
            while (next >= blocks);
            start_block(s, next);
            started++;
            running++;
        }
        if (!running) break;
        if (!scheduler.ready_count) report_stuck();
        Fiber* f = pick();
        to_fiber(f);
        if (f->state == State::Done && f->block->done == f->block->threads) {
            finish_block(*f->block);
            running--;
        }
    }
}

// ---- half types ----

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
