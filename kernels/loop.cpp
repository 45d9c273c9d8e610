// The loop over time, forward and backward, for every cell and in all directions of a layer. The
// cell itself comes as functions printed from it (emit_c.py), each for one row of the batch.
//
// Rows of the batch do not know of each other. So a thread takes some of them through the whole
// sequence: one parallel region per call, and nobody waits within a step.
//
// Shapes are those of fused_rnn.function: x (T, B, D, X, H), pre (T, B, D, G, H), bias (D, M, H),
// states (D, B, H), streams and the sequences of states (T, B, D, H). What is listed by direction
// is per direction, and in it per stage or param: weights (R_s·H, V_s·H), params (H). From the
// layer's input (T, B, I) on, per direction: weights of the input (X·H, I), biases (X·H) and (R·H).
// Structures and argument lists as in cpu.py.

#include <optional>

#include "matrices.h"

namespace fused_rnn {

template <typename T>
using Pointwise = void (*)(const T *const *in, T *const *out, int64_t width, int64_t steps);

template <typename T> struct Cell {
  int64_t gates, states, params, streams, stages;
  int64_t x_gates, bias_gates;
  const int64_t *x_index, *bias_index;  // per gate its place, or -1
  const int64_t *begins;                // stage s has the gates from begins[s] to begins[s + 1]
  const int64_t *vectors;               // per stage, how many its source concatenates
  const int64_t *const *source_states;  // per stage their states; null where they are computed
  Pointwise<T> step, step_vjp;
  const Pointwise<T> *source, *source_vjp;  // per stage; null where they are states
};

template <typename T> struct Problem {
  const Cell<T> *cell;
  int64_t steps, batch, directions, hidden, features;
  int64_t reverse;
  Threads threads;
  const T *const *weights;  // by direction
  const T *const *params;   // by direction
  const T *const *streams;
  T *const *states;     // forward: initial ones, then final ones; backward: initial ones
  T *const *sequences;  // forward: null where not kept
  T *pre;               // forward: null where not kept
  const T *x, *bias;    // forward; no bias for zeros
  const T *input;       // in the place of x, from the layer's input on; otherwise null
  const T *const *input_weights;
  const T *const *input_biases, *const *recurrent_biases;  // null for zeros; the latter: or bias
  const T *const *dsequences;  // from here on backward; null for zeros
  T *const *dstates;           // those of the final states, then those of the initial ones
  T *dpre;
  T *const *dparams;  // (D, B, H), zeros before
  T *const *dstreams;
};

// The recurrent matrices, cut by direction, stage and vector of the source; then those of the input.
template <typename T> class Matrices {
 public:
  const std::vector<int64_t> starts;  // per direction and stage, its first matrix
  const Packed<T> packed;

  Matrices(const Problem<T> &p, bool backward)
      : starts(starts_of(p)), packed(all(p, backward), p.threads), stages(p.cell->stages) {}

  int64_t number(int64_t d, int64_t s, int64_t v) const { return starts[d * stages + s] + v; }
  int64_t of_input(int64_t d) const { return starts.back() + d; }

 private:
  static std::vector<int64_t> starts_of(const Problem<T> &p) {
    std::vector<int64_t> starts(1, 0);
    for (int64_t d = 0; d < p.directions; ++d)
      for (int64_t s = 0; s < p.cell->stages; ++s)
        starts.push_back(starts.back() + p.cell->vectors[s]);
    return starts;
  }

  static std::vector<Matrix<T>> all(const Problem<T> &p, bool backward) {
    const Cell<T> &cell = *p.cell;
    std::vector<Matrix<T>> found;
    for (int64_t d = 0; d < p.directions; ++d)
      for (int64_t s = 0; s < cell.stages; ++s)
        for (int64_t v = 0; v < cell.vectors[s]; ++v) {
          const int64_t width = cell.vectors[s] * p.hidden;
          const int64_t rows = (cell.begins[s + 1] - cell.begins[s]) * p.hidden;
          const T *at = p.weights[d * cell.stages + s] + v * p.hidden;
          if (backward)
            found.push_back({at, width, 1, rows, p.hidden});
          else
            found.push_back({at, 1, width, p.hidden, rows});
        }
    for (int64_t d = 0; p.input && d < p.directions; ++d)
      found.push_back({p.input_weights[d], 1, p.features, p.features, cell.x_gates * p.hidden});
    return found;
  }

  const int64_t stages;
};

// Both biases of each gate added up: x (D, X, H) of those with an input part, and (D, M, H).
template <typename T> struct Biases {
  const Buffer<T> x, others;

  explicit Biases(const Problem<T> &p)
      : x(p.directions * p.cell->x_gates * p.hidden),
        others(p.directions * p.cell->bias_gates * p.hidden) {
    const Cell<T> &cell = *p.cell;
    for (int64_t d = 0; d < p.directions; ++d)
      for (int64_t g = 0; g < cell.gates; ++g) {
        const int64_t from_x = cell.x_index[g], alone = cell.bias_index[g];
        T *sum = from_x >= 0 ? x.data + (d * cell.x_gates + from_x) * p.hidden
                             : others.data + (d * cell.bias_gates + alone) * p.hidden;
        std::fill_n(sum, p.hidden, T(0));
        if (from_x >= 0 && p.input_biases) add(p.input_biases[d] + from_x * p.hidden, p.hidden, sum);
        const bool recurrent = g < cell.begins[cell.stages];
        if (recurrent && p.recurrent_biases) add(p.recurrent_biases[d] + g * p.hidden, p.hidden, sum);
      }
  }

 private:
  static void add(const T *bias, int64_t width, T *sum) {
    for (int64_t j = 0; j < width; ++j) sum[j] += bias[j];
  }
};

// Some rows of the batch in one direction.
template <typename T> class Walk {
 public:
  // x_bias (D, X, H) where the walk begins with the layer's input.
  Walk(const Problem<T> &p, const Matrices<T> &matrices, const T *x_bias, int64_t direction,
       int64_t begin, int64_t end)
      : p(p), cell(*p.cell), matrices(matrices), x_bias(x_bias), direction(direction), begin(begin),
        rows(end - begin), hidden(p.hidden), x_width(cell.x_gates * hidden),
        steps_at_once(std::clamp<int64_t>(16 * MOST_ROWS / rows, 1, p.steps)),
        vectors(most_vectors() * rows * hidden),
        inputs(p.input ? steps_at_once * rows * p.features : 0),
        input_parts(p.input ? steps_at_once * rows * x_width : 0) {}

  void forward() {
    const int64_t width = cell.gates * hidden;
    Buffer<T> own(p.pre ? 0 : rows * width);
    std::vector<Rows<T>> before = initial(p.states), after = before;
    for (int64_t n = 0; n < p.steps; ++n) {
      const int64_t time = at_step(n);
      const Rows<T> pre = p.pre ? of(p.pre, time, cell.gates) : Rows<T>{own.data, width};
      x = input_part(time, n);
      for (int64_t s = 0; s < cell.stages; ++s) {
        if (cell.source[s]) compute_source(s, pre, before, time, n);
        const Rows<T> gates = pre.beside(cell.begins[s] * hidden);
        Rows<const T> from = start(pre, cell.begins[s], cell.begins[s + 1]);
        for (int64_t v = 0; v < cell.vectors[s]; ++v, from = gates)
          matrices.packed.add(rows, source_rows(s, v, before), matrices.number(direction, s, v),
                              from, gates);
      }
      for (int64_t g = cell.begins[cell.stages]; g < cell.gates; ++g) copy_start(pre, g);
      for (int64_t i = 0; i < cell.states; ++i)
        if (p.sequences[i]) after[i] = of(p.sequences[i], time, 1);
      for (int64_t row = 0; row < rows; ++row) {
        arguments(pre, cell.gates, before, row, time);
        for (int64_t i = 0; i < cell.states; ++i) out.push_back(after[i][row]);
        cell.step(in.data(), out.data(), hidden, n);
      }
      before = after;
    }
    const std::vector<Rows<T>> finals = initial(p.states);
    for (int64_t i = 0; i < cell.states; ++i)
      if (p.sequences[i]) copy(before[i], finals[i]);
  }

  void backward() {
    const std::vector<Rows<T>> first = initial(p.states), dstates = initial(p.dstates);
    const std::vector<Rows<T>> dparams = initial(p.dparams, cell.params);
    std::vector<Rows<T>> before(cell.states);
    for (int64_t n = p.steps - 1; n >= 0; --n) {
      const int64_t time = at_step(n);
      const Rows<T> pre = of(p.pre, time, cell.gates), dpre = of(p.dpre, time, cell.gates);
      for (int64_t i = 0; i < cell.states; ++i) {
        before[i] = n ? of(p.sequences[i], at_step(n - 1), 1) : first[i];
        if (p.dsequences[i]) add(of(p.dsequences[i], time, 1), dstates[i]);
      }
      for (int64_t row = 0; row < rows; ++row) {
        arguments(pre, cell.gates, before, row, time);
        for (const Rows<T> &dstate : dstates) in.push_back(dstate[row]);
        gradients(dpre, cell.gates, dstates, dparams, row, time);
        cell.step_vjp(in.data(), out.data(), hidden, n);
      }
      for (int64_t s = cell.stages - 1; s >= 0; --s) {
        if (cell.source[s]) std::fill_n(vectors.data, cell.vectors[s] * rows * hidden, T(0));
        for (int64_t v = 0; v < cell.vectors[s]; ++v) {
          const Rows<T> dsource = source_rows(s, v, dstates);
          matrices.packed.add(rows, dpre.beside(cell.begins[s] * hidden),
                              matrices.number(direction, s, v), dsource, dsource);
        }
        if (!cell.source[s]) continue;
        for (int64_t row = 0; row < rows; ++row) {
          arguments(pre, cell.begins[s], before, row, time);
          for (int64_t v = 0; v < cell.vectors[s]; ++v) in.push_back(computed(v)[row]);
          gradients(dpre, cell.begins[s], dstates, dparams, row, time);
          cell.source_vjp[s](in.data(), out.data(), hidden, n);
        }
      }
    }
  }

 private:
  int64_t most_vectors() const {
    int64_t most = 1;
    for (int64_t s = 0; s < cell.stages; ++s) most = std::max(most, cell.vectors[s]);
    return most;
  }

  int64_t at_step(int64_t n) const {
    return (p.reverse != 0) != (direction == 1) ? p.steps - 1 - n : n;
  }

  // Of a sequence with so many values of each unit.
  template <typename U> Rows<U> of(U *sequence, int64_t time, int64_t values) const {
    const int64_t stride = p.directions * values * hidden;
    return {sequence + (time * p.batch + begin) * stride + direction * values * hidden, stride};
  }

  std::vector<Rows<T>> initial(T *const *tensors, int64_t count = -1) const {
    std::vector<Rows<T>> found;
    for (int64_t i = 0; i < (count < 0 ? cell.states : count); ++i)
      found.push_back({tensors[i] + (direction * p.batch + begin) * hidden, hidden});
    return found;
  }

  Rows<T> computed(int64_t v) const { return {vectors.data + v * rows * hidden, hidden}; }

  Rows<T> source_rows(int64_t s, int64_t v, const std::vector<Rows<T>> &states) const {
    return cell.source[s] ? computed(v) : states[cell.source_states[s][v]];
  }

  // x at a step, which is the n-th. From the layer's input on it is made for some steps at once.
  Rows<const T> input_part(int64_t time, int64_t n) {
    if (!p.input) return of(p.x, time, cell.x_gates);
    const int64_t place = n % steps_at_once * rows;
    if (place == 0) {
      const int64_t count = std::min(steps_at_once, p.steps - n), width = rows * p.features;
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(inputs.data + i * width,
                    p.input + (at_step(n + i) * p.batch + begin) * p.features, width * sizeof(T));
      matrices.packed.add(count * rows, {inputs.data, p.features}, matrices.of_input(direction),
                          {x_bias + direction * x_width, 0}, {input_parts.data, x_width});
    }
    return Rows<const T>{input_parts.data, x_width}.below(place);
  }

  // Where gates begin to `end` are before the products: in x, if they are neighbours there.
  Rows<const T> start(Rows<T> pre, int64_t begin, int64_t end) const {
    bool neighbours = cell.x_index[begin] >= 0;
    for (int64_t g = begin; g < end; ++g)
      neighbours = neighbours && cell.x_index[g] == cell.x_index[begin] + g - begin;
    if (neighbours) return x.beside(cell.x_index[begin] * hidden);
    for (int64_t g = begin; g < end; ++g) copy_start(pre, g);
    return pre.beside(begin * hidden);
  }

  void copy_start(Rows<T> pre, int64_t g) const {
    const int64_t bias = (direction * cell.bias_gates + cell.bias_index[g]) * hidden;
    for (int64_t row = 0; row < rows; ++row) {
      T *gate = pre[row] + g * hidden;
      if (cell.x_index[g] >= 0)
        std::memcpy(gate, x[row] + cell.x_index[g] * hidden, hidden * sizeof(T));
      else if (p.bias)
        std::memcpy(gate, p.bias + bias, hidden * sizeof(T));
      else
        std::fill_n(gate, hidden, T(0));
    }
  }

  void compute_source(int64_t s, Rows<T> pre, const std::vector<Rows<T>> &before, int64_t time,
                      int64_t n) {
    for (int64_t row = 0; row < rows; ++row) {
      arguments(pre, cell.begins[s], before, row, time);
      for (int64_t v = 0; v < cell.vectors[s]; ++v) out.push_back(computed(v)[row]);
      cell.source[s](in.data(), out.data(), hidden, n);
    }
  }

  // Starts `in` with what every function takes, and `out` with nothing.
  void arguments(Rows<T> pre, int64_t gates, const std::vector<Rows<T>> &before, int64_t row,
                 int64_t time) {
    in.clear();
    out.clear();
    for (int64_t g = 0; g < gates; ++g) in.push_back(pre[row] + g * hidden);
    for (const Rows<T> &state : before) in.push_back(state[row]);
    for (int64_t i = 0; i < cell.params; ++i) in.push_back(p.params[direction * cell.params + i]);
    for (int64_t i = 0; i < cell.streams; ++i) in.push_back(of(p.streams[i], time, 1)[row]);
  }

  void gradients(Rows<T> dpre, int64_t gates, const std::vector<Rows<T>> &dstates,
                 const std::vector<Rows<T>> &dparams, int64_t row, int64_t time) {
    for (int64_t g = 0; g < gates; ++g) out.push_back(dpre[row] + g * hidden);
    for (const Rows<T> &dstate : dstates) out.push_back(dstate[row]);
    for (const Rows<T> &dparam : dparams) out.push_back(dparam[row]);
    for (int64_t i = 0; i < cell.streams; ++i) out.push_back(of(p.dstreams[i], time, 1)[row]);
  }

  void add(Rows<const T> from, Rows<T> to) const {
    for (int64_t row = 0; row < rows; ++row) {
      const T *source = from[row];
      T *target = to[row];
      for (int64_t j = 0; j < hidden; ++j) target[j] += source[j];
    }
  }

  void copy(Rows<T> from, Rows<T> to) const {
    for (int64_t row = 0; row < rows; ++row)
      std::memcpy(to[row], from[row], hidden * sizeof(T));
  }

  const Problem<T> &p;
  const Cell<T> &cell;
  const Matrices<T> &matrices;
  const T *const x_bias;
  const int64_t direction, begin, rows, hidden, x_width, steps_at_once;
  const Buffer<T> vectors;  // what a source computed, or its gradient
  const Buffer<T> inputs, input_parts;
  Rows<const T> x = {nullptr, 0};
  std::vector<const T *> in;
  std::vector<T *> out;
};

template <typename T> void run(Problem<T> p, bool backward) {
  const Cell<T> &cell = *p.cell;
  const Matrices<T> matrices(p, backward);
  std::optional<Biases<T>> biases;
  if (p.input) {
    biases.emplace(p);
    if (p.recurrent_biases) p.bias = biases->others.data;
  }
  const int64_t share = std::max<int64_t>(1, p.threads.count / p.directions);
  const int64_t blocks = std::min(p.batch, share);  // of rows, in each direction
  const int64_t walks = p.directions * blocks, width = p.directions * cell.x_gates * p.hidden;
  // More threads than walks share in the product of the input.
  const bool at_once = p.input && walks < p.threads.count;
  const Buffer<T> x(at_once ? p.steps * p.batch * width : 0);
  for (int64_t d = 0; at_once && d < p.directions; ++d) {
    const int64_t place = d * cell.x_gates * p.hidden;
    matrices.packed.add(p.threads, p.steps * p.batch, {p.input, p.features}, matrices.of_input(d),
                        {biases->x.data + place, 0}, {x.data + place, width});
  }
  if (at_once) {
    p.x = x.data;
    p.input = nullptr;
  }
  const bool worth_it = p.steps * p.batch * matrices.packed.size() > PRODUCTS_OF_A_REGION;
  p.threads.run(walks, worth_it, [&](int64_t i) {
    const int64_t block = i % blocks;
    Walk<T> walk(p, matrices, biases ? biases->x.data : nullptr, i / blocks,
                 p.batch * block / blocks, p.batch * (block + 1) / blocks);
    if (backward)
      walk.backward();
    else
      walk.forward();
  });
}

// out (rows, columns) = bias + a (rows, inner) · matrix, element (k, n) of which is at
// matrix[k * by_row + n * by_column].
template <typename T> struct Linear {
  Threads threads;
  int64_t rows, inner, columns, by_row, by_column;
  const T *a, *matrix, *bias;  // bias may be null
  T *out;
};

template <typename T> void multiply(const Linear<T> &p) {
  const Packed<T> packed({{p.matrix, p.by_row, p.by_column, p.inner, p.columns}}, p.threads);
  const Buffer<T> zeros(p.bias ? 0 : p.columns);
  if (!p.bias) std::fill_n(zeros.data, p.columns, T(0));
  packed.add(p.threads, p.rows, {p.a, p.inner}, 0, {p.bias ? p.bias : zeros.data, 0},
             {p.out, p.columns});
}

}  // namespace fused_rnn

extern "C" {
void forward_float(const fused_rnn::Problem<float> *p) { fused_rnn::run(*p, false); }
void forward_double(const fused_rnn::Problem<double> *p) { fused_rnn::run(*p, false); }
void backward_float(const fused_rnn::Problem<float> *p) { fused_rnn::run(*p, true); }
void backward_double(const fused_rnn::Problem<double> *p) { fused_rnn::run(*p, true); }
void linear_float(const fused_rnn::Linear<float> *p) { fused_rnn::multiply(*p); }
void linear_double(const fused_rnn::Linear<double> *p) { fused_rnn::multiply(*p); }
}
