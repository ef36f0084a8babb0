// Copies from global to shared memory that go on beside the thread, 16 bytes each. Under the shim they are done at once, so
// that it cannot show a missing wait; barriers are needed there as on the GPU.
#pragma once
#include "platform.cuh"

namespace bdhs {

// 16 bytes from `from`, or zeros; both ends are multiples of 16 bytes. `from` is not read for zeros, but must be an address.
BDHS_DEVICE void copy_async(void* to, const void* from, bool zeros) {
#if defined(__CUDACC__)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(zeros ? 0 : 16)
                 : "memory");
#else
    *static_cast<uint4*>(to) = zeros ? uint4{0, 0, 0, 0} : *static_cast<const uint4*>(from);
#endif
}

// Ends a group: the thread's copies since the last one.
BDHS_DEVICE void commit_copies() {
#if defined(__CUDACC__)
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for the thread's own copies but those of its last PENDING groups. Other threads' copies: a barrier after it.
template <int PENDING> BDHS_DEVICE void wait_copies() {
#if defined(__CUDACC__)
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

}  // namespace bdhs
