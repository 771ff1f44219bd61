"""Fewer training data, wrong labels, labels that mean nothing."""

import pytest
import torch
from image_cases import configured

from asrcl.exceptions import InputError
from asrcl.experiment.registry import benchmark_of
from asrcl.images.data import load_images
from asrcl.images.variants import varied


@pytest.fixture(scope="module")
def splits():
    return load_images({"kind": "digits"}, None)


def scenario_of(folder, scenario, *overrides):
    config = configured(folder, scenario, *overrides)
    return benchmark_of(config.tree).scenario(config, 1)


def contents(images):
    return [image.numpy().tobytes() for image in images.pixels]


def labels_of(domain, split):
    return torch.cat([batch.labels for batch in domain.batches(split, shuffle=False, seed=0)])


@pytest.mark.parametrize("share", [0.1, 0.4, 1])
def test_noise_replaces_exactly_its_share_of_training_labels_by_others(splits, share):
    found = varied(splits, {"label_noise": share}, "a")
    wrong = found["train"].labels != splits["train"].labels
    assert int(wrong.sum()) == round(share * 1000)
    assert all(torch.equal(found[name].labels, splits[name].labels) for name in ("dev", "test"))
    assert found["train"].store is splits["train"].store
    steps = ((found["train"].labels - splits["train"].labels)[wrong] % 10).bincount(minlength=10)
    expected = len(wrong.nonzero()) / 9  # uniform over the nine other classes
    assert steps[0] == 0 and bool(((steps[1:] - expected).abs() < 5 * expected**0.5).all())


def test_noise_is_drawn_once_for_each_name(splits):
    first, again, other = (varied(splits, {"label_noise": 0.4}, name)["train"].labels for name in ("a", "a", "b"))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_random_labels_are_those_of_the_image_and_say_nothing_of_it(splits):
    found = varied(splits, {"random_labels": True}, "a")
    for name, images in found.items():
        assert int((images.labels == splits[name].labels).sum()) < 0.2 * len(images)
        counts = images.labels.bincount(minlength=10)
        assert bool(((counts - len(images) / 10).abs() < 5 * (len(images) / 10) ** 0.5).all())
    seeded = [varied(splits, {"random_labels": 3}, name)["test"].labels for name in ("a", "b")]
    assert torch.equal(*seeded) and not torch.equal(seeded[0], found["test"].labels)
    assert not torch.equal(varied(splits, {"random_labels": 4}, "a")["test"].labels, seeded[0])
    assert not torch.equal(varied(splits, {"random_labels": True}, "b")["test"].labels, found["test"].labels)
    fewer = varied(splits, {"random_labels": 3, "fraction": 0.5}, "a")["train"]
    whole = varied(splits, {"random_labels": 3}, "a")["train"]
    by_image = dict(zip(contents(whole), whole.labels.tolist(), strict=True))
    assert [by_image[content] for content in contents(fewer)] == fewer.labels.tolist()


def test_a_fraction_keeps_every_class_and_is_a_subset(splits):
    draws = [varied(splits, {"fraction": share}, "a")["train"] for share in (0.1, 0.3, 1)]
    assert [len(images) for images in draws] == [100, 300, 1000]
    whole = splits["train"].labels.bincount()
    for images, share in zip(draws, (0.1, 0.3, 1), strict=True):
        assert bool(((images.labels.bincount(minlength=10) - share * whole).abs() <= 1).all())
    kept = [set(contents(images)) for images in draws]
    assert kept[0] < kept[1] < kept[2]
    found = varied(splits, {"fraction": 0.1}, "a")
    assert all(found[name] is splits[name] for name in ("dev", "test"))


def test_a_scenario_has_variants_for_all_domains_unless_one_has_its_own(tmp_path):
    pairs = "scenario.domains=[{name: a, classes: [3, 7]}, {name: b, classes: [2, 4], label_noise: 0}]"
    plain = scenario_of(tmp_path, "split_digits", pairs).domains
    noisy = scenario_of(tmp_path, "split_digits", pairs, "+scenario.label_noise=0.5", "+scenario.fraction=0.5").domains
    assert [domain.size("train") for domain in noisy] == [round(0.5 * domain.size("train")) for domain in plain]
    assert [domain.size("test") for domain in noisy] == [domain.size("test") for domain in plain]
    full = scenario_of(tmp_path, "split_digits", pairs, "+scenario.label_noise=0.5").domains
    changed = [(labels_of(a, "train") != labels_of(b, "train")).float().mean() for a, b in zip(full, plain, strict=True)]
    assert changed[0] == pytest.approx(0.5, abs=0.01) and changed[1] == 0


@pytest.mark.parametrize("incremental", ["domain", "task", "class"])
@pytest.mark.parametrize("variant", ["label_noise=0.5", "random_labels=true"])
def test_wrong_labels_are_of_the_domain_s_own_classes(tmp_path, incremental, variant):
    scenario = scenario_of(tmp_path, "split_digits", f"scenario.incremental={incremental}", f"+scenario.{variant}")
    own = {4, 5} if incremental == "class" else {0, 1}
    assert set(labels_of(scenario.domains[2], "train").tolist()) == own


def test_permutations_of_one_set_have_noise_of_their_own(tmp_path):
    domains = scenario_of(tmp_path, "permuted_digits", "+scenario.label_noise=0.4").domains
    assert not torch.equal(labels_of(domains[0], "train"), labels_of(domains[1], "train"))
    assert len({domain.fingerprint("train") for domain in domains}) == len(domains)


def test_what_was_memorised_is_tested_on_training_images(tmp_path):
    domains = "scenario.domains=[{name: draw, copies: 3, random_labels: true, test_on: train, fraction: 0.1}]"
    found = scenario_of(tmp_path, "permuted_digits", domains).domains
    assert [domain.name for domain in found] == ["draw1", "draw2", "draw3"]
    for domain in found:
        assert domain.size("test") == domain.size("train") == 100
        assert torch.equal(labels_of(domain, "test"), labels_of(domain, "train"))
    assert not torch.equal(labels_of(found[0], "train"), labels_of(found[1], "train"))


@pytest.mark.parametrize(
    "option, value",
    [("label_noise", "1.1"), ("label_noise", "-0.1"), ("label_noise", "much"), ("label_noise", "true"), ("label_noise", "nan"),
     ("fraction", "0"), ("fraction", "2"), ("fraction", "half"), ("fraction", "nan"), ("random_labels", "yes_please"),
     ("random_labels", "0.5"), ("test_on", "dev")],
)  # fmt: skip
@pytest.mark.parametrize("level", ["scenario", "domain a"])
def test_variants_that_cannot_be(tmp_path, option, value, level):
    domains = f"scenario.domains=[{{name: a, {option}: {value}}}, {{name: b}}]"
    with pytest.raises(InputError, match=rf"{level}: {option}=") as caught:
        configured(tmp_path, "permuted_digits", domains if level == "domain a" else f"+scenario.{option}={value}")
    assert "\n" not in str(caught.value)


def test_a_fraction_that_leaves_a_class_without_images(splits):
    with pytest.raises(InputError, match=r"domain a: fraction=0\.005 of 1000 images"):
        varied(splits, {"fraction": 0.005}, "a")
