// Fibers of the shim: their stacks, and switching between them and the scheduler.
#include "runtime.hpp"

#include <sys/mman.h>
#include <unistd.h>

namespace shim {

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

namespace {

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

}  // namespace

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

}  // namespace shim
