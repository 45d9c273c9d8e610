"""The kernels with explicit layouts, in Gluon, which comes with Triton.

They compute what the pair in Triton's language does, from the same printed cells, wiring and
plans. But every value has its place: a weight stays in registers, a source goes through shared
memory once, and gates never move between threads. docs/design.md has a drawing.
"""

from torch import Tensor

from ....plan import Launch
from .backward import backward_kernel as backward_kernel
from .forward import forward_kernel as forward_kernel


def passed_on(launch: Launch, count: int, like: Tensor) -> Tensor | None:
    """The memory in which programs pass on ``count`` blocks, filled with zeros.

    Args:
        like: a tensor (T, B, D, ..., H) of the problem.

    Returns:
        (count, 2, D, rows, units) in fragments, see gathered.py; None where one program owns all.
    """
    if launch.alone:
        return None
    rows = -(-like.shape[1] // launch.block_b) * launch.block_b
    chunk = 16 * launch.num_warps
    units = -(-like.shape[-1] // chunk) * chunk
    return like.new_zeros(count, 2, like.shape[2], rows, units)
