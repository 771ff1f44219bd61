"""A callback of Transformers' Trainer: curvature before training, a merge after it, the domains to keep measured on the way."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from asrcl.curvature import Curvature, EstimateOptions, estimate
from asrcl.exceptions import InputError
from asrcl.hf.figures import Figures, metrics_of
from asrcl.merge import MergeSpec, merge
from asrcl.merge.containers import Source, load_state
from asrcl.merge.registry import find_method

logger = logging.getLogger(__name__)
BEFORE, TUNED, MERGED = "before", "fine-tuned", "merged"
ENOUGH: Final = 128
"""Items of old data by default."""
SHOWN: Final = 4  # names in a line of the log
Keep = Mapping[str, Any] | Callable[[nn.Module], Mapping[str, float]]


def batch_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss that the model computes of a batch with labels, a mean over its items or their tokens."""
    return model(**batch).loss


class AdaptationCallback(TrainerCallback):
    """Merges what a Trainer has trained with the model that it began with, so that the old domains are not forgotten.

    When training begins, the weights are copied to the CPU, the curvature of the loss on old data is estimated, and the domains
    to keep are evaluated. When it ends, after the best checkpoint was loaded where `load_best_model_at_end` asks for that, the
    domains are evaluated again, old and new weights are merged in place, and the merged model is evaluated. Nothing is drawn
    from the generators that training uses, so that training is the same to the bit as without the callback.

    Args:
        trainer: the one that the callback is added to; its data collator makes the batches, and its `evaluate` measures.
        old_data: data of the old domain: a dataset like those of the trainer, or a loader of batches. None where `curvature` is
            a file that is there, or the method needs none.
        method: of merging, by name (`asrcl methods`) or as a `MergeSpec`.
        keep: the domains to measure: datasets by name, for the trainer's `evaluate`; or a function that gives numbers by name
            for a model.
        loss_fn: `loss_fn(model, batch)`, the mean over the items of a batch; by default the model's own.
        options: of the estimate; by default 128 items (`max_items`) and parameters without gradients left out.
        curvature: of the old domain at the old model; a file that is not there yet is written.
        old: the model before training, where training goes on from a checkpoint: a folder, a file, a module or a state dict.
        **merging: options of the merge, such as `damping=1.0`, `rest=0.0` or `budget=0.05`.

    Attributes:
        figures: what was measured, by stage ("before", "fine-tuned", "merged") and (domain, metric).
        curvature: what was given, and from the beginning of training on the curvature itself; None where none is needed.

    Raises:
        InputError: an unknown method or option; no old data where the method needs curvature; a model that is wrapped by PEFT,
            quantised or trained by several processes. When training begins: a curvature of other weights; `old` or the curvature
            is missing where training goes on from a checkpoint.
    """

    def __init__(
        self,
        trainer: Trainer,
        old_data: Any = None,
        *,
        method: str | MergeSpec = "ihr",
        keep: Keep | None = None,
        loss_fn: Callable[[Any, Any], Tensor] = batch_loss,
        options: EstimateOptions | None = None,
        curvature: str | Path | Curvature | None = None,
        old: Source | None = None,
        **merging: Any,
    ) -> None:
        self.figures = Figures((BEFORE, TUNED, MERGED))
        self._trainer, self._old_data, self._keep, self._loss_fn = trainer, old_data, keep or {}, loss_fn
        self._options = EstimateOptions(max_items=ENOUGH) if options is None else options
        self._spec = (method if isinstance(method, MergeSpec) else MergeSpec(method)).changed(merging)
        self.curvature, self._given, self._old = curvature, old, dict[str, Tensor]()
        chosen = find_method(self._spec.method)
        chosen.check(self._spec.knobs)
        self._needs, self._needs_new = "blocks" in chosen.context, "new_blocks" in chosen.context
        _check_model(trainer)
        missing = curvature is None or (isinstance(curvature, str | Path) and not Path(curvature).exists())
        if self._needs and missing and old_data is None:
            what = f"{curvature} is not there" if curvature is not None else "no curvature is given"
            raise InputError(f"method={self._spec.method} needs the curvature of old data, and {what}: give old_data, or a file")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Copy the old weights, estimate the curvature and measure the domains to keep."""
        model = kwargs["model"]
        if state.global_step and self._given is None:
            where = f"training goes on from step {state.global_step}, so the weights before it are not known"
            raise InputError(f"{where}; give them: AdaptationCallback(..., old=FOLDER, curvature=FILE)")
        with left_alone(model):
            self._old = copied(model.state_dict() if self._given is None else completed(load_state(self._given, "old"), model))
            if self._needs:
                self.curvature = self._of_old(model, state)
            if not state.global_step:
                self.figures.add(BEFORE, self._measured(model))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Merge in place, with the domains to keep measured before and after it, and show what came of them."""
        model = kwargs["model"]
        with left_alone(model):
            self.figures.add(TUNED, self._measured(model))
            options: dict[str, Any] = {"curvature": self.curvature} if self._needs else {}
            if self._needs_new:
                options["new_curvature"] = self._estimated(model, self._trainer.train_dataset)
            new = copied(model.state_dict())
            merged = merge(self._old, new, self._spec, **options)
            model.load_state_dict(merged)
            self.figures.add(MERGED, self._measured(model))
            if isinstance(self.curvature, Curvature):
                for stage, weights in ((TUNED, new), (MERGED, merged)):
                    grown = float(self.curvature.quadratic({n: w.double() - self._old[n].double() for n, w in weights.items()}))
                    self.figures.add(stage, {("old data", "predicted increase of the loss"): grown})
        if state.is_world_process_zero:
            self.figures.show(f"merged with the model before training by {self._spec.method}")

    def _of_old(self, model: nn.Module, state: TrainerState) -> Curvature:
        """Read, or estimated and written where a file is wanted."""
        given = self.curvature
        if isinstance(given, Curvature) or (given is not None and Path(given).exists()):
            found = given if isinstance(given, Curvature) else Curvature.load(given)
            if not state.global_step and not found.taken_at(model):
                where = "curvature" if isinstance(given, Curvature) else given
                raise InputError(f"{where}: estimated at other weights than the model has; estimate it again, or load those")
            return found
        if state.global_step:
            where = f"training goes on from step {state.global_step}"
            raise InputError(f"curvature={given}: is not there, and {where}; estimate it with the model before training")
        found = self._estimated(model, self._old_data)
        if given is not None:
            found.save(given)
        return found

    def _estimated(self, model: nn.Module, data: Any) -> Curvature:
        batches = data if isinstance(data, DataLoader) else self._trainer.get_eval_dataloader(data)
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        options = self._options.changed({"exclude": (*self._options.exclude, *frozen)})
        found = estimate(model, self._loss_fn, batches, options)
        by_reason: dict[str, list[str]] = {}
        for name, why in found.metadata["uncovered"].items():
            by_reason.setdefault(why, []).extend([] if name in frozen else [name])
        for why, names in by_reason.items():
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                logger.warning("no curvature of %s%s: %s", ", ".join(names[:SHOWN]), more, why)
        return found

    def _measured(self, model: nn.Module) -> dict[tuple[str, str], float]:
        """By domain and metric."""
        if callable(self._keep):
            return {(name, ""): float(value) for name, value in self._keep(model).items()}
        found: dict[tuple[str, str], float] = {}
        for name, data in self._keep.items():
            prefix = f"eval_{name}"
            numbers = metrics_of(self._trainer.evaluate(data, metric_key_prefix=prefix), prefix)
            found |= {(name, metric): value for metric, value in numbers.items()}
        return found


def _check_model(trainer: Trainer) -> None:
    """Refuse models whose weights are not simply there.

    Raises:
        InputError: says what to do instead.
    """
    model = trainer.model
    name = type(model).__name__
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        remedy = "train without the callback and merge adapter folders by `asrcl merge`"
        raise InputError(f"{name}: holds an adapter of PEFT, which is not merged in place; {remedy}")
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise InputError(f"{name}: is quantised, and codes cannot be merged; load it without quantisation")
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or trainer.args.world_size > 1:
        remedy = "train without the callback and merge the saved folders by `asrcl merge`"
        raise InputError(f"{name}: is trained by several processes, which is not supported here; {remedy}")


def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state dict on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


def completed(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict with the second names of tied parameters of a model, which folders of Hugging Face leave out."""
    by_place: dict[int, list[str]] = {}
    for name, tensor in model.state_dict().items():
        by_place.setdefault(tensor.data_ptr(), []).append(name)
    twins = {name: known for names in by_place.values() for known in names if known in state for name in names}
    return {**{name: state[known] for name, known in twins.items()}, **state}


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Leave a model in the mode that it is in, and the generators of Python, NumPy and torch where they are."""
    training, states = model.training, (random.getstate(), np.random.get_state())
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        model.train(training)
