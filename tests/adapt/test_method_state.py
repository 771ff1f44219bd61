"""What a method remembers is the same whether its fine-tunes were made now, found in the cache, or gone on with after a kill."""

from pathlib import Path

import pytest
import torch
from adapt_cases import QUICK, Countdown, KillingTask, equal_states

from asrcl.adapt import Trainer, run_stages
from asrcl.exceptions import InputError
from asrcl.methods import Method, build_method
from asrcl.testing import run_in_processes, tiny_learner, tiny_scenario


class Counting(Method):
    """Counts the calls of its hooks and adds up what it sees; nobody wrote a key for it."""

    def __init__(self):
        self._calls = {"backward": torch.tensor(0), "step": torch.tensor(0)}
        self._motion = torch.zeros(())

    def state_dict(self):
        return {**self._calls, "motion": self._motion}

    def load_state_dict(self, state):
        self._calls = {name: state[name].clone() for name in ("backward", "step")}
        self._motion = state["motion"].clone()

    def start_run(self, learner):
        self.__init__()

    def after_backward(self, learner, model):
        self._calls["backward"] += 1
        self._before = [p.detach().clone() for p in model.parameters()]

    def after_step(self, learner, model):
        self._calls["step"] += 1
        pairs = zip(model.parameters(), self._before, strict=True)
        self._motion = self._motion + sum((p.detach() - before).square().sum() for p, before in pairs)


METHODS = {
    "counting": Counting,
    "si": lambda: build_method("si", strength=0.5),
    "er": lambda: build_method("er", budget=12),
    "regmean_plus_plus": lambda: build_method("regmean_plus_plus", budget=12),
    "er reservoir": lambda: build_method("er", budget=12, filling="reservoir", distillation=0.5),
    "der": lambda: build_method("der", budget=12),
    "agem": lambda: build_method("agem", budget=12),
    "ewc": lambda: build_method("ewc", strength=10.0),
    "l2": lambda: build_method("l2", strength=1.0),
    "gpm": lambda: build_method("gpm", energy=0.8),
    "cgalore": lambda: build_method("cgalore"),
    "ogd": lambda: build_method("ogd", budget=8),
    "olora": lambda: build_method("olora", rank=2),
    "clrl": lambda: build_method("clrl"),
    "ema": lambda: build_method("ema"),
    "swa": lambda: build_method("swa"),
    "cssvd": lambda: build_method("cssvd", share=0.5),
    "svr": lambda: build_method("svr", epochs=1, start=0.0),
    "osf": lambda: build_method("osf"),
    "packnet": lambda: build_method("packnet"),
    "frozen": lambda: build_method("frozen"),
    "hybrid": lambda: build_method("hybrid", reference="end"),
    "kfac_ewc": lambda: build_method("kfac_ewc", strength=10.0),
    "kfac_ewc online": lambda: build_method("kfac_ewc", strength=10.0, mode="online"),
    "lwf": lambda: build_method("lwf"),
    "lwf_entropy": lambda: build_method("lwf_entropy"),
    "mas": lambda: build_method("mas", strength=1.0),
    "ihr": lambda: build_method("ihr", curvature="sum"),
    "lora": lambda: build_method("lora", rank=2),
    "adapters": lambda: build_method("adapters", bottleneck=2),
    "lora_per_domain": lambda: build_method("lora_per_domain", rank=2),
    "halrp": lambda: build_method("halrp", private=[], growth_bound=0.5, importance="trace"),
}
STATELESS = ("lora", "lwf", "frozen", "lwf_entropy", "clrl", "osf", "swa")


def scenario(task=None):
    return tiny_scenario(3, dropout=0.2, task=task)


def run(folder, name, task=None):
    """The method's state and the weights after every stage."""
    method, found = METHODS[name](), []
    for stage in run_stages(tiny_learner(folder, scenario(task), QUICK), method, None):
        state = {key: value.clone() for key, value in method.state_dict().items()}
        found.append((state, stage.models[0].hash))
    return found


def assert_same(first, second):
    assert [weights for _, weights in first] == [weights for _, weights in second]
    for (one, _), (other, _) in zip(first, second, strict=True):
        assert equal_states(one, other)


def killed(folder: str, name: str, calls: int) -> None:
    """A run that dies at a call of the loss; in a process of its own."""
    run(folder, name, KillingTask(where="loss", countdown=Countdown(calls)))


def test_hooks_are_counted_and_a_cached_run_counts_as_many(tmp_path):
    first, again = run(tmp_path, "counting"), run(tmp_path, "counting")
    assert [int(state["step"]) for state, _ in first] == [0, 4 * QUICK.epochs, 2 * 4 * QUICK.epochs]
    assert float(first[-1][0]["motion"]) > 0
    assert_same(first, again)


@pytest.mark.parametrize("name", METHODS)
def test_a_cached_run_ends_in_the_same_state(tmp_path, monkeypatch, name):
    first = run(tmp_path, name)
    assert len(first[1][0]) > 0 or name in STATELESS
    monkeypatch.setattr(Trainer, "fit", lambda trainer: pytest.fail("trained again"))
    assert_same(first, run(tmp_path, name))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("calls", [9, 22, 31])
def test_a_killed_run_ends_in_the_same_state(tmp_path, name, calls):
    """Killed in the second or third epoch of the first fine-tune, or in the second fine-tune; 4 batches and 2 of dev an epoch."""
    with pytest.raises(RuntimeError, match="died"):
        run_in_processes(killed, 1, str(tmp_path / "killed"), name, calls, start="forkserver")
    assert list(Path(tmp_path / "killed" / "cache").glob("train/*.work"))
    resumed = run(tmp_path / "killed", name)
    assert_same(resumed, run(tmp_path / "undisturbed", name))


def test_a_forgotten_key_does_not_fetch_fine_tuning(tmp_path):
    """A penalty of which no key speaks is called, and its weights are its own."""

    class Pull(Method):
        called = 0

        def penalty(self, learner, model, batch):
            Pull.called += 1
            return 100 * sum(p.square().sum() for p in model.parameters())

    learner = tiny_learner(tmp_path, scenario(), QUICK)
    plain = [stage.models[0].hash for stage in run_stages(learner, build_method("ft"), None)]
    pulled = [stage.models[0].hash for stage in run_stages(learner, Pull(), None)]
    assert Pull.called == 2 * 4 * QUICK.epochs and plain[1:] != pulled[1:]


def test_the_state_is_part_of_what_a_fine_tune_depends_on(tmp_path):
    learner = tiny_learner(tmp_path, scenario(), QUICK)
    hashes = set()
    for importance in (0.0, 1.0, 2.0):
        method = build_method("si", strength=10.0)
        values = {f"importance.{n}": torch.full_like(v, importance) for n, v in learner.initial.items()}
        anchors = {f"anchor.{n}": torch.zeros_like(v) for n, v in learner.initial.items()}
        method.load_state_dict({**values, **anchors})
        hashes.add(learner.fine_tune(learner.initial, learner.scenario.domains[1], method).hash)
    assert len(hashes) == 3


def test_fine_tunes_that_share_keep_no_state_on_disk(tmp_path):
    run(tmp_path, "ihr")
    run(tmp_path, "ewc")
    assert not list(tmp_path.glob("cache/train/*/method.safetensors"))
    run(tmp_path, "si")
    assert len(list(tmp_path.glob("cache/train/*/method.safetensors"))) == 2


def test_a_stored_state_that_does_not_fit(tmp_path):
    learner = tiny_learner(tmp_path, scenario(), QUICK)

    class Other(Counting):
        def load_state_dict(self, state):
            if "motion" not in state or state["motion"].ndim:
                raise InputError("method other: motion has the wrong shape")

    with pytest.raises(InputError, match="motion"):
        Other().load_state_dict({"motion": torch.zeros(2)})
    assert learner.fine_tune(learner.initial, learner.scenario.domains[1], Other())


def test_a_state_that_is_changed_in_place_is_kept_too(tmp_path):
    class Steps(Method):
        def __init__(self):
            self._steps = torch.tensor(0)

        def state_dict(self):
            return {"steps": self._steps}

        def load_state_dict(self, state):
            self._steps = state["steps"].clone()

        def after_step(self, learner, model):
            self._steps.add_(1)

    counts = []
    for _ in range(2):
        method = Steps()
        list(run_stages(tiny_learner(tmp_path, scenario(), QUICK), method, None))
        counts.append(int(method._steps))
    assert counts == [2 * 4 * QUICK.epochs] * 2


def test_the_stage_is_part_of_what_a_fine_tune_of_its_own_depends_on(tmp_path):
    """LoRA draws its factors from the stage."""
    learner, hashes = tiny_learner(tmp_path, scenario(), QUICK), []
    for stage in (2, 3):
        learner.enter(stage)
        hashes.append(learner.fine_tune(learner.initial, learner.scenario.domains[1], build_method("lora", rank=2)).hash)
    assert hashes[0] != hashes[1]


def test_a_run_knows_nothing_of_the_run_before(tmp_path):
    learner = tiny_learner(tmp_path, scenario(), QUICK)
    alone = [stage.record for stage in run_stages(tiny_learner(tmp_path, scenario(), QUICK), build_method("ft"), None)]
    list(run_stages(learner, build_method("ihr"), None))
    assert [stage.record for stage in run_stages(learner, build_method("ft"), None)] == alone
