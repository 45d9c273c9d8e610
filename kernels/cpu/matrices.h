// Matrices packed for one call, and their products with many rows, computed by several threads.

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
  int64_t panels() const { return panels_of<T>(columns); }
};

template <typename T> class Packed {
 public:
  // A matrix that is used only once is packed panel by panel, when it is used; or not at all.
  Packed(const std::vector<Matrix<T>> &matrices, const Threads &threads, bool once = false)
      : matrices(matrices) {
    std::vector<std::pair<int64_t, int64_t>> panels;
    int64_t size = 0;
    for (std::size_t i = 0; i < matrices.size(); ++i) {
      starts.push_back(size);
      size += packed_size<T>(matrices[i].inner, matrices[i].columns);
      for (int64_t n = 0; n < matrices[i].panels(); ++n) panels.push_back({i, n});
    }
    if (once) return;
    buffer = std::make_unique<Buffer<T>>(size);
    threads.run(panels.size(), size > COPIES_OF_A_REGION, [&](int64_t i) {
      const auto [number, panel] = panels[i];
      pack(number, panel, at(number, panel * LANES<T>));
    });
  }

  // c = from + a · matrix, or only its columns from `begin`, where a panel begins, to `end`.
  void add(int64_t rows, Rows<const T> a, int64_t number, Rows<const T> from, Rows<T> c,
           int64_t begin = 0, int64_t end = -1) const {
    const Matrix<T> &m = matrices[number];
    if (end < 0) end = m.columns;
    if (buffer) {
      add_product<T>(rows, m.inner, end - begin, a, at(number, begin), from.beside(begin),
                     c.beside(begin));
      return;
    }
    if (rows <= FEW_ROWS && m.by_row == 1) {
      add_product_of_columns<T>(rows, m.inner, end - begin, a, m.at + begin * m.by_column,
                                m.by_column, from.beside(begin), c.beside(begin));
      return;
    }
    const Buffer<T> panel(LANES<T> * m.inner);
    for (int64_t n = begin; n < end; n += LANES<T>) {
      pack(number, n / LANES<T>, panel.data);
      add_product<T>(rows, m.inner, std::min(LANES<T>, end - n), a, panel.data, from.beside(n),
                     c.beside(n));
    }
  }

  // The same by several threads.
  void add(const Threads &threads, int64_t rows, Rows<const T> a, int64_t number,
           Rows<const T> from, Rows<T> c) const {
    const Matrix<T> &m = matrices[number];
    const bool worth_it = rows * m.inner * m.columns > PRODUCTS_OF_A_REGION;
    if (rows < threads.count * MOST_ROWS) {
      const int64_t pieces = std::min(threads.count, m.panels());
      threads.run(pieces, worth_it, [&](int64_t i) {
        add(rows, a, number, from, c, m.panels() * i / pieces * LANES<T>,
            std::min(m.panels() * (i + 1) / pieces * LANES<T>, m.columns));
      });
      return;
    }
    // Rows per block: few enough to stay in the cache while the panels pass.
    const int64_t fit = (1 << 18) / sizeof(T) / std::max<int64_t>(m.inner, 1) / MOST_ROWS;
    const int64_t most = std::clamp<int64_t>(fit, 4, 16) * MOST_ROWS;
    const int64_t chunk = std::min((rows + threads.count - 1) / threads.count, most);
    const int64_t chunks = (rows + chunk - 1) / chunk;
    threads.run(chunks, worth_it, [&](int64_t i) {
      const int64_t begin = rows * i / chunks, end = rows * (i + 1) / chunks;
      add(end - begin, a.below(begin), number, from.below(begin), c.below(begin));
    });
  }

  // The number of values in all matrices.
  int64_t size() const {
    int64_t size = 0;
    for (const Matrix<T> &m : matrices) size += m.inner * m.columns;
    return size;
  }

 private:
  T *at(int64_t number, int64_t column) const {
    return buffer->data + starts[number] + column * matrices[number].inner;
  }

  void pack(int64_t number, int64_t panel, T *to) const {
    const Matrix<T> &m = matrices[number];
    pack_panel(m.at, m.by_row, m.by_column, m.inner, m.columns, panel, to);
  }

  const std::vector<Matrix<T>> matrices;
  std::vector<int64_t> starts;
  std::unique_ptr<Buffer<T>> buffer;
};

}  // namespace fused_rnn
