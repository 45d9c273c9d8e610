"""The algebra of a cell (gates, states, stages), and the built-in cells by name.

The legend of dims is in the docstring of the package.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import torch
from torch import Tensor

from .. import once
from . import registry, wiring
from .functions import ARGUMENTS, Sizes
from .parts import Bernoulli, Param, Stage, as_params, as_streams, expect_identifier, names_of
from .report import CellReport
from .snapshot import take

# Living cells by key: custom ops take a cell as the string that names it.
_REGISTRY = registry.living

# Built-in cells by name, and the names that ``names`` lists. The families' files fill both.
_BUILTIN: dict[str, Cell] = {}
_LISTED: list[str] = []


@dataclass(frozen=True, eq=False, init=False)
class Cell:
    """A recurrent cell: one pointwise function and the wiring of its gates.

    Args:
        name: a Python identifier; it appears in the printed kernels.
        step: ``step(pre, state, ...)`` in plain PyTorch, pointwise over the hidden units. ``pre``
            is the tuple of pre-activations in the order of ``gates``, ``state`` the tuple of the
            states after the step before; ``params``, ``streams`` (tuples) and ``t`` (the number
            of steps taken before this one) are passed if the function has parameters of these
            names. Returns the tuple of new states, or the only one.
        gates: names of the pre-activations. Those of a stage stand next to each other, and the
            stages one after the other; gates without a recurrent part may stand before, between
            and after them.
        states: names of the states; the first is the output of each step.
        params: names of learned vectors of H values (peepholes, periods); or ``Param``, which
            says how the modules make one.
        streams: names of inputs with one value per step, row and unit that no matrix multiplies;
            then ``Bernoulli``s, those that are drawn at random.
        x_gates: names of the gates with an input part, in the order of the rows of ``weight_ih``.
            Default: all gates.
        raw_gates: those of ``x_gates`` that take x itself instead of ``W x`` (so I = H).
        stages: the recurrent products. Default: one, of all gates with the first state. Without
            any, only the step reads the states, each unit its own.

    The functions are recorded when the cell is made, as graphs that every backend runs from then
    on: a value that they close over may change, but the cell does not. docs/cells.md says what they
    may be made of.

    Raises:
        ValueError: names that do not fit together; a step that does not return, per state, one
            tensor like the gates; a function that is not pure and pointwise over the
            units. The message names the line, the operation and the remedy.
        TypeError: an argument of another type, or a step or source with unknown parameters.

    Attributes:
        key: the cell's name in custom ops: ``name``, with a number appended if that is taken; see
            ``registry``.
        made: what was traced, printed and built of the cell, see ``once``.
        derived: by key, the cells that ``derived`` makes of this one.
        reads_time: whether the step or a source asks for ``t``.
        streams: the names of those that are given.
        drawn: the ``Bernoulli``s; a step and a source see their values after the given streams.
        given: by name in ``params``, its ``Param``.
        is_plain: whether the engines take the tensors of a module as they are: no ``Stage.weight``
            is a function and no ``Param`` is a scalar.
        recurrent_gates: gates with a recurrent part that a learned matrix gives, in the order of
            the rows of ``weight_hh``: not those of stages with a fixed matrix.
        spans: per stage (begin, end): its gates are ``gates[begin:end]``.
        source_sizes: per stage, the number of vectors that its source concatenates.
        weight_index: per stage the index of its matrix in the lists of weights, or -1 if its
            matrix is fixed.
        matrices: per matrix in these lists, the numbers of gates and of vectors.
        x_index: per gate its index in ``x_gates``, or -1 if it has no input part.
        recurrent_index: per gate its index in ``recurrent_gates``, or -1 if it is not there.
        bias_gates: gates whose only bias is the recurrent one, since they have no input part.
        bias_index: per gate its index in ``bias_gates``, or -1.
        x_runs, bias_runs: runs of ``x_gates`` and ``bias_gates`` that are adjacent in
            ``recurrent_gates`` too, as (begin, end, index of the first there), or -1 for gates
            that are not there.
        functions: the step and the computed sources, by ("step", 0) and ("source", stage), as
            functions of (pre, state, params, streams, t) that return tuples.
    """

    name: str
    step: Callable
    gates: tuple[str, ...]
    states: tuple[str, ...]
    params: tuple[str, ...]
    streams: tuple[str, ...]
    x_gates: tuple[str, ...]
    raw_gates: tuple[str, ...]
    stages: tuple[Stage, ...]
    # The wiring as constants, which loops, kernels and torch.compile read often.
    key: str = field(init=False)
    made: once.Made = field(init=False)
    derived: dict[str, Cell] = field(init=False)
    reads_time: bool = field(init=False)
    drawn: tuple[Bernoulli, ...] = field(init=False)
    given: dict[str, Param] = field(init=False)
    is_plain: bool = field(init=False)
    recurrent_gates: tuple[str, ...] = field(init=False)
    spans: tuple[tuple[int, int], ...] = field(init=False)
    source_sizes: tuple[int, ...] = field(init=False)
    weight_index: tuple[int, ...] = field(init=False)
    matrices: tuple[tuple[int, int], ...] = field(init=False)
    x_index: tuple[int, ...] = field(init=False)
    recurrent_index: tuple[int, ...] = field(init=False)
    bias_gates: tuple[str, ...] = field(init=False)
    bias_index: tuple[int, ...] = field(init=False)
    x_runs: tuple[tuple[int, int, int], ...] = field(init=False)
    bias_runs: tuple[tuple[int, int, int], ...] = field(init=False)
    functions: dict[tuple[str, int], Callable[..., tuple[Tensor, ...]]] = field(init=False)

    def __init__(
        self,
        name: str,
        step: Callable,
        gates: Sequence[str],
        states: Sequence[str] = ("h",),
        params: Sequence[str | Param] = (),
        streams: Sequence[str | Bernoulli] = (),
        x_gates: Sequence[str] | None = None,
        raw_gates: Sequence[str] = (),
        stages: Sequence[Stage] | None = None,
    ):
        def settle(name, value):
            object.__setattr__(self, name, value)

        expect_identifier(name, "name")
        where = f"cell {name!r}"
        settle("name", name)
        settle("step", step)
        settle("gates", names_of(gates, f"{where}, gates"))
        settle("states", names_of(states, f"{where}, states"))
        params = as_params(params, f"{where}, params")
        settle("params", tuple(param.name for param in params))
        names, drawn = as_streams(streams, f"{where}, streams")
        settle("streams", names)
        settle("drawn", drawn)
        settle("raw_gates", names_of(raw_gates, f"{where}, raw_gates"))
        settle("x_gates", self.gates if x_gates is None else names_of(x_gates, f"{where}, x_gates"))
        if stages is None:
            stages = (Stage(self.gates, self.states[:1]),) if self.gates and self.states else ()
        if isinstance(stages, Stage) or not all(isinstance(stage, Stage) for stage in stages):
            raise TypeError(f"{where}, stages: expected a sequence of Stage, got {stages!r}")
        settle("stages", tuple(stages))
        matrices = [stage for stage in self.stages if not stage.fixed]
        settle("recurrent_gates", tuple(gate for stage in matrices for gate in stage.gates))
        wiring.check_names(self)
        settle("given", {param.name: param for param in params})
        made = any(callable(stage.weight) for stage in self.stages)
        settle("is_plain", not (made or any(param.scalar for param in params)))
        settle("spans", tuple(wiring.span(self, stage) for stage in self.stages))
        settle("weight_index", tuple(_index(matrices, stage) for stage in self.stages))
        settle("x_index", tuple(_index(self.x_gates, gate) for gate in self.gates))
        settle("recurrent_index", tuple(_index(self.recurrent_gates, g) for g in self.gates))
        settle("bias_gates", tuple(g for g in self.recurrent_gates if g not in self.x_gates))
        settle("bias_index", tuple(_index(self.bias_gates, gate) for gate in self.gates))
        settle("x_runs", _runs(self.x_gates, self.recurrent_gates))
        settle("bias_runs", _runs(self.bias_gates, self.recurrent_gates))
        found = [asked(step, f"{where}, step")]
        for s, stage in enumerate(self.stages):
            if callable(stage.source):
                found.append(asked(stage.source, f"{where}, source of stage {s}"))
        settle("reads_time", any(ARGUMENTS.index("t") in places for places in found))
        settle("made", once.Made(self))
        settle("derived", {})
        settle("functions", {})
        settle("source_sizes", self._take_functions())
        wiring.check_fixed(self)
        pairs = zip(self.stages, self.source_sizes, strict=True)
        settle("matrices", tuple((len(s.gates), size) for s, size in pairs if not s.fixed))
        settle("key", registry.register(self, name, self._what()))

    @property
    def stream_count(self) -> int:
        """The number of streams that a step and a source see: those given and those drawn."""
        return len(self.streams) + len(self.drawn)

    # Arguments of a step and a source. ``pre``, ``state``, ``params``, ``streams``: tuples of
    # tensors of one shape (``params`` may be (H,)).

    def run_step(
        self,
        pre: Sequence[Tensor],
        state: Sequence[Tensor],
        params: Sequence[Tensor] = (),
        streams: Sequence[Tensor] = (),
        t: int | Tensor = 0,
    ) -> tuple[Tensor, ...]:
        """Evaluate the step; returns the new states."""
        return self.functions["step", 0](pre, state, params, streams, t)

    def run_source(
        self,
        stage: int,
        pre: Sequence[Tensor],
        state: Sequence[Tensor],
        params: Sequence[Tensor] = (),
        streams: Sequence[Tensor] = (),
        t: int | Tensor = 0,
    ) -> tuple[Tensor, ...]:
        """Evaluate the source of a stage from the gates before it; returns its vectors."""
        source = self.stages[stage].source
        if callable(source):
            return self.functions["source", stage](pre, state, params, streams, t)
        return tuple(state[self.states.index(name)] for name in source)

    def triton_source(self, dtype: torch.dtype = torch.float32) -> str:
        """Print this cell as the Triton functions that the kernels call.

        Args:
            dtype: of the arithmetic: float64 for tensors of that dtype, else float32.

        Raises:
            ImportError: Triton is not installed.
            NotImplementedError: an operation that the printer does not know.
        """
        from ..kernels.gpu.emit import emit

        return emit(self, "exact", dtype).source_text

    def check(
        self,
        T: int = 5,
        B: int = 3,
        H: int = 40,
        *,
        differences: bool = True,
        compile: bool = True,
        stream: TextIO | None = None,
    ) -> CellReport:
        """Check this cell on this machine, and print a line for each check.

        - derivatives: every gradient of the reference against finite differences, in float64, along
          a direction of each input; and by PyTorch's gradcheck element by element, at T, B, H of at
          most 3, 2, 3.
        - engines: outputs, states and every gradient of each engine that runs here ("sequence",
          "cpp", "triton" with each strategy) against the reference in float64, in float64 and
          float32.
        - compiled: without a GPU, the Triton kernels are compiled for two that are absent.

        Args:
            T, B, H: of the random problem.
            differences: False for a cell whose gradients are not its derivatives on purpose.
            compile: whether to compile for absent GPUs, which takes most of the time.
            stream: where to print. Default: standard output.

        Returns:
            The report: ``ok`` says whether nothing failed, ``str`` gives the printed lines.

        Raises:
            TypeError, ValueError: a size that is no positive int, or a flag that is no bool.
        """
        from ..engines.check import Sizes, check

        return check(self, Sizes(T, B, H), differences, compile, stream)

    def __repr__(self):
        return f"Cell({self.name!r}, gates={self.gates}, states={self.states})"

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        if _BUILTIN.get(self.name) is self:
            return get, (self.name,)
        params, wiring = tuple(self.given.values()), (self.x_gates, self.raw_gates, self.stages)
        streams = (*self.streams, *self.drawn)
        names = (self.name, self.step, self.gates, self.states, params, streams)
        return type(self), (*names, *wiring)

    def _what(self) -> tuple:
        """The data that two equal cells have in common."""
        wiring = (self.gates, self.states, self.streams, self.drawn, self.x_gates, self.raw_gates)
        parts = (*self.given.values(), *self.stages)
        # The same function may have closed over other values when another cell was made.
        texts = tuple(getattr(run, "text", None) for run in self.functions.values())
        return (self.step, *wiring, *(tuple(vars(part).values()) for part in parts), texts)

    def _take_functions(self) -> tuple[int, ...]:
        """Fill ``functions``; returns the number of vectors of each source."""
        where, sizes = f"cell {self.name!r}", []
        for s, stage in enumerate(self.stages):
            if callable(stage.source):
                about = f"{where}, source of stage {s}"
                run, size = self._take(stage.source, about, self.spans[s][0], None)
                self.functions["source", s] = run
                sizes.append(size)
            else:
                sizes.append(len(stage.source))
        states = len(self.states)
        run, _ = self._take(self.step, f"{where}, step", len(self.gates), states)
        self.functions["step", 0] = run
        return tuple(sizes)

    def _take(self, function, where, gates, results) -> tuple[Callable[..., tuple], int | None]:
        """A snapshot of a function, and its number of results."""
        sizes = Sizes(gates, len(self.states), len(self.params), self.stream_count, results)
        taken = take(where, _giving(function, where), sizes)
        return taken, taken.sizes.results


class DerivedCell(Cell):
    """A cell whose functions need no check: built in, or derived from a checked cell.

    The functions are called directly, and recorded when a graph is needed.
    """

    def _take(self, function, where, gates, results):
        giving = _giving(function, where)

        def run(*groups):
            out = giving(*groups)
            return (out,) if isinstance(out, Tensor) else tuple(out)

        ones = [
            tuple(torch.ones(1, 1, device="cpu") for _ in range(count))
            for count in (gates, len(self.states), len(self.params), self.stream_count)
        ]
        return run, results or len(run(*ones, 0))


def built_in(
    name: str, step: Callable, listed: bool = True, alias: str | None = None, **wiring: Any
) -> Cell:
    """Make a built-in cell, which ``get`` finds by its name.

    Args:
        listed: whether ``names`` lists it.
        alias: another name that ``get`` finds it by.
        wiring: the other arguments of ``Cell``.
    """
    cell = _BUILTIN[name] = _BUILTIN[alias or name] = DerivedCell(name, step, **wiring)
    if listed:
        _LISTED.append(name)
    return cell


def get(name: str) -> Cell:
    """Find a built-in cell by name; ``peephole_lstm_io`` has only the peepholes of i and o.

    Raises:
        ValueError: no built-in cell has this name; the message lists the names.
    """
    cell = _BUILTIN.get(name) if isinstance(name, str) else None
    if cell is None:
        raise ValueError(f"cell: expected one of {', '.join(names())}, got {name!r}")
    return cell


def as_cell(cell: Cell | str) -> Cell:
    """Return a cell itself, or the built-in cell of a name.

    Raises:
        TypeError: neither a cell nor a name.
        ValueError: no built-in cell has this name.
    """
    if isinstance(cell, str):
        return get(cell)
    if not isinstance(cell, Cell):
        raise TypeError(f"cell: expected a Cell or the name of one, got {cell!r}")
    return cell


def names() -> tuple[str, ...]:
    """The names of the built-in cells, without variants that differ in some peepholes only."""
    return tuple(_LISTED)


def lookup(key: str) -> Cell:
    """Find the cell with a key, as custom ops do.

    Raises:
        ValueError: no cell has this key, or it is gone.
    """
    return _REGISTRY.get(key) or registry.search(key)


def _giving(function, where) -> Callable:
    """Adapt a function to (pre, state, params, streams, t); it gets those it asks for."""
    places = asked(function, where)
    return lambda *groups: function(*[groups[place] for place in places])


def asked(function: Any, where: str) -> tuple[int, ...]:
    """The indices of ``ARGUMENTS`` that a step or source has parameters for."""
    if not callable(function):
        raise TypeError(f"{where}: expected a function, got {function!r}")
    signed = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        parameters = inspect.signature(signed).parameters
    except ValueError:  # a C function
        parameters = {"?": inspect.Parameter("x", inspect.Parameter.POSITIONAL_ONLY)}
    # Parameters with defaults may follow, such as those that functools.partial has bound.
    names = tuple(n for n, p in parameters.items() if n in ARGUMENTS or p.default is p.empty)
    wanted = tuple(name for name in ARGUMENTS if name in names)
    if names != wanted or names[:2] != ARGUMENTS[:2] or names != tuple(parameters)[: len(names)]:
        raise TypeError(
            f"{where}: {getattr(function, '__name__', function)}: expected the parameters pre, "
            "state and then any of params, streams, t in this order, and with defaults what "
            f"follows, got {', '.join(parameters)}"
        )
    return tuple(ARGUMENTS.index(name) for name in names)


def _index(names, name) -> int:
    return names.index(name) if name in names else -1


def _runs(gates, others) -> tuple[tuple[int, int, int], ...]:
    runs = []
    for g, place in enumerate(_index(others, gate) for gate in gates):
        if runs:
            begin, end, first = runs[-1]
            if place == (first + end - begin if first >= 0 else -1):
                runs[-1] = (begin, g + 1, first)
                continue
        runs.append((g, g + 1, place))
    return tuple(runs)
