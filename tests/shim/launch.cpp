// Grids and blocks of the shim: which block and which fiber runs, shared memory, barriers.
#include "runtime.hpp"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

namespace shim {

Scheduler scheduler;

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

uint64_t next_random() { return split_mix(scheduler.random); }

namespace {

unsigned linear(const Dim3& d) { return d.x * d.y * d.z; }

Fiber*& ready_at(unsigned i) { return scheduler.ready[(scheduler.ready_head + i) % READY_RING]; }

}  // namespace

void make_ready(Fiber* f) {
    f->state = State::Ready;
    ready_at(scheduler.ready_count++) = f;
}

namespace {

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

}  // namespace

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

}  // namespace shim
