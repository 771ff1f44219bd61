"""What a method adds to fine-tuning, and which merge it ends with."""

from asrcl.methods.average import FineTuningWithAveraging
from asrcl.methods.base import Learner, Method, build_method, method_names, register
from asrcl.methods.ewc import ElasticWeightConsolidation
from asrcl.methods.ihr import InverseHessianRegularization
from asrcl.methods.references import FineTuning, Initial, Joint, Separate

__all__ = [  # noqa: RUF022 - grouped by purpose
    # writing a method
    "Learner",
    "Method",
    "build_method",
    "method_names",
    "register",
    # references
    "FineTuning",
    "Initial",
    "Joint",
    "Separate",
    # methods
    "ElasticWeightConsolidation",
    "FineTuningWithAveraging",
    "InverseHessianRegularization",
]
