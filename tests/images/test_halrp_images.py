"""HALRP on image networks: heads of its own, convolutions, batch normalisation, forgetting and the files of a run."""

import torch
from doc_cases import example
from image_cases import PAIRS, configured

from asrcl.adapt import load_weights
from asrcl.experiment.run import adapt_all, train_all
from asrcl.methods.increments import Increment
from asrcl.scoring import RunResult


def test_convolutions_normalisations_and_heads(tmp_path):
    config = configured(tmp_path, "split_digits", PAIRS, "model=lenet", "model.widths=[4,8,32,16]", "train.adapt.epochs=3")
    train_all(config, [1])
    adapt_all(config, ["halrp"], [1], decode=True, save=True)
    run = config.home / "halrp" / "1"
    result = RunResult.load(run / "results.json")
    assert [row[0] for row in result.errors] == [result.errors[0][0]] * 3 and result.errors[1][1] == result.errors[2][1]
    assert result.errors[2][2] < 0.25 * result.lengths[2]
    increment = Increment.load(run / "increments" / "23.safetensors")
    assert set(increment.factors) == {f"trunk.{n}.weight" for n in (0, 4, 9, 12)}
    assert {"heads.1.weight", "heads.1.bias", "trunk.1.running_mean", "trunk.1.weight"} <= set(increment.own)
    assert not any(name.startswith(("heads.0", "heads.2")) for name in increment.own)
    shared = load_weights(config.home / "initial" / "1" / "model.safetensors")
    stage = load_weights(run / "stage2" / "model.safetensors")
    model = increment.weights(shared)
    assert all(torch.equal(value, stage[name]) for name, value in model.items())
    change = model["trunk.0.weight"] - shared["trunk.0.weight"] * (
        increment.factors["trunk.0.weight"].R.view(-1, 1, 1, 1) * increment.factors["trunk.0.weight"].S.view(1, -1, 1, 1)
    )
    torch.testing.assert_close(change, change[..., :1, :1].expand_as(change), atol=1e-6, rtol=0)


def test_a_report_says_what_pruning_old_tasks_forgets(tmp_path):
    config = configured(tmp_path, "split_digits", PAIRS, "methods.halrp.growth_bound=0.02", "model.widths=[32,32]")
    train_all(config, [1])
    adapt_all(config, ["halrp"], [1], decode=True)
    result = RunResult.load(config.home / "halrp" / "1" / "results.json")
    assert result.errors[2][1] > result.errors[1][1]
    assert result.completed()[2].tolist() == result.rates()[2].tolist()


def test_low_rank_updates_leave_the_heads_of_other_domains_out(tmp_path):
    config = configured(tmp_path, "split_digits", PAIRS)
    train_all(config, [1])
    adapt_all(config, ["lora_per_domain", "lora"], [1], decode=True, save=True)
    increment = Increment.load(config.home / "lora_per_domain" / "1" / "increments" / "23.safetensors")
    assert set(increment.factors) == {"trunk.1.weight", "trunk.4.weight"}
    assert set(increment.own) == {"heads.1.weight", "heads.1.bias"}
    stages = [load_weights(config.home / "lora" / "1" / f"stage{stage}" / "model.safetensors") for stage in (1, 2)]
    assert all(torch.equal(stages[0][f"heads.{n}.weight"], stages[1][f"heads.{n}.weight"]) for n in (0, 2))


def test_the_example_of_the_page(tmp_path, monkeypatch, capsys):
    two = "scenario.domains=[{name: original}, {name: permuted1, permutation: 1}]"
    config = configured(tmp_path / "exp", "permuted_digits", two)
    train_all(config, [1])
    adapt_all(config, ["halrp"], [1], decode=True, save=True)
    monkeypatch.chdir(tmp_path)
    exec(example("increments", "halrp.md"), {})
    assert "numbers, {'trunk.1.weight': " in capsys.readouterr().out
