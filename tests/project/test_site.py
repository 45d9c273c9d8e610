"""The documentation: every link leads somewhere, every page is listed, and the site builds."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import fused_rnn

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/*.md"))
DOCUMENTS = sorted({*ROOT.glob("*.md"), *PAGES, *ROOT.glob("bench/results/**/*.md")})


def name_of(path):
    return str(path.relative_to(ROOT))


def prose(path):
    """A document without its code, in which brackets are no links."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "``", text)


def anchors(path):
    """The anchors that GitHub gives to the headings of a document."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    found, seen = set(), {}
    for heading in re.findall(r"^#+ +(.+)$", text, re.M):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        count = seen[slug] = seen.get(slug, -1) + 1
        found.add(f"{slug}-{count}" if count else slug)
    return found


def broken(path):
    """The links of a document to files and anchors that are not there."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(there):
            yield f"{target}: no such heading"


def test_anchors_are_those_of_headings(tmp_path):
    page = tmp_path / "page.md"
    text = "# A `b_c`, *d*\n## Two\n## Two\n```\n# no\n```\n[x](#two-1) [y](#no) [z](q.md)\n"
    page.write_text(text, encoding="utf-8")
    assert anchors(page) == {"a-b_c-d", "two", "two-1"}
    assert list(broken(page)) == ["#no: no such heading", "q.md: no such file"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path):
    assert not list(broken(path))


def test_the_index_lists_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^- \[[^\]]+\]\(([\w-]+\.md)\)", index, re.M))
    assert listed == {path.name for path in PAGES} - {"index.md"}


def test_the_api_page_lists_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = [n for line in re.findall(r"^- (`.*?): ", text, re.M) for n in line.split(", ")]
    assert sorted(name.strip("`") for name in listed) == sorted(fused_rnn.__all__)


@pytest.mark.parametrize("name", ["strategies", "layouts"])
def test_pictures_are_as_their_script_draws_them(name):
    """Otherwise: ``python docs/images/pictures.py``."""
    images = ROOT / "docs" / "images"
    script = runpy.run_path(str(images / "pictures.py"))
    assert (images / f"{name}.svg").read_text(encoding="utf-8") == str(script[name]())


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs"]
    run = subprocess.run(
        [*command, "-d", tmp_path / "trees", ".", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr
    assert "docs/index.html" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
