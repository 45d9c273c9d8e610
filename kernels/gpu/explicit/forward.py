"""The forward kernel with explicit layouts.

Two steps are one pass of the loop, since sources have two places in turns. The arguments are those
of the kernel in Triton's language; for some, such as ``hidden``, this one has no use.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..blocks import at, first_gate, widened
from ..draws import drawn
from ..sync import wait
from .exchange import meet, offsets_in_place, pass_on, places_of
from .layouts import of_program
from .memory import (
    batch_tile,
    load_each,
    load_gates,
    load_units,
    offsets,
    store,
    unit_tile,
    widen_each,
)
from .products import add_products, kept_weights


@gluon.jit(do_not_specialize=["T", "B", "first_row", "hidden", "begin", "end"])
def forward_kernel(
    x_ptr,  # (T, B, D, X, H)
    weight_ptrs,  # per matrix, of stage s (D, R_s, H, V_s, H)
    bias_ptr,  # (D, M, H) or None
    param_ptrs,  # each (D, H)
    stream_ptrs,  # each (T, B, D, H)
    key_ptr,  # (2 + B,) of what the cell draws; else None
    carry_ptrs,  # per state (D, B, H): the initial states, replaced by the final ones
    sequence_ptrs,  # per state (T, B, D, H)
    pre_ptr,  # (T, B, D, G, H), unless SAVE never written
    source_ptr,  # (slots, 2, D, rows, units) in fragments; None where a program owns all units
    counter_ptr,  # (batch tiles, D, COUNTER) of programs that wait for each other; else None
    T,
    B,
    first_row,  # of the batch, in this launch
    hidden,
    begin,  # the steps to take: begin <= t < end
    end,
    D: gl.constexpr,  # directions of the layer times heads of each
    HEADS: gl.constexpr,
    H: gl.constexpr,
    X_INDEX: gl.constexpr,  # per gate its place in x or -1
    BIAS_INDEX: gl.constexpr,  # per gate its place in bias or -1
    BANDS: gl.constexpr,  # the wiring, see wiring.py
    GAPS: gl.constexpr,
    MATRICES: gl.constexpr,
    PARTS: gl.constexpr,
    SLOTS: gl.constexpr,
    PASSED_ON: gl.constexpr,
    DRAWN: gl.constexpr,
    X: gl.constexpr,
    M: gl.constexpr,
    STEP: gl.constexpr,  # the cell, see emit.Emitted
    SOURCE: gl.constexpr,
    FIRST: gl.constexpr,
    LAST: gl.constexpr,
    REVERSE: gl.constexpr,
    SAVE: gl.constexpr,  # keep pre and the sequences of all states, for a backward
    PIECES: gl.constexpr,
    ALONE: gl.constexpr,
    HELD: gl.constexpr,  # per stage the matrices in registers
    KEEP: gl.constexpr,
    OWN: gl.constexpr,
    BLOCK_B: gl.constexpr,
    BLOCK_H: gl.constexpr,
    BLOCK_K: gl.constexpr,
    COUNTER: gl.constexpr,
    PRECISION: gl.constexpr,
    DTYPE: gl.constexpr,  # of the arithmetic
):
    G: gl.constexpr = len(X_INDEX)
    WARPS: gl.constexpr = gl.num_warps()
    LAYOUT: gl.constexpr = of_program(ALONE, BLOCK_B, BLOCK_H, WARPS)
    direction = gl.program_id(2)
    walks_back = (direction // HEADS == 1) != REVERSE
    first_b, tile, left = batch_tile(first_row, B, BLOCK_B, LAYOUT)
    offs_b, mask_b = gl.minimum(tile, left - 1), tile < left
    units = unit_tile(BLOCK_H, LAYOUT)
    PASSED: gl.constexpr = x_ptr.dtype.element_ty
    offs = (
        offsets(offs_b, units, D * X * H),
        offsets(offs_b, units, D * G * H),
        offsets(offs_b, units, D * H),
        offsets_in_place(tile, units, H, PASSED, ALONE),
    )
    stride = B.to(gl.int64) * D  # from a row of (T, B, D) to that of the next step
    row = first_b * D + direction + gl.where(walks_back, T - 1 - begin, begin) * stride
    walk = (gl.where(walks_back, -stride, stride), T, end, walks_back)
    draws = draws_of(key_ptr, first_b + offs_b, direction % HEADS * H + units, direction // HEADS)
    offs_own = offsets(offs_b, units, H)
    own = (direction.to(gl.int64) * B + first_b) * H  # of (D, B, H)

    state = widen_each(load_each(carry_ptrs, own, offs_own, units, H), DTYPE)
    params = ()
    for i in gl.static_range(len(param_ptrs)):
        params = params + (load_units(param_ptrs[i] + direction * H, units, H, DTYPE),)
    biases = ()
    for g in gl.static_range(G):
        bias = gl.zeros_like(state[0])
        if bias_ptr is not None and at(BIAS_INDEX, g) >= 0:
            bias += load_units(bias_ptr + (direction * M + at(BIAS_INDEX, g)) * H, units, H, DTYPE)
        biases = biases + (bias,)
    weights = ()
    for s in gl.static_range(len(BANDS)):
        weights = weights + (kept_weights(
            weight_ptrs[at(MATRICES, s)], direction, H, last_gate(BANDS, s) - first_gate(BANDS, s),
            len(at(SLOTS, s)), BLOCK_H, False, ALONE, at(HELD, s),
        ),)  # fmt: skip
    fixed = (params, weights, biases, draws)

    places = places_of(
        source_ptr, B, direction, first_b, slot_count(SLOTS), D, H, PASSED, BLOCK_B, BLOCK_H, ALONE
    )
    if not ALONE:
        counter_ptr += ((first_row // BLOCK_B + gl.program_id(0)) * D + direction) * COUNTER
    programs = gl.num_programs(1).to(gl.int64)
    ahead = _ahead(x_ptr, stream_ptrs, row, offs, units, X, H)
    streams = streams_of(ahead[1], draws, walk, begin, DRAWN, DTYPE)
    _pass_on_known(
        SOURCE, places[0], state, params, streams, begin, offs, units, mask_b, PASSED_ON, H, ALONE
    )
    meet(counter_ptr, len(PASSED_ON) > 0, ALONE)

    pointers = (x_ptr, stream_ptrs, sequence_ptrs, pre_ptr, counter_ptr)
    clock = (row, programs)  # and the arrivals to wait for
    for pair in range(0, (end - begin) // 2):
        for half in gl.static_range(2):
            state, ahead, clock = _step(
                begin + 2 * pair + half, clock, places[half], places[1 - half], state, ahead, fixed,
                pointers, walk, programs, offs, mask_b, units, H, X_INDEX, BANDS, PARTS, SLOTS,
                PASSED_ON, DRAWN, X, STEP, SOURCE, SAVE, ALONE, HELD, PRECISION, DTYPE, False,
            )  # fmt: skip
    if (end - begin) % 2 == 1:
        state, ahead, clock = _step(
            end - 1, clock, places[0], places[1], state, ahead, fixed, pointers, walk, programs,
            offs, mask_b, units, H, X_INDEX, BANDS, PARTS, SLOTS, PASSED_ON, DRAWN, X, STEP, SOURCE,
            SAVE, ALONE, HELD, PRECISION, DTYPE, True,
        )  # fmt: skip

    for i in gl.static_range(len(carry_ptrs)):
        store(carry_ptrs[i] + own, offs_own, state[i], mask_b, units, H)


@gluon.jit
def _step(
    t, clock, reads, writes, state, ahead, fixed, pointers, walk, programs, offs, mask_b, units,
    H: gl.constexpr, X_INDEX: gl.constexpr, BANDS: gl.constexpr, PARTS: gl.constexpr,
    SLOTS: gl.constexpr, PASSED_ON: gl.constexpr, DRAWN: gl.constexpr, X: gl.constexpr,
    STEP: gl.constexpr, SOURCE: gl.constexpr, SAVE: gl.constexpr, ALONE: gl.constexpr,
    HELD: gl.constexpr, PRECISION: gl.constexpr, DTYPE: gl.constexpr, IS_LAST: gl.constexpr,
):  # fmt: skip
    G: gl.constexpr = len(X_INDEX)
    P: gl.constexpr = len(PARTS) - 1
    params, weights, biases, draws = fixed
    x_ptr, stream_ptrs, sequence_ptrs, pre_ptr, counter_ptr = pointers
    row, due = clock
    x, streams = ahead[0], streams_of(ahead[1], draws, walk, t, DRAWN, DTYPE)
    if not IS_LAST:
        # Loaded a step ahead: the latency passes while this step waits and computes.
        next_row = gl.where(t + 1 < walk[2], row + walk[0], row)
        ahead = _ahead(x_ptr, stream_ptrs, next_row, offs, units, X, H)
    pre = ()
    for p in gl.static_range(P):
        if p > 0:
            vectors = SOURCE(at(PARTS, p), pre, state, params, streams, t)
            for v in gl.static_range(len(vectors)):
                place = reads[at(at(SLOTS, at(PARTS, p)), v)]
                pass_on(place, vectors[v], offs[3], units, mask_b, H, ALONE)
            meet(counter_ptr, True, ALONE)
        if not ALONE and (p > 0 or len(PASSED_ON) > 0):
            wait(counter_ptr, due)
            due += programs
        for g in gl.static_range(len(pre), gates_before(BANDS, PARTS, p + 1, G)):
            part = biases[g]
            if at(X_INDEX, g) >= 0:
                part = widened(x[at(X_INDEX, g)], DTYPE)
            pre = pre + (part,)
        for s in gl.static_range(at(PARTS, p), at(PARTS, p + 1)):
            sources = ()
            for v in gl.static_range(len(at(SLOTS, s))):
                sources = sources + (reads[at(at(SLOTS, s), v)],)
            pre = add_products(
                pre, first_gate(BANDS, s), last_gate(BANDS, s), sources, weights[s], H, ALONE,
                at(HELD, s), PRECISION,
            )  # fmt: skip
    state = STEP(pre, state, params, streams, t)
    if not IS_LAST:
        coming = streams_of(ahead[1], draws, walk, t + 1, DRAWN, DTYPE)
        _pass_on_known(
            SOURCE, writes, state, params, coming, t + 1, offs, units, mask_b, PASSED_ON, H, ALONE
        )
        meet(counter_ptr, len(PASSED_ON) > 0, ALONE)

    # Stored while others begin the next step.
    for i in gl.static_range(len(sequence_ptrs)):
        if SAVE or i == 0:
            store(sequence_ptrs[i] + row * H, offs[2], state[i], mask_b, units, H)
    if SAVE:
        for g in gl.static_range(G):
            store(pre_ptr + (row * G + g) * H, offs[1], pre[g], mask_b, units, H)
    return state, ahead, (row + walk[0], due)


@gluon.jit
def draws_of(key_ptr, rows, units, direction):
    """What ``streams_of`` draws by: seed, first step, rows, units, direction; loaded once."""
    if key_ptr is None:
        return ()
    else:
        row = gl.load(key_ptr + 2 + rows)[:, None]
        return gl.load(key_ptr), gl.load(key_ptr + 1), row, units[None, :], direction


@gluon.jit
def streams_of(given, draws, walk, t, DRAWN: gl.constexpr, DTYPE: gl.constexpr):
    """All streams of step t, of those that are given and loaded."""
    streams = widen_each(given, DTYPE)
    if len(DRAWN) > 0:
        time = gl.where(walk[3], walk[1] - 1 - t, t)
        seed, first_step, row, unit, direction = draws
        streams = streams + drawn(seed, first_step, row, unit, direction, time, DRAWN, DTYPE)
    return streams


@gluon.jit
def _ahead(x_ptr, stream_ptrs, row, offs, units, X: gl.constexpr, H: gl.constexpr):
    """The parts of x and the streams of a step."""
    x = load_gates(x_ptr, row, offs[0], units, X, H)
    return x, load_each(stream_ptrs, row * H, offs[2], units, H)


@gluon.jit
def _pass_on_known(
    SOURCE: gl.constexpr, writes, state, params, streams, t, offs, units, mask_b,
    PASSED_ON: gl.constexpr, H: gl.constexpr, ALONE: gl.constexpr,
):  # fmt: skip
    """Pass on the sources that are known before step t."""
    for n in gl.static_range(len(PASSED_ON)):
        vectors = SOURCE(at(at(PASSED_ON, n), 0), (), state, params, streams, t)
        place = writes[at(at(PASSED_ON, n), 2)]
        pass_on(place, vectors[at(at(PASSED_ON, n), 1)], offs[3], units, mask_b, H, ALONE)


@gluon.constexpr_function
def last_gate(bands, s):
    return bands[s][-1]


@gluon.constexpr_function
def gates_before(bands, parts, p, count):
    """How many gates are known when part ``p`` begins."""
    return bands[parts[p]][0] if p < len(parts) - 1 else count


@gluon.constexpr_function
def slot_count(slots):
    return 1 + max([slot for stage in slots for slot in stage], default=-1)
