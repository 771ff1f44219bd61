"""The tiny scenario through every method there is."""

from pathlib import Path

import numpy as np
import pytest
from adapt_cases import QUICK, equal_states

from asrcl.adapt import Scenario, adapt_domains, fingerprint, load_weights, run_method, run_stages, train_initial
from asrcl.exceptions import InputError
from asrcl.methods import Method, build_method, method_names
from asrcl.scoring import RunResult, find_results
from asrcl.testing import ClassificationTask, tiny_learner, tiny_scenario

VARIANTS = [
    ("ewc", {"strength": 300.0}),
    ("ewc", {"strength": 300.0, "mode": "sum"}),
    ("ewc", {"strength": 300.0, "decay": 0.5}),
    ("fta", {"strength": 0.3}),
    ("ihr", {"curvature": "sum", "damping": 0.3}),
    ("laplace", {"damping": 0.1}),
    ("ihr", {"rescale": "global", "damping": 0.3}),
    ("ihr", {"damping_kind": "absolute", "damping": 1e-3, "tau": 0.5, "rest": 0.5, "layers": ["0.*"]}),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """One folder for all methods, as in a real experiment: they share what they can."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home):
    """The result of a method on the tiny scenario, made once."""
    done: dict[str, RunResult] = {}

    def result(name, **options) -> RunResult:
        label = name + "".join(f"_{key}_{value}" for key, value in options.items())
        if label not in done:
            run_method(tiny_learner(home), build_method(name, **options), home / label)
            done[label] = RunResult.load(home / label / "results.json")
        return done[label]

    return result


@pytest.mark.parametrize("name, options", [*((name, {}) for name in method_names()), *VARIANTS])
def test_every_method_leaves_a_full_result(run, name, options):
    result, initial = run(name, **options), run("initial")
    assert (result.method, result.seed, result.unit) == (name, 0, "item")
    assert result.domains == ["blobs0", "blobs1", "blobs2"]
    assert result.lengths == [48, 48, 48]
    assert result.rates().shape == (3, 3)
    assert None not in result.errors[2]
    if name != "packnet":  # which prunes the initial model
        assert result.errors[0] == initial.errors[0]
        assert result.stages[0]["model"] == initial.stages[0]["model"]
    for stage in range(3):
        for domain in range(3):
            if result.errors[stage][domain] is not None:
                assert result.items(stage, domain).total == result.errors[stage][domain]
            assert result.has_items(stage, domain) == (result.errors[stage][domain] is not None)


def test_results_are_found_and_explained(run, home):
    run("ft")
    found = {result.folder.name: result for result in find_results(home)}
    assert found["ft"].config == {"domains": 3, "rotation": 1.0, "seed": 0}
    assert found["ft"].environment["torch"]
    assert len(found["ft"].stages[1]["training"]) == 6
    assert found["ft"].stages[1]["update_norm"] == found["ft"].stages[1]["merged_update_norm"] > 0
    decode = home / "ft" / "stage2" / "blobs1"
    assert len((decode / "ref.trn").read_text().splitlines()) == 48
    assert (decode / "hyp.trn").read_text().splitlines()[0].endswith("(g000-test0000)")


def test_initial_model_stays(run):
    result = run("initial")
    assert result.errors[0] == result.errors[1] == result.errors[2]
    assert len({stage["model"] for stage in result.stages}) == 1
    assert result.rates()[0, 0] < 15 < 40 < min(result.rates()[0, 1:])


def test_fine_tuning_learns_and_forgets(run):
    rates = run("ft").rates()
    assert rates[1, 1] < 15 and rates[2, 2] < 15
    assert rates[2, 0] > rates[0, 0] + 40


@pytest.mark.parametrize("name, options", [("fta", {}), *VARIANTS[:3], ("ihr", {"curvature": "sum", "damping": 0.3})])
def test_methods_forget_less_than_fine_tuning(run, name, options):
    forgotten = run(name, **options).rates()[2, 0]
    assert forgotten < run("ft").rates()[2, 0] - 25


def test_joint_training_is_measured_first_and_last(run):
    rates = run("joint").rates()
    assert np.isnan(rates[1]).all()
    assert not np.isnan(rates[[0, 2]]).any()
    assert max(rates[2]) < 30
    assert run("joint").stages[1]["model"] == run("initial").stages[1]["model"]


def test_separate_models_are_kept(run):
    separate, initial, ft = run("separate"), run("initial"), run("ft")
    assert [row[0] for row in separate.errors] == [row[0] for row in initial.errors]
    assert separate.errors[1] == [initial.errors[1][0], ft.errors[1][1], initial.errors[1][2]]
    assert separate.errors[2][1] == separate.errors[1][1]
    assert separate.rates()[2, 2] < 15
    assert len({stage["model"] for stage in separate.stages}) == 3
    assert separate.stages[1]["model"] == ft.stages[1]["model"]
    assert separate.stages[2]["model"] != ft.stages[2]["model"]


def test_adapted_weights_are_those_that_were_measured(run, tmp_path, home):
    for name in ("separate", "joint", "ihr"):
        result = run(name)
        adapt_domains(tiny_learner(home), build_method(name), tmp_path / name)
        for number, stage in enumerate(result.stages, 1):
            state = load_weights(tmp_path / name / f"stage{number}" / "model.safetensors")
            assert fingerprint(state) == stage["model"]


def test_one_method_object_may_run_twice(home):
    for name, options in [("ewc", {"strength": 300.0, "mode": "sum"}), ("ihr", {"curvature": "sum", "damping": 0.3})]:
        method = build_method(name, **options)
        first, second = ([stage.models for stage in run_stages(tiny_learner(home), method, None)] for _ in range(2))
        for before, after in zip(first, second, strict=True):
            assert equal_states(before[0], after[0])


def test_hooks_come_in_the_order_promised(tmp_path):
    calls = []

    class Diary(Method):
        name = "diary"

        def start_domain(self, learner, domain):
            calls.append(f"start {domain.name}")

        def start_run(self, learner):
            calls.append("run")

        def learn(self, learner, domain, old):
            calls.append(f"learn {domain.name} from {old.hash}")
            return super().learn(learner, domain, old)

        def wrap(self, learner, model):
            calls.append("wrap")
            return model

        def loss(self, learner, model, batch):
            calls.append(f"loss {batch.domain}")
            return super().loss(learner, model, batch)

        def penalty(self, learner, model, batch):
            calls.append("penalty")

        def after_backward(self, learner, model):
            calls.append("gradient")
            assert all(p.grad is not None for p in model.parameters())

        def after_step(self, learner, model):
            calls.append("step")
            assert all(p.grad is not None for p in model.parameters())

        def weights_for(self, learner, domain):
            calls.append(f"weights for {domain.name}")
            return super().weights_for(learner, domain)

        def end_domain(self, learner, domain, old, new):
            calls.append(f"end {domain.name} {learner.stage} {learner.last} {old is None}")
            return new

    scenario = tiny_scenario(2)
    for stage in run_stages(tiny_learner(tmp_path, scenario, QUICK), Diary(), None):
        assert stage.errors == [None, None]
    steps = ["loss blobs1", "penalty", "gradient", "step"] * 4 * QUICK.epochs
    asked = ["weights for blobs0", "weights for blobs1"]
    first = ["run", "end blobs0 1 False True", *asked]
    second = ["start blobs1", f"learn blobs1 from {scenario.initial.hash}", "wrap", *steps, "end blobs1 2 True False", *asked]
    assert calls == first + second


def test_training_the_initial_model(tmp_path):
    scenario = tiny_scenario(2, trained=False)
    learner = tiny_learner(tmp_path, scenario)
    state = train_initial(scenario, QUICK, learner.cache, 3, tmp_path / "initial" / "model.safetensors")
    again = train_initial(scenario, QUICK, learner.cache, 3, tmp_path / "again.safetensors")
    other = train_initial(scenario, QUICK, learner.cache, 4, tmp_path / "other.safetensors")
    assert equal_states(state, again) and equal_states(state, load_weights(tmp_path / "initial" / "model.safetensors"))
    assert not equal_states(state, other)
    model = scenario.build_model()
    rates = []
    for weights in (scenario.initial, state):
        model.load_state_dict(weights)
        rates.append(ClassificationTask().evaluate(model, scenario.domains[0], "test").rate)
    assert rates[1] < rates[0] / 2


def test_scenario_of_one_domain(tmp_path):
    for name in method_names():
        result = run_method(tiny_learner(tmp_path, tiny_scenario(1)), build_method(name), tmp_path / name)
        assert result.errors == [[result.errors[0][0]]] and result.errors[0][0] is not None


def test_scenario_without_an_initial_model(tmp_path):
    scenario = tiny_scenario(2)
    scenario.initial = None
    with pytest.raises(InputError, match="tiny: no initial model"):
        run_method(tiny_learner(tmp_path, scenario), build_method("ft"), tmp_path)


def test_scenarios_that_make_no_sense():
    parts = tiny_scenario(2)
    with pytest.raises(InputError, match="no domains"):
        Scenario("empty", [], parts.task, parts.build_model)
    with pytest.raises(InputError, match="repeat"):
        Scenario("twice", [parts.domains[0], parts.domains[0]], parts.task, parts.build_model)


def test_results_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    learner = tiny_learner(tmp_path / "file", tiny_scenario(2))
    with pytest.raises(InputError, match="cannot write"):
        run_method(learner, build_method("initial"), tmp_path / "run")
    with pytest.raises(InputError, match="cannot write"):
        run_method(tiny_learner(tmp_path, tiny_scenario(2)), build_method("initial"), tmp_path / "file" / "run")
