"""What fine-tuning Whisper costs here beside Transformers' own Trainer, on the same model, utterances and batches.

    python tools/bench_whisper.py --model FOLDER --rounds 5 --markdown
    python tools/bench_whisper.py --tiny --rounds 1 --markdown      (to try the benchmark itself: a small random model)

Both train the same weights on the same random utterances in the same order: fp32, AdamW, one epoch, no evaluation, no
checkpoints, without dropout. Every round times both, one after the other; the ratio is that of Transformers' seconds to ours,
above 1 where ours is faster. Transformers computes the window that the model was trained with, so ours does the same; with
`--context` ours is timed once more in a shorter window, which Transformers' own model refuses, and there the Kronecker-factored
curvature of all linear maps is estimated on the same utterances, which takes a forward and a backward pass and the products of
the factors. The floor is the floating-point
work of an epoch, counted by `torch.utils.flop_counter`, at the speed of a large matrix product on the same threads.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, WhisperConfig, WhisperForConditionalGeneration

from asrcl.adapt import (
    Cache,
    CurvatureConfig,
    DomainLearner,
    Scenario,
    Tracking,
    TrackingConfig,
    TrainConfig,
    Trainer,
    estimate_on_domain,
)
from asrcl.adapt.environment import environment
from asrcl.contract.weights import Weights, state_of
from asrcl.files import write_json
from asrcl.methods import FineTuning
from asrcl.speech.domain import SpeechBatch
from asrcl.speech.pretrained.whisper import Whisper
from asrcl.speech.task import RecognitionTask

ITEMS, TOKENS, LEARNING_RATE = 8, 20, 1e-5
FISHERS = {"empirical": "labels of the data", "mc": "labels drawn from the model"}
SECONDS = (2, 8)  # shortest and longest utterance


class RandomUtterances:
    """A domain of random utterances in batches that are always the same."""

    def __init__(self, batches: int, bins: int, vocabulary: int, name: str = "random") -> None:
        self.name = name
        self._batches = [self._batch(number, bins, vocabulary) for number in range(batches)]

    def _batch(self, number: int, bins: int, vocabulary: int) -> SpeechBatch:
        generator = torch.Generator().manual_seed(number)
        lengths = torch.randint(100 * SECONDS[0], 100 * SECONDS[1], (ITEMS,), generator=generator)
        tokens = torch.randint(10, vocabulary // 2, (ITEMS, TOKENS), generator=generator)
        features = torch.rand(ITEMS, int(lengths.max()), bins, generator=generator)
        ids = tuple(f"{number}-{i}" for i in range(ITEMS))
        return SpeechBatch(ids, ids, ("",) * ITEMS, features, lengths, tokens, torch.full((ITEMS,), TOKENS), self.name)

    def batches(self, split: str, *, shuffle: bool, seed: int) -> Iterable[SpeechBatch]:
        """All batches for training, the first for the dev loss."""
        return iter(self._batches if split == "train" else self._batches[:1])

    def size(self, split: str) -> int:
        """Number of utterances."""
        return ITEMS * len(self._batches)

    def fingerprint(self, split: str) -> str:
        """The name: nothing is kept that depends on it."""
        return self.name


class Letters:
    """As much of a tokeniser as a loss needs."""

    fingerprint = "letters"


def ours(folder: Path, model: Whisper, domain: RandomUtterances) -> float:
    """Seconds of the trainer's epoch, its dev loss left out."""
    task = RecognitionTask(Letters(), label_smoothing=0.0)  # type: ignore[arg-type] - a loss needs no more of it
    scenario = Scenario("benchmark", [domain], task, lambda: model)  # type: ignore[list-item]
    train = TrainConfig(epochs=1, optimizer="adamw", learning_rate=LEARNING_RATE, gradient_clip=1.0, average_best=1)
    tracking = Tracking(TrackingConfig(backends=()), folder)
    learner = DomainLearner(scenario, Cache(folder), train, CurvatureConfig(), 1, "cpu", stages=2, tracking=tracking)
    trainer = Trainer(learner, model, domain, train, FineTuning(), folder)  # type: ignore[arg-type]
    started = time.perf_counter()
    trainer._train_epoch()
    return time.perf_counter() - started


def estimating(model: Whisper, domain: RandomUtterances, fisher: str) -> float:
    """Seconds of an estimate of the curvature on the same utterances."""
    task = RecognitionTask(Letters(), label_smoothing=0.0)  # type: ignore[arg-type]
    started = time.perf_counter()
    estimate_on_domain(model, task, domain, CurvatureConfig(fisher))  # type: ignore[arg-type]
    return time.perf_counter() - started


def theirs(folder: Path, model: WhisperForConditionalGeneration, batches: Sequence[dict[str, Tensor]]) -> float:
    """Seconds of `Seq2SeqTrainer.train` on the same batches, what it does before the first and after the last included."""
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=1, num_train_epochs=1, learning_rate=LEARNING_RATE, report_to=[],
        save_strategy="no", logging_strategy="no", lr_scheduler_type="constant", max_grad_norm=1.0, use_cpu=True,
        disable_tqdm=True, remove_unused_columns=False, dataloader_num_workers=0, optim="adamw_torch",
    )  # fmt: skip
    trainer = Seq2SeqTrainer(model, arguments, data_collator=lambda rows: rows[0], train_dataset=list(batches))
    started = time.perf_counter()
    trainer.train()
    return time.perf_counter() - started


def for_transformers(model: Whisper, batches: Iterable[SpeechBatch]) -> list[dict[str, Tensor]]:
    """The batches as Transformers' Whisper takes them: features in the whole window, labels after the first prompt token."""
    from asrcl.speech.pretrained.whisper import filled

    found = []
    for batch in batches:
        prompt = list(model.prompt(batch))
        start = torch.tensor([prompt]).expand(len(batch), -1)
        end = torch.full((len(batch), 1), model.end)
        labels = torch.cat([start[:, 1:], batch.tokens, end], dim=1)
        inputs = torch.cat([start, batch.tokens], dim=1)
        features = filled(batch.features, batch.lengths, model.window).transpose(1, 2).contiguous()
        labels[:, : len(prompt) - 1] = -100
        found.append({"input_features": features, "labels": labels, "decoder_input_ids": inputs})
    return found


def tiny_model(folder: Path) -> Path:
    """A small random Whisper with the tokeniser of the tests' kind."""
    from tokenizers import pre_tokenizers
    from transformers import WhisperFeatureExtractor, WhisperTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = WhisperTokenizer(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|startoftranscript|>", "<|notimestamps|>"]})
    tokenizer.save_pretrained(folder)
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=8, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, decoder_start_token_id=len(tokenizer) - 2,
        eos_token_id=0, pad_token_id=0, bos_token_id=0,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=8).save_pretrained(folder)
    return folder


def product_speed() -> float:
    """Floating-point operations a second of a product of 1024 x 1024 matrices on the threads in use."""
    matrix = torch.randn(1024, 1024)
    matrix @ matrix
    started = time.perf_counter()
    for _ in range(20):
        matrix @ matrix
    return 20 * 2 * 1024**3 / (time.perf_counter() - started)


def build(folder: Path, context: int | None = None) -> Whisper:
    """The model of a folder as the house has it."""
    name = str(folder)
    return Whisper(Whisper.front_end(name).size, len(Whisper.tokenizer(name)), pretrained=name, context=context)


def measure(folder: Path, batches: int, rounds: int, context: int | None) -> dict[str, Any]:
    """Ratios of every round, and the floor."""
    model = build(folder)
    domain = RandomUtterances(batches, Whisper.front_end(str(folder)).size, len(Whisper.tokenizer(str(folder))))
    rows = for_transformers(model, domain.batches("train", shuffle=False, seed=0))
    with FlopCounterMode(display=False) as counter:
        model.loss(model(domain._batches[0]), domain._batches[0], _plain()).backward()
    model.zero_grad(set_to_none=True)
    floor = counter.get_total_flops() * batches / product_speed()
    start, found = Weights(state_of(model)), []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as work:
            model.load_state_dict(start.state)
            own = ours(Path(work), model, domain)
            reference = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
            other = theirs(Path(work), reference, rows)
            times = {"ours": own, "theirs": other, "ratio": other / own}
            if context:
                times["short"] = ours(Path(work), build(folder, context), domain)
                times |= {fisher: estimating(build(folder, context), domain, fisher) for fisher in FISHERS}
        found.append(times)
    return {"rounds": found, "floor": floor, "batches": batches, "context": context, "environment": environment("cpu")}


def _plain() -> Any:
    from asrcl.speech.recogniser import Objective

    return Objective()


def table(result: dict[str, Any]) -> str:
    """One line for each loop: seconds an epoch, ratio to Transformers', share of the floor."""

    def line(name: str, seconds: Callable[[dict[str, Any]], float]) -> str:
        times = [seconds(one) for one in result["rounds"]]
        ratios = [one["theirs"] / seconds(one) for one in result["rounds"]]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        return f"| {name} | {statistics.median(times):.1f} | {spread} | {result['floor'] / statistics.median(times):.2f} |"

    lines = ["| loop | seconds | throughput of Transformers' | floor / time |", "|---|---:|---:|---:|"]
    lines += [line("`Seq2SeqTrainer`", lambda one: one["theirs"]), line("`asrcl.adapt.Trainer`", lambda one: one["ours"])]
    if result["context"]:
        lines.append(line(f"the same, window of {result['context']} s", lambda one: one["short"]).rsplit("|", 2)[0] + "| |")
        for fisher, name in FISHERS.items():
            ratios = [one[fisher] / one["short"] for one in result["rounds"]]
            seconds = statistics.median(one[fisher] for one in result["rounds"])
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            lines.append(f"| curvature in that window, {name} | {seconds:.1f} | {spread} times the training pass | |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print or write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path, help="folder of a Whisper model")
    which.add_argument("--tiny", action="store_true", help="a small random model instead")
    parser.add_argument("--batches", type=int, default=6, help=f"of {ITEMS} utterances each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--context", type=int, help="also in a window of so many seconds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--markdown", action="store_true", help="print the table")
    parser.add_argument("--out", type=Path, help="write all numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder)) if options.tiny else options.model
        result = measure(model, options.batches, options.rounds, options.context)
    if options.out:
        write_json(options.out, result)
    if options.markdown or not options.out:
        print(table(result))


if __name__ == "__main__":
    main()
