"""Finished work is kept by what it depends on, and only what changed is done again."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapt_cases import QUICK, CountingTask, equal_states, with_domain
from adapt_processes import make_alone

from asrcl.adapt import (
    Cache,
    CurvatureConfig,
    DomainLearner,
    Trainer,
    fingerprint,
    load_recorded,
    load_weights,
    run_method,
    save_recorded,
    save_weights,
)
from asrcl.exceptions import InputError
from asrcl.files import read_json
from asrcl.methods import Method, build_method
from asrcl.testing import blob_domain, run_in_processes, tiny_scenario

STEPS = 4 * QUICK.epochs  # batches of one fine-tune


def learner(folder, scenario=None, train=QUICK, seed=0, curvature=None) -> DomainLearner:
    scenario = scenario or tiny_scenario()
    scenario.task = scenario.task if isinstance(scenario.task, CountingTask) else CountingTask()
    return DomainLearner(scenario, Cache(folder / "cache"), train, curvature or CurvatureConfig(), seed)


def run(folder, name="ft", options=None, **changes):
    """Run a method and return the calls it took and the fingerprints of its models."""
    worker = learner(folder, **changes)
    result = run_method(worker, build_method(name, **options or {}), folder / "run")
    return worker.scenario.task.calls, [stage["model"] for stage in result.stages]


def entries(folder) -> Counter:
    return Counter(path.parent.name for path in (folder / "cache").glob("*/*") if path.is_dir())


def test_methods_share_their_first_fine_tune(tmp_path):
    assert run(tmp_path, "ft")[0]["training"] == 2 * STEPS
    assert run(tmp_path, "fta")[0]["training"] == STEPS
    assert run(tmp_path, "ihr")[0]["training"] == STEPS
    assert run(tmp_path, "separate")[0]["training"] == STEPS
    assert run(tmp_path, "ewc", {"strength": 5.0})[0]["training"] == 2 * STEPS  # its penalty trains otherwise
    assert entries(tmp_path)["train"] == 7


def test_hit_is_bit_equal_and_costs_nothing(tmp_path):
    calls, models = run(tmp_path, "ihr")
    assert set(calls) == {"training", "dev", "curvature", "evaluate"}
    assert run(tmp_path, "ihr") == ({}, models)
    assert run(tmp_path / "elsewhere", "ihr") == (calls, models)


def test_entry_tells_what_it_depends_on(tmp_path):
    run(tmp_path, "ft")
    for path in (tmp_path / "cache" / "train").iterdir():
        if path.is_dir():
            key = read_json(path / "key.json")
            assert key["seed"] == 0 and key["train"]["learning_rate"] == QUICK.learning_rate
            assert sorted(p.name for p in path.glob("*.safetensors")) == ["model.safetensors"]
            assert read_json(path / "cost.json")["seconds"] > 0
    assert not list((tmp_path / "cache").glob("*/*.work"))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"train": replace(QUICK, learning_rate=0.01)},
        {"train": replace(QUICK, epochs=2)},
        {"scenario": tiny_scenario(seed=5)},
    ],
    ids=["seed", "learning rate", "epochs", "everything"],
)
def test_changed_setting_trains_anew(tmp_path, change):
    _, models = run(tmp_path, "ft")
    calls, others = run(tmp_path, "ft", **change)
    assert calls["training"] == 2 * 4 * change.get("train", QUICK).epochs
    assert others[1] != models[1]


def test_changed_last_domain_trains_only_there(tmp_path):
    _, models = run(tmp_path, "ihr")
    scenario = with_domain(tiny_scenario(), 2, blob_domain("blobs2", 77, 1.0))
    calls, others = run(tmp_path, "ihr", scenario=scenario)
    # "curvature": the loss on the domain before, of the fine-tuned and of the merged weights, two batches each
    assert calls == {"training": STEPS, "dev": 2 * QUICK.epochs, "evaluate": 2 + 3, "curvature": 4}
    assert others[:2] == models[:2] and others[2] != models[2]


def test_changed_test_set_only_decodes_it(tmp_path):
    class OtherTest:
        def __init__(self, domain, other):
            self.name, self._of = domain.name, {"train": domain, "dev": domain, "test": other}

        def batches(self, split, **options):
            return self._of[split].batches(split, **options)

        def size(self, split):
            return self._of[split].size(split)

        def fingerprint(self, split):
            return self._of[split].fingerprint(split)

    _, models = run(tmp_path, "ihr")
    scenario = tiny_scenario()
    changed = OtherTest(scenario.domains[1], blob_domain("other", 50, 1.0))
    assert run(tmp_path, "ihr", scenario=with_domain(scenario, 1, changed)) == ({"evaluate": 3}, models)


def test_changed_curvature_setting_keeps_the_first_fine_tune(tmp_path):
    run(tmp_path, "ihr")
    calls, _ = run(tmp_path, "ihr", curvature=CurvatureConfig(max_items=16))
    assert calls["curvature"] and calls["training"] == STEPS


def test_changed_model_of_the_same_shape_trains_anew(tmp_path):
    _, models = run(tmp_path, "ft")
    scenario = tiny_scenario(dropout=0.5)
    assert fingerprint(scenario.initial) != "" and scenario.initial.keys() == tiny_scenario().initial.keys()
    scenario.initial = tiny_scenario().initial
    calls, others = run(tmp_path, "ft", scenario=scenario)
    assert calls["training"] == 2 * STEPS and others[1] != models[1]


def test_changed_label_smoothing_trains_anew_but_judges_alike(tmp_path):
    run(tmp_path, "ft")
    scenario = tiny_scenario(task=CountingTask(label_smoothing=0.2))
    calls, _ = run(tmp_path, "ft", scenario=scenario)
    assert calls["training"] == 2 * STEPS
    assert calls["evaluate"] == 2 * 3  # the initial model has been judged before


class InterruptedTraining(BaseException):
    """Stands for a kill at one place."""


def fine_tune_until_removal(folder, monkeypatch, number):
    """Fine-tune, interrupted before the n-th removal of a file; returns the weights and the number of removals."""
    original, removals = Path.unlink, []

    def unlink(path, missing_ok=False):
        removals.append(path)
        if len(removals) == number:
            raise InterruptedTraining
        original(path, missing_ok=missing_ok)

    scenario = tiny_scenario(2, trained=False)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", unlink)
        state = learner(folder, scenario, QUICK).fine_tune(scenario.initial, scenario.domains[1], Method())
    return state, len(removals)


def test_interrupted_while_tidying_up(tmp_path, monkeypatch):
    """Between the end of training and the finished entry, files are removed one by one."""
    expected, removals = fine_tune_until_removal(tmp_path / "whole", monkeypatch, 0)
    for number in range(removals - 7, removals + 1):
        with pytest.raises(InterruptedTraining):
            fine_tune_until_removal(tmp_path / str(number), monkeypatch, number)
        state, _ = fine_tune_until_removal(tmp_path / str(number), monkeypatch, 0)
        assert equal_states(state, expected)


def penalised(weight):
    """A method of a user's own that says nothing of what its training depends on."""

    class Pull(Method):
        name = "pull"

        def __init__(self):
            self.weight = weight

        def penalty(self, learner, model, batch):
            return self.weight * sum(p.square().sum() for p in model.parameters())

    return Pull()


def test_methods_with_penalties_share_no_fine_tune(tmp_path):
    scenario = tiny_scenario(2)
    states = [
        learner(tmp_path, scenario).fine_tune(scenario.initial, scenario.domains[1], method)
        for method in (Method(), penalised(0.5), penalised(2.0), penalised(2.0))
    ]
    assert len({fingerprint(state) for state in states}) == 3
    assert entries(tmp_path)["train"] == 3


def test_changed_fisher_changes_what_ewc_trains(tmp_path):
    """The penalty's weights are part of what a fine-tune depends on, whatever changed them."""
    options = {"strength": 50.0}
    run(tmp_path / "shared", "ewc", options)
    _, found = run(tmp_path / "shared", "ewc", options, curvature=CurvatureConfig(max_items=16))
    _, expected = run(tmp_path / "alone", "ewc", options, curvature=CurvatureConfig(max_items=16))
    assert found == expected


def fine_tune_as_one_of_many(folder, stop_after=0):
    """A fine-tune by whatever processes there are, interrupted after some epochs."""
    scenario = tiny_scenario(2, sizes={"train": 72, "dev": 16, "test": 16})
    original = Trainer._train_epoch

    def stopping(run):
        if stop_after and run.progress.epoch == stop_after:
            raise InputError("stopped")
        return original(run)

    Trainer._train_epoch = stopping
    try:
        return fingerprint(learner(Path(folder), scenario).fine_tune(scenario.initial, scenario.domains[1], Method()))
    except InputError:
        return "stopped"
    finally:
        Trainer._train_epoch = original


def test_number_of_processes_is_part_of_what_a_fine_tune_depends_on(tmp_path):
    def with_processes(count, folder, *arguments):
        return run_in_processes(fine_tune_as_one_of_many, count, str(tmp_path / folder), *arguments, start="forkserver")[0]

    alone, together = with_processes(1, "alone"), with_processes(2, "together")
    assert alone != together  # a step takes twice as many batches
    assert with_processes(1, "together") == alone  # not what two have made
    assert with_processes(2, "together") == together
    assert with_processes(1, "resumed", 1) == "stopped"
    assert with_processes(2, "resumed") == together
    assert with_processes(1, "resumed") == alone


def test_number_of_threads_is_part_of_what_a_fine_tune_depends_on(tmp_path, caplog):
    caplog.set_level("INFO")
    run(tmp_path, "ft")
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        calls, _ = run(tmp_path, "ft")
        assert calls["training"] == 2 * STEPS
        assert f"threads={before + 1}; the same is there, made with device=cpu, processes=1, threads={before}" in caplog.text
    finally:
        torch.set_num_threads(before)


def test_torn_writes_are_swept_out(tmp_path):
    def make(folder):
        (folder / ".result.txt.x1.part").write_text("torn")
        (folder / "result.txt").write_text("whole")

    entry = Cache(tmp_path).entry("kind", {"a": 1}, make)
    assert sorted(path.name for path in entry.iterdir()) == ["key.json", "result.txt"]


def test_failed_work_can_go_on(tmp_path):
    attempts = []

    def make(folder):
        attempts.append([path.name for path in folder.iterdir()])
        (folder / "half").write_text("done")
        if len(attempts) == 1:
            raise InputError("no luck")

    cache = Cache(tmp_path)
    with pytest.raises(InputError, match="no luck"):
        cache.entry("kind", {}, make)
    entry = cache.entry("kind", {}, make)
    cache.entry("kind", {}, make)
    assert attempts == [[], ["half"]]
    assert (entry / "half").is_file()


def test_two_processes_that_want_the_same(tmp_path):
    outcomes = run_in_processes(make_alone, 2, str(tmp_path), start="forkserver")
    assert sorted(made for _, made in outcomes) == [False, True]
    assert len({maker for maker, _ in outcomes}) == 1


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="file/cache/kind: cannot write here"):
        Cache(tmp_path / "file" / "cache").entry("kind", {}, lambda folder: None)


def test_fingerprint_sees_names_types_shapes_and_values():
    state = {"a": torch.zeros(2, 3), "b": torch.tensor(1)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.tensor(1)},
        {"a": torch.zeros(2, 3).double(), "b": torch.tensor(1)},
        {"c": torch.zeros(2, 3), "b": torch.tensor(1)},
        {"a": torch.zeros(2, 3), "b": torch.tensor(2)},
    ]
    assert fingerprint({"b": torch.tensor(1), "a": torch.zeros(3, 2).T}) == fingerprint(state)
    assert len({fingerprint(other) for other in [state, *others]}) == 5


def test_weights_survive_the_disk(tmp_path):
    state = {"a": torch.randn(3, 2).T, "shared": torch.arange(4)[::2], "half": torch.randn(2).bfloat16()}
    save_weights(state, tmp_path / "deep" / "m.safetensors")
    assert equal_states(load_weights(tmp_path / "deep" / "m.safetensors"), state)


def test_weights_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load_weights(tmp_path / "none.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"1234")
    with pytest.raises(InputError, match=r"torn\.safetensors: damaged"):
        load_weights(tmp_path / "torn.safetensors")


def test_recorded_weights(tmp_path, caplog):
    """What was written is checked where it is read again; what others put there is taken, and said where it is not expected."""
    path, state = tmp_path / "1" / "model.safetensors", {"w": torch.arange(6.0)}
    save_recorded(state, path, {"seed": 1})
    assert equal_states(load_recorded(path, "the train stage", expected=True), state) and not caplog.records
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"1: model\.safetensors was changed after it was written; run the train stage again"):
        load_recorded(path, "the train stage")
    content[-1] ^= 1
    path.write_bytes(content)
    record = path.with_suffix(".json")
    before = record.read_text()
    record.write_text(before.replace('"seed": 1', '"seed": 2'))
    with pytest.raises(InputError, match=r"model\.json was changed"):
        load_recorded(path, "the train stage")
    for text in ('{"seed": 1}', None):  # of an older version; of somebody else
        record.unlink()
        if text:
            record.write_text(text)
        assert equal_states(load_recorded(path, "the train stage"), state) and not caplog.records
        assert equal_states(load_recorded(path, "the train stage", expected=True), state)
        assert "has no hash in model.json and is used unchecked; the train stage writes one" in caplog.text
        caplog.clear()
        record.touch()
    with pytest.raises(InputError, match="no such checkpoint"):
        load_recorded(tmp_path / "none.safetensors", "the train stage")
