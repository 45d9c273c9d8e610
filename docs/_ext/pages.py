"""What the site adds to the plain Markdown of the pages."""

from __future__ import annotations

import re
from pathlib import Path

import api
import drawings

INDEX, EQUATIONS, API = "docs/index", "docs/equations", "docs/api"


def setup(app):
    app.connect("builder-inited", _draw)
    app.connect("source-read", _extend)
    app.connect("doctree-read", _leave_out_of_contents)
    app.connect("autodoc-process-docstring", api.as_rst, priority=100)  # before napoleon
    app.connect("build-finished", _redirect)
    return {"version": "1", "parallel_read_safe": True}


def _draw(app):
    """The drawings of all cells, in a folder beside the site that Git ignores."""
    drawings.write_all(Path(app.srcdir, "build", "drawings"))


def _extend(app, page, source):
    if page == INDEX:
        source[0] = _with_contents(source[0])
    elif page == EQUATIONS:
        source[0] = _with_drawings(source[0])
    elif page == API:
        source[0] = api.with_docstrings(source[0])


def _with_contents(text: str) -> str:
    """The index with a table of contents per section: the pages that its list links."""
    out = []
    for section in re.split(r"^(?=## )", text, flags=re.M):
        out.append(section)
        title = re.match(r"## (.+)", section)
        links = re.findall(r"^- \[[^\]]+\]\((?:(\.\./[A-Z]+)|(\w[\w-]*))\.md\)", section, re.M)
        if title and links:
            pages = "\n".join(up or page for up, page in links)
            out.append(f"\n```{{toctree}}\n:hidden:\n:caption: {title[1]}\n\n{pages}\n```\n\n")
    return "".join(out)


def _with_drawings(text: str) -> str:
    """The equations, and below those of each cell the drawing of its data flow."""
    image = "![The data flow of one step of {0}](../build/drawings/{0}.svg)"
    return re.sub(
        r"^## `(\w+)`\n.*?^```math\n.*?^```\n",
        lambda match: f"{match[0]}\n{image.format(match[1])}\n",
        text,
        flags=re.M | re.S,
    )


def _leave_out_of_contents(app, doctree):
    """Reports and the like are reached by links from pages, and need no place in the contents."""
    if not app.env.docname.startswith("docs/"):
        app.env.metadata[app.env.docname]["orphan"] = True


def _redirect(app, exception):
    """The site's address leads to the index, which is a page of docs/ as all others."""
    if exception is None and app.builder.format == "html":
        text = f'<!doctype html><meta http-equiv="refresh" content="0; url={INDEX}.html">\n'
        Path(app.outdir, "index.html").write_text(text, encoding="utf-8")
