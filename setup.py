"""The page of the package index: README.md, with links and pictures that lead into the repository.

Everything else of the distribution is in pyproject.toml. The README's own links are relative, for
checkouts and for the site; on the index nothing lies beside it.
"""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
FILES = "https://github.com/fused-rnn/fused_rnn/blob"
PICTURES = "https://raw.githubusercontent.com/fused-rnn/fused_rnn"


def version() -> str:
    source = (HERE / "fused_rnn" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', source, re.M)[1]


def description() -> str:
    """README.md, with every relative link made absolute, at the tag of this version."""
    tag = f"v{version()}"

    def absolute(match):
        picture, text, target = match.groups()
        return f"{picture}[{text}]({PICTURES if picture else FILES}/{tag}/{target})"

    readme = (HERE / "README.md").read_text(encoding="utf-8")
    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)", absolute, readme)


if __name__ == "__main__":
    setup(long_description=description(), long_description_content_type="text/markdown")
