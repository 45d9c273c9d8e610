"""Differential equations with time constants, in steps of a solver.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

import functools

from torch import sigmoid, tanh

from .cell import Cell, built_in
from .parts import Param, Stage


def _activity(pre, state):
    """tanh(u_), the source of ``CTRNN``."""
    (u,) = state
    return tanh(u)


def _ctrnn(pre, state, params, dt=0.1):
    """u = u_ + dt / tau * (-u_ + R tanh(u_) + W x + b): an Euler step.

    Continuous-time networks: Funahashi & Nakamura 1993 (doi 10.1016/S0893-6080(05)80125-X), Beer
    1995 (doi 10.1177/105971239500300405). Their logistic function is tanh here, so that zero is
    rest. tau is a constant per unit, 1 at first.
    """
    (n,) = pre
    (u,) = state
    (tau,) = params
    return u + dt / tau * (n - u)


def _ctrnn_parts(dt):
    return {
        "step": functools.partial(_ctrnn, dt=dt),
        "gates": ("n",),
        "states": ("u",),
        "params": (Param("tau", 1.0, learned=False),),
        "stages": (Stage(("n",), _activity),),
    }


CTRNN = built_in("ctrnn", **_ctrnn_parts(0.1))


def ctrnn(dt: float = 0.1) -> Cell:
    """``CTRNN`` with another time step."""
    return CTRNN if dt == 0.1 else Cell("ctrnn", **_ctrnn_parts(dt))


def _ltc(pre, state, params, dt=1.0):
    """h = (h_ + dt * f * A) / (1 + dt * (1 / tau + f)), f = sigmoid(W x + R h_ + b).

    Liquid time-constant networks: Hasani et al. 2020 (arXiv 2006.04439), one step of their fused
    solver. Their further steps per input would multiply the same R again. tau begins at 1 and must
    stay positive.
    """
    (f,) = pre
    (h,) = state
    tau, target = params
    f = dt * sigmoid(f)
    return (h + f * target) / (1 + dt / tau + f)


def _ltc_parts(dt):
    return {
        "step": functools.partial(_ltc, dt=dt),
        "gates": ("f",),
        "params": (Param("tau", 1.0), "A"),
    }


LTC = built_in("ltc", **_ltc_parts(1.0))


def ltc(dt: float = 1.0) -> Cell:
    """``LTC`` with another time step."""
    return LTC if dt == 1 else Cell("ltc", **_ltc_parts(dt))
