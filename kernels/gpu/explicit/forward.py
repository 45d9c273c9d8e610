"""The forward kernel with explicit layouts.

Two steps are one pass of the loop, since sources have two places in turns. The arguments are those
of the kernel in Triton's language; for some, such as ``hidden``, this one has no use.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..blocks import as_blocks, at, first_gate
from ..draws import drawn
from ..sums import is_fixed
from .exchange import meet, offsets_in_place, pass_on, places_after, places_at, places_of
from .layouts import of_program
from .memory import (
    batch_tile,
    carried_block,
    load_each,
    load_gates,
    load_units,
    offsets,
    store,
    unit_tile,
    widen_each,
)
from .params import kept_params, params_of
from .products import add_products, kept_weights, rooms_of
from .sums import fixed_products


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
    source_ptr,  # (T + 1, slots, D, rows, units) in fragments; None where a program owns all units
    counter_ptr,  # None: what programs pass on says itself that it is there
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
    params = kept_params(param_ptrs, direction, units, H, DTYPE, ALONE)
    biases = ()
    for g in gl.static_range(G):
        bias = gl.zeros_like(state[0])
        if bias_ptr is not None and at(BIAS_INDEX, g) >= 0:
            bias += load_units(bias_ptr + (direction * M + at(BIAS_INDEX, g)) * H, units, H, DTYPE)
        biases = biases + (bias,)
    weights = ()
    for s in gl.static_range(len(BANDS)):
        tiles = ()
        if not is_fixed(MATRICES, s):
            tiles = kept_weights(
                weight_ptrs[at(MATRICES, s)], direction, H,
                last_gate(BANDS, s) - first_gate(BANDS, s), len(at(SLOTS, s)), BLOCK_H, False,
                ALONE, at(HELD, s),
            )  # fmt: skip
        weights = weights + (tiles,)
    fixed = (params, weights, biases, draws)
    rooms = rooms_of(
        spans_of(BANDS), MATRICES, sizes_of(BANDS), stages_of(BANDS), BLOCK_B, BLOCK_H, DTYPE, ALONE
    )

    SLOT_COUNT: gl.constexpr = slot_count(SLOTS)
    places = places_of(
        source_ptr, B, direction, first_b, SLOT_COUNT, D, H, PASSED, BLOCK_B, BLOCK_H, ALONE
    )
    ahead = _ahead(x_ptr, stream_ptrs, row, offs, units, X, H)
    streams = streams_of(ahead[1], draws, walk, begin, DRAWN, DTYPE)
    _pass_on_known(
        SOURCE, places_at(places, 0, SLOT_COUNT, ALONE), state,
        params_of(params, state[0], ALONE), streams, begin, offs, units, PASSED_ON, H, ALONE,
    )  # fmt: skip
    meet(ALONE)

    pointers = (x_ptr, stream_ptrs, sequence_ptrs, pre_ptr)
    # The rows of a step and of the one before. The first step writes the initial states to its own
    # row, where those that it computes replace them.
    rows = (row, row)
    for pair in range(0, (end - begin) // 2):
        for half in gl.static_range(2):
            reads = places_at(places, half, SLOT_COUNT, ALONE)
            writes = places_at(places, half + 1, SLOT_COUNT, ALONE)
            state, ahead, rows = _step(
                begin + 2 * pair + half, rows, reads, writes, state, ahead, fixed, rooms[half],
                pointers, walk, offs, mask_b, units, H, X_INDEX, BANDS, MATRICES, PARTS, SLOTS,
                PASSED_ON, DRAWN, X, STEP, SOURCE, SAVE, ALONE, HELD, PRECISION, DTYPE, False,
            )  # fmt: skip
        places = places_after(places, 2, SLOT_COUNT, ALONE)
    if (end - begin) % 2 == 1:
        reads = places_at(places, 0, SLOT_COUNT, ALONE)
        state, ahead, rows = _step(
            end - 1, rows, reads, reads, state, ahead, fixed, rooms[0], pointers, walk, offs,
            mask_b, units, H, X_INDEX, BANDS, MATRICES, PARTS, SLOTS, PASSED_ON, DRAWN, X, STEP,
            SOURCE, SAVE, ALONE, HELD, PRECISION, DTYPE, True,
        )  # fmt: skip

    if stores_late(ALONE, PARTS):
        _store_states(sequence_ptrs, rows[1], offs[2], state, mask_b, units, H, SAVE)
    own, offs_own, mask_b, units = carried_block(
        first_row, B, direction, hidden, H, BLOCK_B, BLOCK_H, LAYOUT
    )
    for i in gl.static_range(len(carry_ptrs)):
        store(carry_ptrs[i] + own, offs_own, state[i], mask_b, units, H)


@gluon.jit
def _step(
    t, rows, reads, writes, state, ahead, fixed, rooms, pointers, walk, offs, mask_b, units,
    H: gl.constexpr, X_INDEX: gl.constexpr, BANDS: gl.constexpr, MATRICES: gl.constexpr,
    PARTS: gl.constexpr, SLOTS: gl.constexpr, PASSED_ON: gl.constexpr, DRAWN: gl.constexpr,
    X: gl.constexpr, STEP: gl.constexpr, SOURCE: gl.constexpr, SAVE: gl.constexpr,
    ALONE: gl.constexpr, HELD: gl.constexpr, PRECISION: gl.constexpr, DTYPE: gl.constexpr,
    IS_LAST: gl.constexpr,
):  # fmt: skip
    G: gl.constexpr = len(X_INDEX)
    P: gl.constexpr = len(PARTS) - 1
    LATE: gl.constexpr = stores_late(ALONE, PARTS)
    params, weights, biases, draws = fixed
    x_ptr, stream_ptrs, sequence_ptrs, pre_ptr = pointers
    row, before = rows
    x, streams = ahead[0], streams_of(ahead[1], draws, walk, t, DRAWN, DTYPE)
    if not LATE and not IS_LAST:
        # Loaded a step ahead: the latency passes while this step waits and computes.
        next_row = gl.where(t + 1 < walk[2], row + walk[0], row)
        ahead = _ahead(x_ptr, stream_ptrs, next_row, offs, units, X, H)
    pre = ()
    for p in gl.static_range(P):
        if p > 0 and not is_fixed(MATRICES, at(PARTS, p)):
            own = params_of(params, state[0], ALONE)
            vectors = SOURCE(at(PARTS, p), pre, state, own, streams, t)
            for v in gl.static_range(len(vectors)):
                place = reads[at(at(SLOTS, at(PARTS, p)), v)]
                pass_on(place, vectors[v], offs[3], units, H, ALONE)
            meet(ALONE)
        for g in gl.static_range(len(pre), gates_before(BANDS, PARTS, p + 1, G)):
            part = biases[g]
            if at(X_INDEX, g) >= 0:
                part = x[at(X_INDEX, g)]
            pre = pre + (part,)
        for s in gl.static_range(at(PARTS, p), at(PARTS, p + 1)):
            if is_fixed(MATRICES, s):
                own = params_of(params, state[0], ALONE)
                vectors = SOURCE(s, widen_each(pre, DTYPE), state, own, streams, t)
                vectors = as_blocks(vectors, state[0].shape[0], state[0].shape[1])
                gates = fixed_products(vectors, at(MATRICES, s), rooms[s], units, H)
                pre = pre[: first_gate(BANDS, s)] + gates + pre[last_gate(BANDS, s) :]
            else:
                sources = ()
                for v in gl.static_range(len(at(SLOTS, s))):
                    sources = sources + (reads[at(at(SLOTS, s), v)],)
                pre = add_products(
                    pre, first_gate(BANDS, s), last_gate(BANDS, s), sources, weights[s],
                    rooms[s], H, ALONE, at(HELD, s), PRECISION, DTYPE,
                )  # fmt: skip
        pre = widen_each(pre, DTYPE)
    if LATE:
        # A program alone has no time in which it waits. It passes on as early as it can what the
        # next products read: the states of a step are stored after the products of the next one.
        # The loads come last, since the assembler moves them up, but not past a store: so nothing
        # is stored between the activations and what they pass on.
        _store_states(sequence_ptrs, before, offs[2], state, mask_b, units, H, SAVE)
        if SAVE:
            _store_gates(pre_ptr, row, offs[1], pre, mask_b, units, H)
        if not IS_LAST:
            next_row = gl.where(t + 1 < walk[2], row + walk[0], row)
            ahead = _ahead(x_ptr, stream_ptrs, next_row, offs, units, X, H)
    state = STEP(pre, state, params_of(params, state[0], ALONE), streams, t)
    state = as_blocks(state, biases[0].shape[0], biases[0].shape[1])
    if not IS_LAST:
        coming = streams_of(ahead[1], draws, walk, t + 1, DRAWN, DTYPE)
        _pass_on_known(
            SOURCE, writes, state, params_of(params, state[0], ALONE), coming, t + 1, offs, units,
            PASSED_ON, H, ALONE,
        )  # fmt: skip
        meet(ALONE)

    if not LATE:
        # Stored while others begin the next step.
        _store_states(sequence_ptrs, row, offs[2], state, mask_b, units, H, SAVE)
        if SAVE:
            _store_gates(pre_ptr, row, offs[1], pre, mask_b, units, H)
    return state, ahead, (row + walk[0], row)


@gluon.jit
def _store_states(ptrs, row, offs, state, mask_b, units, H: gl.constexpr, SAVE: gl.constexpr):
    """Store the first state of a step, or all of them for a backward."""
    for i in gl.static_range(len(ptrs)):
        if SAVE or i == 0:
            store(ptrs[i] + row * H, offs, state[i], mask_b, units, H)


@gluon.jit
def _store_gates(ptr, row, offs, pre, mask_b, units, H: gl.constexpr):
    G: gl.constexpr = len(pre)
    for g in gl.static_range(G):
        store(ptr + (row * G + g) * H, offs, pre[g], mask_b, units, H)


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
    SOURCE: gl.constexpr, writes, state, params, streams, t, offs, units,
    PASSED_ON: gl.constexpr, H: gl.constexpr, ALONE: gl.constexpr,
):  # fmt: skip
    """Pass on the sources that are known before step t."""
    for n in gl.static_range(len(PASSED_ON)):
        vectors = SOURCE(at(at(PASSED_ON, n), 0), (), state, params, streams, t)
        place = writes[at(at(PASSED_ON, n), 2)]
        pass_on(place, vectors[at(at(PASSED_ON, n), 1)], offs[3], units, H, ALONE)


@gluon.constexpr_function
def stores_late(alone, parts):
    """Whether a step stores the states of the one before: where it has one part, in one program.

    In a step of several parts the stores fill the time in which products wait for each other.
    """
    return alone and len(parts) == 2


@gluon.constexpr_function
def spans_of(bands):
    """Per stage its first gate, and one past its last."""
    return tuple((bounds[0], bounds[-1]) for bounds in bands)


@gluon.constexpr_function
def sizes_of(bands):
    """Per stage how many gates it has."""
    return tuple(bounds[-1] - bounds[0] for bounds in bands)


@gluon.constexpr_function
def stages_of(bands):
    """The stages in their order."""
    return tuple(range(len(bands)))


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
