"""One file reaches below the public interface of PyTorch."""

import re
from pathlib import Path

import asrcl
from asrcl.curvature import torch_internals

INTERNAL = re.compile(r"torch\._(?!_)|_execution_engine|_get_default_store|\._is_view\(|\._base\b(?!\()|setattr\(F,")


def test_nothing_else_reaches_below_the_public_interface():
    """What only asks whether a module was imported, by its name in quotes, is no use of it."""
    home = Path(asrcl.__file__).parent
    own = Path(torch_internals.__file__)
    found = {
        f"{path.relative_to(home)}: {match[0]}"
        for room in ("curvature", "merge", "methods")
        for path in sorted((home / room).rglob("*.py"))
        if path != own
        for match in [INTERNAL.search(re.sub(r'"[^"\n]*"', "", path.read_text(encoding="utf-8")))]
        if match
    }
    assert found == set() and INTERNAL.search(own.read_text(encoding="utf-8"))
