"""Recurrent cells as fused kernels: written once in PyTorch, run with the time loop inside."""

from . import cells
from .cells import Bernoulli, Cell, Param, Stage
from .cells.report import CellReport
from .checkout import load_kernels
from .context import use_backend
from .engines.explain import Explanation, explain
from .nn import importers, torch_classes
from .nn.block_gru import BlockGRU, BlockGRUCell
from .nn.clockwork import ClockworkRNN
from .nn.convert import Conversion, convert, revert
from .nn.depth_gated import DepthGatedLSTM
from .nn.grid import GridLSTM
from .nn.gru import GRU, GRUCell
from .nn.layer_norm import LayerNormGRU, LayerNormLSTM
from .nn.lstm import CIFGLSTM, LSTM, CIFGLSTMCell, LSTMCell, PeepholeLSTM, PeepholeLSTMCell
from .nn.recurrent import Recurrent
from .nn.recurrent_cell import RecurrentCell
from .nn.rnn import RNN, RNNCell
from .nn.slstm import SLSTM, SLSTMCell
from .numerics import fast_activations
from .ops import flops
from .ops.scan import scan
from .self_check.admission import check as check_kernels

__all__ = [
    "CIFGLSTM",
    "GRU",
    "LSTM",
    "RNN",
    "SLSTM",
    "Bernoulli",
    "BlockGRU",
    "BlockGRUCell",
    "CIFGLSTMCell",
    "Cell",
    "CellReport",
    "ClockworkRNN",
    "Conversion",
    "DepthGatedLSTM",
    "Explanation",
    "GRUCell",
    "GridLSTM",
    "LSTMCell",
    "LayerNormGRU",
    "LayerNormLSTM",
    "Param",
    "PeepholeLSTM",
    "PeepholeLSTMCell",
    "RNNCell",
    "Recurrent",
    "RecurrentCell",
    "SLSTMCell",
    "Stage",
    "cells",
    "check_kernels",
    "convert",
    "explain",
    "fast_activations",
    "importers",
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
