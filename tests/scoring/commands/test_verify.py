"""Counting again: it agrees with what a run wrote, and says which decode does not."""

import json
import shutil
from dataclasses import replace

import pytest

from asrcl.exceptions import InputError
from asrcl.scoring import Errors, ItemErrors, RunResult, count_errors, write_trn
from asrcl.scoring.commands.verify import recount

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
        character_errors=[[None if cell is None else cell.character_errors for cell in row] for row in counts],
        character_lengths=[35, 35],
        item_files=files,
    ).save(folder / method / "1" / "results.json")


def test_counts_that_agree_are_proved(tmp_path):
    write_run(tmp_path, "ft")
    write_run(tmp_path, "initial", measured=((0, 0), (0, 1)))
    table = recount(tmp_path)
    assert table.endswith("recounted 6 decodes of 2 runs: every count agrees with its results.json\n")
    assert "Fine-tuning" in table and "25.00" in table  # 2 errors in 8 words


@pytest.mark.parametrize("name", ["hyp.trn", "ref.trn"])
def test_a_changed_decode_is_found(name, tmp_path):
    write_run(tmp_path)
    path = tmp_path / "ft" / "1" / "stage2" / "low" / name
    path.write_text(path.read_text().replace("stop (s1-b)", "halt (s1-b)"))
    with pytest.raises(InputError, match=r"ft/1/stage2/low: errors: 2 here, 1 in results.json; run the decode stage again"):
        recount(tmp_path)


def change_results(folder, **entries):
    """Say something else in a run's results.json, as if it had been written so."""
    path = folder / "ft" / "1" / "results.json"
    content = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("files", "seal")}
    path.write_text(json.dumps(content | entries))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"lengths": [8, 9]}, "stage1/high: reference words: 8 here, 9 in results.json"),
        ({"character_errors": [[9, 3], [3, 8]]}, "stage1/low: character errors: 8 here, 9 in results.json"),
        ({"character_lengths": [36, 35]}, "stage1/low: reference characters: 35 here, 36 in results.json"),
        ({"errors": [[2, 2], [1, 2]]}, "stage1/high: errors: 1 here, 2 in results.json"),
    ],
)
def test_every_count_of_the_results_is_compared(entries, message, tmp_path):
    write_run(tmp_path)
    change_results(tmp_path, **entries)
    with pytest.raises(InputError, match=message):
        recount(tmp_path)


def test_what_could_not_be_checked_is_said(tmp_path):
    write_run(tmp_path, "ft")
    write_run(tmp_path, "initial", measured=((0, 0), (0, 1)))
    change_results(tmp_path, item_files=[])
    lines = recount(tmp_path).splitlines()[-3:]
    assert lines[0] == "recounted 2 decodes of 1 run: every count agrees with its results.json"
    assert lines[1:] == ["1 run without decodes could not be checked", "4 results without decodes could not be checked"]
    shutil.rmtree(tmp_path / "initial")
    text = recount(tmp_path)
    assert "agrees" not in text and "nothing was recounted: no run kept its decodes" in text


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


def test_decisions_about_images_are_counted_again(tmp_path):
    home = tmp_path / "ft" / "1"
    items = [ItemErrors(f"i{n}", f"i{n}", int(n < 2), 0, 0, 1, "fire truck", "cat" if n < 2 else "fire truck") for n in range(5)]
    Errors(items, "image").save(home / "stage1" / "a" / "utterances.jsonl")
    files = [["stage1/a/utterances.jsonl"]]
    run = RunResult("pictures", "ft", 1, "image", ["a"], [[2]], [5], item_files=files)
    run.save(home / "results.json")
    assert recount(tmp_path).endswith("recounted 1 decode of 1 run: every count agrees with its results.json\n")
    items[3] = replace(items[3], hypothesis="dog")  # which the counts of the item do not tell
    Errors(items, "image").save(home / "stage1" / "a" / "utterances.jsonl")
    run.save(home / "results.json")
    with pytest.raises(InputError, match=r"stage1/a: errors: 3 here, 2 in results\.json"):
        recount(tmp_path)
