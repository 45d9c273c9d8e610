"""The bytes that cuDNN keeps between forward and backward, and ours. Needs a CUDA device.

    python -m bench.reports.memory            # a table of a few sizes

PyTorch asks cuDNN for their number (``cudnnGetRNNTempSpaceSizes``) and keeps them as a tensor of
bytes, the fourth result of ``torch._cudnn_rnn``, which autograd saves. So this program measures the
tensors that autograd saves, for the modules of ``torch.nn`` and for ours.
"""

from __future__ import annotations

import argparse
import sys

import torch

import fused_rnn

KINDS = ("RNN", "LSTM", "GRU")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def kept(module: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes of the storages that the graph of a call keeps, without the parameters and x."""
    seen = {tensor.untyped_storage().data_ptr() for tensor in (x, *module.parameters())}
    sizes, alive = [], []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            sizes.append(storage.nbytes())
        alive.append(tensor)  # alive, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sum(sizes)


def rows(device: str, sizes):
    """Bytes per step, batch row and unit, by kind, dtype and size: torch.nn, ours, recompute."""
    for kind in KINDS:
        for dtype in DTYPES:
            for T, B, H in sizes:
                options = {"device": device, "dtype": dtype}
                mine = getattr(fused_rnn, kind)
                modules = (
                    getattr(torch.nn, kind)(H, H, **options),
                    mine(H, H, **options, backend="sequence"),
                    mine(H, H, **options, backend="sequence", recompute=True),
                )
                x = torch.randn(T, B, H, **options)
                values = [kept(module, x) / (T * B * H) for module in modules]
                yield kind, str(dtype).removeprefix("torch."), T, B, H, *values


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cpu shows what ATen keeps there")
    device = parser.parse_args(arguments).device
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: torch.cuda.is_available() is False", file=sys.stderr)
        return 2
    print("| module | dtype | T | B | H | torch.nn | fused_rnn | recompute |")
    print("| --- | --- | --: | --: | --: | --: | --: | --: |")
    for *names, theirs, mine, less in rows(device, ((100, 16, 128), (200, 64, 512))):
        print(f"| {' | '.join(map(str, names))} | {theirs:.1f} | {mine:.1f} | {less:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
