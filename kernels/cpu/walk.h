// A walk: some rows of the batch through the sequence, in one direction, in phases. One thread
// takes it, or a team, each member of which has some of the hidden units.
//
// Rows may end early; they are sorted, the longest first. A row keeps its states at steps beyond
// its length: walking forward in time it has ended, walking backward it has not begun.
//
// Between phases the members exchange what the products read of all units: in the forward the
// source of a stage, in the backward the gradients of its gates. Everything else stays within a
// unit.

#pragma once

#include "problem.h"
#include "sums.h"
#include "team.h"

namespace fused_rnn {

// Memory that the threads of a walk share.
template <typename T> struct Shared {
  Team team;
  const Buffer<T> gates;            // of one step, unless all are kept
  const Buffer<T> vectors;          // computed sources, or their gradients
  std::vector<int64_t> first = {};  // per stage, where its vectors begin

  Shared(const Problem<T> &p, int64_t members, int64_t rows, bool backward)
      : team(members, phases(p, backward)),
        gates(backward || p.pre ? 0 : rows * p.cell->gates * p.hidden),
        vectors(all_vectors(p) * rows * p.hidden) {
    for (int64_t s = 0, number = 0; s < p.cell->stages; number += own_vectors(p, s++))
      first.push_back(number * rows * p.hidden);
  }

 private:
  // The arguments of `Walk`.
  static int64_t phases(const Problem<T> &p, bool backward) {
    const Cell<T> &cell = *p.cell;
    if (cell.stages == 0) return 1;
    if (backward) return 1 + p.steps * cell.stages;
    return p.steps * (cell.stages + cell.begins_with_source());
  }

  static int64_t own_vectors(const Problem<T> &p, int64_t s) {
    return p.cell->source[s] ? p.cell->vectors[s] : 0;
  }

  static int64_t all_vectors(const Problem<T> &p) {
    int64_t sum = 0;
    for (int64_t s = 0; s < p.cell->stages; ++s) sum += own_vectors(p, s);
    return sum;
  }
};

template <typename T> class Walk {
 public:
  // If the walk begins with the layer's input, one thread does it.
  Walk(const Problem<T> &p, const Matrices<T> &matrices, const Shared<T> &shared,
       int64_t direction, int64_t begin, int64_t end)
      : p(p), cell(*p.cell), matrices(matrices), shared(shared), direction(direction),
        begin(begin), all(end - begin), hidden(p.hidden), x_width(cell.x_gates * hidden),
        steps_at_once(p.input ? std::clamp<int64_t>(16 * MOST_ROWS / all, 1, p.steps) : 1),
        inputs(p.input ? steps_at_once * all * p.features : 0),
        input_parts(p.x_bias ? steps_at_once * all * x_width : 0), rows(all) {}

  // Phases of a step: the first stage's source, if it is computed; then per stage its gates and
  // what they determine: the next stage's source, or the states. Without stages no unit waits for
  // another, so all steps are one phase.
  OUT_OF_LINE void forward(int64_t phase, Units units) {
    if (cell.stages == 0) {
      for (int64_t n = 0; n < p.steps; ++n) advance(n, 0, true, units);
      return;
    }
    const int64_t first = cell.begins_with_source(), each = cell.stages + first;
    advance(phase / each, phase % each - first, phase % each == 0, units);
  }

  // From the last step to the first: the gradients of all gates; then per stage their contribution
  // to its source, after the first stage together with the gradients of the previous step's gates.
  OUT_OF_LINE void backward(int64_t phase, Units units) {
    if (cell.stages == 0) {
      for (int64_t n = p.steps - 1; n >= 0; --n) pull_back_step(n, units);
      return;
    }
    if (phase == 0) return pull_back_step(p.steps - 1, units);
    const int64_t n = p.steps - 1 - (phase - 1) / cell.stages;
    const int64_t s = cell.stages - 1 - (phase - 1) % cell.stages;
    pull_back_products(n, s, units);
    if (s == 0 && n > 0) pull_back_step(n - 1, units);
  }

 private:
  // A phase of the n-th step: that of stage s, or of the first stage's source for s = -1.
  OUT_OF_LINE void advance(int64_t n, int64_t s, bool first_phase, Units units) {
    const Rows<T> pre = p.pre ? of(p.pre, at_step(n), cell.gates)
                              : Rows<T>{shared.gates.data, cell.gates * hidden};
    set_rows(n);
    set_states_before(n);
    set_input_part(n, first_phase, units);
    if (rows == 0) return;
    if (first_phase) copy_gap(0, pre, units);
    if (s < 0) return compute_source(0, pre, n, units);
    if (cell.stages > 0) {
      add_products(s, pre, units);
      copy_gap(s + 1, pre, units);
    }
    if (s + 1 < cell.stages) {
      if (cell.source[s + 1]) compute_source(s + 1, pre, n, units);
      return;
    }
    for (int64_t row = 0; row < rows; ++row) {
      arguments(pre, cell.gates, row, n, units);
      for (int64_t i = 0; i < cell.states; ++i) push(out, after(i, n)[row], units);
      cell.step(in.data(), out.data(), units.count(), n, &place);
    }
  }

  int64_t at_step(int64_t n) const { return p.at_step(direction, n); }

  // The leading rows of this walk, whose lengths include the n-th step.
  int64_t rows_at(int64_t n) const {
    return std::clamp<int64_t>(p.rows_at(at_step(n)) - begin, 0, all);
  }
  void set_rows(int64_t n) { rows = p.lengths ? rows_at(n) : all; }

  // The rows of a sequence with this many values per unit.
  template <typename U> Rows<U> of(U *sequence, int64_t time, int64_t values) const {
    const int64_t stride = p.directions * values * hidden;
    return {sequence + (time * p.batch + begin) * stride + direction * values * hidden, stride};
  }

  Rows<T> initial(T *const *tensors, int64_t i) const {
    return {tensors[i] + (direction * p.batch + begin) * hidden, hidden};
  }

  // A state after the n-th step. A state without a kept sequence is updated in place.
  Rows<T> after(int64_t i, int64_t n) const {
    return n >= 0 && p.sequences[i] ? of(p.sequences[i], at_step(n), 1) : initial(p.states, i);
  }

  void set_states_before(int64_t n) {
    before.clear();
    for (int64_t i = 0; i < cell.states; ++i) before.push_back(after(i, n - 1));
  }

  Rows<T> computed(int64_t s, int64_t v) const {
    return {shared.vectors.data + shared.first[s] + v * all * hidden, hidden};
  }

  // x at the n-th step. From the layer's input it is computed for several steps at once.
  void set_input_part(int64_t n, bool first_phase, Units units) {
    if (!p.input) {
      x = of(p.x, at_step(n), cell.x_gates);
      if (!p.x_bias) return;
      if (first_phase) add_x_bias(units);
      x = {input_parts.data, x_width};
      return;
    }
    const int64_t step = n % steps_at_once;
    if (step == 0 && first_phase) {
      const int64_t count = std::min(steps_at_once, p.steps - n);
      input_rows = p.lengths ? std::max(rows, rows_at(n + count - 1)) : all;
      const int64_t width = input_rows * p.features;
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(inputs.data + i * width,
                    p.input + (at_step(n + i) * p.batch + begin) * p.features, width * sizeof(T));
      if (input_rows > 0)
        matrices.packed.add(count * input_rows, {inputs.data, p.features},
                            matrices.of_input(direction), {p.x_bias + direction * x_width, 0},
                            {input_parts.data, x_width});
    }
    x = Rows<const T>{input_parts.data, x_width}.below(step * input_rows);
  }

  // To a copy of x, which belongs to the caller; each member of a team has its own.
  void add_x_bias(Units units) const {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t g = 0; g < cell.x_gates; ++g) {
        const T *from = x[row] + g * hidden, *bias = p.x_bias + direction * x_width + g * hidden;
        T *sum = input_parts.data + row * x_width + g * hidden;
        for (int64_t j = units.begin; j < units.end; ++j) sum[j] = from[j] + bias[j];
      }
  }

  void add_products(int64_t s, Rows<T> pre, Units units) const {
    if (cell.matrix[s] < 0) {
      for (int64_t v = 0; v < cell.vectors[s]; ++v)
        set_sums<T>(cell.matrix[s], rows, hidden, source(s, v),
                 pre.beside((cell.begins[s] + v) * hidden), units);
      return;
    }
    const int64_t group = matrices.group(s);
    for (int64_t g = cell.begins[s]; g < cell.ends[s]; g += group) {
      const Units columns = group == 1 ? units : Units{0, group * hidden};
      const Rows<T> gates = pre.beside(g * hidden);
      Rows<const T> from = start(pre, g, g + group, units);
      for (int64_t v = 0; v < cell.vectors[s]; ++v, from = gates)
        each_head(s, columns, [&](int64_t head, int64_t first, Units own) {
          matrices.packed.add(rows, source(s, v).beside(first),
                              matrices.number(direction, s, v, g, head), from.beside(first),
                              gates.beside(first), own.begin, own.end);
        });
    }
  }

  // Calls add(head, its first unit, those of its columns that lie in `columns`).
  template <typename Add> void each_head(int64_t s, Units columns, Add add) const {
    const int64_t heads = p.heads_of(s), size = hidden / heads;
    if (heads == 1) return add(0, 0, columns);
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t first = head * size;
      const Units own = {std::max<int64_t>(columns.begin - first, 0),
                         std::min(columns.end - first, size)};
      if (own.begin < own.end) add(head, first, own);
    }
  }

  Rows<const T> source(int64_t s, int64_t v) const {
    return cell.source[s] ? computed(s, v) : before[cell.source_states[s][v]];
  }

  // Where the summands of gates first to `last` - 1 are: in x, if they are adjacent there.
  Rows<const T> start(Rows<T> pre, int64_t first, int64_t last, Units units) const {
    bool neighbours = cell.x_index[first] >= 0;
    for (int64_t g = first; g < last; ++g)
      neighbours = neighbours && cell.x_index[g] == cell.x_index[first] + g - first;
    if (neighbours) return x.beside(cell.x_index[first] * hidden);
    for (int64_t g = first; g < last; ++g) copy_start(pre, g, units);
    return pre.beside(first * hidden);
  }

  void copy_gap(int64_t s, Rows<T> pre, Units units) const {
    for (int64_t g = cell.gap_begin(s); g < cell.gap_end(s); ++g) copy_start(pre, g, units);
  }

  OUT_OF_LINE void copy_start(Rows<T> pre, int64_t g, Units units) const {
    const int64_t bias = (direction * cell.bias_gates + cell.bias_index[g]) * hidden;
    for (int64_t row = 0; row < rows; ++row) {
      T *gate = pre[row] + g * hidden + units.begin;
      if (cell.x_index[g] >= 0)
        std::copy_n(x[row] + cell.x_index[g] * hidden + units.begin, units.count(), gate);
      else if (p.bias && cell.bias_index[g] >= 0)
        std::copy_n(p.bias + bias + units.begin, units.count(), gate);
      else
        std::fill_n(gate, units.count(), T(0));
    }
  }

  OUT_OF_LINE void compute_source(int64_t s, Rows<T> pre, int64_t n, Units units) {
    for (int64_t row = 0; row < rows; ++row) {
      arguments(pre, cell.begins[s], row, n, units);
      for (int64_t v = 0; v < cell.vectors[s]; ++v) push(out, computed(s, v)[row], units);
      cell.source[s](in.data(), out.data(), units.count(), n, &place);
    }
  }

  OUT_OF_LINE void pull_back_step(int64_t n, Units units) {
    set_rows(n);
    const Rows<T> pre = of(p.pre, at_step(n), cell.gates);
    set_states_before(n);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < cell.states; ++i) {
        T *dstate = initial(p.dstates, i)[row];
        const T *more = p.dsequences[i] ? of(p.dsequences[i], at_step(n), 1)[row] : nullptr;
        for (int64_t j = units.begin; more && j < units.end; ++j) dstate[j] += more[j];
      }
      arguments(pre, cell.gates, row, n, units);
      for (int64_t i = 0; i < cell.states; ++i) push(in, initial(p.dstates, i)[row], units);
      gradients(cell.gates, row, n, units);
      cell.step_vjp(in.data(), out.data(), units.count(), n, &place);
    }
  }

  OUT_OF_LINE void pull_back_products(int64_t n, int64_t s, Units units) {
    set_rows(n);
    if (rows == 0) return;
    const Rows<T> pre = of(p.pre, at_step(n), cell.gates);
    const Rows<T> dpre = of(p.dpre, at_step(n), cell.gates).beside(cell.begins[s] * hidden);
    for (int64_t v = 0; v < cell.vectors[s]; ++v) {
      const Rows<T> dsource =
          cell.source[s] ? computed(s, v) : initial(p.dstates, cell.source_states[s][v]);
      for (int64_t row = 0; cell.source[s] && row < rows; ++row)
        std::fill_n(dsource[row] + units.begin, units.count(), T(0));
      if (cell.matrix[s] < 0) {
        add_sums_back<T>(cell.matrix[s], rows, hidden, dpre.beside(v * hidden), dsource, units);
        continue;
      }
      const int64_t group = matrices.group(s);
      for (int64_t g = cell.begins[s]; g < cell.ends[s]; g += group)
        each_head(s, units, [&](int64_t head, int64_t first, Units own) {
          const Rows<const T> rows_of = dpre.beside((g - cell.begins[s]) * hidden + first);
          matrices.packed.add(rows, rows_of, matrices.number(direction, s, v, g, head),
                              dsource.beside(first), dsource.beside(first), own.begin, own.end);
        });
    }
    if (!cell.source[s]) return;
    set_states_before(n);
    for (int64_t row = 0; row < rows; ++row) {
      arguments(pre, cell.begins[s], row, n, units);
      for (int64_t v = 0; v < cell.vectors[s]; ++v) push(in, computed(s, v)[row], units);
      gradients(cell.begins[s], row, n, units);
      cell.source_vjp[s](in.data(), out.data(), units.count(), n, &place);
    }
  }

  template <typename U> static void push(std::vector<U> &list, U row, Units units) {
    list.push_back(row + units.begin);
  }
  static void push(std::vector<const T *> &list, T *row, Units units) {
    list.push_back(row + units.begin);
  }

  // Fills `in` with the arguments that every function takes, sets `place`, and empties `out`.
  OUT_OF_LINE void arguments(Rows<T> pre, int64_t gates, int64_t row, int64_t n, Units units) {
    in.clear();
    out.clear();
    for (int64_t g = 0; g < gates; ++g) push(in, pre[row] + g * hidden, units);
    for (const Rows<T> &state : before) push(in, state[row], units);
    for (int64_t i = 0; i < cell.params; ++i)
      push(in, p.params[direction * cell.params + i], units);
    for (int64_t i = 0; i < cell.streams; ++i)
      push(in, of(p.streams[i], at_step(n), 1)[row], units);
    if (!p.key) return;
    const uint64_t seed = p.key[0];
    place = {{uint32_t(seed), uint32_t(seed >> 32)},
             uint32_t(units.begin),
             uint32_t(p.key[2 + begin + row]),
             uint32_t(p.key[1] + at_step(n)),
             uint32_t(direction)};
  }

  OUT_OF_LINE void gradients(int64_t gates, int64_t row, int64_t n, Units units) {
    const Rows<T> dpre = of(p.dpre, at_step(n), cell.gates);
    for (int64_t g = 0; g < gates; ++g) push(out, dpre[row] + g * hidden, units);
    for (int64_t i = 0; i < cell.states; ++i) push(out, initial(p.dstates, i)[row], units);
    for (int64_t i = 0; i < cell.params; ++i) push(out, initial(p.dparams, i)[row], units);
    for (int64_t i = 0; i < cell.streams; ++i)
      push(out, of(p.dstreams[i], at_step(n), 1)[row], units);
  }

  const Problem<T> &p;
  const Cell<T> &cell;
  const Matrices<T> &matrices;
  const Shared<T> &shared;
  const int64_t direction, begin, all, hidden, x_width, steps_at_once;
  const Buffer<T> inputs, input_parts;
  int64_t rows, input_rows = 0;  // of a step, and of the steps whose input parts are computed
  Rows<const T> x = {nullptr, 0};
  std::vector<Rows<T>> before;  // the states before the step
  std::vector<const T *> in;
  std::vector<T *> out;
  Place place = {};
};

}  // namespace fused_rnn
