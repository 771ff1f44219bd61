"""Curves on real dashboards, all without a network."""

import json
import logging
import multiprocessing
import re
import shutil
import time

import pytest
from adapt_cases import QUICK, CountingTask, start_run_in_database

from asrcl.adapt import Tracking, TrackingConfig, Trainer, run_method, trackers, tracking
from asrcl.adapt.tracking import flat, result_curves
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.scoring import RunResult
from asrcl.scoring.results.discovery import scan_results
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
    runs = found.search_runs([experiment])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {bare(run.info.run_name.partition("/")[2]): run for run in runs}


def bare(name):
    """The name of a run without the hash of its fine-tune."""
    return re.sub(r"-[0-9a-f]{6}$", "", name)


def fine_tune_events(home, name):
    """TensorBoard's folder of a fine-tune."""
    (folder,) = (home / "tensorboard" / "train").glob(f"{name}-*")
    return folder


def steps(home, name, key="dev_loss"):
    """The steps of a curve in MLflow."""
    return [metric.step for metric in client(home).get_metric_history(mlflow_runs(home)[name].info.run_id, key)]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A whole run on all three dashboards: its folder and its result."""
    home = tmp_path_factory.mktemp("home")
    return home, run(home, "tensorboard", "mlflow", "wandb")


def test_tensorboard_has_the_numbers_of_the_result(done):
    home, result = done
    history = result.stages[1]["training"]
    drawn = scalars(fine_tune_events(home, "ihr/0/stage2-blobs1"))
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
    assert [f.path for f in client(home).list_artifacts(identity)] == ["asrcl_results.json"]
    averages = client(home).get_metric_history(identity, "average")
    assert [m.step for m in averages] == [1, 2, 3] and runs["ihr/0"].data.metrics["AVG"] == averages[-1].value


def test_reports_find_the_runs_and_not_what_dashboards_keep_of_them(done):
    home, result = done
    assert [run.name for run in scan_results([home]).require()] == [result.name]


def test_wandb_files_hold_the_curves(done):
    home, _ = done
    files = sorted((home / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 3
    contents = [file.read_bytes() for file in files]
    assert sum(b"train_loss" in content for content in contents) == 2 and any(b"rate/blobs2" in content for content in contents)


def test_nothing_is_sent_twice(done, monkeypatch):
    """Neither by the same run again, nor by another command, commit or method with the same outcome."""
    home, _ = done
    before = {path: path.read_bytes() for path in home.rglob("tracking.json")}
    assert len(before) == 3 and set(json.loads(before[home / "run" / "tracking.json"])) == {"tensorboard", "mlflow", "wandb"}
    for backend in ("tensorboard", "mlflow", "wandb"):
        monkeypatch.setitem(trackers.STARTERS, backend, lambda *_: pytest.fail("sent again"))
    result = run(home, "tensorboard", "mlflow", "wandb")
    result.command, result.environment = "another", {"git": "other"}
    result.save(home / "run" / "results.json")
    Tracking(TrackingConfig(backends=("mlflow",), mode="offline"), home).result(result, home / "run")
    assert {path: path.read_bytes() for path in home.rglob("tracking.json")} == before


def test_other_outcomes_places_and_lost_files_are_sent(tmp_path, monkeypatch):
    run(tmp_path, "tensorboard", "mlflow", method="ft")
    started = []
    for backend in ("tensorboard", "mlflow"):
        original = trackers.STARTERS[backend]

        def watched(*arguments, backend=backend, original=original):
            started.append((backend, bare(arguments[2])))
            return original(*arguments)

        monkeypatch.setitem(trackers.STARTERS, backend, watched)
    everything = [("train/ft/0/stage2-blobs1"), ("train/ft/0/stage3-blobs2"), ("ft/0")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    run(tmp_path, "tensorboard", "mlflow", method="ft")
    assert started == [("mlflow", name) for name in everything]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    started.clear()
    shutil.rmtree(tmp_path / "tensorboard")
    run(tmp_path, "tensorboard", method="ft")
    assert started == [("tensorboard", name) for name in everything]
    started.clear()
    result = run(tmp_path, method="ft")
    result.errors[2][0] += 1
    Tracking(TrackingConfig(), tmp_path).result(result, tmp_path / "run")
    assert started == [("tensorboard", "ft/0")]


def test_a_dashboard_that_comes_later_gets_what_was_trained_before(tmp_path):
    result = run(tmp_path, method="ft")
    run(tmp_path, "tensorboard", "mlflow", method="ft")
    drawn = scalars(fine_tune_events(tmp_path, "ft/0/stage3-blobs2"))["train_loss"]
    assert drawn == [(n, pytest.approx(e["train_loss"])) for n, e in enumerate(result.stages[2]["training"], 1)]
    assert steps(tmp_path, "train/ft/0/stage3-blobs2") == [1, 2, 3]
    assert mlflow_runs(tmp_path)["train/ft/0/stage3-blobs2"].info.status == "FINISHED"


@pytest.mark.parametrize("stop_at", [1, 8])
def test_a_resumed_fine_tune_goes_on_with_its_run(tmp_path, stop_at):
    """Also one that was stopped before its first epoch."""
    task, name = StoppingTask(), "train/ft/0/stage2-blobs1"
    task.stop_at = stop_at
    with pytest.raises(InputError, match="stopped"):
        run(tmp_path, "tensorboard", "mlflow", task=task, method="ft")
    (first,) = mlflow_runs(tmp_path).values()
    assert first.info.status == "FAILED"
    task.stop_at = 0
    run(tmp_path, "tensorboard", "mlflow", task=task, method="ft")
    assert [step for step, _ in scalars(fine_tune_events(tmp_path, "ft/0/stage2-blobs1"))["dev_loss"]] == [1, 2, 3]
    runs = mlflow_runs(tmp_path)
    assert runs[name].info.run_id == first.info.run_id and runs[name].info.status == "FINISHED"
    assert steps(tmp_path, name) == [1, 2, 3]


def test_a_run_that_is_gone_begins_anew(tmp_path):
    task, name = StoppingTask(), "train/ft/0/stage2-blobs1"
    task.stop_at = 14
    with pytest.raises(InputError, match="stopped"):
        run(tmp_path, "mlflow", task=task, method="ft")
    shutil.rmtree(tmp_path / "mlflow")
    task.stop_at = 0
    run(tmp_path, "mlflow", task=task, method="ft")
    assert steps(tmp_path, name) == [1, 2, 3]


def test_a_kill_between_saving_and_logging_loses_and_doubles_nothing(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    log, calls = Trainer._log, []

    def killed(self, record, run):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        log(self, record, run)

    monkeypatch.setattr(Trainer, "_log", killed)
    with pytest.raises(Killed):
        run(tmp_path, "mlflow", method="ft")
    run(tmp_path, "mlflow", method="ft")
    assert steps(tmp_path, "train/ft/0/stage2-blobs1") == [1, 2, 3]


def test_variants_and_other_settings_have_curves_of_their_own(tmp_path):
    for label, strength in (("ewc", 1.0), ("ewc_strong", 1.0), ("ewc", 100.0)):
        learner = tiny_learner(tmp_path, tiny_scenario(2), QUICK)
        learner.label = label
        run_method(learner, build_method("ewc", strength=strength), tmp_path / label, name=label)
    names = sorted(bare(str(p.relative_to(tmp_path / "tensorboard"))) for p in (tmp_path / "tensorboard" / "train").glob("*/*/*"))
    assert names == ["train/ewc/0/stage2-blobs1"] * 2  # the second label has the same fine-tune
    assert (tmp_path / "tensorboard" / "ewc_strong" / "0").is_dir()


def test_two_jobs_share_a_new_database(tmp_path):
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=start_run_in_database, args=(str(tmp_path), k)) for k in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert set(mlflow_runs(tmp_path)) == {"train/a0", "train/a1", "train/a2"}


@pytest.mark.parametrize("content", ["{", "[]", '{"mlflow": 3}', '{"mlflow": {"to": "own database, asrcl", "steps": "x"}}'])
def test_a_damaged_note_is_as_none(tmp_path, content):
    run(tmp_path, "mlflow", method="ft")
    (tmp_path / "run" / "tracking.json").write_text(content)
    next((tmp_path / "cache" / "train").glob("*/tracking.json")).write_text(content)
    found = client(tmp_path)
    experiment = found.get_experiment_by_name("asrcl").experiment_id
    before = len(found.search_runs([experiment]))
    run(tmp_path, "mlflow", method="ft")
    assert len(found.search_runs([experiment])) == before + 2  # sent again


def test_files_of_a_database_that_is_a_file_lie_beside_the_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    run(tmp_path / "home", "mlflow", method="ft")
    assert not (tmp_path / "mlruns").exists() and list((tmp_path / "home" / "mlflow" / "artifacts").rglob("asrcl_results.json"))


def test_a_dashboard_that_fails_is_left_out_with_a_warning(tmp_path, monkeypatch, caplog):
    calls = []

    class Broken:
        def log(self, values, step):
            calls.append(step)
            raise ConnectionError("no route\nto the server" + " again" * 99)

        def close(self, attachment=None, failed=False):
            calls.append("close")

    monkeypatch.setitem(trackers.STARTERS, "mlflow", lambda *_: (Broken(), "id"))
    monkeypatch.setitem(trackers.STARTERS, "wandb", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING):
        result = run(tmp_path, "tensorboard", "mlflow", "wandb", method="ft")
    assert calls == [1]
    (broken,) = [record.getMessage() for record in caplog.records if "mlflow" in record.getMessage()]
    assert broken.startswith("mlflow (own database, asrcl): no route to the server again") and len(broken) < 320
    assert caplog.text.count("wandb (wandb.ai, asrcl, offline): division by zero; going on without it") == 1
    assert set(json.loads((tmp_path / "run" / "tracking.json").read_text())) == {"tensorboard"}
    assert result.errors == run(tmp_path / "alone", method="ft").errors


def test_a_server_that_is_not_there_costs_seconds(tmp_path, monkeypatch, caplog):
    for name in trackers.PATIENCE:
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}", raising=False)
    found = Tracking(TrackingConfig(backends=("mlflow",), uri="http://127.0.0.1:9"), tmp_path)
    started = time.monotonic()
    found.training("ft/0/stage2-b", tmp_path, {}, [{"loss": 2.0}]).log({"loss": 1.0}, 2)
    assert time.monotonic() - started < 60 and "mlflow (http://127.0.0.1:9, asrcl): " in caplog.text
    assert not (tmp_path / "tracking.json").exists()


def test_wandb_never_asks_for_a_login(tmp_path, monkeypatch, caplog):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    found = Tracking(TrackingConfig(backends=("wandb",), mode="online"), tmp_path)
    found.replay("ft/0/stage2-b", tmp_path, {}, [{"loss": 1.0}])
    assert "no login; call wandb login" in caplog.text and found.backends == []


def test_nothing_is_written_where_nothing_is_wanted(tmp_path):
    run(tmp_path, method="ft")
    assert not list(tmp_path.rglob("tracking.json")) and not (tmp_path / "tensorboard").exists()


def test_wrong_and_missing_dashboards_are_told_before_anything_runs(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="comet is not known; choose from tensorboard, mlflow, wandb"):
        TrackingConfig(backends=("comet",))
    wrong_ones = {"give a list of tensorboard": {"backends": "mlflow"}, "choose online or offline": {"mode": "nope"}}
    for message, wrong in (wrong_ones | {"is empty": {"project": ""}}).items():
        with pytest.raises(InputError, match=message):
            TrackingConfig(**wrong)
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
