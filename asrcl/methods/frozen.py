"""Frozen training: later domains train the last blocks and the head, all else stays as the first domain left it.

The opposite is *initialised* training, which moves all parameters from the last solution: plain fine-tuning (`ft`). The two are
compared by He, Bai and Yang (arXiv 2602.20796) after Ju et al. (arXiv 2306.04901); docs/update_magnitude.md says when which is
better. The paper's "update magnitude" is how many parameters may move, not how far.

Blocks are what a model repeats: the first number in a parameter's name ends the name of its block (`encoder.layers.3`,
`trunk.layer1.0`, `trunk.4`); what has no number is a block by its module (`trunk.conv1`). Blocks without a matrix (a norm) join
the one before them. Other blocks can be given as globs. A head is no block: it is always trained.

Frozen parameters are not given to the optimiser, so that neither momentum nor weight decay moves them, and batch normalisation
outside of what is trained is in evaluation mode, so that its statistics stay: what is frozen is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from fnmatch import filter as matching
from typing import Final

from torch import Tensor, nn

from asrcl.contract.method import Method, register
from asrcl.contract.protocols import Domain, Learner
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
    """The blocks of a model without its heads, in the order in which it lists its modules.

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
                solid |= {block} if value.ndim > 1 else set()
    if empty := [glob for glob, entries in found.items() if not entries]:
        raise InputError(f"method.groups={empty[0]}: chooses no parameter; {_some([name for _, name, _ in _entries(model)])}")
    joined: list[Block] = []
    for block, entries in found.items():
        if block in solid or not joined:
            joined.append(Block(block, frozenset(entries)))
        else:
            joined[-1] = Block(joined[-1].name, joined[-1].entries | entries)
    return joined


def hold_all_but(model: nn.Module, trained: Set[str]) -> None:
    """Freeze all parameters but some, and the statistics of every batch normalisation that is not among them."""
    for name, parameter in model.named_parameters():
        if name not in trained:
            parameter.requires_grad_(False)
    for path, module in model.named_modules():
        if getattr(module, "running_mean", None) is not None and f"{path}.running_mean".lstrip(".") not in trained:
            hold_statistics(module)


def hold_statistics(normalisation: nn.Module) -> None:
    """Keep a batch normalisation in evaluation mode, though training puts all modules into training mode."""
    normalisation.register_forward_pre_hook(_in_evaluation)


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
