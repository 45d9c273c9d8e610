"""Try an installed fused_rnn, as its page on the package index shows it: python smoke.py

Runs the page's code, trains its cell, and checks what runs where a compiler or Triton is absent.
--without compiler and --without triton say that it is meant to be absent.
"""

import argparse
import importlib.metadata
import importlib.util
import re
import sys
import warnings
from pathlib import Path

import torch


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without", nargs="*", default=[], choices=("compiler", "triton"))
    absent = parser.parse_args().without
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import fused_rnn

        where = Path(fused_rnn.__file__).parent
        assert (where / "kernels" / "operations.py").exists(), (
            f"{where} is not an installed package"
        )
        assert ("triton" in absent) == (importlib.util.find_spec("triton") is None)
        names = run_the_page()
        losses = train(names["layer"])
        backend = fused_rnn.explain(fused_rnn.PeepholeLSTM(3, 5), 4, 2).backend
    assert backend == ("sequence" if "compiler" in absent else "cpp"), backend
    said = [str(w.message) for w in caught if "fused_rnn" in str(w.message)]
    assert len(said) == ("compiler" in absent), said
    version = ".".join(map(str, sys.version_info[:3]))
    print(
        f"fused_rnn {fused_rnn.__version__}, Python {version}, torch {torch.__version__}, "
        f"backend {backend}, without {', '.join(absent) or 'nothing'}: "
        f"loss {losses[0]:.3f} before and {losses[-1]:.3f} after 60 steps"
    )


def run_the_page():
    """Run the Python blocks of the long description; check the lines that they print."""
    page = (
        importlib.metadata.metadata("fused-rnn").get_payload()
        or importlib.metadata.metadata("fused-rnn")["Description"]
    )
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert len(blocks) >= 2, "the page has no code"
    names, printed = {}, []
    for code in blocks:
        expected = re.findall(r"^print\(.*\)  # (.*)$", code, re.M)
        printed.clear()
        names["print"] = lambda *values: printed.append(" ".join(map(str, values)))
        exec(code, names)
        assert printed == expected, (printed, expected)
    return names


def train(layer):
    """The losses of a layer (32 features) that learns the mean of a sequence's first feature."""
    torch.manual_seed(0)
    head = torch.nn.Linear(layer.hidden_size, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.01)
    losses = []
    for _ in range(60):
        x = torch.randn(10, 32, 32)
        loss = (head(layer(x)[0][-1])[:, 0] - x[..., 0].mean(0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2, losses
    return losses


if __name__ == "__main__":
    main()
