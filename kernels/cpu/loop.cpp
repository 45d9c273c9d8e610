// The loop over time, forward and backward, for every cell and in all directions of a layer. The
// cell itself is given as functions printed by emit.py, each for one row of the batch.
//
// Rows of the batch are independent. So each thread takes some rows through the whole sequence: one
// parallel region per call, and no waiting within a step. Only if there are more threads than rows
// do several share a walk.

#include <optional>

#include "gradients.h"
#include "walk.h"

namespace fused_rnn {

// The number of values in the recurrent matrices of a direction.
template <typename T> int64_t values_of_matrices(const Problem<T> &p) {
  const Cell<T> &cell = *p.cell;
  int64_t sum = 0;
  for (int64_t s = 0; s < cell.stages; ++s)
    if (cell.matrix[s] >= 0)
      sum += cell.count(s) * cell.vectors[s] * p.hidden * (p.hidden / p.heads_of(s));
  return sum;
}

// The number of pieces to split a walk of these rows into, for this number of threads.
template <typename T>
int64_t pieces(const Problem<T> &p, int64_t threads, int64_t rows, bool backward) {
  const Cell<T> &cell = *p.cell;
  // Units that no product connects walk on their own.
  if (cell.stages == 0) return std::min(threads, panels_of<T>(p.hidden));
  for (int64_t s = 0; s < cell.stages; ++s) {
    // Members have whole panels of units, which are then whole panels of each head.
    if (p.heads_of(s) > 1 && p.hidden / p.heads_of(s) % LANES<T>) return 1;
    // A state without a kept sequence is overwritten while other threads may still read it.
    for (int64_t v = 0; !backward && !cell.source[s] && v < cell.vectors[s]; ++v)
      if (!p.sequences[cell.source_states[s][v]]) return 1;
  }
  const int64_t products = rows * values_of_matrices(p) / cell.stages;  // of a stage
  return std::clamp<int64_t>(products / PRODUCTS_OF_A_PIECE, 1,
                             std::min(threads, panels_of<T>(p.hidden)));
}

// The number of blocks of rows to make for the threads of a direction.
template <typename T> int64_t blocks_of_rows(const Problem<T> &p, int64_t share, bool backward) {
  // Threads with rows of their own all read the whole matrices. With few rows this takes longer
  // than the products, unless the matrices stay in each core's cache. Threads that share the rows
  // read a part each, but wait for each other in every step.
  const bool reads_much = values_of_matrices(p) * sizeof(T) > CACHE_OF_A_CORE;
  if (p.batch <= FEW_ROWS && reads_much && pieces(p, share, p.batch, backward) == share) return 1;
  return std::min(p.batch, share);
}

// Writes the final states over the initial ones, which are not read any more.
template <typename T> void set_finals(const Problem<T> &p) {
  const int64_t rows = p.batch * p.hidden;
  for (int64_t i = 0; i < p.cell->states; ++i)
    for (int64_t d = 0; p.sequences[i] && d < p.directions; ++d)
      for (int64_t row = 0; row < p.batch; ++row) {
        int64_t time = p.at_step(d, p.steps - 1);
        if (p.lengths) time = std::min(time, p.lengths[row] - 1);
        if (time < 0) continue;  // a row without steps
        const int64_t place = (time * p.batch + row) * p.directions + d;
        std::copy_n(p.sequences[i] + place * p.hidden, p.hidden,
                    p.states[i] + d * rows + row * p.hidden);
      }
}

// Copies the initial states of rows that end early to the step after their end, where a walk
// backward in time reads them.
template <typename T> void set_beginnings(const Problem<T> &p) {
  for (int64_t i = 0; p.lengths && i < p.cell->states; ++i)
    for (int64_t d = 0; p.sequences[i] && d < p.directions; ++d)
      for (int64_t row = 0; p.at_step(d, 0) != 0 && row < p.batch; ++row) {
        if (p.lengths[row] == p.steps) continue;
        const int64_t place = (p.lengths[row] * p.batch + row) * p.directions + d;
        std::copy_n(p.states[i] + (d * p.batch + row) * p.hidden, p.hidden,
                    p.sequences[i] + place * p.hidden);
      }
}

// The results that have a value for each step: PyTorch has allocated them, and nothing has written.
template <typename T> void use_large_pages_for_results(const Problem<T> &p, bool backward) {
  const int64_t values = p.steps * p.batch * p.directions * p.hidden;
  const auto use = [&](const T *result, int64_t count) {
    if (result) use_large_pages(result, count * values * sizeof(T));
  };
  use(backward ? p.dpre : p.pre, p.cell->gates);
  for (int64_t i = 0; !backward && i < p.cell->states; ++i) use(p.sequences[i], 1);
  for (int64_t i = 0; backward && i < p.cell->streams; ++i) use(p.dstreams[i], 1);
}

// The bounds of blocks of rows that have about the same number of steps in total.
template <typename T> std::vector<int64_t> begins_of(const Problem<T> &p, int64_t blocks) {
  const auto steps = [&](int64_t row) { return p.lengths ? p.lengths[row] : 1; };
  int64_t all = 0, sum = 0, row = 0;
  for (int64_t i = 0; i < p.batch; ++i) all += steps(i);
  std::vector<int64_t> begins = {0};
  for (int64_t block = 1; block < blocks; ++block) {
    // At least one row per block.
    const int64_t most = p.batch - (blocks - block);
    do sum += steps(row++);
    while (row < most && sum * blocks < all * block);
    begins.push_back(row);
  }
  begins.push_back(p.batch);
  return begins;
}

template <typename T> OUT_OF_LINE void run(Problem<T> p, bool backward) {
  const Cell<T> &cell = *p.cell;
  const int64_t share = std::max<int64_t>(1, p.threads.count / p.directions);
  // For a single step, keep the rows together: each weight is then read once.
  const bool once = p.steps == 1 && (p.batch == 1 || p.hidden >= share * LANES<T>);
  const int64_t blocks = once ? std::min<int64_t>(p.batch, 1) : blocks_of_rows(p, share, backward);
  const int64_t walks = p.directions * blocks, width = p.directions * cell.x_gates * p.hidden;
  if (walks * p.hidden == 0) return;
  use_large_pages_for_results(p, backward);
  // Remaining threads help with the walks.
  const int64_t helpers = std::max<int64_t>(1, p.threads.count / walks);
  const int64_t members = pieces(p, helpers, p.batch / blocks, backward);
  const Matrices<T> matrices(p, backward, members > 1 && !backward, once);
  std::optional<Biases<T>> biases;
  if (p.input) {
    biases.emplace(p);
    p.bias = biases->others.data;
    p.x_bias = biases->x.data;
  }
  // All threads share the product of the input.
  const bool at_once = p.input && walks < p.threads.count;
  const Buffer<T> x(at_once ? p.steps * p.batch * width : 0);
  for (int64_t d = 0; at_once && d < p.directions; ++d) {
    const int64_t place = d * cell.x_gates * p.hidden;
    matrices.packed.add(p.threads, p.steps * p.batch, {p.input, p.features}, matrices.of_input(d),
                        {p.x_bias + place, 0}, {x.data + place, width});
  }
  if (at_once) {
    p.x = x.data;
    p.input = nullptr;
    p.x_bias = nullptr;
  }
  // Without a matrix there are the functions of the gates.
  const int64_t work =
      cell.matrices ? matrices.packed.size() : PRODUCTS_OF_A_GATE * cell.gates * p.hidden;
  const bool worth_it = p.steps * p.batch * work > PRODUCTS_OF_A_REGION;
  const std::vector<int64_t> begins = begins_of(p, blocks);
  if (!backward) set_beginnings(p);
  std::vector<std::unique_ptr<Shared<T>>> shared;
  for (int64_t i = 0; i < walks; ++i) {
    const int64_t rows = begins[i % blocks + 1] - begins[i % blocks];
    shared.push_back(std::make_unique<Shared<T>>(p, worth_it ? members : 1, rows, backward));
  }
  const int64_t each = shared[0]->team.members;
  p.threads.run(walks * each, worth_it, [&](int64_t i) {
    const int64_t number = i / each, block = number % blocks;
    Shared<T> &own = *shared[number];
    Walk<T> walk(p, matrices, own, number / blocks, begins[block], begins[block + 1]);
    own.team.run(i % each, [&](int64_t phase, int64_t piece) {
      const int64_t panels = panels_of<T>(p.hidden);
      const Units units = {panels * piece / each * LANES<T>,
                           std::min(panels * (piece + 1) / each * LANES<T>, p.hidden)};
      if (backward)
        walk.backward(phase, units);
      else
        walk.forward(phase, units);
    });
  });
  if (!backward) set_finals(p);
}

// out (rows, columns) = a (rows, inner) · matrix, element (k, n) of which is at
// matrix[k * by_row + n * by_column].
template <typename T> struct Linear {
  Threads threads;
  int64_t rows, inner, columns, by_row, by_column;
  const T *a, *matrix;
  T *out;
};

template <typename T> void multiply(const Linear<T> &p) {
  const Packed<T> packed({{p.matrix, p.by_row, p.by_column, p.inner, p.columns}}, p.threads);
  use_large_pages(p.out, p.rows * p.columns * sizeof(T));
  const Buffer<T> zeros(p.columns);
  std::fill_n(zeros.data, p.columns, T(0));
  packed.add(p.threads, p.rows, {p.a, p.inner}, 0, {zeros.data, 0}, {p.out, p.columns});
}

}  // namespace fused_rnn

// REAL is float or double. Each has its own library, so that the first use builds only one.
extern "C" {
void forward(const fused_rnn::Problem<REAL> *p) { fused_rnn::run(*p, false); }
void backward(const fused_rnn::Problem<REAL> *p) { fused_rnn::run(*p, true); }
void linear(const fused_rnn::Linear<REAL> *p) { fused_rnn::multiply(*p); }
void gradient(const fused_rnn::Gradient<REAL> *p) { fused_rnn::add_gradient(*p); }
}
