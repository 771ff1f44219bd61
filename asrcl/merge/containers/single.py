"""Checkpoints that are one file: safetensors, or what `torch.save` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from asrcl.merge.containers import pickled, staging, tensor_files
from asrcl.merge.containers.checkpoint import Checkpoint, Writer, check_file
from asrcl.merge.containers.outline import Outline
from asrcl.merge.containers.weights import Sink, Weights


class SingleFile(Checkpoint):
    """A `.safetensors` file, or a `.pt`, `.pth`, `.ckpt` or `.bin`."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            InputError: it is damaged or unsafe.
        """
        safe = path.suffix.lower() == tensor_files.SUFFIX
        self.kind = "safetensors" if safe else "torch"
        super().__init__(path, tensor_files.TensorFiles(path) if safe else pickled.PickledFiles(path))

    def _writer(self, out: Path, outlines: dict[str, Outline], overwrite: bool) -> Writer:
        check_file(out, (tensor_files.SUFFIX,) if self.kind == "safetensors" else pickled.SUFFIXES, self.kind)
        return _Writer(out, outlines, self._prefix, self._weights)


class _Writer(Writer):
    def __init__(self, out: Path, outlines: dict[str, Outline], prefix: str, weights: Weights) -> None:
        super().__init__(out, outlines, prefix)
        self._weights = weights

    def _open(self, folder: Path, outlines: Mapping[str, Outline]) -> Sink:
        return self._weights.sink(folder, outlines)

    def _publish(self, folder: Path) -> None:
        staging.publish_file(folder / self._weights.files[0].name, self.out)
