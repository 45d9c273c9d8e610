"""Sphinx's configuration of the documentation site: ``make docs``.

The source folder is the repository's root, so links between pages, to CONTRIBUTING.md and to
bench/results work on the site as they do where the repository is viewed. What a page has on the
site only (the tables of contents, the drawings of the cells, the texts of the API) is added by
``docs/_ext``: the pages are plain Markdown.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

import fused_rnn

project = "fused_rnn"
author = "The fused_rnn developers"
copyright = author
release = version = fused_rnn.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # equations on a machine without a network
    "pages",
]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "bench/results/**.md",
    "docs/*.md",
]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"fused_rnn {version}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "source_repository": "https://github.com/fused-rnn/fused_rnn/",
    "source_branch": "main",
    "source_directory": "",
}
