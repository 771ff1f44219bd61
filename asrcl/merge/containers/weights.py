"""The files that hold tensors, and indices that say which file holds which; what all formats have in common."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.files import read_json
from asrcl.merge.containers.outline import Outline
from asrcl.merge.containers.settings import Surroundings

INDEX_SUFFIX = ".index.json"
LFS = b"version https://git-lfs"


def damaged(path: Path, error: Exception, what: str) -> InputError:
    """The error for a file that its reader could not make sense of, in one line."""
    if is_pointer(path):
        return InputError(f"{path}: a pointer of Git LFS, not the {what} itself; fetch it with `git lfs pull`")
    return InputError(f"{path}: damaged {what} ({first_sentence(error)}); copy or save it again")


def is_pointer(path: Path) -> bool:
    """Whether Git LFS has left a note in place of a file."""
    try:
        with open(path, "rb") as stream:
            return stream.read(len(LFS)) == LFS
    except OSError:
        return False


def first_sentence(error: Exception) -> str:
    """What a foreign error says, cut before it goes into advice."""
    line = (str(error).splitlines() or [""])[0]
    return line.split(". ")[0].rstrip(".:") or type(error).__name__


class Sink(Protocol):
    """Takes the tensors of a model in any order and leaves files in a folder."""

    def write(self, name: str, tensor: Tensor) -> None: ...  # noqa: D102
    def finish(self) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Index:
    """Which shard holds which tensor: `model.safetensors.index.json` and `pytorch_model.bin.index.json` of Hugging Face."""

    path: Path
    content: dict[str, Any]
    weight_map: dict[str, str]

    @classmethod
    def load(cls, path: Path) -> Index:
        """Read an index and look whether its shards are there.

        Raises:
            InputError: it is damaged, or a shard is missing.
        """
        content = read_json(path)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
            raise InputError(f"{path}: not the index of a checkpoint (no weight_map in it); save the model again")
        for shard in dict.fromkeys(weight_map.values()):
            if Path(shard).name != shard or shard in ("", ".."):
                raise InputError(f"{path}: names a shard outside of its folder ({shard!r}), not followed; save the model again")
            if not (path.parent / shard).is_file():
                raise InputError(f"{path}: its shard {shard} is missing; copy it beside the index")
        return cls(path, content, weight_map)

    @property
    def files(self) -> tuple[Path, ...]:
        """The shards in the order of their numbers."""
        return tuple(self.path.parent / shard for shard in sorted(set(self.weight_map.values())))

    def check(self, held: Mapping[str, Sequence[str]]) -> None:
        """Compare with the tensors that each shard really holds.

        Raises:
            InputError: the index and a shard do not agree.
        """
        for name, shard in self.weight_map.items():
            if name not in held[shard]:
                raise InputError(f"{self.path}: tensor {name} is not in its shard {shard}; copy it again or save the model again")
        for shard, names in held.items():
            stranger = next((name for name in names if self.weight_map.get(name) != shard), None)
            if stranger is not None:
                raise InputError(f"{self.path}: does not list tensor {stranger} of the shard {shard}; save the model again")

    def write(self, folder: Path, outlines: Mapping[str, Outline], placed: Mapping[str, Sequence[str]]) -> None:
        """Write the index of tensors that were placed anew, with its other entries kept."""
        owner = {name: shard for shard, names in placed.items() for name in names}
        metadata = dict(self.content.get("metadata") or {})
        metadata["total_size"] = sum(outline.nbytes for outline in outlines.values())
        if "total_parameters" in metadata:
            metadata["total_parameters"] = sum(outline.numel for outline in outlines.values())
        content = self.content | {"metadata": metadata, "weight_map": {name: owner[name] for name in outlines}}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / self.path.name).write_text(text, encoding="utf-8")


class Weights(ABC):
    """Open weight files of one format. Names are those in the files, within wrappers but with prefixes."""

    files: tuple[Path, ...]
    index: Index | None = None
    outlines: dict[str, Outline]
    wrapper: str = ""
    extras: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lightning: bool = False

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU."""

    @abstractmethod
    def sample(self, name: str, count: int) -> Tensor:
        """At most `count` first entries of the first row of a tensor."""

    @abstractmethod
    def sink(self, folder: Path, outlines: Mapping[str, Outline]) -> Sink:
        """A sink for files of the same names in another folder."""

    def surroundings(self) -> Surroundings:
        """What lies beside the tensors in the files and says what they mean."""
        return Surroundings()

    def placed(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Shares out tensors: each to the file it came from, new ones to the last."""
        last = self.files[-1].name
        owner = self.index.weight_map if self.index else {}
        shares: dict[str, list[str]] = {file.name: [] for file in self.files}
        for name in names:
            shares[owner.get(name, last)].append(name)
        return {file: share for file, share in shares.items() if share or self.index is None}
