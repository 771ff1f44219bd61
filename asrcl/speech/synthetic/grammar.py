"""A small closed grammar of voice-assistant sentences: patterns shared by all, and a topic for each accent.

A pattern is a sentence with slots in angle brackets; a sentence is a pattern with every slot filled. Texts
are lower-case words and single spaces, numbers are written out, so the reference is what the voice was
given.

Which split a sentence may appear in depends on the sentence alone (`split_of`), so no test sentence is ever a
training sentence, whatever the seed, the accent and the sizes.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from asrcl.exceptions import InputError

_SLOT = re.compile(r"<(\w+)>")


@dataclass(frozen=True)
class Topic:
    """Patterns with `<slots>` and what may fill them; slots that a topic lacks are the shared ones."""

    patterns: tuple[str, ...]
    slots: Mapping[str, tuple[str, ...]]


def _choices(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


SHARED = Topic(
    patterns=(
        "what is the weather like in <city> <day>",
        "will it <fall> in <city> <day>",
        "set an alarm for <hour> <half>",
        "wake me up at <hour> <half> <day>",
        "start a timer for <number> <unit>",
        "what time is it in <city>",
        "remind me to <task> <day>",
        "remind <name> to <task> <day>",
        "how far is <city> from <city>",
        "what is <number> <sign> <number>",
        "how old is <name> now",
        "is <name> in <city> <day>",
    ),
    slots={
        "city": _choices("london, paris, boston, dublin, cairo, madrid, sydney, oslo"),
        "day": _choices("today, tonight, tomorrow, on monday, on tuesday, on friday, on sunday"),
        "fall": _choices("rain, snow, be sunny, be windy"),
        "hour": _choices("one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve"),
        "half": _choices("fifteen, thirty, in the morning, in the evening"),
        "number": _choices(
            "two, three, five, eight, ten, twelve, fifteen, twenty, thirty, forty, fifty, ninety"
        ),
        "sign": _choices("plus, minus, times"),
        "unit": _choices("seconds, minutes, hours"),
        "task": _choices("water the plants, feed the cat, take the medicine, clean the car, do the homework"),
        "name": _choices("anna, david, emma, george, laura, michael, peter, sarah"),
    },
)

TOPICS: dict[str, Topic] = {
    "home": Topic(
        patterns=(
            "turn <switch> the <device> in the <room>",
            "switch <switch> the <room> <device> <day>",
            "dim the <room> lights to <number> percent",
            "set the <room> thermostat to <number> degrees",
            "make the <room> a bit <feel> <day>",
            "open the <room> <cover> at <hour> <half>",
            "lock the <door> door at <hour>",
            "is the <door> door locked",
        ),
        slots={
            "switch": _choices("on, off"),
            "device": _choices("lights, lamp, heater, fan, television"),
            "room": _choices("kitchen, bedroom, bathroom, hallway, basement"),
            "feel": _choices("warmer, cooler, brighter"),
            "cover": _choices("blinds, curtains, window"),
            "door": _choices("front, back, garage, cellar"),
        },
    ),
    "calls": Topic(
        patterns=(
            "call <person> <day> on <line>",
            "send <person> a message saying <news>",
            "text <name> and <person> that <news>",
            "did <person> leave a voicemail <day>",
            "dial extension <number> <number>",
            "redial <person> on <line>",
            "block the unknown caller from <city>",
            "forward the <mail> from <person> to <name>",
        ),
        slots={
            "person": _choices(
                "my mother, my brother, my uncle, the dentist, the plumber, doctor wilson, grandma"
            ),
            "line": _choices("speaker, video, his mobile"),
            "news": _choices("i am late, dinner is ready, we are outside, congratulations"),
            "mail": _choices("message, email, invitation"),
        },
    ),
    "shopping": Topic(
        patterns=(
            "add <amount> <goods> and <goods> to my basket",
            "order <amount> <goods> for delivery <day>",
            "how much is the <quality> <product>",
            "find a <quality> <product> under <number> dollars",
            "put <amount> <goods> on the grocery list",
            "return the <quality> <product> for a refund",
            "is the <quality> <product> in stock <day>",
        ),
        slots={
            "amount": _choices("some, a kilo of, two boxes of, a bag of"),
            "goods": _choices("mangoes, bananas, potatoes, biscuits, candles, eggs"),
            "quality": _choices("leather, yellow, purple, wooden, cotton"),
            "product": _choices("jacket, umbrella, backpack, mattress, necklace, wallet"),
        },
    ),
    "music": Topic(
        patterns=(
            "play <genre> by <artist>",
            "play the <order> <piece> by <artist>",
            "skip this <piece> and shuffle <genre>",
            "turn the volume <direction> to level <number>",
            "repeat the <order> <piece> <day>",
            "who plays the <instrument> with <artist>",
            "mix <genre> and <genre> in my <order> playlist",
            "wake <name> with the <piece> by <artist>",
        ),
        slots={
            "genre": _choices("jazz, folk songs, lullabies, gospel, reggae"),
            "artist": _choices("the beatles, mozart, madonna, coltrane, the village choir"),
            "order": _choices("first, next, newest, loudest"),
            "piece": _choices("song, album, concerto, melody"),
            "direction": _choices("up, down"),
            "instrument": _choices("guitar, piano, violin, drums, bagpipes"),
        },
    ),
    "travel": Topic(
        patterns=(
            "book a <class> ticket to <place> <day>",
            "when does the <vehicle> from <city> to <place> depart",
            "which platform is the <vehicle> to <place>",
            "reserve a <lodging> near <place> <day>",
            "is the <vehicle> to <place> delayed <day>",
            "cancel the <lodging> in <city> <day>",
            "show the fastest route from <city> to <place>",
            "avoid <obstacle> on the way to <place>",
        ),
        slots={
            "class": _choices("single, cheap, student, weekend"),
            "place": _choices("birmingham, the airport, the harbour, the museum, brussels, the border"),
            "vehicle": _choices("train, ferry, flight, tram"),
            "lodging": _choices("hostel, hotel suite, campsite, parking space"),
            "obstacle": _choices("motorways, tolls, traffic jams, bridges"),
        },
    ),
    "cooking": Topic(
        patterns=(
            "how long should i <cook> the <food>",
            "give me a <style> <dish> with <food>",
            "<cook> the <food> with <spice> and <spice>",
            "what can replace <spice> in the <style> <dish>",
            "chop the <food> and add <spice>",
            "preheat the oven for the <dish> <day>",
        ),
        slots={
            "cook": _choices("boil, roast, fry, steam, grill"),
            "food": _choices("chicken, onions, mushrooms, carrots, salmon, lentils"),
            "style": _choices("vegan, spicy, italian, creamy"),
            "spice": _choices("garlic, ginger, pepper, vinegar, parsley"),
            "dish": _choices("recipe, lasagna, casserole, curry, soup"),
        },
    ),
    "sport": Topic(
        patterns=(
            "when is the <sport> <contest> in <city>",
            "what was the score between <team> and <team>",
            "give me the <kind> headlines from <city>",
            "will the <team> beat the <team> <day>",
            "is the <role> of the <team> injured",
            "did <name> win the <sport> <contest>",
            "did the <team> defeat the <team> <day>",
            "show the <sport> league table",
        ),
        slots={
            "sport": _choices("football, rugby, cricket, hockey, tennis"),
            "contest": _choices("match, final, championship, tournament"),
            "kind": _choices("political, financial, breaking, local"),
            "team": _choices("rovers, wolves, eagles, rangers, giants"),
            "role": _choices("goalkeeper, captain, striker, coach"),
        },
    ),
    "office": Topic(
        patterns=(
            "schedule a <meeting> with <group> <day>",
            "move the <meeting> to <hour> <half>",
            "share the <document> with <group>",
            "print <number> copies of the <document>",
            "when is the <project> <deadline>",
            "invite <group> to the <project> <meeting>",
            "summarise the <document> for <name> and <group>",
            "who approved the <project> <document>",
        ),
        slots={
            "meeting": _choices("workshop, interview, conference, briefing"),
            "group": _choices("accounting, the board, marketing, my colleagues, the lawyers"),
            "document": _choices("budget, contract, agenda, invoice, presentation"),
            "deadline": _choices("deadline, review, launch"),
            "project": _choices("pension, audit, website, warehouse"),
        },
    ),
}


def _fill(rng: random.Random, topic: Topic) -> str:
    slots = {**SHARED.slots, **topic.slots}
    return _SLOT.sub(lambda slot: rng.choice(slots[slot[1]]), rng.choice(topic.patterns))


def _topic(name: str) -> Topic:
    if name not in TOPICS:
        raise InputError(f"topic {name!r}: no such topic; choose one of {', '.join(TOPICS)}")
    return TOPICS[name]


def sentence(rng: random.Random, topic: str | None = None, *, topic_share: float = 0.5) -> str:
    """One random sentence.

    Args:
        rng: source of all randomness.
        topic: name of the topic in `TOPICS`; None draws one anew every time: the same mixture everywhere.
        topic_share: probability of a topic's sentence; the rest are shared ones.

    Raises:
        InputError: no such topic, or `topic_share` is no probability.
    """
    if not 0.0 <= topic_share <= 1.0:
        raise InputError(f"topic_share {topic_share}: must lie between 0 and 1")
    chosen = _topic(topic if topic is not None else rng.choice(list(TOPICS)))
    return _fill(rng, chosen if rng.random() < topic_share else SHARED)


def split_of(text: str) -> str:
    """The split a sentence belongs to: a tenth of all is `test`, a tenth `dev`, the rest `train`."""
    digit = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 10
    return {0: "test", 1: "dev"}.get(digit, "train")


def sentences(
    rng: random.Random, count: int, split: str, topic: str | None = None, *, topic_share: float = 0.5
) -> list[str]:
    """`count` sentences of one split; a longer list from the same `rng` state begins with the shorter one.

    Sentences are distinct as long as the grammar yields new ones easily; after 50 repeats in a row one is
    taken.

    Raises:
        InputError: as `sentence`; or the split is none of train, dev, test.
    """
    return distinct(lambda: sentence(rng, topic, topic_share=topic_share), count, split)


def distinct(draw: Callable[[], str], count: int, split: str) -> list[str]:
    """`count` sentences of one split out of those that `draw` makes, distinct as long as it makes new ones easily.

    Raises:
        InputError: the split is none of train, dev, test.
    """
    if split not in ("train", "dev", "test"):
        raise InputError(f"split {split!r}: must be one of train, dev, test")
    result: list[str] = []
    seen: set[str] = set()
    repeats = 0
    while len(result) < count:
        text = draw()
        if split_of(text) != split:
            continue
        repeats = repeats + 1 if text in seen else 0
        if repeats == 0 or repeats > 50:
            result.append(text)
            seen.add(text)
    return result


def vocabulary(topic: str | None = None) -> set[str]:
    """Every word of a topic's patterns and their slots, or, for None, of the whole grammar.

    Raises:
        InputError: no such topic.
    """
    if topic is None:
        return set().union(_words(SHARED), *(_words(each) for each in TOPICS.values()))
    return _words(_topic(topic))


def _words(topic: Topic) -> set[str]:
    slots = {**SHARED.slots, **topic.slots}
    used = {name for pattern in topic.patterns for name in _SLOT.findall(pattern)}
    texts = [_SLOT.sub(" ", pattern) for pattern in topic.patterns]
    texts += [text for name in used for text in slots[name]]
    return {word for text in texts for word in text.split()}
