"""The kernels with explicit layouts, in Gluon, which comes with Triton.

They compute what the pair in Triton's language does, from the same printed cells, wiring and
plans. But every value has its place: a weight stays in registers, a source goes through shared
memory once, and gates never move between threads. docs/design.md has a drawing.
"""

import torch
from torch import Tensor

from ....plan import Launch
from .backward import backward_kernel as backward_kernel
from .forward import forward_kernel as forward_kernel


def passed_on(launch: Launch, blocks: int, like: Tensor) -> Tensor | None:
    """The memory in which programs pass on ``blocks`` blocks before and after each step.

    Args:
        like: a tensor (T, B, D, ..., H) of the problem.

    Returns:
        (T + 1, blocks, D, rows, units) in fragments, see gathered.py and exchange.py: all bits set,
        and zeros for the units that no program has. None where one program owns all units.
    """
    if launch.alone:
        return None
    rows = -(-like.shape[1] // launch.block_b) * launch.block_b
    chunk = 16 * launch.num_warps
    units = -(-like.shape[-1] // chunk) * chunk
    size = (like.shape[0] + 1, blocks, like.shape[2], rows, units)
    passed = like.new_empty(size).view(torch.uint8).fill_(255).view(like.dtype)
    first = launch.programs(like.shape[-1]) * launch.block_h
    if first < units:
        width = 4 // like.itemsize
        of_fragment = (8, 4, 2, 2, width)
        fragments = passed.view(*size[:3], rows // 16, -1, *of_fragment)
        fragments[:, :, :, :, -(-first // (8 * width)) :] = 0
        if first % (8 * width):  # the second half of the units of the fragment
            fragments[:, :, :, :, first // (8 * width), :, :, 1] = 0
    return passed
