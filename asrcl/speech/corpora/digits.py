"""Connected digits: strings of 3 to 7 isolated digits of one speaker of the Free Spoken Digit Dataset.

Real speech, artificial connection: 0.1 s lead, then each digit followed by a gap of 0.06 to 0.16 s. Lead and
gaps are filled with noise of two 16-bit steps, so that every frame has a finite log energy. Texts read "three
one seven".

The source has six speakers: jackson, theo (US), lucas, yweweler (German), nicolas (Belgian French), george
(Greek), 50 takes of each digit. Test speakers do not occur in training data:

- all six: train jackson, lucas, george; dev nicolas; test theo, yweweler (all disjoint);
- an accent with two speakers: train and dev one of them (dev takes 0-4 of each digit, train the others), test
  the other;
- an accent with one speaker cannot have an unseen test speaker: refused, unless `shared=True`, which then
  splits that speaker by takes (test 0-4, as upstream; dev 5-9; train the rest). State it where such numbers
  are reported.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from datasets import Dataset

from asrcl.exceptions import InputError
from asrcl.experiment.names import file_stem
from asrcl.experiment.reading import reading
from asrcl.files import atomic_path, hash_file, hash_json
from asrcl.speech.audio import audio_info
from asrcl.speech.corpora.tables import StrPath, absolute, number, read_table
from asrcl.speech.corpora.utterance import AUDIO, Utterance, to_dataset
from asrcl.speech.headers import whole_file
from asrcl.speech.stored import made_once

LEAD = 0.1  # seconds
GAP = (0.06, 0.16)  # seconds
LENGTH = (3, 7)  # digits
NOISE = 2  # standard deviation in 16-bit steps
COUNT = {"train": 600, "dev": 60, "test": 60}
TEST_SPEAKERS = ("theo", "yweweler")
DEV_SPEAKERS = ("nicolas",)
DEV_TAKES, SHARED_TEST_TAKES, SHARED_DEV_TAKES = range(0, 5), range(0, 5), range(5, 10)


@dataclass(frozen=True, slots=True)
class Digit:
    """One isolated digit: a stretch of samples of a speaker's file."""

    path: str
    start: int
    end: int
    word: str
    speaker: str
    accent: str
    take: int


@dataclass(frozen=True, slots=True)
class DigitString:
    """The plan of one connected utterance: its digits, and the gap (samples) after each."""

    digits: tuple[Digit, ...]
    gaps: tuple[int, ...]
    lead: int

    def __len__(self) -> int:
        """Samples of the utterance."""
        return self.lead + sum(d.end - d.start for d in self.digits) + sum(self.gaps)


def load_digits(
    folder: StrPath,
    accents: Sequence[str] | None = None,
    count: Mapping[str, int] | None = None,
    seed: int = 0,
    *,
    audio_dir: StrPath,
    test_speakers: Iterable[str] | None = None,
    dev_speakers: Iterable[str] | None = None,
    shared: bool = False,
    domain: str | None = None,
) -> Dataset:
    """Make (once) and read connected digits.

    Args:
        folder: the package `fsdd_8k`.
        accents: labels or their first part ("USA", "DEU", "BEL", "GRC"); None for all six speakers.
        count: utterances per split, 600/60/60 by default; shared evenly among the split's speakers.
        seed: decides the strings, takes, gaps and noise.
        audio_dir: FLAC files are written here, one per split and speaker, and are not written again while the
            plan is the same and they are what was written.
        test_speakers: who is held out; see the module's docstring for the default.
        dev_speakers: who is used for dev alone.
        shared: allow a single speaker to be split by takes, with a test speaker who also occurs in the training data.
        domain: name of the domain; "digits", or "digits_usa" and so on by default.

    Raises:
        InputError: unknown accents or speakers, or a split that would be left without a speaker or share one
            unasked.
    """
    manifest = Path(folder) / "manifest.csv"
    digits = _choose(_read(manifest), accents, manifest)
    pools = _pools(digits, _names(test_speakers), _names(dev_speakers), shared, manifest)
    counts = dict(COUNT if count is None else count)
    if unknown := set(counts) - set(COUNT):
        raise InputError(f"count: no split {', '.join(sorted(unknown))}; the splits are {', '.join(COUNT)}")
    name = domain or "_".join(["digits", *(a.split("/")[0].lower() for a in accents or ())])
    rate = audio_info(digits[0].path).rate
    with reading(manifest.parent, "fetch the package again"):
        sources = [hash_file(path) for path in sorted({digit.path for digit in digits})]
    key = hash_json([hash_file(manifest), sources, sorted(accents or ()), counts, seed, _speakers(pools), rate, "v2"])
    home = Path(audio_dir).absolute() / f"digits-{key}"
    planned = [
        (split, speaker, plans)
        for split, pool in pools.items()
        for speaker, plans in _plan(pool, counts.get(split, 0), f"{seed}:{split}", rate).items()
    ]

    def make() -> None:
        for split, speaker, plans in planned:
            _write(home / _file_name(split, speaker), plans, rate, f"{seed}:{split}:{speaker}")

    made_once(home, {"key": key}, make)
    utterances: list[Utterance] = []
    for split, speaker, plans in planned:
        prefix = f"{name}-{split}-{speaker}"
        utterances.extend(_utterances(home / _file_name(split, speaker), plans, prefix, name, split))
    return to_dataset(utterances)


def _file_name(split: str, speaker: str) -> str:
    return f"{split}-{file_stem(speaker)}.flac"


def _read(manifest: Path) -> list[Digit]:
    digits = []
    for line, row in read_table(manifest, ("path", "start", "end", "speaker", "text", "accent", "take")):
        start, end, take = (round(number(row[n], f"{manifest}:{line}", n)) for n in ("start", "end", "take"))
        path = absolute(row["path"], manifest.parent)
        digits.append(Digit(path, start, end, row["text"], row["speaker"], row["accent"], take))
    return sorted(digits, key=lambda d: (d.speaker, d.word, d.take))


def _choose(digits: list[Digit], accents: Sequence[str] | None, manifest: Path) -> list[Digit]:
    known = sorted({digit.accent for digit in digits})
    if accents is None:
        return digits
    if isinstance(accents, str):
        raise InputError(f'accents={accents!r}: give a list, e.g. ["{accents}"]')
    wanted = {a.lower() for a in accents}
    missing = [a for a in wanted if not any(a in (k.lower(), k.lower().split("/")[0]) for k in known)]
    if missing or not wanted:
        raise InputError(f"{manifest}: no accent {', '.join(missing)}; choose from {', '.join(known)}")
    return [d for d in digits if wanted & {d.accent.lower(), d.accent.lower().split("/")[0]}]


def _pools(
    digits: list[Digit], test: list[str] | None, dev: list[str] | None, shared: bool, manifest: Path
) -> dict[str, list[Digit]]:
    """The isolated digits that each split may draw from."""
    speakers = sorted({digit.speaker for digit in digits})
    unknown = sorted({*(test or ()), *(dev or ())} - set(speakers))
    if unknown:
        raise InputError(
            f"{manifest}: no speaker {', '.join(unknown)} here; choose from {', '.join(speakers)}"
        )
    if len(speakers) == 1:
        if not shared:
            raise InputError(
                f"{manifest}: only {speakers[0]} speaks with this accent, so no test speaker can be unseen; "
                f"add accents, or pass shared=True to split by recordings and say so with the results"
            )
        return _by_takes(digits, SHARED_DEV_TAKES, SHARED_TEST_TAKES)
    held = test if test is not None else [s for s in TEST_SPEAKERS if s in speakers] or speakers[-1:]
    rest = [s for s in speakers if s not in held]
    apart = dev if dev is not None else [s for s in DEV_SPEAKERS if s in rest and len(rest) > 1]
    training = [d for d in digits if d.speaker in rest and d.speaker not in apart]
    if not held or not training or set(held) & set(apart):
        raise InputError(
            f"{manifest}: speakers {', '.join(speakers)} must serve train and test apart; change test or "
            f"dev speakers"
        )
    testing = [d for d in digits if d.speaker in held]
    if apart:
        return {"train": training, "dev": [d for d in digits if d.speaker in apart], "test": testing}
    return {**_by_takes(training, DEV_TAKES, range(0)), "test": testing}


def _by_takes(digits: list[Digit], dev: range, test: range) -> dict[str, list[Digit]]:
    split = {"train": [d for d in digits if d.take not in dev and d.take not in test]}
    return split | {
        "dev": [d for d in digits if d.take in dev],
        "test": [d for d in digits if d.take in test],
    }


def _names(speakers: Iterable[str] | None) -> list[str] | None:
    return None if speakers is None else list(speakers)


def _speakers(pools: Mapping[str, list[Digit]]) -> dict[str, list[str]]:
    return {split: sorted({d.speaker for d in pool}) for split, pool in pools.items()}


def _plan(pool: list[Digit], count: int, seed: str, rate: int) -> dict[str, list[DigitString]]:
    """`count` digit strings, dealt to the speakers in turn."""
    by_speaker: dict[str, dict[str, list[Digit]]] = {}
    for digit in pool:
        by_speaker.setdefault(digit.speaker, {}).setdefault(digit.word, []).append(digit)
    generator = random.Random(seed)
    speakers = sorted(by_speaker)
    plans: dict[str, list[DigitString]] = {}
    for index in range(count):
        speaker = speakers[index % len(speakers)]
        plans.setdefault(speaker, []).append(_string(by_speaker[speaker], generator, rate))
    return plans


def _string(words: Mapping[str, list[Digit]], generator: random.Random, rate: int) -> DigitString:
    chosen = tuple(
        generator.choice(words[generator.choice(sorted(words))]) for _ in range(generator.randint(*LENGTH))
    )
    gaps = tuple(round(generator.uniform(*GAP) * rate) for _ in chosen)
    return DigitString(chosen, gaps, round(LEAD * rate))


def _write(target: Path, plans: Sequence[DigitString], rate: int, seed: str) -> None:
    """All strings of one speaker and split, one after the other, as 16-bit FLAC."""
    sources = {path: _samples(path) for path in {d.path for p in plans for d in p.digits}}
    noise = np.random.default_rng(int(hash_json(seed), 16))
    pieces: list[np.ndarray] = []
    for plan in plans:
        pieces.append(_silence(plan.lead, noise))
        for digit, gap in zip(plan.digits, plan.gaps, strict=True):
            pieces += [sources[digit.path][digit.start : digit.end], _silence(gap, noise)]
    with atomic_path(target) as temporary:
        soundfile.write(temporary, np.concatenate(pieces), rate, format="FLAC", subtype="PCM_16")


def _samples(path: str) -> np.ndarray:
    with reading(path, "fetch the package again", "cannot be decoded"):
        return soundfile.read(whole_file(path), dtype="int16")[0]


def _silence(samples: int, noise: np.random.Generator) -> np.ndarray:
    return np.rint(noise.normal(0, NOISE, samples)).astype(np.int16)


def _utterances(
    path: Path, plans: Sequence[DigitString], prefix: str, domain: str, split: str
) -> Iterable[Utterance]:
    start = 0
    for index, plan in enumerate(plans):
        text = " ".join(digit.word for digit in plan.digits)
        end = start + len(plan)
        yield Utterance(
            f"{prefix}-{index:04d}", str(path), start, end, AUDIO, text, plan.digits[0].speaker, domain, split
        )
        start = end
