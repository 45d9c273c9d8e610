// Matrices that are packed for one call, and products of many rows with them, by several threads.

#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "threads.h"

namespace fused_rnn {

// Element (k, n) of a matrix of `inner` rows is at[k * by_row + n * by_column].
template <typename T> struct Matrix {
  const T *at;
  int64_t by_row, by_column, inner, columns;
  int64_t panels() const { return (columns + LANES<T> - 1) / LANES<T>; }
};

template <typename T> class Packed {
 public:
  Packed(const std::vector<Matrix<T>> &matrices, const Threads &threads) : matrices(matrices) {
    std::vector<std::pair<int64_t, int64_t>> panels;
    int64_t size = 0;
    for (std::size_t i = 0; i < matrices.size(); ++i) {
      starts.push_back(size);
      size += packed_size<T>(matrices[i].inner, matrices[i].columns);
      for (int64_t n = 0; n < matrices[i].panels(); ++n) panels.push_back({i, n});
    }
    buffer = std::make_unique<Buffer<T>>(size);
    threads.run(panels.size(), size > COPIES_OF_A_REGION, [&](int64_t i) {
      const auto [number, panel] = panels[i];
      const Matrix<T> &m = matrices[number];
      pack_panel(m.at, m.by_row, m.by_column, m.inner, m.columns, panel,
                 buffer->data + starts[number]);
    });
  }

  // c = from + a · the matrix of that number; or some of its columns, from the begin of a panel on.
  void add(int64_t rows, Rows<const T> a, int64_t number, Rows<const T> from, Rows<T> c,
           int64_t begin = 0, int64_t end = -1) const {
    const Matrix<T> &m = matrices[number];
    add_product<T>(rows, m.inner, (end < 0 ? m.columns : end) - begin, a,
                   buffer->data + starts[number] + begin * m.inner, from.beside(begin),
                   c.beside(begin));
  }

  // The same for many rows, which the threads share.
  void add(const Threads &threads, int64_t rows, Rows<const T> a, int64_t number,
           Rows<const T> from, Rows<T> c) const {
    const Matrix<T> &m = matrices[number];
    // So many rows at a time that they stay in the cache while the panels pass.
    const int64_t fit = (1 << 18) / sizeof(T) / std::max<int64_t>(m.inner, 1) / MOST_ROWS;
    const int64_t most = std::clamp<int64_t>(fit, 4, 16) * MOST_ROWS;
    const int64_t chunk = std::min((rows + threads.count - 1) / threads.count, most);
    const int64_t chunks = chunk ? (rows + chunk - 1) / chunk : 0;
    threads.run(chunks, rows * m.inner * m.columns > PRODUCTS_OF_A_REGION, [&](int64_t i) {
      const int64_t begin = rows * i / chunks, end = rows * (i + 1) / chunks;
      add(end - begin, a.below(begin), number, from.below(begin), c.below(begin));
    });
  }

  // How many values of all matrices.
  int64_t size() const {
    int64_t size = 0;
    for (const Matrix<T> &m : matrices) size += m.inner * m.columns;
    return size;
  }

 private:
  const std::vector<Matrix<T>> matrices;
  std::vector<int64_t> starts;
  std::unique_ptr<Buffer<T>> buffer;
};

}  // namespace fused_rnn
