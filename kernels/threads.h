// PyTorch's own threads, and aligned memory.

#pragma once

#include <new>

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

// A region costs some microseconds: what takes no longer by itself does not need one.
constexpr int64_t PRODUCTS_OF_A_REGION = 1 << 20, COPIES_OF_A_REGION = 1 << 17;
// Threads that work in step wait some tenths of a microsecond for each other.
constexpr int64_t PRODUCTS_OF_A_PIECE = 1 << 14;

template <typename T> struct Buffer {
  T *const data;
  explicit Buffer(int64_t size)
      : data(static_cast<T *>(::operator new(size * sizeof(T), std::align_val_t(VECTOR_BYTES)))) {}
  ~Buffer() { ::operator delete(data, std::align_val_t(VECTOR_BYTES)); }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
};

}  // namespace fused_rnn
