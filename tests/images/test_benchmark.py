"""Image scenarios from the configuration to results."""

import os
import subprocess
import sys

import pytest
import torch
from image_cases import PAIRS, configured

from asrcl.adapt import load_weights
from asrcl.exceptions import InputError
from asrcl.experiment.config import load_config
from asrcl.experiment.registry import benchmark_of
from asrcl.experiment.run import adapt_all, build_scenario, train_all
from asrcl.files import hash_json
from asrcl.scoring import RunResult

# But what names parts of a Conformer, and what needs domains that share a head.
METHODS = sorted(load_config().tree["methods"].keys() - {"uoe", "lora_selected"})
SLOW_LEARNERS = ["initial", "fta", "ihr", "ihr_paper", "laplace", "lora", "lora_per_domain", "adapters", "cssvd", "svr"]
"""Two epochs do for the others."""


def scenario_of(config):
    return benchmark_of(config.tree).scenario(config, 1)


def test_permuted_digits_are_the_digits_in_another_order(tmp_path):
    first, second, *_ = scenario_of(configured(tmp_path)).domains
    assert (first.size("train"), first.size("dev"), first.size("test")) == (1000, 300, 497)
    one, other = (next(iter(domain.batches("test", shuffle=False, seed=0))) for domain in (first, second))
    assert torch.equal(one.labels, other.labels) and not torch.equal(one.pixels, other.pixels)
    torch.testing.assert_close(one.pixels.flatten(1).sort().values, other.pixels.flatten(1).sort().values)


@pytest.mark.parametrize(
    "incremental, heads", [("domain", {"": 2}), ("task", dict.fromkeys(("01", "23", "45", "67", "89"), 2)), ("class", {"": 10})]
)
def test_what_is_known_at_test_time_decides_heads_and_labels(tmp_path, incremental, heads):
    scenario = scenario_of(configured(tmp_path, "split_digits", f"scenario.incremental={incremental}"))
    assert scenario.model_config["heads"] == [list(head) for head in heads.items()]
    batch = next(iter(scenario.domains[2].batches("test", shuffle=False, seed=0)))
    assert set(batch.labels.tolist()) == ({4, 5} if incremental == "class" else {0, 1})
    assert batch.mixable == (incremental != "task")
    assert scenario.private("23") == (("heads.1.weight", "heads.1.bias") if incremental == "task" else ())


def test_class_incremental_permutations_have_classes_of_their_own(tmp_path):
    scenario = scenario_of(configured(tmp_path, "permuted_digits", "scenario.incremental=class"))
    assert scenario.model_config["heads"] == [["", 80]]
    labels = [next(iter(domain.batches("test", shuffle=False, seed=0))).labels for domain in scenario.domains]
    assert torch.equal(labels[3], labels[0] + 30)


@pytest.fixture(scope="module")
def split_runs(tmp_path_factory):
    """All methods on the first three pairs of digits, each pair with a head of its own."""
    folder = tmp_path_factory.mktemp("split")
    config = configured(folder, "split_digits", PAIRS)
    train_all(config, [1])
    adapt_all(config, METHODS, [1])
    adapt_all(config, METHODS, [1], decode=True)
    return config, {name: RunResult.load(config.home / name / "1" / "results.json") for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_house_runs(split_runs, name):
    _, runs = split_runs
    result = runs[name]
    assert result.unit == "image" and len(result.errors) == 3 and None not in result.errors[2]
    if name not in SLOW_LEARNERS:
        assert result.errors[2][2] < 0.25 * result.lengths[2]
    assert result.errors[0][0] < 0.1 * result.lengths[0]


def test_models_are_selected_where_domains_share_a_head_and_refused_where_not(tmp_path):
    config = configured(tmp_path, "split_digits", PAIRS, "scenario.incremental=domain")
    train_all(config, [1])
    adapt_all(config, ["lora_selected"], [1], decode=True)
    result = RunResult.load(config.home / "lora_selected" / "1" / "results.json")
    shares = result.stages[2]["selected"]
    assert [sum(counts.values()) for counts in shares.values()] == result.lengths and len(shares) == 3
    apart = configured(tmp_path / "apart", "split_digits", PAIRS)
    train_all(apart, [1])
    with pytest.raises(InputError, match=r"select: domain 01 has a head or a language of its own"):
        adapt_all(apart, ["lora_selected"], [1])


@pytest.mark.parametrize("name", ["fta", "ihr", "laplace", "ewc", "si"])
def test_heads_survive_merging(split_runs, name):
    """The head of a domain ends its stage as it was learned there, and no later stage touches it."""
    config, _ = split_runs
    stages = [load_weights(config.home / name / "1" / f"stage{stage}" / "model.safetensors") for stage in (1, 2, 3)]
    if name in ("fta", "ihr", "laplace"):
        tuned = load_weights(config.home / "ft" / "1" / "stage2" / "model.safetensors")
        assert torch.equal(stages[1]["heads.1.weight"], tuned["heads.1.weight"])
        assert not torch.equal(stages[1]["trunk.1.weight"], tuned["trunk.1.weight"])
    assert torch.equal(stages[0]["heads.0.weight"], stages[2]["heads.0.weight"])
    assert torch.equal(stages[1]["heads.1.weight"], stages[2]["heads.1.weight"])
    assert torch.equal(stages[0]["heads.2.weight"], stages[1]["heads.2.weight"])
    assert not torch.equal(stages[1]["heads.2.weight"], stages[2]["heads.2.weight"])


def test_replay_keeps_domains_with_heads_of_their_own_apart(tmp_path, split_runs):
    config, _ = split_runs
    scenario = build_scenario(config, 1)
    items = [scenario.domains[n].item("train", 0) for n in (0, 1)]
    assert not items[0].mixable
    from asrcl.experiment.run import learner_of
    from asrcl.methods import build_method

    learner, method = learner_of(config, scenario, 1), build_method("er", budget=10)
    for stage in (1, 2):
        learner.enter(stage)
        method.end_domain(learner, scenario.domains[stage - 1], None, learner.initial)
    learner.enter(3)
    drawn = method.drawn(learner, 10)
    assert [(batch.domain, len(batch)) for batch in drawn] == [("01", 5), ("23", 5)]
    model, batch = learner.model_with(learner.initial), scenario.domains[2].item("train", 0)
    means = [learner.task.loss(model, part) for part in drawn]
    expected = learner.task.loss(model, batch) + sum(means) / 2
    fresh = build_method("er", budget=10, items=10)
    fresh.load_state_dict({**method.state_dict(), "draws.count": torch.tensor(0)})
    torch.testing.assert_close(fresh.loss(learner, model, batch), expected)


def test_the_commands_run_without_speech(tmp_path):
    program = (
        "import sys, asrcl.cli\ntry:\n    asrcl.cli.main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print(sorted(n for n in sys.modules if n.startswith(('asrcl.speech', 'speechbrain', 'sentencepiece'))))"
    )
    options = ["scenario=rotated_digits", "exp=exp", "launcher.threads=1", "device=cpu"]
    options += ["train.initial.epochs=1", "train.adapt.epochs=1", "evaluation.domains=seen"]
    command = [sys.executable, "-c", program, "run", "--methods", "fta", *options]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ.copy(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "[]" and (tmp_path / "exp" / "rotated_digits" / "report.html").is_file()


@pytest.mark.parametrize(
    "scenario, override, fault",
    [
        ("split_digits", "scenario.incremental=tasks", r"incremental=tasks.*domain, task, class"),
        ("split_digits", "scenario.domains=[{name: a, classes: [0]}, {name: b, classes: [1, 2]}]", r"domain a: classes=\[0\]"),
        ("split_digits", "scenario.domains=[{name: a, classes: [0, 10]}]", r"domain a: classes=\[0, 10\].*9"),
        ("split_digits", "scenario.domains=[{name: a, classes: [3, 3, 4]}]", r"domain a: classes=\[3, 3, 4\]"),
        ("split_digits", "scenario.domains=[{name: a, angle: 3}]", r"domain a: has angle.*rotation"),
        ("permuted_digits", "scenario.domains=[{name: a, permutation: one}]", r"domain a: permutation=one"),
        ("rotated_digits", "scenario.domains=[{name: a}, {name: b, classes: [1, 2]}]", r"\{'a': 10, 'b': 2\}"),
        ("permuted_digits", "+scenario.images.angle=4", r"scenario\.images \(digits\).*angle.*size"),
        ("permuted_digits", "scenario.images.kind=cats", r"kind=cats.*digits.*mnist"),
        ("permuted_digits", "model.widths=[0]", r"widths=\[0\]"),
        ("permuted_digits", "train.batch_size=many", r"train\.batch_size=many"),
    ],
)  # fmt: skip
def test_bad_scenarios_end_in_one_line(tmp_path, scenario, override, fault):
    with pytest.raises(InputError, match=fault) as caught:
        scenario_of(configured(tmp_path, scenario, override))
    assert "\n" not in str(caught.value)


def test_the_order_of_heads_is_part_of_what_a_model_is(tmp_path):
    pairs = "{name: a, classes: [0, 1]}", "{name: b, classes: [2, 3]}", "{name: c, classes: [4, 5]}"
    orders = [f"scenario.domains=[{', '.join(pairs[n] for n in order)}]" for order in ((0, 1, 2), (0, 2, 1))]
    first, second = (scenario_of(configured(tmp_path, "split_digits", order)) for order in orders)
    assert hash_json(first.model_config) != hash_json(second.model_config)


@pytest.mark.parametrize("incremental, same", [("task", False), ("domain", True)])
def test_equal_data_under_two_heads_are_two_domains(tmp_path, incremental, same):
    domains = "scenario.domains=[{name: a, classes: [0, 1]}, {name: b, classes: [2, 3]}, {name: b2, classes: [2, 3]}]"
    _, first, second = scenario_of(configured(tmp_path, "split_digits", domains, f"scenario.incremental={incremental}")).domains
    assert (first.fingerprint("train") == second.fingerprint("train")) == same


@pytest.mark.parametrize(
    "scenario, setting, probe",
    [("split_digits", "task", "{name: p, classes: [0, 1]}"), ("permuted_digits", "domain", "{name: p, classes: [0, 1]}"),
     ("permuted_digits", "class", "{name: p}"), ("split_digits", "class", "{name: p}")],
)  # fmt: skip
def test_probes_that_no_head_is_for_are_refused(tmp_path, scenario, setting, probe):
    overrides = [f"scenario.incremental={setting}", f"+scenario.probes=[{probe}]"]
    fits = scenario == "split_digits" and setting == "class"  # all ten digits, the outputs of the one head
    if fits:
        assert len(scenario_of(configured(tmp_path, scenario, *overrides)).probes) == 1
    else:
        with pytest.raises(InputError, match="probe p"):
            scenario_of(configured(tmp_path, scenario, *overrides))


def test_curvature_is_that_of_the_weights_a_stage_ends_with(split_runs):
    _, runs = split_runs
    assert [stage.get("predicted_on") for stage in runs["ihr"].stages] == [None, "01", "23"]
    assert "curvature" in runs["ihr"].stages[1]
