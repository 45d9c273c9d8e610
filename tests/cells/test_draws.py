"""The generator of drawn streams against published vectors and Triton's, and what is made of it."""

import numpy as np
import pytest
import torch

from fused_rnn import Bernoulli, Cell, cells
from fused_rnn.cells import draws

# The known answers of Random123 for philox4x32_10: counter, key, words.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize("at_once", [1 << 16, 10])  # counters: of all rows, and of eight
def test_matrices_have_their_places(monkeypatch, at_once):
    """Every value is the word that the docstring of ``draws.of_matrix`` names."""
    monkeypatch.setattr(draws, "_AT_ONCE", at_once)
    seed, shape = (1 << 61) + 987654321987, (18, 5)
    key = torch.tensor([seed, 7, 1, 2, 3])  # the step and the rows of a call do not matter
    found = draws.of_matrix(key, 2, 1, shape, 0.3)
    want = torch.empty(shape, dtype=torch.bool)
    for r, c in np.ndindex(*shape):
        words = _philox(seed, [c, r // 4, 2, (1 << 30) + 1])
        want[r, c] = (words[r % 4] >> 8) < round(0.3 * 2**24)
    assert found.equal(want)
    kept = draws.of_matrix(key, 0, 0, (400, 250), 0.3).double().mean().item()
    assert abs(kept - 0.3) < 0.01  # seven standard deviations


def _drawing(*streams):
    def step(pre, state, params, streams, t):
        (n,), (h,) = pre, state
        for stream in streams:
            n = n + stream
        return n + h

    return Cell("counting", step, gates=("n",), streams=streams)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    key = tuple(torch.tensor([word]) for word in key)
    found = draws.philox(key, [torch.tensor([word]) for word in counter])
    assert [word.item() for word in found] == words


def _philox(seed, counter):
    """The generator of the paper, by Python's integers."""
    c, k = list(counter), [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_values_have_their_places():
    """Every value is the word that the docstring of ``draws`` names, as an oracle finds it."""
    streams = [Bernoulli(f"s{n}", 0.1 * n + 0.2) for n in range(5)]
    streams += [Bernoulli("c", 0.5, per="sequence"), Bernoulli("last", 0.7)]
    cell, seed = _drawing(*streams), (1 << 62) + 12345678901
    key, times = torch.tensor([seed, 1 << 20, 4, 9]), torch.tensor([6, 2, 3])
    found = draws.values(cell, key, times, 2, 3, torch.float64)
    blocks = [0, 0, 0, 0, 1, 2, 3]
    words = [0, 1, 2, 3, 0, 0, 0]
    for n, (stream, values) in enumerate(zip(streams, found, strict=True)):
        want = np.zeros((3, 2, 2, 3))
        for t, b, d, h in np.ndindex(*want.shape):
            step = 0 if stream.per == "sequence" else (1 << 20) + times[t].item()
            counter = (h, key[2 + b].item(), step, 2 * blocks[n] + d)
            want[t, b, d, h] = _philox(seed, counter)[words[n]] / 2**32 < stream.p
        assert torch.equal(values, torch.from_numpy(want)), stream.name


def test_heads_have_the_units_of_their_layer():
    cell = _drawing(Bernoulli("a", 0.5), Bernoulli("b", 0.5, per="sequence"))
    key, times = draws.draw_key(3), torch.arange(4)
    whole = draws.values(cell, key, times, 2, 6, torch.float32)
    parts = draws.values(cell, key, times, 4, 3, torch.float32, heads=2)
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one.unflatten(-1, (2, 3)).flatten(2, 3), other)


def test_mean_of_many():
    cell = _drawing(Bernoulli("a", 0.3), Bernoulli("never", 0.0), Bernoulli("always", 1))
    a, never, always = draws.values(
        cell, draws.draw_key(20), torch.arange(50), 2, 50, torch.float32
    )
    assert abs(a.mean().item() - 0.3) < 0.006  # four standard deviations
    for dim in range(4):
        means = a.mean([d for d in range(4) if d != dim])
        assert (means - 0.3).abs().max() < 0.05
    assert never.sum() == 0
    assert always.min() == 1


def test_keys_repeat_with_the_seed():
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(cells.draw_key(3))
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], cells.draw_key(3, generator=generator))
    assert made[0][0] != made[2][0]
    assert made[0].tolist()[1:] == [0, 0, 1, 2]
    assert cells.draw_key(2, order=torch.tensor([1, 0])).tolist()[1:] == [0, 1, 0]


def test_tritons_generator(interpreter):
    triton = pytest.importorskip("triton")
    import triton.language as tl

    @triton.jit
    def kernel(out_ptr, seed, row):
        units = tl.arange(0, 8).to(tl.uint32)
        words = tl.philox(seed, units, row.to(tl.uint32), tl.full((), 5, tl.uint32), row * 0 + 3)
        for i in tl.static_range(4):
            tl.store(out_ptr + i * 8 + tl.arange(0, 8), words[i].to(tl.int64))

    out, seed = torch.empty(4, 8, dtype=torch.int64), 0x1234567890ABCDEF
    kernel[(1,)](out, seed, 7)
    for unit in range(8):
        assert out[:, unit].tolist() == _philox(seed, (unit, 7, 5, 3))


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: Bernoulli("a", 1.5), ValueError, "p: expected a probability from 0 to 1, got 1.5"),
        (lambda: Bernoulli("a", "x"), TypeError, "p: expected a number, got str"),
        (lambda: Bernoulli("a b", 0.5), ValueError, "name: expected a Python identifier"),
        (lambda: Bernoulli("a", 0.5, "row"), ValueError, 'expected "step" or "sequence"'),
        (lambda: _drawing(Bernoulli("a", 0.5), "b"), ValueError, r"\['a'\], after all others"),
        (lambda: _drawing(Bernoulli("a", 0.5), Bernoulli("a", 0.5)), ValueError, "distinct"),
    ],
)
def test_refused(make, kind, words):
    with pytest.raises(kind, match=words):
        make()
