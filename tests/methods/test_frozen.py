"""Frozen training: what is held stays to the bit, what is all is fine-tuning to the bit, and which blocks a model has."""

import pytest
import torch
from method_cases import Raw
from torch import nn

from asrcl.adapt import Scenario, TrainConfig, run_stages
from asrcl.exceptions import InputError
from asrcl.images.models import build_classifier
from asrcl.methods import build_method
from asrcl.methods.frozen import Block, blocks_of, heads_of, in_forward_order
from asrcl.testing import ClassificationTask, blob_domain, tiny_learner, tiny_scenario

DECAYING = TrainConfig(epochs=4, optimizer="adamw", learning_rate=0.03, weight_decay=0.1, average_best=3)
HEAVY = TrainConfig(epochs=3, optimizer="sgd", learning_rate=0.03, weight_decay=0.1, momentum=0.9, average_best=3)


class Normed(nn.Sequential):
    """Two hidden layers with batch statistics, one of them without parameters of its own, and a last layer."""

    def __init__(self):
        super().__init__(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16, affine=False), nn.ReLU(),
            nn.Linear(16, 4),
        )  # fmt: skip


def normed(folder, train=DECAYING, **options):
    """Weights after every stage."""
    domains = [blob_domain(f"blobs{n}", n, float(n)) for n in range(3)]
    torch.manual_seed(0)
    scenario = Scenario("normed", domains, ClassificationTask(), Normed, Normed().state_dict(), learn_first=True)
    learner = tiny_learner(folder, scenario, train)
    return [stage.models[0] for stage in run_stages(learner, build_method(**options), None)]


def changed(first, second):
    return {name for name in first if not torch.equal(first[name], second[name])}


@pytest.mark.parametrize("train", [DECAYING, HEAVY], ids=["adamw", "momentum"])
@pytest.mark.parametrize(("blocks", "moves"), [(1, {"6"}), (2, {"6", "3", "4"})])
def test_what_is_frozen_stays_to_the_bit(tmp_path, train, blocks, moves):
    """Weights under decay and momentum, batch statistics, and the mean of three epochs; a block's own norm goes with it."""
    models = normed(tmp_path, train, name="frozen", blocks=blocks)
    assert {name.partition(".")[0] for name in changed(models[0], models[1])} == moves
    assert changed(models[0], models[2]) == changed(models[0], models[1])


def test_the_first_domain_trains_everything(tmp_path):
    first, plain = (normed(tmp_path, name=name)[0] for name in ("frozen", "ft"))
    assert first.hash == plain.hash


@pytest.mark.parametrize("blocks", [None, 3, 9])
def test_all_blocks_are_plain_fine_tuning_to_the_bit(tmp_path, blocks):
    frozen, plain = (normed(tmp_path, **method) for method in ({"name": "frozen", "blocks": blocks}, {"name": "ft"}))
    assert [model.hash for model in frozen] == [model.hash for model in plain]


@pytest.mark.parametrize("freeze", [("0.*", "1.*", "3.*"), ("0.*", "3.*")])
def test_statistics_are_frozen_with_the_parameters_of_their_normalisation(tmp_path, freeze):
    """By `train.freeze` as by frozen training: the trap of batch normalisation."""
    train = TrainConfig(epochs=2, learning_rate=0.03, freeze=freeze)
    domain = blob_domain("blobs1", 1, 1.0)
    scenario = Scenario("normed", [blob_domain("blobs0"), domain], ClassificationTask(), Normed, Normed().state_dict())
    learner = tiny_learner(tmp_path, scenario, train)
    moved = changed(learner.initial, learner.fine_tune(learner.initial, domain, build_method("ft")))
    assert all(not name.startswith(pattern[:2]) for name in moved for pattern in freeze)
    assert {"1.running_mean", "1.weight"} <= moved or "1.*" in freeze


def test_more_blocks_move_more_parameters_and_learn_more(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2))
    last = [list(run_stages(learner, build_method("frozen", blocks=blocks), "test"))[-1] for blocks in (1, 2)]
    sizes = [sum(stage.models[0][name].numel() for name in changed(learner.initial, stage.models[0])) for stage in last]
    assert sizes == [4 * 16 + 4, 4 * 16 + 4 + 16 * 8 + 16]
    assert last[0].errors[1].rate > last[1].errors[1].rate  # frozen features do not fit a rotated space


def test_the_head_of_a_domain_is_always_trained():
    model = build_classifier({"kind": "mlp", "widths": [6, 5]}, (1, 2, 2), {"a": 2, "b": 3})
    heads = heads_of(model, ("heads.*",))
    assert heads == {f"heads.{number}.{name}" for number in (0, 1) for name in ("weight", "bias")}
    assert [block.name for block in blocks_of(model, heads)] == ["trunk.1", "trunk.4"]
    assert heads_of(model, (), frozenset(model.private("b"))) == set(model.private("b"))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"kind": "resnet18", "width": 2}, ["trunk.conv1", *(f"trunk.layer{n}.{k}" for n in (1, 2, 3, 4) for k in (0, 1))]),
        ({"kind": "lenet", "widths": [2, 2, 4, 4]}, ["trunk.0", "trunk.4", "trunk.9", "trunk.12"]),
    ],
)
def test_blocks_of_networks_for_images(settings, names):
    """Nine blocks of a ResNet, as in the paper; norms with their statistics go with the layer before."""
    model = build_classifier(settings, (1, 8, 8), {"": 3})
    blocks = blocks_of(model, heads_of(model, ("heads.*",)))
    assert [block.name for block in blocks] == names
    assert {name for block in blocks for name in block.entries} | {"heads.0.weight", "heads.0.bias"} == set(model.state_dict())


def test_modules_without_a_number_are_blocks_and_what_is_tied_has_one():
    model = Raw()
    model.output = nn.Linear(4, 5, bias=False)
    model.output.weight = model.embedding.weight
    blocks = {block.name: block.entries for block in blocks_of(model)}
    assert list(blocks) == ["embedding", "attention", "attention.out_proj", "convolution"]
    backwards = [Block(name, blocks[name]) for name in reversed(blocks)]
    in_order = in_forward_order(backwards, model, lambda: model(torch.tensor([[1, 2, 3, 4]])))
    assert [block.name for block in in_order if block.name != "attention.out_proj"] == ["embedding", "attention", "convolution"]
    assert not model.training and not model.norm._forward_pre_hooks
    assert blocks["embedding"] == {"embedding.weight"} and "norm.running_var" in blocks["convolution"]


def test_groups_choose_other_blocks(tmp_path):
    first, middle = (normed(tmp_path / name, name="frozen", groups=[glob]) for name, glob in (("a", "0.*"), ("b", "3.*")))
    assert {name.partition(".")[0] for name in changed(first[0], first[2])} == {"0"}
    assert {name.partition(".")[0] for name in changed(middle[0], middle[2])} == {"3"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": -1}, r"method\.blocks=-1: .*negative"),
        ({"blocks": 0}, r"method\.blocks=0: nothing is left to train"),
        ({"groups": ["encoder.*"]}, r"method\.groups=encoder\.\*: chooses no parameter; their names are like 0\.weight"),
        ({"groups": ["*", "3.*"]}, r"method\.groups=3\.\*: chooses no parameter"),
        ({"heads": ["classifier.*"]}, r"method\.heads=classifier\.\*: matches no parameter"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        list(run_stages(tiny_learner(tmp_path, tiny_scenario(2)), build_method("frozen", **options), None))


def test_blocks_of_a_conformer_are_counted_as_it_computes():
    """Its modules list the encoder before what feeds it, and the decoder before its embedding."""
    from asrcl.speech.model import ConformerASR

    sizes = {"width": 16, "heads": 2, "encoder_layers": 2, "decoder_layers": 1, "feed_forward": 16, "kernel": 3}
    model = ConformerASR(8, 20, **sizes)
    heads = heads_of(model, ("heads.*", "*_head.*"))
    assert {name.partition(".")[0] for name in heads} == {"ctc_head", "attention_head"}

    def forward():
        return model.logits(torch.zeros(1, 8, 8), torch.tensor([8]), torch.tensor([[1, 2]]))

    names = [block.name.removeprefix("transformer.") for block in in_forward_order(blocks_of(model, heads), model, forward)]
    encoder = ["custom_src_module.layers.0", "encoder.layers.0", "encoder.layers.1"]
    assert names == [*encoder, "custom_tgt_module.layers.0", "decoder.layers.0"]
