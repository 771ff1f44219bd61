"""Steps outside of the leading singular subspaces: what is kept stays, and nothing kept is plain fine-tuning."""

from itertools import pairwise

import pytest
import torch

from asrcl.adapt import TrainConfig, run_stages
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.testing import tiny_learner, tiny_scenario

ADAM = TrainConfig(epochs=4, learning_rate=0.02, weight_decay=0.01, average_best=1)
SGD = TrainConfig(epochs=4, optimizer="sgd", momentum=0.9, learning_rate=0.02, average_best=1)


def run(folder, train=ADAM, domains=3, **options):
    learner = tiny_learner(folder, tiny_scenario(domains, dropout=0.2), train)
    return [stage.models[0] for stage in run_stages(learner, build_method("osf", **options), None)]


@pytest.mark.parametrize("train", [ADAM, SGD])
@pytest.mark.parametrize("rest", ["freeze", "train"])
def test_less_than_a_millionth_of_an_update_lies_in_the_kept_subspaces(tmp_path, train, rest):
    stages = run(tmp_path, train, rest=rest, preserve=0.5)
    for old, new in pairwise(stages):
        for name in ("0.weight", "3.weight"):
            change = (new[name] - old[name]).double()
            U, S, Vh = torch.linalg.svd(old[name].double(), full_matrices=False)
            rank = len(S) // 2
            inside = max((U[:, :rank].mT @ change).norm(), (change @ Vh[:rank].mT).norm())
            assert inside < 1e-6 * old[name].norm() and change.norm() > 1e-2
            kept = U[:, :rank].mT @ new[name].double() @ Vh[:rank].mT
            torch.testing.assert_close(kept, torch.diag(S[:rank]), rtol=0, atol=1e-5)
        moved = {name for name in old if not torch.equal(old[name], new[name])}
        assert moved == {"0.weight", "3.weight"} | ({"0.bias", "3.bias"} if rest == "train" else set())


def test_to_keep_nothing_is_plain_fine_tuning_to_the_bit(tmp_path):
    free = run(tmp_path / "osf", preserve=0.0, rest="train")
    plain = run_stages(tiny_learner(tmp_path / "ft", tiny_scenario(3, dropout=0.2), ADAM), build_method("ft"), None)
    assert [one.hash for one in free] == [stage.models[0].hash for stage in plain]


def test_to_keep_all_leaves_the_weights_where_they_are(tmp_path):
    first, *later = run(tmp_path, preserve=1.0)
    assert all((weights["0.weight"] - first["0.weight"]).abs().max() < 1e-6 for weights in later)


def test_more_is_kept_with_every_domain_where_it_grows(tmp_path):
    """The third domain then has the room that twice the share leaves, to the bit, if the second had the same."""
    grown = run(tmp_path / "grown", preserve=0.25, grow=True)
    even = run(tmp_path / "even", preserve=0.25)
    assert grown[1].hash == even[1].hash and grown[2].hash != even[2].hash
    U, S, _ = torch.linalg.svd(grown[1]["0.weight"].double(), full_matrices=False)
    change = (grown[2]["0.weight"] - grown[1]["0.weight"]).double()
    assert (U[:, : len(S) // 2].mT @ change).norm() < 1e-6 * S[0]


def test_the_first_domain_is_learned_freely(tmp_path):
    scenario = tiny_scenario(2, dropout=0.2)
    scenario.learn_first = True
    runs = [run_stages(tiny_learner(tmp_path, scenario, ADAM), build_method(name), None) for name in ("ft", "osf")]
    plain, projected = (next(stages).models[0].hash for stages in runs)
    assert plain == projected != scenario.initial.hash


def test_targets_that_match_nothing(tmp_path):
    with pytest.raises(InputError, match=r"targets=\['encoder"):
        run(tmp_path, targets=["encoder*"])


@pytest.mark.parametrize("option", [{"preserve": -0.1}, {"preserve": 1.1}, {"rest": "keep"}])
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
        build_method("osf", **option)
