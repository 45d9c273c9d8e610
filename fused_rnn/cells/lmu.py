"""The Legendre memory unit.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

import functools

import torch
from torch import tanh

from .cell import Cell, built_in
from .parts import Param, Stage

_ORDER, _THETA = 8, 100.0


def _constants(params):
    """2 i + 1, or 0 from the order on, and (-1)^i."""
    return params[2].detach(), params[3].detach()


def _new_memory(pre, state, params, theta):
    """m, of the gates up to those of its sums."""
    u, total, before, alternating = pre[1:5]
    m, (odd, sign) = state[1], _constants(params)
    # Row i of A m: every column right of i has the sign -1, and the others alternate up to i.
    turned = -odd * (total - before + sign * alternating)
    return torch.where(odd > 0, m + (turned + odd * sign * u) / theta, 0)


def _lmu(pre, state, params, theta=_THETA):
    """m = m_ + (A m_ + B u) / theta, h = tanh(W_x x + W_h h_ + W_m m); u = e_x x + e_h h_ + e_m m_.

    u is one number per row, A_ij = (2 i + 1) * (-1 if i < j else (-1)^(i - j + 1)) and B_i =
    (2 i + 1) * (-1)^i: m has the coefficients of the last ``theta`` values of u in Legendre
    polynomials of a degree below ``order``. Voelker et al. 2019 (NeurIPS), with their memory of one
    u, by Euler's method, which they give for a theta that is large beside the order. m has H units
    as every state, and those from the order on stay 0; so H has to be at least the order. e_x is
    the sum of the rows of a matrix. A row of A m is made of running sums, so no A is multiplied.
    """
    return tanh(pre[5]), _new_memory(pre, state, params, theta)


def _drive(pre, state, params):
    """What u and the sum of m are sums of."""
    h, m = state
    m = torch.where(_constants(params)[0] > 0, m, 0)
    return pre[0] + params[0] * h + params[1] * m, m


def _alternating(pre, state, params):
    odd, sign = _constants(params)
    m = torch.where(odd > 0, state[1], 0)
    return m, sign * m


def _hidden(pre, state, params, theta=_THETA):
    return state[0], _new_memory(pre, state, params, theta)


def _set_odd(odd, order):
    """2 i + 1, and 0 from the order on."""
    number = torch.arange(len(odd))
    return odd.copy_(torch.where(number < order, 2 * number + 1, 0))


def _set_sign(sign):
    return sign.copy_(1 - 2 * (torch.arange(len(sign)) % 2))


def _parts(order, theta):
    return {
        "step": functools.partial(_lmu, theta=theta),
        "gates": ("x", "u", "total", "before", "alternating", "n"),
        "states": ("h", "m"),
        "params": (
            "e_h",
            Param("e_m", init=0.0),
            Param("odd", functools.partial(_set_odd, order=order), learned=False),
            Param("sign", _set_sign, learned=False),
        ),
        "x_gates": ("x", "n"),
        "stages": (
            Stage(("u", "total"), _drive, "sum"),
            Stage(("before", "alternating"), _alternating, "cumsum"),
            Stage(("n",), functools.partial(_hidden, theta=theta)),
        ),
    }


LMU = built_in("lmu", **_parts(_ORDER, _THETA))


def lmu(order: int = _ORDER, theta: float = _THETA) -> Cell:
    """``LMU`` with another memory.

    Args:
        order: of the memory, the number of its coefficients.
        theta: the number of steps that it spans.

    Raises:
        TypeError, ValueError: no whole number from 1, or no positive number.
    """
    if isinstance(order, bool) or not isinstance(order, int):
        raise TypeError(f"order: expected int, got {type(order).__name__}")
    if isinstance(theta, bool) or not isinstance(theta, int | float):
        raise TypeError(f"theta: expected a number, got {type(theta).__name__}")
    if order < 1:
        raise ValueError(f"order: expected at least 1, got {order}")
    if not theta > 0:
        raise ValueError(f"theta: expected a positive number, got {theta}")
    if (order, theta) == (_ORDER, _THETA):
        return LMU
    return Cell("lmu", **_parts(order, float(theta)))
