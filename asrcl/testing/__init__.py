"""Small things to test plug-ins with: synthetic domains, a classification task, a tiny model, processes on one CPU.

    from asrcl.testing import tiny_learner
    result = run_method(tiny_learner(tmp_path), MyMethod(), tmp_path / "run")

takes well under a second. Everything is deterministic and needs no files.
"""

from asrcl.testing.domains import VectorBatch, VectorDomain, blob_domain
from asrcl.testing.processes import run_in_processes
from asrcl.testing.scenario import TINY_TRAINING, build_mlp, tiny_learner, tiny_scenario
from asrcl.testing.task import ClassificationTask

__all__ = [  # noqa: RUF022 - grouped by purpose
    # domains
    "VectorBatch",
    "VectorDomain",
    "blob_domain",
    # task and model
    "ClassificationTask",
    "build_mlp",
    # a whole scenario
    "TINY_TRAINING",
    "tiny_learner",
    "tiny_scenario",
    # several processes
    "run_in_processes",
]
