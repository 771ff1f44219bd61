"""Curves on real dashboards, all without a network."""

import json
import logging
import time

import pytest
from adapt_cases import QUICK, CountingTask

from asrcl.adapt import Tracking, TrackingConfig, run_method, trackers, tracking
from asrcl.adapt.tracking import flat, result_curves
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.scoring import RunResult
from asrcl.testing import tiny_learner, tiny_scenario


class StoppingTask(CountingTask):
    """Fails at the n-th training loss."""

    stop_at = 0

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        if self.calls.get("training") == self.stop_at:
            raise InputError("stopped")
        return loss


def run(home, *backends, task=None, method="ihr", name="run"):
    learner = tiny_learner(home, tiny_scenario(3, task=task, trained=task is None), QUICK)
    learner.tracking = Tracking(TrackingConfig(backends=backends, mode="offline"), home)
    return run_method(learner, build_method(method), home / name)


def scalars(folder):
    """All points of TensorBoard's event files below a folder: name -> [(step, value)]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def client(home):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")


def mlflow_runs(home):
    found = client(home)
    experiment = found.get_experiment_by_name("asrcl").experiment_id
    return {run.info.run_name.partition("/")[2]: run for run in found.search_runs([experiment])}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A whole run on all three dashboards: its folder and its result."""
    home = tmp_path_factory.mktemp("home")
    return home, run(home, "tensorboard", "mlflow", "wandb")


def test_tensorboard_has_the_numbers_of_the_result(done):
    home, result = done
    history = result.stages[1]["training"]
    drawn = scalars(home / "tensorboard" / "train" / "ihr" / "0" / "stage2-blobs1")
    for key in ("train_loss", "dev_loss"):
        assert drawn[key] == [(n, pytest.approx(epoch[key])) for n, epoch in enumerate(history, 1)]
    rates = scalars(home / "tensorboard" / "ihr" / "0")["rate/blobs0"]
    assert rates == [(n, pytest.approx(row[0])) for n, row in enumerate(result.rates(), 1)]


def test_mlflow_has_runs_parameters_curves_and_the_result_file(done):
    home, result = done
    runs = mlflow_runs(home)
    assert set(runs) == {"ihr/0", "train/ihr/0/stage2-blobs1", "train/ihr/0/stage3-blobs2"}
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    assert runs["train/ihr/0/stage2-blobs1"].data.params["learning_rate"] == "0.03"
    losses = client(home).get_metric_history(runs["train/ihr/0/stage2-blobs1"].info.run_id, "train_loss")
    assert [(m.step, m.value) for m in losses] == [(n, e["train_loss"]) for n, e in enumerate(result.stages[1]["training"], 1)]
    identity = runs["ihr/0"].info.run_id
    assert [f.path for f in client(home).list_artifacts(identity)] == ["results.json"]
    averages = client(home).get_metric_history(identity, "average")
    assert [m.step for m in averages] == [1, 2, 3] and runs["ihr/0"].data.metrics["AVG"] == averages[-1].value


def test_wandb_files_hold_the_curves(done):
    home, _ = done
    files = sorted((home / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 3
    contents = [file.read_bytes() for file in files]
    assert sum(b"train_loss" in content for content in contents) == 2 and any(b"rate/blobs2" in content for content in contents)


def test_a_result_is_sent_once(done, monkeypatch):
    home, result = done
    before = (home / "run" / "tracking.json").read_bytes()
    assert set(json.loads(before)) == {"tensorboard", "mlflow", "wandb"}
    started = []
    monkeypatch.setattr(Tracking, "_start", lambda self, backend, name, *rest: started.append((backend, name)))
    again = Tracking(TrackingConfig(backends=("tensorboard", "mlflow"), mode="offline"), home)
    again.result(result, home / "run")
    assert started == [] and (home / "run" / "tracking.json").read_bytes() == before
    other = json.loads((home / "run" / "results.json").read_text()) | {"command": "another"}
    (home / "other").mkdir()
    (home / "other" / "tracking.json").write_bytes(before)
    (home / "other" / "results.json").write_text(json.dumps(other))
    again.result(result, home / "other")
    assert started == [("tensorboard", "ihr/0"), ("mlflow", "ihr/0")]


def test_a_resumed_fine_tune_goes_on_with_its_run(tmp_path):
    task = StoppingTask()
    task.stop_at = 8
    with pytest.raises(InputError, match="stopped"):
        run(tmp_path, "tensorboard", "mlflow", task=task, method="ft")
    name = "train/ft/0/stage2-blobs1"
    (first,) = mlflow_runs(tmp_path).values()
    assert first.info.status == "FAILED" and 0 < len(scalars(tmp_path / "tensorboard" / name)["dev_loss"]) < QUICK.epochs
    task.stop_at = 0
    run(tmp_path, "tensorboard", "mlflow", task=task, method="ft")
    assert [step for step, _ in scalars(tmp_path / "tensorboard" / name)["dev_loss"]] == [1, 2, 3]
    runs = mlflow_runs(tmp_path)
    assert runs[name].info.run_id == first.info.run_id and runs[name].info.status == "FINISHED"
    assert [m.step for m in client(tmp_path).get_metric_history(first.info.run_id, "dev_loss")] == [1, 2, 3]


def test_a_dashboard_that_fails_is_left_out_with_a_warning(tmp_path, monkeypatch, caplog):
    calls = []

    class Broken:
        def log(self, values, step):
            calls.append(step)
            raise ConnectionError("no route\nto the server")

        def close(self, attachment=None, failed=False):
            calls.append("close")

    monkeypatch.setitem(trackers.STARTERS, "mlflow", lambda *_: (Broken(), "id"))
    monkeypatch.setitem(trackers.STARTERS, "wandb", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING):
        result = run(tmp_path, "tensorboard", "mlflow", "wandb", method="ft")
    assert calls == [1, 1, 1]  # two fine-tunes and a result, no second attempt in any
    assert "mlflow: no route to the server; going on without it" in caplog.text
    assert caplog.text.count("wandb: division by zero") == 1  # one that does not start is not asked again
    assert set(json.loads((tmp_path / "run" / "tracking.json").read_text())) == {"tensorboard"}
    assert result.errors == run(tmp_path / "alone", method="ft").errors


def test_a_server_that_is_not_there_costs_seconds(tmp_path, monkeypatch, caplog):
    for name in trackers.PATIENCE:
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}", raising=False)
    found = Tracking(TrackingConfig(backends=("mlflow",), uri="http://127.0.0.1:9"), tmp_path)
    started = time.monotonic()
    found.training("ft/0/stage2-b", tmp_path, {}, 0).log({"loss": 1.0}, 1)
    assert time.monotonic() - started < 60 and "mlflow: " in caplog.text
    assert not (tmp_path / "tracking.json").exists()


def test_nothing_is_written_where_nothing_is_wanted(tmp_path):
    run(tmp_path, method="ft")
    assert not list(tmp_path.rglob("tracking.json")) and not (tmp_path / "tensorboard").exists()


def test_wrong_and_missing_dashboards_are_told_before_anything_runs(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="comet is not known; choose from tensorboard, mlflow, wandb"):
        TrackingConfig(backends=("comet",))
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"mlflow not installed; pip install 'asrcl\[track\]'"):
        Tracking(TrackingConfig(backends=("tensorboard", "mlflow")), tmp_path)
    assert Tracking(TrackingConfig(), tmp_path).backends == []


def test_curves_leave_out_what_was_not_measured():
    result = RunResult("s", "ft", 1, "word", ["a", "b"], [[1, None], [2, 3]], [10, 10])
    assert result_curves(result) == [
        {"rate/a": 10.0, "average": 10.0},
        {"rate/a": 20.0, "rate/b": 30.0, "average": 25.0, "AVG": 25.0, "BWT": -10.0},
    ]


def test_settings_become_flat():
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}
