"""What others are measured against: the initial model, fine-tuning, one model per domain, joint training."""

from __future__ import annotations

from asrcl.contract.method import Method, register
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights


@register("initial")
class Initial(Method):
    """The initial model, never adapted."""

    label, continues = "Initial model", False
    role, decoded_by = "initial", "initial_model"

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights:
        return old


@register("ft")
class FineTuning(Method):
    """Sequential fine-tuning: each domain starts from the last one's weights and keeps nothing else."""

    label, shares_fine_tuning = "Fine-tuning (FT)", True
    role, kind = "reference", "fine_tuning"


class _ModelPerDomain(Method):
    """An oracle: a model for each domain, trained from `parent` on it alone, and each domain decoded by its own."""

    shares_fine_tuning, continues = True, False
    role, decoded_by = "oracle", "domain_model"

    def __init__(self) -> None:
        self._own: dict[str, Weights] = {}

    def parent(self, learner: Learner) -> Weights:
        """What every model starts from."""
        raise NotImplementedError

    def start_run(self, learner: Learner) -> None:
        self._own = {}

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights:
        return learner.fine_tune(self.parent(learner), domain, self)

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        self._own[domain.name] = new
        return new

    def weights_for(self, learner: Learner, domain: Domain) -> Weights | None:
        """A domain's own model, the initial one as long as it has none; None for a probe, which nothing says the model of."""
        if domain.name in self._own:
            return self._own[domain.name]
        return learner.initial if learner.to_come(domain) else None

    def kept_bytes(self, learner: Learner) -> int:
        """The models of all domains but the last one's, which are the weights."""
        return sum(value.nbytes for weights in [*self._own.values()][:-1] for value in weights.values())

    def parameters(self, learner: Learner) -> int:
        """A whole model for every domain, each with its own head."""
        return sum(
            value.numel()
            for domain in learner.domains
            for name, value in learner.weights.items()
            if name not in learner.foreign(domain) and value.is_floating_point()
        )


@register("separate")
class Separate(_ModelPerDomain):
    """An oracle: the initial model fine-tuned on each domain apart, and each domain decoded by its own model.

    (The separate models of Vander Eeckt and Van hamme are snapshots of sequential fine-tuning; these are independent.)
    """

    label, kind = "Separate models", "separate"

    def parent(self, learner: Learner) -> Weights:
        return learner.initial


@register("single")
class Single(_ModelPerDomain):
    """An oracle: one model per domain, each trained from fresh weights: the single-task learning (STL) of image benchmarks.

    The first domain's is the initial model, which was trained on it. Where a model per domain is better than a method that goes
    through all domains, that method forgets, or can no longer learn, more than it transfers.
    """

    label = "Single-task models (STL)"

    def parent(self, learner: Learner) -> Weights:
        return learner.fresh


@register("joint")
class Joint(Method):
    """An upper bound: the initial model trained once, at the last stage, on the data of all domains together."""

    label, shares_fine_tuning, continues = "Joint training", True, False
    role, kind = "oracle", "joint"

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights | None:
        if not learner.last:
            return None
        return learner.fine_tune(learner.initial, learner.union(learner.domains), self)
