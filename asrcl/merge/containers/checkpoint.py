"""An open checkpoint, whatever its container, and the writer of another one like it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.merge.containers import staging
from asrcl.merge.containers.outline import Origin, Outline, check_outline, check_whole, common_prefix
from asrcl.merge.containers.settings import Surroundings
from asrcl.merge.containers.tensor_files import SUFFIX, TensorSink
from asrcl.merge.containers.weights import Sink, Weights
from asrcl.merge.sources import Sized

SAFETENSORS = "safetensors"


class Checkpoint(ABC):
    """A model on disk: outlines of its tensors, one tensor at a time, and a writer for another one of the same kind.

    A context manager; closing it ends access to files that were unpacked for it.

    Attributes:
        path: what was opened.
        outlines: shape and type of each tensor, in the order of the file, without what wrapped modules put before every name.
    """

    kind = ""

    def __init__(self, path: Path, weights: Weights) -> None:
        """Wrap open weight files."""
        self.path = path
        self._weights = weights
        self._prefix = common_prefix(weights.outlines, weights.lightning)
        self.outlines = {name.removeprefix(self._prefix): outline for name, outline in weights.outlines.items()}
        check_whole(str(path), self.outlines)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 (most have nothing to give up)
        """Give up what was unpacked; tensors that were read stay valid."""

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, in memory of its own.

        Raises:
            InputError: there is no such tensor, or the file changed.
        """
        if name not in self.outlines:
            raise InputError(f"{self.path}: holds no tensor {name}; its names are listed in outlines")
        return self._weights.read(self._prefix + name)

    def sample(self, name: str, count: int) -> Tensor:
        """The first entries of a tensor's first row, at most `count`; the rest is not read."""
        return self._weights.sample(self._prefix + name, count)

    def describe(self) -> Origin:
        """Where the model came from, and what a writer carries over."""
        notes = (*self._weights.notes, *self._notes())
        return Origin(self.kind, self.path, self._files(), self._extras(), self._weights.wrapper, self._prefix, notes)

    def surroundings(self) -> Surroundings:
        """What lies beside the weights and says what they mean.

        Raises:
            InputError: a file of it is damaged.
        """
        return self._weights.surroundings()

    def writer(
        self,
        out: str | os.PathLike[str],
        container: str | None = None,
        outlines: Mapping[str, Sized] | None = None,
        overwrite: bool = False,
    ) -> Writer:
        """A context manager that writes another model with everything around it as here.

        Nothing appears at `out` before all tensors were written, and nothing at all after an error. Safetensors are written
        tensor by tensor; those of pickled formats (`.pt`, `.nemo`, SpeechBrain) wait in a nameless file beside `out` until all
        are there, which takes as much room on the disk again.

        Args:
            out: file or folder. A file that exists is replaced.
            container: None for that of this checkpoint, or "safetensors" (also meant by an `out` that ends so) for one file
                of the tensors alone, without prefix.
            outlines: shapes, types and order of what will be written, where they differ from `self.outlines`.
            overwrite: replace a folder that exists, if it is a checkpoint too.

        Raises:
            InputError: `out` does not fit the container, or is a folder that exists.
        """
        if container not in (None, SAFETENSORS):
            remedy = f"leave it out to keep that of {self.path.name}, or give {SAFETENSORS!r}"
            raise InputError(f"{out}: there is no container {container!r} to write; {remedy}")
        out = Path(out)
        plan = {name: Outline.of(outline) for name, outline in (self.outlines if outlines is None else outlines).items()}
        if container == SAFETENSORS or (out.suffix.lower() == SUFFIX and self.kind != SAFETENSORS):
            return TensorsOnly(out, plan, SAFETENSORS)
        return self._writer(out, plan, overwrite)

    @abstractmethod
    def _writer(self, out: Path, outlines: dict[str, Outline], overwrite: bool) -> Writer: ...

    def _files(self) -> tuple[Path, ...]:
        return self._weights.files

    def _extras(self) -> tuple[str, ...]:
        return self._weights.extras

    def _notes(self) -> tuple[str, ...]:
        return ()


class Writer(ABC):
    """Takes every planned tensor once, in any order; on leaving the `with` block the checkpoint appears."""

    def __init__(self, out: Path, outlines: dict[str, Outline], prefix: str = "") -> None:
        """Plan the checkpoint; nothing is written yet."""
        self.out = out
        self._outlines, self._prefix = outlines, prefix
        self._missing = dict.fromkeys(outlines)
        self._staging: Path | None = None
        self._made: list[Path] = []
        self._sink: Sink | None = None

    @property
    def folder(self) -> Path | None:
        """Where a folder is being made, within the `with` block: what is written there appears with it. None for single files."""
        return None

    @property
    def beside(self) -> Path:
        """Where files are written, within the `with` block, that appear with the result: in its folder, or beside a single file.

        Raises:
            InputError: outside of the block.
        """
        if self._staging is None:
            raise InputError(f"{self.out}: write what goes beside it within `with checkpoint.writer(...)`")
        return self.folder or staging.companions(self._staging)

    def __enter__(self) -> Self:
        self._made = staging.missing_parents(self.out)
        try:
            with staging.disk(self.out):
                self._staging = staging.make_staging(self.out)
                self._sink = self._open(self._staging, {self._prefix + name: o for name, o in self._outlines.items()})
        except BaseException:
            self._clean()
            raise
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; it may be changed or freed afterwards.

        Raises:
            InputError: it was not planned so, was written already, or the disk is full.
        """
        if self._sink is None:
            raise InputError(f"{self.out}: write tensors within `with checkpoint.writer(...)`")
        check_outline(str(self.out), name, tensor, self._outlines)
        if name not in self._missing:
            raise InputError(f"{self.out}: {name} was written already; write each tensor once")
        with staging.disk(self.out):
            self._sink.write(self._prefix + name, tensor)
        del self._missing[name]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self._staging is not None and self._sink is not None:
                self._complete(self._staging, self._sink)
        finally:
            self._clean()

    def _clean(self) -> None:
        """Remove what is left of the work; after a success there is a result in the folders that were made, and they stay."""
        if self._staging is not None:
            staging.remove(self._staging)
        staging.take_back(self._made)
        self._staging = self._sink = None

    def _complete(self, folder: Path, sink: Sink) -> None:
        if self._missing:
            first = next(iter(self._missing))
            raise InputError(f"{self.out}: {len(self._missing)} tensors were not written, {first} first; write all of the plan")
        with staging.disk(self.out):
            sink.finish()
            if self.folder is None:
                staging.publish_companions(folder, self.out.parent)
            self._publish(folder)

    @abstractmethod
    def _open(self, folder: Path, outlines: Mapping[str, Outline]) -> Sink:
        """A sink that writes into a folder."""

    @abstractmethod
    def _publish(self, folder: Path) -> None:
        """Make the result appear."""


class TensorsOnly(Writer):
    """One safetensors file with the tensors of any container."""

    def __init__(self, out: Path, outlines: dict[str, Outline], container: str) -> None:
        """Plan the file.

        Raises:
            InputError: `out` is no name for one.
        """
        super().__init__(out, outlines)
        check_file(out, (SUFFIX,), container)

    def _open(self, folder: Path, outlines: Mapping[str, Outline]) -> Sink:
        return TensorSink(folder, outlines, {self.out.name: list(outlines)}, {self.out.name: {"format": "pt"}})

    def _publish(self, folder: Path) -> None:
        staging.publish_file(folder / self.out.name, self.out)


def check_file(out: Path, suffixes: tuple[str, ...], kind: str) -> None:
    """Refuse a name that does not say what the file will be.

    Raises:
        InputError: another suffix, or a folder.
    """
    if out.is_dir():
        example = out / f"merged{suffixes[0]}"
        raise InputError(f"{out}: is a folder, and a {kind} checkpoint is one file; name a file in it, such as {example}")
    if out.suffix.lower() not in suffixes:
        choice = "" if kind == SAFETENSORS else f", or to .safetensors with container={SAFETENSORS!r}"
        raise InputError(f"{out}: a {kind} checkpoint is written to {', '.join(suffixes)}{choice}; rename the output")
