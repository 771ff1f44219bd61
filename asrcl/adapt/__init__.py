"""The loop over domains: scenario, learner, cache, training, tuning."""

from asrcl.adapt.cache import Cache
from asrcl.adapt.evaluation import EvaluationPolicy
from asrcl.adapt.keeping import Keep
from asrcl.adapt.learner import CurvatureConfig, DomainLearner, estimate_on_domain, train_initial
from asrcl.adapt.loop import Stage, adapt_domains, run_method, run_stages, write_decode
from asrcl.adapt.observers import Moved, Observer, standard_observers
from asrcl.adapt.scenario import Scenario, UnionDomain
from asrcl.adapt.tracking import Tracking, TrackingConfig
from asrcl.adapt.training import DivergedError, TrainConfig, Trainer
from asrcl.adapt.tuning import check_learning, dev_rates, draw, learn_where, tune
from asrcl.contract.outputs import Outputs, distillation
from asrcl.contract.protocols import Batch, Domain, Learner, Task
from asrcl.contract.weights import (
    Weights,
    average_states,
    fingerprint,
    load_recorded,
    load_weights,
    save_recorded,
    save_weights,
    state_of,
)
from asrcl.state import StateDict

__all__ = [  # noqa: RUF022 - grouped by purpose
    # what a benchmark offers
    "Batch",
    "Domain",
    "EvaluationPolicy",
    "Outputs",
    "Scenario",
    "Task",
    "UnionDomain",
    "distillation",
    # what looks at stages
    "Moved",
    "Observer",
    "standard_observers",
    # the loop
    "Learner",
    "CurvatureConfig",
    "DomainLearner",
    "Keep",
    "Stage",
    "adapt_domains",
    "run_method",
    "run_stages",
    "train_initial",
    "write_decode",
    # training
    "DivergedError",
    "TrainConfig",
    "Trainer",
    # dashboards
    "Tracking",
    "TrackingConfig",
    # curvature
    "estimate_on_domain",
    # choosing hyper-parameters
    "check_learning",
    "dev_rates",
    "draw",
    "learn_where",
    "tune",
    # results kept by content
    "Cache",
    # weights
    "StateDict",
    "Weights",
    "average_states",
    "fingerprint",
    "load_recorded",
    "load_weights",
    "save_recorded",
    "save_weights",
    "state_of",
]
