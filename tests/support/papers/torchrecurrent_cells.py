"""The cells of PyPI's ``torchrecurrent`` with the weights of the papers' oracles.

It differs from these papers in four cells, which are left out or given an identity:

- MUT1 has tanh(W x + b) for the paper's tanh(x), MUT2 sigmoid(W x + ..) for sigmoid(x + ..).
- LEM computes y from the old z, the paper from the new one.
- NAS adds the parts of its fourth node, the authors' code multiplies them.
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
    "mut1": (
        "MUT1Cell",
        {"ih": "W_xz W_xr 1", "hh": "W_hr W_hh", "b": "b_z b_r 0", "bias_hh": "0 b_h"},
    ),
    "mut2": ("MUT2Cell", {"ih": "W_xz 1 W_xh", "hh": "W_hz W_hr W_hh", "b": "b_z b_r b_h"}),
    "mut3": ("MUT3Cell", {"ih": "W_xz W_xr W_xh", "hh": "W_hz W_hr W_hh", "b": "b_z b_r b_h"}),
}
OPTIONS = {"co_rnn": {"dt": 0.042, "gamma": 2.7, "epsilon": 4.7}}
SHORT = {"ih": "weight_ih", "hh": "weight_hh", "b": "bias_ih"}
# Cells that give their output beside the state, which is the second of ours.
WITH_OUTPUT = ("intersection_rnn",)
# Cells that take h and c, which are the same.
TWICE = ("janet",)


def run(package, name: str, v: dict[str, Tensor]) -> Tensor:
    """The output (T, B, H) of the package's cell at every step."""
    made, blocks = CELLS[name]
    (H,) = v[f"{PAPERS[name].states[0]}_0"].shape[1:]
    module = getattr(package, made)(v["x"].shape[2], H, **OPTIONS.get(name, {})).double()
    weights = {key: torch.zeros_like(p) for key, p in module.named_parameters() if "bias" in key}
    for key, rows in blocks.items():
        like = module.get_parameter(SHORT.get(key, key))
        kinds = {"0": like.new_zeros(H, *like.shape[1:]), "1": torch.eye(H, dtype=like.dtype)}
        parts = [kinds[row] if row in kinds else v[row] for row in rows.split()]
        weights[SHORT.get(key, key)] = torch.cat(parts)
    state = tuple(v[f"{state}_0"] for state in PAPERS[name].states)
    if name in TWICE:
        state = 2 * state
    elif len(state) == 1 or name in WITH_OUTPUT:
        state = state[-1]
    outputs = []
    for x in v["x"]:
        state = torch.func.functional_call(module, weights, (x, state))
        output = state if isinstance(state, Tensor) else state[0]
        state = state[1] if name in WITH_OUTPUT else state
        outputs.append(output)
    return torch.stack(outputs)
