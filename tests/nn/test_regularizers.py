"""Zoneout and dropout of the old output, of candidates, against loops with the same masks."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import fused_rnn
from fused_rnn import Recurrent, cells
from fused_rnn.cells import draws, reference, regularized
from fused_rnn.nn import regularizers
from tests.support.problems import make_problem, run_module
from tests.support.tolerances import assert_equal_in_float64

T, B, INPUT, H = 5, 3, 4, 6
BACKENDS = ["cpp", "sequence", "reference"]
backends = pytest.mark.parametrize("backend", BACKENDS)
OPTIONS = [
    {"zoneout": 0.4},
    {"zoneout": (0.3, 0.0)},
    {"state_dropout": 0.5},
    {"zoneout": (0.2, 0.3), "state_dropout": 0.5},
]


@pytest.fixture
def keys(monkeypatch):
    """The keys that the calls of a layer draw, in their order."""
    found, draw = [], cells.draw_key

    def spy(*arguments, **options):
        found.append(draw(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(cells, "draw_key", spy)
    return found


def _masks(made, key, directions=1):
    """By name what a layer draws from a key, each (T, B, D, H)."""
    cell = regularizers.disturbed(made._regularizers, True, made.cell)
    values = draws.values(cell, key, torch.arange(T), directions, H, torch.float64)
    return {stream.name: value for stream, value in zip(cell.drawn, values, strict=True)}


def _loop(made, x, masks, side=""):
    """The oracle: torch.nn's cell of one step, with what was drawn for one direction."""
    masks = {name: mask.squeeze(2) for name, mask in masks.items()}
    kind, states = (nn.LSTMCell, 2) if made.cell is cells.LSTM else (nn.GRUCell, 1)
    one = kind(INPUT, H, dtype=x.dtype)
    weights = {n: getattr(made, f"{n}_l0{side}") for n in one.state_dict()}
    state, outputs = [x.new_zeros(B, H)] * states, []
    zoned = {i: masks[n] for i, n in enumerate(("zoneout_h", "zoneout_c")) if n in masks}
    kept = masks.get("seen_h", torch.ones(T, B, H, dtype=x.dtype))
    kept = kept / (1 - made.state_dropout)
    for t in range(T):
        # The GRU's own update reads h as it is: only the product sees the mask.
        seen = [state[0] * kept[t], *state[1:]]
        if states == 2:
            new = torch.func.functional_call(one, weights, (x[t], tuple(seen)))
        else:
            rows = functional.linear(x[t], weights["weight_ih"], weights["bias_ih"])
            products = functional.linear(seen[0], weights["weight_hh"], weights["bias_hh"])
            (r, z, n), (pr, pz, pn) = rows.chunk(3, -1), products.chunk(3, -1)
            z = torch.sigmoid(z + pz)
            n = torch.tanh(n + torch.sigmoid(r + pr) * pn)
            new = [(1 - z) * n + z * state[0]]
        state = [
            torch.where(zoned[i][t] > 0.5, old, now) if i in zoned else now
            for i, (old, now) in enumerate(zip(state, new, strict=True))
        ]
        outputs.append(state[0])
    return torch.stack(outputs), state


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@backends
def test_training_has_the_masks_that_were_drawn(options, backend, keys):
    made = fused_rnn.LSTM(INPUT, H, dtype=torch.float64, backend=backend, **options)
    x = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
    leaves, results = [x, *made.parameters()], []
    got = made(x)
    masks = _masks(made, *keys)
    for mask in masks.values():
        assert 0 < mask.count_nonzero() < mask.numel()
    wanted = _loop(made, x, masks)
    for output, states in (got, wanted):
        gradients = torch.autograd.grad(output.square().sum() + states[1].sum(), leaves)
        results.append({str(i): t.squeeze(0) for i, t in enumerate([output, *states, *gradients])})
    assert_equal_in_float64(*results)


@pytest.mark.parametrize("options", [{"zoneout": 0.4}, {"state_dropout": 0.5}], ids=str)
def test_gru_updates_from_the_whole_state(options, keys):
    made = fused_rnn.GRU(INPUT, H, dtype=torch.float64, **options)
    x = torch.randn(T, B, INPUT, dtype=torch.float64)
    output, _ = made(x)
    torch.testing.assert_close(output, _loop(made, x, _masks(made, *keys))[0])


def test_a_dropped_unit_stays_hidden_for_a_row(keys):
    made = fused_rnn.LSTM(INPUT, H, bidirectional=True, state_dropout=0.5)
    made(torch.randn(T, B, INPUT))
    (mask,) = _masks(made, *keys, directions=2).values()
    assert (mask == mask[0]).all()
    assert not (mask[:, :, 0] == mask[:, :, 1]).all()


@backends
def test_evaluation_takes_the_expectation_of_zoneout(backend):
    made = fused_rnn.GRU(INPUT, H, zoneout=0.25, dtype=torch.float64, backend=backend).eval()
    x, h, outputs = torch.randn(T, B, INPUT, dtype=torch.float64), torch.zeros(B, H).double(), []
    one = nn.GRUCell(INPUT, H, dtype=torch.float64)
    weights = {n: getattr(made, f"{n}_l0") for n in one.state_dict()}
    for t in range(T):
        h = 0.25 * h + 0.75 * torch.func.functional_call(one, weights, (x[t], h))
        outputs.append(h)
    torch.testing.assert_close(made(x)[0], torch.stack(outputs))


def test_evaluation_drops_nothing():
    made = fused_rnn.LSTM(INPUT, H, state_dropout=0.5, weight_drop=0.5).eval()
    plain = nn.LSTM(INPUT, H)
    plain.load_state_dict(made.state_dict())
    x = torch.randn(T, B, INPUT)
    torch.testing.assert_close(made(x)[0], plain(x)[0])


def test_seeds_repeat_the_masks_on_every_backend():
    made = Recurrent(
        "gru", INPUT, H, 2, bidirectional=True, zoneout=0.3, state_dropout=0.3, weight_drop=0.1
    )
    x, results = torch.randn(T, B, INPUT), []
    for backend in ("cpp", "sequence", "reference"):
        made.backend = backend
        torch.manual_seed(1)
        results.append(made(x)[0])
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])
    torch.manual_seed(2)
    assert not made(x)[0].equal(results[2])


def test_kernels(interpreter):
    made = fused_rnn.LSTM(INPUT, H, zoneout=0.3, state_dropout=0.3, backend="triton")
    x = torch.randn(T, B, INPUT)
    torch.manual_seed(1)
    got, _ = made(x)
    made.backend = "reference"
    torch.manual_seed(1)
    torch.testing.assert_close(got, made(x)[0])


def test_lengths_and_resets():
    made = fused_rnn.LSTM(INPUT, H, zoneout=0.25, dtype=torch.float64).eval()
    x, reset = torch.randn(T, B, INPUT, dtype=torch.float64), torch.zeros(T, B, dtype=torch.bool)
    reset[2, 0] = True
    output, _ = made(x, reset=reset, lengths=torch.tensor([5, 3, 4]))
    torch.testing.assert_close(output[2:, 0], made(x[2:, 0])[0])
    torch.testing.assert_close(output[:3, 1], made(x[:3, 1])[0])


def test_compiled_and_kept():
    made = fused_rnn.GRU(INPUT, H, zoneout=0.3)
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    compiled(torch.randn(T, B, INPUT))[0].sum().backward()
    made.eval()
    x = torch.randn(T, B, INPUT)
    torch.testing.assert_close(compiled(x), made(x))
    assert "zoneout=0.3" in repr(made)
    with pytest.warns(UserWarning, match="torch.nn has no zoneout"):
        fused_rnn.revert(made)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"zoneout": 1.0}, ValueError, "zoneout: expected a probability from 0 to below 1"),
        ({"zoneout": (0.1,)}, ValueError, r"one for each of the states \('h', 'c'\)"),
        ({"zoneout": "0.1"}, TypeError, "zoneout: expected a number, got str"),
        ({"state_dropout": -0.1}, ValueError, "state_dropout: expected a probability"),
        ({"weight_drop": True}, TypeError, "weight_drop: expected a number, got bool"),
        ({"zoneout": 0.1, "proj_size": 2}, ValueError, "zoneout: expected 0 with proj_size=2"),
        ({"cell": "min_gru", "weight_drop": 0.1}, ValueError, "has no recurrent product"),
        ({"cell": "nas", "recurrent_dropout": 0.1}, ValueError, "not say what its candidate is"),
        ({"cell": "gru", "cell_clip": 1.0}, ValueError, "not say what its memory is; expected No"),
        ({"cell_clip": 0}, ValueError, "cell_clip: expected a positive number or None, got 0"),
        ({"cell_clip": "1"}, TypeError, "cell_clip: expected a number, got str"),
        ({"recurrent_dropout": 1}, ValueError, "recurrent_dropout: expected a probability"),
    ],
)
def test_refused(options, kind, words):
    options = {"cell": "lstm", "input_size": INPUT, "hidden_size": H} | options
    with pytest.raises(kind, match=words):
        Recurrent(**options)


def test_torch_nn_has_no_zoneout():
    made = fused_rnn.LSTM(INPUT, H, zoneout=0.1, backend="aten")
    with pytest.raises(RuntimeError, match='"aten" cannot run zoneout'):
        made(torch.randn(T, B, INPUT))


CELL_OPTIONS = {"zoneout": (0.3, 0.1), "state_dropout": 0.4, "recurrent_dropout": 0.3}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_steps_with_a_key_draw_what_a_layer_draws(backend, dtype, keys):
    layer = fused_rnn.LSTM(INPUT, H, dtype=dtype, cell_clip=0.2, **CELL_OPTIONS)
    one = fused_rnn.LSTMCell(INPUT, H, dtype=dtype, cell_clip=0.2, backend=backend, **CELL_OPTIONS)
    one.load_state_dict({n.removesuffix("_l0"): v for n, v in layer.state_dict().items()})
    x, state, outputs = torch.randn(T, B, INPUT, dtype=dtype), None, []
    with torch.no_grad():
        wanted, _ = layer(x)
        for t in range(T):
            state = one(x[t], state, key=keys[0], step=t)
            outputs.append(state[0])
    torch.testing.assert_close(torch.stack(outputs), wanted)
    assert not one(x[0])[0].equal(one(x[0])[0])


def test_steps_repeat_with_the_seed():
    one = fused_rnn.GRUCell(INPUT, H, zoneout=0.5)
    x, results = torch.randn(2, B, INPUT), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append([one(x[0], torch.ones(B, H)), one(x[1])])
    assert results[0][0].equal(results[1][0])
    assert results[0][1].equal(results[1][1])
    assert not results[0][0].equal(results[2][0])
    assert one.eval()(x[0]).equal(one(x[0]))
    assert "zoneout=0.5" in repr(one)


@pytest.mark.parametrize(
    ("options", "call", "kind", "words"),
    [
        ({}, {"key": cells.draw_key(B)}, ValueError, "draws nothing"),
        ({"zoneout": 0.1}, {"step": 1}, ValueError, "step: expected a key too"),
        ({"zoneout": 0.1}, {"key": torch.zeros(5)}, ValueError, "key: expected a key by cells"),
        ({"zoneout": 0.1}, {"key": 3}, TypeError, "key: expected a Tensor, got int"),
        ({"zoneout": 0.1}, {"key": cells.draw_key(2)}, RuntimeError, "key: expected shape"),
    ],
)
def test_refused_by_a_step(options, call, kind, words):
    with pytest.raises(kind, match=words):
        fused_rnn.GRUCell(INPUT, H, **options)(torch.randn(B, INPUT), **call)


def test_rows_of_packed_input_keep_their_numbers(keys):
    """A row draws by its number in the batch, however it is sorted, and by the index of the step,
    however long the others are; so do both directions."""
    made = Recurrent("lstm", INPUT, H, bidirectional=True, dtype=torch.float64, **CELL_OPTIONS)
    x, lengths = torch.randn(T, B, INPUT, dtype=torch.float64), torch.tensor([2, 5, 3])
    results = []
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    for run in (lambda: made(x, lengths=lengths), lambda: made(packed)):
        torch.manual_seed(1)
        results.append(run())
    (padded, finals), (of_packed, of_finals) = results
    torch.testing.assert_close(pad_packed_sequence(of_packed)[0], padded)
    torch.testing.assert_close(of_finals, finals)
    assert [key.tolist()[2:] for key in keys] == [[0, 1, 2], [1, 2, 0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_recurrent_dropout_and_clip(backend, keys):
    """c = clip(f * c_ + i * d(g)); the other numbers are those of torch.nn's LSTM."""
    made = fused_rnn.LSTM(
        INPUT, H, recurrent_dropout=0.4, cell_clip=0.15, dtype=torch.float64, backend=backend
    )
    x = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
    leaves, results = [x, *made.parameters()], []
    for training in (True, False):
        made.train(training)
        got = made(x)
        mask = _masks(made, keys[0])["candidate"].squeeze(2) / 0.6 if training else torch.ones(T)
        h = c = torch.zeros(B, H, dtype=torch.float64)
        outputs = []
        for t in range(T):
            gates = functional.linear(x[t], made.weight_ih_l0, made.bias_ih_l0)
            gates = gates + functional.linear(h, made.weight_hh_l0, made.bias_hh_l0)
            i, f, g, o = gates.chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g) * mask[t]
            c = c.clamp(-0.15, 0.15)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        wanted = torch.stack(outputs), (h.unsqueeze(0), c.unsqueeze(0))
        assert c.abs().max() == 0.15
        results = []
        for output, states in (got, wanted):
            loss = output.square().sum() + states[1].sum()
            gradients = torch.autograd.grad(loss, leaves)
            results.append({str(i): t for i, t in enumerate([output, *states, *gradients])})
        assert_equal_in_float64(*results)


MARKED = [name for name in cells.names() if regularized.marks(cells.get(name), "candidate")]


# Their memories have more than the old one and the candidate.
OTHERS = ("depth_gated_lstm", "time_aware_lstm")


@pytest.mark.parametrize("name", [name for name in MARKED if name not in OTHERS])
def test_a_cell_without_candidates_takes_up_nothing(name):
    """A memory of zeros stays so."""
    cell = cells.get(name)
    none = regularized.regularize(cell, (), 0.0, 1 - 1e-9, 0.0, True)
    problem = make_problem(cell, 4, 3, 5, dtype=torch.float64, initial=False)
    arguments = problem.arguments()
    streams = [*arguments.streams, draws.draw_key(3)]
    sequences, _ = reference.forward(none, *arguments._replace(streams=streams))
    memory = cell.states.index("c") if "c" in cell.states else 0
    assert not sequences[memory].any()
    assert reference.forward(cell, *arguments)[0][memory].any()


def test_one_key_serves_all_layers_and_rows():
    """Layers differ; the same key repeats, for packed input too; and its rows go with the batch."""
    made = Recurrent("lstm", INPUT, H, 2, bidirectional=True, dtype=torch.float64, **CELL_OPTIONS)
    x, key = torch.randn(T, B, INPUT, dtype=torch.float64), cells.draw_key(B)
    output, _ = made(x, key=key)
    assert output.equal(made(x, key=key)[0])
    assert not output.equal(made(x)[0])
    order = torch.tensor([2, 0, 1])
    moved = torch.cat([key[:2], key[2:][order]])
    torch.testing.assert_close(made(x[:, order], key=moved)[0], output[:, order])
    lengths = torch.tensor([2, 5, 3])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    padded, _ = made(x, lengths=lengths, key=key)
    torch.testing.assert_close(pad_packed_sequence(made(packed, key=key)[0])[0], padded)
    same = Recurrent("lstm", H, H, 2, zoneout=0.5, bias=False)
    same.load_state_dict({n: torch.eye(H).repeat(4, 1) for n in same.state_dict()})
    states = same(torch.zeros(T, B, H), (torch.ones(2, B, H), torch.ones(2, B, H)), key=key)[1]
    assert not states[1][0].equal(states[1][1])
    with pytest.raises(ValueError, match="key: expected None, since 'lstm' draws nothing"):
        fused_rnn.LSTM(INPUT, H)(x.float(), key=key)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_draws_as_it_is_told(randomness):
    made = fused_rnn.LSTM(INPUT, H, dtype=torch.float64, **CELL_OPTIONS)
    x = torch.randn(T, B, INPUT, dtype=torch.float64).expand(3, -1, -1, -1)
    run = torch.func.vmap(lambda x: made(x)[0], randomness=randomness)
    torch.manual_seed(1)
    outputs = run(x)
    assert outputs[0].allclose(outputs[1]) == (randomness == "same")
    if randomness == "same":
        torch.manual_seed(1)
        torch.testing.assert_close(outputs[0], made(x[0])[0])
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(lambda x: made(x)[0])(x)


@pytest.mark.parametrize("backend", ["cpp", "sequence"])
@pytest.mark.parametrize("name", MARKED)
def test_every_engine_disturbs_every_cell_alike(name, backend):
    cell = cells.get(name)
    clip = 0.5 if regularized.marks(cell, "memory") else 0.0
    zoneout = (0.3,) * len(cell.states)
    disturbed = regularized.regularize(cell, zoneout, 0.25, 0.4, clip, True)
    problem = make_problem(disturbed, 4, 3, 5, D=2, dtype=torch.float64)
    assert_equal_in_float64(problem.run(backend), problem.run("reference"))


def test_heads_draw_the_same_bits():
    results = []
    for backend in BACKENDS:
        torch.manual_seed(0)
        made = fused_rnn.LSTM(
            INPUT, H, num_heads=3, dtype=torch.float64, backend=backend, **CELL_OPTIONS
        )
        torch.manual_seed(1)
        x = torch.randn(T, B, INPUT, dtype=torch.float64)
        results.append(run_module(made, x))
    assert_equal_in_float64(results[0], results[2])
    assert_equal_in_float64(results[1], results[2])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_nothing_is_stored(backend, recompute, monkeypatch, request):
    """Neither drawn in advance nor kept for the backward: no tensor of the size of a stream."""
    if backend == "triton":
        request.getfixturevalue("interpreter")
    made = fused_rnn.LSTM(
        INPUT, 7, zoneout=0.3, recurrent_dropout=0.2, backend=backend, recompute=recompute
    )
    x = torch.randn(T, B, INPUT, requires_grad=True)
    made(x)[0].sum().backward()  # what is made once
    monkeypatch.setattr(draws, "philox", None)
    made(x)[0].sum().backward()


def test_checkpoints_and_recompute_draw_again_what_was_drawn():
    made = fused_rnn.LSTM(INPUT, H, dtype=torch.float64, **CELL_OPTIONS)
    again = fused_rnn.LSTM(INPUT, H, dtype=torch.float64, recompute=True, **CELL_OPTIONS)
    again.load_state_dict(made.state_dict())
    x = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
    runs = (
        lambda: made(x)[0],
        lambda: again(x)[0],
        lambda: checkpoint(lambda x: made(x)[0], x, use_reentrant=False),
    )
    found = []
    for run in runs:
        torch.manual_seed(1)
        output = run()
        found.append({"y": output, "dx": torch.autograd.grad(output.square().sum(), x)[0]})
    assert_equal_in_float64(found[1], found[0])
    assert_equal_in_float64(found[2], found[0])


def test_a_cell_of_ones_own_says_what_its_candidate_is():
    def step(pre, state, candidate=cells.same, memory=cells.same):
        (n,), (h,) = pre, state
        return memory(0.5 * h + candidate(torch.tanh(n)))

    cell = fused_rnn.Cell("own", step, gates=("n",))
    made = Recurrent(cell, INPUT, H, recurrent_dropout=0.5, cell_clip=0.3, backend="sequence")
    output, _ = made(torch.randn(T, B, INPUT))
    assert output.abs().max() <= 0.3
    assert (output[0] == 0).any()
