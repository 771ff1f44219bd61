"""Seeded train/dev/test splits in which no speaker appears twice, or, of one reader's recordings, no text."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from asrcl.exceptions import InputError
from asrcl.speech.corpora.utterance import Utterance
from asrcl.text import basic

Count = Mapping[str, int | None]
"""Utterances per split; None takes what the other splits leave, and a split that is not named stays empty."""
FILLED: Final = ("test", "dev", "train")
"""The splits in the order in which they are filled, so that a larger training set leaves the other two as they are."""


def seeded_order(names: list[str], seed: int) -> list[str]:
    """The names in an order that depends on them and the seed alone, on every machine."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())


def split_speakers(sizes: Mapping[str, int], *, dev: int, test: int, seed: int, where: str) -> dict[str, str]:
    """Assign every speaker to "train", "dev" or "test".

    Test is filled first, then dev, until each holds the wanted number of utterances or a fifth of all. A
    speaker with more than a quarter of the wanted number stays in train while smaller ones remain, so that
    test and dev have many voices.

    Args:
        sizes: number of utterances of each speaker.
        dev: wanted number of dev utterances; 0 for none.
        test: wanted number of test utterances; 0 for none.
        seed: decides which speakers are taken.
        where: the corpus, for the message.

    Raises:
        InputError: there are fewer speakers than splits.
    """
    wanted = {split: count for split, count in (("test", test), ("dev", dev)) if count > 0}
    if len(sizes) < 1 + len(wanted):
        raise InputError(
            f"{where}: {len(sizes)} speakers cannot fill {1 + len(wanted)} splits without sharing one; "
            f"add speakers or set the dev or test size to 0"
        )
    home = dict.fromkeys(sizes, "train")
    left = seeded_order(list(sizes), seed)
    for position, (split, count) in enumerate(wanted.items()):
        goal, reserve = min(count, sum(sizes.values()) // 5), len(wanted) - position
        left.sort(key=lambda speaker: sizes[speaker] > max(goal // 4, 1))
        taken = 0
        while len(left) > reserve and (taken == 0 or taken < goal):
            speaker = left.pop(0)
            home[speaker] = split
            taken += sizes[speaker]
    return home


def choose(utterances: Sequence[Utterance], count: Count | None, *, seed: int, where: str) -> list[Utterance]:
    """So many utterances of each split, in their order; a corpus without splits is divided first.

    Utterances that have a split (`Utterance.split` is not empty) keep it. The others are divided in such a way that no speaker is
    in two splits, where there are at least as many speakers as splits; else that no text is (as `asrcl.text.basic` reads it).
    The same seed gives the same choice on every machine.

    Args:
        utterances: of one corpus.
        count: utterances per split; a speaker (or a text that is read several times) is never parted, so a split may hold a few
            less. None takes all, or, of a corpus without splits, a fifth for test, a tenth for dev and the rest for train.
        seed: decides which are taken.
        where: the corpus, for messages.

    Raises:
        InputError: an unknown split or a size that is none, or fewer utterances than are asked for.
    """
    given = all(utterance.split for utterance in utterances)
    if not given and (with_split := next((row.id for row in utterances if row.split), None)):
        raise InputError(f"{where}: {with_split} has a split and others have none; give every utterance one, or none")
    if count is None and given:
        return list(utterances)
    wanted = _checked(count or {"train": None, "dev": len(utterances) // 10, "test": len(utterances) // 5}, where)
    if given:
        homes: dict[str, str] = {}
        for split, size in wanted.items():
            homes |= _fill([(row.id, row.id) for row in utterances if row.split == split], {split: size}, seed, where)
        return [row for row in utterances if row.id in homes]
    speakers = len({row.speaker for row in utterances}) >= len(wanted)
    homes = _fill([(row.id, row.speaker if speakers else basic(row.text)) for row in utterances], wanted, seed, where)
    return [replace(row, split=homes[row.id]) for row in utterances if row.id in homes]


def _checked(count: Count, where: str) -> dict[str, int | None]:
    """The splits that shall hold something, in the order in which they are filled; what takes the rest is last."""
    for split, size in count.items():
        if split not in FILLED or (size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0)):
            raise InputError(f"{where}: count {split}={size}; give train, dev, test a number of utterances, or null for the rest")
    if sum(size is None for size in count.values()) > 1:
        raise InputError(f"{where}: count gives the rest to several splits; give all but one of them a number")
    filled = sorted((split for split, size in count.items() if size != 0), key=FILLED.index)
    return {split: count[split] for split in sorted(filled, key=lambda split: count[split] is None)}


def _fill(rows: Sequence[tuple[str, str]], wanted: Count, seed: int, where: str) -> dict[str, str]:
    """The split of every utterance that is taken; rows are ids and the groups that must stay together."""
    sizes = Counter(group for _, group in rows)
    left, homes = seeded_order(list(sizes), seed), {}
    for split, goal in wanted.items():
        room = len(rows) if goal is None else goal
        available = sum(sizes[group] for group in left)
        for group in left:
            if sizes[group] <= room:
                homes[group] = split
                room -= sizes[group]
        left = [group for group in left if group not in homes]
        if (goal is not None and available < goal) or split not in homes.values():
            raise InputError(f"{where}: {available} utterances are left for {split}, of {goal or 'any'} asked for; lower count")
    return {name: homes[group] for name, group in rows if group in homes}
