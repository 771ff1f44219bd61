"""The speech benchmark: corpora, features, tokeniser and recogniser of a configured scenario.

What needs the speech packages is imported when it is used, so that composing a configuration costs nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from asrcl.exceptions import InputError
from asrcl.experiment.config import Config
from asrcl.experiment.registry import register_benchmark
from asrcl.speech.scenario import check_scenario

if TYPE_CHECKING:
    from torch import nn

    from asrcl.adapt import Scenario
    from asrcl.speech.task import RecognitionTask

EMPTY: Mapping[str, Any] = {"features": {}, "text": {}, "tokens": {}, "probes": [], "initial": {}}


@register_benchmark("speech")
class SpeechBenchmark:
    """Recognition of speech, behind the `asrcl.experiment.registry.Benchmark` protocol."""

    stages = ("data", "tokens")
    needs: Mapping[str, Any] = {
        **{"model": dict, "decode": dict, "train.augment": object, "train.max_frames": int, "train.max_items": int},
        **{"train.ctc_weight": float, "train.label_smoothing": float},
    }

    def checked(self, scenario: dict[str, Any]) -> dict[str, Any]:
        """The scenario with empty settings where it has none (see `asrcl.speech.scenario` for what it may have)."""
        check_scenario(scenario)
        return {**EMPTY, **scenario}

    def prepare(self, config: Config, stage: str, only: Iterable[str] | None = None) -> None:
        """Load and check the corpora and compute features (`data`), or train the tokeniser (`tokens`)."""
        from asrcl.speech.prepare import prepare_data, prepare_tokens

        if stage == "data":
            prepare_data(config, only)
        else:
            prepare_tokens(config)

    def scenario(self, config: Config, seed: int | None = None) -> Scenario:
        """Domains with their features, the recognition task and the model."""
        from asrcl.adapt import Scenario
        from asrcl.speech.prepare import load_domains, load_probes
        from asrcl.speech.recogniser import CONFORMER, model_class, model_settings

        task, model = build_task(config), config.tree["model"]
        named = {} if model.get("kind", CONFORMER) == CONFORMER else {"kind": model["kind"]}
        return Scenario(
            config.tree["scenario"]["name"],
            load_domains(config),
            task,
            lambda: build_model(config, len(task.tokenizer)),
            model_config={**named, **model_class(model).describe(**model_settings(model))},
            probes=load_probes(config),
        )

    def train_initial(self, config: Config, seed: int) -> None:
        """Take a pretrained model or the one that came with the recipe, or train one as `scenario.initial` says.

        Raises:
            InputError: a model that came with the recipe and is damaged or has other settings; a pretrained model with a shorter
                window than it was trained with, taken as it is.
        """
        from asrcl.adapt import state_of
        from asrcl.experiment.initial import take_initial, train_first
        from asrcl.speech.initial import shipped_model, training_settings
        from asrcl.speech.prepare import load_initial_domain
        from asrcl.speech.recogniser import pretrained_class

        initial, model = config.tree["scenario"]["initial"], config.tree["model"]
        if pretrained_class(model) is not None and not initial.get("train") and not initial.get("corpus"):
            if model.get("context"):
                raise InputError(
                    f"model.context={model['context']}: a pretrained model errs in a window it was not trained with; have it "
                    "trained first (scenario.initial.train: {epochs: 2, learning_rate: 1e-5}), or leave out model.context"
                )
            take_initial(config, state_of(self.scenario(config).build_model()), seed, {"source": model["pretrained"]})
        elif (state := shipped_model(config, seed)) is not None:
            take_initial(config, state, seed, {"source": config.tree["scenario"]["initial"]["models"]})
        else:
            config = training_settings(config)
            train_first(config, self.scenario(config), seed, load_initial_domain(config))


def build_task(config: Config) -> RecognitionTask:
    """The recognition task that a configuration describes."""
    from asrcl.speech.decoding import DecodeConfig
    from asrcl.speech.prepare import open_tokenizer, scoring_of
    from asrcl.speech.recogniser import front_end
    from asrcl.speech.task import RecognitionTask, SpecAugmentConfig

    train = config.tree["train"]
    if train["augment"] and front_end(config).kind == "waveform":
        what = "masks frames of features, and this model sees samples and has masks of its own (config.json)"
        raise InputError(f"train.augment: {what}; train.augment=null")
    return RecognitionTask(
        open_tokenizer(config),
        ctc_weight=train["ctc_weight"],
        label_smoothing=train["label_smoothing"],
        augment=config.settings(SpecAugmentConfig, "train", "augment") if train["augment"] else None,
        decoding=config.settings(DecodeConfig, "decode"),
        scoring=scoring_of(config),
    )


def build_model(config: Config, vocabulary: int) -> nn.Module:
    """A model with fresh weights."""
    from asrcl.speech.recogniser import front_end, model_class, model_settings

    settings = config.tree["model"]
    features = front_end(config).size
    try:
        return cast("nn.Module", model_class(settings)(features, vocabulary, **model_settings(settings)))  # type: ignore[call-arg]
    except TypeError as error:
        raise InputError(f"model: {error}; see conf/model for the settings there are") from error
