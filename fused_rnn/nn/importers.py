"""Modules with the weights of layers of other frameworks: Keras, Haste, madmom, ONNX, TiRex.

Each function takes plain arrays (NumPy's, tensors or nested lists) and returns a module of one
layer whose outputs are the source's. The arrays are copied; their dtype is the module's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checks.arguments import check_flags
from .gru import GRU
from .lstm import CIFGLSTM, LSTM, PeepholeLSTM
from .recurrent import Recurrent
from .rnn import RNN
from .slstm import SLSTM

__all__ = ["from_haste", "from_keras", "from_madmom", "from_onnx", "from_tirex"]

# The gates of the blocks of each matrix, by our letters: g and n are the candidates, which the
# others call c, g or h. In all of these z keeps the old state, as in torch.nn.
ORDERS = {
    "torch": {"LSTM": "ifgo", "GRU": "rzn", "RNN": "n", "CIFG": "fgo", "peepholes": "ifo"},
    "keras": {"LSTM": "ifgo", "GRU": "zrn", "RNN": "n"},
    "haste": {"LSTM": "igfo", "GRU": "zrn"},
    "onnx": {"LSTM": "iofg", "GRU": "zrn", "RNN": "n", "peepholes": "iof"},
}


@dataclass
class _Direction:
    """The weights of one direction, a block per gate.

    Attributes:
        w, r: per gate (H, I) and (H, H).
        b: per gate (H,), of the input or the only one; empty without biases.
        recurrent_b: per gate (H,); empty for zeros.
        p: per gate with a peephole (H,).
    """

    w: dict[str, Tensor]
    r: dict[str, Tensor]
    b: dict[str, Tensor] = field(default_factory=dict)
    recurrent_b: dict[str, Tensor] = field(default_factory=dict)
    p: dict[str, Tensor] = field(default_factory=dict)


def from_keras(
    kind: str,
    weights: Sequence[Any],
    *,
    reset_after: bool = True,
    activation: str = "tanh",
    bidirectional: bool = False,
    batch_first: bool = True,
    backend: str | None = None,
) -> Recurrent:
    """Make a module of what ``layer.get_weights()`` of a Keras layer returns.

    Args:
        kind: the layer's class: "LSTM", "GRU" or "SimpleRNN", with its default activations.
        weights: kernel (I, G·H), recurrent_kernel (H, G·H) and, unless ``use_bias=False``, bias
            (G·H,); of a GRU with ``reset_after`` (2, 3H). ``Bidirectional`` has those of the
            forward layer and then those of the backward one.
        reset_after: of a GRU, as it was made; Keras's default is True.
        activation: of a SimpleRNN, "tanh" or "relu".
        bidirectional: whether ``weights`` are those of ``Bidirectional(layer)``, whose outputs are
            concatenated.
        batch_first, backend: of the module. Keras has (B, T, I).

    Raises:
        TypeError: an argument of another type.
        ValueError: an unknown kind, or an array of another shape; names it.
    """
    check_flags(reset_after=reset_after, bidirectional=bidirectional)
    name = _known(kind, {"LSTM": "LSTM", "GRU": "GRU", "SimpleRNN": "RNN"})
    if isinstance(weights, (Tensor, str)) or not isinstance(weights, Sequence):
        got = type(weights).__name__
        raise TypeError(f"weights: expected a list as get_weights() returns, got {got}")
    counts = (4, 6) if bidirectional else (2, 3)
    if len(weights) not in counts:
        raise ValueError(f"weights: expected {counts[0]} or {counts[1]} arrays, got {len(weights)}")
    order, directions = ORDERS["keras"][name], []
    each = len(weights) // (2 if bidirectional else 1)
    for begin in range(0, len(weights), each):
        label = "weights[{}]".format
        kernel, recurrent = (_array(weights[i], label(i), 2) for i in (begin, begin + 1))
        found = _transposed(kernel, recurrent, order, label(begin), label(begin + 1))
        if each == 3:
            hidden, where = len(recurrent), label(begin + 2)
            bias = _array(weights[begin + 2], where)
            two = name == "GRU" and reset_after
            wanted = (2, 3 * hidden) if two else (len(order) * hidden,)
            hint = f" with reset_after={reset_after}" if name == "GRU" else ""
            _expect(bias, f"{where} (bias{hint})", wanted)
            found.b = _blocks(bias[0] if two else bias, order)
            found.recurrent_b = _blocks(bias[1], order) if two else {}
        directions.append(found)
    more = {"GRU": {"reset_after": reset_after}, "RNN": {"nonlinearity": activation}}
    options = more.get(name, {}) | {"batch_first": batch_first, "backend": backend}
    return _made({"LSTM": LSTM, "GRU": GRU, "RNN": RNN}[name], name, directions, options)


def from_haste(
    kind: str,
    weights: Mapping[str, Any],
    *,
    batch_first: bool = False,
    backend: str | None = None,
) -> Recurrent:
    """Make a module of the ``state_dict()`` of a layer of Haste's ``haste_pytorch``.

    Args:
        kind: the layer's class, "LSTM" or "GRU"; without zoneout.
        weights: kernel (I, G·H), recurrent_kernel (H, G·H), bias (G·H,), and of a GRU
            recurrent_bias (3H,). Its reset gate acts after the product.
        batch_first, backend: of the module.

    Raises:
        TypeError: an argument of another type.
        ValueError: an unknown kind, a missing array, or one of another shape; names it.
    """
    name = _known(kind, {"LSTM": "LSTM", "GRU": "GRU"})
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights: expected a state_dict, got {type(weights).__name__}")
    names = ["kernel", "recurrent_kernel", "bias", *(["recurrent_bias"] if name == "GRU" else [])]
    if set(weights) != set(names):
        raise ValueError(f"weights: expected {', '.join(names)}, got {', '.join(weights)}")
    order = ORDERS["haste"][name]
    given = {key: _array(weights[key], key, 2 if "kernel" in key else 1) for key in names}
    found = _transposed(given["kernel"], given["recurrent_kernel"], order, *names[:2])
    for key in names[2:]:
        _expect(given[key], key, (len(order) * len(given["recurrent_kernel"]),))
    found.b = _blocks(given["bias"], order)
    found.recurrent_b = _blocks(given["recurrent_bias"], order) if name == "GRU" else {}
    options = {"batch_first": batch_first, "backend": backend}
    return _made({"LSTM": LSTM, "GRU": GRU}[name], name, [found], options)


def from_madmom(
    input_gate: Sequence[Any],
    forget_gate: Sequence[Any],
    cell: Sequence[Any],
    output_gate: Sequence[Any],
    *,
    backend: str | None = None,
) -> Recurrent:
    """Make a module of the gates of a peephole LSTM with arrays per gate, as madmom's LSTMLayer.

    Args:
        input_gate, forget_gate, cell, output_gate: of each its weights (I, H), bias (H,),
            recurrent_weights (H, H) and, but for ``cell``, peephole_weights (H,) or None. That of
            the output gate is of the new c.
        backend: of the module. Its input is (T, B, I), or (T, I) as madmom's.

    Returns:
        A ``PeepholeLSTM`` with the peepholes that are given, or an ``LSTM`` without any.

    Raises:
        TypeError: an argument of another type.
        ValueError: an array of another shape; names it.
    """
    gates = {"i": input_gate, "f": forget_gate, "g": cell, "o": output_gate}
    names = dict(zip(gates, ("input_gate", "forget_gate", "cell", "output_gate"), strict=True))
    found, size = _Direction({}, {}), None
    for gate, arrays in gates.items():
        where = names[gate]
        if isinstance(arrays, (Tensor, str)) or not isinstance(arrays, Sequence):
            raise TypeError(f"{where}: expected a sequence of arrays, got {type(arrays).__name__}")
        if not 3 <= len(arrays) <= (3 if gate == "g" else 4):
            wanted = "weights, bias, recurrent_weights"
            wanted += "" if gate == "g" else " and perhaps peephole_weights"
            raise ValueError(f"{where}: expected {wanted}, got {len(arrays)} arrays")
        weights = _array(arrays[0], f"{where}, weights", 2)
        features, hidden = size = size or tuple(weights.shape)
        _expect(weights, f"{where}, weights", (features, hidden))
        shapes = {"bias": (hidden,), "recurrent_weights": (hidden, hidden)}
        shapes["peephole_weights"] = (hidden,)
        given = [weights]
        for array, (name, shape) in zip(arrays[1:], shapes.items(), strict=False):
            if array is not None or name != "peephole_weights":
                given.append(_array(array, f"{where}, {name}"))
                _expect(given[-1], f"{where}, {name}", shape)
        found.w[gate], found.b[gate], found.r[gate] = given[0].t(), given[1], given[2].t()
        if len(given) == 4:
            found.p[gate] = given[3]
    return _lstm([found], {"backend": backend})


def from_onnx(
    kind: str,
    W: Any,
    R: Any,
    B: Any = None,
    P: Any = None,
    *,
    linear_before_reset: int = 0,
    input_forget: int = 0,
    activation: str = "Tanh",
    backend: str | None = None,
) -> Recurrent:
    """Make a module of the inputs and attributes of ONNX's operators LSTM, GRU and RNN.

    Args:
        kind: the operator, with its default activations, ``layout=0`` and without ``clip``.
        W, R: (D, G·H, I) and (D, G·H, H); D = 2 where it is bidirectional.
        B: (D, 2·G·H), or None.
        P: of an LSTM (D, 3H), or None.
        linear_before_reset: of a GRU.
        input_forget: of an LSTM, without ``P``.
        activation: of an RNN, "Tanh" or "Relu".
        backend: of the module, whose input is (T, B, I) as the operator's. It returns (T, B, D·H)
            where the operator returns (T, D, B, H).

    Raises:
        TypeError: an argument of another type.
        ValueError: an unknown kind, or an array of another shape; names it.
    """
    name = _known(kind, {"LSTM": "LSTM", "GRU": "GRU", "RNN": "RNN"})
    order, options = ORDERS["onnx"][name], {"backend": backend}
    W, R = _array(W, "W", 3), _array(R, "R", 3)
    hidden = R.shape[2]
    number, rows, features = len(W), len(order) * hidden, W.shape[2]
    if number not in (1, 2):
        raise ValueError(f"W: expected 1 or 2 directions, got {number}")
    _expect(R, "R", (number, rows, hidden))
    _expect(W, "W", (number, rows, features))
    found = [_Direction(_blocks(w, order), _blocks(r, order)) for w, r in zip(W, R, strict=True)]
    if B is not None:
        B = _array(B, "B", 2)
        _expect(B, "B", (number, 2 * rows))
        for direction, both in zip(found, B, strict=True):
            direction.b, direction.recurrent_b = (_blocks(b, order) for b in both.chunk(2))
    if P is not None:
        if name != "LSTM" or input_forget:
            raise ValueError("P: expected None but for an LSTM without input_forget")
        P = _array(P, "P", 2)
        _expect(P, "P", (number, 3 * hidden))
        for direction, p in zip(found, P, strict=True):
            direction.p = _blocks(p, ORDERS["onnx"]["peepholes"])
    if name == "LSTM" and input_forget:  # f = 1 - i, where ours is i = 1 - f
        for direction in found:
            for blocks in (direction.w, direction.r, direction.b, direction.recurrent_b):
                if blocks:
                    blocks["f"] = -blocks["i"]
        return _made(CIFGLSTM, "CIFG", found, options)
    if name == "LSTM":
        return _lstm(found, options)
    if name == "GRU":
        return _made(GRU, "GRU", found, options | {"reset_after": bool(linear_before_reset)})
    if activation not in ("Tanh", "Relu"):
        raise ValueError(f"activation: expected 'Tanh' or 'Relu', got {activation!r}")
    return _made(RNN, "RNN", found, options | {"nonlinearity": activation.lower()})


def from_tirex(weights: Mapping[str, Any], *, backend: str | None = None) -> SLSTM:
    """Make a module of what ``state_dict()`` of TiRex's ``sLSTMLayer`` holds, up to its norm.

    The module takes (B, T, H) as there, computes in the dtype of the weights where TiRex computes
    in bfloat16, and leaves out ``group_norm``. ``convert`` keeps both. The layer's ``fgate`` feeds
    the gate i of its cell, and ``igate`` the gate f.

    Args:
        weights: by name fgate.weight, igate.weight, zgate.weight and ogate.weight (N, K, K) of N
            heads, slstm_cell._recurrent_kernel_ (N, K, 4·K) and slstm_cell._bias_ (N·4·K,), whose
            gates are i, f, z, o. Others are left.
        backend: of the module.

    Raises:
        TypeError, ValueError: an array is missing, or has a wrong dtype or shape.
    """
    names = [f"{gate}gate.weight" for gate in "fizo"]
    cell = ("slstm_cell._recurrent_kernel_", "slstm_cell._bias_")
    missing = [name for name in (*names, *cell) if name not in weights]
    if missing:
        raise ValueError(f"weights: expected {', '.join(missing)}, got {', '.join(weights)}")
    arrays = [_array(weights[name], name) for name in names]
    kernel, bias = (_array(weights[name], name) for name in cell)
    heads, size = (*kernel.shape, 0, 0)[:2]
    for name, array in zip(names, arrays, strict=True):
        _expect(array, name, (heads, size, size))
    _expect(kernel, cell[0], (heads, size, 4 * size))
    _expect(bias, cell[1], (heads * 4 * size,))
    hidden = heads * size
    module = SLSTM(
        hidden, hidden, batch_first=True, num_heads=heads, backend=backend, dtype=kernel.dtype
    )
    by_gate = kernel.view(heads, size, 4, size).permute(2, 0, 3, 1)
    flat = bias.view(heads, 4, size).transpose(0, 1).flatten()
    module.load_state_dict(
        {
            "weight_ih_l0": torch.cat([torch.block_diag(*array) for array in arrays]),
            "weight_hh_l0": by_gate.reshape(4 * hidden, size),
            "bias_ih_l0": flat,
            "bias_hh_l0": torch.zeros_like(flat),
        }
    )
    return module


def _lstm(directions, options) -> Recurrent:
    """An LSTM, or one with the peepholes that there are."""
    peepholes = "".join(gate for gate in "ifo" if gate in directions[0].p)
    if not peepholes:
        return _made(LSTM, "LSTM", directions, options)
    return _made(PeepholeLSTM, "LSTM", directions, options | {"peepholes": peepholes})


def _made(kind, name, directions, options) -> Recurrent:
    """A module of a class with these weights."""
    order, first = ORDERS["torch"][name], directions[0]
    like = first.w[order[0]]
    hidden, features = like.shape
    options["bidirectional"] = len(directions) == 2
    module = kind(features, hidden, bias=bool(first.b), dtype=like.dtype, **options)
    state = {}
    for found, end in zip(directions, ("_l0", "_l0_reverse"), strict=False):
        state[f"weight_ih{end}"] = torch.cat([found.w[gate] for gate in order])
        state[f"weight_hh{end}"] = torch.cat([found.r[gate] for gate in order])
        if found.b:
            b = torch.cat([found.b[gate] for gate in order])
            zeros = dict.fromkeys(order, torch.zeros_like(b[:hidden]))
            state[f"bias_ih{end}"] = b
            state[f"bias_hh{end}"] = torch.cat([(found.recurrent_b or zeros)[g] for g in order])
        state |= {f"p_{gate}{end}": p for gate, p in found.p.items()}
    module.load_state_dict(state)
    return module


def _transposed(kernel, recurrent, order, where, recurrent_where) -> _Direction:
    """The blocks of a kernel (I, G·H) and a recurrent one (H, G·H)."""
    features, hidden = len(kernel), len(recurrent)
    _expect(recurrent, f"{recurrent_where} (recurrent_kernel)", (hidden, len(order) * hidden))
    _expect(kernel, f"{where} (kernel)", (features, len(order) * hidden))
    return _Direction(_blocks(kernel.t(), order), _blocks(recurrent.t(), order))


def _blocks(rows, order) -> dict[str, Tensor]:
    return dict(zip(order, rows.chunk(len(order)), strict=True))


def _known(kind, known) -> str:
    if kind not in known:
        raise ValueError(f"kind: expected one of {', '.join(known)}, got {kind!r}")
    return known[kind]


def _array(value, where, dims=None) -> Tensor:
    """An array as a tensor of a floating dtype."""
    try:
        tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{where}: expected an array, got {type(value).__name__}") from None
    if not tensor.is_floating_point():
        raise TypeError(f"{where}: expected an array of floats, got {tensor.dtype}")
    if dims is not None and tensor.dim() != dims:
        raise ValueError(f"{where}: expected {dims} dimensions, got shape {tuple(tensor.shape)}")
    return tensor


def _expect(tensor, where, shape) -> None:
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"{where}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")


def __dir__() -> list[str]:
    return sorted(__all__)
