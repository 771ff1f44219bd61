"""The loop over domains: scenario, learner, cache, training, tuning."""

from asrcl.adapt.cache import Cache
from asrcl.adapt.learner import CurvatureConfig, DomainLearner, check_diagnostics, estimate_on_domain, train_initial
from asrcl.adapt.loop import Stage, adapt_domains, run_method, run_stages, write_decode
from asrcl.adapt.protocols import Batch, Domain, StateDict, Task
from asrcl.adapt.scenario import Scenario, UnionDomain
from asrcl.adapt.tracking import Tracking, TrackingConfig
from asrcl.adapt.training import DivergedError, TrainConfig, Trainer
from asrcl.adapt.tuning import dev_rates, draw, grid, tune
from asrcl.adapt.weights import (
    average_states,
    fingerprint,
    load_recorded,
    load_state,
    save_recorded,
    save_state,
    state_of,
)
from asrcl.curvature import Curvature
from asrcl.methods import build_method

__all__ = [  # noqa: RUF022 - grouped by purpose
    # what a benchmark offers
    "Batch",
    "Domain",
    "StateDict",
    "Task",
    "Scenario",
    "UnionDomain",
    # the loop
    "build_method",
    "CurvatureConfig",
    "DomainLearner",
    "Stage",
    "adapt_domains",
    "check_diagnostics",
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
    "Curvature",
    "estimate_on_domain",
    # choosing hyper-parameters
    "dev_rates",
    "draw",
    "grid",
    "tune",
    # results kept by content
    "Cache",
    # weights
    "average_states",
    "fingerprint",
    "load_recorded",
    "load_state",
    "save_recorded",
    "save_state",
    "state_of",
]
