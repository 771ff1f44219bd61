"""What the training loop costs beside a bare PyTorch loop on the same model and batches, and what the hooks of methods add.

    python tools/bench_training.py --rounds 7 --out training.json --markdown
    python tools/bench_training.py --batches 3 --rounds 1 --markdown      (to try the benchmark itself)
    python tools/bench_training.py --device cuda --markdown
    python tools/bench_training.py --case images --markdown
    python tools/bench_training.py --case together --markdown

The model is that of recipes/accents (conformer_small) on random features of its shape, its task and its optimiser. Every
round times one epoch of each loop over the same batches, one after the other; a ratio is to the bare loop of the same round.
The bare loop does what cannot be left out: loss, backward, clipping, optimiser, gradients set to None. The floor is the
floating-point work of an epoch, counted by `torch.utils.flop_counter`, at the speed of a large matrix product on the same
device and threads. Memory is the peak of torch's tensors on a GPU, and on a CPU what a loop keeps beside the model: Adam's
moments, and what the method remembers.

`--case images` times whole fine-tunes of 20 epochs on permuted digits (a perceptron of 64-128-128-10, 1,000 images in batches of
32, Adam), as recipes/images runs hundreds of them: the trainer from its first batch to the averaged weights, against a bare loop
with the same arithmetic, the dev loss of every epoch and the weights of the best one. Both end in the same weights, to the bit.
`--case together` asks whether models for several orders or seeds are better trained side by side by `torch.func.vmap`, one
stacked model and one optimiser for all, than one after another.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from asrcl.adapt import Cache, CurvatureConfig, DomainLearner, Scenario, Tracking, TrackingConfig, TrainConfig, Trainer
from asrcl.adapt.costs import measured
from asrcl.adapt.environment import environment
from asrcl.adapt.training import seed_everything
from asrcl.contract.method import Method, build_method
from asrcl.contract.weights import Weights
from asrcl.files import write_json
from asrcl.images.data import load_images
from asrcl.images.domain import ImageDomain, permuted
from asrcl.images.models import build_classifier
from asrcl.images.task import ImageTask
from asrcl.methods import FineTuning
from asrcl.speech.domain import SpeechBatch
from asrcl.speech.model import ConformerASR
from asrcl.speech.task import RecognitionTask

FEATURES, VOCABULARY, ITEMS, LEARNING_RATE = 80, 120, 8, 1e-4
SMALL = {"width": 96, "heads": 4, "encoder_layers": 4, "decoder_layers": 1, "feed_forward": 384, "kernel": 15}


class Letters:
    """As much of a tokeniser as a loss needs."""

    fingerprint = "letters"


class RandomSpeech:
    """A domain of random utterances of 1.5 to 3 seconds in batches that are always the same."""

    def __init__(self, name: str, batches: int, seed: int) -> None:
        self.name, generator = name, random.Random(seed)
        self._batches = [self._batch(generator, number) for number in range(batches)]

    def _batch(self, generator: random.Random, number: int) -> SpeechBatch:
        lengths = torch.tensor([generator.randrange(150, 300) for _ in range(ITEMS)])
        tokens = torch.randint(3, VOCABULARY, (ITEMS, 20), generator=torch.Generator().manual_seed(number))
        features = torch.randn(ITEMS, int(lengths.max()), FEATURES, generator=torch.Generator().manual_seed(number))
        ids = tuple(f"{self.name}{number}-{i}" for i in range(ITEMS))
        return SpeechBatch(ids, ids, ("",) * ITEMS, features, lengths, tokens, torch.full((ITEMS,), 20), self.name)

    def batches(self, split: str, *, shuffle: bool, seed: int) -> Iterable[SpeechBatch]:
        """All batches, in their order."""
        return iter(self._batches)

    def item(self, split: str, position: int) -> SpeechBatch:
        """One utterance."""
        return list(self._batches[position // ITEMS].items())[position % ITEMS]

    def size(self, split: str) -> int:
        """Number of utterances."""
        return ITEMS * len(self._batches)

    def fingerprint(self, split: str) -> str:
        """The name: nothing is kept that depends on it."""
        return self.name


def model_and_learner(folder: Path, batches: int, device: str) -> tuple[Callable[[], nn.Module], DomainLearner]:
    """What builds the model, and a learner in its second stage, the first domain's importance being known to its methods."""
    build = partial(ConformerASR, FEATURES, VOCABULARY, **SMALL)
    torch.manual_seed(0)
    initial = Weights(build().state_dict())
    task = RecognitionTask(Letters())  # type: ignore[arg-type] - a loss needs no more of it
    domains = [RandomSpeech("old", batches, 0), RandomSpeech("new", batches, 1)]
    scenario = Scenario("benchmark", domains, task, build, initial)
    tracking = Tracking(TrackingConfig(backends=()), folder)
    train, curvature = TrainConfig(learning_rate=LEARNING_RATE), CurvatureConfig(max_items=ITEMS)
    learner = DomainLearner(scenario, Cache(folder), train, curvature, 1, device, stages=3, tracking=tracking)
    return lambda: build().to(device), learner


def bare_epoch(model: nn.Module, learner: DomainLearner, optimizer: torch.optim.Optimizer) -> None:
    """The loop that everybody writes."""
    model.train()
    for batch in learner.scenario.domains[1].batches("train", shuffle=True, seed=0):
        loss = learner.task.loss(model, batch.to(learner.device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def loops(folder: Path, batches: int, device: str) -> dict[str, Callable[[], object]]:
    """The epochs to compare, each on a model of its own."""
    build, learner = model_and_learner(folder, batches, device)
    model = build()
    model.load_state_dict(learner.initial.state)
    bare = partial(bare_epoch, model, learner, torch.optim.Adam(model.parameters(), lr=LEARNING_RATE))
    found: dict[str, Callable[[], object]] = {"bare PyTorch": bare}
    for name, method in (("Trainer, ft", FineTuning()), ("ewc", build_method("ewc")), ("si", si(learner))):
        found[name] = trainer(folder / name, build(), learner, method)._train_epoch
    return found


def si(learner: DomainLearner) -> Method:
    """Synaptic intelligence as it is from the third domain on, with a penalty."""
    method = build_method("si")
    names = [name for name, _ in learner.scenario.build_model().named_parameters()]
    importance = {f"importance.{name}": torch.ones_like(learner.initial[name]) for name in names}
    method.load_state_dict(importance | {f"anchor.{name}": learner.initial[name].clone() for name in names})
    return method


def trainer(folder: Path, model: nn.Module, learner: DomainLearner, method: Method) -> Trainer:
    """A trainer in the second stage, its method ready."""
    old, new = learner.scenario.domains
    learner.enter(1)
    method.end_domain(learner, old, None, learner.initial)
    learner.enter(2)
    method.start_domain(learner, new)
    model.load_state_dict(learner.initial.state)
    return Trainer(learner, method.wrap(learner, model), new, learner.train, method, folder)


def matrix_speed(device: str) -> float:
    """FLOP/s of a product of 1024 x 1024 matrices in single precision, the best of some."""
    A, B = torch.randn(2, 1024, 1024, device=device)
    best = 0.0
    for _ in range(20):
        _wait(device)
        start = time.perf_counter()
        A @ B
        _wait(device)
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All loops in all rounds; the first round of each warms up and does not count."""
    with tempfile.TemporaryDirectory() as folder:
        found = loops(Path(folder), options.batches, options.device)
        counter = FlopCounterMode(display=False)
        with counter:
            found["bare PyTorch"]()
        seconds: dict[str, list[float]] = {name: [] for name in found}
        memory = dict.fromkeys(found, 0.0)
        for number in range(options.rounds + 1):
            for name, epoch in found.items():
                _wait(options.device)
                with measured(options.device) as spent:
                    epoch()
                if number:
                    seconds[name].append(spent["seconds"])
                    memory[name] = max(memory[name], spent.get("gpu_peak_memory_bytes", 0.0))
        floor = counter.get_total_flops() / matrix_speed(options.device)
        kept = {name: _kept_bytes(epoch) for name, epoch in found.items()}
    rows = [
        {
            "loop": name,
            "ms_per_step": 1000 * statistics.median(times) / options.batches,
            "ratios": [own / bare for own, bare in zip(times, seconds["bare PyTorch"], strict=True)],
            "bytes": memory[name] or kept[name],
        }
        for name, times in seconds.items()
    ]
    return {
        "rows": rows,
        "floor_ms_per_step": 1000 * floor / options.batches,
        "threads": torch.get_num_threads(),
        "settings": vars(options),
        "environment": environment(options.device),
    }


def digits(kind: int) -> ImageDomain:
    """Scikit-learn's digits with their pixels permuted."""
    splits = load_images({"kind": "digits"}, None)
    return ImageDomain(f"permuted{kind}", {name: permuted(images, kind) for name, images in splits.items()})


def perceptron() -> nn.Module:
    """The model of the image recipe."""
    return build_classifier({"kind": "mlp"}, (1, 8, 8), {"": 10})


def bare_fine_tune(initial: Weights, domain: ImageDomain, epochs: int, seed: int) -> dict[str, torch.Tensor]:
    """What everybody writes: epochs in an order of their own, the weights of the epoch with the lowest dev loss."""
    model = perceptron()
    model.load_state_dict(initial.state)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train, dev = (domain._split(name) for name in ("train", "dev"))
    best, kept = float("inf"), model.state_dict()
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed_everything(seed, epoch))
        model.train()
        for chosen in torch.randperm(len(train), generator=generator).split(domain.batch_size):
            loss = nn.functional.cross_entropy(model(train.pixels[chosen], ""), train.labels[chosen])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        model.eval()
        with torch.no_grad():
            parts = torch.arange(len(dev)).split(8 * domain.batch_size)
            losses = [nn.functional.cross_entropy(model(dev.pixels[part], ""), dev.labels[part]) * len(part) for part in parts]
        if (total := sum(float(loss) for loss in losses)) < best:
            best, kept = total, {name: value.clone() for name, value in model.state_dict().items()}
    return kept


def image_learner(folder: Path, domain: ImageDomain, epochs: int) -> DomainLearner:
    """A learner of one domain with the settings of the image recipe."""
    torch.manual_seed(0)
    initial = Weights(perceptron().state_dict())
    scenario = Scenario("benchmark", [domain], ImageTask({domain.name: domain.classes}), perceptron, initial)
    train = TrainConfig(epochs=epochs, learning_rate=1e-3, gradient_clip=0.0, average_best=1)
    return DomainLearner(scenario, Cache(folder), train, CurvatureConfig(), 1, tracking=Tracking(TrackingConfig(()), folder))


def measure_images(options: argparse.Namespace) -> dict[str, Any]:
    """Whole fine-tunes of the trainer and of a bare loop, which must end in the same weights."""
    domain, seconds = digits(1), dict[str, list[float]]()
    with tempfile.TemporaryDirectory() as folder:
        learner = image_learner(Path(folder), domain, options.epochs)

        def trained() -> dict[str, torch.Tensor]:
            model = perceptron()
            model.load_state_dict(learner.initial.state)
            return Trainer(learner, model, domain, learner.train, FineTuning(), Path(folder) / "work").fit()

        loops = {"bare PyTorch": partial(bare_fine_tune, learner.initial, domain, options.epochs, 1), "Trainer, ft": trained}
        for number in range(options.rounds + 1):
            for name, fine_tune in loops.items():
                start = time.perf_counter()
                final = fine_tune()
                if number:
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
                elif name == "bare PyTorch":
                    expected = final
                elif not all(torch.equal(value, expected[key]) for key, value in final.items()):
                    raise SystemExit("the two loops end in different weights, so that their times cannot be compared")
    return _ratios(options, seconds, options.epochs * -(-domain.size("train") // domain.batch_size), "bare PyTorch")


def measure_together(options: argparse.Namespace) -> dict[str, Any]:
    """Several models for as many orders: one after another, and stacked in one by `torch.func.vmap`, with the same optimiser."""
    from torch.func import functional_call, grad, stack_module_state, vmap

    seconds, models = dict[str, list[float]](), options.models
    domains = [digits(kind) for kind in range(models)]
    pixels, labels = (torch.stack([getattr(d._split("train"), name) for d in domains]) for name in ("pixels", "labels"))
    batch, template = domains[0].batch_size, perceptron()

    def loss(parameters: dict[str, torch.Tensor], images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(template, parameters, (images, "")), targets)

    def alone() -> None:
        for number in range(models):
            model = perceptron()
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            for _ in range(options.epochs):
                for chosen in torch.randperm(pixels.shape[1]).split(batch):
                    nn.functional.cross_entropy(model(pixels[number, chosen], ""), labels[number, chosen]).backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)

    def together() -> None:
        parameters, _ = stack_module_state([perceptron() for _ in range(models)])
        gradients = vmap(grad(loss))
        optimizer = torch.optim.Adam(parameters.values(), lr=1e-3)
        rows = torch.arange(models)[:, None]
        for _ in range(options.epochs):
            orders = torch.stack([torch.randperm(pixels.shape[1]) for _ in range(models)])
            for chosen in orders.split(batch, dim=1):
                found = gradients({k: v.detach() for k, v in parameters.items()}, pixels[rows, chosen], labels[rows, chosen])
                for name, value in parameters.items():
                    value.grad = found[name]
                optimizer.step()

    for number in range(options.rounds + 1):
        for name, loop in ((f"{models} models, one after another", alone), (f"{models} models by vmap", together)):
            start = time.perf_counter()
            loop()
            if number:
                seconds.setdefault(name, []).append(time.perf_counter() - start)
    return _ratios(options, seconds, options.epochs * -(-pixels.shape[1] // batch), f"{models} models, one after another")


def _ratios(options: argparse.Namespace, seconds: dict[str, list[float]], steps: int, to: str) -> dict[str, Any]:
    rows = [
        {
            "loop": name,
            "ms_per_step": 1000 * statistics.median(times) / steps,
            "ratios": [own / other for own, other in zip(times, seconds[to], strict=True)],
        }
        for name, times in seconds.items()
    ]
    settings = {"threads": torch.get_num_threads(), "settings": vars(options), "environment": environment(options.device)}
    return {"rows": rows, **settings}


def _kept_bytes(epoch: Any) -> float:
    """Bytes of the optimiser's state, and of the method's where a trainer has one."""
    run = getattr(epoch, "__self__", None)
    optimizer = run.optimizer if run else epoch.args[2]
    tensors = [value for slot in optimizer.state.values() for value in slot.values()]
    return float(sum(value.nbytes for value in [*tensors, *(run.method.state_dict().values() if run else ())]))


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    columns = ("loop", "ratio median (min-max)", "ms per step", "MiB kept, or at the peak of a GPU")
    lines = [f"| {' | '.join(columns)} |", "| --- | ---: | ---: | ---: |"]
    for row in found["rows"]:
        ratios = row["ratios"]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        kept = f"{row['bytes'] / 2**20:.0f}" if "bytes" in row else ""
        digits = 1 if "bytes" in row else 3
        lines.append(f"| {row['loop']} | {spread} | {row['ms_per_step']:.{digits}f} | {kept} |")
    if "floor_ms_per_step" not in found:
        return "\n".join(lines)
    lines.append(f"| floor: its FLOPs at the speed of a large product | | {found['floor_ms_per_step']:.1f} | |")
    return "\n".join(lines)


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="speech", choices=["speech", "images", "together"])
    parser.add_argument("--epochs", type=int, default=20, help="of a fine-tune on images")
    parser.add_argument("--models", type=int, default=5, help="that are trained together")
    parser.add_argument("--batches", type=int, default=30, help="batches per epoch, of 8 utterances each")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="a file for all numbers")
    parser.add_argument("--markdown", action="store_true", help="print a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {"speech": measure, "images": measure_images, "together": measure_together}[options.case](options)
    if options.out:
        write_json(options.out, found | {"settings": {**vars(options), "out": str(options.out)}})
    if options.markdown:
        print(table(found))


if __name__ == "__main__":
    main()
