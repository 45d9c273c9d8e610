"""The cells of PyPI's ``torchrecurrent`` with the weights of the papers' oracles.

It differs from these papers in some cells, which are left out or given an identity:

- MUT1 has tanh(W x + b) for the paper's tanh(x), MUT2 sigmoid(W x + ..) for sigmoid(x + ..).
- LEM computes y from the old z, the paper from the new one.
- NAS adds the parts of its fourth node, the authors' code multiplies them.
- SCRN feeds its output back, not the hidden layer.
- RHN cannot be constructed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .paper import PAPERS

# Per cell the class, and by parameter its blocks of rows: names of the paper, "0" for zeros, "1"
# for the identity.
CELLS = {
    "ugrnn": ("UGRNNCell", {"ih": "W_cx W_gx", "hh": "W_ch W_gh", "b": "b_c b_g"}),
    "star": ("STARCell", {"ih": "W_z W_k", "hh": "W_h", "b": "b_z b_k"}),
    "atr": ("ATRCell", {"ih": "W_x", "hh": "W_h"}),
    "light_ru": ("LightRUCell", {"ih": "W W_f", "hh": "U_f", "b": "0 b_f"}),
    "cfn": (
        "CFNCell",
        {"ih": "V_theta V_eta W", "hh": "U_theta U_eta", "b": "b_theta b_eta 0"},
    ),
    "li_gru": ("LiGRUCell", {"ih": "W_z W_h", "hh": "U_z U_h", "b": "b_z b_h"}),
    "mgu": ("MGUCell", {"ih": "W_fx W_hx", "hh": "W_fh W_hh", "b": "b_f b_h"}),
    "ran": ("RANCell", {"ih": "W_cx W_ix W_fx", "hh": "W_ih W_fh", "b": "b_i b_f"}),
    "janet": ("JANETCell", {"ih": "W_f W_c", "hh": "U_f U_c", "b": "b_f b_c"}),
    "intersection_rnn": (
        "IntersectionRNNCell",
        {
            "ih": "W_yx W_hx W_gyx W_ghx",
            "hh": "W_yh W_hh W_gyh W_ghh",
            "b": "b_y b_h b_gy b_gh",
        },
    ),
    "co_rnn": ("coRNNCell", {"ih": "V", "hh": "W", "weight_ch": "W_z", "b": "b"}),
    "minimal_rnn": (
        "MinimalRNNCell",
        {"ih": "W_x", "hh": "U_h", "weight_mm": "U_z", "b": "b_z", "bias_hh": "b_u"},
    ),
    "ind_rnn": ("IndRNNCell", {"ih": "W", "vector_u": "u", "b": "b"}),
    "multiplicative_lstm": (
        "MultiplicativeLSTMCell",
        {
            "ih": "W_mx W_ix W_fx W_hx W_ox",
            "hh": "W_mh",
            "weight_mh": "W_im W_fm W_hm W_om",
            "b": "0 b_i b_f b_h b_o",
        },
    ),
    "fast_rnn": ("FastRNNCell", {"ih": "W", "hh": "U", "b": "b", "alpha": "alpha", "beta": "beta"}),
    "fast_grnn": (
        "FastGRNNCell",
        {"ih": "W", "hh": "U", "b": "b_z b_h", "zeta": "zeta", "nu": "nu"},
    ),
    "antisymmetric_rnn": ("AntisymmetricRNNCell", {"ih": "V", "hh": "W", "b": "b"}),
    "gated_antisymmetric_rnn": (
        "GatedAntisymmetricRNNCell",
        {"ih": "V_z V_h", "hh": "W", "b": "b_z b_h"},
    ),
    "tgru": ("TGRUCell", {"ih": "W_z W_f W_o", "hh": "V_z V_f V_o", "b": "b_z b_f b_o"}),
    "tlstm": ("TLSTMCell", {"ih": "W_z W_f W_o", "hh": "V_z V_f V_o", "b": "b_z b_f b_o"}),
    "mut1": (
        "MUT1Cell",
        {"ih": "W_xz W_xr 1", "hh": "W_hr W_hh", "b": "b_z b_r 0", "bias_hh": "0 b_h"},
    ),
    "mut2": ("MUT2Cell", {"ih": "W_xz 1 W_xh", "hh": "W_hz W_hr W_hh", "b": "b_z b_r b_h"}),
    "mut3": ("MUT3Cell", {"ih": "W_xz W_xr W_xh", "hh": "W_hz W_hr W_hh", "b": "b_z b_r b_h"}),
}
OPTIONS = {
    "co_rnn": {"dt": 0.042, "gamma": 2.7, "epsilon": 4.7},
    "ind_rnn": {"nonlinearity": "relu"},
    "fast_grnn": {"nonlinearity": "sigmoid"},  # of the gate; tanh if nothing is said
    "antisymmetric_rnn": {"epsilon": 0.01, "gamma": 0.01},
    "gated_antisymmetric_rnn": {"epsilon": 0.01, "gamma": 0.01},
}
SHORT = {"ih": "weight_ih", "hh": "weight_hh", "b": "bias_ih"}
# The first state where it is not that of the paper: (h, h), or with x of the step before.
START = {
    "intersection_rnn": lambda v: v["h_0"],
    "janet": lambda v: (v["h_0"], v["h_0"]),
    "tgru": lambda v: (v["h_0"], torch.zeros_like(v["x"][0])),
    "tlstm": lambda v: (v["c_0"], torch.zeros_like(v["x"][0])),
}
# Cells that give their output beside the state.
WITH_OUTPUT = ("intersection_rnn", "tlstm")


def run(package, name: str, v: dict[str, Tensor]) -> Tensor:
    """The output (T, B, H) of the package's cell at every step."""
    made, blocks = CELLS[name]
    first = [v[f"{state}_0"] for state in PAPERS[name].states]
    (H,) = first[0].shape[1:]
    module = getattr(package, made)(v["x"].shape[2], H, **OPTIONS.get(name, {})).double()
    weights = {key: torch.zeros_like(p) for key, p in module.named_parameters() if "bias" in key}
    for key, rows in blocks.items():
        like = module.get_parameter(SHORT.get(key, key))
        kinds = {"0": like.new_zeros(H, *like.shape[1:]), "1": torch.eye(H, dtype=like.dtype)}
        parts = [kinds[row] if row in kinds else v[row] for row in rows.split()]
        weights[SHORT.get(key, key)] = torch.cat(parts)
    state = START[name](v) if name in START else tuple(first) if first[1:] else first[0]
    outputs = []
    for x in v["x"]:
        state = torch.func.functional_call(module, weights, (x, state))
        outputs.append(state if isinstance(state, Tensor) else state[0])
        state = state[1] if name in WITH_OUTPUT else state
    return torch.stack(outputs)
