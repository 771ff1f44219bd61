"""What a scenario of the speech benchmark must be: the corpora of its domains and probes, and the initial model's data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from asrcl.exceptions import InputError

logger = logging.getLogger(__name__)

SOURCES = ("models", "checkpoint")
"""Where an initial model may come from that is not trained here, under `scenario.initial`."""


def corpus_parts(domain: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The corpora of a domain, a probe or `initial`, one or several."""
    corpus = domain["corpus"]
    return [dict(part) for part in (corpus if isinstance(corpus, list) else [corpus])]


def check_scenario(scenario: Mapping[str, Any]) -> None:
    """Refuse a scenario whose domains, probes or initial model are not of the form that the speech benchmark needs.

    A domain or probe has a `corpus`: its `kind` and the options of that loader, or a list of these. A scenario may set
    `features`, `text` and `tokens`, and `initial`: where the initial model comes from (see `asrcl.speech.initial`).

    Args:
        scenario: its name and the names of its domains and probes are checked already.

    Raises:
        InputError: names the entry and what is wrong with it.
    """
    domains, probes = scenario["domains"], scenario.get("probes") or []
    for group, entries in (("domains", domains), ("probes", probes)):
        for number, entry in enumerate(entries, 1):
            if not _is_corpus(entry.get("corpus")):
                wanted = "a corpus with a kind, e.g. {kind: kaldi}"
                raise InputError(f"scenario.{group}: entry {number} ({entry['name']}) needs {wanted}")
    _check_initial(scenario.get("initial") or {}, domains[0], scenario.get("learn_first", False))
    for probe in probes:
        _check_probe(probe, domains)


def _check_initial(initial: Any, first: Mapping[str, Any], learn_first: bool) -> None:
    """The initial model must have been trained on the first domain or on more of the same, unless it learns that, too."""
    if not isinstance(initial, dict) or (unknown := set(initial) - {*SOURCES, "corpus", "train"}):
        wrong = f" (not {', '.join(sorted(map(str, unknown)))})" if isinstance(initial, dict) else ""
        raise InputError(
            "scenario.initial: may have models (a folder) or checkpoint (a file), corpus (with a kind), "
            f"train (in place of train.initial){wrong}"
        )
    if wrong_kind := [name for name in SOURCES if not isinstance(initial.get(name) or "", str)]:
        raise InputError(f"scenario.initial.{wrong_kind[0]}={initial[wrong_kind[0]]}: expected text")
    if not isinstance(initial.get("train") or {}, dict):
        raise InputError("scenario.initial.train: expected settings, in place of those of train.initial")
    if len(given := [name for name in SOURCES if initial.get(name)]) > 1:
        raise InputError(f"scenario.initial: {' and '.join(given)}; it comes from one of them; leave out the others")
    if not initial.get("corpus"):
        if initial.get("models"):
            raise InputError("scenario.initial: models without a corpus; say what they were trained on, or initial: null")
        return
    if not _is_corpus(initial["corpus"]):
        raise InputError("scenario.initial: its corpus needs a kind, e.g. {kind: kaldi}")
    known = [_source(part) for part in corpus_parts(first)]
    for part in corpus_parts(initial):
        if _source(part) not in known:
            what = f"scenario.initial: its corpus ({_words(_source(part))}) is not that of the first domain, {first['name']} "
            if learn_first:
                logger.info("%s, which is learned after it (scenario.learn_first)", what.strip())
                continue
            raise InputError(
                f"{what}({'; '.join(map(_words, known))}); give its own, learn_first: true to learn {first['name']} as well, or "
                f"initial: null to train on {first['name']}"
            )


def _is_corpus(corpus: Any) -> bool:
    parts = corpus if isinstance(corpus, list) else [corpus]
    return bool(parts) and all(isinstance(part, dict) and part.get("kind") and isinstance(part["kind"], str) for part in parts)


def _check_probe(probe: Mapping[str, Any], domains: Sequence[Mapping[str, Any]]) -> None:
    """A probe measures what was never trained on, so its source may not be a domain's."""
    names = ", ".join(domain["name"] for domain in domains)
    for part in corpus_parts(probe):
        for domain in domains:
            if any(_source(part) == _source(other) for other in corpus_parts(domain)):
                raise InputError(
                    f"probe {probe['name']}: its corpus ({_words(_source(part))}) is what domain {domain['name']} is trained "
                    f"on; give the probe another (the domains are {names}), or leave it out: scenario.probes=[]"
                )


def _source(part: Mapping[str, Any]) -> dict[str, Any]:
    """What tells one source of speech from another: accent and channel if synthetic, else all but which part is taken."""
    if part["kind"] == "synthetic":
        return {key: part[key] for key in ("kind", "accent", "channel") if part.get(key)}
    taken = ("split", "count", "seed", "sizes", "longest", "without", "by_utterance")
    return {key: value for key, value in part.items() if key not in taken}


def _words(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())
