"""What a call takes besides its input: streams, states at resets, and learned initial states."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import Recurrent, RecurrentCell, cells
from tests.support import cells as ours
from tests.support.problems import run_module
from tests.support.tolerances import assert_equal_in_float64

T, B, INPUT, H = 5, 3, 4, 6
backends = pytest.mark.parametrize("backend", ["auto", "sequence", "reference"])
CELLS = {
    "phased_lstm": cells.get("phased_lstm"),
    "time_aware_lstm": cells.get("time_aware_lstm"),
    "zoneout": ours.ZONEOUT_LSTM,
    "noisy_gru": ours.NOISY_GRU,
}
every_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def _random(*shape):
    return torch.rand(shape, dtype=torch.float64)


def _streams(cell, *shape):
    return tuple(_random(*shape).requires_grad_() for _ in cell.streams)


def _by_scan(module, x, streams):
    """The oracle: layer by layer and direction by direction, each by ``scan`` from zeros."""
    for layer in range(module.num_layers):
        outputs = []
        for side in ("", "_reverse")[: 2 if module.bidirectional else 1]:
            weights = module._weights(f"_l{layer}{side}")
            cell = module.cell
            bias = weights["bias_hh"].view(-1, H)
            known = dict(zip(cell.recurrent_gates, bias, strict=True))
            none = torch.zeros(H, dtype=x.dtype)
            part = nn.functional.linear(x, weights["weight_ih"], weights["bias_ih"])
            part = part + torch.cat([known.get(gate, none) for gate in cell.x_gates])
            others = [known[gate] for gate in cell.bias_gates]
            outputs.append(
                fused_rnn.scan(
                    cell,
                    part,
                    module._by_stage(weights),
                    [torch.zeros(x.shape[1], H, dtype=x.dtype) for _ in cell.states],
                    bias=torch.cat(others) if others else None,
                    params=[weights[name] for name in cell.params],
                    streams=streams,
                    reverse=side != "",
                    backend="reference",
                )[0]
            )
        x = torch.cat(outputs, -1)
    return x


@every_cell
@backends
def test_streams(cell, backend):
    made = Recurrent(
        cell, INPUT, H, num_layers=2, bidirectional=True, dtype=torch.float64, backend=backend
    )
    x, streams = _random(T, B, INPUT).requires_grad_(), _streams(cell, T, B, H)
    leaves = [x, *streams, *made.parameters()]
    results = []
    for output in (made(x, streams=streams)[0], _by_scan(made, x, streams)):
        gradients = torch.autograd.grad(output.square().sum(), leaves)
        results.append({str(i): t for i, t in enumerate([output, *gradients])})
    assert_equal_in_float64(*results)


@every_cell
def test_layouts_of_streams(cell):
    made = Recurrent(cell, INPUT, H, dtype=torch.float64)
    x, streams = _random(T, B, INPUT), _streams(cell, T, 1, 1)
    wanted, _ = made(x, streams=[s.expand(T, B, H) for s in streams])
    torch.testing.assert_close(made(x, streams=streams)[0], wanted)
    row, _ = made(x[:, 0], streams=[s[:, 0] for s in streams])
    torch.testing.assert_close(row, wanted[:, 0])
    made.batch_first = True
    given = [s.transpose(0, 1) for s in streams]
    torch.testing.assert_close(made(x.transpose(0, 1), streams=given)[0], wanted.transpose(0, 1))
    one = RecurrentCell(cell, INPUT, H, dtype=torch.float64)
    one.load_state_dict({n.removesuffix("_l0"): v for n, v in made.state_dict().items()})
    for backend in (None, "sequence"):
        one.backend = backend
        first = one(x[0], streams=[s[0] for s in streams])
        torch.testing.assert_close(first[0] if isinstance(first, tuple) else first, wanted[0])
    first = one(x[0, 0], streams=[s[0, 0] for s in streams])
    torch.testing.assert_close(first[0] if isinstance(first, tuple) else first, wanted[0, 0])


@every_cell
@backends
def test_streams_of_rows_of_different_lengths(cell, backend):
    made = Recurrent(cell, INPUT, H, bidirectional=True, dtype=torch.float64, backend=backend)
    x, streams = _random(T, B, INPUT), _streams(cell, T, B, H)
    lengths = torch.tensor([2, 5, 3])
    output, _ = made(x, lengths=lengths, streams=streams)
    for b, length in enumerate(lengths.tolist()):
        alone, _ = made(x[:length, b], streams=[s[:length, b] for s in streams])
        torch.testing.assert_close(output[:length, b], alone)
    packed = [pack_padded_sequence(s, lengths, enforce_sorted=False) for s in (x, *streams)]
    got, _ = made(packed[0], streams=packed[1:])
    padded, _ = nn.utils.rnn.pad_packed_sequence(got)
    torch.testing.assert_close(padded, output)


def _sequence_of_segments(made, x, hx, reset, reset_hx):
    """The oracle: each segment of each row and direction alone, in one layer."""
    directions = 2 if made.bidirectional else 1
    output = x.new_zeros(T, B, directions * H)
    for b in range(B):
        starts = sorted({0, *reset[:, b].nonzero().flatten().tolist()})
        for begin, end in zip(starts, [*starts[1:], T], strict=True):
            at = (begin, end)
            for d in range(directions):
                # The backward direction meets a reset where the segment before it ends.
                given = at[d] < T and bool(reset[at[d], b])
                first = [
                    (r[at[d], d, b] if given else h[d, b])
                    for r, h in zip(reset_hx, hx, strict=True)
                ]
                one = Recurrent(made.cell, INPUT, H, dtype=x.dtype, backend="reference")
                weights = {
                    f"{name}_l0": getattr(made, f"{name}_l0{('', '_reverse')[d]}")
                    for name in made._shapes(1)
                }
                piece = x[begin:end, b].flip(0) if d else x[begin:end, b]
                state = tuple(s.unsqueeze(0) for s in first)
                arguments = (piece, state if len(state) > 1 else state[0])
                out, _ = torch.func.functional_call(one, weights, arguments)
                output[begin:end, b, d * H : (d + 1) * H] = out.flip(0) if d else out
    return output


@pytest.mark.parametrize("cell", ["lstm", "gru", "fgr_lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
@backends
def test_states_at_resets(cell, bidirectional, zeros, backend):
    made = Recurrent(
        cell, INPUT, H, bidirectional=bidirectional, dtype=torch.float64, backend=backend
    )
    rows, count = 2 if bidirectional else 1, len(made.cell.states)
    x, reset = _random(T, B, INPUT).requires_grad_(), torch.zeros(T, B, dtype=torch.bool)
    reset[0, 0] = reset[2, 0] = reset[4, 0] = reset[1, 1] = reset[2, 1] = True
    given = [_random(T, rows, B, H).requires_grad_() for _ in range(count)]
    hx = [_random(rows, B, H) * (not zeros) for _ in range(count)]
    own = None if zeros else tuple(hx) if count > 1 else hx[0]
    leaves = [x, *given, *made.parameters()]
    got, _ = made(x, own, reset=reset, reset_hx=tuple(given) if count > 1 else given[0])
    results = []
    for output in (got, _sequence_of_segments(made, x, hx, reset, given)):
        gradients = torch.autograd.grad(output.square().sum(), leaves)
        results.append({str(i): t for i, t in enumerate([output, *gradients])})
    assert_equal_in_float64(*results)


@pytest.mark.parametrize("options", [{}, {"proj_size": 2}, {"bidirectional": True}], ids=str)
@backends
def test_learned_initial_states(options, backend):
    made = fused_rnn.LSTM(
        INPUT, H, 2, learn_h0=True, dtype=torch.float64, backend=backend, **options
    )
    assert "learn_h0=True" in repr(made)
    own = [name for name in made.state_dict() if name.split("0_l")[0] in ("h", "c")]
    assert len(own) == 2 * 2 * made._directions
    assert not any(made.get_parameter(name).any() for name in own)
    for name in own:
        nn.init.normal_(made.get_parameter(name))
    x = _random(T, B, INPUT)
    first = [
        torch.stack([made.get_parameter(name) for name in names]).unsqueeze(1).expand(-1, B, -1)
        for names in made._initial_names
    ]
    got, wanted = run_module(made, x), run_module(made, x, [s.contiguous() for s in first])
    for i, names in enumerate(made._initial_names):
        for k, name in enumerate(names):
            wanted[f"d{name}"] = wanted[f"dhx.{i}"][k].sum(0)
        del wanted[f"dhx.{i}"]
    assert_equal_in_float64(got, wanted)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2] = True
    if not options:
        again, _ = made(x, reset=reset)
        begins = [s[:1] for s in first]
        one = fused_rnn.LSTM(INPUT, H, dtype=torch.float64)
        one.load_state_dict({n: made.get_parameter(n) for n in one.state_dict()})
        both = [one(x[:2], begins)[0], one(x[2:], begins)[0]]
        two = fused_rnn.LSTM(H, H, dtype=torch.float64)
        two.load_state_dict(
            {n: made.get_parameter(n.replace("_l0", "_l1")) for n in two.state_dict()}
        )
        begins = [s[1:] for s in first]
        torch.testing.assert_close(again, torch.cat([two(part, begins)[0] for part in both]))


def test_learned_initial_states_stay_when_reverted():
    made = fused_rnn.LSTM(INPUT, H, learn_h0=True)
    with pytest.warns(UserWarning, match="torch.nn has no learn_h0"):
        fused_rnn.revert(made)
    assert type(made) is fused_rnn.LSTM


@pytest.mark.parametrize(
    ("cell", "given", "kind", "words"),
    [
        ("phased_lstm", {}, TypeError, "takes a Tensor time, got NoneType"),
        ("lstm", {"streams": (1,)}, TypeError, "cell 'lstm' takes none, got 1"),
        ("phased_lstm", {"streams": 3}, TypeError, "takes a Tensor time, got int"),
        ("phased_lstm", {"streams": [3]}, TypeError, "time: expected a Tensor, got int"),
        (
            "phased_lstm",
            {"streams": torch.ones(T, B, 2)},
            RuntimeError,
            r"time: expected shape \(5, 3, 6\), or 1 .* got \(5, 3, 2\)",
        ),
        (
            "phased_lstm",
            {"streams": torch.ones(T, B, H, dtype=torch.float64)},
            ValueError,
            "time: expected dtype",
        ),
        ("gru", {"reset_hx": torch.ones(T, 1, B, H)}, RuntimeError, "expected reset too"),
        (
            "gru",
            {"reset_hx": torch.ones(1, B, H), "reset": torch.ones(T, B).bool()},
            RuntimeError,
            r"state h: expected shape \(5, 1, 3, 6\)",
        ),
        (
            "lstm",
            {"reset_hx": torch.ones(T, 1, B, H), "reset": torch.ones(T, B).bool()},
            TypeError,
            "reset_hx: expected a tuple of 2 tensors",
        ),
    ],
)
def test_refused(cell, given, kind, words):
    with pytest.raises(kind, match=words):
        Recurrent(cell, INPUT, H)(torch.ones(T, B, INPUT), **given)


def test_compiled():
    made = Recurrent("phased_lstm", INPUT, H, learn_h0=True)
    x, time = torch.rand(T, B, INPUT), torch.arange(T).float().view(T, 1, 1)
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, streams=time), made(x, streams=time))
    exported = torch.export.export(made, (x,), {"streams": time}).module()
    torch.testing.assert_close(exported(x, streams=time), made(x, streams=time))
