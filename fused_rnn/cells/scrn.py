"""The structurally constrained network, half of whose states change slowly.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

import functools

from torch import sigmoid

from .cell import Cell, built_in
from .parts import Stage


def _context(pre, state, alpha):
    s = state[1]
    return (1 - alpha) * pre[0] + alpha * s


def _hidden_and_context(pre, state, alpha=0.95):
    """(h_, s), the source of h in ``SCRN``."""
    return state[0], _context(pre, state, alpha)


def _scrn(pre, state, alpha=0.95):
    """s = (1 - alpha) * B x + alpha * s_, h = sigmoid(A x + R h_ + P s).

    Mikolov et al. 2014 (arXiv 1412.7753), which has no biases. ``weight_hh`` is [R, P], (H, 2H).
    Their output, of U h + V s, is a layer after this one; the sequences of both states are those
    of ``return_states``.
    """
    n = pre[1]
    return sigmoid(n), _context(pre, state, alpha)


def _scrn_parts(alpha):
    return {
        "step": functools.partial(_scrn, alpha=alpha),
        "gates": ("s", "n"),
        "states": ("h", "s"),
        "stages": (Stage(("n",), functools.partial(_hidden_and_context, alpha=alpha)),),
    }


SCRN = built_in("scrn", **_scrn_parts(0.95))


def scrn(alpha: float = 0.95) -> Cell:
    """``SCRN`` with another speed of the context."""
    return SCRN if alpha == 0.95 else Cell("scrn", **_scrn_parts(alpha))
