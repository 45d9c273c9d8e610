// Gradients of matrices: sums of outer products over the rows of all steps.

#pragma once

#include "threads.h"

namespace fused_rnn {

// Steps that are packed at a time: a panel and a block of them stay in the L1 cache.
constexpr int64_t PACKED_STEPS = 128;

// Packs values (steps, rows) by blocks of MOST_ROWS rows, which begin `distance` apart.
template <typename T>
void pack_blocks(Rows<const T> a, int64_t steps, int64_t rows, int64_t distance, T *packed) {
  const int64_t whole = rows / MOST_ROWS, rest = rows % MOST_ROWS;
  for (int64_t k = 0; k < steps; ++k) {
    T *to = packed + k * MOST_ROWS;
    for (int64_t block = 0; block < whole; ++block)  // of a size that the compiler knows
      std::memcpy(to + block * distance, a[k] + block * MOST_ROWS, sizeof(T) * MOST_ROWS);
    std::memcpy(to + whole * distance, a[k] + whole * MOST_ROWS, sizeof(T) * rest);
  }
}

// c (rows, columns) += aᵀ · b, for a (steps, rows) and b (steps, columns).
template <typename T>
void add_outer_products(int64_t steps, int64_t rows, int64_t columns, Rows<const T> a,
                        Rows<const T> b, Rows<T> c) {
  // Blocks do not begin a multiple of a page apart, at the same places of the caches.
  const int64_t distance = MOST_ROWS * std::min(steps, PACKED_STEPS) + 64 / sizeof(T);
  const Buffer<T> blocks((rows / MOST_ROWS + 1) * distance);
  const Buffer<T> panel(LANES<T> * PACKED_STEPS);
  for (int64_t begin = 0; begin < steps; begin += PACKED_STEPS) {
    const int64_t inner = std::min(PACKED_STEPS, steps - begin);
    pack_blocks<T>(a.below(begin), inner, rows, distance, blocks.data);
    for (int64_t n = 0; n < columns; n += LANES<T>) {
      pack_panel<T>(b[begin], b.stride, 1, inner, columns, n / LANES<T>, panel.data);
      for (int64_t row = 0; row < rows; row += MOST_ROWS) {
        const Columns<T> block = {blocks.data + row / MOST_ROWS * distance, MOST_ROWS};
        const Rows<T> sums = c.below(row).beside(n);
        add_panel<T>(std::min<int64_t>(MOST_ROWS, rows - row), block, panel.data, inner,
                     std::min(LANES<T>, columns - n), sums, sums);
      }
    }
  }
}

// out (G·N·R, V·C) += Σ over steps of rows (steps, G·N·R) ⊗ source (steps, V·N·C), of each head's
// own rows and columns: a matrix of N heads, see fused_rnn/cells/heads.py.
template <typename T> struct Gradient {
  Threads threads;
  int64_t steps, gates, vectors, heads, rows, columns, by_row, by_source;
  const T *of_rows, *source;
  T *out;
};

template <typename T> void add_gradient(const Gradient<T> &p) {
  const int64_t products = p.gates * p.vectors * p.heads, width = p.vectors * p.columns;
  const int64_t parts = (p.threads.count + products - 1) / products;
  const int64_t blocks = (p.rows + MOST_ROWS - 1) / MOST_ROWS;
  const bool worth_it = p.steps * products * p.rows * p.columns > PRODUCTS_OF_A_REGION;
  p.threads.run(products * parts, worth_it, [&](int64_t i) {
    const int64_t product = i / parts, head = product % p.heads;
    const int64_t vector = product / p.heads % p.vectors, gate = product / p.heads / p.vectors;
    const int64_t begin = blocks * (i % parts) / parts * MOST_ROWS;
    const int64_t end = std::min(blocks * (i % parts + 1) / parts * MOST_ROWS, p.rows);
    if (begin >= end) return;
    const int64_t row = (gate * p.heads + head) * p.rows + begin;
    add_outer_products<T>(
        p.steps, end - begin, p.columns, {p.of_rows + row, p.by_row},
        {p.source + (vector * p.heads + head) * p.columns, p.by_source},
        {p.out + row * width + vector * p.columns, width});
  });
}

}  // namespace fused_rnn
