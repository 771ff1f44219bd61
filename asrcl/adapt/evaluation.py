"""Which domains are evaluated after which stage: T stages times T domains are too many when T is 80."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from asrcl.exceptions import InputError


@dataclass(frozen=True)
class EvaluationPolicy:
    """What is decoded after a stage. The last stage is always evaluated on every domain, since all have been seen by then.

    Attributes:
        domains: "all" domains, those to come included (forward transfer needs them), or those "seen" so far.
        every: evaluate after every k-th stage only, and after the first and the last.
    """

    domains: Literal["all", "seen"] = "all"
    every: int = 1

    def __post_init__(self) -> None:
        if self.domains not in ("all", "seen"):
            raise InputError(f"evaluation.domains={self.domains}: choose all or seen")
        if self.every < 1:
            raise InputError(f"evaluation.every={self.every}: must be at least 1")

    def after(self, stage: int, stages: int) -> range:
        """Indices of the domains to evaluate after a stage.

        Args:
            stage: its number, from 1.
            stages: how many there are, one per domain.
        """
        if stage not in (1, stages) and stage % self.every:
            return range(0)
        return range(stage if self.domains == "seen" else stages)
