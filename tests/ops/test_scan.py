"""``scan`` as its callers see it: its results, and its errors for bad arguments."""

import pytest
import torch

import fused_rnn
import tests.support.cells as ours
from fused_rnn import cells, scan
from tests.support.problems import make_problem
from tests.support.tolerances import assert_equal_in_float64
from tests.support.transforms import assert_transforms


@pytest.mark.parametrize("cell", ours.ALL, ids=ours.name_of)
def test_shapes_of_scan(cell):
    arguments = make_problem(cell, 3, 2, 4).scan_arguments(make_problem(cell, 3, 2, 4).leaves())
    output, finals = scan(**arguments)
    assert output.shape == (3, 2, 4)
    assert [final.shape for final in finals] == [(2, 4)] * len(cell.states)
    outputs, _ = scan(**arguments, return_states=True)
    assert [output.shape for output in outputs] == [(3, 2, 4)] * len(cell.states)


def test_scan_takes_a_name_and_single_tensors():
    x, weight, h = torch.randn(3, 2, 12), torch.randn(12, 4), torch.randn(2, 4)
    by_name = scan("gru", x, weight, h)
    by_cell = scan(cells.GRU, x, [weight], [h], bias=torch.zeros(4))
    assert torch.equal(by_name[0], by_cell[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cell": "elman"}, ValueError, "cell: expected one of .*got 'elman'"),
        ({"backend": "cuda"}, ValueError, "backend: expected one of auto, .*got 'cuda'"),
        ({"backend": "aten"}, RuntimeError, 'backend "aten" cannot run cell .* use another'),
        ({"x_part": (3, 8)}, RuntimeError, r"x_part: expected 3 dimensions .*got \(3, 8\)"),
        ({"x_part": (0, 2, 8)}, RuntimeError, "x_part: .*length larger than 0, got 0"),
        ({"x_part": (3, 2, 9)}, RuntimeError, r"x_part: .*\(3, 2, 8\), got \(3, 2, 9\)"),
        ({"x_part": (3, 1, 8)}, RuntimeError, r"states\[0\]: .*\(1, 4\), got \(2, 4\)"),
        ({"recurrent_weights": []}, RuntimeError, "recurrent_weights: .*expected 1 .*got 0"),
        (
            {"recurrent_weights": (9, 4)},
            RuntimeError,
            r"recurrent_weights\[0\]: expected shape \(8, 4\), got \(9, 4\)",
        ),
        ({"states": []}, RuntimeError, "states: cell 'picky' expected 1 tensors, got 0"),
        ({"states": (2, 5)}, RuntimeError, r"x_part: .*\(3, 2, 10\), got \(3, 2, 8\)"),
        ({"params": []}, RuntimeError, "params: cell 'picky' expected 1 tensors, got 0"),
        ({"params": (5,)}, RuntimeError, r"params\[0\]: expected shape \(4,\), got \(5,\)"),
        ({"streams": []}, RuntimeError, "streams: cell 'picky' expected 1 tensors, got 0"),
        ({"streams": (3, 2, 5)}, RuntimeError, r"streams\[0\]: .*\(3, 2, 4\), got \(3, 2, 5\)"),
        ({"bias": (5,)}, RuntimeError, r"bias: expected shape \(4,\), got \(5,\)"),
    ],
    ids=str,
)
def test_bad_arguments_of_scan(change, error, message):
    with pytest.raises(error, match=message):
        scan(**_arguments_of_picky(change))


@pytest.mark.parametrize(
    "name", ["recurrent_weights", "states", "params", "streams", "bias"], ids=str
)
def test_other_dtypes_and_devices(name):
    arguments = _arguments_of_picky({})
    one = arguments[name][0] if isinstance(arguments[name], list) else arguments[name]
    for changed, error, message in (
        (one.double(), ValueError, "expected dtype torch.float32, got torch.float64"),
        (one.to("meta"), RuntimeError, "expected device cpu, got meta"),
    ):
        with pytest.raises(error, match=rf"{name}(\[0\])?: {message}"):
            scan(**arguments | {name: [changed] if name != "bias" else changed})


def _picky(pre, state, params, streams):
    return torch.tanh(pre[0] + pre[1] + pre[2]) * params[0] + streams[0]


PICKY = fused_rnn.Cell(
    "picky",
    _picky,
    gates=("a", "b", "x"),
    x_gates=("a", "x"),
    params=("p",),
    streams=("s",),
    stages=(fused_rnn.Stage(("a", "b")),),
)


def _arguments_of_picky(change):
    """Good arguments, with ``change``; a shape means a tensor of that shape."""
    given = {
        "x_part": (3, 2, 8),
        "recurrent_weights": (8, 4),
        "states": (2, 4),
        "params": (4,),
        "streams": (3, 2, 4),
        "bias": (4,),
    } | change
    arguments = {"cell": PICKY}
    for name, value in given.items():
        tensor = torch.ones(value) if isinstance(value, tuple) else value
        several = name not in ("x_part", "bias") and isinstance(value, tuple)
        arguments[name] = [tensor] if several else tensor
    return arguments


def test_picky_is_pleased_by_good_arguments():
    output, _ = scan(**_arguments_of_picky({}))
    assert output.shape == (3, 2, 4)


def _from_input(cell, features, **options):
    """The arguments of ``scan`` from an input, and those from its input parts, as a reference."""
    problem = make_problem(cell, 4, 3, 5, dtype=torch.float64, **options)
    given = problem.scan_arguments(problem.leaves())
    features = 5 if cell.raw_gates else features
    width = (len(cell.x_gates) - len(cell.raw_gates)) * 5
    generator = torch.Generator().manual_seed(4)

    def normal(*shape):
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (drawn / 4).requires_grad_()

    own = {"input_weight": normal(width, features), "input_bias": normal(len(cell.x_gates) * 5)}
    own["x_part"] = normal(4, 3, features)
    linear = own["x_part"] @ own["input_weight"].t()
    columns = iter(linear.split(5, -1))
    parts = [own["x_part"] if g in cell.raw_gates else next(columns) for g in cell.x_gates]
    return given | own, given | {"x_part": torch.cat(parts, -1) + own["input_bias"]}


def _outputs_and_gradients(arguments, leaves):
    outputs, finals = scan(**arguments, return_states=True)
    results = [*outputs, *finals]
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(r.shape, generator=generator).to(r) for r in results]
    gradients = torch.autograd.grad(results, leaves, weights, materialize_grads=True)
    return {str(i): value for i, value in enumerate((*results, *gradients))}


def _leaves(arguments):
    flat = [v for g in arguments.values() for v in (g if isinstance(g, list) else [g])]
    return [v for v in flat if isinstance(v, torch.Tensor) and v.requires_grad]


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("backend", ["auto", "sequence"])
@pytest.mark.parametrize("cell", [c for c in ours.ALL if c.x_gates], ids=ours.name_of)
def test_from_the_input(cell, backend, reverse):
    mine, parts = _from_input(cell, 7, reverse=reverse)
    got = _outputs_and_gradients(mine | {"backend": backend}, _leaves(mine))
    want = _outputs_and_gradients(parts | {"backend": "reference"}, _leaves(mine))
    assert_equal_in_float64(got, want)
    with torch.no_grad():
        output, _ = scan(**mine, backend=backend)
    assert_equal_in_float64({"output": output}, {"output": want["0"].detach()})


@pytest.mark.parametrize("cell", [cells.LSTM, cells.GRU, cells.SLSTM], ids=ours.name_of)
def test_from_the_input_in_transforms(cell):
    mine, parts = _from_input(cell, 7)
    weight = mine.pop("input_weight").detach()

    def run(weight):
        return scan(input_weight=weight, **mine)[0]

    assert_transforms(run, weight)
    torch.testing.assert_close(run(weight), scan(**parts)[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input_weight": (20, 7)}, RuntimeError, r"input_weight: .*\(20, 6\), got \(20, 7\)"),
        ({"input_weight": (19, 6)}, RuntimeError, r"input_weight: .*\(20, 6\), got \(19, 6\)"),
        ({"input_weight": [1]}, TypeError, "input_weight: expected a tensor, got list"),
        ({"x_part": (3, 6)}, RuntimeError, r"x_part: expected 3 dimensions \(T, B, I\), got"),
        ({"input_bias": (6,)}, RuntimeError, r"input_bias: expected shape \(20,\), got \(6,\)"),
    ],
    ids=str,
)
def test_bad_inputs_and_weights(change, error, message):
    given = {"x_part": (3, 2, 6), "input_weight": (20, 6), "input_bias": (20,)} | change
    tensors = {k: torch.ones(v) if isinstance(v, tuple) else v for k, v in given.items()}
    with pytest.raises(error, match=message):
        scan("lstm", recurrent_weights=torch.ones(20, 5), states=[torch.ones(2, 5)] * 2, **tensors)
