"""What every method's training costs beside plain fine-tuning, in one run.

    python tools/bench_methods.py --out methods.json --markdown
    python tools/bench_methods.py --methods "kfac_ewc gpm lwf" --rounds 9 --markdown
    python tools/bench_methods.py --batches 2 --rounds 1 --markdown               (to try the benchmark itself)
    python tools/bench_methods.py --device cuda --markdown
    python tools/bench_methods.py --methods sam '+methods.sam={name: ft, run: {train: {adapt: {sam: 0.05}}}}' --markdown

The model, the task and the random utterances are those of tools/bench_training.py: the recogniser of recipes/accents, nothing to
download. Options are those of conf/method, with what conf/tuned has for that recipe. A method has taken in a first domain (a
curvature from 8 utterances, a memory, directions) and learns the second, as its `learn` says: of each of its fine-tunes one epoch
is timed, and counts as often as the fine-tune has epochs, against one epoch of plain fine-tuning just before it for every epoch
of the run. So a method that fine-tunes and then trains gates for three of eight epochs is at 1 and three eighths of the gates'
ratio. Methods that share plain fine-tuning's weights are at 1 by construction and not timed.

On a CPU the time is the processor's, so that other work on the machine hardly counts. The floor is the ratio of the operations
that `torch.utils.flop_counter` sees, which are products and convolutions: a method cannot be faster than that, but for
what it leaves out of the backward pass. "Before" is what `start_domain`, `wrap` and the rest of `learn` take once per domain
(singular values, eigenvectors), in epochs of plain fine-tuning of as many batches. Stored is the method's state after the first
domain, and of methods that keep something of every domain after the second, which for these includes the shared model; items of a
memory are not counted, for they lie with the data.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from bench_training import ITEMS, model_and_learner
from torch.utils.flop_counter import FlopCounterMode

from asrcl.adapt import CurvatureConfig, DomainLearner, TrainConfig, Trainer
from asrcl.adapt.costs import measured
from asrcl.adapt.environment import environment
from asrcl.adapt.parts import frozen_parts
from asrcl.contract.method import Method
from asrcl.contract.protocols import Domain
from asrcl.contract.weights import Weights
from asrcl.experiment.config import Config, load_config
from asrcl.experiment.run import configured_method
from asrcl.files import write_json
from asrcl.scoring.display import table as display
from asrcl.state import StateDict


@dataclass
class Spent:
    """What one learning of a domain took, in epochs of as many batches as there are.

    Attributes:
        seconds: of epochs, each fine-tune's times its epochs over those of the run.
        operations: floating-point operations likewise.
        timed: seconds of the epochs as they were run, which are not part of what comes before.
    """

    seconds: float = 0.0
    operations: float = 0.0
    timed: float = 0.0


@dataclass
class OneEpochLearner(DomainLearner):
    """A learner whose fine-tunes are one epoch, timed, nothing kept on disk and no dev loss."""

    spent: Spent = field(default_factory=Spent)
    counting: bool = False

    def fine_tune(
        self,
        parent: Any,
        domain: Domain,
        method: Method,
        epochs: int | None = None,
        learning_rate: float | None = None,
    ) -> Weights:
        """The weights after the first epoch."""
        train = replace(self.train, epochs=epochs or self.train.epochs, learning_rate=learning_rate or self.train.learning_rate)
        plain = self._trained_model(Weights.of(parent), method)
        with frozen_parts(plain, train.freeze, train.layer_rates):
            model = method.wrap(self, plain)
            run = Trainer(self, model, domain, train, method, self.cache.root / "unused")
            counter = FlopCounterMode(display=False)
            started = time.process_time()
            with measured(self.device) as found:
                if self.counting:
                    with counter:
                        run._train_epoch()
                else:
                    run._train_epoch()
            seconds = time.process_time() - started if self.device == "cpu" else found["seconds"]
            weights = Weights(method.unwrap(self, model))
        share = train.epochs / self.train.epochs
        self.spent.seconds += share * seconds
        self.spent.operations += share * counter.get_total_flops()
        self.spent.timed += seconds
        return weights


class Case:
    """A method after a first domain.

    Args:
        config: the configuration.
        name: of the method there.
        folder: for curvatures.
        batches: per epoch.
        device: "cpu" or "cuda".
    """

    def __init__(self, config: Config, name: str, folder: Path, batches: int, device: str) -> None:
        self.config, self.name = config, name
        own, method = configured_method(config, name)
        _, plain = model_and_learner(folder, batches, device)
        given = {one: getattr(plain, one) for one in ("scenario", "cache", "seed", "device", "stages", "tracking")}
        given["train"] = replace(own.settings(TrainConfig, "train", "adapt"), schedule="constant")
        given["curvature"] = replace(own.settings(CurvatureConfig, "curvature"), max_items=ITEMS)
        self.learner = OneEpochLearner(**given)
        self.learner.begin(3)
        self.learner.enter(1)
        method.start_run(self.learner)
        old = self.learner.scenario.domains[0]
        first = Weights.of(method.end_domain(self.learner, old, None, self.learner.initial))
        self.learner.leave(first)
        self.first, self.state = first, _copied(method.state_dict())
        self.stored = _size(self.state)

    def learn(self, counting: bool = False) -> tuple[Spent, float]:
        """Learn the second domain; what its epochs took, and the seconds of all else."""
        learner, (_, domain) = self.learner, self.learner.scenario.domains
        learner.spent, learner.counting = Spent(), counting
        _, method = configured_method(self.config, self.name)
        method.start_run(learner)
        if self.state:
            method.load_state_dict(_copied(self.state))
        learner.enter(2)
        clock = time.process_time if learner.device == "cpu" else time.perf_counter
        started = clock()
        method.start_domain(learner, domain)
        method.learn(learner, domain, self.first)
        before = clock() - started - learner.spent.timed
        if counting and not method.continues:
            self.stored = _size(method.state_dict())
        return learner.spent, before


def _copied(state: StateDict) -> StateDict:
    return {name: value.clone() for name, value in state.items()}


def _size(state: StateDict) -> int:
    return sum(value.nbytes for value in state.values())


def timed_methods(config: Config, wanted: Sequence[str]) -> list[str]:
    """Names of the configuration's methods that train in a way of their own and are no oracles; or those that are wanted."""
    found = []
    for name in () if wanted else config.tree["methods"]:
        own, method = configured_method(config, name)
        plain = method.trains_plainly and own.settings(TrainConfig, "train", "adapt").key().keys() == TrainConfig().key().keys()
        if not plain and method.role not in ("oracle", "initial"):
            found.append(name)
    return list(wanted) or found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All methods in all rounds, each right behind plain fine-tuning; the first round warms up and counts operations."""
    config = load_config([f"device={options.device}", *options.overrides])
    names = timed_methods(config, options.methods.split())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain = Case(config, "ft", Path(folder) / "ft", options.batches, options.device)
        cases = {name: Case(config, name, Path(folder) / name, options.batches, options.device) for name in names}
        operations = plain.learn(counting=True)[0].operations
        counted = {name: case.learn(counting=True)[0].operations for name, case in cases.items()}
        times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            for name, case in cases.items():
                reference = plain.learn()[0].seconds
                spent, before = case.learn()
                times[name].append((reference, spent.seconds, before))
        for name, found in times.items():
            rows.append(
                {
                    "method": name,
                    "ratios": [own / reference for reference, own, _ in found],
                    "floor": counted[name] / operations,
                    "before": statistics.median(before / reference for reference, _, before in found),
                    "stored_bytes": cases[name].stored,
                }
            )
    references = [reference for found in times.values() for reference, _, _ in found]
    return {
        "rows": sorted(rows, key=lambda row: statistics.median(row["ratios"])),
        "ms_per_step": 1000 * statistics.median(references) / options.batches,
        "model_bytes": _size(plain.first.state),
        "threads": torch.get_num_threads(),
        "environment": environment(options.device),
    }


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    columns = ("method", "x FT, median (min-max)", "floor, operations", "before, epochs of FT", "stored, MiB")
    rows = []
    for row in found["rows"]:
        ratios = row["ratios"]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        stored = f"{row['stored_bytes'] / 2**20:.1f}"
        rows.append([f"`{row['method']}`", spread, f"{row['floor']:.2f}", f"{row['before']:.2f}", stored])
    step = f"A step of FT: {found['ms_per_step']:.0f} ms; the model: {found['model_bytes'] / 2**20:.1f} MiB."
    return f"{display.markdown(display.plain(columns, rows))}\n{step}"


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    parser.add_argument("--methods", default="", help="names of the configuration; all that train in a way of their own")
    parser.add_argument("--batches", type=int, default=8, help="batches per epoch, of 8 utterances each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="a file for all numbers")
    parser.add_argument("--markdown", action="store_true", help="print a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options)
    if options.out:
        write_json(options.out, found | {"settings": {**vars(options), "out": str(options.out)}})
    if options.markdown:
        print(table(found))


if __name__ == "__main__":
    main()
