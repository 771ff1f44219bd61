"""How the rates of a unit are shown: word and character errors as error rates, images as accuracies.

Counts, matrices R and every computation are error rates; a report asks the measure of its unit what it shows of them. Metrics
that are differences have the same value and sign for both (`metrics.Metric.accuracy_formula`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from asrcl.scoring.results.metrics import METRICS, Matrix, Metric

_Rates = TypeVar("_Rates", float, Matrix)


@dataclass(frozen=True)
class Measure:
    """What reports of one unit show.

    Attributes:
        name: of the rate, e.g. "WER".
        blocks: what the bootstrap resamples.
        shown: metrics of the main table, the average over domains first.
        inverted: whether an error rate r is shown as the accuracy 100 − r.
        stages_file: name of the picture of rates per stage, without its ending.
    """

    name: str
    blocks: str
    shown: tuple[str, ...]
    inverted: bool = False
    stages_file: str = "wer_per_stage"

    @property
    def average(self) -> str:
        """The key in `METRICS` of the average over domains."""
        return self.shown[0]

    @property
    def symbol(self) -> str:
        """Of the average over domains."""
        return METRICS[self.average].symbol

    @property
    def letter(self) -> str:
        """Of the matrix, as formulas have it: R of error rates, A of accuracies."""
        return "A" if self.inverted else "R"

    @property
    def better(self) -> str:
        """Which rates are better: "lower" or "higher"."""
        return "higher" if self.inverted else "lower"

    @property
    def entry(self) -> str:
        """What an entry of the matrix is."""
        return "accuracy" if self.inverted else "error rate"

    def of(self, rate: _Rates) -> _Rates:
        """An error rate, or an array of them, as it is shown."""
        return 100.0 - rate if self.inverted else rate

    def limits(self, low: float, high: float) -> tuple[float, float]:
        """The ends of an interval of error rates, as they are shown."""
        return (self.of(high), self.of(low)) if self.inverted else (low, high)

    def gain(self, difference: float) -> float:
        """A difference of two error rates as one of what is shown."""
        return -difference if self.inverted else difference

    def formula(self, metric: Metric) -> str:
        """A metric's definition in what is shown."""
        return metric.accuracy_formula if self.inverted else metric.formula

    def references(self, metric: Metric) -> str:
        """Which other runs it needs."""
        return metric.references.replace("R[", f"{self.letter}[")


_ERRORS: Final = ("avg", "word_weighted_avg", "bwt", "fwt", "cov", "forgetting", "intransigence")
_ACCURACIES: Final = ("accuracy", "forgetting", "bwt", "fwt", "cov", "intransigence")
WORDS: Final = Measure("WER", "speakers", _ERRORS)
IMAGES: Final = Measure("accuracy", "images", _ACCURACIES, inverted=True, stages_file="accuracy_per_stage")
MEASURES: Final = {"word": WORDS, "character": Measure("CER", "speakers", _ERRORS), "image": IMAGES}
_OTHER: Final = Measure("error rate", "speakers", _ERRORS)


def measure_of(units: str | Sequence[str]) -> Measure:
    """The measure of a unit; of several units the one that they share, or plain error rates."""
    found = {MEASURES.get(unit, _OTHER) for unit in ([units] if isinstance(units, str) else units)}
    if len(found) == 1:
        return next(iter(found))
    return _OTHER

