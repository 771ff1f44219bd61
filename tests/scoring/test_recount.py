"""Counting again: it agrees with what a run wrote, and says which decode does not."""

import pytest

from asrcl.exceptions import InputError
from asrcl.scoring import Errors, RunResult, count_errors, write_trn
from asrcl.scoring.recount import recount

SAID = {"s1-a": "turn on the light", "s1-b": "stop", "s2-a": "play some jazz"}
HEARD = [
    {"s1-a": "turn on the light", "s1-b": "stop it", "s2-a": "play jazz"},
    {"s1-a": "turn the light", "s1-b": "stop", "s2-a": "play some jazz"},
]


def write_run(folder, method="ft", measured=((0, 0), (0, 1), (1, 0), (1, 1))):
    """A run of two domains whose decodes lie beside it; only some of the cells are measured."""
    domains = ["low", "high"]
    counts: list[list[Errors | None]] = [[None, None], [None, None]]
    files: list[list[str | None]] = [[None, None], [None, None]]
    for stage, domain in measured:
        heard = HEARD[(stage + domain) % 2]
        home = folder / method / "1" / f"stage{stage + 1}" / domains[domain]
        counts[stage][domain] = count_errors(SAID, heard)
        files[stage][domain] = f"stage{stage + 1}/{domains[domain]}/utterances.jsonl"
        counts[stage][domain].save(home / "utterances.jsonl")
        write_trn(home / "ref.trn", SAID)
        write_trn(home / "hyp.trn", heard)
    RunResult(
        scenario="tones",
        method=method,
        seed=1,
        unit="word",
        domains=domains,
        errors=[[None if cell is None else cell.total for cell in row] for row in counts],
        lengths=[8, 8],
        item_files=files,
    ).save(folder / method / "1" / "results.json")


def test_counts_that_agree_are_proved(tmp_path):
    write_run(tmp_path, "ft")
    write_run(tmp_path, "initial", measured=((0, 0), (0, 1)))
    table = recount(tmp_path)
    assert "recounted 6 decodes of 2 runs: every count agrees" in table
    assert "Fine-tuning" in table and "25.00" in table  # 2 errors in 8 words


@pytest.mark.parametrize("name", ["hyp.trn", "ref.trn"])
def test_a_changed_decode_is_found(name, tmp_path):
    write_run(tmp_path)
    path = tmp_path / "ft" / "1" / "stage2" / "low" / name
    path.write_text(path.read_text().replace("stop (s1-b)", "halt (s1-b)"))
    with pytest.raises(InputError, match=r"ft/1/stage2/low: 2 errors here, 1 in results.json; run the decode stage again"):
        recount(tmp_path)


def test_a_lost_decode_is_named(tmp_path):
    write_run(tmp_path)
    (tmp_path / "ft" / "1" / "stage1" / "high" / "hyp.trn").unlink()
    with pytest.raises(InputError, match=r"stage1/high/hyp.trn"):
        recount(tmp_path)


def test_a_lost_utterance_is_named(tmp_path):
    write_run(tmp_path)
    path = tmp_path / "ft" / "1" / "stage1" / "high" / "hyp.trn"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(InputError, match=r"hyp.trn against .*s1-a"):
        recount(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no results\.json below it"):
        recount(tmp_path)
