"""Checkpoints that are folders: Hugging Face's `save_pretrained`, SpeechBrain's `CKPT+...`, an unpacked `.nemo`.

What lies beside the weights is copied. Left out are weights of the same model in other formats, hidden files, and folders that
hold checkpoints of their own, none of which would belong to the merged model.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from asrcl.exceptions import InputError
from asrcl.merge.containers import pickled, staging, tensor_files
from asrcl.merge.containers.adapters import Adapter
from asrcl.merge.containers.checkpoint import Checkpoint, Writer
from asrcl.merge.containers.nemo import CONFIG as NEMO_CONFIG
from asrcl.merge.containers.nemo import LARGEST_MEMBER
from asrcl.merge.containers.outline import Outline
from asrcl.merge.containers.settings import Surroundings, digest, flattened
from asrcl.merge.containers.weights import Sink, Weights
from asrcl.merge.vocabulary.tokens import read_tokens
from asrcl.merge.yamls import read_structure

HUGGING_FACE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
CONFIGURATIONS = ("config.json", "preprocessor_config.json", NEMO_CONFIG)
TOKENS = ("tokenizer.json", "vocab.json", "tokens.txt", "units.txt", "vocab.txt", "*tokenizer.model", "*.model", "*vocab.txt")
SPEECHBRAIN_META = "CKPT.yaml"
SPEECHBRAIN = "model.ckpt"
SPEECHBRAIN_STATES = ("optim", "sched", "counter", "scaler", "brain", "dataloader", "sampler", "normalizer", "lr_anneal", "noam")
NEMO = "model_weights.ckpt"
WEIGHT_SUFFIXES = (tensor_files.SUFFIX, *pickled.SUFFIXES)
AVERAGED = re.compile(r"(^|[^a-z])(ema|avg|averaged?|swa|shadow)([^a-z]|$)", re.IGNORECASE)
"""Parts of the names of files with averages of the weights."""
OTHER_FOLDERS = ("checkpoint-*", "global_step*", "CKPT+*", "onnx", "runs")
OTHER_FORMATS = (
    "*.onnx",
    "*.gguf",
    "rust_model.ot",
    "consolidated.*",
    *(
        pattern
        for name, suffix in (
            ("model", ".safetensors"),
            ("pytorch_model", ".bin"),
            ("tf_model", ".h5"),
            ("flax_model", ".msgpack"),
        )
        for pattern in (name + suffix, f"{name}.*{suffix}", f"{name}-*-of-*{suffix}", f"{name}{suffix}.*.json")
    ),
)


class Folder(Checkpoint):
    """A folder with weights and everything needed to use them."""

    def __init__(self, path: Path, found: Path, kind: str) -> None:
        """Open the weights of a folder.

        Args:
            path: the folder.
            found: the file or index in it that holds the weights.
            kind: what to call it.

        Raises:
            InputError: the weights are damaged or unsafe.
        """
        self.kind = kind
        self._found = found
        weights = open_weights(found)
        super().__init__(path, Adapter(path, weights) if kind == "peft folder" else weights)
        self._own = {file.name for file in self._weights.files} | {found.name}

    def surroundings(self) -> Surroundings:
        """The configuration and the tokens in the folder.

        Raises:
            InputError: a configuration is no JSON.
        """
        files = [self.path / name for name in CONFIGURATIONS if (self.path / name).is_file()]
        found: dict[str, Any] = dict(self._weights.surroundings().settings)
        for file in files:
            found |= flattened(read_structure(file)[0], "" if file.name == CONFIGURATIONS[0] else file.stem)
        beside = [f for f in self._carried() if self.kind == "speechbrain" and f.suffix == ".ckpt" and not _of_training(f.name)]
        remarks = {f.name: digest(f.read_bytes()) for f in beside if f.stat().st_size <= LARGEST_MEMBER}
        return Surroundings(found, remarks, _tokens(self.path))

    def _stale(self) -> list[str]:
        """Files that hold the same model in another format."""
        if self.kind != "hf folder":
            return []
        return sorted({f.name for p in OTHER_FORMATS for f in self.path.glob(p) if f.is_file()} - self._own)

    def _averages(self) -> list[str]:
        """Files of averages that training kept beside the model."""
        files = [f.name for f in self.path.iterdir() if f.is_file() and f.suffix in WEIGHT_SUFFIXES and f.name not in self._own]
        return sorted(name for name in files if AVERAGED.search(Path(name).stem))

    def _extras(self) -> tuple[str, ...]:
        return tuple(str(file.relative_to(self.path)) for file in self._carried())

    def _carried(self) -> list[Path]:
        leave = self._own | set(self._stale()) | set(self._averages())
        carried: list[Path] = []
        for entry in sorted(self.path.iterdir()):
            if entry.is_dir() and self._belongs(entry):
                carried += [f for f in sorted(entry.rglob("*")) if f.is_file()]
            elif entry.is_file() and entry.name not in leave and not entry.name.startswith("."):
                carried.append(entry)
        return carried

    def _belongs(self, folder: Path) -> bool:
        if folder.name.startswith(".") or folder.is_symlink():
            return False
        if _like(folder.name, OTHER_FOLDERS):
            return False
        return not any(_like(file.name, (*OTHER_FORMATS, NEMO, SPEECHBRAIN)) for file in folder.rglob("*"))

    def _notes(self) -> tuple[str, ...]:
        notes = [f"{name} holds the same model in another format and is left out" for name in self._stale()]
        left = "an average of the old weights, is left out: it does not belong to others"
        notes += [f"{name}, {left}" for name in self._averages()]
        folders = [f for f in sorted(self.path.iterdir()) if f.is_dir() and not f.name.startswith(".")]
        notes += [f"the folder {f.name} {_why_left_out(f)} and is left out" for f in folders if not self._belongs(f)]
        others = [name for name in self._extras() if Path(name).suffix in WEIGHT_SUFFIXES]
        notes += [f"{name} is carried over unchanged; open it by its path to merge it too" for name in others]
        return tuple(notes)

    def _writer(self, out: Path, outlines: dict[str, Outline], overwrite: bool) -> Writer:
        carried = {str(file.relative_to(self.path)): file for file in self._carried()}
        return _Writer(out, outlines, self._prefix, self._weights, carried, overwrite)


class _Writer(Writer):
    def __init__(
        self, out: Path, outlines: dict[str, Outline], prefix: str, weights: Weights, carried: Mapping[str, Path], overwrite: bool
    ) -> None:
        super().__init__(out.resolve() if out.is_dir() else out, outlines, prefix)
        self._weights, self._carried, self._overwrite = weights, carried, overwrite
        self._check_place()

    def _check_place(self) -> None:
        out = self.out
        if out.is_file() or (not out.exists() and out.suffix.lower() in (*pickled.SUFFIXES, ".nemo")):
            raise InputError(f"{out}: a file, but this checkpoint is written as a folder; name a folder, or a .safetensors file")
        if not out.exists() or not any(out.iterdir()):
            return
        if not self._overwrite:
            raise InputError(f"{out}: exists already; choose another folder, or overwrite=True to replace it")
        kept = {Path(name).parts[0] for name in self._carried}
        lost = sorted(entry.name for entry in out.iterdir() if entry.is_dir() and entry.name not in kept)
        if lost or not looks_like_checkpoint(out):
            what = f"holds the folder {lost[0]}, which would be lost" if lost else "holds no checkpoint of this kind"
            raise InputError(f"{out}: {what}, and is not overwritten; choose another folder")

    @property
    def folder(self) -> Path | None:
        return self._staging

    def _open(self, folder: Path, outlines: Mapping[str, Outline]) -> Sink:
        for name, file in self._carried.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, folder / name)
        return self._weights.sink(folder, outlines)

    def _publish(self, folder: Path) -> None:
        staging.publish_folder(folder, self.out)


# ---- finding the weights


def open_folder(path: Path) -> Folder:
    """Open the checkpoint that a folder is.

    Raises:
        InputError: there is none, or one cannot tell which.
    """
    if (path / SPEECHBRAIN_META).is_file():
        return Folder(path, _speechbrain(path), "speechbrain")
    for name in HUGGING_FACE:
        if (path / name).is_file():
            return Folder(path, path / name, "peft folder" if name.startswith("adapter") else "hf folder")
    if (path / NEMO).is_file():
        return Folder(path, path / NEMO, "nemo folder")
    raise InputError(f"{path}: {_nothing_found(path)}")


def open_index(path: Path) -> Folder:
    """Open the folder of which an index was named.

    Raises:
        InputError: the index or a shard is damaged.
    """
    return Folder(path.parent, path, "hf folder")


def open_weights(path: Path) -> Weights:
    """Open a weight file or an index by its name.

    Raises:
        InputError: it is damaged or unsafe.
    """
    safe = tensor_files.SUFFIX in path.suffixes
    return tensor_files.TensorFiles(path) if safe else pickled.PickledFiles(path)


def looks_like_checkpoint(path: Path) -> bool:
    """Whether a folder holds weights under one of the known names."""
    return any((path / name).is_file() for name in (SPEECHBRAIN_META, *HUGGING_FACE, NEMO))


def _of_training(name: str) -> bool:
    """Whether a file of SpeechBrain's is of no use but to train on; statistics of features and tokenizers are of use."""
    return any(word in name.lower() for word in SPEECHBRAIN_STATES if word != "normalizer")


def _why_left_out(folder: Path) -> str:
    return "is a link to another place" if folder.is_symlink() else "holds checkpoints of its own"


def _tokens(folder: Path) -> Sequence[str] | str | None:
    """The tokens by id, or a hash where they are in no known form (byte-level vocabularies by language); None without a file."""
    file = next((file for name in TOKENS for file in sorted(folder.glob(name)) if file.is_file()), None)
    if file is None:
        return None
    try:
        return read_tokens(file).tokens
    except InputError:
        return digest(file.read_bytes())


def _like(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _speechbrain(path: Path) -> Path:
    if (path / SPEECHBRAIN).is_file():
        return path / SPEECHBRAIN
    parts = sorted(path.glob("*.ckpt"))
    models = [file for file in parts if not any(word in file.name.lower() for word in SPEECHBRAIN_STATES)]
    if len(models) == 1:
        return models[0]
    listed = ", ".join(file.name for file in models or parts) or "no .ckpt files"
    held = f"a SpeechBrain checkpoint without {SPEECHBRAIN} but with {listed}"
    raise InputError(f"{path}: {held}; give the path of the file to merge")


def _nothing_found(path: Path) -> str:
    inner = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and looks_like_checkpoint(entry))
    files = sorted(f.name for f in path.iterdir() if f.suffix.lower() in (tensor_files.SUFFIX, ".nemo", *pickled.SUFFIXES))
    if inner or files:
        return f"a folder with several things in it ({', '.join([*inner, *files][:5])}); give the path of one of them"
    looked = ", ".join((*HUGGING_FACE, f"{SPEECHBRAIN_META} with {SPEECHBRAIN}", NEMO))
    return f"no checkpoint in this folder; looked for {looked}; give the folder or the file that holds the weights"
