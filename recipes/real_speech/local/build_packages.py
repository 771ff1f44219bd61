"""Packs a checked-out public corpus: a few large files and a manifest with `path,start,end` per utterance.

    python build_packages.py an4    UPSTREAM TARGET     13 MFCC per 10 ms, one npy file
    python build_packages.py digits UPSTREAM TARGET     8 kHz, one FLAC per speaker
    python build_packages.py coffee UPSTREAM TARGET     16 kHz, one FLAC per acoustic cluster (see
    build_coffee.py)

`download.sh` fetches the sources and calls this. The manifest is written last: with it, a package is
complete.
"""

from __future__ import annotations

import argparse
import ast
import csv
import io
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from asrcl.exceptions import InputError
from asrcl.files import atomic_path, write_text

Row = dict[str, object]

AN4_DEV = {"fkai", "fmjd", "mjes", "mmaf", "mmkw", "mmsh", "mtje", "mtxj"}  # training speakers set aside
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ATTRIBUTION = {
    "an4": "AN4 (CMU census database), Carnegie Mellon University; free for any use, terms in the upstream "
    "notices.\n"
    "Source: github.com/cphazen/Machine-Learning-Project-ASR, folder an4.\n"
    "Changes: features joined into feats.npy; transcripts lower-cased; 8 training speakers made dev.\n",
    "digits": "Free Spoken Digit Dataset, Zohar Jackson and contributors, CC BY-SA 4.0.\n"
    "Source: github.com/Jakobovski/free-spoken-digit-dataset.\n"
    "Changes: recordings joined into one FLAC per speaker (lossless); shared under the same licence.\n",
}  # fmt: skip


def read_mfc(path: Path) -> np.ndarray:
    """A Sphinx feature file (a count, then the values, in either byte order) as float32 ``[frames, 13]``."""
    content = path.read_bytes()
    values = len(content) // 4 - 1
    for order in ("<", ">"):
        if (
            len(content) >= 4
            and int(np.frombuffer(content, order + "i4", 1)[0]) == values
            and values % 13 == 0
        ):
            return np.frombuffer(content, order + "f4", offset=4).astype(np.float32).reshape(-1, 13)
    raise InputError(f"{path}: no Sphinx file of 13 cepstra; fetch it again")


def an4_texts(path: Path) -> dict[str, str]:
    """Utterance id -> lower-case transcript, from lines like `YES (an251-fash-b)`."""
    texts = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        found = re.fullmatch(r"\s*(?:<s>)?\s*(.*?)\s*(?:</s>)?\s*\(([\w-]+)\)\s*", line)
        if found:
            texts[found[2]] = found[1].lower()
        elif line.strip():
            raise InputError(f"{path}:{number}: expected 'WORDS (id)'; fetch it again")
    return texts


def build_an4(upstream: Path, target: Path) -> None:
    """`an4/feat/{an4_clstk,an4test_clstk}/SPEAKER/ID.mfc` -> `feats.npy` and the manifest."""
    texts = an4_texts(upstream / "an4" / "etc" / "an4_combined.transcription")
    rows, tables, start = [], [], 0
    for file in _some(upstream / "an4" / "feat", "an4*_clstk/*/*.mfc"):
        part, speaker, name = file.parts[-3], file.parts[-2], file.stem
        if name not in texts:
            raise InputError(f"{file}: has no transcript in an4_combined.transcription; fetch it again")
        table = read_mfc(file)
        end = start + len(table)
        split = "test" if part == "an4test_clstk" else "dev" if speaker in AN4_DEV else "train"
        rows.append({
            "utt_id": name, "path": "feats.npy", "start": start, "end": end,
            "dur": round(len(table) / 100, 2),
            "speaker": speaker, "text": texts[name], "gender": "female" if speaker[0] == "f" else "male",
            "language": "en", "domain": "cen" if name.startswith("cen") else "an", "split": split,
            "src": f"{part}/{speaker}/{name}",
        })  # fmt: skip
        tables.append(table)
        start = end
    with atomic_path(target / "feats.npy") as temporary, open(temporary, "wb") as stream:
        np.save(stream, np.concatenate(tables), allow_pickle=False)
    _finish(target, rows, ATTRIBUTION["an4"], _some(upstream / "an4", "README*"))


def build_digits(upstream: Path, target: Path) -> None:
    """`recordings/DIGIT_SPEAKER_TAKE.wav` -> one FLAC per speaker and the manifest."""
    about = _digit_speakers(upstream / "metadata.py")
    takes: dict[str, list[tuple[int, int, Path]]] = {}
    for file in _some(upstream / "recordings", "*_*_*.wav"):
        digit, speaker, take = file.stem.split("_")
        takes.setdefault(speaker, []).append((int(take), int(digit), file))
    rows = []
    for speaker, found in sorted(takes.items()):
        path, pieces, start = f"audio/{speaker}.flac", [], 0
        for take, digit, file in sorted(found):
            samples, rate = soundfile.read(file, dtype="int16")
            end = start + len(samples)
            rows.append({
                "utt_id": file.stem, "path": path, "start": start, "end": end,
                "dur": round(len(samples) / rate, 3),
                "speaker": speaker, "text": DIGITS[digit], "gender": about[speaker]["gender"],
                "accent": about[speaker]["accent"], "language": "en", "take": take,
                "split": "test" if take < 5 else "train", "src": f"recordings/{file.name}",
            })  # fmt: skip
            pieces.append(samples)
            start = end
        write_flac(target / path, pieces, rate)
    _finish(target, rows, ATTRIBUTION["digits"], [])


def _digit_speakers(path: Path) -> Mapping[str, Mapping[str, str]]:
    """The dictionary in `metadata.py`, read as data: upstream code is never run."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            return ast.literal_eval(node.value)
    raise InputError(f"{path}: holds no dictionary of speakers; fetch it again")


def write_flac(path: Path, pieces: Sequence[np.ndarray], rate: int) -> None:
    """The int16 pieces one after the other as a 16-bit FLAC file."""
    with atomic_path(path) as temporary:
        soundfile.write(temporary, np.concatenate(pieces), rate, format="FLAC", subtype="PCM_16")


def _some(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if not found:
        raise InputError(f"{folder}: no {pattern} here; check that the upstream folder is complete")
    return found


def _finish(target: Path, rows: Iterable[Row], attribution: str, notices: Iterable[Path]) -> None:
    """Licence texts, attribution, and last of all the manifest."""
    for notice in notices:
        shutil.copyfile(notice, target / f"UPSTREAM_{notice.name}")
    write_text(target / "ATTRIBUTION.md", attribution)
    rows = list(rows)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(target / "manifest.csv", stream.getvalue())


def main() -> int:
    """Build one package; errors of the input end with one line and code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", choices=["an4", "digits", "coffee"])
    parser.add_argument("upstream", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    try:
        if options.corpus == "coffee":
            from build_coffee import build_coffee

            rows, attribution, notices = build_coffee(options.upstream, options.target)
            _finish(options.target, rows, attribution, notices)
        else:
            {"an4": build_an4, "digits": build_digits}[options.corpus](options.upstream, options.target)
    except InputError as error:
        sys.stderr.write(f"build_packages: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
