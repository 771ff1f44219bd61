"""From two texts to a proof: counts, results, significance, reports. Never imports torch.

What every evaluation needs is here. The rooms behind it, each of which imports only those before it:

    display        tables and figures as such
    counting       alignments, errors per utterance, confusions
    transcripts    transcript files, scoring one against another, reports in the layout of other toolkits
    results        results.json of a run, metrics, finding runs, the table of runs
    significance   intervals over speakers, paired tests (scipy)
    report         summaries, tables, figures, RESULTS.md, report.html (matplotlib, when it draws)
    commands       what `asrcl score`, `compare`, `report` and `results` do

The last three are imported by name: training does not wait for scipy and matplotlib.
"""

from asrcl.scoring.counting.errors import Errors, ItemErrors, Scoring, count_errors
from asrcl.scoring.counting.written import Written, as_written, count_normalised, count_written, marks_by_group, written_line
from asrcl.scoring.results.discovery import find_results
from asrcl.scoring.results.metrics import METRICS, Metric
from asrcl.scoring.results.run_result import ProbeCounts, RunResult
from asrcl.scoring.transcripts.read_write import (
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
    "Scoring",
    "Written",
    "as_written",
    "count_errors",
    "count_normalised",
    "count_written",
    "find_results",
    "marks_by_group",
    "read_transcripts",
    "score_files",
    "summary_table",
    "write_jsonl",
    "write_kaldi_text",
    "write_trn",
    "written_line",
]
