import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import pytest
import torch
from adapt_cases import CountingTask, equal_states, largest_difference, learner_on
from adapt_processes import StopTraining
from torch import nn

from asrcl.adapt import TrainConfig, Trainer, average_states, load_weights, state_of, training
from asrcl.adapt.training import _Losses, learning_rate, seed_everything
from asrcl.exceptions import InputError
from asrcl.methods import Method
from asrcl.testing import ClassificationTask, VectorDomain, blob_domain, build_mlp

QUICK = TrainConfig(epochs=4, learning_rate=0.02, average_best=2)


def trainer(folder, config=QUICK, *, domain=None, task=None, method=None, seed=0, dropout=0.0):
    torch.manual_seed(7)
    model = build_mlp(dropout=dropout)
    domain = domain or blob_domain("blobs")
    return Trainer(learner_on(domain, task, config, folder, seed), model, domain, config, method or Method(), folder)


# --- schedules


def test_constant_rate():
    assert {learning_rate(TrainConfig(learning_rate=0.1), done, 5) for done in (0.0, 0.3, 1.0)} == {0.1}


@pytest.mark.parametrize("done, share", [(0, 1e-3), (0.1, 0.5), (0.2, 1), (0.6, 0.5), (1, 0)])
def test_one_cycle_rate(done, share):
    config = TrainConfig(learning_rate=0.4, schedule="one_cycle", warmup=0.2)
    assert learning_rate(config, done, 1) == pytest.approx(0.4 * share, abs=1e-12)


def test_one_cycle_without_warmup_starts_at_the_peak():
    assert learning_rate(TrainConfig(learning_rate=0.4, schedule="one_cycle", warmup=0), 0, 1) == 0.4


def test_noam_rate():
    config = TrainConfig(learning_rate=2.0, schedule="noam", warmup_steps=100, model_size=64)
    rates = [learning_rate(config, 0, step) for step in range(1, 401)]
    assert rates.index(max(rates)) + 1 == 100
    assert rates[99] == pytest.approx(2 / 8 / 10)
    assert rates[49] == pytest.approx(rates[99] / 2)
    assert rates[399] == pytest.approx(rates[99] / 2)


@pytest.mark.parametrize("epochs", [4, 20])
def test_exponential_rate_falls_alike_with_every_epoch_however_many_there_are(epochs):
    config = TrainConfig(epochs=epochs, learning_rate=0.4, schedule="exponential", decay=0.9)
    rates = [learning_rate(config, epoch / epochs, 1) for epoch in range(epochs + 1)]
    assert rates == pytest.approx([0.4 * 0.9**epoch for epoch in range(epochs + 1)])


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.1])
def test_decay_outside_of_its_range(decay):
    with pytest.raises(InputError, match=rf"train\.decay={decay}: what an epoch multiplies"):
        TrainConfig(schedule="exponential", decay=decay)


def test_rates_that_a_run_takes(tmp_path):
    rates = []

    class Recorder(Method):
        def after_backward(self, learner, model):
            rates.append(run.optimizer.param_groups[0]["lr"])

    config = TrainConfig(epochs=2, learning_rate=0.4, schedule="one_cycle", warmup=0.25, average_best=1)
    run = trainer(tmp_path, config, method=Recorder())
    run.fit()
    shares = [step / 8 for step in range(1, 9)]  # 64 items, 16 per batch, 2 epochs
    assert rates == pytest.approx([learning_rate(config, share, 1) for share in shares])
    assert rates[1] == pytest.approx(0.4) and rates[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "name, value",
    [
        ("epochs", 0),
        ("accumulate", 0),
        ("average_best", 0),
        ("learning_rate", 0.0),
        ("optimizer", "rmsprop"),
        ("schedule", "cosine"),
        ("precision", "fp16"),
    ],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(InputError, match=name):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("schedule, warmup", [("one_cycle", 1.0), ("one_cycle", -0.1), ("noam", 25000)])
def test_warmup_that_does_not_fit_its_schedule(schedule, warmup):
    with pytest.raises(InputError, match="warmup"):
        TrainConfig(schedule=schedule, warmup=warmup)


# --- the loop


def test_training_learns(tmp_path):
    run = trainer(tmp_path, replace(QUICK, epochs=8))
    state = run.fit()
    losses = [epoch["dev_loss"] for epoch in run.progress.history]
    assert losses[-1] < 0.5 * losses[0]
    run.model.load_state_dict(state)
    assert ClassificationTask().evaluate(run.model, blob_domain("blobs"), "test").rate < 25


def test_seed_decides_and_nothing_else_does(tmp_path):
    first = trainer(tmp_path / "1", dropout=0.3).fit()
    torch.rand(11)
    again = trainer(tmp_path / "2", dropout=0.3).fit()
    other = trainer(tmp_path / "3", dropout=0.3, seed=1).fit()
    assert equal_states(first, again)
    assert not equal_states(first, other)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("done", [1, 3])
def test_resumed_training_is_bit_equal(tmp_path, done, optimizer):
    config = replace(QUICK, schedule="one_cycle", weight_decay=0.1, optimizer=optimizer)
    whole = trainer(tmp_path / "whole", config, dropout=0.3)
    expected = whole.fit()

    class Stopping(ClassificationTask):
        def evaluate(self, model, domain, split):
            raise AssertionError("training does not evaluate")

        def loss(self, model, batch):
            if part.progress.epoch == done and model.training:
                raise StopTraining
            return super().loss(model, batch)

    part = trainer(tmp_path / "part", config, task=Stopping(), dropout=0.3)
    with pytest.raises(StopTraining):
        part.fit()
    task = CountingTask()
    resumed = trainer(tmp_path / "part", config, task=task, dropout=0.3)
    assert equal_states(resumed.fit(), expected)
    assert equal_states(state_of(resumed.model), state_of(whole.model))
    assert task.calls["training"] == 4 * (config.epochs - done)
    assert [e["dev_loss"] for e in resumed.progress.history] == [e["dev_loss"] for e in whole.progress.history]


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["progress004.safetensors", "progress.json", "epoch004.safetensors"])
@pytest.mark.parametrize("damage", [flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"torn")])
def test_damaged_progress_is_not_gone_on_from(tmp_path, caplog, name, damage):
    """Training begins again, with one line that names the file."""
    expected = trainer(tmp_path).fit()
    damage(tmp_path / name)
    task = CountingTask()
    assert equal_states(trainer(tmp_path, task=task).fit(), expected)
    assert task.calls["training"] == 4 * QUICK.epochs
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == 1 and name in lines[0] and str(tmp_path) in lines[0]
    assert trainer(tmp_path, task=task).fit() and task.calls["training"] == 4 * QUICK.epochs  # sound from now on


def test_progress_of_an_older_version_is_not_gone_on_from(tmp_path, caplog):
    expected = trainer(tmp_path / "new").fit()
    tmp_path.joinpath("old").mkdir()
    tmp_path.joinpath("old", "progress.safetensors").write_bytes(b"of a version that kept no hashes")
    assert equal_states(trainer(tmp_path / "old").fit(), expected)
    assert "progress.json is missing" in caplog.text
    assert not (tmp_path / "old" / "progress.safetensors").exists()


class Threads:
    """As many threads as there may be in another run."""

    def __enter__(self):
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.before + 1)

    def __exit__(self, *_):
        torch.set_num_threads(self.before)


@pytest.mark.parametrize(
    "other", [{"config": replace(QUICK, accumulate=2)}, {"seed": 1}, {"domain": blob_domain("blobs", 3)}, {"threads": Threads}],
    ids=["accumulate", "seed", "data", "threads"],
)  # fmt: skip
def test_progress_of_other_training_is_not_gone_on_from(tmp_path, caplog, other):
    trainer(tmp_path).fit()
    threads = other.pop("threads", None)
    with threads() if threads else nullcontext():
        found, expected = trainer(tmp_path, **other).fit(), trainer(tmp_path / "alone", **other).fit()
    assert equal_states(found, expected)
    assert "begun otherwise" in caplog.text


def test_accumulated_batches_equal_one_bigger_batch(tmp_path):
    data = blob_domain("blobs", sizes={"train": 64, "dev": 16, "test": 8}, batch_size=16)
    halves = blob_domain("blobs", sizes={"train": 64, "dev": 16, "test": 8}, batch_size=8)
    big = trainer(tmp_path / "big", QUICK, domain=data)
    small = trainer(tmp_path / "small", replace(QUICK, accumulate=2), domain=halves)
    assert largest_difference(big.fit(), small.fit()) < 1e-5
    assert big.progress.steps == small.progress.steps == 16


def gradients_and_batches(folder, items, accumulate, batch_size, penalty):
    """What the optimiser saw in every step of an epoch, the weights it saw it at, and the batches of the epoch."""
    steps, batches = [], []

    class Spy(Method):
        def penalty(self, learner, model, batch):
            return penalty * sum(p.square().sum() for p in model.parameters()) if penalty else None

        def after_backward(self, learner, model):
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
            steps.append((gradient.clone(), [p.detach().clone() for p in model.parameters()]))

    class Watching(ClassificationTask):
        def loss(self, model, batch):
            batches.extend([batch] if model.training else [])
            return super().loss(model, batch)

    sizes = {"train": items, "dev": 8, "test": 8}
    domain = blob_domain("blobs", sizes=sizes, batch_size=batch_size)
    config = replace(QUICK, epochs=1, accumulate=accumulate, gradient_clip=0, average_best=1)
    run = trainer(folder, config, domain=domain, method=Spy(), task=Watching())
    run.fit()
    assert run.progress.steps == len(steps) == math.ceil(math.ceil(items / batch_size) / accumulate)
    return steps, batches


@pytest.mark.parametrize("penalty", [0.0, 0.1])
@pytest.mark.parametrize("items, batch_size", [(64, 16), (65, 16), (33, 8), (40, 16), (7, 16)])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 4])
def test_a_step_takes_the_mean_over_its_items(tmp_path, items, batch_size, accumulate, penalty):
    """Whatever the sizes of its batches are, and however many are left over at the end of the epoch."""
    steps, batches = gradients_and_batches(tmp_path, items, accumulate, batch_size, penalty)
    model = build_mlp()
    for number, (gradient, weights) in enumerate(steps):
        chosen = batches[number * accumulate : (number + 1) * accumulate]
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), weights, strict=True):
                parameter.copy_(value)
        model.zero_grad()
        inputs, labels = torch.cat([b.inputs for b in chosen]), torch.cat([b.labels for b in chosen])
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        (loss + penalty * sum(p.square().sum() for p in model.parameters())).backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("items, fits", [(64, True), (66, True), (65, False)])
def test_one_item_under_batch_normalisation(tmp_path, items, fits):
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    domain = blob_domain("blobs", sizes={"train": items, "dev": 8, "test": 8})
    run = Trainer(learner_on(domain, folder=tmp_path), model, domain, QUICK, Method(), tmp_path)
    if fits:
        assert run.fit()
    else:
        with pytest.raises(InputError, match=r"blobs: batch 5 \(g\d+-train\d+\) of epoch 1 is too small.*batch size"):
            run.fit()


def test_other_errors_of_a_model_are_not_taken_for_that(tmp_path):
    class Wrong(ClassificationTask):
        def loss(self, model, batch):
            raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        trainer(tmp_path, task=Wrong()).fit()


def test_gradients_are_clipped_after_the_hook(tmp_path):
    before, after = [], []

    class Watch(Method):
        def after_backward(self, learner, model):
            before.append(norm(model))
            step = run.optimizer.step
            run.optimizer.step = lambda: (after.append(norm(model)), step())

    def norm(model):
        return math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))

    run = trainer(tmp_path, replace(QUICK, epochs=1, gradient_clip=0.01), method=Watch())
    run.fit()
    assert min(before) > 0.02
    assert after[0] == pytest.approx(0.01, rel=1e-3)


def test_penalty_is_added_to_the_loss(tmp_path):
    class Pull(Method):
        def penalty(self, learner, model, batch):
            return 1e4 * sum(p.square().sum() for p in model.parameters())

    pulled = trainer(tmp_path / "pulled", method=Pull())
    free = trainer(tmp_path / "free")
    sizes = [sum(float(v.square().sum()) for v in run.fit().values()) for run in (pulled, free)]
    assert sizes[0] < 0.2 * sizes[1]
    assert pulled.progress.history[0]["train_loss"] < 10  # the penalty is not part of the reported loss


@dataclass
class ScriptedDevLoss(ClassificationTask):
    """Dev losses are given, epoch by epoch (the dev split is one batch)."""

    losses: list[float] = field(default_factory=list)

    def loss(self, model, batch):
        return super().loss(model, batch) if model.training else torch.tensor(self.losses.pop(0))


def test_best_epochs_are_averaged(tmp_path):
    domain = blob_domain("blobs", batch_size=32)
    losses = [0.5, 0.1, 0.9, 0.3, 0.4]
    run = trainer(tmp_path, replace(QUICK, epochs=5), task=ScriptedDevLoss(losses=losses), domain=domain)
    state = run.fit()
    assert run.progress.best(2) == [2, 4]
    kept = sorted(tmp_path.glob("epoch*.safetensors"))
    assert [path.name for path in kept] == ["epoch002.safetensors", "epoch004.safetensors"]
    second, fourth = map(load_weights, kept)
    assert equal_states(state, average_states([second, fourth]))
    assert largest_difference(state, {name: (second[name] + fourth[name]) / 2 for name in state}) < 1e-7


def test_average_of_one_is_the_best_epoch(tmp_path):
    task = ScriptedDevLoss(losses=[0.5, 0.1, 0.9, 0.3])
    state = trainer(tmp_path, replace(QUICK, average_best=1), task=task, domain=blob_domain("blobs", batch_size=32)).fit()
    assert equal_states(state, load_weights(tmp_path / "epoch002.safetensors"))


def test_average_keeps_counters_of_the_last_state():
    states = [{"w": torch.tensor([float(n)]), "steps": torch.tensor(n)} for n in (1, 3, 5)]
    assert equal_states(average_states(states), {"w": torch.tensor([3.0]), "steps": torch.tensor(5)})


@dataclass
class Exploding(ClassificationTask):
    """The loss is not finite from the n-th training batch on, or for every dev batch."""

    healthy: int = 0
    dev: float | None = None

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        if not model.training:
            return loss if self.dev is None else loss * self.dev
        self.healthy -= 1
        return loss if self.healthy >= 0 else loss * math.nan


def test_short_epochs_are_kept_in_memory_and_end_in_the_same_weights(tmp_path, monkeypatch, caplog):
    expected = trainer(tmp_path / "written").fit()
    monkeypatch.setattr(training, "SAVE_SECONDS", 60.0)
    with caplog.at_level("INFO"):
        assert equal_states(trainer(tmp_path / "kept").fit(), expected)
    assert not (tmp_path / "kept").exists() and "epoch 1/" not in caplog.text
    monkeypatch.setattr(training, "LOG_SECONDS", 0.0)
    with caplog.at_level("INFO"), pytest.raises(InputError) as caught:
        trainer(tmp_path / "kept", task=Exploding(healthy=2 * 4 + 1)).fit()
    assert "epoch 1/" in caplog.text and "keeps earlier epochs" not in str(caught.value)


def test_loss_that_is_not_finite(tmp_path):
    with pytest.raises(InputError) as caught:
        trainer(tmp_path, task=Exploding(healthy=2 * 4 + 1)).fit()
    message = str(caught.value)
    assert "blobs: loss is nan in epoch 3 after 9 steps at batch 2 (g" in message
    assert "learning_rate" in message and "\n" not in message
    assert sorted(path.name for path in tmp_path.glob("epoch*")) == ["epoch001.safetensors", "epoch002.safetensors"]
    healthy = trainer(tmp_path)
    assert equal_states(healthy.fit(), trainer(tmp_path / "other").fit())


def test_dev_loss_that_is_not_finite(tmp_path):
    with pytest.raises(InputError, match="blobs: dev loss is inf in epoch 1"):
        trainer(tmp_path, task=Exploding(healthy=1000, dev=math.inf)).fit()
    assert not list(tmp_path.glob("epoch*"))


@pytest.mark.parametrize("missing", ["train", "dev"])
def test_domain_without_a_split(tmp_path, missing):
    whole = blob_domain("half")
    splits = {split: next(iter(whole.batches(split, shuffle=False, seed=0))) for split in ("train", "dev") if split != missing}
    domain = VectorDomain("half", {split: (batch.inputs, batch.labels) for split, batch in splits.items()})
    with pytest.raises(InputError, match=f"half: no {missing} items"):
        trainer(tmp_path, domain=domain).fit()


def test_mixed_precision_on_the_cpu(tmp_path):
    seen = set()

    class Watching(ClassificationTask):
        def loss(self, model, batch):
            loss = super().loss(model, batch)
            seen.add((model.training, model(batch.inputs).dtype))
            return loss

    mixed = trainer(tmp_path / "mixed", replace(QUICK, precision="bf16"), task=Watching()).fit()
    full = trainer(tmp_path / "full").fit()
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert all(value.dtype == torch.float32 for value in mixed.values())
    assert 0 < largest_difference(mixed, full) < 0.1


def test_progress_bar_and_tensorboard_stay_out_of_the_way(tmp_path, capsys):
    trainer(tmp_path).fit()
    captured = capsys.readouterr()
    assert captured.out == "" and "epoch" not in captured.err


# --- optimisers, schedules, losses that wait


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torch_s(tmp_path, momentum):
    """One epoch of the loop against a bare one, to the bit."""
    config = TrainConfig(epochs=1, optimizer="sgd", learning_rate=0.05, momentum=momentum, average_best=1, gradient_clip=0)
    run = trainer(tmp_path, config)
    bare = build_mlp()
    bare.load_state_dict(run.model.state_dict())
    optimizer = torch.optim.SGD(bare.parameters(), 0.05, momentum)
    seed = seed_everything(0, 0)
    for batch in blob_domain("blobs").batches("train", shuffle=True, seed=seed):
        optimizer.zero_grad()
        ClassificationTask().loss(bare, batch).backward()
        optimizer.step()
    assert equal_states(run.fit(), bare.state_dict())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_resumed_sgd_is_bit_equal(tmp_path, momentum):
    config = replace(QUICK, optimizer="sgd", momentum=momentum)
    expected = trainer(tmp_path / "whole", config, dropout=0.3).fit()
    first = trainer(tmp_path / "part", config, dropout=0.3)
    original = first._train_epoch

    def two_epochs():
        if first.progress.epoch == 2:
            raise StopTraining
        return original()

    first._train_epoch = two_epochs
    with pytest.raises(StopTraining):
        first.fit()
    assert equal_states(trainer(tmp_path / "part", config, dropout=0.3).fit(), expected)


@pytest.mark.parametrize("done, share", [(0, 1e-3), (0.1, 0.5), (0.2, 1), (0.6, 0.5), (1, 0)])
def test_linear_rate(done, share):
    config = TrainConfig(learning_rate=0.4, schedule="linear", warmup=0.2)
    assert learning_rate(config, done, 1) == pytest.approx(0.4 * share, abs=1e-12)


@pytest.mark.parametrize(
    "options, name",
    [({"momentum": 0.9}, "momentum"), ({"optimizer": "sgd", "momentum": 1.0}, "momentum"), ({"warmup_steps": 0}, "warmup_steps")],
)
def test_settings_of_one_optimiser_or_schedule(options, name):
    with pytest.raises(InputError, match=name):
        TrainConfig(**options)


class Refused(Exception):  # noqa: N818 - raised by a stub
    pass


@pytest.mark.parametrize("every", [1, 2, 3, 100])
def test_losses_that_wait_add_up_alike_and_name_the_batch_that_was_wrong(every):
    """On an accelerator losses are looked at when some have gathered; sums and messages are those of looking at each."""

    def refuse(value, steps, where):
        raise Refused(f"{value} {steps}{where}")

    batch = next(iter(blob_domain("blobs").batches("train", shuffle=False, seed=0)))
    values = torch.rand(7, generator=torch.Generator().manual_seed(0))
    losses = _Losses(every, refuse)
    for number, value in enumerate(values, 1):
        losses.add(value, number, number - 1, batch, number)
    losses.look()
    expected = 0.0
    for number, value in enumerate(values, 1):
        expected += value.item() * number
    assert (losses.total, losses.items) == (expected, 28)
    with pytest.raises(Refused, match=r"nan 2 at batch 3 \(g000-train0000"):
        for number in range(1, 5):
            losses.add(torch.tensor(math.nan if number == 3 else 1.0), 1, number - 1, batch, number)
        losses.look()
