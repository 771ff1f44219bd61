"""General English sentences, written with case and punctuation: statements, questions and exclamations about daily life.

No domain is about them: they measure general speech, or are what a screen reader says. A pattern is a sentence with slots in
angle brackets, which are filled anew each time; numbers are written out, so the text is what the voice was given.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Final

from asrcl.files import hash_json

_SLOT: Final = re.compile(r"<(\w+)>")


def _choices(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|"))


PATTERNS: Final = (
    "<Name> <moved> to <place> <when>, but <pronoun> <regret>.",
    "When the <thing> <broke>, <Name> <reaction>.",
    "Have you seen the <quality> <thing> that <Name> <left> in the <room>?",
    "The <person> at the <building> told us that the <thing> would <fail> before <weekday>.",
    "If it <weather> on <weekday>, we will <activity> instead.",
    "<Name> and <Name> <met> in <place> <number> years ago; they have been friends ever since.",
    "There were <number> <animals> in the <landscape>, and none of them <noticed> the <person>.",
    "Why did the <person> <leave> the <building> without a <thing>?",
    "My <relative> used to say: <saying>.",
    "After the <event>, everybody <walked> through the <landscape> to the <building>.",
    "What a <quality> <thing> you have bought!",
    "The <quality> <thing>, which <Name> had <repaired> twice, <lay> on the floor of the <room>.",
    "I don't think that <Name> <likes> <food>, do you?",
    "In <month>, the <person> <opened> a small <building> near <place>.",
    "We <walked> along the river, past the <building>, and down to the <landscape>.",
    "Please <put> the <thing> back, or my <relative> will be <feeling>.",
    "No one in <place> could <explain> why the <building> was closed in <month>.",
    "<Name> asked whether the <person> had <left> the <thing> in the <room>.",
    "Although the <event> was <quality>, <Name> stayed until the end.",
    "Only <number> of the <person>'s letters have been found; the rest are lost.",
    "How many <animals> live in the <landscape> behind your <relative>'s house?",
    "The train to <place> is <number> minutes late, so we can still <activity>.",
    "It's too <feeling_of> to <activity>, isn't it?",
    "Last <weekday> a <person> <left> <number> <things> outside the <building>.",
    "Don't <put> the <thing> there!",
    "Yes, <Name> has <repaired> it already.",
    "The history of <place> begins with a <person>, a <thing> and <number> <animals>.",
    "Her <relative> was born in <place>, grew up in <place>, and <moved> here <when>.",
    "Nobody <noticed> that the <quality> <things> had <gone>.",
    "Can we <activity> before the <event>, or is there no time?",
    "He had always wanted to <activity>; at last, in <month>, he did.",
    "According to the <person>, <food> <grow> well in this <landscape>.",
)
SLOTS: Final[Mapping[str, tuple[str, ...]]] = {
    "Name": _choices("Alice | Martin | Doctor Reed | Helen | Omar | Ruth | Mister Lane | Sophie | Daniel | Mrs Walker | Nora"),
    "place": _choices("Norway | Bristol | Canada | Vienna | Kenya | Lisbon | Texas | the north of Spain | Calcutta | Geneva"),
    "month": _choices("January | March | April | June | July | September | October | December"),
    "weekday": _choices("Monday | Tuesday | Wednesday | Thursday | Friday | Saturday"),
    "when": _choices("last spring | in the autumn | ten years later | as a child | after the war | a month ago"),
    "number": _choices("two | three | four | seven | nine | eleven | fourteen | sixteen | twenty | thirty | sixty | a hundred"),
    "moved": _choices("moved | travelled | went back | was sent | flew"),
    "pronoun": _choices("they both | nobody else | the children"),
    "regret": _choices("never liked it | soon came home | missed the sea | found little work | made many friends there"),
    "thing": _choices("bicycle | lantern | violin | parasol | suitcase | camera | clock | basket | ladder | kettle | map"),
    "things": _choices("boxes | candles | chairs | parcels | bottles | blankets | newspapers | shovels"),
    "broke": _choices("broke | fell into the water | caught fire | disappeared | stopped working | arrived at last"),
    "reaction": _choices("laughed out loud | called the police | began to cry | said nothing | ran outside | went on reading"),
    "quality": _choices("strange | beautiful | heavy | mysterious | costly | ridiculous | tiny | famous | quiet | broken"),
    "left": _choices("left | lost | kept | put"),
    "room": _choices("attic | kitchen | library | cellar | workshop | corridor | garden"),
    "person": _choices("farmer | captain | teacher | nurse | baker | judge | painter | plumber | gardener | young poet"),
    "building": _choices("station | museum | hospital | school | bakery | theatre | lighthouse | church | town hall | factory"),
    "fail": _choices("be finished | be sold | arrive | be useless | need new wheels"),
    "weather": _choices("rains | snows | is too windy | freezes | clears up"),
    "activity": _choices(
        "visit the market | play chess | bake bread | paint the fence | swim in the lake | read the letters | climb the hill "
        "| plant some trees | watch the ships"
    ),
    "met": _choices("met | married | studied | worked together | got lost"),
    "animals": _choices("horses | sheep | geese | foxes | swallows | goats | squirrels | cows"),
    "landscape": _choices("valley | forest | meadow | harbour | desert | village | vineyard | marsh"),
    "noticed": _choices("noticed | remembered | followed | heard | trusted"),
    "leave": _choices("leave | enter | close | paint | sell"),
    "relative": _choices("grandmother | uncle | brother | cousin | daughter | father | aunt"),
    "saying": _choices(
        "never trust a silent dog | good soup needs time | a full moon brings cold nights | work first, then rest "
        "| rain before seven, fine by eleven"
    ),
    "event": _choices("concert | wedding | election | storm | funeral | lecture | football match | exhibition"),
    "walked": _choices("walked | hurried | wandered | marched"),
    "repaired": _choices("repaired | sold | painted | measured | returned | cleaned"),
    "lay": _choices("lay | stood | was still"),
    "likes": _choices("likes | ever eats | can cook | would buy"),
    "food": _choices("onions | mushrooms | cherries | olives | pears | potatoes | walnuts"),
    "opened": _choices("opened | bought | inherited | rebuilt"),
    "put": _choices("put | bring | carry | throw"),
    "feeling": _choices("angry | disappointed | delighted | worried | proud"),
    "explain": _choices("explain | remember | understand | tell us"),
    "feeling_of": _choices("cold | dark | late | dangerous | early"),
    "gone": _choices("gone | changed | been stolen | arrived"),
    "grow": _choices("grow | sell | keep"),
}


def general_sentence(rng: random.Random) -> str:
    """One random sentence; two slots of one name in it are filled differently."""
    used: dict[str, set[str]] = {}

    def fill(slot: re.Match[str]) -> str:
        taken = used.setdefault(slot[1], set())
        word = rng.choice([choice for choice in SLOTS[slot[1]] if choice not in taken])
        taken.add(word)
        return word

    text = _SLOT.sub(fill, rng.choice(PATTERNS))
    return text[0].upper() + text[1:]


def fingerprint() -> str:
    """Hash of all that sentences are made of."""
    return hash_json([PATTERNS, dict(SLOTS)])
