"""Copy tensors of the host to the simulator's global memory, and back."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from .memory import Memory, Region
from .ptx import SIZE, Program, written_parameters

# The address of global memory: beyond 32 bits, so that a truncated address is detected.
GLOBAL_BASE = 0x7F00_0000_0000
# Unallocated bytes between tensors, and before the first, to detect stray accesses.
_REDZONE = 4096
# Fills new memory: NaN as bf16, fp16, fp32 and fp64.
_POISON = 0xFFF5


def place(program: Program, arguments: list[tuple[str, object]], fresh: set[int]):
    """Put the storages of all tensors into a memory.

    Args:
        arguments: by name, in the order of the parameters.
        fresh: addresses of storages whose unwritten elements are still poison.

    Returns:
        (memory, the bits of each parameter). A storage that several arguments share is one region,
        with the name of the first.
    """
    written = written_parameters(program)
    regions: dict[int, Region] = {}
    end = _REDZONE
    for k, (name, tensor) in enumerate(arguments):
        if isinstance(tensor, Tensor):
            storage = tensor.untyped_storage()
            region = regions.get(storage.data_ptr())
            if region is None:
                region = Region(name, end, end + storage.nbytes(), 1, written=False)
                end = -(-region.end // 256) * 256 + _REDZONE
            regions[storage.data_ptr()] = replace(
                region,
                itemsize=max(region.itemsize, tensor.element_size()),
                written=region.written or k in written,
            )
    memory = Memory("global", end, GLOBAL_BASE)
    bits = []
    for (_, value), kind in zip(arguments, program.parameters):  # noqa: B905, scratch follows
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            region = regions[storage.data_ptr()]
            if region not in memory.regions:
                memory.add(region, _bytes(storage).numpy())
                if storage.data_ptr() in fresh:
                    _forget_poison(memory, region)
            bits.append(GLOBAL_BASE + region.begin + value.data_ptr() - storage.data_ptr())
        elif isinstance(value, float):
            wide = SIZE[kind] == 8
            number = np.float64(value) if wide else np.float32(value)
            bits.append(int(number.view(np.uint64 if wide else np.uint32)))
        else:
            bits.append(int(value or 0))
    # Triton appends parameters for scratch memory, which no kernel here uses.
    return memory, bits + [0] * (len(program.parameters) - len(bits))


def take_back(memory: Memory, arguments: list[tuple[str, object]]) -> None:
    """Copy memory that the kernel may have written back to the tensors."""
    regions = {region.name: region for region in memory.regions if region.written}
    for name, tensor in arguments:
        if name in regions:
            region = regions[name]
            content = torch.from_numpy(memory.bytes[region.begin : region.end])
            _bytes(tensor.untyped_storage()).copy_(content)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _forget_poison(memory: Memory, region: Region) -> None:
    """Mark elements that still hold poison as unwritten."""
    size = max(2, region.itemsize)
    end = region.begin + (region.end - region.begin) // size * size
    words = memory.bytes[region.begin : end].view(np.uint16).reshape(-1, size // 2)
    status = memory.status[region.begin : end].reshape(-1, size)
    status[(words == _POISON).all(1)] = 1


@contextlib.contextmanager
def new_memory(fresh: set[int]) -> Iterator[None]:
    """Make ``torch.empty`` and similar functions fill memory with poison, and note its address."""

    def marking(make):
        @functools.wraps(make)
        def wrapped(*args, **kwargs):
            tensor = make(*args, **kwargs)
            # Skip fake tensors: they have no memory, even if their device is the CPU.
            if type(tensor) is not Tensor or tensor.device.type != "cpu" or not tensor.numel():
                return tensor
            storage = tensor.untyped_storage()
            if storage.device.type == "cpu":
                _fill(storage)
                fresh.add(storage.data_ptr())
            return tensor

        return wrapped

    with contextlib.ExitStack() as stack:
        for owner, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (Tensor, "new_empty"),
        ):
            stack.enter_context(mock.patch.object(owner, name, marking(getattr(owner, name))))
        yield


def _fill(storage) -> None:
    if storage.nbytes() % 2 == 0:
        words = torch.tensor([], dtype=torch.uint16).set_(storage)
        words.view(torch.int16).fill_(_POISON - (1 << 16))
