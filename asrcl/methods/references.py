"""The methods that others are measured against: no training, fine-tuning, one model per domain, joint training."""

from __future__ import annotations

from asrcl.methods.base import Method, register


@register("initial")
class Initial(Method):
    """The initial model, never adapted."""

    trains = False


@register("ft")
class FineTuning(Method):
    """Sequential fine-tuning: each domain starts from the last one's weights and keeps nothing else."""


@register("separate")
class Separate(Method):
    """An oracle: the initial model fine-tuned on each domain apart, and each domain decoded by its own model.

    (The separate models of Vander Eeckt and Van hamme are snapshots of sequential fine-tuning; these are independent.)
    """

    starts_from = "initial"
    own_model_per_domain = True


@register("joint")
class Joint(Method):
    """An upper bound: the initial model trained once on the data of all domains together."""

    starts_from = "initial"
    data = "all"
    last_only = True
