"""Build the sdist and the wheel, and try both in clean environments: make check-release

    make check-release ARGS="--python python3.12 --torch 2.14.1"
    make check-release ARGS=--matrix
    make check-release ARGS=--only-build

Writes build/release/: dist/ with both files, and an environment. The wheel is tried with
everything, with the compiler hidden, and with Triton removed. It is then removed, the sdist is
installed, and a sample of the suite runs from the unpacked sdist. --matrix does that for every pair
of Python and torch in MATRIX whose Python is on the PATH or in the folder of --pythons.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.progress import Progress

PLACE = ROOT / "build" / "release"
DIST = PLACE / "dist"
SMOKE = ROOT / "packaging" / "smoke.py"
# Minutes on two cores: the page's code, modules, a cell beside its paper, builds, the simulator.
SAMPLE = (
    "tests/nn/test_modules.py",
    "tests/project/test_release.py",
    "tests/project/test_rooms.py",
)
SIMULATED = ("tests/simulator/test_instructions.py",)
# Every Python that is claimed; the oldest torch that is claimed, and those that are tested.
MATRIX = (
    ("3.10", "2.11.0"),
    ("3.11", "2.13.0"),
    ("3.11", "2.14.1"),
    ("3.12", "2.13.0"),
    ("3.13", "2.14.1"),
)
# Tracked files that the sdist leaves out, and files that only an sdist has.
LEFT_OUT: set[str] = set()
MADE = {"PKG-INFO", "setup.cfg"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=sys.executable, help="of the environment")
    parser.add_argument("--torch", default="2.13.0", help="version to install; default 2.13.0")
    parser.add_argument("--matrix", action="store_true", help="every pair of MATRIX, one by one")
    parser.add_argument(
        "--pythons", type=Path, help="a folder of Pythons, such as pyenv's versions"
    )
    parser.add_argument("--only-build", action="store_true")
    parser.add_argument("--no-suite", action="store_true", help="leave out the sdist's tests")
    parser.add_argument("--tests", nargs="+", default=SAMPLE, help="the sdist's tests to run")
    args = parser.parse_args()
    wheel, sdist = build()
    check_contents(wheel, sdist)
    print(f"{sdist.name}: sha256 {hashlib.sha256(sdist.read_bytes()).hexdigest()}")
    if args.only_build:
        return
    pairs, absent = [(args.python, args.torch)], []
    if args.matrix:
        found = [(find(version, args.pythons), version, torch) for version, torch in MATRIX]
        pairs = [(python, torch) for python, _, torch in found if python]
        absent = [
            f"Python {version}, torch {torch}" for python, version, torch in found if not python
        ]
    with Progress("release", len(pairs) * (3 - args.no_suite), every=0.0) as progress:
        for python, torch in pairs:
            for done in try_both(python, torch, wheel, sdist, () if args.no_suite else args.tests):
                progress.step(f"{python}, torch {torch}: {done}")
    for pair in absent:
        print(f"Not tried, there is no such Python: {pair}")
    print("The release is in order." if not absent else "What was tried is in order.")


def find(version: str, folder: Path | None) -> str | None:
    """A Python of a version such as 3.12, in a folder of Pythons or on the PATH."""
    inside = sorted(folder.glob(f"{version}.*/bin/python")) if folder else []
    return str(inside[-1]) if inside else shutil.which(f"python{version}")


def try_both(
    python: str, torch: str, wheel: Path, sdist: Path, tests: tuple[str, ...]
) -> Iterator[str]:
    """Try the wheel, then the sdist, in a new environment; yields what is done."""
    inside = environment("environment", python)
    install(inside, f"torch=={torch}", str(wheel))
    yield "installed"
    try_wheel(inside)
    yield "the wheel"
    if tests:
        # torch stays: it is several GB. Triton comes back with the sdist.
        run(inside, "-m", "pip", "uninstall", "--quiet", "--yes", "fused-rnn")
        install(inside, f"torch=={torch}", f"{sdist}[test]")
        try_sdist(inside, sdist, tests)
        yield "the sdist"


def build() -> tuple[Path, Path]:
    """Build both files; have twine check their pages."""
    python = environment("tools", sys.executable)
    install(python, "build", "twine", "readme_renderer[md]", pinned=False)
    shutil.rmtree(DIST, ignore_errors=True)
    run(python, "-m", "build", "--outdir", DIST, ROOT)
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    run(python, "-m", "twine", "check", "--strict", wheel, sdist)
    return wheel, sdist


def check_contents(wheel: Path, sdist: Path) -> None:
    """The wheel has every file of the package, the sdist every file that git tracks."""
    tracked = set(
        output("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    )
    inside = {f for f in tracked if f.startswith(("fused_rnn/", "kernels/"))}
    wanted = {f if f.startswith("fused_rnn/") else f"fused_rnn/{f}" for f in inside}
    with zipfile.ZipFile(wheel) as opened:
        found = {name for name in opened.namelist() if ".dist-info/" not in name}
    expect_same("the wheel", found, wanted)
    with tarfile.open(sdist) as opened:
        members = {m.name.partition("/")[2] for m in opened.getmembers() if m.isfile()}
    found = {m for m in members if not m.startswith("fused_rnn.egg-info/")}
    expect_same("the sdist", found - MADE, tracked - LEFT_OUT)


def expect_same(what: str, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        raise SystemExit(
            f"{what}: missing {sorted(wanted - found)}, unexpected {sorted(found - wanted)}"
        )


def try_wheel(python: Path) -> None:
    """Run the smoke test with everything, with the compiler hidden and without Triton."""
    run(python, SMOKE)
    hidden = {"PATH": str(PLACE / "nothing"), "CXX": "", "FUSED_RNN_CXX": ""}
    run(python, SMOKE, "--without", "compiler", environ=hidden)
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "triton")
    run(python, SMOKE, "--without", "triton")
    run(python, SMOKE, "--without", "compiler", "triton", environ=hidden)


def try_sdist(python: Path, sdist: Path, tests: tuple[str, ...]) -> None:
    """Run tests from the unpacked sdist."""
    with tarfile.open(sdist) as opened:
        opened.extractall(PLACE, filter="data")
    unpacked = PLACE / sdist.name.removesuffix(".tar.gz")
    pytest = (python, "-m", "pytest", "-q", "-n", "0")
    run(*pytest, *tests, folder=unpacked)
    run(*pytest, *SIMULATED, folder=unpacked)


def environment(name: str, python: str) -> Path:
    """Make a new virtual environment; returns its Python."""
    folder = PLACE / name
    shutil.rmtree(folder, ignore_errors=True)
    run(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def install(python: Path, *what: str, pinned: bool = True) -> None:
    # Other versions of torch than the pinned one need other versions of Triton.
    pins = ("-c", ROOT / "constraints.txt") if pinned and "torch==2.13.0" in what else ()
    run(python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *pins, *what)


def run(*command: object, folder: Path = PLACE, environ: dict[str, str] | None = None) -> None:
    words = [str(word) for word in command]
    print("$", *words, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    own = {"FUSED_RNN_CACHE": str(PLACE / "cache"), "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=os.environ | own | (environ or {}), check=False)
    if done.returncode:
        raise SystemExit(f"exit status {done.returncode}: {' '.join(words)}")


def output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
