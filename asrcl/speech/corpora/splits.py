"""Seeded train/dev/test splits in which no speaker appears twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from asrcl.exceptions import InputError


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
