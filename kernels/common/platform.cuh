// What the kernels ask of their compiler: nvcc for the GPU, or a plain C++ compiler with the host
// shim (tests/shim), which runs the same source on the CPU, one fiber per CUDA thread.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
// Shared arrays come from a macro, so that the shim can put red zones around them and fill them
// with NaN bits at block start.
#define BDHS_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#else
#include "shim.hpp"
#endif

#define BDHS_DEVICE static __device__ __forceinline__

namespace bdhs {

constexpr unsigned FULL_WARP = 0xffffffffu;

BDHS_DEVICE int lane_id() { return (int)(threadIdx.x & 31u); }
BDHS_DEVICE int warp_id() { return (int)(threadIdx.x >> 5); }

BDHS_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace bdhs
