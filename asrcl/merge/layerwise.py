"""RegMean++: RegMean block after block, on the inputs that a layer gets in the merged model.

RegMean (`asrcl.merge.steps.fisher`) fits every linear map to what it puts out in each model on that model's own inputs. In the
merged model a layer sees other inputs: those that merged layers below it make. RegMean++ (Nguyen et al. 2025, arXiv 2508.03121)
measures them anew. With blocks 1 ... L in the order in which the model runs, the second moments of block l's inputs are those of
model i with merged blocks below l, on the data of model i; then block l is merged with them. Within a block a model's layers are
its own, as in the authors' release.

It needs the data of every model, the old one's too (a few hundred utterances; labels serve the loss alone and do not enter), and
L passes over them.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from asrcl.curvature import Curvature, EstimateOptions, estimate
from asrcl.curvature.estimation.batching import to_device
from asrcl.curvature.modes import evaluated
from asrcl.curvature.parameters import matches
from asrcl.exceptions import InputError
from asrcl.merge.api import merge
from asrcl.merge.containers import Source, load_state
from asrcl.merge.sources import StateSource
from asrcl.merge.spec import MergeSpec
from asrcl.merge.ties import tied_names
from asrcl.state import StateDict

LossFunction = Callable[[nn.Module, Any], Tensor]
Measure = Callable[[Mapping[str, Tensor], Iterable[Any], Iterable[str]], Curvature]
"""Curvature of some parameters, by globs, at some weights on some data."""
LINEAR: Final = EstimateOptions(layers="linear")
"""Input factors of linear maps; with `layers="all"` of convolutions, too, and then of the rest what is not used here."""


def regmean_plus_plus(
    model: nn.Module,
    old: Source,
    new: Source | Sequence[Source],
    loss_fn: LossFunction,
    batches: Sequence[Iterable[Any]],
    *,
    padding: Callable[[Any], Sequence[Tensor]] | None = None,
    estimation: EstimateOptions = LINEAR,
    **options: Any,
) -> StateDict:
    """Merge by RegMean++; what has no input factors is averaged as by RegMean.

    Args:
        model: a module of the models' architecture, which runs them; its own weights come back in the end.
        old: state dict, module or checkpoint path of the old model.
        new: the same of one or several new models.
        loss_fn: as of `asrcl.curvature.estimate`.
        batches: the data of the old model and of each new one; every one is gone over several times.
        padding: as of `asrcl.curvature.estimate`.
        estimation: how inputs are measured, such as `max_items`.
        **options: of `asrcl.merge.merge` with method "regmean" (`strength`, `offdiagonal`, `damping`, `rest`, `statistics`,
            `layers`, `task`).

    Returns:
        The merged state dict, as of `merge`.

    Raises:
        InputError: as `merge` and `estimate`; weights that do not fit the model, or not as many data as models.
    """
    news: list[Any] = list(new) if isinstance(new, list | tuple) else [new]
    states = [load_state(old, "old"), *(load_state(one, "new") for one in news)]
    if len(batches) != len(states):
        raise InputError(f"batches= holds the data of {len(batches)} models, the old one's first; there are {len(states)}")
    for option in ("base", "budget", "rules", "curvature", "new_curvature"):
        if options.get(option) is not None:
            raise InputError(f"{option}= is not for regmean_plus_plus, which merges block by block; leave it out")
    kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    strange = next((name for state in states for name in sorted(state.keys() ^ kept.keys())), None)
    if strange is not None:
        raise InputError(f"{strange} is not in both the model and the weights to be merged; give the module that they are of")

    def measured(state: Mapping[str, Tensor], data: Iterable[Any], names: Iterable[str]) -> Curvature:
        model.load_state_dict(state)
        return estimate(model, loss_fn, data, estimation, padding=padding, include=list(names))

    try:
        blocks = blocks_in_order(model, states, loss_fn, batches[0])
        return _merged(states, batches, blocks, MergeSpec("regmean").changed(options), measured)
    finally:
        model.load_state_dict(kept)


def _merged(
    states: Sequence[StateDict],
    batches: Sequence[Iterable[Any]],
    blocks: Sequence[Sequence[str]],
    spec: MergeSpec,
    measured: Measure,
) -> StateDict:
    """RegMean of the whole models, which is right for the first block, then block after block anew."""
    found = [measured(state, data, ("*",)) for state, data in zip(states, batches, strict=True)]
    common = set.intersection(*(set(curvature.names()) for curvature in found))
    found = [curvature.without(set(curvature.names()) - common) for curvature in found]
    merged = merge(states[0], states[1:], spec.changed({"curvature": found[:1], "new_curvature": found[1:]}))
    below: set[str] = set(blocks[0])
    for block in blocks[1:]:
        again = [name for name in block if found[0].canonical_name(name) in common and matches(name, spec.layers)]
        if again:
            mixed = [{name: merged[name] if name in below else tensor for name, tensor in state.items()} for state in states]
            parts = [{name: state[name] for name in again} for state in states]
            anew = [measured(state, data, map(glob.escape, again)) for state, data in zip(mixed, batches, strict=True)]
            merged |= merge(parts[0], parts[1:], spec.changed({"curvature": anew[:1], "new_curvature": anew[1:]}))
        below.update(block)
    return merged


def blocks_in_order(
    model: nn.Module, states: Sequence[StateDict], loss_fn: LossFunction, batches: Iterable[Any]
) -> list[list[str]]:
    """Names of a model's tensors in blocks, in the order in which the model first uses them.

    A block is what shares its name up to the first number (`encoder.layers.3`), or else a module. Tied parameters go with the
    first use of one of them.

    Args:
        model: the module.
        states: the weights that will be merged, which tell what is tied.
        loss_fn: runs the model.
        batches: the first is run.

    Raises:
        InputError: there is no batch.
    """
    calls: dict[str, int] = {}

    def note(path: str) -> Callable[..., None]:
        return lambda *_: calls.update({path: calls.get(path, len(calls))})

    batch = next(iter(batches), None)
    if batch is None:
        raise InputError("regmean_plus_plus: there is no data of the old model; give batches=[old_batches, new_batches]")
    handles = [module.register_forward_pre_hook(note(path)) for path, module in model.named_modules()]
    try:
        with evaluated(model), torch.no_grad():
            loss_fn(model, to_device(batch, next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()

    def first_use(name: str) -> int:
        """Of the module that holds a tensor, or of the nearest around it that was called."""
        path = name.rpartition(".")[0]
        while path and path not in calls:
            path = path.rpartition(".")[0]
        return calls.get(path, len(calls))

    names = list(states[0])
    when = {name: first_use(name) for name in names}
    place = {name: _block_of(name) for name in names}
    for tied in tied_names(StateSource(states[0]), [StateSource(state) for state in states[1:]]):
        first = min(tied, key=lambda name: when[name])
        when |= dict.fromkeys(tied, when[first])
        place |= dict.fromkeys(tied, place[first])
    blocks: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: when[name]):
        blocks.setdefault(place[name], []).append(name)
    return list(blocks.values())


def _block_of(name: str) -> str:
    parts = name.split(".")
    number = next((n for n, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[: number + 1])
