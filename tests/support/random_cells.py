"""Random cells as plain data: a ``Cell`` made of it, and the same equations as a plain loop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from fused_rnn import Bernoulli, Cell, Stage

# An expression: a number, a leaf ("pre", 0), or an operation on expressions.
Expression = float | tuple

UNARY = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "sin": torch.sin}
BINARY = {"+": torch.add, "*": torch.mul}


def evaluate(expression: Expression, leaves: dict[str, tuple[Tensor, ...]]) -> Tensor:
    """The value of an expression."""
    if not isinstance(expression, tuple):
        return torch.tensor(expression)
    name, *arguments = expression
    if name in UNARY:
        return UNARY[name](evaluate(arguments[0], leaves))
    if name in BINARY:
        return BINARY[name](*(evaluate(argument, leaves) for argument in arguments))
    if name == "t":
        return 1 / (1 + leaves["t"])
    return leaves[name][arguments[0]]


@dataclass(frozen=True)
class RandomStage:
    """A recurrent product.

    Args:
        gates: their number.
        source: indices of states, or expressions.
        computed: whether ``source`` has expressions.
        heads: of its matrix.
        weight: the function of ``Stage.weight`` by its name in ``WEIGHTS``, or that of a fixed
            matrix, which gives a gate for each vector of the source.
    """

    gates: int
    source: tuple
    computed: bool
    heads: int = 1
    weight: str | None = None

    @property
    def fixed(self) -> bool:
        return self.weight in ("mean", "sum", "cumsum", "identity")


WEIGHTS = {
    None: None,
    "half": lambda w: w / 2,
    "flipped": lambda w: w - w.flip(0),
    "squared": lambda w: w * w.tanh(),
}


@dataclass(frozen=True)
class RandomCell:
    """The wiring and the expressions of a cell; all names follow from the numbers.

    Args:
        free: gates without a product before each stage, and after the last.
        without_input: gates of stages that have no input part.
        order: of the gates with an input part in ``x_gates``.
        step: an expression per state.
        drawn: streams that are drawn, after those that are given.
    """

    stages: tuple[RandomStage, ...]
    free: tuple[int, ...]
    without_input: frozenset[int]
    order: tuple[int, ...]
    states: int
    params: int
    streams: int
    reads_t: bool
    step: tuple[Expression, ...]
    drawn: int = 0

    @property
    def spans(self) -> tuple[range, ...]:
        """The gates of each stage."""
        found, end = [], 0
        for free, stage in zip(self.free, self.stages, strict=False):
            found.append(range(end + free, end + free + stage.gates))
            end = found[-1].stop
        return tuple(found)

    @property
    def gates(self) -> int:
        return sum(self.free) + sum(stage.gates for stage in self.stages)

    @property
    def biased(self) -> tuple[int, ...]:
        """The gates whose only bias is the recurrent one."""
        pairs = zip(self.spans, self.stages, strict=True)
        fixed = {g for span, stage in pairs if stage.fixed for g in span}
        return tuple(sorted(self.without_input - fixed))

    def matrix(self, v: dict[str, Tensor], s: int) -> Tensor:
        """The matrix of a stage that is multiplied, from the one that is learned."""
        function = WEIGHTS[self.stages[s].weight]
        return v[f"R{s}"] if function is None else function(v[f"R{s}"])

    def cell(self) -> Cell:
        """The cell of this package."""
        more = [
            ("params", self.params),
            ("streams", self.streams + self.drawn),
            ("t", self.reads_t),
        ]
        asked = ("pre", "state", *(name for name, count in more if count))

        def function(expressions):
            def run(*given):
                leaves = dict(zip(asked, given, strict=True))
                like = leaves["state"][0]
                return tuple(evaluate(e, leaves) + 0 * like for e in expressions)

            text = f"lambda {', '.join(asked)}: run({', '.join(asked)})"
            return eval(text, {"run": run})

        gates = [f"g{i}" for i in range(self.gates)]
        kinds = ("step", "sequence")
        drawn = [Bernoulli(f"d{i}", 0.4, kinds[i % 2]) for i in range(self.drawn)]
        return Cell(
            "random_cell",
            function(self.step),
            gates=gates,
            states=[f"s{i}" for i in range(self.states)],
            params=[f"p{i}" for i in range(self.params)],
            streams=[*(f"f{i}" for i in range(self.streams)), *drawn],
            x_gates=[gates[i] for i in self.order],
            stages=[
                Stage(
                    gates[span.start : span.stop],
                    function(stage.source) if stage.computed else [f"s{i}" for i in stage.source],
                    stage.weight if stage.fixed else WEIGHTS[stage.weight],
                )
                for span, stage in zip(self.spans, self.stages, strict=True)
            ],
        )

    def values(self, T: int, B: int, H: int, seed: int = 0) -> dict[str, Tensor]:
        """Random tensors in float64 by name, as leaves."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

        v = {"x": normal(T, B, len(self.order), H)}
        for s, stage in enumerate(self.stages):
            if stage.fixed:
                continue
            v[f"R{s}"] = normal(stage.gates * H, len(stage.source) * H // stage.heads)
        if self.biased:
            v["bias"] = normal(len(self.biased), H)
        v |= {f"s{i}": normal(B, H) for i in range(self.states)}
        v |= {f"p{i}": normal(H) for i in range(self.params)}
        v |= {f"f{i}": normal(T, B, H) for i in range(self.streams)}
        return v

    def loop(
        self, v: dict[str, Tensor], reverse: bool, drawn: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The equations, one gate and one head at a time: sequences and finals of the states.

        Args:
            drawn: (T, B, H) each.
        """
        steps = v["x"].shape[0]
        state = tuple(v[f"s{i}"] for i in range(self.states))
        rows = {}
        for t in range(steps):
            time = steps - 1 - t if reverse else t
            leaves = {
                "state": state,
                "params": tuple(v[f"p{i}"] for i in range(self.params)),
                "streams": (
                    *(v[f"f{i}"][time] for i in range(self.streams)),
                    *(stream[time] for stream in drawn),
                ),
                "t": torch.tensor(float(t), dtype=torch.float64),
            }
            own: list = [0] * self.gates
            for place, g in enumerate(self.biased):
                own[g] = v["bias"][place]
            for place, g in enumerate(self.order):
                own[g] = v["x"][time, :, place]
            pre = []
            for s, (span, stage) in enumerate(zip(self.spans, self.stages, strict=True)):
                pre += own[len(pre) : span.start]
                vectors = [state[i] for i in stage.source] if not stage.computed else None
                if vectors is None:
                    leaves["pre"] = tuple(pre)
                    vectors = [evaluate(e, leaves) + 0 * state[0] for e in stage.source]
                if stage.weight in ("mean", "sum"):
                    sums = [v.sum(-1, keepdim=True).expand_as(v) for v in vectors]
                    if stage.weight == "mean":
                        sums = [total / total.shape[-1] for total in sums]
                elif stage.weight == "cumsum":
                    sums = [_running_sum(vector) for vector in vectors]
                elif stage.weight == "identity":
                    sums = vectors
                else:
                    matrix = self.matrix(v, s)
                    sums = [_product(matrix, vectors, gate, stage) for gate in range(stage.gates)]
                pre += [own[g] + product for g, product in zip(span, sums, strict=True)]
            leaves["pre"] = (*pre, *own[len(pre) :])
            state = tuple(evaluate(e, leaves) + 0 * state[0] for e in self.step)
            rows[time] = state
        sequences = [torch.stack([rows[t][i] for t in range(steps)]) for i in range(self.states)]
        return sequences, list(state)


def _running_sum(vector) -> Tensor:
    return torch.stack([vector[:, : j + 1].sum(-1) for j in range(vector.shape[-1])], -1)


def _product(matrix, vectors, gate, stage) -> Tensor:
    """What a stage adds to one of its gates: each head sees its own units of each vector."""
    hidden = vectors[0].shape[-1]
    size, parts = hidden // stage.heads, []
    rows = matrix[gate * hidden : (gate + 1) * hidden]
    for head in range(stage.heads):
        mine = slice(head * size, (head + 1) * size)
        columns = [rows[mine, i * size : (i + 1) * size] for i in range(len(vectors))]
        parts.append(sum(v[:, mine] @ c.mT for v, c in zip(vectors, columns, strict=True)))
    return torch.cat(parts, -1)


def expressions(leaves: list[tuple]) -> st.SearchStrategy[Expression]:
    """Bounded expressions, of up to four leaves."""
    grown = st.recursive(
        st.sampled_from(leaves),
        lambda inner: st.one_of(
            st.tuples(st.sampled_from(sorted(UNARY)), inner),
            st.tuples(st.sampled_from(sorted(BINARY)), inner, inner),
            st.tuples(st.just("*"), st.sampled_from([0.5, -1.5]), inner),
        ),
        max_leaves=4,
    )
    return grown.map(lambda e: ("tanh", e))


@st.composite
def random_cells(draw, heads: tuple[int, ...] = (1,)) -> RandomCell:
    """Cells with 0 to 3 stages and 1 to 5 gates.

    Args:
        heads: numbers of heads that a stage may have.
    """
    states = draw(st.integers(1, 3))
    params, streams = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    reads_t = draw(st.booleans())
    counts = draw(st.lists(st.integers(1, 2), max_size=3))
    spare = 5 - sum(counts) if sum(counts) < 5 else 0
    counts = counts if sum(counts) <= 5 else [1] * len(counts)
    places = draw(st.lists(st.integers(0, len(counts)), max_size=min(spare, 3)))
    free = [places.count(i) for i in range(len(counts) + 1)]
    if not counts and not places:
        free = [1]
    common = [("state", i) for i in range(states)]
    drawn = draw(st.integers(0, 2))
    common += [("params", i) for i in range(params)]
    common += [("streams", i) for i in range(streams + drawn)]
    common += [("t",)] * reads_t
    stages, begin, recurrent, fixed = [], 0, [], []
    for before, gates in zip(free, counts, strict=False):
        begin += before
        computed = draw(st.booleans())
        if computed:
            known = common + [("pre", i) for i in range(begin)]
            source = draw(st.lists(expressions(known), min_size=1, max_size=2))
        else:
            indices = st.integers(0, states - 1)
            source = draw(st.lists(indices, min_size=1, max_size=2, unique=True))
        names = [None, "half", "flipped", "squared"]
        names += ["mean", "sum", "cumsum", "identity"] * (len(source) == gates)
        weight = draw(st.sampled_from(names))
        count = draw(st.sampled_from(heads)) if weight is None else 1
        stages.append(RandomStage(gates, tuple(source), computed, count, weight))
        same = fixed if stages[-1].fixed else recurrent
        same += range(begin, begin + gates)
        begin += gates
    if not recurrent and not any(free):
        free[-1] = 1
    total = sum(free) + sum(counts)
    without = frozenset(fixed) | {i for i in recurrent if draw(st.booleans())}
    if len(without) == total:
        without -= {recurrent[0]}
    order = draw(st.permutations([i for i in range(total) if i not in without]))
    known = common + [("pre", i) for i in range(total)]
    step = [draw(expressions(known)) for _ in range(states)]
    # Each gate reaches the first state, so that its gradient is not zero for no reason.
    for i in range(total):
        step[0] = ("+", step[0], ("*", 0.5, ("tanh", ("pre", i))))
    return RandomCell(
        tuple(stages), tuple(free), without, tuple(order), states, params, streams, reads_t,
        tuple(step), drawn,
    )  # fmt: skip
