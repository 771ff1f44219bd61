"""Images brought into one shape."""

import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.images.data import load_images
from asrcl.images.shape import Shape


def test_padding_puts_images_in_the_middle_of_black():
    pixels = torch.randint(1, 256, (3, 1, 28, 28), dtype=torch.uint8)
    found = Shape(size=32, fit="pad").of_tensor(pixels, "here")
    assert found.dtype == torch.uint8 and torch.equal(found[:, :, 2:-2, 2:-2], pixels)
    assert int(found.sum()) == int(pixels.sum())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_resizing_keeps_type_range_and_what_is_even(dtype):
    even = torch.full((1100, 3, 12, 8), 77, dtype=dtype)  # more than are worked on at a time
    found = Shape(size=16).of_tensor(even, "here")
    assert found.shape == (1100, 3, 16, 16) and found.dtype == dtype and bool((found.float() - 77).abs().max() < 1e-3)
    noise = Shape(size=5).of_tensor(torch.randint(0, 256, (4, 1, 9, 9), dtype=torch.uint8), "here")
    assert noise.shape == (4, 1, 5, 5)


def test_grey_in_three_channels_takes_no_memory():
    pixels = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    found = Shape(channels=3).of_tensor(pixels, "here")
    assert found.shape == (5, 3, 4, 4) and all(torch.equal(found[:, n], pixels[:, 0]) for n in range(3))
    assert found.untyped_storage().data_ptr() == pixels.untyped_storage().data_ptr()


def test_colour_made_grey_is_its_luminance():
    colour = torch.tensor([255, 0, 0, 0, 255, 0, 0, 0, 255], dtype=torch.uint8).view(3, 3, 1, 1)
    assert Shape(channels=1).of_tensor(colour, "here").flatten().tolist() == [76, 150, 29]  # ITU-R BT.601
    assert Shape(channels=3).of_tensor(colour, "here") is colour


def test_every_source_has_these_options():
    splits = load_images({"kind": "digits", "size": 10, "fit": "pad", "channels": 3}, None)
    assert {images.shape for images in splits.values()} == {(3, 10, 10)}
    plain = load_images({"kind": "digits"}, None)["test"]
    assert torch.equal(splits["test"].pixels[:, 2:, 1:-1, 1:-1], plain.pixels)


@pytest.mark.parametrize(
    "options, fault",
    [
        ({"size": 0}, r"size=0.*1 to"), ({"size": "large"}, "size=large"),
        ({"size": True}, "size=True"), ({"size": [8, 8]}, r"size=\[8, 8\]"),
        ({"channels": 2}, "channels=2.*1.*3"), ({"fit": "crop"}, "fit=crop.*resize, pad"),
        ({"size": 6, "fit": "pad"}, "size=6.*8 x 8"),
    ],
)  # fmt: skip
def test_shapes_that_cannot_be(options, fault):
    with pytest.raises(InputError, match=fault) as caught:
        load_images({"kind": "digits", **options}, None)
    assert "\n" not in str(caught.value)


def test_two_channels_become_neither_one_nor_three():
    with pytest.raises(InputError, match=r"here.*channels=3.*have 2"):
        Shape(channels=3).of_tensor(torch.zeros(1, 2, 4, 4), "here")
