"""Recurrent cells: the algebra that carries them, and every built-in one.

This package is the only place with the math of a cell. The reference loop, the C++ engine and the
Triton kernels (forward and backward) are all derived from its functions.

Legend of dims, used in the whole project:

    T  time steps            H  hidden units          G  gates (pre-activations) of a cell
    B  batch rows            D  directions (1 or 2)   X  gates that have an input part
    I  input features        L  layers                R  gates that have a recurrent part
    S  stages (recurrent products of one step)        M  gates that have a recurrent part only

One step of any cell, all vectors of H units:

    pre[g]  = x[g] + bias[g] + (R_s · v_s)[g]     for each gate g of stage s, stage after stage
    pre[g]  = x[g] + bias[g]                      for each gate g of no stage
    v_s     = the source of stage s: states of the step before, or computed from earlier gates
    states  = step(pre, states, params, streams, t)     pointwise over the hidden units
"""

from .cell import Cell as Cell
from .cell import DerivedCell as DerivedCell
from .cell import as_cell as as_cell
from .cell import get as get
from .cell import lookup as lookup
from .cell import names as names
from .draws import draw_key as draw_key
from .norms import layer_norm as layer_norm
from .norms import layer_norm_stages as layer_norm_stages
from .norms import rms_norm as rms_norm
from .norms import rms_norm_stage as rms_norm_stage
from .parts import Bernoulli as Bernoulli
from .parts import Param as Param
from .parts import Stage as Stage
from .parts import same as same

# isort: off
# The built-in cells; ``names`` lists them in the order of these lines.
from .rnn import RNN_RELU as RNN_RELU, RNN_TANH as RNN_TANH
from .lstm import CIFG_LSTM as CIFG_LSTM, LSTM as LSTM, PEEPHOLE_LSTM as PEEPHOLE_LSTM
from .lstm import peephole_lstm as peephole_lstm
from .gru import GRU as GRU, GRU_RESET_BEFORE as GRU_RESET_BEFORE
from .lstm import PEEPHOLE_LSTM_FULL as PEEPHOLE_LSTM_FULL
from .greff import FGR_LSTM as FGR_LSTM, NFG_LSTM as NFG_LSTM, NIAF_LSTM as NIAF_LSTM
from .greff import NIG_LSTM as NIG_LSTM, NOAF_LSTM as NOAF_LSTM, NOG_LSTM as NOG_LSTM
from .greff import NP_LSTM as NP_LSTM
from .mut import MUT1 as MUT1, MUT2 as MUT2, MUT3 as MUT3
from .minimal import JANET as JANET, LI_GRU as LI_GRU, LIGHT_RU as LIGHT_RU, MGU as MGU
from .minimal import STAR as STAR, janet as janet
from .additive import ATR as ATR, CFN as CFN, RAN as RAN
from .update_gate import INTERSECTION_RNN as INTERSECTION_RNN, UGRNN as UGRNN
from .nas import NAS as NAS
from .oscillator import CO_RNN as CO_RNN, LEM as LEM, co_rnn as co_rnn, lem as lem
from .highway import DEPTH_GATED_LSTM as DEPTH_GATED_LSTM, HIGHWAY_LSTM as HIGHWAY_LSTM
from .highway import RHN as RHN, depth_gated_lstm as depth_gated_lstm, rhn as rhn
from .grid import GRID_LSTM as GRID_LSTM
from .nested import NESTED_LSTM as NESTED_LSTM
from .minimal import MINIMAL_RNN as MINIMAL_RNN
from .multiplicative import MOGRIFIER_LSTM as MOGRIFIER_LSTM, mogrifier_lstm as mogrifier_lstm
from .multiplicative import MULTIPLICATIVE_LSTM as MULTIPLICATIVE_LSTM
from .independent import IND_RNN as IND_RNN, MIN_GRU as MIN_GRU, MIN_LSTM as MIN_LSTM
from .independent import QRNN as QRNN, SRU as SRU, TGRU as TGRU, TLSTM as TLSTM
from .scrn import SCRN as SCRN, scrn as scrn
from .antisymmetric import ANTISYMMETRIC_RNN as ANTISYMMETRIC_RNN
from .antisymmetric import GATED_ANTISYMMETRIC_RNN as GATED_ANTISYMMETRIC_RNN
from .antisymmetric import antisymmetric_rnn as antisymmetric_rnn
from .fast import FAST_GRNN as FAST_GRNN, FAST_RNN as FAST_RNN
from .clocks import CLOCKWORK_RNN as CLOCKWORK_RNN, GRU_D as GRU_D, PHASED_LSTM as PHASED_LSTM
from .clocks import TIME_AWARE_LSTM as TIME_AWARE_LSTM, clockwork_rnn as clockwork_rnn
from .continuous import CTRNN as CTRNN, LTC as LTC, ctrnn as ctrnn, ltc as ltc
from .slstm import SLSTM as SLSTM
from .normed import LAYER_NORM_GRU as LAYER_NORM_GRU, layer_norm_gru as layer_norm_gru
from .normed import LAYER_NORM_LSTM as LAYER_NORM_LSTM, layer_norm_lstm as layer_norm_lstm
from .on_lstm import ON_LSTM as ON_LSTM
from .block_gru import BLOCK_GRU as BLOCK_GRU
from .lmu import LMU as LMU, lmu as lmu
# isort: on

__all__ = [
    "ATR",
    "BLOCK_GRU",
    "CFN",
    "CIFG_LSTM",
    "CO_RNN",
    "DEPTH_GATED_LSTM",
    "FGR_LSTM",
    "GRU",
    "GRU_RESET_BEFORE",
    "HIGHWAY_LSTM",
    "INTERSECTION_RNN",
    "JANET",
    "LAYER_NORM_GRU",
    "LAYER_NORM_LSTM",
    "LEM",
    "LIGHT_RU",
    "LI_GRU",
    "LMU",
    "LSTM",
    "MGU",
    "MUT1",
    "MUT2",
    "MUT3",
    "NAS",
    "NESTED_LSTM",
    "NFG_LSTM",
    "NIAF_LSTM",
    "NIG_LSTM",
    "NOAF_LSTM",
    "NOG_LSTM",
    "NP_LSTM",
    "ON_LSTM",
    "PEEPHOLE_LSTM",
    "PEEPHOLE_LSTM_FULL",
    "RAN",
    "RHN",
    "RNN_RELU",
    "RNN_TANH",
    "STAR",
    "UGRNN",
    "Bernoulli",
    "Cell",
    "Param",
    "Stage",
    "co_rnn",
    "depth_gated_lstm",
    "draw_key",
    "get",
    "janet",
    "layer_norm",
    "layer_norm_gru",
    "layer_norm_lstm",
    "layer_norm_stages",
    "lem",
    "lmu",
    "names",
    "peephole_lstm",
    "rhn",
    "rms_norm",
    "rms_norm_stage",
    "same",
]


def __dir__() -> list[str]:
    return sorted(__all__)
