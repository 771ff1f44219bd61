"""Continual-learning methods: what each does beyond fine-tuning domain by domain; `asrcl.contract.method` is what they may do."""

from collections.abc import Mapping
from typing import Any

from asrcl.contract import method as _contract
from asrcl.contract.method import Method, method_class, method_names, register
from asrcl.contract.protocols import Learner
from asrcl.contract.weights import Weights
from asrcl.methods.adapters import AdaptersPerDomain
from asrcl.methods.agem import AveragedGradientEpisodicMemory
from asrcl.methods.average import FineTuningWithAveraging
from asrcl.methods.cgalore import CurvatureGuidedProjection
from asrcl.methods.clrl import RandomLayerTuning
from asrcl.methods.cssvd import TailSubspaceTuning
from asrcl.methods.der import DarkExperienceReplay
from asrcl.methods.ema import ExponentialMovingAverage
from asrcl.methods.ewc import ElasticWeightConsolidation
from asrcl.methods.frozen import FrozenTraining
from asrcl.methods.gpm import GradientProjectionMemory
from asrcl.methods.halrp import HessianAwareLowRankPerturbation
from asrcl.methods.hybrid import HybridUpdate
from asrcl.methods.ihr import InverseHessianRegularization, LaplaceMerge
from asrcl.methods.kfac_ewc import KroneckerEWC
from asrcl.methods.l2 import L2Regularisation
from asrcl.methods.lora import LowRankAdaptation, LowRankAdaptationPerDomain
from asrcl.methods.lwf import LearningWithoutForgetting
from asrcl.methods.lwf_entropy import EntropyWeightedDistillation
from asrcl.methods.mas import MemoryAwareSynapses
from asrcl.methods.merged import Merged
from asrcl.methods.ogd import OrthogonalGradientDescent
from asrcl.methods.olora import OrthogonalLowRankAdaptation
from asrcl.methods.osf import OrthogonalSubspaceFineTuning
from asrcl.methods.packnet import PackNet
from asrcl.methods.references import FineTuning, Initial, Joint, Separate, Single
from asrcl.methods.regmean_plus_plus import RegMeanPlusPlus
from asrcl.methods.replay import ExperienceReplay
from asrcl.methods.selected import Selected
from asrcl.methods.si import SynapticIntelligence
from asrcl.methods.svr import SingularValueRehearsal
from asrcl.methods.swa import StochasticWeightAveraging

__all__ = [  # noqa: RUF022 - grouped by purpose
    # writing a method
    "Learner",
    "Method",
    "Weights",
    "Merged",
    "Selected",
    "build_method",
    "method_class",
    "method_names",
    "register",
    # references and oracles
    "FineTuning",
    "Initial",
    "Joint",
    "Separate",
    "Single",
    # methods that keep no data
    "CurvatureGuidedProjection",
    "ElasticWeightConsolidation",
    "EntropyWeightedDistillation",
    "ExponentialMovingAverage",
    "FineTuningWithAveraging",
    "FrozenTraining",
    "GradientProjectionMemory",
    "HybridUpdate",
    "InverseHessianRegularization",
    "KroneckerEWC",
    "L2Regularisation",
    "LaplaceMerge",
    "LearningWithoutForgetting",
    "LowRankAdaptation",
    "MemoryAwareSynapses",
    "OrthogonalGradientDescent",
    "OrthogonalLowRankAdaptation",
    "OrthogonalSubspaceFineTuning",
    "PackNet",
    "RandomLayerTuning",
    "StochasticWeightAveraging",
    "SynapticIntelligence",
    "TailSubspaceTuning",
    # methods that keep something of every domain beside the first domain's model
    "AdaptersPerDomain",
    "HessianAwareLowRankPerturbation",
    "LowRankAdaptationPerDomain",
    # methods with a memory
    "AveragedGradientEpisodicMemory",
    "DarkExperienceReplay",
    "ExperienceReplay",
    "RegMeanPlusPlus",
    "SingularValueRehearsal",
]


def build_method(
    name: str, *, merge: str | Mapping[str, Any] | None = None, select: str | None = None, **options: Any
) -> Method:
    """Make a method from its name and options.

    With `merge`, every stage is merged with the weights before it (`Merged`); with `select`, of models per domain the surest
    decodes an item (`Selected`).

    Raises:
        InputError: an unknown name or option; the message lists the known ones.
    """
    method = _contract.build_method(name, **options)
    method = method if merge is None else Merged(method, merge)
    return method if select is None else Selected(method, select)
