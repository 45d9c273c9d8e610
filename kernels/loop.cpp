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

#include "products.h"

namespace fused_rnn {

template <typename T>
using Pointwise = void (*)(const T *const *in, T *const *out, int64_t width, int64_t steps);
using Task = void (*)(int64_t begin, int64_t end, void *context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Task, void *context);

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
  int64_t reverse, threads;
  ParallelFor parallel_for;
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

// The first of some rows, and how far the next one is.
template <typename T> struct Rows {
  T *first;
  int64_t stride;
  T *operator[](int64_t row) const { return first + row * stride; }
};

template <typename T> struct Buffer {
  std::unique_ptr<T[]> owner;
  T *data;
  explicit Buffer(int64_t size) : owner(new T[size + VECTOR_BYTES / sizeof(T)]) {
    void *start = owner.get();
    std::size_t room = (size + VECTOR_BYTES / sizeof(T)) * sizeof(T);
    data = static_cast<T *>(std::align(VECTOR_BYTES, size * sizeof(T), start, room));
  }
};

template <typename T, typename Function>
void parallel(const Problem<T> &p, int64_t count, bool worth_it, Function function) {
  if (count <= 1 || p.threads <= 1 || !worth_it) {
    for (int64_t i = 0; i < count; ++i) function(i);
    return;
  }
  p.parallel_for(
      0, count, 1,
      [](int64_t begin, int64_t end, void *context) {
        for (int64_t i = begin; i < end; ++i) (*static_cast<Function *>(context))(i);
      },
      &function);
}

// A region costs some microseconds: what takes no longer by itself does not need one.
constexpr int64_t WORTH_A_REGION = 1 << 20;

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
    parallel(p, panels.size(), starts.back() > WORTH_A_REGION / 8,
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
      start_gates(pre, time);
      for (int64_t s = 0; s < cell.stages; ++s) {
        if (cell.source[s]) compute_source(s, pre, before, time, n);
        for (int64_t v = 0; v < cell.vectors[s]; ++v) {
          const Rows<T> source = source_rows(s, v, before);
          add_product(rows, packed.inner(s), packed.columns(s), source.first, source.stride,
                      packed.at(direction, s, v), pre.first + cell.begins[s] * hidden, pre.stride);
        }
      }
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
      if (p.sequences[i]) copy(before[i], finals[i], 1);
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
          add_product(rows, packed.inner(s), packed.columns(s),
                      dpre.first + cell.begins[s] * hidden, dpre.stride,
                      packed.at(direction, s, v), dsource.first, dsource.stride);
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

  // The gates before the products.
  void start_gates(Rows<T> pre, int64_t time) const {
    const Rows<const T> x = of(p.x, time, cell.x_gates);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t g = 0; g < cell.gates; ++g) {
        T *gate = pre[row] + g * hidden;
        if (cell.x_index[g] >= 0)
          std::memcpy(gate, x[row] + cell.x_index[g] * hidden, hidden * sizeof(T));
        else if (p.bias)
          std::memcpy(gate, p.bias + (direction * cell.bias_gates + cell.bias_index[g]) * hidden,
                      hidden * sizeof(T));
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

  void copy(Rows<T> from, Rows<T> to, int64_t values) const {
    for (int64_t row = 0; row < rows; ++row)
      std::memcpy(to[row], from[row], values * hidden * sizeof(T));
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
  const int64_t share = std::max<int64_t>(1, p.threads / p.directions);
  const int64_t blocks = std::min(p.batch, share);  // of rows, in each direction
  const bool worth_it = p.steps * p.batch * p.directions * values > WORTH_A_REGION;
  parallel(p, p.directions * blocks, worth_it, [&](int64_t i) {
    const int64_t block = i % blocks;
    Walk<T> walk(p, packed, i / blocks, p.batch * block / blocks, p.batch * (block + 1) / blocks);
    if (backward)
      walk.backward();
    else
      walk.forward();
  });
}

}  // namespace fused_rnn

extern "C" {
void forward_float(const fused_rnn::Problem<float> *p) { fused_rnn::run(*p, false); }
void forward_double(const fused_rnn::Problem<double> *p) { fused_rnn::run(*p, false); }
void backward_float(const fused_rnn::Problem<float> *p) { fused_rnn::run(*p, true); }
void backward_double(const fused_rnn::Problem<double> *p) { fused_rnn::run(*p, true); }
}
