"""Frozen training: later domains train the last blocks and the head, all else stays as the first domain left it.

The opposite is *initialised* training, which moves all parameters from the last solution: plain fine-tuning (`ft`). The two are
compared by He, Bai and Yang (arXiv 2602.20796) after Ju et al. (arXiv 2306.04901); docs/update_magnitude.md says when which is
better. The paper's "update magnitude" is how many parameters may move, not how far.

Blocks are what a model repeats: the first number in a parameter's name ends the name of its block (`encoder.layers.3`,
`trunk.layer1.0`, `trunk.4`); what has no number is a block by its module (`trunk.conv1`). Blocks without a matrix (a norm) join
the one before them. They are counted in the order in which a forward pass comes to them, which is not always that of the names:
SpeechBrain's Conformer lists its layers before its embeddings. Other blocks can be given as globs. A head is no block: it is
always trained.

Frozen parameters are not given to the optimiser, so that neither momentum nor weight decay moves them, and batch normalisation
outside of what is trained is in evaluation mode, so that its statistics stay: what is frozen is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from fnmatch import filter as matching
from typing import Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from asrcl.contract.method import Method, register
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.methods.references import FineTuning

HEADS: Final = ("heads.*", "*_head.*")
"""Globs of what this toolkit's models, and most of Transformers', call their heads."""
NAMED: Final = 6


@dataclass(frozen=True)
class Block:
    """A part of a model that is frozen or trained as a whole.

    Attributes:
        name: what the names of its parameters begin with, or the glob that chose them.
        entries: names of its parameters and buffers.
    """

    name: str
    entries: frozenset[str]


@register("frozen")
class FrozenTraining(Method):
    """Fine-tuning of the last blocks and the head alone; where the first domain is learned, it trains everything.

    Args:
        blocks: how many of the last blocks are trained; 0: the head alone; None: all, which is plain fine-tuning to the bit.
        groups: blocks of one's own, a glob of parameters' names each, first to last, to choose others than the last or to put
            layers together; what none matches is never trained. None for the blocks of the model.
        heads: globs of parameters that are always trained, beside those that the domain alone uses.
    """

    label = "Frozen"

    def __init__(
        self, blocks: int | None = 1, groups: Sequence[str] | None = None, heads: Sequence[str] = HEADS
    ) -> None:
        check_count("blocks", blocks)
        self.blocks, self.groups, self.heads = blocks, None if groups is None else tuple(groups), tuple(heads)

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights:
        return learner.fine_tune(old, domain, FineTuning() if learner.stage == 1 else self)

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        heads = heads_of(model, self.heads, learner.private(learner.domains[-1]))
        blocks = blocks_of(model, heads, self.groups)
        if self.groups is None:
            blocks = in_forward_order(blocks, model, lambda: learner.task.outputs(model, first_batch(learner)))
        chosen = blocks if self.blocks is None else blocks[max(0, len(blocks) - self.blocks) :]
        hold_all_but(model, heads.union(*(block.entries for block in chosen)))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InputError(f"method.blocks={self.blocks}: nothing is left to train, for the model has no head; give 1 or more")
        return model


def check_count(option: str, blocks: int | None) -> None:
    """Refuse a number of blocks that is none.

    Raises:
        InputError: names the option.
    """
    if blocks is not None and blocks < 0:
        raise InputError(f"method.{option}={blocks}: blocks cannot be negative; 0 trains the head alone, null all of the model")


def heads_of(model: nn.Module, globs: Sequence[str], private: Set[str] = frozenset()) -> frozenset[str]:
    """Names of parameters that are a head: those that globs choose, and those that a domain alone uses.

    Raises:
        InputError: a glob of the user's own that matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    for glob in globs:
        if glob not in HEADS and not matching(names, glob):
            raise InputError(f"method.heads={glob}: matches no parameter; {_some(names)}")
    return frozenset(private).union(*(matching(names, glob) for glob in globs))


def blocks_of(model: nn.Module, heads: Set[str] = frozenset(), groups: Sequence[str] | None = None) -> list[Block]:
    """The blocks of a model without its heads, in the order in which it lists its modules, or in that of the globs.

    Args:
        model: a plain one.
        heads: names that belong to no block.
        groups: globs, one for each block; a name that several match belongs to the first. None: see the module.

    Raises:
        InputError: a glob that chooses nothing which an earlier one has left.
    """
    found: dict[str, set[str]] = {glob: set() for glob in groups or ()}
    solid = set(found)  # blocks that stand for themselves
    for path, name, value in _entries(model):
        if name not in heads:
            block = _block(path, name) if groups is None else next((glob for glob in groups if matching([name], glob)), None)
            if block is not None:
                found.setdefault(block, set()).add(name)
                solid |= {block} if isinstance(value, nn.Parameter) and value.ndim > 1 else set()
    if empty := [glob for glob, entries in found.items() if not entries]:
        raise InputError(f"method.groups={empty[0]}: chooses no parameter; {_some([name for _, name, _ in _entries(model)])}")
    joined: list[Block] = []
    leading: set[str] = set()
    for block, entries in found.items():
        if block in solid:
            joined.append(Block(block, frozenset(entries | leading)))
            leading = set()
        elif joined:
            joined[-1] = Block(joined[-1].name, joined[-1].entries | entries)
        else:
            leading |= entries
    return joined


def in_forward_order(blocks: Sequence[Block], model: nn.Module, forward: Callable[[], object]) -> list[Block]:
    """Blocks in the order in which a forward pass, in evaluation mode, first calls one of their modules.

    One whose modules are never called, because the weights are read by others, stays behind its neighbour.
    """
    place = {name: number for number, block in enumerate(blocks) for name in block.entries}
    called: dict[int, int] = {}
    hooks = []
    for path, module in model.named_modules():
        own = {place[name] for name in _own_names(path, module) if name in place}
        if own:

            def note(module: nn.Module, inputs: object, own: int = min(own)) -> None:
                called.setdefault(own, len(called))

            hooks.append(module.register_forward_pre_hook(note))
    model.eval()
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    keys: list[int] = []
    for number in range(len(blocks)):
        keys.append(called.get(number, keys[-1] if keys else -1))
    return [blocks[number] for number in sorted(range(len(blocks)), key=keys.__getitem__)]


def first_batch(learner: Learner) -> Batch:
    """A batch of the current domain's training data, on the learner's device, to see how a model is gone through."""
    return next(iter(learner.domains[-1].batches("train", shuffle=False, seed=0))).to(learner.device)


def _own_names(path: str, module: nn.Module) -> list[str]:
    """Full names of the parameters and buffers that a module itself has."""
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return [f"{path}.{name}".lstrip(".") for name, _ in own]


def hold_all_but(model: nn.Module, trained: Set[str]) -> None:
    """Freeze all parameters but some, and the statistics of every batch normalisation that is not among them."""
    for name, parameter in model.named_parameters():
        if name not in trained:
            parameter.requires_grad_(False)
    for path, module in model.named_modules():
        if getattr(module, "running_mean", None) is not None and f"{path}.running_mean".lstrip(".") not in trained:
            hold_statistics(module)


def hold_statistics(normalisation: nn.Module) -> RemovableHandle:
    """Keep a batch normalisation in evaluation mode, though training puts all modules into training mode; gives its hook."""
    return normalisation.register_forward_pre_hook(_in_evaluation)


def statistics_held(model: nn.Module, trained: Set[str]) -> list[RemovableHandle]:
    """Keep every batch normalisation that has parameters, none of them trained, in evaluation mode; gives the hooks."""
    hooks = []
    for path, module in model.named_modules():
        own = {f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)}
        if getattr(module, "running_mean", None) is not None and own and not own & trained:
            hooks.append(hold_statistics(module))
    return hooks


def _in_evaluation(module: nn.Module, inputs: tuple[object, ...]) -> None:
    module.eval()


def _entries(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Module path, name and value of parameters and buffers; what is tied appears once, under its first name."""
    parameters = {id(value): name for name, value in reversed(list(model.named_parameters(remove_duplicate=False)))}
    for path, module in model.named_modules():
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            full = f"{path}.{name}".lstrip(".")
            if parameters.get(id(value), full) == full:
                yield path, full, value


def _block(path: str, name: str) -> str:
    """The name of a parameter's block."""
    parts = path.split(".")
    first = next((place for place, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(parts[: first + 1]) or name


def _some(names: Sequence[str]) -> str:
    return f"their names are like {', '.join(names[:NAMED])}"
