"""What the distribution says of itself: its page, versions, packages, changelog, conda recipe."""

import importlib.util
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest import mock

import pytest

import fused_rnn

ROOT = Path(__file__).parents[2]


def _read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page():
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("its_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    return setup.description()


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check", ROOT / "packaging/check_release.py")
    check = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "path", [*sys.path]):
        spec.loader.exec_module(check)
    return check


def test_links_of_the_page_lead_into_the_repository(page):
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", page)
    assert len(links) > 20
    assert any(picture for picture, _ in links)
    for picture, target in links:
        host = "https://raw.githubusercontent.com" if picture else "https://"
        assert target.startswith(host), target
        inside = re.fullmatch(
            r"https://[\w.]+/fused-rnn/fused_rnn/(?:blob/)?v([\d.]+)/(.+)", target
        )
        if inside:
            assert inside[1] == fused_rnn.__version__
            assert (ROOT / inside[2].partition("#")[0]).exists(), target
    assert re.sub(r"\([^)]*\)", "", page) == re.sub(r"\([^)]*\)", "", _read("README.md"))


def test_the_page_renders_as_the_index_renders_it(page):
    markdown = pytest.importorskip("readme_renderer.markdown", reason="no readme_renderer")
    html = markdown.render(page)
    assert html is not None
    assert html.count("<img") >= 1
    assert html.count("<table") >= 2
    assert 'href="docs/' not in html


def test_the_changelog_has_this_version():
    assert re.search(rf"^## \[{re.escape(fused_rnn.__version__)}\]", _read("CHANGELOG.md"), re.M)


def test_every_folder_with_modules_is_a_package():
    listed = set(re.findall(r'^    "(fused_rnn[\w.]*)",$', _read("pyproject.toml"), re.M))
    found = {
        ".".join(("fused_rnn", *file.parent.relative_to(base).parts))
        for top in ("fused_rnn", "kernels")
        for base in [ROOT / top if top == "fused_rnn" else ROOT]
        for file in (ROOT / top).rglob("*.py")
    }
    assert listed == found


def test_versions_are_the_same_everywhere():
    project, install, recipe = map(
        _read, ("pyproject.toml", "docs/install.md", "packaging/conda/recipe.yaml")
    )
    python = re.search(r'requires-python = ">=([\d.]+)"', project)[1]
    torch = re.search(r'"torch>=([\d.]+)"', project)[1]
    least, below = re.search(r'"triton>=([\d.]+),<([\d.]+);', project).groups()
    assert f"Python {python} or newer, torch {torch} or newer, Triton {least} to 3.9" in install
    assert below == "3.10"
    assert f'python_min: "{python}"' in recipe
    assert f"pytorch >={torch}" in recipe
    assert f"triton >={least},<{below}" in recipe
    assert f'version: "{fused_rnn.__version__}"' in recipe
    assert f"\nversion: {fused_rnn.__version__}\n" in _read("CITATION.cff")


def test_the_pairs_to_try_are_those_that_are_claimed(check):
    project, install = _read("pyproject.toml"), _read("docs/install.md")
    claimed = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    assert list(dict.fromkeys(python for python, _ in check.MATRIX)) == claimed
    oldest = re.search(r'"torch>=([\d.]+)"', project)[1]
    assert check.MATRIX[0] == (claimed[0], f"{oldest}.0")
    for python, torch in check.MATRIX:
        assert f"| {python} | {torch} |" in install


def test_a_python_is_found_by_its_version(check, tmp_path):
    for version in ("3.1.7", "3.12.1"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "python").touch()
    assert check.find("3.12", tmp_path) == str(tmp_path / "3.12.1" / "bin" / "python")
    assert check.find("3.99", tmp_path) is None


def test_the_conda_recipe():
    """Its YAML and its fields; building it takes conda."""
    recipe = pytest.importorskip("yaml", reason="PyYAML is not installed").safe_load(
        _read("packaging/conda/recipe.yaml")
    )
    assert recipe["schema_version"] == 1
    assert recipe["build"]["noarch"] == "python"
    assert {"package", "source", "requirements", "tests", "about", "extra"} <= recipe.keys()
    assert "setuptools >=77" in recipe["requirements"]["host"]
    assert 'requires = ["setuptools>=77"]' in _read("pyproject.toml")
    for test in recipe["tests"]:
        for file in test.get("files", {}).get("source", []):
            assert (ROOT / file).is_file()
        for name in test.get("python", {}).get("imports", []):
            assert importlib.util.find_spec(name) is not None


def test_import_needs_torch_alone():
    code = """
        import sys
        for name in ("triton", "onnx", "onnxscript", "matplotlib", "tqdm"):
            sys.modules[name] = None  # as if it were absent
        import torch, fused_rnn
        print(tuple(fused_rnn.GRU(3, 4)(torch.randn(5, 2, 3))[0].shape))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "(5, 2, 4)", done.stderr
