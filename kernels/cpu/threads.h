// PyTorch's own threads, and aligned memory.

#pragma once

#include <cstdint>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "products.h"

namespace fused_rnn {

using Task = void (*)(int64_t begin, int64_t end, void *context);

struct Threads {
  int64_t count;
  int32_t (*parallel_for)(int64_t begin, int64_t end, int64_t grain, Task, void *context);

  // Calls function(i) for i from 0 to count - 1.
  template <typename Function>
  void run(int64_t tasks, bool worth_a_region, Function function) const {
    if (tasks <= 1 || count <= 1 || !parallel_for || !worth_a_region) {
      for (int64_t i = 0; i < tasks; ++i) function(i);
      return;
    }
    parallel_for(
        0, tasks, 1,
        [](int64_t begin, int64_t end, void *context) {
          for (int64_t i = begin; i < end; ++i) (*static_cast<Function *>(context))(i);
        },
        &function);
  }
};

// A parallel region costs a few microseconds, so shorter work runs without one.
constexpr int64_t PRODUCTS_OF_A_REGION = 1 << 20, COPIES_OF_A_REGION = 1 << 17;
// A step's functions take about as long for a value of a gate as these products.
constexpr int64_t PRODUCTS_OF_A_GATE = 32;
// Threads in lockstep wait a few tenths of a microsecond for each other.
constexpr int64_t PRODUCTS_OF_A_PIECE = 1 << 13;
// That no other core uses: of processors of 2026 it is 1 MB or 2, of some 512 KB.
constexpr std::size_t CACHE_OF_A_CORE = 1 << 20;

// Large buffers and results use huge pages where the system has them: each new page costs a page
// fault, and each page that every step reads takes an entry of the TLB.
constexpr std::size_t LARGE_PAGE = 1 << 21;

// For memory that is not written yet, of which the whole pages are meant.
inline void use_large_pages(const void *at, std::size_t bytes) {
#if defined(__linux__)
  const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(at), mask = LARGE_PAGE - 1;
  const std::uintptr_t begin = (first + mask) & ~mask, end = (first + bytes) & ~mask;
  if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

inline std::align_val_t alignment(std::size_t bytes) {
  return std::align_val_t(bytes < 2 * LARGE_PAGE ? VECTOR_BYTES : LARGE_PAGE);
}

inline void *allocate(std::size_t bytes) {
  void *at = ::operator new(bytes, alignment(bytes));
  if (alignment(bytes) == std::align_val_t(LARGE_PAGE)) use_large_pages(at, bytes);
  return at;
}

template <typename T> struct Buffer {
  T *const data;
  const std::size_t bytes;
  explicit Buffer(int64_t size)
      : data(static_cast<T *>(allocate(size * sizeof(T)))), bytes(size * sizeof(T)) {}
  ~Buffer() { ::operator delete(data, alignment(bytes)); }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
};

}  // namespace fused_rnn
