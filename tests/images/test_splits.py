"""Splits of image sets that come with fewer."""

from itertools import pairwise

import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.images.data import Images
from asrcl.images.splits import cut, stratified


def numbered(counts, start=0):
    """Images whose first pixel is their number."""
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    pixels = torch.zeros(len(labels), 1, 2, 2)
    pixels[:, 0, 0, 0] = torch.arange(len(labels)) + start
    return Images(pixels, labels, tuple(map(str, range(len(counts)))))


def numbers(images):
    return [int(value) for value in images.pixels[:, 0, 0, 0]]


def test_every_class_is_drawn_in_proportion():
    labels = numbered([100, 50, 10]).labels
    for count in (16, 32, 80, 160):
        chosen = stratified(labels, count, 3)
        found = labels[chosen].bincount(minlength=3).tolist()
        assert found == [round(count * share / 160) for share in (100, 50, 10)]
        assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert not torch.equal(stratified(labels, 16, 3), stratified(labels, 16, 4))


def test_less_is_a_subset_of_more():
    labels = numbered([30, 20, 7]).labels
    draws = [set(stratified(labels, count, 0).tolist()) for count in range(58)]
    assert all(len(draw) == count for count, draw in enumerate(draws))
    assert all(fewer < more for fewer, more in pairwise(draws))


def test_one_set_is_cut_in_three_that_share_nothing():
    whole = numbered([40, 60])
    splits = cut(whole, None, None, None, None, None, "here")
    assert [len(splits[name]) for name in ("train", "dev", "test")] == [72, 8, 20]
    assert sorted(number for images in splits.values() for number in numbers(images)) == list(range(100))
    assert splits["test"].labels.bincount().tolist() == [8, 12]
    again = cut(whole, None, None, None, None, None, "here")
    assert all(numbers(splits[name]) == numbers(again[name]) for name in splits)


def test_sets_that_are_there_are_taken_as_they_are():
    sets = numbered([40, 40]), numbered([5, 5], 100), numbered([9, 9], 200)
    splits = cut(*sets, None, None, None, "here")
    assert [numbers(splits[name]) for name in ("train", "dev", "test")] == [numbers(images) for images in sets]
    fewer = cut(*sets, 0.5, 4, 6, "here")
    assert [len(fewer[name]) for name in ("train", "dev", "test")] == [40, 4, 6]
    assert all(set(numbers(fewer[name])) <= set(numbers(splits[name])) for name in fewer)


@pytest.mark.parametrize(
    "wanted, fault",
    [
        ((81, None, None), "train=81.*80 images.*1 to 80"), ((0, None, None), "train=0"), ((-3, None, None), "train=-3"),
        ((None, 1.0, None), r"dev=1\.0.*share"), ((None, float("nan"), None), "dev=nan"), ((None, 100, None), "dev=100.*1 to 99"),
        ((None, None, 11), "test=11.*10 images"), ((None, 1e-6, None), "dev=1e-06"),
    ],
)  # fmt: skip
def test_numbers_of_images_that_there_are_not(wanted, fault):
    train, dev, test = wanted
    with pytest.raises(InputError, match=fault):
        cut(numbered([50, 50]), None, numbered([5, 5]), train, 20 if dev is None else dev, test, "here")
