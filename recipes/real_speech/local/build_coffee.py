"""Transcripts, clusters and splits of the coffee orders, whose source gives the content of each order alone.

Each recording is decoded twice by pocketsphinx: under a grammar that allows exactly its known content (in any
order and wording), which gives the transcript, and under the grammar of all orders. Level A: both say the
same words; B: the free decode finds the same content in other words; C: it finds another content, and the
transcript is for training only. Speakers are unnamed: recordings are clustered by the mean and deviation of
their cepstra, and whole clusters go to one split.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
from scipy.cluster.hierarchy import fcluster, linkage

from asrcl.exceptions import InputError
from asrcl.files import atomic_path
from asrcl.speech.corpora.splits import split_speakers

RATE = 16000
CLUSTERS = 55
FRAME = 160  # samples, 10 ms
QUIET = 35.0  # dB below the loudest frame
MARGIN = 15  # frames kept around speech
SLOTS = ("size", "roast", "numberOfShots", "coffeeDrink", "milkAmount", "sugarAmount")
MODIFIERS, EXTRAS = SLOTS[:3], SLOTS[4:]
OPENINGS = (
    "brew", "can i get", "can i have", "could i get", "could i have", "i want", "i would like", "i'd "
    "like", "i'll have",
    "get me", "give me", "make me", "may i have",
)  # fmt: skip
ATTRIBUTION = """Spoken coffee orders of the Picovoice speech-to-intent benchmark, Apache-2.0.
Source: github.com/Picovoice/speech-to-intent-benchmark, folder data/speech/clean.
Changes: silence at the ends cut; joined into one FLAC per acoustic cluster. The transcripts are not
upstream's: they were decoded under grammars fixed to each order's content; level C is unsure. `cluster` is an
acoustic cluster, not a known speaker.
"""

Slots = dict[str, str]


def read_labels(path: Path) -> dict[str, Slots]:
    """File name -> slots, with upstream's stray spaces removed."""
    labels = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: {slot: " ".join(v.split()).lower() for slot, v in e["slots"].items()}
        for name, e in labels.items()
    }


def order_grammar(slots: Mapping[str, list[str]]) -> str:
    """A JSGF grammar of all orders that name each given slot once, each with one of the given values.

    Raises:
        InputError: no drink is given, or there is a slot of another name.
    """
    if "coffeeDrink" not in slots or not set(slots) <= set(SLOTS):
        raise InputError(
            f"slots {sorted(slots)}: an order names a coffeeDrink and otherwise only {', '.join(SLOTS)}"
        )
    before = [f"<{name}>" for name in MODIFIERS if name in slots]
    after = [f"<{name}>" for name in EXTRAS if name in slots]
    extras = f"with ({_any_order(after, ' and ')})" if after else ""
    return _grammar(slots, f"({_any_order(before, ' ')})" if before else "", extras)


def free_grammar(labels: Mapping[str, Slots]) -> str:
    """The grammar of every order, each slot but the drink optional, with all values that occur."""
    values = {name: sorted({s[name] for s in labels.values() if name in s}) for name in SLOTS}
    known = {name: found for name, found in values.items() if found}
    before = [f"[<{name}>]" for name in MODIFIERS if name in known]
    after = [f"<{name}>" for name in EXTRAS if name in known]
    some = " | ".join([*after, _any_order(after, " and ")] if len(after) > 1 else after)
    return _grammar(
        known, f"({_any_order(before, ' ')})" if before else "", f"[with ({some})]" if after else ""
    )


def _any_order(names: list[str], between: str) -> str:
    return " | ".join(between.join(order) for order in permutations(names))


def _grammar(values: Mapping[str, list[str]], modifiers: str, extras: str) -> str:
    rules = [f"<{name}> = {' | '.join(words)};" for name, words in {"opening": OPENINGS, **values}.items()]
    order = f"public <order> = <opening> [a | an] {modifiers} <coffeeDrink> {extras};"
    return "\n".join(["#JSGF V1.0;", "grammar order;", *rules, order, ""])


def slots_of(text: str, values: Mapping[str, set[str]]) -> Slots:
    """The content of an order in words: for each slot the longest known value in it."""
    found: Slots = {}
    padded = f" {text} "
    for name in ("milkAmount", "sugarAmount", "coffeeDrink", "numberOfShots", "roast", "size"):
        inside = [value for value in values.get(name, ()) if f" {value} " in padded]
        if inside:
            found[name] = max(inside, key=len)
            padded = padded.replace(f" {found[name]} ", " | ", 1)
    return found


def one_article(text: str) -> str:
    """Write "a" before a consonant: the grammar leaves the article open, and a weak one sounds like both."""
    return re.sub(r"\ban (?=[^aeiou])", "a ", text)


def trim(samples: np.ndarray) -> np.ndarray:
    """Cut the silence before and after speech, to whole frames of 10 ms."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float64)
    level = 10 * np.log10((frames**2).mean(axis=1) + 1.0)
    loud = np.flatnonzero(level > level.max() - QUIET)
    first, last = max(loud[0] - MARGIN, 0), min(loud[-1] + 1 + MARGIN, len(frames))
    return samples[first * FRAME : last * FRAME]


def cluster(recordings: list[np.ndarray], count: int) -> list[str]:
    """Name an acoustic cluster for every recording (Ward's method, mean and deviation of 20 cepstra)."""
    transform = torchaudio.transforms.MFCC(
        RATE, n_mfcc=20, melkwargs={"n_fft": 512, "hop_length": FRAME, "n_mels": 40}
    )
    rows = []
    for samples in recordings:
        cepstra = transform(torch.from_numpy(samples.astype(np.float32) / 32768))
        rows.append(torch.cat([cepstra.mean(dim=1), cepstra.std(dim=1)]).numpy())
    table = np.stack(rows)
    table = (table - table.mean(axis=0)) / (table.std(axis=0) + 1e-9)
    labels = fcluster(linkage(table, method="ward"), t=count, criterion="maxclust")
    return [f"c{label:02d}" for label in labels]


class OrderDecoder:
    """Decodes orders under a grammar, with the American English model that pocketsphinx brings along."""

    def __init__(self) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise InputError("coffee: transcripts need pocketsphinx; pip install pocketsphinx") from error
        self.decoder = Decoder(samprate=RATE, lm=None, loglevel="FATAL")
        self.known: set[str] = set()

    def __call__(self, samples: np.ndarray, grammar: str, name: str) -> str:
        """The best path through the grammar, "" where there is none. Grammars are kept under their name."""
        if name not in self.known:
            self.decoder.add_jsgf_string(name, grammar)
            self.known.add(name)
        self.decoder.activate_search(name)
        self.decoder.start_utt()
        self.decoder.process_raw(samples.tobytes(), no_search=False, full_utt=True)
        self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        return "" if hypothesis is None else one_article(hypothesis.hypstr.strip().lower())


def build_coffee(upstream: Path, target: Path) -> tuple[list[dict[str, Any]], str, list[Path]]:
    """Write the audio; return the manifest's rows, the attribution and the licence files."""
    labels = read_labels(upstream / "data" / "label" / "label.json")
    values = {name: {s[name] for s in labels.values() if name in s} for name in SLOTS}
    decode, free = OrderDecoder(), free_grammar(labels)
    rows: list[dict[str, Any]] = []
    audio: list[np.ndarray] = []
    for name, slots in sorted(labels.items()):
        samples = _read(upstream / "data" / "speech" / "clean" / name)
        text = decode(samples, order_grammar({k: [v] for k, v in slots.items()}), name)
        if not text:
            continue
        heard = decode(samples, free, "free")
        level = "A" if heard == text else "B" if slots_of(heard, values) == slots else "C"
        audio.append(trim(samples))
        rows.append(
            {
                "utt_id": Path(name).stem,
                "text": text,
                "level": level,
                "slots": json.dumps(slots, sort_keys=True),
            }
        )
        rows[-1]["src"] = f"data/speech/clean/{name}"
    _place(rows, cluster(audio, CLUSTERS))
    return _write(rows, audio, target), ATTRIBUTION, sorted(upstream.glob("LICENSE*"))


def _read(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="int16")
    if rate != RATE or samples.ndim != 1:
        raise InputError(
            f"{path}: {rate} Hz, {samples.ndim} dimensions; expected mono at {RATE} Hz, fetch it again"
        )
    return samples


def _place(rows: list[dict[str, Any]], clusters: list[str]) -> None:
    home = split_speakers(Counter(clusters), dev=49, test=91, seed=0, where="coffee clusters")
    for row, name in zip(rows, clusters, strict=True):
        row |= {"cluster": name, "split": home[name], "path": f"audio/{name}.flac", "language": "en"}


def _write(rows: list[dict[str, Any]], audio: list[np.ndarray], target: Path) -> list[dict[str, Any]]:
    ordered: list[dict[str, Any]] = []
    for path in sorted({row["path"] for row in rows}):
        start, pieces = 0, []
        for row, samples in zip(rows, audio, strict=True):
            if row["path"] == path:
                end = start + len(samples)
                ordered.append(row | {"start": start, "end": end, "dur": round(len(samples) / RATE, 2)})
                pieces.append(samples)
                start = end
        with atomic_path(target / path) as temporary:
            soundfile.write(temporary, np.concatenate(pieces), RATE, format="FLAC", subtype="PCM_16")
    return ordered
