// What the drivers share: random cases, buffers with red zones, comparison, bookkeeping.
#pragma once
#include "shim.hpp"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

namespace check {

struct Rng {
    uint64_t state;
    uint64_t next() { return shim::split_mix(state); }
    uint64_t below(uint64_t n) { return next() % n; }
    int64_t range(int64_t low, int64_t high) { return low + (int64_t)below((uint64_t)(high - low + 1)); }
    double uniform() { return (double)(next() >> 11) * 0x1p-53; }
    bool chance(double p) { return uniform() < p; }
    double normal() {
        return sqrt(-2.0 * log(uniform() + 0x1p-60)) * cos(6.283185307179586 * uniform());
    }
    template <class V> V pick(std::initializer_list<V> values) { return values.begin()[below(values.size())]; }
};

// Which case runs, for messages and for counting.
struct Suite {
    const char* op;
    uint64_t seed;
    uint64_t cases = 0;
    std::string what = {};
    std::map<std::string, uint64_t> counts = {};

    // Cases counted under `key` from here on.
    void begin(const std::string& key) {
        what = key;
        ++cases;
        ++counts[key];
    }
    void fail(const std::string& message) const {
        fprintf(stderr, "%s: case %llu of seed %llu (%s): %s\n", op, (unsigned long long)cases,
                (unsigned long long)seed, what.c_str(), message.c_str());
        fflush(nullptr);
        _exit(1);
    }
    void report() const {
        printf("%s: %llu cases\n", op, (unsigned long long)cases);
        for (const auto& entry : counts)
            printf("  %-44s %llu\n", entry.first.c_str(), (unsigned long long)entry.second);
    }
};

template <class... Parts> std::string text(const char* format, Parts... parts) {
    char buffer[512];
    snprintf(buffer, sizeof buffer, format, parts...);
    return buffer;
}

// Device memory of `count` elements: ends at a guard page, NaN bits around it that must stay, and
// poisoned for AddressSanitizer. `misalign` shifts the start by that many elements.
template <class V> class Buffer {
public:
    Buffer(size_t count, size_t misalign = 0) : count_(count) {
        const size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = count * sizeof(V);
        // Vector loads need 16-byte starts: leave up to 15 bytes of slack behind the end.
        const size_t span = (bytes + 15) / 16 * 16 + (misalign ? 16 : 0) + 64;
        map_bytes_ = (span + page - 1) / page * page + page;
        map_ = static_cast<unsigned char*>(
            mmap(nullptr, map_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (map_ == MAP_FAILED) shim::die("no memory for a buffer");
        end_ = map_ + map_bytes_ - page;
        mprotect(end_, page, PROT_NONE);
        unsigned char* start = end_ - (bytes + 15) / 16 * 16;
        if (misalign) start -= 16 - misalign * sizeof(V) % 16;
        data_ = reinterpret_cast<V*>(start);
        memset(end_ - span, 0xff, span);
        red_start_ = end_ - span;
        ASAN_POISON_MEMORY_REGION(red_start_, start - red_start_);
        ASAN_POISON_MEMORY_REGION(start + bytes, end_ - (start + bytes));
    }
    Buffer(const std::vector<V>& values, size_t misalign = 0) : Buffer(values.size(), misalign) {
        std::copy(values.begin(), values.end(), data_);
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() {
        unsigned char* start = reinterpret_cast<unsigned char*>(data_);
        unsigned char* stop = start + count_ * sizeof(V);
        ASAN_UNPOISON_MEMORY_REGION(red_start_, end_ - red_start_);
        for (unsigned char* p = red_start_; p < end_; ++p)
            if ((p < start || p >= stop) && *p != 0xff)
                shim::die("a write %td bytes from the start of a buffer of %zu bytes", p - start, count_ * sizeof(V));
        munmap(map_, map_bytes_);
    }
    V* data() { return data_; }
    const V* data() const { return data_; }
    size_t size() const { return count_; }
    V& operator[](size_t i) { return data_[i]; }
    const V& operator[](size_t i) const { return data_[i]; }

private:
    size_t count_, map_bytes_;
    unsigned char *map_, *end_, *red_start_;
    V* data_;
};

// `count` elements of address space of which only the last `tail` may be touched: offsets past
// 2^32 without the memory.
template <class V> class SparseBuffer {
public:
    SparseBuffer(size_t count, size_t tail) {
        const size_t page = (size_t)sysconf(_SC_PAGESIZE);
        bytes_ = (count * sizeof(V) + page - 1) / page * page;
        const size_t open = (tail * sizeof(V) + page - 1) / page * page;
        map_ = static_cast<unsigned char*>(mmap(nullptr, bytes_, PROT_NONE,
                                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (map_ == MAP_FAILED) shim::die("no address space for a sparse buffer");
        mprotect(map_ + bytes_ - open, open, PROT_READ | PROT_WRITE);
        data_ = reinterpret_cast<V*>(map_ + bytes_) - count;
    }
    ~SparseBuffer() { munmap(map_, bytes_); }
    SparseBuffer(const SparseBuffer&) = delete;
    SparseBuffer& operator=(const SparseBuffer&) = delete;
    V* data() { return data_; }

private:
    size_t bytes_;
    unsigned char* map_;
    V* data_;
};

}  // namespace check
