// The loop over time, forward and backward, for every cell and in all directions of a layer. The
// cell itself comes as functions printed from it (emit_c.py), each for one row of the batch.
//
// Rows of the batch do not know of each other. So a thread takes some of them through the whole
// sequence: one parallel region per call, and nobody waits within a step.
//
// Shapes are those of fused_rnn.function: x (T, B, D, X, H), pre (T, B, D, G, H), weights per stage
// (D, R_s·H, V_s·H), bias (D, M, H), states (D, B, H), params (D, H), streams and the sequences of
// states (T, B, D, H). Structures and argument lists as in cpu.py.

#include <memory>
#include <vector>

#include "threads.h"

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
  int64_t steps, batch, directions, hidden;
  int64_t reverse;
  Threads threads;
  const T *const *weights;
  const T *const *params;
  const T *const *streams;
  T *const *states;     // forward: initial ones, then final ones; backward: initial ones
  T *const *sequences;  // forward: null where not kept
  T *pre;               // forward: null where not kept
  const T *x, *bias;    // forward
  const T *const *dsequences;  // from here on backward; null for zeros
  T *const *dstates;           // those of the final states, then those of the initial ones
  T *dpre;
  T *const *dparams;  // (D, B, H), zeros before
  T *const *dstreams;
};

// The recurrent matrices, cut by direction, stage and vector of the source, and packed.
template <typename T> class Packed {
 public:
  Packed(const Problem<T> &p, bool backward) : p(p), backward(backward), starts(1, 0) {
    const Cell<T> &cell = *p.cell;
    for (int64_t d = 0; d < p.directions; ++d)
      for (int64_t s = 0; s < cell.stages; ++s)
        for (int64_t v = 0; v < cell.vectors[s]; ++v) {
          parts.push_back({d, s, v});
          starts.push_back(starts.back() + packed_size<T>(inner(s), columns(s)));
        }
    buffer = std::make_unique<Buffer<T>>(starts.back());
    std::vector<std::pair<int64_t, int64_t>> panels;
    for (std::size_t i = 0; i < parts.size(); ++i)
      for (int64_t n = 0; n * LANES<T> < columns(parts[i].stage); ++n) panels.push_back({i, n});
    p.threads.run(panels.size(), starts.back() > COPIES_OF_A_REGION,
                  [&](int64_t i) { pack(panels[i].first, panels[i].second); });
  }

  int64_t inner(int64_t s) const { return backward ? gates(s) * p.hidden : p.hidden; }
  int64_t columns(int64_t s) const { return backward ? p.hidden : gates(s) * p.hidden; }

  const T *at(int64_t d, int64_t s, int64_t v) const {
    int64_t i = 0;
    while (parts[i].direction != d || parts[i].stage != s || parts[i].vector != v) ++i;
    return buffer->data + starts[i];
  }

 private:
  struct Part {
    int64_t direction, stage, vector;
  };

  int64_t gates(int64_t s) const { return p.cell->begins[s + 1] - p.cell->begins[s]; }

  void pack(int64_t i, int64_t panel) {
    const Part &part = parts[i];
    const int64_t width = p.cell->vectors[part.stage] * p.hidden;
    const T *matrix = p.weights[part.stage] + part.vector * p.hidden +
                      part.direction * gates(part.stage) * p.hidden * width;
    pack_panel(matrix, backward ? width : 1, backward ? 1 : width, inner(part.stage),
               columns(part.stage), panel, buffer->data + starts[i]);
  }

  const Problem<T> &p;
  const bool backward;
  std::vector<Part> parts;
  std::vector<int64_t> starts;
  std::unique_ptr<Buffer<T>> buffer;
};

// Some rows of the batch in one direction.
template <typename T> class Walk {
 public:
  Walk(const Problem<T> &p, const Packed<T> &packed, int64_t direction, int64_t begin, int64_t end)
      : p(p), cell(*p.cell), packed(packed), direction(direction), begin(begin), rows(end - begin),
        hidden(p.hidden) {
    int64_t most = 1;
    for (int64_t s = 0; s < cell.stages; ++s) most = std::max(most, cell.vectors[s]);
    vectors = std::make_unique<Buffer<T>>(most * rows * hidden);
  }

  void forward() {
    const int64_t width = cell.gates * hidden;
    Buffer<T> own(p.pre ? 0 : rows * width);
    std::vector<Rows<T>> before = initial(p.states), after = before;
    for (int64_t n = 0; n < p.steps; ++n) {
      const int64_t time = at_step(n);
      const Rows<T> pre = p.pre ? of(p.pre, time, cell.gates) : Rows<T>{own.data, width};
      for (int64_t s = 0; s < cell.stages; ++s) {
        if (cell.source[s]) compute_source(s, pre, before, time, n);
        const Rows<T> gates = pre.beside(cell.begins[s] * hidden);
        Rows<const T> from = start(pre, time, cell.begins[s], cell.begins[s + 1]);
        for (int64_t v = 0; v < cell.vectors[s]; ++v, from = gates)
          add_product<T>(rows, packed.inner(s), packed.columns(s), source_rows(s, v, before),
                         packed.at(direction, s, v), from, gates);
      }
      for (int64_t g = cell.begins[cell.stages]; g < cell.gates; ++g) copy_start(pre, time, g);
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
        if (cell.source[s]) std::fill_n(vectors->data, cell.vectors[s] * rows * hidden, T(0));
        for (int64_t v = 0; v < cell.vectors[s]; ++v) {
          const Rows<T> dsource = source_rows(s, v, dstates);
          add_product<T>(rows, packed.inner(s), packed.columns(s),
                         dpre.beside(cell.begins[s] * hidden), packed.at(direction, s, v), dsource,
                         dsource);
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

  Rows<T> computed(int64_t v) const { return {vectors->data + v * rows * hidden, hidden}; }

  Rows<T> source_rows(int64_t s, int64_t v, const std::vector<Rows<T>> &states) const {
    return cell.source[s] ? computed(v) : states[cell.source_states[s][v]];
  }

  // Where gates begin to `end` are before the products: in x, if they are neighbours there.
  Rows<const T> start(Rows<T> pre, int64_t time, int64_t begin, int64_t end) const {
    bool neighbours = cell.x_index[begin] >= 0;
    for (int64_t g = begin; g < end; ++g)
      neighbours = neighbours && cell.x_index[g] == cell.x_index[begin] + g - begin;
    if (neighbours) return of(p.x, time, cell.x_gates).beside(cell.x_index[begin] * hidden);
    for (int64_t g = begin; g < end; ++g) copy_start(pre, time, g);
    return pre.beside(begin * hidden);
  }

  void copy_start(Rows<T> pre, int64_t time, int64_t g) const {
    const Rows<const T> x = of(p.x, time, cell.x_gates);
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
    for (int64_t i = 0; i < cell.params; ++i) in.push_back(p.params[i] + direction * hidden);
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
  const Packed<T> &packed;
  const int64_t direction, begin, rows, hidden;
  std::unique_ptr<Buffer<T>> vectors;  // what a source computed, or its gradient
  std::vector<const T *> in;
  std::vector<T *> out;
};

template <typename T> void run(const Problem<T> &p, bool backward) {
  const Packed<T> packed(p, backward);
  int64_t values = 0;  // of the matrices
  for (int64_t s = 0; s < p.cell->stages; ++s)
    values += packed.inner(s) * packed.columns(s) * p.cell->vectors[s];
  const int64_t share = std::max<int64_t>(1, p.threads.count / p.directions);
  const int64_t blocks = std::min(p.batch, share);  // of rows, in each direction
  const bool worth_it = p.steps * p.batch * p.directions * values > PRODUCTS_OF_A_REGION;
  p.threads.run(p.directions * blocks, worth_it, [&](int64_t i) {
    const int64_t block = i % blocks;
    Walk<T> walk(p, packed, i / blocks, p.batch * block / blocks, p.batch * (block + 1) / blocks);
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
  const Buffer<T> packed(packed_size<T>(p.inner, p.columns)), zeros(p.bias ? 0 : p.columns);
  if (!p.bias) std::fill_n(zeros.data, p.columns, T(0));
  const int64_t panels = (p.columns + LANES<T> - 1) / LANES<T>;
  p.threads.run(panels, p.inner * p.columns > COPIES_OF_A_REGION, [&](int64_t i) {
    pack_panel(p.matrix, p.by_row, p.by_column, p.inner, p.columns, i, packed.data);
  });
  // So many rows at a time that they stay in the cache while the panels pass.
  const int64_t fit = (1 << 18) / sizeof(T) / std::max<int64_t>(p.inner, 1) / MOST_ROWS * MOST_ROWS;
  const int64_t share = (p.rows + p.threads.count - 1) / p.threads.count;
  const int64_t chunk = std::min(share, std::clamp<int64_t>(fit, 4 * MOST_ROWS, 16 * MOST_ROWS));
  const int64_t chunks = chunk ? (p.rows + chunk - 1) / chunk : 0;
  p.threads.run(chunks, p.rows * p.inner * p.columns > PRODUCTS_OF_A_REGION, [&](int64_t i) {
    const int64_t begin = p.rows * i / chunks, end = p.rows * (i + 1) / chunks;
    add_product<T>(end - begin, p.inner, p.columns, {p.a + begin * p.inner, p.inner}, packed.data,
                   {p.bias ? p.bias : zeros.data, 0}, {p.out + begin * p.columns, p.columns});
  });
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
