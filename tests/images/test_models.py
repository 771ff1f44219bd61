"""Networks for images: heads, sizes, and settings that cannot be built."""

import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.images.models import build_classifier

HEADS = {"a.b": 3, "c": 2}


@pytest.mark.parametrize(
    "settings, shape", [({"kind": "mlp", "widths": [7, 5]}, (1, 8, 8)), ({"kind": "lenet", "widths": [3, 4, 6, 5]}, (3, 12, 8))]
)
def test_every_domain_has_its_head(settings, shape):
    model = build_classifier(settings, shape, HEADS).eval()
    pixels = torch.rand(4, *shape)
    assert model(pixels, "a.b").shape == (4, 3) and model(pixels, "c").shape == (4, 2)
    assert set(model.private("a.b")) == {"heads.0.weight", "heads.0.bias"}
    with pytest.raises(InputError, match=r"domain d.*a\.b, c"):
        model(pixels, "d")


def test_one_head_for_all_is_nobody_s_own():
    model = build_classifier({"kind": "mlp"}, (1, 8, 8), {"": 10})
    assert model(torch.rand(2, 1, 8, 8), "anything").shape == (2, 10) and model.private("anything") == ()


def test_lenet_has_the_sizes_of_halrp():
    """32 x 32 x 3 images: convolutions of 20 and 50 channels, 3,200 inputs of the first linear map, 800 and 500 units."""
    model = build_classifier({"kind": "lenet"}, (3, 32, 32), {"": 10})
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight") and p.ndim > 1]
    assert shapes == [(20, 3, 5, 5), (50, 20, 5, 5), (800, 3200), (500, 800), (10, 500)]


@pytest.mark.parametrize(
    "settings, fault",
    [
        ({"kind": "mpl"}, r"model\.kind=mpl.*lenet, mlp"), ({"kind": "mlp", "width": 4}, r"mlp.*width"),
        ({"kind": "mlp", "widths": []}, r"widths=\[\]"),
        ({"kind": "lenet", "widths": [1, 2]}, r"widths=\[1, 2\]"), ({}, r"model\.kind=conformer.*mlp"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_built(settings, fault):
    with pytest.raises(InputError, match=fault):
        build_classifier(settings, (1, 8, 8), HEADS)
