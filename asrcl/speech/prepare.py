"""From corpora to what training needs: checked transcripts, cached features, a tokeniser."""

from __future__ import annotations

import inspect
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, concatenate_datasets, disable_progress_bars
from tqdm import tqdm

from asrcl.entries import DamagedEntry, unseal
from asrcl.exceptions import InputError
from asrcl.experiment.config import Config
from asrcl.experiment.launch import in_jobs, step
from asrcl.experiment.names import FIRST
from asrcl.experiment.reading import reading
from asrcl.files import copy_file, file_lock, hash_file, hash_json
from asrcl.scoring import Scoring
from asrcl.scoring.counting.errors import name_some
from asrcl.speech.corpora import columns, load_corpus, select, to_dataset, validate, write_broken
from asrcl.speech.corpora.utterance import Utterance
from asrcl.speech.domain import SpeechDomain
from asrcl.speech.features import FeatureStore, build_features
from asrcl.speech.initial import shipped_models, tokenizer_path
from asrcl.speech.recogniser import front_end, model_settings, pretrained_class
from asrcl.speech.scenario import corpus_parts
from asrcl.speech.stored import RECORD, made_once, sweep, writing
from asrcl.speech.synthetic import check_settings, synthesise
from asrcl.speech.threads import one_thread
from asrcl.speech.tokenizer import LETTERS, PieceTokenizer, Tokenizer, train_tokenizer
from asrcl.text import normalise, normaliser

logger = logging.getLogger(__name__)
MANY_PIECES, WORDS_NAMED = 4, 8
disable_progress_bars()


@dataclass(frozen=True)
class TextConfig:
    """What happens to transcripts.

    Attributes:
        normaliser: a name in `asrcl.text`; "written" keeps case and punctuation.
        max_broken_share: above this share of unusable utterances a corpus is refused.
        alphabet: "letters" (a to z, the apostrophe and the space) lists utterances with other characters as broken, since a
            tokeniser that is trained here has no pieces for what its own corpus lacks; "any" is for a pretrained one, which can
            write every text.
    """

    normaliser: str = "basic"
    max_broken_share: float = 0.01
    alphabet: Literal["letters", "any"] = "letters"


@dataclass(frozen=True)
class TokenConfig:
    """The tokeniser: number of pieces, the four special ones included, and SentencePiece's model type."""

    size: int = 120
    kind: Literal["unigram", "bpe", "char"] = "unigram"


def domain_names(config: Config) -> list[str]:
    """Names of the scenario's domains, in order."""
    return [domain["name"] for domain in config.tree["scenario"]["domains"]]


def initial_corpus(config: Config) -> dict[str, Any]:
    """What the initial model is trained on, as a domain: the corpus of `scenario.initial`, or else the first domain itself."""
    scenario = config.tree["scenario"]
    first = scenario["domains"][0]
    return {"name": first["name"], **{key: scenario["initial"][key] for key in ("corpus",) if scenario["initial"].get(key)}}


def prepare_data(config: Config, only: Iterable[str] | None = None) -> None:
    """Load, check and featurise the corpora of all domains and probes (or of some); finished ones are left alone.

    `launcher.jobs` corpora are made at a time, and a line says which are done and how long the rest will take.

    Raises:
        InputError: see the corpus loaders, `validate` and `build_features`; an unknown domain in `only`.
    """
    scenario = config.tree["scenario"]
    found = {entry["name"]: entry for entry in [*scenario["domains"], *scenario["probes"]]}
    if unknown := set(only or ()) - set(found):
        raise InputError(f"domain {', '.join(sorted(unknown))}: not in this scenario; it has {', '.join(found)}")
    wanted = [entry for name, entry in found.items() if not only or name in set(only)]
    first = initial_corpus(config)
    for entry in [*wanted, *([first] if "corpus" in first else [])]:
        _check_synthetic(config, entry)
    in_jobs(config, _prepare_entry, [(config, entry) for entry in wanted], "corpora")


def _prepare_entry(config: Config, entry: Mapping[str, Any]) -> None:
    store = _prepare_domain(config, entry, data_folder(config, entry["name"]))
    sizes = {split: len(store.rows(split)) for split in ("train", "dev", "test")}
    listed = ", ".join(f"{size} {split}" for split, size in sizes.items() if size)
    hours = store.meta["frames"] / front_end(config).frames_per_second / 3600
    logger.info("%s: %s utterances, %.2f h; %s", entry["name"], listed, hours, step())


def prepare_initial(config: Config) -> FeatureStore:
    """The features of what the initial model is trained on, made where they are not there yet.

    Raises:
        InputError: as `prepare_data`.
    """
    entry = initial_corpus(config)
    if "corpus" not in entry:
        return _open_store(config, config.tree["scenario"]["domains"][0])
    return _prepare_domain(config, entry, data_folder(config, FIRST))


def data_folder(config: Config, name: str) -> Path:
    """Where the corpus and the features of a domain or probe lie."""
    return config.home / "data" / name


def _prepare_domain(config: Config, domain: Mapping[str, Any], folder: Path) -> FeatureStore:
    with file_lock(folder.with_name(f".{folder.name}.lock")), one_thread(), writing(folder):
        sweep(folder)
        return _make_domain(config, domain, folder)


def _make_domain(config: Config, domain: Mapping[str, Any], folder: Path) -> FeatureStore:
    name = domain["name"]
    features = front_end(config)
    text = config.settings(TextConfig, "scenario", "text")
    corpus = _load(config, domain, folder / "audio")
    corpus = corpus.map(lambda row: {"text": normalise(row["text"], text.normaliser)}, desc=None)
    alphabet = None if text.alphabet == "any" else LETTERS + " "
    longest = (features.window or math.inf) * min(1.0, *features.speeds)  # a slower copy lasts longer
    clean, broken = validate(
        corpus,
        max_broken_share=text.max_broken_share,
        alphabet=alphabet,
        longest_seconds=longest,
        channel=features.channel,
    )
    (folder / "broken.tsv").unlink(missing_ok=True)
    if broken:
        write_broken(broken, folder / "broken.tsv")
        logger.warning("%s: %d broken utterances left out, listed in %s", name, len(broken), folder / "broken.tsv")
    _check_scored(config, name, clean)
    return build_features(
        clean.select_columns(list(columns)),
        features,
        folder / "features",
        lambda rows: tqdm(rows, desc=f"{name} features", leave=False, disable=None, unit="utt"),
    )


def scoring_of(config: Config) -> Scoring | None:
    """How texts are normalised before they are scored; None where the scenario has no `scoring`."""
    return config.settings(Scoring, "scenario", "scoring") if config.tree["scenario"].get("scoring") else None


def _check_scored(config: Config, name: str, corpus: Dataset) -> None:
    """Say which references of dev and test the normaliser of `scoring` leaves empty: they stay, but add no words.

    Raises:
        InputError: it leaves nothing of all of them.
    """
    scoring = scoring_of(config)
    if scoring is None:
        return
    rules = normaliser(scoring.normaliser)
    for split in ("dev", "test"):
        texts = {row["id"]: rules(row["text"]) for row in select(corpus, split=split)}
        if emptied := [key for key, text in texts.items() if not text.split()]:
            found = f"domain {name}, split {split}: the normaliser {scoring.normaliser} leaves no word of"
            if len(emptied) == len(texts):
                raise InputError(f"{found} any reference, and nothing can be scored; set scenario.scoring.normaliser to another")
            logger.warning("%s the references %s; what is recognised there counts as inserted", found, name_some(emptied))


def _load(config: Config, domain: Mapping[str, Any], audio_folder: Path) -> Dataset:
    with reading(f"domain {domain['name']}", "correct the options of its corpus", "its corpus cannot be loaded"):
        parts = [_load_part(config, domain["name"], part, audio_folder) for part in corpus_parts(domain)]
    return concatenate_datasets(_with_own_ids(parts))


def _with_own_ids(parts: list[Dataset]) -> list[Dataset]:
    """Corpora of one domain with ids that differ: where two share one, the ids of each begin with its number."""
    ids = [name for part in parts for name in set(part["id"])]
    if len(ids) == len(set(ids)):
        return parts
    return [part.map(lambda row, n=n: {"id": f"part{n}-{row['id']}"}, desc=None) for n, part in enumerate(parts, 1)]


def _load_part(config: Config, name: str, options: dict[str, Any], audio_folder: Path) -> Dataset:
    """One corpus of a domain; with `by_utterance` every utterance is by a speaker of its own, after the splits were made.

    That is for recordings of one reader: intervals resample speakers, and of one speaker there is nothing to resample.
    """
    alone = options.pop("by_utterance", False)
    if not isinstance(alone, bool):
        raise InputError(f"domain {name}: by_utterance={alone!r}: expected true or false")
    corpus = _load_kind(config, name, options, audio_folder)
    return corpus.map(lambda row: {"speaker": row["id"]}, desc=None) if alone else corpus


def _load_kind(config: Config, name: str, options: dict[str, Any], audio_folder: Path) -> Dataset:
    kind = options.pop("kind")
    if kind == "synthetic":
        return _synthetic(config, name, options, audio_folder)
    for key in ("folder", "audio_dir"):
        if options.get(key, "") is None or "None" in str(options.get(key, "")).split("/"):
            raise InputError(f"domain {name}: its recordings are not here; name their folder with data_dir=FOLDER (--data-dir)")
    if "audio_dir" in options:
        options["audio_dir"] = str(audio_folder)
    if kind != "commonvoice" or options.get("accents", ()) is None:  # else its accents are its domains
        options["domain"] = name
    return load_corpus(kind, **options)


def _synthetic(config: Config, name: str, options: dict[str, Any], audio_folder: Path) -> Dataset:
    wanted = _synthetic_options(config, name, options)
    return to_dataset(Utterance(**row) for row in synthesise(name, **wanted, folder=audio_folder))


def _synthetic_options(config: Config, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `synthesise`: those of the corpus, else those of the scenario."""
    scenario = config.tree["scenario"]
    common = {key: scenario[key] for key in ("seed", "topics", "takes") if key in scenario}
    wanted = {"rate": front_end(config).rate, **common, **options}
    signature = inspect.signature(synthesise)
    try:
        signature.bind(name, folder=None, **wanted)
    except TypeError as error:
        raise InputError(f"domain {name}: synthetic corpus: {error}; it takes {', '.join(signature.parameters)}") from error
    return wanted


def _check_synthetic(config: Config, domain: Mapping[str, Any]) -> None:
    """Refuse, before any corpus is made, an accent, topic, channel or size that does not exist."""
    for part in corpus_parts(domain):
        part.pop("by_utterance", None)
        if part.pop("kind") == "synthetic":
            options = _synthetic_options(config, domain["name"], part)
            try:
                with reading("synthetic corpus", "correct its options", "cannot be made"):
                    check_settings(domain["name"], **options)
            except InputError as error:
                raise InputError(f"domain {domain['name']}: {error}") from error


def prepare_tokens(config: Config) -> Tokenizer:
    """Take the tokeniser that came with a pretrained or a trained model, or train one on what the initial model is trained on.

    Raises:
        InputError: the data stage has not run, or SentencePiece refuses the size.
    """
    if (pretrained := _pretrained_tokenizer(config)) is not None:
        _log_pieces(config, pretrained)
        return pretrained
    path = tokenizer_path(config)
    if (shipped := shipped_models(config)) is not None:
        source = shipped / path.name
        made_once(path.parent, {"key": hash_file(source)}, lambda: copy_file(source, path), files=[path.name])
        return PieceTokenizer(path)
    store = prepare_initial(config)
    settings = asdict(config.settings(TokenConfig, "scenario", "tokens"))
    sentences = [row["text"] for row in store.rows("train")]

    def make() -> None:
        tokenizer = train_tokenizer(sentences, path, **settings)
        logger.info("tokens: %d pieces from %d sentences of %s", len(tokenizer), len(sentences), domain_names(config)[0])

    made_once(path.parent, {"key": hash_json([sentences, settings])}, make, files=[path.name])
    return PieceTokenizer(path)


def _pretrained_tokenizer(config: Config) -> Tokenizer | None:
    """The tokeniser of a pretrained model, which stays where the model is; its hash goes into every key."""
    settings = config.tree["model"]
    found = pretrained_class(settings)
    return None if found is None else found.tokenizer(**model_settings(settings))


def _log_pieces(config: Config, tokenizer: Tokenizer) -> None:
    """Say how a tokeniser that knows nothing of these domains splits their words; many pieces are hard to learn."""
    for domain in config.tree["scenario"]["domains"]:
        counts = Counter(word for row in _open_store(config, domain).rows("train") for word in row["text"].split())
        pieces = {word: len(tokenizer.encode(word)) for word in counts}
        mean = sum(pieces[word] * count for word, count in counts.items()) / max(1, counts.total())
        worst = [word for word, _ in counts.most_common() if pieces[word] >= MANY_PIECES][:WORDS_NAMED]
        listed = f"; in {MANY_PIECES} or more: {', '.join(worst)}" if worst else ""
        logger.info("tokens: %s: %.2f a word%s", domain["name"], mean, listed)


def open_tokenizer(config: Config) -> Tokenizer:
    """The scenario's tokeniser, made again where its file is not what was written.

    Raises:
        InputError: the tokens stage has not run, or as `prepare_tokens`.
    """
    if (pretrained := _pretrained_tokenizer(config)) is not None:
        return pretrained
    path = tokenizer_path(config)
    try:
        if path.with_name(RECORD).exists():
            unseal(path.parent, RECORD)
    except DamagedEntry:
        return prepare_tokens(config)  # which names the damage
    return PieceTokenizer(path)


def load_domains(config: Config) -> list[SpeechDomain]:
    """The scenario's domains, ready for training.

    Raises:
        InputError: the data or tokens stage has not run, or a split is empty.
    """
    return [_open_domain(config, entry) for entry in config.tree["scenario"]["domains"]]


def load_probes(config: Config) -> list[SpeechDomain]:
    """The scenario's probes, of which the test sets alone are asked for.

    Raises:
        InputError: as `load_domains`.
    """
    return [_open_domain(config, entry, ("test",)) for entry in config.tree["scenario"]["probes"]]


def load_initial_domain(config: Config) -> SpeechDomain:
    """What the initial model is trained on, made where it is not there yet.

    Raises:
        InputError: as `prepare_data`.
    """
    return _domain(config, domain_names(config)[0], prepare_initial(config), ("train", "dev"))


def _open_domain(
    config: Config, entry: Mapping[str, Any], splits: Sequence[str] = ("train", "dev", "test")
) -> SpeechDomain:
    return _domain(config, entry["name"], _open_store(config, entry), splits)


def _open_store(config: Config, entry: Mapping[str, Any]) -> FeatureStore:
    """The features of a domain or probe, made again where they are not what was written."""
    folder = data_folder(config, entry["name"])
    try:
        return FeatureStore(folder / "features")
    except DamagedEntry:
        return _prepare_domain(config, entry, folder)  # which names the damage


def _domain(config: Config, name: str, store: FeatureStore, splits: Sequence[str]) -> SpeechDomain:
    limits = {key: config.tree["train"][key] for key in ("max_frames", "max_items")}
    evaluation = {f"evaluation_{key}": config.tree["decode"].get(f"max_{key}") for key in ("frames", "items")}
    languages = config.tree["model"].get("language")
    by_domain = isinstance(languages, Mapping)
    if by_domain and name not in languages:
        raise InputError(f"model.language: says nothing of {name}; it has {', '.join(languages)}; add {name}: its language")
    return SpeechDomain(name, store, open_tokenizer(config), **limits, splits=splits, mixable=not by_domain, **evaluation)
