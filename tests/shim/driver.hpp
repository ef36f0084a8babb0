// The main function of a driver: random cases against the driver's own reference, or cases from a file whose
// results go to another file, for tests that compare them with the Rust CPU paths.
//
//   shim-OP [CASES [SEED]]        shim-OP replay CASES_FILE RESULTS_FILE
//
// Files are plain values in the machine's byte order; an array is its length in 64 bits, then its elements.
#pragma once
#include "check.hpp"

#include <fstream>
#include <iterator>

namespace check {

class Reader {
public:
    explicit Reader(const char* path) {
        std::ifstream file(path, std::ios::binary);
        if (!file) shim::die("cannot read %s", path);
        bytes_.assign(std::istreambuf_iterator<char>(file), {});
    }
    bool done() const { return at_ == bytes_.size(); }
    template <class V> V value() {
        V v;
        memcpy(&v, take(sizeof v), sizeof v);
        return v;
    }
    template <class V> std::vector<V> array() {
        const uint64_t count = value<uint64_t>();
        std::vector<V> values(count);
        const char* from = take(count * sizeof(V));
        if (count) memcpy(values.data(), from, count * sizeof(V));
        return values;
    }

private:
    const char* take(size_t count) {
        if (bytes_.size() - at_ < count) shim::die("the file of cases ends within a case");
        at_ += count;
        return bytes_.data() + at_ - count;
    }
    std::vector<char> bytes_;
    size_t at_ = 0;
};

class Writer {
public:
    explicit Writer(const char* path) : file_(path, std::ios::binary) {
        if (!file_) shim::die("cannot write %s", path);
    }
    template <class V> void array(const V* values, size_t count) {
        const uint64_t n = count;
        file_.write(reinterpret_cast<const char*>(&n), sizeof n);
        file_.write(reinterpret_cast<const char*>(values), (std::streamsize)(count * sizeof(V)));
    }
    template <class V> void array(const Buffer<V>& values) { array(values.data(), values.size()); }

private:
    std::ofstream file_;
};

struct Driver {
    const char* op;
    uint64_t cases;                          // unless the command line says otherwise
    void (*first)(Suite&, Rng&, uint64_t cases);  // single cases, before the random ones
    void (*random)(Suite&, Rng&);            // one random case
    void (*last)(const Suite&);              // after the report; may be null
    void (*replay)(Suite&, Rng&, Reader&, Writer&);  // one case of a file; null: the driver has no cases from files
};

inline int run(const Driver& driver, int argc, char** argv) {
    if (argc > 1 && !strcmp(argv[1], "replay")) {
        if (!driver.replay) shim::die("%s takes no cases from files", driver.op);
        if (argc != 4) shim::die("usage: %s replay CASES_FILE RESULTS_FILE", argv[0]);
        Suite suite{driver.op, 1};
        Rng rng{1};
        Reader reader(argv[2]);
        Writer writer(argv[3]);
        while (!reader.done()) {
            suite.begin("replay");
            driver.replay(suite, rng, reader, writer);
        }
        return 0;
    }
    const uint64_t cases = argc > 1 ? strtoull(argv[1], nullptr, 10) : driver.cases;
    const uint64_t seed = argc > 2 ? strtoull(argv[2], nullptr, 10) : 1;
    Suite suite{driver.op, seed};
    Rng rng{seed};
    driver.first(suite, rng, cases);
    while (suite.cases < cases) driver.random(suite, rng);
    suite.report();
    if (driver.last) driver.last(suite);
    return 0;
}

}  // namespace check
