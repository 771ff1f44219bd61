"""The worked examples of the documents, for tests that run them."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def example(name: str, page: str = "adapt.md") -> str:
    """The block of a page that stands below `<!-- example: NAME -->`."""
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```\w+\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert found, f"{page}: no example {name}"
    return found[1]
