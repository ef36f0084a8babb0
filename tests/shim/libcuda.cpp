// A CUDA driver that runs on the CPU: the part of libcuda.so that launching needs, with the kernels of kernels/*.cu run by
// the host shim. With it the crate's launch code, and candle's device and tensors, run without a GPU
// (scripts/cuda-on-cpu). It is for tests: it knows no kernels but ours, and candle's own do not run.
//
// Device memory is host memory: filled with NaN bits when it is given out, with a red zone on either side that is looked at when
// it is freed. Work is done when it is enqueued, so it cannot show a missing wait. During a capture it refuses waits for
// events from outside, as the driver does, and ends the process at copies from or to host memory, which a graph would do
// again when that memory is gone.
//
// FAKE_GPUS, FAKE_CAPABILITY (as 90) and FAKE_DRIVER (as 13000) change what it reports.
#include "shim.hpp"

#include "act.cu"
#include "attend.cu"
#include "cosine.cu"
#include "mask.cu"
#include "norm.cu"
#include "pool.cu"
#include "rope.cu"
#include "token.cu"

#include <chrono>
#include <stdio.h>
#include <stdlib.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

using namespace bdhs;

namespace {

using Status = int;
enum : Status {
    OK = 0,
    INVALID_VALUE = 1,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_ISOLATION = 905,
};

long from_environment(const char* name, long otherwise) {
    const char* text = getenv(name);
    return text ? atol(text) : otherwise;
}

// ---- memory ----

constexpr size_t ZONE = 256;
constexpr uint8_t ZONE_BYTE = 0xA5;
std::mutex memory_lock;
std::map<uint64_t, size_t> allocations;

uint64_t allocate(size_t bytes) {
    const size_t body = (bytes + 255) / 256 * 256;
    auto* p = static_cast<uint8_t*>(aligned_alloc(256, body + 2 * ZONE));
    memset(p, ZONE_BYTE, ZONE);
    memset(p + ZONE, 0xff, bytes);
    memset(p + ZONE + bytes, ZONE_BYTE, body - bytes + ZONE);
    const std::lock_guard<std::mutex> lock(memory_lock);
    allocations[(uint64_t)(uintptr_t)(p + ZONE)] = bytes;
    return (uint64_t)(uintptr_t)(p + ZONE);
}

void release(uint64_t address) {
    size_t bytes;
    {
        const std::lock_guard<std::mutex> lock(memory_lock);
        const auto at = allocations.find(address);
        if (at == allocations.end()) shim::die("freed twice, or never allocated: %llx", (unsigned long long)address);
        bytes = at->second;
        allocations.erase(at);
    }
    auto* p = reinterpret_cast<uint8_t*>((uintptr_t)address);
    for (size_t i = 0; i < ZONE; ++i)
        if (p[-1 - (ptrdiff_t)i] != ZONE_BYTE || p[bytes + i] != ZONE_BYTE)
            shim::die("a kernel wrote outside a buffer of %zu bytes", bytes);
    free(p - ZONE);
}

// Whether all of a range lies in one allocation.
void check_range(uint64_t address, size_t bytes, const char* what) {
    if (bytes == 0) return;
    const std::lock_guard<std::mutex> lock(memory_lock);
    auto at = allocations.upper_bound(address);
    if (at == allocations.begin()) shim::die("%s outside device memory", what);
    --at;
    if (address + bytes > at->first + at->second) shim::die("%s of %zu bytes leaves its buffer", what, bytes);
}

// ---- contexts, streams, graphs ----

struct Context {
    int device;
};

struct Graph {
    std::vector<std::function<void()>> work;
    std::vector<uint64_t> memory;
};

struct Queue {
    Graph* capture = nullptr;
};

struct Event {
    bool recorded = false;
    Graph* within = nullptr;
    std::chrono::steady_clock::time_point at;
};

Context contexts[8] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};
thread_local Context* current = nullptr;
std::mutex device_lock;  // the shim runs one launch at a time
Queue default_queue;

Queue& stream_of(void* handle) {
    // The default stream and that of the thread are one here.
    return (uintptr_t)handle <= 2 ? default_queue : *static_cast<Queue*>(handle);
}

void enqueue(void* handle, std::function<void()> work) {
    Queue& stream = stream_of(handle);
    if (stream.capture) stream.capture->work.push_back(std::move(work));
    else work();
}

// ---- kernels ----

struct Kernel {
    const char* name;
    size_t bytes;
    void (*run)(const void* args);
};

#define KERNEL(name, Args) {#name, sizeof(Args), [](const void* args) { name(*static_cast<const Args*>(args)); }}
#define ATTEND(type, D) KERNEL(attend_##type##_##D, AttendArgs), KERNEL(attend_few_##type##_##D, AttendArgs)
const Kernel KERNELS[] = {
    ATTEND(f32, 64), ATTEND(f32, 128), ATTEND(f32, 256),
    ATTEND(f16, 64), ATTEND(f16, 96), ATTEND(f16, 128), ATTEND(f16, 256),
    ATTEND(bf16, 64), ATTEND(bf16, 96), ATTEND(bf16, 128), ATTEND(bf16, 256),
    KERNEL(write_rows, WriteArgs),
    KERNEL(pool_f32, PoolArgs), KERNEL(pool_f16, PoolArgs), KERNEL(pool_bf16, PoolArgs),
    KERNEL(pool_norm_f32, PoolArgs), KERNEL(pool_norm_f16, PoolArgs), KERNEL(pool_norm_bf16, PoolArgs),
    KERNEL(pool_places, PoolMaskArgs),
    KERNEL(pool_grad_f32, PoolGradArgs), KERNEL(pool_grad_f16, PoolGradArgs), KERNEL(pool_grad_bf16, PoolGradArgs),
    KERNEL(cosine_rows_f32, CosineRowsArgs), KERNEL(cosine_rows_f16, CosineRowsArgs),
    KERNEL(cosine_rows_bf16, CosineRowsArgs),
    KERNEL(cosine_prepare_f32, CosinePrepareArgs), KERNEL(cosine_prepare_f16, CosinePrepareArgs),
    KERNEL(cosine_prepare_bf16, CosinePrepareArgs),
    KERNEL(cosine_matrix_f16, CosineTileArgs), KERNEL(cosine_matrix_bf16, CosineTileArgs),
    KERNEL(cosine_count_f16, CosineTileArgs), KERNEL(cosine_count_bf16, CosineTileArgs),
    KERNEL(cosine_pairs_f16, CosineTileArgs), KERNEL(cosine_pairs_bf16, CosineTileArgs),
    KERNEL(cosine_top_k_f32, TopKArgs), KERNEL(cosine_top_k_f16, TopKArgs), KERNEL(cosine_top_k_bf16, TopKArgs),
    KERNEL(mask_draw, MaskArgs), KERNEL(pack_rows, PackArgs),
    KERNEL(act_bias_f32, ActArgs), KERNEL(act_bias_f16, ActArgs), KERNEL(act_bias_bf16, ActArgs),
    KERNEL(act_gated_f32, ActArgs), KERNEL(act_gated_f16, ActArgs), KERNEL(act_gated_bf16, ActArgs),
    KERNEL(norm_warp_f32, NormArgs), KERNEL(norm_warp_f16, NormArgs), KERNEL(norm_warp_bf16, NormArgs),
    KERNEL(norm_block_f32, NormArgs), KERNEL(norm_block_f16, NormArgs), KERNEL(norm_block_bf16, NormArgs),
    KERNEL(rope_f32, RopeArgs), KERNEL(rope_f16, RopeArgs), KERNEL(rope_bf16, RopeArgs),
    KERNEL(token_sample_f32, TokenArgs), KERNEL(token_sample_f16, TokenArgs), KERNEL(token_sample_bf16, TokenArgs),
};

uint64_t schedule = 1;

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) Status

API cuInit(unsigned) { return from_environment("FAKE_GPUS", 2) > 0 ? OK : NO_DEVICE; }
API cuDriverGetVersion(int* version) { return *version = (int)from_environment("FAKE_DRIVER", 13000), OK; }
API cuDeviceGetCount(int* count) { return *count = (int)from_environment("FAKE_GPUS", 2), OK; }
API cuDeviceGet(int* device, int ordinal) {
    if (ordinal < 0 || ordinal >= from_environment("FAKE_GPUS", 2)) return INVALID_DEVICE;
    return *device = ordinal, OK;
}
API cuDeviceGetName(char* name, int length, int device) {
    snprintf(name, (size_t)length, "host shim %d", device);
    return OK;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
    const int capability = (int)from_environment("FAKE_CAPABILITY", 90);
    switch (attribute) {
        case 16: *value = 4; break;  // multiprocessors
        case 75: *value = capability / 10; break;
        case 76: *value = capability % 10; break;
        default: *value = 1;  // memory pools, among others
    }
    return OK;
}
API cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &contexts[device], OK; }
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuCtxGetCurrent(void** context) { return *context = current, OK; }
API cuCtxSetCurrent(void* context) { return current = static_cast<Context*>(context), OK; }
API cuCtxSynchronize() { return OK; }
API cuGetErrorString(Status status, const char** text) {
    switch (status) {
        case NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
        case CAPTURE_ISOLATION: *text = "dependency on uncaptured work in another stream"; break;
        default: *text = "a status of the host shim";
    }
    return OK;
}
API cuGetErrorName(Status status, const char** text) { return cuGetErrorString(status, text); }

API cuStreamCreate(void** stream, unsigned) { return *stream = new Queue, OK; }
API cuStreamDestroy_v2(void* stream) { return delete static_cast<Queue*>(stream), OK; }
API cuStreamSynchronize(void* stream) { return stream_of(stream).capture ? CAPTURE_INVALIDATED : OK; }
API cuStreamWaitEvent(void* stream, void* event, unsigned) {
    const auto* e = static_cast<Event*>(event);
    const Graph* capture = stream_of(stream).capture;
    return capture && e->recorded && e->within != capture ? CAPTURE_ISOLATION : OK;
}
API cuEventCreate(void** event, unsigned) { return *event = new Event, OK; }
API cuEventDestroy_v2(void* event) { return delete static_cast<Event*>(event), OK; }
API cuEventRecord(void* event, void* stream) {
    *static_cast<Event*>(event) = {true, stream_of(stream).capture, std::chrono::steady_clock::now()};
    return OK;
}
// Launches have run when they return, so the time between two records is theirs, on this CPU.
API cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    const auto *from = static_cast<Event*>(start), *to = static_cast<Event*>(end);
    if (!from->recorded || !to->recorded) return INVALID_HANDLE;
    return *milliseconds = std::chrono::duration<float, std::milli>(to->at - from->at).count(), OK;
}
API cuEventElapsedTime(float* milliseconds, void* start, void* end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}
API cuEventSynchronize(void*) { return OK; }
API cuEventQuery(void*) { return OK; }

API cuStreamBeginCapture_v2(void* stream, int) { return stream_of(stream).capture = new Graph, OK; }
API cuStreamIsCapturing(void* stream, int* status) { return *status = stream_of(stream).capture != nullptr, OK; }
API cuStreamEndCapture(void* stream, void** graph) {
    *graph = stream_of(stream).capture;
    stream_of(stream).capture = nullptr;
    return *graph ? OK : INVALID_HANDLE;
}
API cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long) { return *exec = graph, OK; }
API cuGraphLaunch(void* exec, void* stream) {
    for (const auto& work : static_cast<Graph*>(exec)->work) enqueue(stream, work);
    return OK;
}
API cuGraphUpload(void*, void*) { return OK; }
API cuGraphExecDestroy(void*) { return OK; }
API cuGraphDestroy(void* graph) {
    for (uint64_t address : static_cast<Graph*>(graph)->memory) release(address);
    return delete static_cast<Graph*>(graph), OK;
}

API cuMemAllocAsync(uint64_t* address, size_t bytes, void* stream) {
    *address = allocate(bytes);
    if (Graph* graph = stream_of(stream).capture) {
        // Each launch of a graph finds its memory as it was given out.
        graph->memory.push_back(*address);
        const uint64_t at = *address;
        graph->work.push_back([at, bytes] { memset(reinterpret_cast<void*>((uintptr_t)at), 0xff, bytes); });
    }
    return OK;
}
API cuMemFreeAsync(uint64_t address, void* stream) {
    if (const Graph* graph = stream_of(stream).capture)
        for (uint64_t own : graph->memory)
            if (own == address) return OK;  // with the graph
    release(address);
    return OK;
}
API cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
    check_range(to, bytes, "a fill");
    enqueue(stream, [=] { memset(reinterpret_cast<void*>((uintptr_t)to), value, bytes); });
    return OK;
}
API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    check_range(to, bytes, "an upload");
    if (stream_of(stream).capture) shim::die("an upload from memory that a graph would read later");
    memcpy(reinterpret_cast<void*>((uintptr_t)to), from, bytes);
    return OK;
}
API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    check_range(from, bytes, "a download");
    if (stream_of(stream).capture) shim::die("a download that a graph would do later");
    memcpy(to, reinterpret_cast<const void*>((uintptr_t)from), bytes);
    return OK;
}
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    check_range(to, bytes, "a copy");
    check_range(from, bytes, "a copy");
    enqueue(stream, [=] { memcpy(reinterpret_cast<void*>((uintptr_t)to), reinterpret_cast<const void*>((uintptr_t)from), bytes); });
    return OK;
}

API cuModuleLoadData(void** module, const void*) { return *module = contexts, OK; }
API cuModuleUnload(void*) { return OK; }
API cuModuleGetFunction(void** function, void*, const char* name) {
    for (const Kernel& kernel : KERNELS)
        if (!strcmp(kernel.name, name)) return *function = const_cast<Kernel*>(&kernel), OK;
    return NOT_FOUND;
}
API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned,
                   void* stream, void** parameters, void**) {
    const auto* kernel = static_cast<const Kernel*>(function);
    if (gx == 0 || gy != 1 || gz != 1 || bx == 0 || bx > 1024 || by != 1 || bz != 1) return INVALID_VALUE;
    // As the driver does, the arguments are copied now.
    const auto* bytes = static_cast<const uint8_t*>(parameters[0]);
    auto args = std::make_shared<std::vector<uint64_t>>((kernel->bytes + 7) / 8);
    memcpy(args->data(), bytes, kernel->bytes);
    enqueue(stream, [=] {
        const std::lock_guard<std::mutex> lock(device_lock);
        shim::launch({gx}, {bx}, {++schedule}, [&] { kernel->run(args->data()); });
    });
    return OK;
}

// candle makes one of each for every device.
API cublasCreate_v2(void** handle) { return *handle = contexts, OK; }
API cublasDestroy_v2(void*) { return OK; }
API cublasSetStream_v2(void*, void*) { return OK; }
API curandCreateGenerator(void** generator, int) { return *generator = contexts, OK; }
API curandDestroyGenerator(void*) { return OK; }
API curandSetStream(void*, void*) { return OK; }
API curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return OK; }
