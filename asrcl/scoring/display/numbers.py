"""How numbers are written, everywhere alike; what is not known is a dash."""

from __future__ import annotations

import math
from typing import Final

NONE: Final = "–"


def decimal(value: float, digits: int = 2, *, signed: bool = False) -> str:
    """A number with so many decimals, with its sign if asked for; never "-0.00"."""
    if math.isnan(value):
        return NONE
    return f"{value:+z.{digits}f}" if signed else f"{value:z.{digits}f}"


def p_value(value: float) -> str:
    """Four decimals, or "< 0.0001"."""
    if math.isnan(value):
        return NONE
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"
