import numpy as np
import pytest

from asrcl.scoring.report.heat import contrast, heat_colour


def test_the_ink_is_readable_at_every_shade() -> None:
    for share in np.linspace(0, 1, 101):
        assert contrast(*heat_colour(float(share))) >= 4.5


def test_the_scale_darkens_evenly_so_that_it_needs_no_hue() -> None:
    shades = [contrast(heat_colour(share)[0], "#ffffff") for share in np.linspace(0, 1, 21)]
    assert shades == sorted(shades) and shades[-1] / shades[0] > 8


def test_colours_of_known_contrast() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
