// PyTorch's own threads, aligned memory, and matrices that these pack.

#pragma once

#include <memory>

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

template <typename T> struct Buffer {
  std::unique_ptr<T[]> owner;
  T *data;
  explicit Buffer(int64_t size) : owner(new T[size + VECTOR_BYTES / sizeof(T)]) {
    void *start = owner.get();
    std::size_t room = (size + VECTOR_BYTES / sizeof(T)) * sizeof(T);
    data = static_cast<T *>(std::align(VECTOR_BYTES, size * sizeof(T), start, room));
  }
};

}  // namespace fused_rnn
