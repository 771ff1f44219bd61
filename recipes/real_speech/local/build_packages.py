"""Packs a checked-out public corpus: a few large files and a manifest with `path,start,end` per utterance.

    python build_packages.py an4    UPSTREAM TARGET     13 MFCC per 10 ms, one npy file
    python build_packages.py digits UPSTREAM TARGET     8 kHz, one FLAC per speaker
    python build_packages.py coffee UPSTREAM TARGET     16 kHz, one FLAC per acoustic cluster (see
    build_coffee.py)
    python build_packages.py ljspeech UPSTREAM TARGET   16 kHz, one FLAC per clip of a part of LJSpeech
    python build_packages.py prompts UPSTREAM TARGET    16 kHz, one FLAC per telephone prompt (needs
    ffmpeg); prompts-es, prompts-fr, prompts-it, prompts-ru: of other languages

`download.sh`, here and in `recipes/pretrained/local`, fetches the sources and calls this. The manifest is written last: with it,
a package is complete.
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import io
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional

from asrcl.exceptions import InputError
from asrcl.files import atomic_path, write_text

Row = dict[str, object]

AN4_DEV = {"fkai", "fmjd", "mjes", "mmaf", "mmkw", "mmsh", "mtje", "mtxj"}  # training speakers set aside
RATE = 16000
LJSPEECH_CLIPS = 385  # of which every second is taken: neighbours are often parts of one sentence
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ATTRIBUTION = {
    "an4": "AN4 (CMU census database), Carnegie Mellon University; free for any use, terms in the upstream "
    "notices.\n"
    "Source: github.com/cphazen/Machine-Learning-Project-ASR, folder an4.\n"
    "Changes: features joined into feats.npy; transcripts lower-cased; 8 training speakers made dev.\n",
    "ljspeech": "LJSpeech 1.1, K. Ito and L. Johnson; public domain.\n"
    "Source: keithito.com/LJ-Speech-Dataset.\n"
    f"Changes: every second of the first {LJSPEECH_CLIPS} clips, resampled to 16 kHz; texts with numbers in words.\n",
    "prompts": "Asterisk core sounds, {credit}, as is this copy.\n"
    "Source: Debian packages asterisk-core-sounds-{language} and asterisk-core-sounds-{language}-g722, 1.6.1-1.\n"
    "Changes: decoded from G.722 to FLAC; entries that describe a sound, or a sign, in square brackets are left out.\n",
    "digits": "Free Spoken Digit Dataset, Zohar Jackson and contributors, CC BY-SA 4.0.\n"
    "Source: github.com/Jakobovski/free-spoken-digit-dataset.\n"
    "Changes: recordings joined into one FLAC per speaker (lossless); shared under the same licence.\n",
}  # fmt: skip
VOICES = {
    "en": ("allison_smith", "English, Digium, recorded by Allison Smith; CC-BY-SA-3.0"),
    "es": ("allison_smith", "Spanish, Digium, recorded by Allison Smith; CC-BY-SA-3.0"),
    "fr": ("june_wallack", "French, recorded by June Wallack, translated by C. Patry, K. Lalletti and J. Wallack; CC-BY-SA-3.0"),
    "it": ("carlo_flora", "Italian, recorded by Carlo Flora, translated by Silvia Petrin; CC-BY-SA-3.0"),
    "ru": ("ivrvoice", "Russian, provided by Maxim Topal (ivrvoice.ru); CC-BY-3.0"),
}
"""Who speaks the prompts of a language, and what the package's copyright file says of them."""


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


def build_ljspeech(upstream: Path, target: Path) -> None:
    """`metadata.csv` and `wavs/` of LJSpeech -> `wavs/ID.flac` and the manifest."""
    rows = []
    for line in (upstream / "metadata.csv").read_text(encoding="utf-8").splitlines()[:LJSPEECH_CLIPS:2]:
        name, _, text = line.split("|")
        samples, rate = soundfile.read(upstream / "wavs" / f"{name}.wav", dtype="float32")
        wave = torchaudio.functional.resample(torch.from_numpy(samples), rate, RATE)
        path = f"wavs/{name}.flac"
        write_flac(target / path, [(wave * 32767).round().clamp(-32768, 32767).numpy().astype(np.int16)], RATE)
        rows.append({"path": path, "dur": round(len(wave) / RATE, 3), "text": text, "speaker": "linda_johnson"})
    _finish(target, rows, ATTRIBUTION["ljspeech"], _some(upstream, "README*"))


def build_prompts(upstream: Path, target: Path, language: str = "en") -> None:
    """The two Debian packages of a language's prompts, sounds and texts -> `audio/NAME.flac` and the manifest."""
    for package in _some(upstream, f"asterisk-core-sounds-{language}*.deb"):
        unpack_deb(package, upstream / "unpacked")
    [sounds] = _some(upstream / "unpacked" / "usr/share/asterisk/sounds", f"{language}_*")
    documents = upstream / "unpacked" / f"usr/share/doc/asterisk-core-sounds-{language}"
    speaker, credit = VOICES[language]
    rows = []
    listing = gzip.decompress((documents / f"core-sounds-{language}.txt.gz").read_bytes()).decode("utf-8-sig")
    for name, text in prompt_texts(listing):
        sound = sounds / f"{name}.g722"
        if "[" not in text and sound.is_file() and sound.stat().st_size:  # Russian has an empty one
            samples, path = read_g722(sound), f"audio/{name.replace('/', '_')}.flac"
            write_flac(target / path, [samples], RATE)
            rows.append({"path": path, "dur": round(len(samples) / RATE, 3), "text": text, "speaker": speaker})
    rows.sort(key=lambda row: str(row["path"]))
    attribution = ATTRIBUTION["prompts"].format(credit=credit, language=language)
    _finish(target, rows, attribution, [documents / "copyright"])


def prompt_texts(listing: str) -> list[tuple[str, str]]:
    """Names and texts of the prompts, from lines like `vm-goodbye: Goodbye.`; `;` begins a comment.

    Of a name that is listed twice the first text counts (Spanish has "diez" for digits/0 after "cero").
    """
    pairs = (line.split(":", 1) for line in listing.splitlines() if ":" in line and not line.startswith(";"))
    found: dict[str, str] = {}
    for name, text in pairs:
        found.setdefault(name.strip(), text.strip())
    return list(found.items())


def unpack_deb(package: Path, target: Path) -> None:
    """The files of a Debian package: an `ar` archive (deb(5)), of whose members `data.tar.*` holds them."""
    content = package.read_bytes()
    place = len(b"!<arch>\n")
    while place + 60 <= len(content):
        name, size = content[place : place + 16].decode("ascii").strip(" /"), int(content[place + 48 : place + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(content[place + 60 : place + 60 + size])) as archive:
                archive.extractall(target, filter="data")
            return
        place += 60 + size + size % 2
    raise InputError(f"{package}: no Debian package with files in it; fetch it again")


def read_g722(path: Path) -> np.ndarray:
    """The samples of a raw G.722 file, int16 ``[samples]`` at 16 kHz, decoded by ffmpeg."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise InputError("prompts: decoding G.722 needs ffmpeg; install it (apt install ffmpeg)")
    command = [program, "-v", "error", "-f", "g722", "-i", str(path), "-f", "s16le", "-ac", "1", "-ar", str(RATE), "-"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no sound"]
        raise InputError(f"{path}: ffmpeg cannot decode it ({reason[0]}); fetch it again")
    return np.frombuffer(done.stdout, dtype="<i2")


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


PLAIN = {"an4": build_an4, "digits": build_digits, "ljspeech": build_ljspeech, "prompts": build_prompts}
PLAIN |= {f"prompts-{language}": partial(build_prompts, language=language) for language in VOICES if language != "en"}


def main() -> int:
    """Build one package; errors of the input end with one line and code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", choices=[*PLAIN, "coffee"])
    parser.add_argument("upstream", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    try:
        if options.corpus == "coffee":
            from build_coffee import build_coffee

            rows, attribution, notices = build_coffee(options.upstream, options.target)
            _finish(options.target, rows, attribution, notices)
        else:
            PLAIN[options.corpus](options.upstream, options.target)
    except InputError as error:
        sys.stderr.write(f"build_packages: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
