"""Budgets on speech: probes whose corpus has a dev part, and those whose corpus has none."""

import pytest

from asrcl.exceptions import InputError
from asrcl.experiment.config import load_config
from asrcl.experiment.run import adapt_all, train_all
from asrcl.scoring import RunResult
from asrcl.speech.prepare import prepare_data, prepare_tokens


def prepared(tones, folder, *more):
    chosen = load_config(tones.overrides(folder, "scenario=probed", *more))
    prepare_data(chosen)
    prepare_tokens(chosen)
    return chosen


def test_a_probe_without_a_dev_set_is_refused_before_the_initial_model_is_trained(tones, tmp_path):
    chosen = prepared(tones, tmp_path, "keep=probe:+1")
    with pytest.raises(InputError, match=r"keep: probe has no dev set to choose strengths on.*split: dev"):
        train_all(chosen, [1])
    assert not (chosen.runs / "initial").exists()


def test_a_probe_with_a_dev_part_is_kept(tones, tmp_path):
    """Its test set stays what it was."""
    parts = [f"{{kind: kaldi, folder: '{tones.data}/probe/test', split: {split}}}" for split in ("dev", "test")]
    probes = f"scenario.probes=[{{name: probe, corpus: [{', '.join(parts)}]}}]"
    chosen = prepared(tones, tmp_path, probes, "keep=probe:+0 low:+200%")
    train_all(chosen, [1])
    adapt_all(chosen, ["ft"], [1], decode=True)
    run = RunResult.load(chosen.runs / "ft" / "1" / "results.json")
    record = run.stages[1]["keep"]
    taken = next(entry for entry in record["tried"] if entry["strength"] == record["strength"])
    assert taken["within"] and taken["domains"]["probe"]["rate"] <= record["domains"]["probe"]["limit"] + 1e-9
    assert run.probes[0].length == 14
