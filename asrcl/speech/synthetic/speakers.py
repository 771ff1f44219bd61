"""Synthetic speakers: an accent's voice with one of espeak-ng's variants, its own pitch and its own pace.

The 45 variants were chosen by measurement among all that espeak-ng 1.52 has, speaking `en-us`.

- Understood: a matcher that knows 62 isolated words from ten voices, never the one at hand (MFCC without
  level, normalised by voice), names 97 % of them or more.
- Voiced: whispers and croaks are out.
- Distinct: picked farthest first by long-term spectrum, pitch and pace, until the next one came closer to
  one already picked than 4.3 dB of spectrum or 18 % of pitch.
- Repeatable: `Reed`, whose samples differ from one run to the next, is out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from asrcl.exceptions import InputError
from asrcl.speech.synthetic.espeak import ACCENTS

# Low, middle and high voices in every pool, in mixed order so that the first few speakers are mixed as well.
POOLS: dict[str, tuple[str, ...]] = {
    "train": (
        "m1", "f1", "edward", "Annie", "Storm", "f5", "michel", "aunty", "grandma", "klatt2", "m3",
        "belinda", "Gene2", "boris", "Nguyen", "mike2", "adam", "Andy", "f3", "pedro", "Mr serious", "Hugo",
        "quincy", "Tweaky", "m5", "m4", "sandro", "Mike", "iven2",
    ),
    "dev": ("m7", "steph2", "victor", "ed", "klatt3", "Jacky"),
    "test": ("m8", "f2", "Michael", "anika", "robert", "Andrea", "pablo", "Gene", "antonio", "paul"),
}  # fmt: skip
"""Voice variants by split: disjoint, so that no test speaker occurs in the training data of any accent."""

VARIANTS: tuple[str, ...] = tuple(variant for pool in POOLS.values() for variant in pool)
"""All usable variants."""


@dataclass(frozen=True)
class Speaker:
    """One synthetic speaker."""

    name: str  # unique across accents, such as "us-f1"
    voice: str  # espeak-ng's name, such as "en-us+f1"
    rate: int  # words per minute
    pitch: int  # 0 to 99
    pitch_range: int  # 0 to 99


def speaker(accent: str, variant: str, take: int = 1) -> Speaker:
    """The speaker of an accent with a voice variant; pitch and pace follow from the two names and the take alone.

    Args:
        accent: key of `ACCENTS`.
        variant: one of `VARIANTS`.
        take: number of the speaker among those who share the variant, from 1; each has a pitch and a pace of its own.

    Raises:
        InputError: no such accent, or a take below 1.
    """
    if accent not in ACCENTS:
        raise InputError(f"accent {accent!r}: no such accent; choose one of {', '.join(ACCENTS)}")
    if take < 1:
        raise InputError(f"take {take}: count from 1")
    name = f"{accent}-{variant}".lower().replace(" ", "_") + (f".{take}" if take > 1 else "")
    rate, pitch, pitch_range = hashlib.sha256(name.encode()).digest()[:3]
    voice = f"{ACCENTS[accent]}+{variant}"
    return Speaker(name, voice, 160 + rate % 31, 42 + pitch % 17, 40 + pitch_range % 21)


def speakers(accent: str, split: str, takes: int = 1) -> list[Speaker]:
    """All speakers of one accent and split: every voice variant of the split, `takes` times with another pitch and pace.

    Raises:
        InputError: no such accent or split, or no takes.
    """
    if split not in POOLS:
        raise InputError(f"split {split!r}: must be one of {', '.join(POOLS)}")
    if takes < 1:
        raise InputError(f"takes {takes}: ask for at least one speaker of every voice")
    return [speaker(accent, variant, take) for take in range(1, takes + 1) for variant in POOLS[split]]


def own_voice(accent: str) -> Speaker:
    """The accent's voice as espeak-ng has it, with no variant, at its usual pitch and pace: that of a screen reader.

    Raises:
        InputError: no such accent.
    """
    if accent not in ACCENTS:
        raise InputError(f"accent {accent!r}: no such accent; choose one of {', '.join(ACCENTS)}")
    return Speaker(f"{accent.lower()}-own_voice", ACCENTS[accent], 175, 50, 50)
