"""What the README claims in code holds."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_readme_statements_are_true() -> None:
    failed, attempted = doctest.testfile(str(REPOSITORY / "README.md"), module_relative=False)
    assert attempted >= 5
    assert failed == 0


def test_files_that_the_documents_link_to_exist() -> None:
    for document in [REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("recipes/*/README.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"
