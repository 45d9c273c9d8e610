"""Values that programs pass on to each other, each of which says itself that it is there.

All bits of their places are set before the launch. No value that is stored has all bits set: it
would be a NaN, and of NaNs only one with other bits is stored. So a reader loads a place until it
finds something else. Nothing is counted or fenced, since each place is written once in a launch: a
load returns either what was stored or the bits from before, in whatever order others access it.

A thread stores 8 bytes of a fragment, which are indivisible: two registers of 32 bits, of two rows.
It has the values of one of these rows, in 16 bits of one unit; its neighbours have the others.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def width(dtype):
    """Values of a register."""
    return 32 // dtype.primitive_bitwidth


@gluon.jit
def publish(ptr, block, offs):
    """Store a block of a slice; see ``layouts.of_slice`` for the neighbours.

    offs: of its values, in fragments.
    """
    WIDTH: gl.constexpr = width(ptr.dtype.element_ty)
    block = block.to(ptr.dtype.element_ty)
    if WIDTH == 1:
        # Conversions to 16 bits make one NaN of all. Here they may have any bits, or all.
        bits = block.to(gl.int32, bitcast=True)
        block = gl.where(bits == -1, 0x7FFFFFFF, bits)
    ptrs = ptr + offs // (2 * WIDTH) * (2 * WIDTH)
    gl.inline_asm_elementwise(
        _storing(WIDTH), "=r,h,l" if WIDTH == 2 else "=r,r,l", [block, ptrs.to(gl.int64)],
        dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def load_published(ptrs, offs, CHUNKS: gl.constexpr, TILES: gl.constexpr):
    """Load blocks when all their values are there: per block and chunk a tensor of fragments.

    offs: of the fragments of a block's first chunk, (TILES, values); see ``layouts.of_fragments``.
    """
    WIDTH: gl.constexpr = width(ptrs[0].dtype.element_ty)
    addresses = ()
    for i in gl.static_range(len(ptrs)):
        addresses = addresses + ((ptrs[i] + offs).to(gl.int64),)
    # All of a thread in one piece of assembly, so that it has all loads on their way at once.
    return gl.inline_asm_elementwise(
        _polling(len(ptrs), CHUNKS, TILES, offs.shape[1], WIDTH),
        _operands(len(ptrs), CHUNKS, TILES, WIDTH), addresses,
        dtype=(ptrs[0].dtype.element_ty,) * (len(ptrs) * CHUNKS), is_pure=False, pack=8 * TILES,
    )  # fmt: skip


@gluon.constexpr_function
def _storing(width):
    """Assembly that puts the 8 bytes of neighbouring lanes together and stores them."""

    def with_neighbour(lanes):
        return [
            f"shfl.sync.bfly.b32 other, own, {lanes}, 0x1f, 0xffffffff;",
            f"and.b32 low, lane, {lanes};",
            "setp.ne.u32 odd, low, 0;",
            "selp.b32 low, other, own, odd;",
            "selp.b32 high, own, other, odd;",
        ]

    code = ["{", ".reg .pred odd;", ".reg .b32 lane, own, other, low, high;", ".reg .b64 all;"]
    code.append("mov.u32 lane, %laneid;")
    if width == 1:
        code.append("mov.b32 own, $1;")
    else:  # two units
        code += ["mov.b32 own, {$1, $1};", *with_neighbour(1), "prmt.b32 own, low, high, 0x5410;"]
    code += [*with_neighbour(2), "mov.b64 all, {low, high};"]  # two rows
    code += ["st.relaxed.gpu.global.b64 [$2], all;", "mov.b32 $0, 0;", "}"]
    return "\n".join(code)


@gluon.constexpr_function
def _polling(blocks, chunks, tiles, values, width):
    """Assembly that loads all that a thread needs, again and again until all of it is there.

    Args:
        values: of a tile of a chunk.
    """
    # The address of a thread's first fragment of each block is given, after the results.
    results = blocks * chunks * tiles * 8 // width
    addresses = [
        f"[${results + block * 8 * tiles} + {(chunk + tile * chunks) * values * 4 // width + part}]"
        for block in range(blocks)
        for chunk in range(chunks)
        for tile in range(tiles)
        for part in range(0, 1024 // width, 512)  # bytes of a warp's load
    ]
    code = ["{", ".reg .pred missing;", ".reg .b32 most, other;", ".reg .b64 first, second;"]
    code.append("POLL_${:uid}:")
    for n, address in enumerate(addresses):
        code += [
            f"ld.relaxed.gpu.global.v2.b64 {{first, second}}, {address};",
            f"mov.b64 {{${4 * n}, ${4 * n + 1}}}, first;",
            f"mov.b64 {{${4 * n + 2}, ${4 * n + 3}}}, second;",
        ]
    # The first half of 8 bytes tells whether all are there. In two sequences of operations, each of
    # which waits for itself only.
    code += ["mov.b32 most, $0;", "mov.b32 other, $2;"]
    for n in range(4, results, 4):
        code += [f"max.u32 most, most, ${n};", f"max.u32 other, other, ${n + 2};"]
    code += ["max.u32 most, most, other;", "setp.eq.u32 missing, most, 0xffffffff;"]
    # All lanes of a warp poll until all have everything, so that they stay together.
    code += ["vote.sync.any.pred missing, missing, 0xffffffff;", "@missing bra POLL_${:uid};", "}"]
    return "\n".join(code)


@gluon.constexpr_function
def _operands(blocks, chunks, tiles, width):
    """The constraints of ``_polling``: the results, and for each value of a chunk an address."""
    return ",".join(["=r"] * (blocks * chunks * tiles * 8 // width) + ["l"] * (blocks * 8 * tiles))
