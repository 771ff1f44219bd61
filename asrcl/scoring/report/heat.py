"""Colours of a heat map, and the ink that is readable on them."""

from __future__ import annotations

from typing import Final

import numpy as np

HEAT: Final = ("#fffbdc", "#c9e6c2", "#7cc4c0", "#3f93bd", "#2b5a9e", "#1b2a6b")
"""From light to dark, even in lightness, told apart under all common colour deficiencies."""
NOT_MEASURED: Final = "#eeeeee"


def heat_colour(share: float) -> tuple[str, str]:
    """Background at a share of the scale from 0 to 1, and the ink that is readable on it."""
    place = min(max(share, 0.0), 1.0) * (len(HEAT) - 1)
    index = min(int(place), len(HEAT) - 2)
    first, second = (np.array([int(HEAT[index + k][i : i + 2], 16) for i in (1, 3, 5)]) for k in (0, 1))
    mixed = np.rint(first + (place - index) * (second - first)).astype(int)
    background = "#" + "".join(f"{value:02x}" for value in mixed)
    ink = "#000000" if contrast(background, "#000000") >= contrast(background, "#ffffff") else "#ffffff"
    return background, ink


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours "#rrggbb", 1 to 21 (WCAG 2.1, relative luminance)."""

    def luminance(colour: str) -> float:
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
