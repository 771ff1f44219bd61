"""Training data that are fewer or worse than they were: a share of them, labels in part wrong, labels that mean nothing.

What is drawn depends on the name of the domain and on nothing else, so that it is the same in every order of domains, for every
seed of a run, and for a model that is trained on this domain alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import torch

from asrcl.exceptions import InputError
from asrcl.images.data import Images
from asrcl.images.splits import stratified

VARIANTS: Final = ("label_noise", "random_labels", "fraction", "test_on")


def check_variants(settings: Mapping[str, Any], where: str) -> None:
    """Refuse a share that is none, or a seed that is none.

    Args:
        settings: of a scenario or a domain, with what it has of `VARIANTS`.
        where: what to name in messages.

    Raises:
        InputError: names the option and what it may be.
    """
    noise, fraction, seed = (settings.get(name) for name in ("label_noise", "fraction", "random_labels"))
    if noise is not None and not (_number(noise) and 0 <= noise <= 1):
        raise InputError(f"{where}: label_noise={noise}; give the share of training labels to replace, from 0 to 1")
    if fraction is not None and not (_number(fraction) and 0 < fraction <= 1):
        raise InputError(f"{where}: fraction={fraction}; give the share of training images to keep, above 0 and at most 1")
    if seed is not None and type(seed) not in (bool, int):
        raise InputError(f"{where}: random_labels={seed}; give true, false or a whole number, the seed of the draw")
    if (tested := settings.get("test_on", "test")) not in ("test", "train"):
        raise InputError(f"{where}: test_on={tested}; choose from test, train")


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def varied(splits: Mapping[str, Images], settings: Mapping[str, Any], name: str) -> dict[str, Images]:
    """The splits of a domain after `random_labels`, `label_noise`, `fraction` and `test_on`, in this order.

    - `random_labels`: every image of every split gets a class of the domain, drawn uniformly (Zhang et al., 2017). True draws
      other labels for every domain; two domains with one seed and the same images have the same labels.
    - `label_noise`: this share of the training labels is replaced by another class of the domain, drawn uniformly.
    - `fraction`: this share of the training images is kept, of every class in proportion; less is a subset of more.
    - `test_on: train`: the test images are those of training, for what a network has memorised (random labels have no other use).

    Args:
        splits: of the domain.
        settings: see `check_variants`.
        name: of the domain.

    Raises:
        InputError: a class would have no training images.
    """
    found = dict(splits)
    own = found["train"].labels.unique()
    if (seed := settings.get("random_labels")) not in (None, False):
        drawn_for = name if seed is True else str(seed)
        found = {split: _random(images, own, _seed(drawn_for, "labels", split)) for split, images in found.items()}
    if noise := settings.get("label_noise"):
        found["train"] = _noisy(found["train"], own, float(noise), _seed(name, "noise", "train"))
    if (fraction := settings.get("fraction")) not in (None, 1):
        images = found["train"]
        kept = stratified(images.labels, round(float(fraction) * len(images)), _seed(name, "fraction", "train"))
        found["train"] = images.take(kept)
        if len(found["train"].labels.unique()) < len(images.labels.unique()):
            raise InputError(f"domain {name}: fraction={fraction} of {len(images)} images leaves a class without any; give more")
    if settings.get("test_on") == "train":
        found["test"] = found["train"]
    return found


def _seed(*parts: str) -> int:
    """A number that depends on all parts."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:7], "big")


def _random(images: Images, own: torch.Tensor, seed: int) -> Images:
    drawn = torch.randint(len(own), (len(images),), generator=torch.Generator().manual_seed(seed))
    return images.labelled(own[drawn])


def _noisy(images: Images, own: torch.Tensor, share: float, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(images), generator=generator)[: round(share * len(images))]
    steps = torch.randint(1, len(own), (len(wrong),), generator=generator)  # never 0: another class
    labels = images.labels.clone()
    labels[wrong] = own[(torch.searchsorted(own, labels[wrong]) + steps) % len(own)]
    return images.labelled(labels)
