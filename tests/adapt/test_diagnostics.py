"""What results tell of a stage: layers, predicted loss increase, curvature."""

import json

import pytest
import torch
from adapt_cases import QUICK

from asrcl.adapt import Weights, adapt_domains, load_weights, run_method
from asrcl.adapt.observers import SPECTRA, SPECTRUM_POINTS, LayerChanges, Moved, curvature_record, layer_records, update_norm
from asrcl.curvature import Curvature, estimate
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.scoring import RunResult
from asrcl.scoring.results import stage_records
from asrcl.testing import tiny_learner, tiny_scenario


def weights(seed, size=5):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, size), torch.nn.ReLU(), torch.nn.BatchNorm1d(size), torch.nn.Linear(size, 3))
    return model, {name: value.clone() for name, value in model.state_dict().items()}


def curvature_of(model):
    torch.manual_seed(9)
    batches = [(torch.randn(16, 4), torch.randint(3, (16,))) for _ in range(4)]
    loss = lambda net, batch: torch.nn.functional.cross_entropy(net(batch[0]), batch[1])  # noqa: E731
    return estimate(model.eval(), loss, batches, fisher="empirical", layers="all")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Result of a method under a kind of diagnostics, on three domains; one cache for all."""
    home = tmp_path_factory.mktemp("home")
    done = {}

    def result(name, diagnostics="used", **options):
        key = f"{name}_{diagnostics}" + "".join(f"_{k}{v}" for k, v in options.items())
        if key not in done:
            learner = tiny_learner(home, tiny_scenario(3), QUICK)
            learner.diagnostics = diagnostics
            run_method(learner, build_method(name, **options), home / key)
            done[key] = RunResult.load(home / key / "results.json")
        return done[key]

    return result


def test_layers_add_up_to_the_whole():
    (model, old), (_, new), (_, merged) = weights(0), weights(1), weights(2)
    curvature = curvature_of(model)
    layers = layer_records(old, new, merged, curvature)
    assert [layer["name"] for layer in layers] == ["0", "2", "3"]
    for key, state in (("update_norm", new), ("merged_update_norm", merged)):
        assert sum(layer[key] ** 2 for layer in layers) ** 0.5 == pytest.approx(update_norm(old, state), rel=1e-5)
    for key, state in (("predicted_increase", new), ("merged_predicted_increase", merged)):
        change = {name: state[name].double() - old[name].double() for name in curvature.names()}
        total = sum(layer.get(key, 0.0) for layer in layers)
        assert total == pytest.approx(float(curvature.quadratic(change)), rel=1e-5) and total > 0


def test_norms_are_those_of_the_dense_difference():
    (_, old), (_, new) = weights(0), weights(1)
    (first, *_) = layer_records(old, new, new)
    difference = torch.cat([(new[f"0.{name}"] - old[f"0.{name}"]).flatten() for name in ("weight", "bias")])
    assert first == {"name": "0", "update_norm": pytest.approx(float(difference.norm()), rel=1e-5),
                     "merged_update_norm": first["update_norm"]}  # fmt: skip


def test_layers_without_a_block_predict_nothing():
    (model, old), (_, new) = weights(0), weights(1)
    curvature = curvature_of(model)
    part = Curvature({key: block for key, block in curvature.blocks.items() if key.name == "3.weight"}, curvature.metadata)
    found = layer_records(old, new, new, part)
    assert ["predicted_increase" in layer for layer in found] == [False, False, True]


def test_curvature_of_another_model_is_refused():
    (model, _), (_, old) = weights(0), weights(1, size=6)
    with pytest.raises(InputError, match="another model"):
        layer_records(old, old, old, curvature_of(model))


def test_record_of_a_curvature_is_small_and_true():
    model, _ = weights(0)
    curvature = curvature_of(model)
    found = curvature_record(curvature)
    assert json.loads(json.dumps(found)) == found
    assert found["facts"]["fisher"] == "empirical" and found["facts"]["items"] == 64 and "versions" not in found["facts"]
    assert found["trace"] == pytest.approx(curvature.trace(), rel=1e-5)
    shares = [block["share"] for block in found["blocks"]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-4)
    for block in found["blocks"]:
        values = curvature.eigenvalues(block["name"])
        assert block["spectrum"][0] == pytest.approx(float(values[0]), rel=1e-3)
        assert block["spectrum"][-1] == pytest.approx(float(values[-1].clamp_min(0)), rel=1e-3, abs=1e-7)
        assert len(block["spectrum"]) == min(SPECTRUM_POINTS, block["weights"])
        assert block["spectrum"] == sorted(block["spectrum"], reverse=True)


def test_only_the_largest_blocks_keep_their_spectrum():
    model = torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(SPECTRA)])
    batches = [(torch.randn(8, 3), torch.randint(3, (8,)))]
    loss = lambda net, batch: torch.nn.functional.cross_entropy(net(batch[0]), batch[1])  # noqa: E731
    found = curvature_record(estimate(model, loss, batches, fisher="empirical", layers="all"))["blocks"]
    assert [("spectrum" in block) for block in found] == [True] * SPECTRA + [False] * SPECTRA


def test_methods_with_a_curvature_tell_it(runs):
    stages = runs("ihr").stages
    assert [("curvature" in stage, "layers" in stage, stage.get("predicted_on")) for stage in stages] == [
        (True, False, None), (True, True, "blobs0"), (False, True, "blobs1"),
    ]  # fmt: skip
    assert stages[0]["curvature"]["facts"]["structure"] == "kron"
    kept = [sum(layer[key] for layer in stages[1]["layers"] if key in layer)
            for key in ("predicted_increase", "merged_predicted_increase")]  # fmt: skip
    assert 0 < kept[1] < kept[0]


def test_ewc_tells_its_diagonal(runs):
    stages = runs("ewc", strength=100.0).stages
    assert stages[0]["curvature"]["facts"]["structure"] == "diagonal" and stages[1]["predicted_on"] == "blobs0"


def test_methods_without_one_have_norms_alone_unless_all_are_asked_for(runs):
    used, everything = runs("ft").stages, runs("ft", "all").stages
    assert not any("curvature" in stage or "predicted_on" in stage for stage in used)
    assert [layer["update_norm"] for layer in used[1]["layers"]] == [layer["update_norm"] for layer in everything[1]["layers"]]
    assert [stage.get("predicted_on") for stage in everything] == [None, "blobs0", "blobs1"]
    assert everything[0]["curvature"] == runs("ihr").stages[0]["curvature"]


def test_prediction_is_quadratic_in_the_step(runs):
    for number, stage in enumerate(runs("fta", "all").stages[1:], 2):
        for layer in stage["layers"]:
            if "predicted_increase" in layer:
                expected = layer["predicted_increase"] / number**2
                assert layer["merged_predicted_increase"] == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_the_increase_is_measured_on_the_dev_split(runs, tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(3), QUICK)
    adapt_domains(learner, build_method("ihr"), tmp_path / "ihr")
    first, merged = (load_weights(tmp_path / "ihr" / f"stage{n}" / "model.safetensors") for n in (1, 2))
    domain = learner.scenario.domains[0]
    losses = []
    for state in (first, merged):
        model = learner.model_with(state).eval()
        items = [item for batch in domain.batches("dev", shuffle=False, seed=0) for item in batch.items()]
        losses.append(float(torch.stack([learner.scenario.task.curvature_loss(model, item) for item in items]).mean()))
    stage = runs("ihr").stages[1]
    assert stage["merged_measured_increase"] == pytest.approx(losses[1] - losses[0], rel=1e-4)
    assert stage["measured_increase"] > stage["merged_measured_increase"] > 0  # merging protects the domain before
    assert "measured_increase" not in runs("ft").stages[1] and "measured_increase" in runs("ft", "all").stages[1]


def test_a_step_of_zero_measures_zero(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2), QUICK)
    state, first = learner.scenario.initial, learner.scenario.domains[0]
    learner.estimate_curvature(state, first, "kron")
    record = LayerChanges().after_stage(learner, Moved(first, state, Weights(state), state, True))
    assert record["measured_increase"] == 0 and record["predicted_on"] == first.name
    assert all(layer["predicted_increase"] == 0 for layer in record["layers"] if "predicted_increase" in layer)


def test_observers_of_a_scenario_are_asked_too(tmp_path):
    class Distance:
        def after_stage(self, learner, moved):
            return {"distance": [learner.stage, moved.domain.name, moved.learned, moved.end is learner.weights]}

    scenario = tiny_scenario(2)
    scenario.observers = [Distance()]
    result = run_method(tiny_learner(tmp_path, scenario, QUICK), build_method("ft"), tmp_path / "ft")
    assert [stage["distance"] for stage in result.stages] == [[1, "blobs0", False, True], [2, "blobs1", True, True]]
    assert "update_norm" in result.stages[1]


def test_predictions_stand_only_at_the_weights_of_the_curvature(runs):
    assert [stage.get("predicted_on") for stage in runs("separate", "all").stages] == [None, None, None]


def test_none_tells_nothing(runs):
    assert not any(key in stage for stage in runs("ihr", "none").stages for key in ("layers", "curvature", "predicted_on"))
    assert runs("ihr", "none").errors == runs("ihr", "all").errors == runs("ihr").errors


def test_diagnostics_cost_is_kept_apart(runs):
    costs = json.loads((runs("ft", "all").folder / "costs.json").read_text())
    assert costs[0]["diagnostics_seconds"] > 0 and "curvature_seconds" not in costs[0]


def test_reports_read_what_runs_write(runs):
    run = runs("ihr")
    assert [layer.name for layer in stage_records.layers(run, 1)] == [layer["name"] for layer in run.stages[1]["layers"]]
    assert stage_records.blocks(run, 0)[0].spectrum and stage_records.blocks(run, 2) == []


def test_a_wrong_choice_is_refused(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2), QUICK)
    with pytest.raises(InputError, match="choose none, used, all or spectra"):
        type(learner)(learner.scenario, learner.cache, learner.train, learner.curvature, 0, diagnostics="some")


def test_states_of_a_stage_are_where_the_norms_say(runs, tmp_path):
    """The norm in the file is the distance between the checkpoints of two stages."""
    learner = tiny_learner(tmp_path, tiny_scenario(3), QUICK)
    adapt_domains(learner, build_method("ihr"), tmp_path / "ihr")
    first, second = (load_weights(tmp_path / "ihr" / f"stage{n}" / "model.safetensors") for n in (1, 2))
    assert update_norm(first, second) == pytest.approx(runs("ihr").stages[1]["merged_update_norm"], rel=1e-9)
