// Temporary memory that reports when there is none.
#pragma once

#include <stdint.h>
#include <stdlib.h>

namespace {

// Floats at a multiple of 64 bytes; `floats` is null if there is no memory.
struct MemoryOf {
    float* floats;

    explicit MemoryOf(int64_t count) : floats(nullptr), memory(malloc(count * sizeof(float) + 2 * kAlignment)) {
        if (!memory) return;
        const uintptr_t aligned = (reinterpret_cast<uintptr_t>(memory) + kAlignment) / kAlignment * kAlignment;
        floats = reinterpret_cast<float*>(aligned);
    }
    ~MemoryOf() { free(memory); }
    MemoryOf(const MemoryOf&) = delete;
    MemoryOf& operator=(const MemoryOf&) = delete;

private:
    static constexpr uintptr_t kAlignment = 64;
    void* memory;
};

}  // namespace
