"""The built-in cells of the literature against oracles written from their papers."""

import pickle

import pytest
import torch
from fused_rnn.kernels.cpu import compiler
from torch.autograd import gradcheck, gradgradcheck

from fused_rnn import Recurrent, cells, scan
from tests.support.papers import PAPERS, torchrecurrent_cells
from tests.support.tolerances import assert_equal_in_float64

every_cell = pytest.mark.parametrize("name", PAPERS)


def _scan(name, v, **options):
    """``scan`` of a cell with the tensors of its paper."""
    cell, paper = cells.get(name), PAPERS[name]
    products, parts = iter(paper.x), []
    for gate, bias in zip(cell.x_gates, paper.b, strict=False):
        if gate in cell.raw_gates:
            part = v["x"]
        else:
            part = sum(paper.input(v, of) @ v[matrix].mT for of, matrix in next(products).items())
        parts.append(part if bias == "0" else part + v[bias])
    weights = []
    learned = [stage for stage in cell.stages if not stage.fixed]
    for stage, matrices in zip(learned, paper.r, strict=True):
        matrix = torch.cat([torch.cat([v[m] for m in gate], 1) for gate in matrices])
        weights.append(matrix if stage.weight is None else stage.weight(matrix))
    return scan(
        cell,
        torch.cat(parts, -1),
        weights,
        [v[f"{state}_0"] for state in paper.states],
        bias=_biases(paper, v, len(cell.x_gates), None) if cell.bias_gates else None,
        params=[v[name] for name in paper.params],
        streams=[v[name] for name in paper.streams],
        **options,
    )


def _biases(paper, v, begin, end):
    """Some of the paper's biases, one after the other."""
    zeros = torch.zeros_like(v[f"{paper.states[0]}_0"][0])
    return torch.cat([zeros if bias == "0" else v[bias] for bias in paper.b[begin:end]])


def _with_gradients(v, sequences, finals):
    """All outputs, and the gradients of all of ``v`` for the same random cotangents."""
    outputs = [*sequences, *finals]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
    gradients = torch.autograd.grad(outputs, list(v.values()), cotangents, materialize_grads=True)
    named = {f"output.{i}": output for i, output in enumerate(outputs)}
    return named | {f"d{name}": g for name, g in zip(v, gradients, strict=True)}


@pytest.mark.parametrize("backend", ["reference", "sequence", "cpp"])
@every_cell
def test_cell_is_its_paper(name, backend):
    if backend == "cpp" and compiler.find() is None:
        pytest.skip(compiler.why_not())
    paper = PAPERS[name]
    v = paper.values(T=5, B=3, I=7, H=9)
    want = _with_gradients(v, *paper.run(v))
    got = _with_gradients(v, *_scan(name, v, backend=backend, return_states=True))
    assert_equal_in_float64(got, want)


def _of_one(name):
    """All sequences of a small problem, as a function of one vector of all its tensors."""
    paper = PAPERS[name]
    v = paper.values(T=3, B=1, I=2, H=2)
    moved = {key: value for key, value in v.items() if key not in paper.fixed}
    sizes = [value.numel() for value in moved.values()]

    def run(vector):
        parts = zip(moved.items(), vector.split(sizes), strict=True)
        given = v | {key: part.view(value.shape) for (key, value), part in parts}
        return _scan(name, given, return_states=True, backend="sequence")[0]

    return run, torch.cat([t.detach().flatten() for t in moved.values()]).requires_grad_()


@every_cell
def test_derivatives(name):
    assert gradcheck(*_of_one(name), fast_mode=True)
    assert gradgradcheck(*_of_one(name), fast_mode=True)


def _state_dict(cell, paper, v):
    """The parameters of ``Recurrent``, and its input."""
    inputs = list(dict.fromkeys(of for gate in paper.x for of in gate)) or ["x"]
    blank = torch.zeros(v[f"{paper.states[0]}_0"].shape[1], v["x"].shape[2], dtype=torch.float64)
    rows = [
        torch.cat([v[gate[of]] if of in gate else blank for of in inputs], 1) for gate in paper.x
    ]
    made = {"weight_ih": torch.cat(rows)} if rows else {}
    made["bias_ih"] = _biases(paper, v, 0, len(cell.x_gates))
    if cell.matrices:
        second = iter(paper.b[len(cell.x_gates) :])
        biases = [next(second) if g in cell.bias_gates else "0" for g in cell.recurrent_gates]
        made["bias_hh"] = torch.cat([v.get(bias, torch.zeros_like(blank[:, 0])) for bias in biases])
        stages = [torch.cat([torch.cat([v[m] for m in g], 1) for g in stage]) for stage in paper.r]
        if len({vectors for _, vectors in cell.matrices}) == 1:
            made["weight_hh"] = torch.cat(stages)
        else:
            made |= {f"weight_hh{s}": matrix for s, matrix in enumerate(stages)}
    for ours, name in zip(cell.params, paper.params, strict=True):
        made[ours] = v[name][0] if cell.given[ours].scalar else v[name]
    return made, torch.cat([paper.input(v, of) for of in inputs], -1)


@pytest.mark.parametrize("name", [name for name in PAPERS if not cells.get(name).streams])
def test_module_has_the_parameters_of_the_paper(name):
    cell, paper = cells.get(name), PAPERS[name]
    v = {key: value.detach() for key, value in paper.values(T=3, B=1, I=4, H=5).items()}
    for ours, of_paper in zip(cell.params, paper.params, strict=True):
        if cell.given[ours].scalar:
            v[of_paper] = v[of_paper][0].expand(5)
    parameters, x = _state_dict(cell, paper, v)
    module = Recurrent(name, x.shape[2], 5, dtype=torch.float64, backend="reference")
    module.load_state_dict({f"{key}_l0": value for key, value in parameters.items()})
    start = tuple(v[f"{state}_0"][None] for state in paper.states)
    output, finals = module(x, start if len(start) > 1 else start[0])
    sequences, last = paper.run(v)
    finals = finals if len(start) > 1 else (finals,)
    got = {"output": output} | {str(k): final[0] for k, final in enumerate(finals)}
    want = {"output": sequences[0]} | {str(k): final for k, final in enumerate(last)}
    assert_equal_in_float64(got, want)


@pytest.mark.parametrize("scale", [1, 400])
def test_slstm_is_stabilised(scale):
    """It is h = o * c / n with exponential gates, which overflow float64 where scale is 400."""
    pre = scale * torch.randn(6, 3, 4, 5, dtype=torch.float64)
    state = [torch.zeros(3, 5, dtype=torch.float64)] * 4
    c = n = torch.zeros(3, 5, dtype=torch.float64)
    for i, f, g, o in (gates.unbind(1) for gates in pre):
        state = cells.SLSTM.run_step((i, f, g, o), state)
        assert state[0].isfinite().all()
        c = f.sigmoid() * c + i.exp() * g.tanh()
        n = f.sigmoid() * n + i.exp()
        if scale == 1:
            assert_equal_in_float64({"h": state[0]}, {"h": o.sigmoid() * c / n})


@pytest.mark.parametrize("backend", ["reference", "sequence", "cpp"])
def test_slstm_begins_with_a_tiny_input_gate(backend):
    """At the first step, where m = i = -1000, exp(log f + m_ - m) overflows, times c_ = 0."""
    pre = torch.tensor([-1000.0, 0.5, 0.3, 0.2]).repeat(2, 3, 1).requires_grad_()
    weight = torch.zeros(4, 1, requires_grad=True)
    output, _ = scan("slstm", pre, weight, [torch.zeros(3, 1)] * 4, backend=backend)
    g, o = torch.tensor(0.3).tanh(), torch.tensor(0.2).sigmoid()
    torch.testing.assert_close(output, (o * g).expand(2, 3, 1))
    assert all(d.isfinite().all() for d in torch.autograd.grad(output.sum(), (pre, weight)))


def test_units_of_a_clockwork_rnn_have_the_periods_of_their_groups():
    layer = Recurrent(cells.clockwork_rnn(groups=3), 2, 7)
    assert dict(layer.named_buffers())["period_l0"].tolist() == [1, 1, 1, 2, 2, 4, 4]
    assert "period_l0" in layer.state_dict()
    assert "period_l0" not in dict(layer.named_parameters())
    layer(torch.randn(5, 3, 2))[0].sum().backward()
    fed = layer.weight_hh_l0.grad != 0
    group = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    assert not fed[group[:, None] > group].any()
    assert fed[group[:, None] <= group].any()


def test_first_values_of_params():
    fast = Recurrent("fast_rnn", 2, 3)
    assert (fast.alpha_l0.item(), fast.beta_l0.item()) == (-3, 3)
    assert 0 <= Recurrent("ind_rnn", 2, 300).u_l0.min() < 0.1
    assert (Recurrent("ctrnn", 2, 3).tau_l0 == 1).all()


@pytest.mark.parametrize(
    ("made", "default"),
    [
        (cells.janet, {"beta": 1.0}),
        (cells.lem, {"dt": 1.0}),
        (cells.co_rnn, {"dt": 0.042, "gamma": 2.7, "epsilon": 4.7}),
        (cells.scrn, {"alpha": 0.95}),
        (cells.antisymmetric_rnn, {"epsilon": 0.01, "gamma": 0.01}),
        (cells.antisymmetric_rnn, {"epsilon": 0.01, "gamma": 0.01, "gated": True}),
        (cells.ctrnn, {"dt": 0.1}),
        (cells.ltc, {"dt": 1.0}),
        (cells.layer_norm_lstm, {"eps": 1e-5}),
        (cells.layer_norm_gru, {"eps": 1e-5}),
    ],
)
def test_constants(made, default):
    right = made(**default)
    assert right is cells.get(right.name)
    assert default.get("gated") or right is made()
    layer, x = Recurrent(right, 3, 4), torch.randn(6, 2, 3)
    for option in default.keys() - {"gated"}:
        other = made(**default | {option: 0.5})
        results = [layer(x)[0]]
        for cell in (other, pickle.loads(pickle.dumps(other))):
            changed = Recurrent(cell, 3, 4)
            changed.load_state_dict(layer.state_dict())
            results.append(changed(x)[0])
        assert torch.equal(results[1], results[2])
        assert not torch.allclose(results[0], results[1])


def test_sizes():
    assert cells.rhn(depth=5) is cells.rhn() is cells.get("rhn")
    assert cells.rhn(depth=2).recurrent_gates == ("n1", "t1", "n2", "t2")
    assert cells.clockwork_rnn(groups=9) is cells.clockwork_rnn() is cells.get("clockwork_rnn")
    assert cells.mogrifier_lstm(5) is cells.mogrifier_lstm() is cells.get("mogrifier_lstm")
    assert cells.mogrifier_lstm(2).recurrent_gates == ("r1", "r2", "i", "f", "g", "o")


def test_mogrifier_without_rounds_is_the_lstm():
    lstm, x = torch.nn.LSTM(4, 4, dtype=torch.float64), torch.randn(5, 3, 4).double()
    bare = Recurrent(cells.mogrifier_lstm(rounds=0), 4, 4, dtype=torch.float64)
    weights = lstm.state_dict()
    side_by_side = torch.cat([weights["weight_hh_l0"], weights["weight_ih_l0"]], 1)
    bias = weights["bias_ih_l0"] + weights["bias_hh_l0"]
    none = torch.zeros(4).double()  # of x itself
    bare.load_state_dict(
        {"weight_hh_l0": side_by_side, "bias_ih_l0": none, "bias_hh_l0": bias}, strict=True
    )
    assert_equal_in_float64({"h": bare(x)[0]}, {"h": lstm(x)[0]})


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        (cells.rhn, {"depth": 0}, "depth: expected at least 1, got 0"),
        (cells.mogrifier_lstm, {"rounds": -1}, "rounds: expected at least 0, got -1"),
        (cells.clockwork_rnn, {"groups": 0}, "groups: expected at least 1, got 0"),
    ],
)
def test_bad_option_is_a_value_error(made, options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


@pytest.mark.parametrize("name", torchrecurrent_cells.CELLS)
def test_torchrecurrent_agrees_with_the_paper(name):
    package = pytest.importorskip("torchrecurrent")
    paper = PAPERS[name]
    v = paper.values(T=5, B=3, I=7, H=9)
    want = _with_gradients(v, paper.run(v)[0][:1], [])
    got = _with_gradients(v, [torchrecurrent_cells.run(package, name, v)], [])
    assert_equal_in_float64(got, want)
