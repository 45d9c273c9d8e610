// Products of a few rows with a matrix that every step uses, so it is packed once, or that is used
// once, as it is.
//
// A packed matrix of `inner` rows is a sequence of panels: LANES neighbouring columns, row after
// row, the last panel padded with zeros. A panel is read in order. It is multiplied with a block of
// up to MOST_ROWS rows of the other factor, whose sums stay in registers.

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

// For functions that do much work per call and have several callers: inlining them doubles the
// compile time, at the first use of the package, and gains nothing.
#define OUT_OF_LINE __attribute__((noinline))

// The address of the first of some rows, and the distance to the next.
template <typename T> struct Rows {
  T *first;
  int64_t stride;
  T *operator[](int64_t row) const { return first + row * stride; }
  T at(int64_t row, int64_t k) const { return first[row * stride + k]; }
  Rows below(int64_t row) const { return {first + row * stride, stride}; }
  Rows beside(int64_t column) const { return {first + column, stride}; }
  operator Rows<const T>() const { return {first, stride}; }
};

// The same of which a row's values lie apart, and those of neighbouring rows together.
template <typename T> struct Columns {
  const T *first;
  int64_t stride;
  T at(int64_t row, int64_t k) const { return first[k * stride + row]; }
};

template <typename T> struct Wide {
  typedef T type __attribute__((vector_size(VECTOR_BYTES)));
};
template <typename T> using Vector = typename Wide<T>::type;
template <typename T> constexpr int64_t LANES = VECTORS * VECTOR_BYTES / sizeof(T);

template <typename T> int64_t panels_of(int64_t columns) {
  return (columns + LANES<T> - 1) / LANES<T>;
}

// The number of values of a packed matrix.
template <typename T> int64_t packed_size(int64_t inner, int64_t columns) {
  return panels_of<T>(columns) * LANES<T> * inner;
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif

// The side of a square that a few shuffles transpose; 1 without such shuffles.
#if defined(SHUFFLES)
template <typename T> constexpr int64_t SIDE = 16 / sizeof(T);
typedef float Floats __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(16)));

inline void transpose(const float *from, int64_t stride, float *to, int64_t to_stride) {
  Floats a, b, c, d;
  std::memcpy(&a, from, 16);
  std::memcpy(&b, from + stride, 16);
  std::memcpy(&c, from + 2 * stride, 16);
  std::memcpy(&d, from + 3 * stride, 16);
  const Floats low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Floats high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Floats other_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Floats other_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  a = __builtin_shufflevector(low, other_low, 0, 1, 4, 5);
  b = __builtin_shufflevector(low, other_low, 2, 3, 6, 7);
  c = __builtin_shufflevector(high, other_high, 0, 1, 4, 5);
  d = __builtin_shufflevector(high, other_high, 2, 3, 6, 7);
  std::memcpy(to, &a, 16);
  std::memcpy(to + to_stride, &b, 16);
  std::memcpy(to + 2 * to_stride, &c, 16);
  std::memcpy(to + 3 * to_stride, &d, 16);
}

inline void transpose(const double *from, int64_t stride, double *to, int64_t to_stride) {
  Doubles a, b;
  std::memcpy(&a, from, 16);
  std::memcpy(&b, from + stride, 16);
  const Doubles low = __builtin_shufflevector(a, b, 0, 2);
  const Doubles high = __builtin_shufflevector(a, b, 1, 3);
  std::memcpy(to, &low, 16);
  std::memcpy(to + to_stride, &high, 16);
}
#else
template <typename T> constexpr int64_t SIDE = 1;

template <typename T> void transpose(const T *from, int64_t, T *to, int64_t) { *to = *from; }
#endif

// Packs one panel to `packed`; element (k, n) of the matrix is at[k * by_row + n * by_column].
template <typename T>
void pack_panel(const T *at, int64_t by_row, int64_t by_column, int64_t inner, int64_t columns,
                int64_t panel, T *packed) {
  constexpr int64_t lanes = LANES<T>;
  const int64_t first = panel * lanes, width = std::min(lanes, columns - first);
  at += first * by_column;
  if (width < lanes) std::memset(packed, 0, sizeof(T) * lanes * inner);
  if (by_column == 1) {
    for (int64_t k = 0; k < inner; ++k)
      std::memcpy(packed + k * lanes, at + k * by_row, sizeof(T) * width);
    return;
  }
  constexpr int64_t tile = 128, side = SIDE<T>;  // rows of a tile stay in the L1 cache
  const int64_t whole = by_row == 1 ? width / side * side : 0;  // columns
  for (int64_t begin = 0; begin < inner; begin += tile) {
    const int64_t end = std::min(begin + tile, inner), square = begin + (end - begin) / side * side;
    for (int64_t n = 0; n < whole; n += side) {
      for (int64_t k = begin; k < square; k += side)
        transpose(at + n * by_column + k, by_column, packed + k * lanes + n, lanes);
      for (int64_t k = square; k < end; ++k)
        for (int64_t i = n; i < n + side; ++i) packed[k * lanes + i] = at[k + i * by_column];
    }
    for (int64_t n = whole; n < width; ++n)
      for (int64_t k = begin; k < end; ++k)
        packed[k * lanes + n] = at[k * by_row + n * by_column];
  }
}

// The number of products that are summed before their sum is added to the others: this lowers the
// rounding error of long sums.
constexpr int64_t PART = 256;

// c = from + a · panels, for ROWS rows and all columns of PANELS panels. A is `Rows` or `Columns`.
template <typename T, int ROWS, int PANELS, typename A>
void add_block(A a, const T *panel, int64_t inner, Rows<const T> from, Rows<T> c) {
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
        const T value = a.at(r, k);
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
template <typename T, int ROWS, int PANELS, typename A>
void add_rows(int64_t rows, A a, const T *panel, int64_t inner, Rows<const T> from, Rows<T> c) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return add_rows<T, ROWS - 1, PANELS>(rows, a, panel, inner, from, c);
  add_block<T, ROWS, PANELS>(a, panel, inner, from, c);
}

// The same for up to MOST_ROWS rows and one panel, of which `width` columns are meant.
template <typename T, typename A>
void add_panel(int64_t rows, A a, const T *panel, int64_t inner, int64_t width,
               Rows<const T> from, Rows<T> c) {
  constexpr int64_t lanes = LANES<T>;
  if (width == lanes) return add_rows<T, MOST_ROWS, 1>(rows, a, panel, inner, from, c);
  T edge[MOST_ROWS * lanes] = {};
  for (int64_t r = 0; r < rows; ++r) std::memcpy(edge + r * lanes, from[r], sizeof(T) * width);
  add_rows<T, MOST_ROWS, 1>(rows, a, panel, inner, {edge, lanes}, {edge, lanes});
  for (int64_t r = 0; r < rows; ++r) std::memcpy(c[r], edge + r * lanes, sizeof(T) * width);
}

// c (rows, columns) = from + a (rows, inner) · packed. Each value is summed up in the order of the
// inner dimension and in the same parts, however many rows there are.
template <typename T>
void add_product(int64_t rows, int64_t inner, int64_t columns, Rows<const T> a, const T *packed,
                 Rows<const T> from, Rows<T> c) {
  constexpr int64_t lanes = LANES<T>;
  const int64_t blocks = (rows + MOST_ROWS - 1) / MOST_ROWS;
  int64_t n = 0;
  // With few rows, several panels at once, to have enough independent sums in flight.
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
      add_panel<T>(count, a.below(row), panel, inner, width, from.below(row).beside(n),
                   c.below(row).beside(n));
      row += count;
    }
  }
}

// c = from + a · matrix, whose columns are at `at` and each `by_column` further, for ROWS rows and
// COLUMNS columns. Each value is summed up in the same order, however many there are.
template <typename T, int ROWS, int COLUMNS>
void add_dots(Rows<const T> a, const T *at, int64_t by_column, int64_t inner, Rows<const T> from,
              Rows<T> c) {
  constexpr int64_t step = VECTOR_BYTES / sizeof(T);
  Vector<T> sums[ROWS][COLUMNS] = {};
  int64_t k = 0;
  for (; k + step <= inner; k += step) {
    Vector<T> row[ROWS];
    for (int r = 0; r < ROWS; ++r) std::memcpy(&row[r], a[r] + k, VECTOR_BYTES);
    for (int n = 0; n < COLUMNS; ++n) {
      Vector<T> column;
      std::memcpy(&column, at + n * by_column + k, VECTOR_BYTES);
      for (int r = 0; r < ROWS; ++r) sums[r][n] += row[r] * column;
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int n = 0; n < COLUMNS; ++n) {
      T sum = 0;
      for (int64_t i = 0; i < step; ++i) sum += sums[r][n][i];
      for (int64_t i = k; i < inner; ++i) sum += a[r][i] * at[n * by_column + i];
      c[r][n] = from[r][n] + sum;
    }
}

// Products of a few rows with a matrix that is used once, so that packing it would take longer than
// they do: its columns are read as they are, each of which is contiguous.
constexpr int64_t FEW_ROWS = 4;
template <typename T, int ROWS = FEW_ROWS>
void add_product_of_columns(int64_t rows, int64_t inner, int64_t columns, Rows<const T> a,
                            const T *at, int64_t by_column, Rows<const T> from, Rows<T> c) {
  if constexpr (ROWS > 1)
    if (rows < ROWS)
      return add_product_of_columns<T, ROWS - 1>(rows, inner, columns, a, at, by_column, from, c);
  constexpr int many = ROWS == 1 ? 8 : ROWS == 2 ? 4 : 2;  // sums that stay in registers
  int64_t n = 0;
  for (; n + many <= columns; n += many)
    add_dots<T, ROWS, many>(a, at + n * by_column, by_column, inner, from.beside(n), c.beside(n));
  for (; n < columns; ++n)
    add_dots<T, ROWS, 1>(a, at + n * by_column, by_column, inner, from.beside(n), c.beside(n));
}

}  // namespace fused_rnn
