"""The pipes of a multiprocessor: published widths and latencies, compute capability 8.0 and 9.0.

Sources, as the comments name them:

- guide: NVIDIA, CUDA C++ Programming Guide, "Arithmetic Instructions", results per clock cycle and
  multiprocessor; a warp's instruction takes 128 / results cycles of its scheduler's quarter;
- Abdelkhalik: Abdelkhalik et al. 2022, arXiv 2208.11174 (A100);
- Sun: Sun et al. 2022, arXiv 2206.02874 (tensor cores and ldmatrix, A100);
- Luo: Luo et al. 2024, arXiv 2402.13499 and 2501.12084 (A100, H800);
- Jia: Jia et al. 2018, arXiv 1804.06826 (V100);
- Zhang: Zhang et al. 2020, arXiv 2004.05371 (barriers);
- assumed: no publication was found; the figure is a guess that orders of magnitude support.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import Unsupported

SECTOR = 32  # bytes
_WAVEFRONT = 128  # bytes that shared memory and the first-level cache pass on in a cycle


@dataclass(frozen=True)
class Chip:
    """Cycles of one multiprocessor, unless noted otherwise.

    Args:
        fp32: of a scheduler for an fp32 sum or product of a warp; ``fp32_integer`` for an integer
            product, which the same pipe does; ``fp16`` for a pair of 16-bit floats.
        integer: of a scheduler for integers, logic, comparisons and packing.
        special: of a scheduler for ``MUFU`` and conversions between integers and floats.
        fp64: of a scheduler.
        uniform: of a scheduler for its uniform datapath.
        products: fused products and sums of 16-bit values per cycle and scheduler by ``mma``;
            ``group_products`` by ``wgmma``.
        product, special_function, shuffle, uniform_value, constant, shared, matrix: cycles until
            the result of a product of 16 x 8 x 16, of ``MUFU``, and so on, is there; ``shared`` of
            a load from shared memory, ``matrix`` of ``ldmatrix``, both with one wavefront.
        l2, dram: cycles until a load has what it asked for.
        atomic: cycles until an atomic operation has the value before it.
        barrier: cycles from the last warp's arrival to the next instruction.
        grid: microseconds of a barrier of all programs.
        operands: cycles until an access to memory has read its operands.
        path: bytes per cycle between the L2 cache and a multiprocessor, each way.
        queue: cycles of work that shared memory accepts in advance.
        mhz: cycles of a microsecond at the boost clock.
    """

    fp32: float
    fp32_integer: float
    fp16: float
    integer: float
    special: float
    fp64: float
    uniform: float
    products: float
    group_products: float
    product: float
    special_function: float
    shuffle: float
    uniform_value: float
    constant: float
    shared: float
    matrix: float
    l2: float
    dram: float
    atomic: float
    barrier: float
    grid: float
    operands: float
    path: float
    queue: float
    mhz: float


CHIPS = {
    80: Chip(
        fp32=2,  # guide: 64 results
        fp32_integer=2,  # guide: 64
        fp16=1,  # guide: 256 results in pairs
        integer=2,  # guide: 64
        special=8,  # guide: 16
        fp64=4,  # guide: 32
        uniform=2,  # assumed
        products=256,  # NVIDIA A100 whitepaper: 1024 per multiprocessor
        group_products=256,  # there is no wgmma
        product=33,  # Sun: mma m16n8k16, bf16
        special_function=18,  # Abdelkhalik: ex2.approx
        shuffle=23,  # as a load from shared memory, whose crossbar it uses
        uniform_value=12,  # assumed
        constant=27,  # Jia: from the first-level constant cache of a V100
        shared=23,  # Abdelkhalik, Sun
        matrix=23,  # Sun: 23, 25 and 29 with 1, 2 and 4 wavefronts
        l2=200,  # Abdelkhalik; Luo: 261
        dram=466,  # Luo; Abdelkhalik: 290
        atomic=500,  # assumed: two and a half round trips to L2
        barrier=12,  # assumed; Zhang: 22 with the arrival, on a V100
        grid=1.09,  # as fused_rnn/plan/cost.py has it, on an H100
        operands=14,  # assumed
        path=64,  # NVIDIA A100 whitepaper: of an L2 slice to a multiprocessor
        queue=16,  # assumed
        mhz=1410,
    ),
    90: Chip(
        fp32=1,  # guide: 128
        fp32_integer=2,  # guide: 64
        fp16=1,  # guide: 256 results in pairs
        integer=2,  # guide: 64
        special=8,  # guide: 16
        fp64=2,  # guide: 64
        uniform=2,  # assumed
        products=335,  # Luo: mma.sync has 65 % of the pipe, 2680 of 4096 operations a cycle
        group_products=507,  # Luo: wgmma, 4053 operations a cycle with 256 columns
        product=33,  # Luo: as the A100's
        special_function=18,  # as the A100's
        shuffle=23,
        uniform_value=12,  # assumed
        constant=27,  # Jia: from the first-level constant cache of a V100
        shared=23,  # as the A100's
        matrix=23,
        l2=263,  # Luo
        dram=479,  # Luo
        atomic=650,  # assumed: two and a half round trips to L2
        barrier=12,  # assumed
        grid=1.09,
        operands=14,  # assumed
        path=64,  # as the A100's
        queue=16,  # assumed
        mhz=1755,
    ),
}

_NAMES = {
    "special": "MUFU F2F I2F F2I FRND POPC FLO",
    "fp32": "FFMA FMUL FADD FFMA32I FMUL32I FADD32I",
    "fp32 integer": "IMAD IDP",
    "fp16": "HFMA2 HADD2 HMUL2",
    "fp64": "DFMA DMUL DADD DSETP",
    "integer": "BMSK BREV F2FP FCHK FMNMX FSEL FSET FSETP FSWZADD HMNMX2 HSET2 HSETP2 I2FP I2IP "
    "IABS IADD IADD3 IADD32I IMNMX ISCADD ISETP LEA LOP LOP3 LOP32I MOV MOV32I MOVM P2R PLOP3 PRMT "
    "PSETP R2P SEL SGXT SHF SHL SHR VABSDIFF VABSDIFF4 VIADD VIADDMNMX VIMNMX VIMNMX3 VOTE",
    "constant": "LDC",
    "uniform": "CS2R R2UR REDUX S2R S2UR VOTEU ELECT",  # and what begins with U
    "shared": "LDS STS LDSM STSM ATOMS",
    "global": "LDG STG LD ST LDGSTS ATOMG ATOM RED REDG LDL STL",
    "shuffle": "SHFL",
    "barrier": "BAR",
    "fence": "MEMBAR",
    "wait": "DEPBAR LDGDEPBAR WARPGROUP",
    "control": "BRA BREAK BSSY BSYNC CALL CCTL CGAERRBAR ERRBAR EXIT FENCE NANOSLEEP NOP PREEXIT "
    "RET WARPSYNC WARPGROUPSET YIELD",
}
_KINDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}


def chip(capability: int) -> Chip:
    """The table of a compute capability, 80 for 8.0.

    Raises:
        ValueError: there is none.
    """
    if capability not in CHIPS:
        raise ValueError(f"capability: expected one of {sorted(CHIPS)}, got {capability!r}")
    return CHIPS[capability]


def kind(opcode: str) -> str:
    """The pipe of an instruction: "tensor" or a key of ``_NAMES``.

    Raises:
        Unsupported: the opcode is not known.
    """
    name = opcode.partition(".")[0]
    if name.endswith("MMA"):
        return "tensor"
    if name in _KINDS:
        return _KINDS[name]
    if name.startswith(("UTMA", "UBLK", "UCGABAR")) or not name.startswith("U"):
        raise Unsupported(f"an instruction whose pipe is not known: {opcode}")
    return "uniform"


def width(opcode: str) -> int:
    """The bytes of a lane that an access to memory moves; of a row for ``LDSM`` and ``STSM``."""
    if opcode.startswith(("LDSM", "STSM")):
        return 16
    found = re.search(r"\.(128|64|U16|S16|U8|S8)\b", opcode)
    sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return sizes[found[1]] if found else 4


def access(opcode: str) -> tuple[str, int]:
    """What an access to memory does, "read", "write" or "atomic", and the bytes of a lane."""
    if opcode.startswith(("ATOM", "RED")):
        return "atomic", width(opcode)
    return "read" if opcode.startswith("LD") else "write", width(opcode)


def sectors(opcode: str) -> float:
    """The sectors of a warp's access to global memory if its lanes are adjacent."""
    return max(1.0, width(opcode) * 32 / SECTOR)


def wavefronts(opcode: str) -> float:
    """The wavefronts of a warp's access to shared memory without bank conflicts."""
    if opcode.startswith(("LDSM", "STSM")):
        return {"4": 4.0, "2": 2.0}.get(opcode[-1], 1.0)
    return max(1.0, width(opcode) * 32 / _WAVEFRONT)


def product_cycles(opcode: str, of: Chip) -> float:
    """The cycles of a scheduler's tensor core that a product takes.

    Raises:
        Unsupported: its shape is not known.
    """
    group = re.match(r"[HQ]GMMA\.64x(\d+)x(\d+)", opcode)
    if group:  # a quarter of the rows for each of the four warps
        return 16 * int(group[1]) * int(group[2]) / of.group_products
    shape = re.match(r"[HDI]MMA\.(16816|1688|1684|884|8816)", opcode)
    if not shape:
        raise Unsupported(f"a product of unknown shape: {opcode}")
    count = {"16816": 2048, "1688": 1024, "1684": 512, "884": 256, "8816": 1024}[shape[1]]
    pace = of.products
    if "TF32" in opcode:
        pace /= 2
    elif opcode.startswith("DMMA"):
        pace /= 16
    return count / pace
