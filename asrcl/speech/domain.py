"""A speech domain: a feature store and a tokeniser that give length-bucketed batches.

Shapes: B utterances, T frames, F features, L tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.files import hash_json
from asrcl.speech.features import FeatureStore
from asrcl.speech.tokenizer import Tokenizer


@dataclass(frozen=True)
class SpeechBatch:
    """Padded utterances.

    Attributes:
        ids, speakers, references: one string per utterance.
        features: `[B, T, F]` float32, zero beyond each length.
        lengths: `[B]` frames.
        tokens: `[B, L]` token indices, 0 beyond each length.
        token_lengths: `[B]`.
        domain: name of the domain that the utterances are from.
        mixable: whether utterances of several domains may stand in one batch; not where the model is told their language.
    """

    ids: tuple[str, ...]
    speakers: tuple[str, ...]
    references: tuple[str, ...]
    features: Tensor
    lengths: Tensor
    tokens: Tensor
    token_lengths: Tensor
    domain: str = ""
    mixable: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Self:
        """The same batch on `device`."""
        names = ("features", "lengths", "tokens", "token_lengths")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def as_of(self, domain: str) -> Self:
        """The same utterances under the name of another domain; all share one head."""
        return replace(self, domain=domain)

    def items(self) -> Iterator[Self]:
        """The utterances one by one, cut to their own lengths."""
        for i in range(len(self)):
            yield type(self)(
                self.ids[i : i + 1],
                self.speakers[i : i + 1],
                self.references[i : i + 1],
                self.features[i : i + 1, : int(self.lengths[i])],
                self.lengths[i : i + 1],
                self.tokens[i : i + 1, : int(self.token_lengths[i])],
                self.token_lengths[i : i + 1],
                self.domain,
                self.mixable,
            )

    @classmethod
    def collate(cls, parts: Sequence[Self]) -> Self:
        """One batch with the utterances of several, padded to the longest."""
        utterances = [utterance for part in parts for utterance in part.items()]
        pad = torch.nn.utils.rnn.pad_sequence
        return cls(
            tuple(name for part in parts for name in part.ids),
            tuple(name for part in parts for name in part.speakers),
            tuple(text for part in parts for text in part.references),
            pad([utterance.features[0] for utterance in utterances], batch_first=True),
            torch.cat([part.lengths for part in parts]),
            pad([utterance.tokens[0] for utterance in utterances], batch_first=True),
            torch.cat([part.token_lengths for part in parts]),
            parts[0].domain,
            parts[0].mixable,
        )


def bucket(
    lengths: Sequence[int], max_frames: int, max_items: int, generator: random.Random | None = None
) -> list[list[int]]:
    """Group utterances of similar length: each group's padded size is at most `max_frames` frames and `max_items` items.

    Returns lists of positions into `lengths`; an utterance longer than `max_frames` gets a group of its own. A generator varies
    the order of lengths by up to 15 %, so that groups differ from call to call.
    """
    order = [length * generator.uniform(0.85, 1.15) if generator else length for length in lengths]
    groups: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=order.__getitem__):
        longest = max(longest, lengths[position])
        if not groups or len(groups[-1]) >= max_items or longest * (len(groups[-1]) + 1) > max_frames:
            groups.append([])
            longest = lengths[position]
        groups[-1].append(position)
    return groups


class SpeechDomain:
    """One accent, microphone or vocabulary, behind the `asrcl.contract.protocols.Domain` protocol.

    Args:
        name: short name, a column of the result tables.
        store: features and transcripts.
        tokenizer: the scenario's one tokeniser.
        max_frames: padded frames per batch at most.
        max_items: utterances per batch at most.
        splits: those that a run needs.
        mixable: see `SpeechBatch`.
        evaluation_frames, evaluation_items: the same limits outside of training, where no gradients are kept; None: as there.

    Raises:
        InputError: a split that a run needs is empty.
    """

    def __init__(
        self,
        name: str,
        store: FeatureStore,
        tokenizer: Tokenizer,
        max_frames: int = 4000,
        max_items: int = 16,
        splits: Sequence[str] = ("train", "dev", "test"),
        evaluation_frames: int | None = None,
        evaluation_items: int | None = None,
        mixable: bool = True,
    ) -> None:
        self.name, self.mixable = name, mixable
        self.evaluation = evaluation_frames or max_frames, evaluation_items or max_items
        self.max_frames, self.max_items = max_frames, max_items
        self._store, self._tokenizer = store, tokenizer
        self._rows: dict[str, list[dict[str, Any]]] = {}
        for split in splits:
            if not self.rows(split):
                raise InputError(
                    f"{store.folder}: domain {name} has no {split} utterances; give it a {split} set or leave it out"
                )

    def rows(self, split: str) -> list[dict[str, Any]]:
        """The utterances of a split with their token indices."""
        if split not in self._rows:
            rows = self._store.rows(split)
            self._rows[split] = [{**row, "tokens": self._tokenizer.encode(row["text"])} for row in rows]
        return self._rows[split]

    def size(self, split: str) -> int:
        """Number of utterances."""
        return len(self.rows(split))

    def fingerprint(self, split: str) -> str:
        """Content hash of features, transcripts, tokeniser and batching."""
        parts = [self._store.fingerprint(split), self._tokenizer.fingerprint, self.max_frames, self.max_items]
        return hash_json(parts)

    def item(self, split: str, position: int) -> SpeechBatch:
        """One utterance as a batch of one."""
        return self._collate([self.rows(split)[position]])

    def batches(self, split: str, *, shuffle: bool, seed: int) -> Iterable[SpeechBatch]:
        """Batches of utterances of similar length; shuffling draws new groups and a new order from `seed`.

        Raises:
            InputError: there is no such split.
        """
        rows = self.rows(split)
        if not rows:
            raise InputError(f"domain {self.name}: no split {split}; choose train, dev or test")
        generator = random.Random(seed)
        lengths = [row["frames"] for row in rows]
        limits = (self.max_frames, self.max_items) if split == "train" else self.evaluation
        groups = bucket(lengths, *limits, generator if shuffle else None)
        if shuffle:
            generator.shuffle(groups)
        for group in groups:
            yield self._collate([rows[position] for position in group])

    def _collate(self, rows: Sequence[dict[str, Any]]) -> SpeechBatch:
        pad = torch.nn.utils.rnn.pad_sequence
        tokens = [torch.tensor(row["tokens"], dtype=torch.long) for row in rows]
        return SpeechBatch(
            tuple(row["id"] for row in rows),
            tuple(row["speaker"] for row in rows),
            tuple(row["text"] for row in rows),
            pad([self._store.frames(row) for row in rows], batch_first=True),
            torch.tensor([row["frames"] for row in rows]),
            pad(tokens, batch_first=True),
            torch.tensor([len(row["tokens"]) for row in rows]),
            self.name,
            self.mixable,
        )
