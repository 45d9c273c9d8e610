"""The gradients of a step in the backward kernel: what they are taken of, added to and stored as.

The gradient of a gate that is a sum of all units is one number per row: its sum over the units.
"""

import triton
import triton.language as tl

from .backward_arguments import arguments_of, split
from .blocks import (
    add_each,
    at,
    band_bounds,
    bands_apart,
    batch_tile,
    end_of_chunk,
    first_gate,
    gate_count,
    join_band,
    keeps_params,
    load_block,
    load_each,
    only_units,
    params_of,
    part_of,
    replace,
    store_band,
    store_block,
)
from .sums import is_total, load_own_total, pass_total, row_sums


@triton.jit
def places(
    tile, first_row, B, firsts, zero, time, step, direction, D: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Where a step stands in memory, with a zero added: see ``unknown_zero``.

    Returns:
        Its rows of (T, B, D, H), those of the step before, and those of (D, B, H); which exist; per
        chunk its first unit, and all of them.
    """
    B += zero
    first_b, offs_b, mask_b = batch_tile(tile, first_row, B, BLOCK_B)
    rows = ((time * B + first_b) * D + direction, offs_b * D)
    before = (rows[0] - step * B * D, rows[1])
    own_rows = (direction.to(tl.int64) * B + first_b, offs_b)
    begins = ()
    chunks = ()
    for j in tl.static_range(len(firsts)):
        begins = begins + (firsts[j] + zero,)
        chunks = chunks + (firsts[j] + zero + tl.arange(0, BLOCK_H),)
    return rows, before, own_rows, mask_b, begins, chunks


@triton.jit
def with_states(dstate, dsource, j: tl.constexpr, OWN: tl.constexpr, STATES: tl.constexpr):
    """A chunk's ``dstate`` with the gradients of the vectors of a source, which are states."""
    for v in tl.static_range(len(STATES)):
        d = dstate[at(STATES, v)] + dsource[v * OWN + j]
        dstate = replace(dstate, at(STATES, v), d)
    return dstate


@triton.jit
def of_chunk(dsource, j: tl.constexpr, OWN: tl.constexpr):
    """The gradients of all vectors of a source, of one chunk."""
    vectors = ()
    for v in tl.static_range(len(dsource) // OWN):
        vectors = vectors + (dsource[v * OWN + j],)
    return vectors


@triton.jit
def of_gates(
    d, ZEROS: tl.constexpr, TOTALS: tl.constexpr, units, END: tl.constexpr, BLOCK_B: tl.constexpr,
    H: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The gradients of gates from those of a chunk's units; of a total their sum, (BLOCK_B, 1)."""
    blocks = ()
    for g in tl.static_range(len(d)):
        if at(TOTALS, g) >= 0 and not at(ZEROS, g):
            block = tl.broadcast_to(d[g], (BLOCK_B, units.shape[0]))
            blocks = blocks + (only_units(block, units, END, H),)
    sums = row_sums(blocks)
    gates = ()
    for g in tl.static_range(len(d)):
        if at(TOTALS, g) < 0:
            gates = gates + (tl.broadcast_to(d[g], (BLOCK_B, units.shape[0])),)
        elif at(ZEROS, g):
            gates = gates + (tl.zeros((BLOCK_B, 1), DTYPE),)
        else:
            gates = gates + (sums[_sums_before(TOTALS, ZEROS, g)],)
    return gates


@triton.constexpr_function
def _sums_before(totals, zeros, g):
    """How many of the gates before g are totals with a gradient."""
    return sum(totals[i] >= 0 and not zeros[i] for i in range(g))


@triton.jit
def kept_dparams(ptrs, rows, mask_b, units, H: tl.constexpr, DTYPE: tl.constexpr):
    """The gradients of the params so far, to add to in registers: all or none."""
    if keeps_params(len(ptrs)):
        return load_each(ptrs, rows, mask_b, units, H, DTYPE)
    else:
        return ()


@triton.jit
def with_dparams(
    kept, ptrs, d, ZEROS: tl.constexpr, FIRST: tl.constexpr, rows, mask_b, units, H: tl.constexpr
):  # fmt: skip
    """``kept`` with further gradients of the params; or else these are added to, in memory.

    There too each row has its own: a sum over the rows of a tile would have its warps meet, and
    pass their parts through shared memory with 16 lanes in a bank, for each param and step.

    Args:
        ZEROS, FIRST: per result of the vjp whether it is zero; that of the first param.
        rows: of (D, B, H).
    """
    if keeps_params(len(ptrs)):
        return add_each(kept, d)
    else:
        # Other threads may have stored what is loaded, and may still load what is stored.
        tl.debug_barrier()
        sums = ()
        for i in tl.static_range(len(ptrs)):
            if not at(ZEROS, FIRST + i):
                sums = sums + (load_block(ptrs[i], rows, mask_b, units, H) + d[i],)
            else:
                sums = sums + (d[i],)  # any value
        tl.debug_barrier()
        for i in tl.static_range(len(ptrs)):
            if not at(ZEROS, FIRST + i):
                store_block(ptrs[i], rows, mask_b, units, sums[i], H)
        return kept


@triton.jit
def own_gates(
    dgates, chunks, H: tl.constexpr, SPANS: tl.constexpr, MATRICES: tl.constexpr,
    STAGE: tl.constexpr, dpre_ptr,
):  # fmt: skip
    """The gates of a stage for a product of a program that owns all units.

    Per chunk: per band; or per gate where they are totals.
    """
    own = ()
    for j in tl.static_range(len(chunks)):
        gates = dgates[j][first_gate(SPANS, STAGE) : at(at(SPANS, STAGE), 1)]
        if is_total(MATRICES, STAGE):
            own = own + (gates,)
        else:
            masked = ()
            for g in tl.static_range(len(gates)):
                gate = only_units(gates[g], chunks[j], (j + 1) * chunks[j].shape[0], H)
                masked = masked + (gate,)
            own = own + (join_gates(masked, dpre_ptr),)
    return own


@triton.jit
def no_gates(
    SPANS: tl.constexpr, MATRICES: tl.constexpr, STAGE: tl.constexpr, BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr, dpre_ptr, DTYPE: tl.constexpr,
):  # fmt: skip
    """What ``own_gates`` has of a chunk, of a step that does not exist: zeros."""
    WIDTH: tl.constexpr = 1 if is_total(MATRICES, STAGE) else BLOCK_H
    zeros = ()
    for _ in tl.static_range(gate_count(SPANS, STAGE)):
        zeros = zeros + (tl.zeros((BLOCK_B, WIDTH), DTYPE),)
    if is_total(MATRICES, STAGE):
        return zeros
    else:
        return join_gates(zeros, dpre_ptr)


@triton.jit
def join_gates(gates, ptr):
    """Gates joined to bands, in the dtype of the tensor that they will be read from."""
    BANDS: tl.constexpr = band_bounds(0, len(gates))
    joined = ()
    for n in tl.static_range(len(BANDS) - 1):
        band = join_band(gates[at(BANDS, n) : at(BANDS, n + 1)])
        joined = joined + (band.to(ptr.dtype.element_ty),)
    return joined


@triton.jit
def load_gates(
    dpre_ptr, dtotal_ptr, rows, own_rows, mask_b, j: tl.constexpr, units, total_size, parity,
    H: tl.constexpr, G: tl.constexpr, TOTALS: tl.constexpr, PROGRAMS: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """The gradients of the gates of chunk j that an earlier launch has stored."""
    loaded = ()
    for g in tl.static_range(G):
        if at(TOTALS, g) < 0:
            gate = load_block(dpre_ptr, part_of(rows, G, g), mask_b, units, H).to(DTYPE)
        elif j == 0:  # the sum of all chunks
            place = dtotal_ptr + (2 * at(TOTALS, g) + parity) * total_size
            gate = load_own_total(place, own_rows, mask_b, PROGRAMS)
        else:
            gate = tl.zeros((mask_b.shape[0], 1), DTYPE)
        loaded = loaded + (gate,)
    return loaded


@triton.jit
def store_final(
    dpre_ptr, dtotal_ptr, dgates, where, hidden, total_size, parity,
    H: tl.constexpr, G: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr, TOTALS: tl.constexpr,
    PROGRAMS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Store gates FROM to TO, which no later phase of this launch changes.

    In ``dpre`` each unit of a chunk has an equal share of a total's gradient.

    Args:
        where: see ``places``.
    """
    rows, before, own_rows, mask_b, firsts, chunks = where
    BANDS: tl.constexpr = bands_apart(FROM, TO, TOTALS)
    for n in tl.static_range(len(BANDS) - 1):
        gates = part_of(rows, G, at(BANDS, n))
        if at(TOTALS, at(BANDS, n)) >= 0:
            total = dgates[0][at(BANDS, n)]
            for j in tl.static_range(len(firsts)):
                if j > 0:
                    total += dgates[j][at(BANDS, n)]
                share = dgates[j][at(BANDS, n)] / tl.minimum(hidden - firsts[j], BLOCK_H)
                store_block(dpre_ptr, gates, mask_b, chunks[j], share, H)
            if dtotal_ptr is not None:
                place = dtotal_ptr + (2 * at(TOTALS, at(BANDS, n)) + parity) * total_size
                pass_total(place, own_rows, mask_b, total, PROGRAMS)
        else:
            for j in tl.static_range(len(firsts)):
                band = join_band(dgates[j][at(BANDS, n) : at(BANDS, n + 1)])
                store_band(dpre_ptr, gates, mask_b, firsts[j], band, BLOCK_H, H)


@triton.jit
def through_source(
    SOURCE_VJP: tl.constexpr, STAGE: tl.constexpr, dsource, dgates, dstate, dparams, dstreams,
    pre_ptr, sequence_ptrs, initial_ptrs, stream_ptrs, params, param_ptrs, dparam_ptrs, where,
    direction, t, key, time, DRAWN: tl.constexpr, H: tl.constexpr, G: tl.constexpr,
    SPANS: tl.constexpr, TOTALS: tl.constexpr, ZEROS: tl.constexpr, BLOCK_B: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Add what a source of step t contributes.

    Args:
        dsource: per vector and chunk.
        where: see ``places``.

    Returns:
        The gradients of gates, states, params and streams, per chunk.
    """
    rows, before, own_rows, mask_b, firsts, chunks = where
    OWN: tl.constexpr = len(chunks)
    FROM: tl.constexpr = first_gate(SPANS, STAGE)
    BLOCK_H: tl.constexpr = chunks[0].shape[0]
    for j in tl.static_range(OWN):
        # Loaded again: kept until here, they would hold registers.
        pre, state, streams = arguments_of(
            pre_ptr, sequence_ptrs, initial_ptrs, stream_ptrs, rows, before, own_rows, mask_b, t,
            firsts[j], chunks[j], key, time, DRAWN, H, G, FROM, DTYPE, TOTALS,
        )  # fmt: skip
        own_params = params_of(params[j], param_ptrs, direction, chunks[j], H, DTYPE)
        vectors = of_chunk(dsource, j, OWN)
        out = SOURCE_VJP(STAGE, pre, state, own_params, streams, t, vectors)
        d = split(out, FROM, len(state), len(param_ptrs))
        added = of_gates(
            d[0], at(ZEROS, STAGE), TOTALS, chunks[j], end_of_chunk(j, H, OWN, BLOCK_H), BLOCK_B, H,
            DTYPE,
        )  # fmt: skip
        dgates = replace(dgates, j, add_each(dgates[j], added))
        dstate = replace(dstate, j, add_each(dstate[j], d[1]))
        kept = with_dparams(
            dparams[j], dparam_ptrs, d[2], at(ZEROS, STAGE), FROM + len(state), own_rows,
            mask_b, chunks[j], H,
        )  # fmt: skip
        dparams = replace(dparams, j, kept)
        dstreams = replace(dstreams, j, add_each(dstreams[j], d[3]))
    return dgates, dstate, dparams, dstreams


@triton.constexpr_function
def local_stages(matrices, parts, p):
    """The stages of the identity in part p, the last one first."""
    return tuple(s for s in reversed(range(parts[p], parts[p + 1])) if matrices[s] == "identity")


@triton.jit
def of_stage(dgates, SPANS: tl.constexpr, STAGE: tl.constexpr):
    """The gradients of a stage's gates, per gate and chunk."""
    found = ()
    for g in tl.static_range(first_gate(SPANS, STAGE), at(at(SPANS, STAGE), 1)):
        for j in tl.static_range(len(dgates)):
            found = found + (dgates[j][g],)
    return found
