"""Whole synthetic corpora on disk: sentences, speakers and a channel become packed FLAC files and a manifest.

A corpus lies in `<folder>/<domain>-<hash of its settings>/`: one FLAC per split and speaker, `manifest.jsonl` and, written
last, `settings.json`, which holds the hashes of these files. A folder whose files are what was written is only read, so asking
again is free; one that was changed is made again, and other settings go to another folder. Audio and texts are a function of the
settings alone. A split does not depend on the other splits, and a larger one begins with the utterances of the
smaller.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import soundfile
import torch
import torchaudio.transforms
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.experiment.names import check_name
from asrcl.experiment.reading import reading
from asrcl.files import atomic_path, hash_json, write_text
from asrcl.speech.stored import made_once
from asrcl.speech.synthetic import grammar, prose
from asrcl.speech.synthetic.channel import apply_channel, check_channel
from asrcl.speech.synthetic.espeak import ACCENTS, ESPEAK_RATE, Synthesizer, espeak_version
from asrcl.speech.synthetic.speakers import POOLS, Speaker, own_voice, speakers
from asrcl.speech.threads import one_thread

Row = dict[str, Any]
Style = Literal["assistant", "prose"]

TOPIC_OF: dict[str, str] = {
    "US": "home",
    "ENG": "calls",
    "CAR": "shopping",
    "SCO": "music",
    "WMI": "travel",
    "NYC": "cooking",
    "LAN": "sport",
    "RP": "office",
}
"""The topic of each accent's own sentences."""

# Raise when the same settings would give other audio or texts.
_RECIPE_VERSION = 3
_LEVEL_DB, _LEVEL_SPREAD_DB, _PEAK = -26.0, 6.0, 0.95
_TRIM_DB, _MARGIN_SECONDS = -40.0, 0.05


@dataclasses.dataclass(frozen=True)
class _Settings:
    """Everything that the audio and the texts of a corpus depend on."""

    domain: str
    accent: str
    topic: str | None
    topic_share: float
    channel: str | None
    sizes: dict[str, int]
    seed: int
    rate: int
    takes: int = 1
    style: Style = "assistant"
    one_voice: bool = False

    @property
    def name(self) -> str:
        """Begins the ids of utterances: the domain, and of accent, topic and channel what tells two corpora of it apart."""
        parts = [self.domain, self.accent, self.topic or "all", self.channel or "", f"s{self.seed}"]
        return "-".join(part for n, part in enumerate(parts) if part and (n == 0 or part != self.domain))


def synthesise(
    domain: str,
    *,
    accent: str,
    topic: str | None = None,
    channel: str | None = None,
    sizes: dict[str, int],
    seed: int,
    topics: bool = True,
    folder: Path,
    rate: int = 16000,
    topic_share: float = 0.5,
    takes: int = 1,
    style: Style = "assistant",
    one_voice: bool = False,
) -> list[Row]:
    """Make a synthetic corpus, or read it where it has been made before.

    Args:
        domain: name of the domain (see `asrcl.experiment.names`).
        accent: key of `ACCENTS`.
        topic: key of `grammar.TOPICS` for the domain's own sentences; by default the accent's (`TOPIC_OF`).
            Without meaning when `topics` is off.
        channel: one of `CHANNELS`, or None for clean speech.
        sizes: number of utterances for each of "train", "dev", "test"; a split that is left out stays empty.
        seed: of sentences, levels and channels.
        topics: on, the domain has sentences of its own beside the shared ones; off, every domain with this
            seed has the **same list of sentences**, drawn from the shared patterns and all topics.
        folder: where corpora are kept.
        rate: samples per second of the audio files.
        topic_share: share of topic sentences; the rest are shared ones.
        takes: number of speakers that every voice variant makes, each with a pitch and a pace of its own.
        style: "assistant" for the sentences of `grammar`, in lower case without punctuation; "prose" for general sentences with
            case and punctuation (`prose`), which have no topics: every domain with this seed has the same list.
        one_voice: on, the accent's own voice says everything, as a screen reader does; splits then differ in their sentences
            alone, and `takes` is without meaning.

    Returns:
        One dict per utterance with the keys id, path (absolute), start and end (samples), kind ("audio"),
        text, speaker, domain and split; train first, then dev, then test.

    Raises:
        InputError: an argument names something that does not exist or is out of range, espeak-ng is not
            installed, or the folder cannot be written.
    """
    settings = check_settings(
        domain, accent=accent, topic=topic, channel=channel, sizes=sizes, seed=seed, topics=topics, rate=rate,
        topic_share=topic_share, takes=takes, style=style, one_voice=one_voice,
    )  # fmt: skip
    key = _key(settings)
    home = Path(folder).absolute() / f"{domain}-{hash_json(key)}"
    manifest = home / "manifest.jsonl"

    def make() -> None:
        with one_thread():
            rows = [row for split in settings.sizes for row in _make_split(settings, split, home)]
        write_text(manifest, "".join(json.dumps(row) + "\n" for row in rows))

    made_once(home, key, make, "settings.json")
    return _read(manifest)


def check_settings(
    domain: str,
    *,
    accent: str,
    topic: str | None = None,
    channel: str | None = None,
    sizes: dict[str, int],
    seed: int,
    topics: bool = True,
    rate: int = 16000,
    topic_share: float = 0.5,
    takes: int = 1,
    style: Style = "assistant",
    one_voice: bool = False,
) -> _Settings:
    """The arguments of `synthesise` brought into one form, without making anything.

    Raises:
        InputError: an argument names something that does not exist or is out of range.
    """
    if topic is not None:  # refused even where topics are off
        grammar.sentence(random.Random(0), topic)
    own_topic = (topic or TOPIC_OF.get(accent)) if topics and style != "prose" else None
    settings = _Settings(
        domain, accent, own_topic, topic_share, channel, _ordered(sizes), seed, rate, takes, style, one_voice
    )  # fmt: skip
    _check(settings)
    return settings


def _ordered(sizes: dict[str, int]) -> dict[str, int]:
    for split, size in sizes.items():
        if split not in POOLS or not isinstance(size, int) or size < 0:
            raise InputError(f"sizes {split}={size}: give train, dev, test a number of utterances, 0 or more")
    return {split: sizes[split] for split in POOLS if sizes.get(split)}


def _check(settings: _Settings) -> None:
    check_name(settings.domain, "domain")
    if settings.accent not in ACCENTS:
        raise InputError(f"accent {settings.accent!r}: no such accent; choose one of {', '.join(ACCENTS)}")
    if settings.rate < 8000:
        raise InputError(f"rate {settings.rate}: must be 8000 samples per second or more")
    if not settings.sizes:
        raise InputError("sizes: all are 0; ask for at least one utterance in train, dev or test")
    if settings.style not in get_args(Style):
        raise InputError(f"style {settings.style!r}: choose {' or '.join(get_args(Style))}")
    check_channel(settings.channel)
    speakers(settings.accent, "test", settings.takes)
    # Refuses an unknown topic and a share outside [0, 1].
    grammar.sentence(random.Random(0), settings.topic, topic_share=settings.topic_share)


def _key(settings: _Settings) -> Row:
    """The settings with all that they refer to: sentences, speakers, and the version of the voices."""
    topics = [grammar.SHARED, *grammar.TOPICS.values()]
    cast = [each for split in POOLS for each in _cast(settings, split)]
    assistant = hash_json([dataclasses.asdict(topic) for topic in topics])
    # Not in the keys of corpora without them, which older versions have made.
    left_out = {("style", "assistant"), ("one_voice", False)}
    return {
        **dict(entry for entry in dataclasses.asdict(settings).items() if entry[0] == "sizes" or entry not in left_out),
        "recipe": _RECIPE_VERSION,
        "espeakng-loader": espeak_version(),
        "grammar": assistant if settings.style == "assistant" else prose.fingerprint(),
        "speakers": hash_json([dataclasses.asdict(each) for each in cast]),
    }


def _cast(settings: _Settings, split: str) -> list[Speaker]:
    """Who speaks in a split."""
    return [own_voice(settings.accent)] if settings.one_voice else speakers(settings.accent, split, settings.takes)


def _read(manifest: Path) -> list[Row]:
    """Rows with absolute paths; on disk they are relative, so that a corpus may be moved."""
    with reading(manifest, "delete its folder and run again"):
        rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    return [{**row, "path": str(manifest.parent / row["path"])} for row in rows]


def _make_split(settings: _Settings, split: str, home: Path) -> list[Row]:
    """Write the audio of one split, one packed file per speaker; rows in the order of the sentences."""
    parts: dict[str, list[np.ndarray]] = {}
    rows: list[Row] = []
    for index, (text, speaker, wave) in enumerate(_utterances(settings, split)):
        pieces = parts.setdefault(speaker.name, [])
        start = sum(map(len, pieces))
        pieces.append(_to_int16(wave))
        rows.append(
            {
                "id": f"{settings.name}-{split}-{index:05d}",
                "path": f"{split}-{speaker.name}.flac",
                "start": start,
                "end": start + len(wave),
                "kind": "audio",
                "text": text,
                "speaker": speaker.name,
                "domain": settings.domain,
                "split": split,
            }
        )
    for name, pieces in parts.items():
        with atomic_path(home / f"{split}-{name}.flac") as temporary:
            packed = np.concatenate(pieces)
            soundfile.write(str(temporary), packed, settings.rate, format="FLAC", subtype="PCM_16")
    return rows


def _utterances(settings: _Settings, split: str) -> Iterator[tuple[str, Speaker, Tensor]]:
    """Sentences of a split as said by its speakers in turn, through the channel; wave float32 `[samples]`."""
    texts, cast = _texts(settings, split), _cast(settings, split)
    resample = torchaudio.transforms.Resample(ESPEAK_RATE, settings.rate)
    with Synthesizer() as synthesizer:
        for index, text in enumerate(texts):
            speaker = cast[index % len(cast)]
            generator = _generator(f"{settings.seed}/{settings.domain}/{split}/{index}")
            said = synthesizer.say(
                text, speaker.voice, rate=speaker.rate, pitch=speaker.pitch, pitch_range=speaker.pitch_range
            )
            clean = trim(resample(said), settings.rate)
            wave = apply_channel(settings.channel, clean, settings.rate, generator)
            yield text, speaker, _random_level(wave, generator)


def _texts(settings: _Settings, split: str) -> list[str]:
    """The sentences of a split. Without a topic of its own they must not depend on the domain."""
    rng, size = random.Random(f"{settings.seed}/{settings.domain if settings.topic else ''}/{split}"), settings.sizes[split]
    if settings.style == "prose":
        return grammar.distinct(lambda: prose.general_sentence(rng), size, split)
    return grammar.sentences(rng, size, split, settings.topic, topic_share=settings.topic_share)


def _generator(name: str) -> torch.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def trim(wave: Tensor, rate: int) -> Tensor:
    """Leave 50 ms of silence at both ends; silent is what lies more than 40 dB below the peak.

    Args:
        wave: float ``[samples]``.
        rate: samples per second.
    """
    loud = (wave.abs() > wave.abs().max() * 10.0 ** (_TRIM_DB / 20.0)).nonzero()
    if not len(loud):
        return wave
    margin = int(_MARGIN_SECONDS * rate)
    return torch.nn.functional.pad(wave, (margin, margin))[int(loud[0]) : int(loud[-1]) + 1 + 2 * margin]


def _random_level(wave: Tensor, generator: torch.Generator) -> Tensor:
    """Root mean square of -26 dB of full scale, up to 6 dB more or less; quieter where it would clip."""
    level = _LEVEL_DB + _LEVEL_SPREAD_DB * (2.0 * float(torch.rand((), generator=generator)) - 1.0)
    gain = 10.0 ** (level / 20.0) / wave.square().mean().sqrt().clamp(min=1e-9)
    return wave * torch.minimum(gain, _PEAK / wave.abs().max().clamp(min=1e-9))


def _to_int16(wave: Tensor) -> np.ndarray:
    return (wave.numpy() * 32767.0).round().astype(np.int16)
