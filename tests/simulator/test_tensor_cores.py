"""Tensor-core products against matmul, with fragments built lane by lane.

The positions of elements are written here once more, as loops over the formulas of the PTX ISA
(9.7.14.5 for mma, 9.7.15.5 for wgmma), and the tiles in shared memory as the canonical layouts of
CUTLASS. Throughout, group = lane >> 2 is the ISA's groupID and thread = lane % 4 its
threadID_in_group.
"""

import itertools
from functools import partial

import numpy as np
import pytest

from simulator.errors import Unsupported
from simulator.instructions import warpgroup
from simulator.instructions.tensor_cores import lanes_to_matrices, matrices_to_lanes, mma

WARPS = 3
BYTES = {"bf16": 2, "f16": 2, "tf32": 4, "f64": 8, "s8": 1, "u8": 1}

MMA = [
    *(f"m16n8k{k}.row.col.f32.{kind}.{kind}.f32" for kind in ("bf16", "f16") for k in (8, 16)),
    *(f"m16n8k{k}.row.col.f16.f16.f16.f16" for k in (8, 16)),
    *(f"m16n8k{k}.row.col.f32.tf32.tf32.f32" for k in (4, 8)),
    "m8n8k4.row.col.f64.f64.f64.f64",
    *(f"m16n8k{k}.row.col.f64.f64.f64.f64" for k in (4, 8, 16)),
    *(
        f"m16n8k{k}.row.col.s32.{a}.{b}.s32"
        for k in (16, 32)
        for a, b in itertools.product(("s8", "u8"), repeat=2)
    ),
]


def operation_of(name):
    return mma(("sync", "aligned", *name.split(".")))


def a_position(kind, lane, i):
    """Row and column of a's element i."""
    group, thread = lane >> 2, lane % 4
    if BYTES[kind] == 2:
        row = group if i < 2 or 4 <= i < 6 else group + 8
        return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)
    if BYTES[kind] == 1:
        row = group if i < 4 or 8 <= i < 12 else group + 8
        return row, thread * 4 + (i & 3) + (16 if i >= 8 else 0)
    row = group if i % 2 == 0 else group + 8
    return row, (i * 2 if i % 2 == 0 else i * 2 - 2) + thread


def b_position(kind, lane, i):
    """Row (along k) and column of b's element i."""
    group, thread = lane >> 2, lane % 4
    if BYTES[kind] == 2:
        return thread * 2 + (i & 1) + (8 if i >= 2 else 0), group
    if BYTES[kind] == 1:
        return thread * 4 + (i & 3) + (16 if i >= 4 else 0), group
    return thread + 4 * i, group


def c_position(lane, i):
    """Row and column of c's, and d's, element i."""
    group, thread = lane >> 2, lane % 4
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def bits_of(values, kind):
    """Raw elements of values that the type represents exactly."""
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    if kind == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if kind in ("tf32", "f32"):
        return values.astype(np.float32).view(np.uint32)
    return values.astype({"f64": np.float64, "s8": np.int8, "u8": np.uint8, "s32": np.int32}[kind])


def registers_of(matrix, kind, position, count):
    """Registers (W, 32) of 32 bits, or float64, whose elements lie at ``position(lane, i)``."""
    elements = bits_of(matrix, kind)
    lanes = np.empty((len(matrix), 32, count), elements.dtype)
    for lane in range(32):
        for i in range(count):
            lanes[:, lane, i] = elements[(slice(None), *position(lane, i))]
    packed = lanes if kind == "f64" else lanes.view(np.uint32)
    return [np.ascontiguousarray(packed[..., i]) for i in range(packed.shape[2])]


def matrix_of(registers, kind, shape):
    """The accumulator's matrix."""
    lanes = np.stack(registers, 2)
    if kind == "f16":
        lanes = np.ascontiguousarray(lanes).view(np.float16)
    matrix = np.full((len(lanes), *shape), np.nan if kind != "s32" else -1, lanes.dtype)
    for lane in range(32):
        for i in range(lanes.shape[2]):
            matrix[(slice(None), *c_position(lane, i))] = lanes[:, lane, i]
    return matrix


def multiply(name, a, b, c):
    """D of matrices (W, m, k), (W, k, n), (W, m, n), by way of registers."""
    operation = operation_of(name)
    m, n, k = operation.shape
    kind_a, kind_b = operation.types
    kind_c = operation.accumulator
    fragments = [
        registers_of(a, kind_a, partial(a_position, kind_a), m * k // 32),
        registers_of(b, kind_b, partial(b_position, kind_b), n * k // 32),
        registers_of(c, kind_c, c_position, m * n // 32),
    ]
    if kind_c in ("f32", "s32"):
        fragments[2] = [r.view({"f32": np.float32, "s32": np.int32}[kind_c]) for r in fragments[2]]
    for fragment, (count, register) in zip(
        fragments, (operation.a, operation.b, operation.c), strict=True
    ):
        assert len(fragment) == count
        assert (
            fragment[0].dtype
            == {"u32": np.uint32, "f32": np.float32, "f64": np.float64, "s32": np.int32}[register]
        )
    d = operation.compute(*fragments)
    assert [r.dtype for r in d] == [fragments[2][0].dtype] * len(fragments[2])
    assert all(r.shape == (len(a), 32) for r in d)
    return matrix_of(d, kind_c, (m, n))


def integers(rng, kind, shape):
    """Small enough for all sums to be exact; 8-bit ones of the whole range."""
    low, high = {"s8": (-128, 128), "u8": (0, 256)}.get(kind, (-8, 9))
    return rng.integers(low, high, shape).astype(np.float64)


@pytest.mark.parametrize("name", MMA)
def test_mma(name):
    rng = np.random.default_rng(0)
    operation = operation_of(name)
    m, n, k = operation.shape
    a = integers(rng, operation.types[0], (WARPS, m, k))
    b = integers(rng, operation.types[1], (WARPS, k, n))
    c = integers(rng, operation.accumulator, (WARPS, m, n))
    np.testing.assert_array_equal(multiply(name, a, b, c), a @ b + c)


@pytest.mark.parametrize("k", [16, 32])
def test_integers_saturate_or_wrap(k):
    rng = np.random.default_rng(2)
    a, b = rng.integers(-128, 128, (WARPS, 16, k)), rng.integers(-128, 128, (WARPS, k, 8))
    c = rng.choice([-(2**31), 2**31 - 1, 5], (WARPS, 16, 8))
    exact, name = a @ b + c, f"m16n8k{k}.row.col{{}}.s32.s8.s8.s32"
    assert (exact < -(2**31)).any()
    assert (exact >= 2**31).any()
    clamped = multiply(name.format(".satfinite"), a, b, c)
    np.testing.assert_array_equal(clamped, exact.clip(-(2**31), 2**31 - 1))
    wrapped = (exact + 2**31) % 2**32 - 2**31
    np.testing.assert_array_equal(multiply(name.format(""), a, b, c), wrapped)


@pytest.mark.parametrize(
    ("kind", "k", "decimals"), [("bf16", 16, 7), ("f16", 16, 10), ("tf32", 8, 10)]
)
def test_fractions(kind, k, decimals):
    """Real numbers, to the precision of float32 sums."""
    rng = np.random.default_rng(1)
    scale = 2.0**decimals
    a = rng.integers(-scale, scale, (WARPS, 16, k)) / scale
    b = rng.integers(-scale, scale, (WARPS, k, 8)) / scale
    c = rng.normal(size=(WARPS, 16, 8)).astype(np.float32)
    if kind == "bf16":
        a, b = ((bits_of(x, kind).astype(np.uint32) << 16).view(np.float32) for x in (a, b))
    d = multiply(f"m16n8k{k}.row.col.f32.{kind}.{kind}.f32", a, b, c)
    np.testing.assert_allclose(d, a.astype(np.float64) @ b + c, rtol=0, atol=k * 2.0**-22)


def test_f16_accumulators_are_rounded_once():
    """2048 + 1 + 1: rounded in between it would stay 2048."""
    a, b = np.zeros((1, 16, 16)), np.zeros((1, 16, 8))
    a[0, 0, :2] = b[0, :2, 0] = 1
    c = np.full((1, 16, 8), 2048.0)
    d = multiply("m16n8k16.row.col.f16.f16.f16.f16", a, b, c)
    assert d[0, 0, 0] == 2050
    assert (d.ravel()[1:] == 2048).all()


@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_infinities_and_nan(kind):
    k = 8
    a, b, c = np.ones((1, 16, k)), np.ones((1, k, 8)), np.zeros((1, 16, 8))
    a[0, 3, 2], a[0, 9, 1], c[0, 5, 6] = np.inf, np.nan, -np.inf
    b[0, 2, 4] = 0
    with np.errstate(invalid="ignore"):  # as the machine runs instructions
        d = multiply(f"m16n8k{k}.row.col.f32.{kind}.{kind}.f32", a, b, c)[0]
        np.testing.assert_array_equal(d, a[0] @ b[0] + c[0])
    assert np.isnan(d[3, 4])
    assert np.isnan(d[9]).all()
    assert d[3, 0] == np.inf
    assert d[5, 6] == -np.inf


def test_low_bits_of_tf32_are_ignored():
    rng = np.random.default_rng(2)
    operation = operation_of("m16n8k8.row.col.f32.tf32.tf32.f32")
    a, b = (
        [rng.normal(size=(WARPS, 32)).astype(np.float32).view(np.uint32) for _ in range(count)]
        for count in (4, 2)
    )
    c = [np.zeros((WARPS, 32), np.float32)] * 4
    cut = np.uint32(~0x1FFF & 0xFFFFFFFF)
    full = [r | np.uint32(0x1FFF) for r in a], [r | np.uint32(0x1FFF) for r in b]
    short = [r & cut for r in a], [r & cut for r in b]
    np.testing.assert_array_equal(operation.compute(*full, c), operation.compute(*short, c))
    changed = [r ^ np.uint32(0x2000) for r in short[0]]  # the lowest bit that counts
    assert (np.stack(operation.compute(changed, short[1], c)) != operation.compute(*short, c)).any()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "sync.aligned",
        "m16n8k16.row.col.f32.bf16.bf16.f32",
        "aligned.sync.m16n8k16.row.col.f32.bf16.bf16.f32",
        "sync.aligned.m16n8k16.row.row.f32.bf16.bf16.f32",
        "sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32",
        "sync.aligned.m8n8k4.row.col.f32.f16.f16.f32",
        "sync.aligned.m16n8k16.row.col.f32.tf32.tf32.f32",
        "sync.aligned.m16n8k16.row.col.f32.bf16.f16.f32",
        "sync.aligned.m16n8k4.row.col.f32.tf32.f64.f32",
        "sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16",
        "sync.aligned.m16n8k16.row.col.f32.f16.f16.f16",
        "sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32",
        "sync.aligned.m16n8k16.row.col.satfinite.f32.f16.f16.f32",
        "sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32.extra",
        "sp.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    ],
)
def test_unknown_mma(name):
    with pytest.raises(Unsupported, match=f"^mma.{name}"):
        mma(tuple(name.split(".")))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_8x8_matrices(count, transposed):
    rng = np.random.default_rng(3)
    tiles = rng.integers(0, 2**16, (WARPS, count, 8, 8)).astype(np.uint16)
    registers = matrices_to_lanes(tiles, transposed)
    assert len(registers) == count
    for j, register in enumerate(registers):
        assert register.shape == (WARPS, 32)
        assert register.dtype == np.uint32
        for warp, lane in itertools.product(range(WARPS), range(32)):
            matrix = tiles[warp, j].T if transposed else tiles[warp, j]
            row, column = lane // 4, 2 * (lane % 4)
            low, high = int(matrix[row, column]), int(matrix[row, column + 1])
            assert register[warp, lane] == low | high << 16
    back = lanes_to_matrices(registers, transposed)
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, tiles)


def wgmma(name):
    return warpgroup.parse(("mma_async", "sync", "aligned", *name.split(".")))


def d_of_wgmma(registers, n):
    """(64, n) from the registers of a warpgroup's four warps, by the ISA's formulas."""
    matrix = np.full((64, n), np.nan)
    for warp, lane, i in itertools.product(range(4), range(32), range(n // 2)):
        row = 16 * warp + lane // 4 + 8 * (i // 2 % 2)
        column = 8 * (i // 4) + lane % 4 * 2 + i % 2
        matrix[row, column] = registers[i][warp, lane]
    return matrix


@pytest.mark.parametrize("signs", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
@pytest.mark.parametrize(
    ("kind", "n"), [("bf16", 64), ("bf16", 32), ("f16", 8), ("f16", 256), ("tf32", 32)]
)
def test_wgmma(kind, n, signs):
    rng = np.random.default_rng(4)
    k = 32 // BYTES[kind]
    operation = wgmma(f"m64n{n}k{k}.f32.{kind}.{kind}")
    assert (operation.n, operation.k, operation.d_count) == (n, k, n // 2)
    a, b = integers(rng, kind, (64, k)), integers(rng, kind, (n, k))
    rows = a.reshape(4, 16, k)
    in_registers = operation.a_from_registers(
        registers_of(rows, kind, partial(a_position, kind), 16 * k // 32)
    )
    np.testing.assert_array_equal(in_registers, rows)
    assert in_registers.dtype == np.float32
    b_tile = np.broadcast_to(b.astype(np.float32), (4, n, k))
    result = operation.compute(in_registers, b_tile, *signs)
    assert {r.dtype for r in result} == {np.dtype(np.float32)}
    expected = signs[0] * signs[1] * (a @ b.T)
    np.testing.assert_array_equal(d_of_wgmma(result, n), expected)


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        ("f16", 0x3C00, 1.0),
        ("f16", 0x0001, 2.0**-24),
        ("f16", 0xFC00, -np.inf),
        ("bf16", 0x3F80, 1.0),
        ("bf16", 0x7F80, np.inf),
        ("bf16", 0x7FC0, np.nan),
        ("tf32", 0x3F803FFF, 1.0 + 2.0**-10),
        ("tf32", 0xFF800000, -np.inf),
    ],
)
def test_widen(kind, raw, value):
    bits = np.array([raw], np.uint16 if BYTES[kind] == 2 else np.uint32)
    widened = warpgroup.widen(bits, kind)
    assert widened.dtype == np.float32
    np.testing.assert_array_equal(widened, np.float32([value]))


@pytest.mark.parametrize(
    "name",
    [
        "m64n8k16.f32.bf16",
        "m64n8k16.f16.f16.f16",
        "m64n12k16.f32.f16.f16",
        "m64n264k16.f32.f16.f16",
        "m64n0k16.f32.f16.f16",
        "m32n8k16.f32.f16.f16",
        "m64n8k8.f32.f16.f16",
        "m64n8k16.f32.tf32.tf32",
        "m64n8k16.f32.bf16.f16",
        "m64n8k32.f32.e4m3.e5m2",
        "m64n8k32.s32.s8.s8",
        "m64n8k16.f32.f16.f16.extra",
    ],
)
def test_unknown_wgmma(name):
    with pytest.raises(Unsupported):
        wgmma(name)


# What Triton 3.7 adds to an address: in hexadecimal the fields are seen.
@pytest.mark.parametrize(
    ("bits", "descriptor"),
    [
        (0x4000004000000000, warpgroup.Descriptor(0, 0, 1024, 128)),
        (0x4000004000000006, warpgroup.Descriptor(96, 0, 1024, 128)),
        (0x8000002000000080, warpgroup.Descriptor(2048, 0, 512, 64)),
        (0xC000001000000021, warpgroup.Descriptor(528, 0, 256, 32)),
        (0x0000000800043FFF, warpgroup.Descriptor(0x3FFF0, 64, 128, 0)),
    ],
)
def test_decode(bits, descriptor):
    assert warpgroup.decode(bits) == descriptor


def test_base_offsets_are_refused():
    for offset in range(1, 8):
        with pytest.raises(Unsupported, match="base offset"):
            warpgroup.decode(0x4000004000000000 | offset << 49)


def canonical_address(descriptor, row, column, itemsize, transposed):
    """Of one element: the layouts in the comments of CUTLASS's mma_traits_sm90_gmma.hpp.

    They are shapes and strides in elements, the innermost first, of rows and of columns.
    """
    piece = 16 // itemsize
    leading, stride = descriptor.leading // itemsize, descriptor.stride // itemsize
    pieces = {0: 1, 32: 2, 64: 4, 128: 8}[descriptor.swizzle]
    if transposed and pieces == 1:
        rows = ((piece, 1), (1, piece), (None, stride))
        columns = ((8, piece), (None, leading))
    elif transposed:
        rows = ((piece, 1), (pieces, piece), (None, leading))
        columns = ((8, pieces * piece), (None, stride))
    else:
        rows = ((8, pieces * piece), (None, stride))
        columns = ((piece, 1), (2, leading if pieces == 1 else piece))
    elements = 0
    for index, modes in ((row, rows), (column, columns)):
        rest = index
        for size, step in modes:
            elements += (rest if size is None else rest % size) * step
            rest = 0 if size is None else rest // size
        assert rest == 0
    address = descriptor.start + elements * itemsize
    for bit in range({0: 0, 32: 1, 64: 2, 128: 3}[descriptor.swizzle]):
        address ^= (address >> (7 + bit) & 1) << (4 + bit)
    return address


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize(
    ("itemsize", "transposed"), [(2, False), (2, True), (4, False)], ids=["K", "MN", "K-tf32"]
)
@pytest.mark.parametrize("rows", [8, 64, 256])
def test_addresses(rows, itemsize, transposed, swizzle):
    width = max(swizzle, 16)
    columns = 32 // itemsize
    atom = 8 * width  # bytes of one repetition of the pattern
    # Along M or N one repetition after the other, along K beyond all of those; any order would do.
    repetitions = rows * itemsize // width if transposed else rows // 8
    near, far = atom, atom * max(repetitions, 1)
    # Without a swizzle the offsets of a transposed operand have changed places.
    leading, stride = (near, far) if transposed and swizzle else (far, near)
    start = 8192
    if not transposed and swizzle > 32:
        start += 32  # the second step along K, within the pattern
    descriptor = warpgroup.Descriptor(start, leading, stride, swizzle)
    found = warpgroup.addresses(descriptor, rows, columns, itemsize, transposed)
    expected = [
        [
            canonical_address(descriptor, row, column, itemsize, transposed)
            for column in range(columns)
        ]
        for row in range(rows)
    ]
    np.testing.assert_array_equal(found, expected)
    assert np.unique(found).size == found.size
    # The swizzle permutes pieces of 16 bytes within rows of 128 bytes, and nothing else.
    mask = {0: 0, 32: 1, 64: 3, 128: 7}[swizzle]
    plain = found ^ (found // 128 % 8 & mask) * 16  # done again it is undone
    np.testing.assert_array_equal(found // 128, plain // 128)
    np.testing.assert_array_equal(found % 16, plain % 16)
    assert (found != plain).any() == (swizzle > 0)


def test_transposed_tf32_is_refused():
    with pytest.raises(Unsupported, match="transposed"):
        warpgroup.addresses(warpgroup.Descriptor(0, 0, 1024, 128), 8, 8, 4, True)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_tile_stored_as_triton_stores_it(transposed):
    """64 × 64 bf16 in rows of 128 bytes, pieces exchanged by the row, read 16 of K at a time.

    Triton steps along K by 32 bytes, or by 2048 where K is the outer dim.
    """
    rng = np.random.default_rng(5)
    b = rng.integers(0, 2**16, (64, 64)).astype(np.uint16)  # (n, k)
    memory = np.zeros(16384, np.uint8)
    start = 3072
    for row, values in enumerate(np.ascontiguousarray(b.T if transposed else b)):
        for piece in range(8):
            at = start + row * 128 + (piece ^ row % 8) * 16
            memory[at : at + 16] = values[8 * piece : 8 * piece + 8].view(np.uint8)
    for step in range(4):
        bits = 0x4000004000000000 + (start >> 4) + step * (128 if transposed else 2)
        found = warpgroup.addresses(warpgroup.decode(bits), 64, 16, 2, transposed)
        tile = memory.view(np.uint16)[found // 2]
        np.testing.assert_array_equal(tile, b[:, 16 * step : 16 * step + 16])
