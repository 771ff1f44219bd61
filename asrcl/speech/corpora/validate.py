"""One place that finds broken utterances before a run does."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from datasets import Dataset

from asrcl.exceptions import InputError
from asrcl.experiment.reading import plain
from asrcl.files import write_text
from asrcl.speech.audio import AudioInfo, Channel, audio_info, check_part, open_cepstra, read_audio
from asrcl.speech.corpora.tables import StrPath
from asrcl.speech.corpora.utterance import AUDIO, MFCC13, TARRED, Utterance, to_utterances

CEPSTRA_RATE = 100  # frames per second
SHOWN = 3  # broken utterances quoted in a message
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Broken:
    """An utterance that cannot be used, and why (with the remedy where there is one)."""

    id: str
    file: str
    reason: str


def validate(
    dataset: Dataset,
    *,
    max_broken_share: float = 0.01,
    alphabet: Iterable[str] | None = None,
    minimum_seconds: float = 0.05,
    longest_seconds: float = math.inf,
    channel: Channel = None,
    text_required: bool = True,
    decode: bool = False,
) -> tuple[Dataset, list[Broken]]:
    """Set aside the utterances that cannot be used.

    Broken is: audio that is missing, unreadable, empty, shorter than `minimum_seconds`, longer than `longest_seconds`, or of
    several channels without a choice among them; a part outside its file; an empty transcript; a character outside
    `alphabet`; an id that appeared before, is empty or holds control characters. A sampling rate of its own is not broken:
    reading resamples.

    Args:
        dataset: a corpus with the columns of `Utterance`.
        max_broken_share: above this share of broken utterances the corpus is refused.
        alphabet: the characters that transcripts may hold; None allows all.
        minimum_seconds: shortest utterance.
        longest_seconds: longest utterance that the model can see.
        channel: as in `read_audio`.
        text_required: whether an empty transcript is broken.
        decode: also decode every utterance to its end (slow; finds files that break off half-way).

    Returns:
        The corpus without the broken utterances, and the list of these.

    Raises:
        InputError: the corpus is empty, too many utterances are broken, or a domain has none left in a split.
    """
    if len(dataset) == 0:
        raise InputError("corpus: holds no utterances; check the loader's folder and filters")
    checks = _Checks(
        None if alphabet is None else frozenset(alphabet), minimum_seconds, longest_seconds, channel, text_required, decode
    )
    keep: list[int] = []
    broken: list[Broken] = []
    for index, utterance in enumerate(to_utterances(dataset)):
        reason = checks.reason(utterance)
        if reason is None:
            keep.append(index)
        else:
            broken.append(Broken(plain(utterance.id), plain(utterance.path), plain(reason)))
    _refuse_too_many(broken, len(dataset), max_broken_share)
    clean = dataset.select(keep) if broken else dataset
    _refuse_empty_split(dataset, clean, broken)
    return clean, broken


def write_broken(broken: Sequence[Broken], path: StrPath) -> None:
    """Write the list as tab-separated text with a header: id, file, reason."""
    rows = [("id", "file", "reason"), *((item.id, item.file, item.reason) for item in broken)]
    write_text(path, "".join("\t".join(plain(cell) for cell in row) + "\n" for row in rows))


class _Checks:
    def __init__(
        self,
        alphabet: frozenset[str] | None,
        minimum: float,
        longest: float,
        channel: Channel,
        text_required: bool,
        decode: bool,
    ) -> None:
        self.alphabet = alphabet
        self.minimum, self.longest = minimum, longest
        self.channel = channel
        self.text_required = text_required
        self.decode = decode
        self.seen: set[str] = set()
        self.headers: dict[str, AudioInfo | InputError] = {}

    def reason(self, utterance: Utterance) -> str | None:
        """Why the utterance is broken, or None."""
        if not utterance.id or _HIDDEN.search(utterance.id):
            return "an id that is empty or holds control characters; rename it"
        repeated = utterance.id in self.seen
        self.seen.add(utterance.id)
        if repeated:
            return "duplicate id; rename or remove one"
        return self._text(utterance.text) or self._sound(utterance)

    def _text(self, text: str) -> str | None:
        if not text.strip():
            return "empty transcript; add the text or remove the utterance" if self.text_required else None
        unknown = set() if self.alphabet is None else set(text) - self.alphabet
        if unknown:
            shown = " ".join(sorted(repr(character) for character in unknown))
            remedy = "normalise the text, or allow them (text.alphabet: any) where the tokeniser can write them"
            return f"characters outside the alphabet: {shown}; {remedy}"
        return None

    def _sound(self, utterance: Utterance) -> str | None:
        if utterance.kind == TARRED:
            return (
                "lies in a tar file of a tarred dataset; unpack them (tar -xf audio_0.tar -C FOLDER) and name the folder with "
                "root, or use the manifest from before it was tarred"
            )
        if utterance.kind not in (AUDIO, MFCC13):
            return f"kind {utterance.kind!r} is not known; use {AUDIO} or {MFCC13}"
        try:
            info = self._header(utterance)
            unit = "samples" if utterance.kind == AUDIO else "frames"
            stop = check_part(utterance.path, utterance.start, utterance.end, info.frames, unit)
            if utterance.kind == AUDIO and (self.decode or info.channels > 1):
                self._listen(utterance, info, stop)
        except InputError as error:
            return str(error).removeprefix(f"{utterance.path}: ")
        seconds = (stop - utterance.start) / info.rate
        if seconds < self.minimum:
            return (
                f"only {seconds:.3f} s long; lower minimum_seconds ({self.minimum}) or remove the utterance"
            )
        if seconds > self.longest:
            return f"{seconds:.2f} s long, the model sees {self.longest:g}; split it, leave it out, or raise model.context"
        return None

    def _header(self, utterance: Utterance) -> AudioInfo:
        if utterance.path not in self.headers:
            self.headers[utterance.path] = self._open(utterance)
        found = self.headers[utterance.path]
        if isinstance(found, InputError):
            raise found
        return found

    def _open(self, utterance: Utterance) -> AudioInfo | InputError:
        try:
            if utterance.kind == AUDIO:
                return audio_info(utterance.path)
            table = open_cepstra(utterance.path)
        except InputError as error:
            return error
        if table.shape[1] != 13:
            return InputError(
                f"{utterance.path}: {table.shape[1]} coefficients per frame, not 13; write 13 MFCC"
            )
        return AudioInfo(CEPSTRA_RATE, len(table), 1)

    def _listen(self, utterance: Utterance, info: AudioInfo, stop: int) -> None:
        """Read the utterance (one sample of it where only the channels matter) as a run would."""
        end = stop if self.decode else utterance.start + 1
        read_audio(utterance.path, utterance.start, end, rate=info.rate, channel=self.channel)


def _refuse_too_many(broken: Sequence[Broken], total: int, allowed: float) -> None:
    if len(broken) <= allowed * total:
        return
    examples = " | ".join(f"{item.id} ({item.file}): {item.reason}" for item in broken[:SHOWN])
    raise InputError(
        f"corpus: {len(broken)} of {total} utterances are broken, more than max_broken_share={allowed:g}; "
        f"mend them or raise the share; the first: {examples}"
    )


def _refuse_empty_split(dataset: Dataset, clean: Dataset, broken: Sequence[Broken]) -> None:
    before = Counter(zip(dataset["domain"], dataset["split"], strict=True))
    after = set(zip(clean["domain"], clean["split"], strict=True))
    for domain, split in before:
        if (domain, split) not in after:
            raise InputError(
                f"domain {domain}, split {split}: all {before[domain, split]} utterances are broken; "
                f"mend them, for example {broken[0].id}: {broken[0].reason}"
            )
