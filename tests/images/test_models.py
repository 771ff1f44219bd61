"""Networks for images: heads, sizes, and settings that cannot be built."""

import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.images.models import build_classifier

HEADS = {"a.b": 3, "c": 2}


@pytest.mark.parametrize(
    "settings, shape", [({"kind": "mlp", "widths": [7, 5]}, (1, 8, 8)), ({"kind": "lenet", "widths": [3, 4, 6, 5]}, (3, 12, 8)),
    ({"kind": "alexnet_small", "widths": [3, 4, 5, 6, 7]}, (1, 19, 28)),
    ({"kind": "alexnet_small", "widths": [3, 4, 5, 6, 7], "normalisation": True}, (3, 32, 32)),
    ({"kind": "resnet18", "width": 2}, (3, 32, 32)), ({"kind": "resnet18", "width": 2}, (1, 9, 12))],
)  # fmt: skip
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


def test_alexnet_has_the_sizes_of_hat():
    """32 x 32 x 3 images: kernels 4, 3, 2, and 256 channels of 2 x 2 pixels at the first linear map (Serra et al., 2018)."""
    model = build_classifier({"kind": "alexnet_small"}, (3, 32, 32), {"": 10})
    shapes = [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")]
    assert shapes == [(64, 3, 4, 4), (128, 64, 3, 3), (256, 128, 2, 2), (2048, 1024), (2048, 2048), (10, 2048)]
    assert [layer.p for layer in model.modules() if isinstance(layer, torch.nn.Dropout)] == [0.2, 0.2, 0.5, 0.5, 0.5]


def test_resnet_is_torchvision_s_with_another_stem():
    resnet = pytest.importorskip("torchvision.models.resnet")
    model, theirs = build_classifier({"kind": "resnet18"}, (3, 32, 32), {"": 10}).eval(), resnet.resnet18(num_classes=10).eval()
    theirs.conv1, theirs.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    state = theirs.state_dict()
    model.heads[0].load_state_dict({name: state.pop(f"fc.{name}") for name in ("weight", "bias")})
    model.trunk.load_state_dict(state)
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(pixels, "a"), theirs(pixels))


NORMALISED = [{"kind": "lenet"}, {"kind": "alexnet_small", "normalisation": True}, {"kind": "resnet18", "width": 8}]


@pytest.mark.parametrize("settings", NORMALISED)
def test_a_test_image_is_judged_alone(settings):
    """The authors of HALRP normalise AlexNet by the test batch, so that its accuracy depends on how many images that holds."""
    torch.manual_seed(0)
    model, pixels = build_classifier(settings, (3, 32, 32), {"": 5}), torch.rand(6, 3, 32, 32)
    model(pixels, "a")  # in training: statistics of another batch
    model.eval()
    torch.testing.assert_close(model(pixels, "a")[:1], model(pixels[:1], "a"))


@pytest.mark.parametrize("dropout", [[0.1, 1], [0.1], [-0.1, 0.5]])
def test_rates_that_leave_nothing(dropout):
    with pytest.raises(InputError, match=r"model\.dropout="):
        build_classifier({"kind": "alexnet_small", "dropout": dropout}, (3, 32, 32), HEADS)


@pytest.mark.parametrize(
    "settings, fault",
    [
        ({"kind": "mpl"}, r"model\.kind=mpl.*lenet, mlp"), ({"kind": "mlp", "width": 4}, r"mlp.*width"),
        ({"kind": "mlp", "widths": []}, r"widths=\[\]"),
        ({"kind": "lenet", "widths": [1, 2]}, r"widths=\[1, 2\]"),
        ({"kind": "alexnet_small"}, r"8 x 8 pixels.*19 x 19"), ({"kind": "alexnet_small", "widths": [1]}, r"widths=\[1\].*five"),
        ({"kind": "alexnet_small", "dropout": 0.5}, "dropout=0.5"), ({"kind": "mlp", "widths": ["wide"]}, r"widths=\['wide'\]"),
        ({"kind": "resnet18", "width": 0}, "width=0"), ({"kind": "resnet18", "width": "wide"}, "width=wide"),
        ({}, r"model\.kind=conformer.*mlp"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_built(settings, fault):
    with pytest.raises(InputError, match=fault):
        build_classifier(settings, (1, 8, 8), HEADS)
