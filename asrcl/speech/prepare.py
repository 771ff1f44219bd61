"""From corpora to what training needs: checked transcripts, cached features, a tokeniser."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from tqdm import tqdm

from asrcl.exceptions import InputError
from asrcl.files import hash_file, hash_json, read_json, write_json
from asrcl.speech.config import Config
from asrcl.speech.corpora import columns, load_corpus, to_dataset, validate, write_broken
from asrcl.speech.corpora.utterance import Utterance
from asrcl.speech.domain import SpeechDomain
from asrcl.speech.features import FeatureConfig, FeatureStore, build_features
from asrcl.speech.synthetic import synthesise
from asrcl.speech.text import normalise
from asrcl.speech.tokenizer import LETTERS, Tokenizer, train_tokenizer

logger = logging.getLogger(__name__)
disable_progress_bars()


@dataclass(frozen=True)
class TextConfig:
    """What happens to transcripts.

    Attributes:
        normaliser: a name in `asrcl.speech.text`.
        max_broken_share: above this share of unusable utterances a corpus is refused.
    """

    normaliser: str = "basic"
    max_broken_share: float = 0.01


@dataclass(frozen=True)
class TokenConfig:
    """The tokeniser: number of pieces, the four special ones included, and SentencePiece's model type."""

    size: int = 120
    kind: Literal["unigram", "bpe", "char"] = "unigram"


def domain_names(config: Config) -> list[str]:
    """Names of the scenario's domains, in order."""
    return [domain["name"] for domain in config.tree["scenario"]["domains"]]


def prepare_data(config: Config, only: Iterable[str] | None = None) -> None:
    """Load, check and featurise the corpora of all domains (or of some); finished ones are left alone.

    Raises:
        InputError: see the corpus loaders, `validate` and `build_features`; an unknown domain in `only`.
    """
    torch.set_num_threads(1)  # an utterance is too small to share out: two threads take longer than one
    wanted = list(only or domain_names(config))
    if unknown := set(wanted) - set(domain_names(config)):
        raise InputError(f"domain {', '.join(sorted(unknown))}: not in this scenario; it has {', '.join(domain_names(config))}")
    for domain in config.tree["scenario"]["domains"]:
        if domain["name"] in wanted:
            _prepare_domain(config, domain)


def _prepare_domain(config: Config, domain: Mapping[str, Any]) -> FeatureStore:
    name, folder = domain["name"], config.home / "data" / domain["name"]
    features = config.settings(FeatureConfig, "scenario", "features")
    text = config.settings(TextConfig, "scenario", "text")
    corpus = _load(config, domain, folder / "audio")
    corpus = corpus.map(lambda row: {"text": normalise(row["text"], text.normaliser)}, desc=None)
    clean, broken = validate(corpus, max_broken_share=text.max_broken_share, alphabet=LETTERS + " ", channel=features.channel)
    if broken:
        write_broken(broken, folder / "broken.tsv")
        logger.warning("%s: %d broken utterances left out, listed in %s", name, len(broken), folder / "broken.tsv")
    store = build_features(
        clean.select_columns(list(columns)),
        features,
        folder / "features",
        lambda rows: tqdm(rows, desc=f"{name} features", leave=False, disable=None, unit="utt"),
    )
    sizes = {split: len(store.rows(split)) for split in ("train", "dev", "test")}
    hours = store.meta["frames"] / 360000
    logger.info("%s: %s utterances, %.2f h", name, ", ".join(f"{size} {split}" for split, size in sizes.items()), hours)
    return store


def _load(config: Config, domain: Mapping[str, Any], audio_folder: Path) -> Dataset:
    parts = domain["corpus"] if isinstance(domain["corpus"], list) else [domain["corpus"]]
    return concatenate_datasets([_load_part(config, domain["name"], dict(part), audio_folder) for part in parts])


def _load_part(config: Config, name: str, options: dict[str, Any], audio_folder: Path) -> Dataset:
    kind = options.pop("kind")
    if kind == "synthetic":
        return _synthetic(config, name, options, audio_folder)
    for key in ("folder", "audio_dir"):
        if options.get(key, "") is None or "None" in str(options.get(key, "")).split("/"):
            raise InputError(f"domain {name}: its recordings are not here; name their folder with data_dir=FOLDER (--data-dir)")
    if "audio_dir" in options:
        options["audio_dir"] = str(audio_folder)
    if kind != "commonvoice":  # its accents are its domains
        options["domain"] = name
    return load_corpus(kind, **options)


def _synthetic(config: Config, name: str, options: dict[str, Any], audio_folder: Path) -> Dataset:
    scenario = config.tree["scenario"]
    common = {key: scenario[key] for key in ("seed", "topics") if key in scenario}
    wanted = {"rate": config.settings(FeatureConfig, "scenario", "features").rate, **common, **options, "folder": audio_folder}
    signature = inspect.signature(synthesise)
    try:
        signature.bind(name, **wanted)
    except TypeError as error:
        raise InputError(f"domain {name}: synthetic corpus: {error}; it takes {', '.join(signature.parameters)}") from error
    return to_dataset(Utterance(**row) for row in synthesise(name, **wanted))


def prepare_tokens(config: Config) -> Tokenizer:
    """Train the tokeniser on the first domain's training transcripts, unless that has been done.

    Raises:
        InputError: the data stage has not run, or SentencePiece refuses the size.
    """
    first = domain_names(config)[0]
    store = FeatureStore(config.home / "data" / first / "features")
    settings = asdict(config.settings(TokenConfig, "scenario", "tokens"))
    path = tokenizer_path(config)
    sentences = [row["text"] for row in store.rows("train")]
    key, done = hash_json([sentences, settings]), path.with_name("key.json")
    if path.is_file() and done.is_file() and read_json(done) == {"key": key, "pieces": hash_file(path)}:
        return Tokenizer(path)
    tokenizer = train_tokenizer(sentences, path, **settings)
    write_json(done, {"key": key, "pieces": tokenizer.fingerprint})
    logger.info("tokens: %d pieces from %d sentences of %s", len(tokenizer), len(sentences), first)
    return tokenizer


def tokenizer_path(config: Config) -> Path:
    """Where the scenario's tokeniser lies."""
    return config.home / "tokens" / "pieces.model"


def load_domains(config: Config) -> list[SpeechDomain]:
    """The scenario's domains, ready for training.

    Raises:
        InputError: the data or tokens stage has not run, or a split is empty.
    """
    tokenizer = Tokenizer(tokenizer_path(config))
    limits = {key: config.tree["train"][key] for key in ("max_frames", "max_items")}
    return [
        SpeechDomain(name, FeatureStore(config.home / "data" / name / "features"), tokenizer, **limits)
        for name in domain_names(config)
    ]
