// A CUDA driver that runs on the CPU: the part of libcuda.so that launching needs, with the kernels of kernels/*.cu run by
// the host shim. With it the crate's launch code, and candle's device and tensors, run without a GPU
// (scripts/cuda-on-cpu). It is for tests: it knows our kernels, a few of candle's, and the product of cuBLAS.
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
    std::vector<size_t> parameters;  // bytes of each; `run` finds them one after another
    void (*run)(const void* args);
    bool candle = false;  // `run` is what the whole grid does
};

// candle's kernels that a network's text part and the engine call, for values of `Bytes` bytes or of type T. Tensors that are
// not packed come with their dims and strides.
uint64_t strided(uint64_t i, uint64_t dims, const uint64_t* sizes, const uint64_t* strides) {
    uint64_t at = 0;
    for (uint64_t d = dims; d-- > 0; i /= sizes[d]) at += i % sizes[d] * strides[d];
    return at;
}

template <size_t Bytes> void copy_strided(const void* args) {
    struct Args {
        uint64_t values, dims;
        const uint64_t* info;
        const uint8_t* from;
        uint8_t* to;
    };
    const auto& a = *static_cast<const Args*>(args);
    for (uint64_t i = 0; i < a.values; ++i) {
        const uint64_t at = a.info ? strided(i, a.dims, a.info, a.info + a.dims) : i;
        memcpy(a.to + i * Bytes, a.from + at * Bytes, Bytes);
    }
}

template <class From, class To> void cast(const void* args) {
    struct Args {
        uint64_t values, dims;
        const uint64_t* info;
        const typename From::storage* from;
        typename To::storage* to;
    };
    const auto& a = *static_cast<const Args*>(args);
    for (uint64_t i = 0; i < a.values; ++i)
        a.to[i] = To::encode(From::decode(a.from[a.info ? strided(i, a.dims, a.info, a.info + a.dims) : i]));
}

template <class T> void add(const void* args) {
    using S = typename T::storage;
    struct Args {
        uint64_t values, dims;
        const uint64_t* info;
        const S *a, *b;
        S* to;
    };
    const auto& a = *static_cast<const Args*>(args);
    for (uint64_t i = 0; i < a.values; ++i) {
        const uint64_t left = a.info ? strided(i, a.dims, a.info, a.info + a.dims) : i;
        const uint64_t right = a.info ? strided(i, a.dims, a.info, a.info + 2 * a.dims) : i;
        a.to[i] = T::encode(T::decode(a.a[left]) + T::decode(a.b[right]));
    }
}

template <size_t Bytes> void copy2d(const void* args) {
    struct Args {
        const uint8_t* from;
        uint8_t* to;
        uint32_t rows, width, from_pitch, to_pitch;
    };
    const auto& a = *static_cast<const Args*>(args);
    for (uint64_t r = 0; r < a.rows; ++r) memcpy(a.to + r * a.to_pitch * Bytes, a.from + r * a.from_pitch * Bytes, a.width * Bytes);
}

template <size_t Bytes> void index_select(const void* args) {
    struct Args {
        uint64_t values, dims;
        const uint64_t* info;
        const uint32_t* ids;
        const uint8_t* from;
        uint8_t* to;
        uint64_t before, rows, ids_count, width;
    };
    const auto& a = *static_cast<const Args*>(args);
    for (uint64_t b = 0; b < a.before; ++b)
        for (uint64_t i = 0; i < a.ids_count; ++i) {
            if (a.ids[i] >= a.rows) shim::die("row %u of %d", a.ids[i], (int)a.rows);
            memcpy(a.to + (b * a.ids_count + i) * a.width * Bytes, a.from + (b * a.rows + a.ids[i]) * a.width * Bytes, a.width * Bytes);
        }
}

#define COPY2D(type, Bytes) {"copy2d_" #type, {8, 8, 4, 4, 4, 4}, copy2d<Bytes>, true}
#define COPY(type, Bytes) {"ucopy_" #type, {8, 8, 8, 8, 8}, copy_strided<Bytes>, true}
#define CAST(from, to, From, To) {"cast_" #from "_" #to, {8, 8, 8, 8, 8}, cast<From, To>, true}
#define ADD(type, T) {"badd_" #type, {8, 8, 8, 8, 8, 8}, add<T>, true}
#define INDEX_SELECT(type, Bytes) {"is_u32_" #type, {8, 8, 8, 8, 8, 8, 8, 8, 8, 8}, index_select<Bytes>, true}

#define KERNEL(name, Args) {#name, {sizeof(Args)}, [](const void* args) { name(*static_cast<const Args*>(args)); }}
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
    COPY(f32, 4), COPY(f16, 2), COPY(bf16, 2), ADD(f32, F32), ADD(f16, F16), ADD(bf16, BF16),
    CAST(f32, f16, F32, F16), CAST(f32, bf16, F32, BF16), CAST(f16, f32, F16, F32), CAST(bf16, f32, BF16, F32),
    COPY2D(f32, 4), COPY2D(f16, 2), COPY2D(bf16, 2), INDEX_SELECT(f32, 4), INDEX_SELECT(f16, 2), INDEX_SELECT(bf16, 2),
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
API cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = *total = (size_t)16 << 30, OK; }
// The pool holds what it has given out, and keeps nothing.
API cuDeviceGetMemPool(void** pool, int device) { return *pool = &contexts[device], OK; }
API cuMemPoolSetAttribute(void*, int attribute, void* value) {
    return attribute == 4 && *static_cast<uint64_t*>(value) == UINT64_MAX ? OK : INVALID_VALUE;
}
API cuMemPoolGetAttribute(void*, int, void* value) { return *static_cast<uint64_t*>(value) = 0, OK; }
API cuMemPoolTrimTo(void*, size_t) { return OK; }
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
    auto args = std::make_shared<std::vector<uint64_t>>();
    size_t end = 0;
    for (size_t bytes : kernel->parameters) {
        args->resize((end + bytes + 7) / 8);
        memcpy(reinterpret_cast<uint8_t*>(args->data()) + end, *parameters++, bytes);
        end += bytes;
    }
    enqueue(stream, [=] {
        if (kernel->candle) return kernel->run(args->data());
        const std::lock_guard<std::mutex> lock(device_lock);
        shim::launch({gx}, {bx}, {++schedule}, [&] { kernel->run(args->data()); });
    });
    return OK;
}

// ---- cuBLAS: products, with sums in double ----

struct Blas {
    void* stream = nullptr;
};

API cublasCreate_v2(void** handle) { return *handle = new Blas, OK; }
API cublasDestroy_v2(void* handle) { return delete static_cast<Blas*>(handle), OK; }
API cublasSetStream_v2(void* handle, void* stream) { return static_cast<Blas*>(handle)->stream = stream, OK; }
API cublasSetWorkspace_v2(void*, void* workspace, size_t bytes) {
    return check_range((uint64_t)(uintptr_t)workspace, bytes, "a workspace"), OK;
}

// Value (i, j) of x, or of x transposed, in columns `pitch` apart.
template <class T> double factor(const void* x, bool transposed, int64_t pitch, int64_t i, int64_t j) {
    const auto* values = static_cast<const typename T::storage*>(x);
    return T::decode(values[transposed ? j + i * pitch : i + j * pitch]);
}

template <class T>
void multiply(bool ta, bool tb, int m, int n, int k, const void* a, int lda, const void* b, int ldb, void* c, int ldc) {
    auto* out = static_cast<typename T::storage*>(c);
    for (int64_t j = 0; j < n; ++j)
        for (int64_t i = 0; i < m; ++i) {
            double sum = 0;
            for (int64_t p = 0; p < k; ++p) sum += factor<T>(a, ta, lda, i, p) * factor<T>(b, tb, ldb, p, j);
            out[i + j * ldc] = T::encode((float)sum);
        }
}

API cublasGemmStridedBatchedEx(void* handle, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int a_type,
                               int lda, long long a_stride, const void* b, int b_type, int ldb, long long b_stride,
                               const void* beta, void* c, int c_type, int ldc, long long c_stride, int count, int compute, int) {
    constexpr int R_32F = 0, R_16F = 2, R_16BF = 14, COMPUTE_32F = 68;
    if (a_type != b_type || b_type != c_type || compute != COMPUTE_32F) return INVALID_VALUE;
    if (*static_cast<const float*>(alpha) != 1 || *static_cast<const float*>(beta) != 0) return INVALID_VALUE;
    const size_t size = c_type == R_32F ? 4 : 2;
    const auto address = [size](const void* p, long long values) { return (uint64_t)(uintptr_t)p + (uint64_t)values * size; };
    for (int i = 0; i < count; ++i) {
        check_range(address(a, i * a_stride), ((size_t)lda * (size_t)((ta ? m : k) - 1) + (size_t)(ta ? k : m)) * size, "a factor");
        check_range(address(b, i * b_stride), ((size_t)ldb * (size_t)((tb ? k : n) - 1) + (size_t)(tb ? n : k)) * size, "a factor");
        check_range(address(c, i * c_stride), ((size_t)ldc * (size_t)(n - 1) + (size_t)m) * size, "a product");
        const auto at = [&](const void* p, long long stride) { return (void*)(uintptr_t)address(p, i * stride); };
        enqueue(static_cast<Blas*>(handle)->stream, [=, a = at(a, a_stride), b = at(b, b_stride), c = at(c, c_stride)] {
            if (c_type == R_32F) multiply<F32>(ta, tb, m, n, k, a, lda, b, ldb, c, ldc);
            else if (c_type == R_16F) multiply<F16>(ta, tb, m, n, k, a, lda, b, ldb, c, ldc);
            else if (c_type == R_16BF) multiply<BF16>(ta, tb, m, n, k, a, lda, b, ldb, c, ldc);
        });
    }
    return OK;
}

// candle makes one for every device.
API curandCreateGenerator(void** generator, int) { return *generator = contexts, OK; }
API curandDestroyGenerator(void*) { return OK; }
API curandSetStream(void*, void*) { return OK; }
API curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return OK; }
