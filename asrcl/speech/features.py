"""Features computed once, kept in one memory-mapped file per set of utterances.

Shapes: T frames, F features per frame. On disk a set is a folder with `features.npy` (all frames, `[sum of T, F]`, float16, or
float32 where a pretrained model is to see them as it was trained), `utterances/` (an Arrow dataset with columns id, text,
speaker, domain, split, offset, frames) and `meta.json` (settings and a content hash per split, and the hashes of all these
files), written last: a folder without it is not complete, one whose files are not what was written is not used, and both are made
again. `sources.json` has the hashes of the recordings.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchaudio
import xxhash
from datasets import Dataset, load_from_disk
from torch import Tensor

from asrcl.entries import DamagedEntry, seal, unseal
from asrcl.exceptions import InputError
from asrcl.experiment.reading import reading
from asrcl.files import hash_json, read_json, write_json
from asrcl.speech.audio import Channel, read_audio, read_cepstra
from asrcl.speech.stored import empty, intact, writing

META, SOURCES = "meta.json", "sources.json"
AN4_WINDOW = 410  # samples at 16 kHz
SHORTEST_WAVE = 895  # samples that the convolutions of Moonshine need for one frame; those of wav2vec 2.0 need 400


@dataclass(frozen=True)
class FeatureConfig:
    """How audio becomes features.

    Attributes:
        kind: "logmel" (Hamming windows of 25 ms every 10 ms), "mfcc13" (the front end of the AN4 corpus, 13 cepstra), or what
            pretrained models were trained with: "whisper" (log-mel of Whisper, by Transformers) and "waveform" (the samples
            themselves, F = 1). A pretrained model brings this setting along; that of the scenario is for all others.
        rate: sampling rate in Hz to which all audio is resampled.
        bins: mel bins of "logmel" and "whisper".
        deltas: append first differences over time (5-point regression), which doubles F.
        normalise: "mean_variance" or "mean" over the frames of each utterance, or "none".
        speeds: speed-perturbed copies of the training split; 1.0 is the original (audio only).
        channel: which channel of a file with several, or "mean"; None refuses such files.
        window: longest utterance in seconds that the model can see, None for no limit.
    """

    kind: Literal["logmel", "mfcc13", "whisper", "waveform"] = "logmel"
    rate: int = 16000
    bins: int = 80
    deltas: bool = False
    normalise: Literal["none", "mean", "mean_variance"] = "mean_variance"
    speeds: tuple[float, ...] = (1.0,)
    channel: Channel = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.kind in ("mfcc13", "whisper") and self.rate != 16000:
            raise InputError(f"features.rate={self.rate}: the {self.kind} front end is made for 16000; audio is resampled to it")
        if self.kind == "whisper" and (self.window is None or self.deltas or self.normalise != "none"):
            raise InputError("features.kind=whisper: needs a window, no deltas, normalise=none; model.kind=pretrained sets them")
        if not 1000 <= self.rate <= 400_000 or not 1 <= self.bins <= 10_000 or not self.speeds or min(self.speeds) <= 0:
            raise InputError(
                f"features: rate ({self.rate}) must be from 1000 to 400000, bins ({self.bins}) from 1 to 10000, speeds "
                f"({', '.join(map(str, self.speeds))}) one or more positive numbers"
            )

    @property
    def size(self) -> int:
        """F, features per frame."""
        width = {"mfcc13": 13, "waveform": 1}.get(self.kind, self.bins)
        return width * (2 if self.deltas else 1)

    @property
    def stored_as(self) -> str:
        """Type of the numbers on disk, as numpy writes it."""
        return "<f4" if self.kind in ("whisper", "waveform") else "<f2"

    @property
    def frames_per_second(self) -> float:
        """Frames of one second of audio."""
        return float(self.rate) if self.kind == "waveform" else 100.0


def _fft_size(rate: int) -> int:
    return 2 ** (int(rate * 0.025) - 1).bit_length()


@cache
def _mel_spectrogram(rate: int, bins: int) -> torchaudio.transforms.MelSpectrogram:
    return torchaudio.transforms.MelSpectrogram(
        sample_rate=rate,
        n_fft=_fft_size(rate),
        win_length=int(rate * 0.025),
        hop_length=int(rate * 0.010),
        n_mels=bins,
        window_fn=torch.hamming_window,
        power=2.0,
    )


def log_mel(wave: Tensor, rate: int, bins: int) -> Tensor:
    """Log-mel energies `[T, bins]` of a waveform `[samples]` in [-1, 1]."""
    return torch.log(_mel_spectrogram(rate, bins)(wave).T + 1e-8)


@cache
def _an4_filters() -> Tensor:
    """The 40 triangular filters of the AN4 front end `[257, 40]`, each of unit area in Hz."""
    lowest, highest = 2595 * np.log10(1 + np.array([130.0, 6800.0]) / 700)
    corners = 700 * (10 ** (np.linspace(lowest, highest, 42) / 2595) - 1)
    corners = np.round(corners / (16000 / 512)) * (16000 / 512)
    frequency = np.arange(257)[:, None] * (16000 / 512)
    low, centre, high = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (frequency - low) / (centre - low), (high - frequency) / (high - centre)
    return torch.tensor(np.clip(np.minimum(rising, falling), 0, None) * 2 / (high - low), dtype=torch.float32)


@cache
def _an4_cosines() -> Tensor:
    """The cosine transform of the AN4 front end `[40, 13]`."""
    order, band = np.arange(13)[None], np.arange(40)[:, None]
    cosines = np.cos(np.pi * order * (band + 0.5) / 40) / 40
    cosines[0] *= 0.5
    return torch.tensor(cosines, dtype=torch.float32)


def an4_cepstra(wave: Tensor) -> Tensor:
    """The 13 mel cepstra `[T, 13]` of the AN4 corpus, from a waveform `[samples]` in [-1, 1] at 16 kHz.

    Pre-emphasis 0.97 on 16-bit samples, symmetric Hamming windows of 410 samples every 160, 512-point power spectrum, 40
    triangular filters from 130 to 6800 Hz, natural logarithm, cosine transform whose band 0 counts half (Sphinx's front end).

    Raises:
        InputError: less than one window of audio.
    """
    if len(wave) < AN4_WINDOW:
        raise InputError(f"audio of {len(wave)} samples is shorter than one window ({AN4_WINDOW}); drop the utterance")
    samples = wave * 32768.0
    samples = torch.cat([samples[:1], samples[1:] - 0.97 * samples[:-1]])
    frames = samples.unfold(0, AN4_WINDOW, 160) * torch.hamming_window(AN4_WINDOW, periodic=False)
    power = torch.fft.rfft(frames, 512).abs().square()
    return torch.log((power @ _an4_filters()).clamp(min=1e-5)) @ _an4_cosines()


@cache
def _whisper_extractor(bins: int, window: int) -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=bins, chunk_length=window)


def whisper_log_mel(wave: Tensor, bins: int, window: int) -> Tensor:
    """Whisper's log-mel features `[T, bins]` of a waveform `[samples]` at 16 kHz, as it sees them in a window of so many seconds.

    Of the silence that fills the window one frame is kept, for it says what the others are: every one has the same value, which
    depends on the loudest frame of the utterance (Radford et al. 2022, arXiv 2212.04356, and its code).
    """
    extractor = _whisper_extractor(bins, window)
    features = extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt")["input_features"][0].T
    heard = (len(wave) + extractor.n_fft // 2 - 1) // extractor.hop_length + 1  # frames whose analysis window has speech in it
    return features[: heard + 1]


def finish(frames: Tensor, config: FeatureConfig) -> Tensor:
    """Append deltas and normalise: `[T, bins]` to `[T, F]`."""
    if config.deltas:
        delta = torchaudio.functional.compute_deltas(frames.T[None])[0].T
        frames = torch.cat([frames, delta], dim=1)
    if config.normalise != "none":
        frames = frames - frames.mean(dim=0)
    if config.normalise == "mean_variance":
        frames = frames / frames.std(dim=0, correction=0).clamp(min=1e-3)
    return frames


def _from_audio(row: dict[str, Any], config: FeatureConfig, speed: float) -> Tensor:
    wave = read_audio(row["path"], row["start"], row["end"], rate=config.rate, channel=config.channel)
    if speed != 1.0:
        wave, _ = torchaudio.functional.speed(wave, config.rate, speed)
    seconds = len(wave) / config.rate
    if config.window is not None and seconds > config.window:
        raise InputError(
            f"{row['path']}: utterance {row['id']} lasts {seconds:.1f} s, longer than the model's window of {config.window} s; "
            "split it (start and end in its corpus), leave it out, or raise model.context"
        )
    shortest = {"mfcc13": AN4_WINDOW, "waveform": SHORTEST_WAVE}.get(config.kind, _fft_size(config.rate) // 2 + 1)
    if len(wave) < shortest:
        raise InputError(
            f"{row['path']}: utterance {row['id']} has {len(wave)} samples at {config.rate} Hz, too few for one window "
            f"({shortest}); drop it from the corpus"
        )
    if config.kind == "whisper":
        return whisper_log_mel(wave, config.bins, config.window or 30)
    if config.kind == "waveform":
        return wave[:, None]
    return log_mel(wave, config.rate, config.bins) if config.kind == "logmel" else an4_cepstra(wave)


def _from_frames(row: dict[str, Any], config: FeatureConfig) -> Tensor:
    if config.kind != "mfcc13":
        raise InputError(f"{row['path']}: holds 13 cepstra, not audio; set features.kind=mfcc13")
    return read_cepstra(row["path"], row["start"], row["end"])


def features_of(row: dict[str, Any], config: FeatureConfig, speed: float = 1.0) -> Tensor:
    """Features `[T, F]` of one utterance, a row of a corpus (see `asrcl.speech.corpora`).

    Raises:
        InputError: audio that cannot be read or is too short, naming the file.
    """
    frames = _from_audio(row, config, speed) if row["kind"] == "audio" else _from_frames(row, config)
    if not len(frames):
        raise InputError(f"{row['path']}: utterance {row['id']} has no frames; drop it from the corpus")
    return finish(frames, config)


class FeatureStore:
    """A finished set of features; opening it reads nothing but the index.

    Args:
        folder: where `build_features` wrote it.
        checked: the content of its record, where the files have been held against it already.

    Raises:
        InputError: the folder holds no complete set; `DamagedEntry` if its files are not what was written.
    """

    def __init__(self, folder: str | Path, checked: dict[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        if checked is None and not os.path.lexists(self.folder / META):
            kind = DamagedEntry if os.path.lexists(self.folder) else InputError  # killed half-way, or never begun
            raise kind(f"{folder}: no features here; run the data stage (asrcl prepare) first")
        try:
            self.meta = checked or unseal(self.folder, META)
        except DamagedEntry as error:
            raise DamagedEntry(f"{error}; run the data stage (asrcl prepare) again") from error
        with reading(folder, "delete it and run the data stage (asrcl prepare) again"):
            self.utterances = load_from_disk(str(self.folder / "utterances"))
            self._frames = np.load(self.folder / "features.npy", mmap_mode="r", allow_pickle=False)
        self._split_rows: dict[str, list[int]] = defaultdict(list)
        for number, split in enumerate(self.utterances["split"]):
            self._split_rows[split].append(number)

    def rows(self, split: str) -> list[dict[str, Any]]:
        """The utterances of one split: id, text, speaker, offset, frames."""
        return [dict(row) for row in self.utterances.select(self._split_rows.get(split, []))]

    def frames(self, row: dict[str, Any]) -> Tensor:
        """Features `[T, F]` float32 of one row."""
        return torch.from_numpy(self._frames[row["offset"] : row["offset"] + row["frames"]].astype(np.float32))

    def fingerprint(self, split: str) -> str:
        """Content hash of a split's features and transcripts."""
        return self.meta["fingerprints"].get(split, "empty")


def _fingerprint(rows: Sequence[dict[str, Any]], frames: np.ndarray) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row['id']}\t{row['text']}\t{row['speaker']}\n".encode())
        digest.update(frames[row["offset"] : row["offset"] + row["frames"]].tobytes())
    return digest.hexdigest()[:16]


def _copies(row: dict[str, Any], config: FeatureConfig) -> tuple[float, ...]:
    return config.speeds if row["split"] == "train" and row["kind"] == "audio" else (1.0,)


def build_features(
    corpus: Dataset,
    config: FeatureConfig,
    folder: str | Path,
    progress: Callable[[list[Any]], Any] = lambda rows: rows,
) -> FeatureStore:
    """Compute the features of a corpus, or reuse them when `folder` already holds the same ones, unchanged.

    They are the same if the settings, the rows and the content of every recording are.

    Args:
        corpus: columns as `asrcl.speech.corpora.columns`.
        config: how to compute them.
        folder: where they go.
        progress: wraps the list of rows, e.g. in a progress bar.

    Raises:
        InputError: see `features_of`; the folder cannot be written.
    """
    target = Path(folder)
    found = intact(target, META)
    sources = _sources(corpus, {} if found is None else read_json(target / SOURCES))
    contents = {path: content for path, (_, content) in sources.items()}
    key = hash_json({"config": asdict(config), "rows": corpus.to_list(), "files": contents})
    if found is not None and found["key"] == key:
        return FeatureStore(target, found)
    with writing(target):
        empty(target, META)
        rows: list[dict[str, Any]] = []
        _write_frames(target / "features.npy", config, _pieces(progress(corpus.to_list()), config, rows))
        frames = np.load(target / "features.npy", mmap_mode="r", allow_pickle=False)
        Dataset.from_list(rows).save_to_disk(str(target / "utterances"))
        splits = sorted({row["split"] for row in rows})
        prints = {split: _fingerprint([row for row in rows if row["split"] == split], frames) for split in splits}
        write_json(target / SOURCES, sources)
        meta = {"key": key, "config": asdict(config), "fingerprints": prints, "frames": len(frames), "size": config.size}
        seal(target, META, meta)
    return FeatureStore(target, meta)


def _pieces(corpus: Iterable[dict[str, Any]], config: FeatureConfig, rows: list[dict[str, Any]]) -> Iterator[np.ndarray]:
    """The features of one utterance after the other, as they are stored; `rows` gets an entry for each."""
    offset = 0
    for row in corpus:
        for speed in _copies(row, config):
            frames = features_of(row, config, speed).numpy().astype(config.stored_as)
            name = row["id"] if speed == 1.0 else f"sp{speed:g}-{row['id']}"
            kept = {column: row[column] for column in ("text", "speaker", "domain", "split")}
            rows.append({"id": name, **kept, "offset": offset, "frames": len(frames)})
            offset += len(frames)
            yield frames


def _write_frames(path: Path, config: FeatureConfig, pieces: Iterable[np.ndarray]) -> None:
    """Append pieces `[T, F]` to one npy file, so that a corpus need not fit into memory."""
    size, header = config.size, {"descr": config.stored_as, "fortran_order": False}
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {**header, "shape": (0, size)})
        total = 0
        for piece in pieces:
            stream.write(piece.tobytes())
            total += len(piece)
        stream.seek(0)  # numpy pads its header, so that the first axis may grow in place
        np.lib.format.write_array_header_1_0(stream, {**header, "shape": (total, size)})


def _sources(corpus: Dataset, known: dict[str, Any]) -> dict[str, list[Any]]:
    """Of every recording its stamp and the hash of its content, which is known already where the stamp is the same.

    The stamp has the time of the last change of any kind, which no program sets: a file that was put in the place of another with
    the other's size and date still has a stamp of its own.
    """
    sources = {}
    for path in sorted(set(corpus["path"])):
        with reading(path, "make it readable, or fetch the corpus again"):
            state = os.stat(path)
            stamp = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
            seen = known.get(path, [None, None])
            sources[path] = [stamp, seen[1] if seen[0] == stamp else _content(path)]
    return sources


def _content(path: str) -> str:
    """Hash of a recording; of recordings there is much, and SHA-256 takes a tenth of the time that their features do."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
