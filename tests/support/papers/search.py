"""The cell of Zoph & Le 2017."""

from torch import relu, sigmoid, tanh

from .paper import paper


@paper(
    "nas",
    x="W_0 W_1 W_2 W_3 W_4 W_5 W_6 W_7",
    b="b_0 b_1 b_2 0 b_4 b_5 b_6 b_7 b_3",
    r="R_0 R_1 R_2 R_3 R_4 R_5 R_6 R_7",
    states="m c",
)
def _nas(p, x, state, t):
    """As TensorFlow Addons has it (rnn/nas_cell.py), layer by layer."""
    m, c = state
    inputs = [getattr(p, f"W_{k}") @ x for k in range(8)]
    ms = [getattr(p, f"R_{k}") @ m + getattr(p, f"b_{k}") for k in range(8)]
    first = [
        sigmoid(inputs[0] + ms[0]),
        relu(inputs[1] + ms[1]),
        sigmoid(inputs[2] + ms[2]),
        relu(inputs[3] * ms[3]),
        tanh(inputs[4] + ms[4]),
        sigmoid(inputs[5] + ms[5]),
        tanh(inputs[6] + ms[6]),
        sigmoid(inputs[7] + ms[7]),
    ]
    second = [
        tanh(first[0] * first[1]),
        tanh(first[2] + first[3]),
        tanh(first[4] * first[5]),
        sigmoid(first[6] + first[7]),
    ]
    second[0] = tanh(second[0] + c)
    new_c = second[0] * second[1]
    third = tanh(second[2] + second[3])
    return tanh(new_c * third), new_c
