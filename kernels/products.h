// Products of a few rows with a matrix that is used at every step, and so is packed once.
//
// A packed matrix of `inner` rows is a sequence of panels: LANES neighbouring columns, row after
// row, the last panel filled up with zeros. A panel is read in order, and by a block of up to
// MOST_ROWS rows of the other factor, whose sums stay in registers.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace fused_rnn {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, VECTORS = 2, MOST_ROWS = 8;  // 16 of 32 registers
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, VECTORS = 2, MOST_ROWS = 6;  // 12 of 16
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, VECTORS = 2, MOST_ROWS = 8;  // 16 of 32
#else
constexpr int VECTOR_BYTES = 16, VECTORS = 2, MOST_ROWS = 4;
#endif

// The first of some rows, and how far the next one is.
template <typename T> struct Rows {
  T *first;
  int64_t stride;
  T *operator[](int64_t row) const { return first + row * stride; }
  Rows below(int64_t row) const { return {first + row * stride, stride}; }
  Rows beside(int64_t column) const { return {first + column, stride}; }
  operator Rows<const T>() const { return {first, stride}; }
};

template <typename T> struct Wide {
  typedef T type __attribute__((vector_size(VECTOR_BYTES)));
};
template <typename T> using Vector = typename Wide<T>::type;
template <typename T> constexpr int64_t LANES = VECTORS * VECTOR_BYTES / sizeof(T);

// How many values a packed matrix takes.
template <typename T> int64_t packed_size(int64_t inner, int64_t columns) {
  return (columns + LANES<T> - 1) / LANES<T> * LANES<T> * inner;
}

// Packs one panel; element (k, n) of the matrix is at[k * by_row + n * by_column].
template <typename T>
void pack_panel(const T *at, int64_t by_row, int64_t by_column, int64_t inner, int64_t columns,
                int64_t panel, T *packed) {
  constexpr int64_t lanes = LANES<T>;
  const int64_t first = panel * lanes, width = std::min(lanes, columns - first);
  packed += first * inner;
  at += first * by_column;
  if (width < lanes) std::memset(packed, 0, sizeof(T) * lanes * inner);
  if (by_column == 1) {
    for (int64_t k = 0; k < inner; ++k)
      std::memcpy(packed + k * lanes, at + k * by_row, sizeof(T) * width);
    return;
  }
  constexpr int64_t tile = 16;  // rows of a transposition that stay in the nearest cache
  for (int64_t begin = 0; begin < inner; begin += tile) {
    const int64_t end = std::min(begin + tile, inner);
    for (int64_t n = 0; n < width; ++n)
      for (int64_t k = begin; k < end; ++k) packed[k * lanes + n] = at[k * by_row + n * by_column];
  }
}

// So many products are added up before their sum joins the others: long sums round less.
constexpr int64_t PART = 256;

// c = from + a · panels, for ROWS rows and all columns of PANELS panels.
template <typename T, int ROWS, int PANELS>
void add_block(Rows<const T> a, const T *panel, int64_t inner, Rows<const T> from, Rows<T> c) {
  constexpr int64_t lanes = LANES<T>, step = VECTOR_BYTES / sizeof(T);
  constexpr int wide = PANELS * VECTORS;
  for (int64_t begin = 0; begin == 0 || begin < inner; begin += PART) {
    Vector<T> sums[ROWS][wide] = {};
    for (int64_t k = begin; k < std::min(begin + PART, inner); ++k) {
      Vector<T> b[wide];
      for (int v = 0; v < wide; ++v) {
        const T *at = panel + v / VECTORS * lanes * inner + k * lanes + v % VECTORS * step;
        std::memcpy(&b[v], at, VECTOR_BYTES);
      }
      for (int r = 0; r < ROWS; ++r) {
        const T value = a[r][k];
        for (int v = 0; v < wide; ++v) sums[r][v] += value * b[v];
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < wide; ++v) {
        Vector<T> before;
        std::memcpy(&before, (begin ? c[r] : from[r]) + v * step, VECTOR_BYTES);
        before += sums[r][v];
        std::memcpy(c[r] + v * step, &before, VECTOR_BYTES);
      }
  }
}

// The same for up to ROWS rows.
template <typename T, int ROWS, int PANELS>
void add_rows(int64_t rows, Rows<const T> a, const T *panel, int64_t inner, Rows<const T> from,
              Rows<T> c) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return add_rows<T, ROWS - 1, PANELS>(rows, a, panel, inner, from, c);
  add_block<T, ROWS, PANELS>(a, panel, inner, from, c);
}

// c (rows, columns) = from + a (rows, inner) · packed. Each value is summed up in the order of the
// inner dimension and in the same parts, however many rows there are.
template <typename T>
void add_product(int64_t rows, int64_t inner, int64_t columns, Rows<const T> a, const T *packed,
                 Rows<const T> from, Rows<T> c) {
  constexpr int64_t lanes = LANES<T>;
  const int64_t blocks = (rows + MOST_ROWS - 1) / MOST_ROWS;
  int64_t n = 0;
  // Few rows take several panels at once, for as many sums as the processor works on at a time.
  constexpr int half = MOST_ROWS / 2, many = 8 / VECTORS;
  if (rows == 1)
    for (; n + many * lanes <= columns; n += many * lanes)
      add_block<T, 1, many>(a, packed + n * inner, inner, from.beside(n), c.beside(n));
  else if (rows <= half)
    for (; n + 2 * lanes <= columns; n += 2 * lanes)
      add_rows<T, half, 2>(rows, a, packed + n * inner, inner, from.beside(n), c.beside(n));
  for (; n < columns; n += lanes) {
    const T *panel = packed + n * inner;
    const int64_t width = std::min(lanes, columns - n);
    for (int64_t i = 0, row = 0; i < blocks; ++i) {
      const int64_t count = (rows - row + blocks - i - 1) / (blocks - i);  // of equal sizes
      const Rows<const T> begin = from.below(row).beside(n);
      const Rows<T> end = c.below(row).beside(n);
      if (width == lanes) {
        add_rows<T, MOST_ROWS, 1>(count, a.below(row), panel, inner, begin, end);
      } else {
        T edge[MOST_ROWS * lanes] = {};
        for (int64_t r = 0; r < count; ++r)
          std::memcpy(edge + r * lanes, begin[r], sizeof(T) * width);
        add_rows<T, MOST_ROWS, 1>(count, a.below(row), panel, inner, {edge, lanes}, {edge, lanes});
        for (int64_t r = 0; r < count; ++r)
          std::memcpy(end[r], edge + r * lanes, sizeof(T) * width);
      }
      row += count;
    }
  }
}

}  // namespace fused_rnn
