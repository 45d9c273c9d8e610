"""The params of a cell and their gradients: few in registers, many beside them.

Many params lie in shared memory, from which each use reads them. Many gradients are summed over
each pair of rows that a thread has, so that they hold half of the registers. For this, padded rows
must have none: see ``pairs_rows``.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..blocks import at, keeps_params
from .memory import load_each, load_units


@gluon.constexpr_function
def pairs_rows(count, alone):
    """Whether the gradients of this many params are summed over pairs of rows."""
    return alone and not keeps_params(count)


@gluon.jit
def kept_params(
    ptrs, direction, units, H: gl.constexpr, DTYPE: gl.constexpr, ALONE: gl.constexpr
):  # fmt: skip
    """All params for ``params_of``."""
    kept = ()
    for i in gl.static_range(len(ptrs)):
        param = load_units(ptrs[i] + direction * H, units, H, DTYPE)
        if pairs_rows(len(ptrs), ALONE):
            param = _in_shared_memory(param)
        kept = kept + (param,)
    return kept


@gluon.jit
def _in_shared_memory(param):
    UNITS: gl.constexpr = param.shape[1]
    LAYOUT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[1, 0])
    return gl.allocate_shared_memory(param.dtype, [1, UNITS], LAYOUT, param)


@gluon.jit
def params_of(kept, like, ALONE: gl.constexpr):
    """All params, (1, UNITS) each.

    like: a block.
    """
    if pairs_rows(len(kept), ALONE):
        LAYOUT: gl.constexpr = like.type.layout
        params = ()
        for i in gl.static_range(len(kept)):
            params = params + (kept[i].load(LAYOUT),)
        return params
    else:
        return kept


@gluon.jit
def first_dparams(ptrs, own, offs, units, like, H: gl.constexpr, ALONE: gl.constexpr):
    """The gradients of the params before the first step."""
    if pairs_rows(len(ptrs), ALONE):
        zero = _of_pairs(gl.zeros_like(like))
        zeros = ()
        for _ in gl.static_range(len(ptrs)):
            zeros = zeros + (zero,)
        return zeros
    else:
        return load_each(ptrs, own, offs, units, H)


@gluon.jit
def with_dparams(
    dparams, parts, ZEROS: gl.constexpr, FIRST: gl.constexpr, like, ALONE: gl.constexpr
):  # fmt: skip
    """The gradients with ``parts`` added: results of a vjp from number FIRST, some of them zero."""
    found = ()
    for i in gl.static_range(len(dparams)):
        if at(ZEROS, FIRST + i):
            found = found + (dparams[i],)
        elif pairs_rows(len(dparams), ALONE):
            block = tl.broadcast_to(parts[i], (like.shape[0], like.shape[1]))
            found = found + (dparams[i] + _of_pairs(block),)
        else:
            found = found + (dparams[i] + parts[i],)
    return found


@gluon.jit
def whole_dparams(dparams, like, ALONE: gl.constexpr):
    """The gradients as blocks: of a pair in its first row."""
    if pairs_rows(len(dparams), ALONE):
        ROWS: gl.constexpr = like.shape[0]
        UNITS: gl.constexpr = like.shape[1]
        LAYOUT: gl.constexpr = like.type.layout
        blocks = ()
        for i in gl.static_range(len(dparams)):
            pair = gl.join(dparams[i], gl.zeros_like(dparams[i]))
            block = pair.permute(0, 2, 1).reshape(ROWS, UNITS)
            blocks = blocks + (gl.convert_layout(block, LAYOUT, assert_trivial=True),)
        return blocks
    else:
        return dparams


@gluon.jit
def _of_pairs(block):
    """The sum of each pair of rows, which one thread has."""
    return gl.sum(block.reshape(block.shape[0] // 2, 2, block.shape[1]), 1)
