"""NeMo's `.nemo`: a tar archive, compressed or not, of `model_weights.ckpt`, `model_config.yaml` and the files of a tokenizer.

Nothing of the archive is unpacked but the weights, to a temporary file; `TMPDIR` says where.
"""

from __future__ import annotations

import copy
import gzip
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from asrcl.exceptions import InputError
from asrcl.merge.containers import staging
from asrcl.merge.containers.checkpoint import Checkpoint, Writer, check_file
from asrcl.merge.containers.outline import Outline
from asrcl.merge.containers.pickled import PickledFiles
from asrcl.merge.containers.settings import Surroundings, digest, flattened
from asrcl.merge.containers.weights import Sink, damaged
from asrcl.merge.yamls import parse_yaml

WEIGHTS = "model_weights.ckpt"
CONFIG = "model_config.yaml"
SUFFIX = ".nemo"
SMALL, MOST_EXPANSION = 1 << 26, 100
"""What an archive may unpack to: bytes, and times its own size."""
LARGEST_MEMBER = 1 << 26
"""Bytes up to which a member is compared with another archive's."""
DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError)
Compression = Literal["", "gz", "bz2", "xz"]
MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}


class NemoArchive(Checkpoint):
    """A `.nemo` file."""

    kind = "nemo"

    def __init__(self, path: Path) -> None:
        """Check the members and unpack the weights.

        Raises:
            InputError: the archive is damaged, has no weights, or holds links or paths that lead out of it.
        """
        self._unpacked = tempfile.TemporaryDirectory(prefix="asrcl-nemo-")
        try:
            self._members = _unpack(path, Path(self._unpacked.name) / WEIGHTS)
            super().__init__(path, _Inside(path, Path(self._unpacked.name) / WEIGHTS))
        except BaseException:
            self._unpacked.cleanup()
            raise

    def close(self) -> None:
        """Remove the unpacked weights from the disk."""
        self._unpacked.cleanup()

    def surroundings(self) -> Surroundings:
        """The configuration and the tokenizer among the members.

        Raises:
            InputError: the archive changed, or its configuration is no YAML.
        """
        config, tokens = {}, []
        for name, content in _small_members(self.path):
            if _base(name) == CONFIG:
                config = parse_yaml(f"{self.path}: {CONFIG}", content.decode("utf-8", "replace"))
            elif "tokenizer" in name or "vocab" in name:  # NeMo puts a hash of its own before the name
                tokens.append(f"{_base(name).partition('_')[2]} {digest(content)}")
        return Surroundings(flattened(config), tokens="\n".join(sorted(tokens)) or None)

    def _files(self) -> tuple[Path, ...]:
        return (self.path,)

    def _extras(self) -> tuple[str, ...]:
        return tuple(name for name in self._members if _base(name) != WEIGHTS)

    def _writer(self, out: Path, outlines: dict[str, Outline], overwrite: bool) -> Writer:
        check_file(out, (SUFFIX,), self.kind)
        return _Writer(out, outlines, self._prefix, self._weights, self.path)


class _Inside(PickledFiles):
    """The weights, with the archive named in messages rather than the temporary file."""

    def __init__(self, archive: Path, unpacked: Path) -> None:
        try:
            super().__init__(unpacked)
        except InputError as error:
            raise InputError(str(error).replace(str(unpacked), f"{archive}: {WEIGHTS}", 1)) from error


class _Writer(Writer):
    def __init__(self, out: Path, outlines: dict[str, Outline], prefix: str, weights: Any, source: Path) -> None:
        super().__init__(out, outlines, prefix)
        self._weights, self._source = weights, source

    def _open(self, folder: Path, outlines: Mapping[str, Outline]) -> Sink:
        return self._weights.sink(folder, outlines)

    def _publish(self, folder: Path) -> None:
        _repack(self._source, folder / WEIGHTS, folder / self.out.name)
        staging.publish_file(folder / self.out.name, self.out)


# ---- archives


def _unpack(path: Path, weights: Path) -> list[str]:
    """Names of the members; the weights are unpacked."""
    try:
        with tarfile.open(path, "r:*") as archive:
            members = []
            room = max(SMALL, MOST_EXPANSION * path.stat().st_size)
            for member in archive:  # one by one: a few bytes can stand for more than any disk holds
                _check(path, member)
                members.append(member)
                room -= member.size + tarfile.BLOCKSIZE
                if room < 0:
                    what = f"unpacks to more than {MOST_EXPANSION} times its size, which no weights do"
                    raise InputError(f"{path}: {what}; fetch it again from where it was made")
            _check_end(archive)
            found = [member for member in members if member.isfile() and _base(member.name) == WEIGHTS]
            if len(found) != 1:
                listed = ", ".join(member.name for member in members[:5]) or "nothing"
                held = f"holds {len(found)} members {WEIGHTS} but should hold one (found {listed})"
                raise InputError(f"{path}: {held}; save it again with NeMo")
            stream = archive.extractfile(found[0])
            assert stream is not None  # it is a file
            with stream, open(weights, "wb") as target:
                shutil.copyfileobj(stream, target, 1 << 20)
            if weights.stat().st_size != found[0].size:
                raise EOFError(f"{WEIGHTS} ends early")
    except InputError:
        raise
    except DAMAGE as error:
        raise damaged(path, error, ".nemo archive") from error
    except OSError as error:
        remedy = "copy it again, or make room in TMPDIR"
        raise InputError(f"{path}: cannot be unpacked ({error.strerror or error}); {remedy}") from error
    return [member.name for member in members if member.isfile()]


def _small_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Everything in an archive but the weights, as far as it is small."""
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() and _base(member.name) != WEIGHTS else None
                if stream is not None and member.size <= LARGEST_MEMBER:
                    yield member.name, stream.read()
    except DAMAGE as error:
        raise damaged(path, error, ".nemo archive") from error


def _check(path: Path, member: tarfile.TarInfo) -> None:
    if not (member.isfile() or member.isdir()):
        raise InputError(f"{path}: {member.name} is a link or a device, not allowed in a .nemo; pack it again with plain files")
    place = PurePosixPath(member.name.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts or member.name[1:2] == ":":
        raise InputError(f"{path}: {member.name} leads out of the archive; pack it again with plain names")


def _check_end(archive: tarfile.TarFile) -> None:
    """Look for the block of zeros that ends an archive: tarfile takes one that was cut between two members for whole."""
    assert archive.fileobj is not None  # it is open
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError("it ends early")


def _base(name: str) -> str:
    return name.removeprefix("./")


def _repack(source: Path, weights: Path, target: Path) -> None:
    """Copy an archive with other weights: the same members in the same order, the same compression.

    Raises:
        InputError: the source changed since it was opened.
        OSError: the disk.
    """
    try:
        with tarfile.open(source, "r:*") as old, _packing(target, _compression(source)) as new:
            for member in old.getmembers():
                _check(source, member)
                if _base(member.name) == WEIGHTS:
                    changed = copy.copy(member)
                    changed.size = weights.stat().st_size
                    changed.pax_headers = {key: value for key, value in member.pax_headers.items() if key != "size"}
                    with open(weights, "rb") as stream:
                        new.addfile(changed, stream)
                else:
                    new.addfile(member, old.extractfile(member) if member.isfile() else None)
    except DAMAGE as error:
        raise InputError(f"{source}: changed while it was merged ({type(error).__name__}); run again") from error


@contextmanager
def _packing(target: Path, mode: Compression) -> Iterator[tarfile.TarFile]:
    if mode != "gz":
        with tarfile.open(target, f"w:{mode}") as archive:  # type: ignore[call-overload]
            yield archive
        return
    with (
        open(target, "wb") as plain,
        gzip.GzipFile("", "wb", fileobj=plain, mtime=0) as stream,  # without the time, the same bytes whenever run
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        yield archive


def _compression(path: Path) -> Compression:
    with open(path, "rb") as stream:
        start = stream.read(6)
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), "")
