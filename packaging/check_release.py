"""Build the sdist and the wheel, and try both in clean environments: make check-release

    make check-release ARGS="--python python3.12 --torch 2.14.1"
    make check-release ARGS=--only-build

Writes build/release/: dist/ with both files, and the environments. The wheel is tried with
everything, with the compiler hidden, and with Triton removed. A sample of the suite then runs from
the unpacked sdist.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
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
# Tracked files that the sdist leaves out, and files that only an sdist has.
LEFT_OUT: set[str] = set()
MADE = {"PKG-INFO", "setup.cfg"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="of the environments")
    parser.add_argument("--torch", default="2.13.0", help="version to install; default 2.13.0")
    parser.add_argument("--only-build", action="store_true")
    parser.add_argument("--no-suite", action="store_true", help="leave out the sdist's tests")
    args = parser.parse_args()
    wheel, sdist = build()
    check_contents(wheel, sdist)
    print(f"{sdist.name}: sha256 {hashlib.sha256(sdist.read_bytes()).hexdigest()}")
    if args.only_build:
        return
    python = environment("wheel", args.python)
    install(python, f"torch=={args.torch}", str(wheel))
    try_wheel(python)
    if not args.no_suite:
        python = environment("sdist", args.python)
        install(python, f"torch=={args.torch}", f"{sdist}[test]")
        try_sdist(python, sdist)
    print("The release is in order.")


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


def try_sdist(python: Path, sdist: Path) -> None:
    """Run a sample of the suite from the unpacked sdist."""
    with tarfile.open(sdist) as opened:
        opened.extractall(PLACE, filter="data")
    unpacked = PLACE / sdist.name.removesuffix(".tar.gz")
    pytest = (python, "-m", "pytest", "-q", "-n", "0")
    run(*pytest, *SAMPLE, folder=unpacked)
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
