"""Recurrent cells as fused kernels: written once in PyTorch, run with the time loop inside."""

from . import cells, flops, torch_classes
from .activations import fast_activations
from .backends import use_backend
from .cells import Cell, Stage
from .checkout import load_kernels
from .convert import Conversion, convert, revert
from .explain import Explanation, explain
from .function import scan
from .modules import CIFGLSTM, GRU, LSTM, RNN, PeepholeLSTM, Recurrent
from .one_step import (
    CIFGLSTMCell,
    GRUCell,
    LSTMCell,
    PeepholeLSTMCell,
    RecurrentCell,
    RNNCell,
)
from .self_check import check as check_kernels

__all__ = [
    "CIFGLSTM",
    "GRU",
    "LSTM",
    "RNN",
    "CIFGLSTMCell",
    "Cell",
    "Conversion",
    "Explanation",
    "GRUCell",
    "LSTMCell",
    "PeepholeLSTM",
    "PeepholeLSTMCell",
    "RNNCell",
    "Recurrent",
    "RecurrentCell",
    "Stage",
    "cells",
    "check_kernels",
    "convert",
    "explain",
    "fast_activations",
    "revert",
    "scan",
    "torch_classes",
    "use_backend",
]

__version__ = "0.1.0"

load_kernels()
flops.when_imported("torch.utils.flop_counter", flops.register)
del flops, load_kernels


def __dir__() -> list[str]:
    return sorted(__all__)
