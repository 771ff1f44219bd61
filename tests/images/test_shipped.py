"""Every scenario that comes with asrcl, on tiny files in the formats that it reads."""

import pytest
import torch
from image_cases import configured
from image_files import (
    cifar_files,
    write_cifar10_jpeg,
    write_files,
    write_idx,
    write_mnist,
    write_omniglot,
    write_pictures,
    write_svhn,
    write_tiny_imagenet,
)

from asrcl.exceptions import InputError
from asrcl.experiment.registry import benchmark_of

ALPHABETS = ("Balinese", "Early_Aramaic", "Greek", "Japanese_(katakana)", "Korean", "Latin", "Sanskrit", "Tagalog")
SMALL = "{train: 30, dev: 10, test: 10, kind: mnist}"
MNIST = [f"++scenario.images={SMALL}"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_mnist(folder, 100, 40)
    write_files(folder / "cifar-10-python.tar.gz", cifar_files(10, False))
    write_files(folder / "cifar-100-binary", cifar_files(100, True, per_batch=500))
    write_idx(folder / "fashion_mnist", packed=True)
    write_svhn(folder / "svhn", 40)
    for letter in "ABCDEFGHIJ":
        write_pictures(folder / "notMNIST_small" / letter, 10, 28, mode="L")
    (folder / "notMNIST_small" / "A" / "broken.png").write_bytes(b"")
    write_tiny_imagenet(folder / "tiny-imagenet-200", classes=200, side=20)
    write_omniglot(folder / "omniglot_small", ALPHABETS)
    write_cifar10_jpeg(folder / "cifar10_jpeg", 5)
    return folder


@pytest.mark.parametrize(
    "scenario, more, count, shape, classes",
    [
        ("permuted_mnist", MNIST, 10, (1, 28, 28), 10), ("rotated_mnist", MNIST, 7, (1, 28, 28), 10),
        ("split_mnist", MNIST, 5, (1, 28, 28), 2), ("noisy_split_mnist", MNIST, 5, (1, 28, 28), 2),
        ("random_label_mnist", MNIST, 10, (1, 28, 28), 10),
        ("permuted_fashion_mnist", [], 10, (1, 28, 28), 10), ("split_fashion_mnist", [], 5, (1, 28, 28), 2),
        ("split_cifar10", [], 5, (3, 32, 32), 2),
        ("split_cifar10", ["scenario.images.kind=cifar"], 5, (3, 32, 32), 2),
        ("noisy_split_cifar10", [], 5, (3, 32, 32), 2), ("split_cifar100", [], 10, (3, 32, 32), 10),
        ("cifar100_superclass", [], 20, (3, 32, 32), 5), ("omniglot", [], 8, (1, 28, 28), 3),
        ("omniglot_rotation", [], 32, (1, 28, 28), 3),
        ("tiny_imagenet20", ["scenario.images.dev=200"], 20, (3, 20, 20), 10),
        ("tiny_imagenet40", ["scenario.images.dev=200"], 40, (3, 20, 20), 5),
        ("five_dataset", [f"++scenario.domains.1.images={{size: 32, fit: pad, channels: 3, {SMALL[1:]}"], 5, (3, 32, 32), 10),
    ],
)  # fmt: skip
def test_every_scenario_reads_its_files(tmp_path, data, scenario, more, count, shape, classes):
    small = {"mlp": [8], "lenet": [3, 4, 6, 5], "alexnet_small": [3, 4, 5, 6, 7]}
    config = configured(tmp_path, scenario, f"data_dir={data}", *more)
    config = config.changed({"model.widths": small[config.tree["model"]["kind"]]})
    found = benchmark_of(config.tree).scenario(config, 1)
    assert len(found.domains) == count and found.domains[0].shape == shape
    model = found.build_model().eval()
    for domain in found.domains:
        batch = domain.item("train", 0)
        assert model(batch.pixels, domain.name).shape == (1, classes) and domain.size("test") >= 1
        assert bool(((batch.pixels >= 0) & (batch.pixels <= 1)).all())


def test_halrp_s_permuted_mnist_is_larger_and_in_colour(tmp_path, data):
    shape = "++scenario.images={kind: mnist, train: 30, dev: 10, test: 10, size: 32, fit: pad, channels: 3}"
    config = configured(tmp_path, "permuted_mnist", f"data_dir={data}", shape, "model=lenet")
    first, second, *_ = benchmark_of(config.tree).scenario(config, 1).domains
    one, other = (next(iter(domain.batches("test", shuffle=False, seed=0))).pixels.flatten(1) for domain in (first, second))
    assert first.shape == (3, 32, 32) and torch.equal(one.sort().values, other.sort().values)
    assert not torch.equal(one[:, :1024].sort().values, other[:, :1024].sort().values)  # the channels together


def test_domains_of_several_shapes_do_not_fit_one_model(tmp_path, data):
    domains = f"scenario.domains=[{{name: a, images: {SMALL}}}, {{name: b, images: {{kind: svhn}}}}]"
    config = configured(tmp_path, "permuted_mnist", f"data_dir={data}", domains)
    with pytest.raises(InputError, match=r"domain b.*\(3, 32, 32\).*a has \(1, 28, 28\).*size.*channels"):
        benchmark_of(config.tree).scenario(config, 1)


def test_a_set_of_one_class_is_no_task(tmp_path):
    write_pictures(tmp_path / "mine" / "cat", 20)
    config = configured(tmp_path, "permuted_digits", f"data_dir={tmp_path}", "++scenario.images={kind: folder, folder: mine}")
    with pytest.raises(InputError, match="domain original: its training images are all of one class"):
        benchmark_of(config.tree).scenario(config, 1)
