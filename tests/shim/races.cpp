// Kernels with planted races whose values come out right, and the same kernels without. Built with
// ThreadSanitizer by scripts/shim-sanitize: `races NAME broken` must be reported, `races NAME` must not.
#include "check.hpp"

#include "common/reduce.cuh"

using namespace bdhs;

namespace {

constexpr int THREADS = 128;

struct Run {
    bool broken;
    uint64_t seed;
    shim::Options options() const { return {seed}; }
};

// One thread writes, all read: a barrier lies between. Broken: only a shuffle, which orders nothing.
void broadcast(const Run& run) {
    check::Buffer<int> out(THREADS);
    shim::launch({4}, {THREADS}, run.options(), [&] {
        BDHS_SHARED(int, value, THREADS / 32);
        if (lane_id() == 0) value[warp_id()] = 7;
        if (run.broken) __shfl_sync(FULL_WARP, 0, 0);
        else __syncthreads();
        if (blockIdx.x == 0) out[threadIdx.x] = value[warp_id()];
    });
}

// All threads write the same value. Broken: at the same time.
void same_value(const Run& run) {
    shim::launch({4}, {THREADS}, run.options(), [&] {
        BDHS_SHARED(int, flag, 1);
        if (run.broken || threadIdx.x == 5) flag[0] = 1;
        __syncthreads();
    });
}

// A scratch word used twice. Broken: without the barrier between the last read and the next write.
void reuse(const Run& run) {
    shim::launch({4}, {THREADS}, run.options(), [&] {
        BDHS_SHARED(int, word, 1);
        int sum = 0;
        for (int round = 0; round < 3; ++round) {
            if (threadIdx.x == 0) word[0] = 1;
            __syncthreads();
            sum += word[0];
            if (!run.broken) __syncthreads();
        }
        if (sum != 3) shim::die("a wrong sum");
    });
}

// Lanes pass values through shared memory. Broken: without __syncwarp.
void through_warp(const Run& run) {
    shim::launch({4}, {THREADS}, run.options(), [&] {
        BDHS_SHARED(int, value, THREADS);
        value[threadIdx.x] = 1;
        if (run.broken) __ballot_sync(FULL_WARP, 1);
        else __syncwarp();
        if (value[threadIdx.x ^ 1] == 2) shim::die("a wrong value");
    });
}

// The block with the last ticket adds what all blocks wrote. Broken: without the fences.
void last_ticket(const Run& run) {
    check::Buffer<int> parts(3), total(1);
    check::Buffer<unsigned> ticket(std::vector<unsigned>{0});
    shim::Options options = run.options();
    options.resident_blocks = 3;
    shim::launch({3}, {32}, options, [&] {
        BDHS_SHARED(unsigned, mine, 1);
        if (threadIdx.x == 0) parts[blockIdx.x] = (int)blockIdx.x;
        if (!run.broken) __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) mine[0] = atomicAdd(&ticket[0], 1u);
        __syncthreads();
        if (!run.broken) __threadfence();
        if (mine[0] == 2 && threadIdx.x == 0) total[0] = parts[0] + parts[1] + parts[2];
    });
    if (total[0] != 3) shim::die("a wrong total");
}

}  // namespace

int main(int argc, char** argv) {
    const std::map<std::string, void (*)(const Run&)> kernels = {{"broadcast", broadcast},
                                                                 {"same_value", same_value},
                                                                 {"reuse", reuse},
                                                                 {"through_warp", through_warp},
                                                                 {"last_ticket", last_ticket}};
    if (argc < 2) {
        for (const auto& kernel : kernels) printf("%s\n", kernel.first.c_str());
        return 0;
    }
    const auto kernel = kernels.find(argv[1]);
    if (kernel == kernels.end()) shim::die("no kernel named %s", argv[1]);
    for (uint64_t seed = 1; seed <= 5; ++seed) kernel->second({argc > 2 && std::string(argv[2]) == "broken", seed});
}
