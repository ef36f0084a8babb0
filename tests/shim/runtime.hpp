// What the parts of the shim's runtime share: fibers, blocks, the scheduler.
//
//   fibers.cpp       one fiber a CUDA thread, and switching between them
//   launch.cpp       grids, blocks, shared memory, barriers
//   collectives.cpp  what the lanes of a warp do together
//   halves.cpp       half and bfloat16
//
// Under ThreadSanitizer these are compiled without it (and with -DSHIM_TSAN), so that the scheduler's own
// bookkeeping is neither reported nor taken for order between CUDA threads.
#pragma once
#include "shim.hpp"

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

extern Scheduler scheduler;

uint64_t next_random();
// Puts a fiber among those that may run.
void make_ready(Fiber* f);
Fiber* new_fiber();
// A fiber that will start at the kernel's first line.
void prepare(Fiber* f);
// From the scheduler into a fiber and back; `last`: the fiber never runs again.
void to_fiber(Fiber* f);
void to_scheduler(bool last);

}  // namespace shim
