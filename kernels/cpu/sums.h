// Products with the fixed matrices: sums over the hidden units of a vector, for each row, or itself.
//
// A sum is taken in double and in the order of the units, so it is the same for every team.

#pragma once

#include "problem.h"

namespace fused_rnn {

// Hidden units from begin to end.
struct Units {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

template <typename T> double sum_of(const T *values, int64_t begin, int64_t end) {
  double sum = 0;
  for (int64_t j = begin; j < end; ++j) sum += values[j];
  return sum;
}

// c = a · the transposed matrix.
template <typename T>
OUT_OF_LINE void set_sums(int64_t matrix, int64_t rows, int64_t hidden, Rows<const T> a, Rows<T> c,
                          Units units) {
  for (int64_t row = 0; row < rows; ++row) {
    if (matrix == IDENTITY) {
      for (int64_t j = units.begin; j < units.end; ++j) c[row][j] = a[row][j];
      continue;
    }
    double sum = sum_of(a[row], 0, matrix == CUMSUM ? units.begin : hidden);
    if (matrix == MEAN) sum /= hidden;
    for (int64_t j = units.begin; j < units.end; ++j)
      c[row][j] = T(matrix == CUMSUM ? sum += a[row][j] : sum);
  }
}

// da += dc · the matrix.
template <typename T>
OUT_OF_LINE void add_sums_back(int64_t matrix, int64_t rows, int64_t hidden, Rows<const T> dc,
                               Rows<T> da, Units units) {
  for (int64_t row = 0; row < rows; ++row) {
    if (matrix == IDENTITY) {
      for (int64_t j = units.begin; j < units.end; ++j) da[row][j] += dc[row][j];
      continue;
    }
    double sum = sum_of(dc[row], matrix == CUMSUM ? units.end : 0, hidden);
    if (matrix == MEAN) sum /= hidden;
    for (int64_t j = units.end; j-- > units.begin;)
      da[row][j] += T(matrix == CUMSUM ? sum += dc[row][j] : sum);
  }
}

}  // namespace fused_rnn
