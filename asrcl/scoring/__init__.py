"""From error counts to proof. Never imports torch.

What an evaluation stores is here; `asrcl.scoring.significance` (scipy), `asrcl.scoring.summary` and
`asrcl.scoring.report` (matplotlib, when it draws) are imported by name: training does not wait for them.
"""

from asrcl.scoring.errors import Errors, ItemErrors, count_errors
from asrcl.scoring.metrics import METRICS, Metric
from asrcl.scoring.results import ProbeCounts, RunResult, find_results
from asrcl.scoring.transcripts import (
    read_transcripts,
    score_files,
    summary_table,
    write_jsonl,
    write_kaldi_text,
    write_trn,
)

__all__ = [
    "METRICS",
    "Errors",
    "ItemErrors",
    "Metric",
    "ProbeCounts",
    "RunResult",
    "count_errors",
    "find_results",
    "read_transcripts",
    "score_files",
    "summary_table",
    "write_jsonl",
    "write_kaldi_text",
    "write_trn",
]
