// The arguments of the loop: a cell and its tensors. And its matrices and biases, packed.
//
// Shapes are those of fused_rnn.ops.recurrence: x (T, B, D, X, H), pre (T, B, D, G, H), bias (D, M,
// H), states (D, B, H), streams and the sequences of states (T, B, D, H). Lists by direction hold,
// for each direction, one entry per matrix or param: weights (R_s·H, V_s·H), params (H). If the call
// begins with the layer's input (T, B, I), there are per direction weights of the input (X·H, I)
// and biases (X·H) and (R·H). Structures and argument lists are those of engine.py. Null means that
// a tensor is absent, where a comment allows it; an empty tensor has another address. A matrix of N
// heads has its blocks only, (R_s·H, V_s·K) with K = H / N, see fused_rnn.cells.heads.

#pragma once

#include "matrices.h"
#include "philox.h"

namespace fused_rnn {

template <typename T>
using Pointwise = void (*)(const T *const *in, T *const *out, int64_t width, int64_t steps,
                           const Place *place);

// The matrices of stages in ``Cell::matrix``, of those that are not among the weights.
enum : int64_t { MEAN = -1, SUM = -2, CUMSUM = -3, IDENTITY = -4 };

template <typename T> struct Cell {
  int64_t gates, states, params, streams, stages;
  int64_t x_gates, bias_gates, matrices;
  const int64_t *x_index, *recurrent_index, *bias_index;  // per gate its index, or -1
  const int64_t *begins, *ends;         // stage s has the gates from begins[s] to ends[s] - 1
  const int64_t *vectors;               // per stage, the number of vectors in its source
  const int64_t *matrix;                // per stage its index in the weights, or a fixed one
  const int64_t *const *source_states;  // per stage their states; null where they are computed
  Pointwise<T> step, step_vjp;
  const Pointwise<T> *source, *source_vjp;  // per stage; null where they are states

  int64_t count(int64_t s) const { return ends[s] - begins[s]; }
  // The gates of no stage that stand before stage s, or for s = stages at the end: the first of
  // them, and the one after the last.
  int64_t gap_begin(int64_t s) const { return s > 0 ? ends[s - 1] : 0; }
  int64_t gap_end(int64_t s) const { return s < stages ? begins[s] : gates; }
  // Whether the source of the first stage is computed.
  bool begins_with_source() const { return stages > 0 && source[0]; }
};

template <typename T> struct Problem {
  const Cell<T> *cell;
  int64_t steps, batch, directions;
  int64_t hidden, features;
  int64_t reverse;
  Threads threads;
  const int64_t *heads;     // per matrix; null for one each
  const T *const *weights;  // by direction
  const T *const *params;   // by direction
  const T *const *streams;
  T *const *states;     // forward: initial ones, then final ones; backward: initial ones
  T *const *sequences;  // forward: null where not kept
  T *pre;               // forward: null where not kept
  const T *x, *bias;    // forward; no bias for zeros
  const T *x_bias;      // (D, X, H), added to x; null for zeros
  const T *input;       // instead of them: the layer's input; otherwise null
  const T *const *input_weights;
  const T *const *input_biases, *const *recurrent_biases;  // null for zeros
  const T *const *dsequences;  // backward, like all below; null for zeros
  T *const *dstates;           // of the final states before the call, of the initial ones after it
  T *dpre;
  T *const *dparams;  // (D, B, H), zeros before
  T *const *dstreams;
  const int64_t *lengths;  // (B), descending, of rows that end early; null where none does
  const int64_t *key;      // (2 + B), see fused_rnn/cells/draws.py; null where nothing is drawn

  // The number of leading rows that are still within their length at a time.
  int64_t rows_at(int64_t time) const {
    if (!lengths) return batch;
    return std::partition_point(lengths, lengths + batch,
                                [time](int64_t length) { return length > time; }) -
           lengths;
  }

  // The time index of the n-th step of a direction.
  int64_t at_step(int64_t direction, int64_t n) const {
    return (reverse != 0) != (direction == 1) ? steps - 1 - n : n;
  }

  // The heads of the matrix of a stage.
  int64_t heads_of(int64_t s) const {
    return heads && cell->matrix[s] >= 0 ? heads[cell->matrix[s]] : 1;
  }
};

// The recurrent matrices, split by direction, stage and vector of the source; then those of the
// input. Matrices of several heads are split by gate and head as well, into their blocks; in the
// forward all may be split by gate, so that each gate begins with a panel.
template <typename T> class Matrices {
 public:
  Matrices(const Problem<T> &p, bool backward, bool by_gate, bool once)
      : p(p), by_gate(by_gate), list(all(backward)), packed(list.matrices, p.threads, once) {}

  // A group is the output of one matrix: the gates of a stage, or one gate.
  int64_t group(int64_t s) const { return groups(s) == 1 ? p.cell->count(s) : 1; }

  int64_t number(int64_t d, int64_t s, int64_t v, int64_t gate, int64_t head) const {
    const int64_t own = groups(s) == 1 ? 0 : gate - p.cell->begins[s];
    return list.starts[d * p.cell->stages + s] + (v * groups(s) + own) * p.heads_of(s) + head;
  }

  int64_t of_input(int64_t d) const { return list.starts.back() + d; }

 private:
  struct List {
    std::vector<Matrix<T>> matrices;
    std::vector<int64_t> starts;  // per direction and stage, its first matrix
  };

  int64_t groups(int64_t s) const {
    return by_gate || p.heads_of(s) > 1 ? p.cell->count(s) : 1;
  }

  List all(bool backward) const {
    const Cell<T> &cell = *p.cell;
    List list;
    std::vector<Matrix<T>> &found = list.matrices;
    for (int64_t d = 0; d < p.directions; ++d)
      for (int64_t s = 0; s < cell.stages; ++s) {
        list.starts.push_back(found.size());
        if (cell.matrix[s] < 0) continue;
        const int64_t heads = p.heads_of(s), size = p.hidden / heads;
        const int64_t width = cell.vectors[s] * size, rows = group(s) * p.hidden / heads;
        const T *weights = p.weights[d * cell.matrices + cell.matrix[s]];
        for (int64_t v = 0; v < cell.vectors[s]; ++v)
          for (int64_t block = 0; block < groups(s) * heads; ++block) {
            const T *at = weights + v * size + block * rows * width;
            if (backward)
              found.push_back({at, width, 1, rows, size});
            else
              found.push_back({at, 1, width, size, rows});
          }
      }
    list.starts.push_back(found.size());
    for (int64_t d = 0; p.input && d < p.directions; ++d)
      found.push_back({p.input_weights[d], 1, p.features, p.features, cell.x_gates * p.hidden});
    return list;
  }

  const Problem<T> &p;
  const bool by_gate;
  const List list;

 public:
  const Packed<T> packed;
};

// The sum of both biases: x (D, X, H) of gates with an input part, and (D, M, H) of the others.
template <typename T> struct Biases {
  const Buffer<T> x, others;

  explicit Biases(const Problem<T> &p)
      : x(p.directions * p.cell->x_gates * p.hidden),
        others(p.directions * p.cell->bias_gates * p.hidden) {
    const Cell<T> &cell = *p.cell;
    for (int64_t d = 0; d < p.directions; ++d)
      for (int64_t g = 0; g < cell.gates; ++g) {
        const int64_t from_x = cell.x_index[g], alone = cell.bias_index[g];
        if (from_x < 0 && alone < 0) continue;
        T *sum = from_x >= 0 ? x.data + (d * cell.x_gates + from_x) * p.hidden
                             : others.data + (d * cell.bias_gates + alone) * p.hidden;
        std::fill_n(sum, p.hidden, T(0));
        if (from_x >= 0 && p.input_biases)
          add(p.input_biases[d] + from_x * p.hidden, p.hidden, sum);
        const int64_t own = cell.recurrent_index[g];
        if (own >= 0 && p.recurrent_biases)
          add(p.recurrent_biases[d] + own * p.hidden, p.hidden, sum);
      }
  }

 private:
  static void add(const T *bias, int64_t width, T *sum) {
    for (int64_t j = 0; j < width; ++j) sum[j] += bias[j];
  }
};

}  // namespace fused_rnn
