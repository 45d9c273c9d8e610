"""Check and measure everything on one GPU, in under ten minutes.

    python -m bench.gpu               # writes runs/gpu/<name of the GPU>/report.md
    python -m bench.gpu --dry-run     # without a GPU: each stage with tiny sizes

The folder has all that is worth committing; move it to bench/results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ..progress import Progress
from ..race import environment
from . import report, stages


def main(argv: list[str] | None = None) -> int:
    """Return 1 if a stage failed or was out of time, 2 without a GPU, otherwise 0."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [stage.name for stage in stages.STAGES]
    parser.add_argument("--dry-run", action="store_true", help="where there is no GPU")
    parser.add_argument("--stages", nargs="+", choices=names, default=names, metavar="STAGE",
                        help=f"some of {', '.join(names)}")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder; default: runs/gpu/<name of the device>")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available() and not options.dry_run:
        print("There is no CUDA device; --dry-run shows what would run.", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.dry_run else "cuda")
    facts = environment.facts(device)
    name = "dry-run" if options.dry_run else facts["device_name"].lower().replace(" ", "-")
    folder = (options.out or stages.ROOT / "runs" / "gpu" / name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [stage for stage in stages.STAGES if stage.name in options.stages]
    done = []
    with Progress("stages", len(wanted)) as progress:
        for stage in wanted:
            done.append(stages.run(stage, folder, options.dry_run))
            # After each stage: what was found stays, whatever happens to the next one.
            (folder / "report.md").write_text(report.page(facts, done, options.dry_run))
            print(f"{stage.name}: {done[-1].status}, {done[-1].seconds:.0f} s", flush=True)
            progress.step(stage.name)
    print(f"{folder / 'report.md'}")
    return 0 if all(d.status == "passed" for d in done) else 1


if __name__ == "__main__":
    sys.exit(main())
