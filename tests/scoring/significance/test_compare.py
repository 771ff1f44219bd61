import csv
import io
import json
import math
import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from asrcl.exceptions import InputError
from asrcl.scoring import Errors, ItemErrors, score_files, write_jsonl
from asrcl.scoring.commands.score import compare_command, score_command
from asrcl.scoring.significance.compare import System, as_json, compare, load_systems, rows_of, stars
from asrcl.scoring.significance.compare_view import as_csv, as_latex, as_text, draw_matrix, matrix
from asrcl.scoring.significance.paired_tests import TESTS, holm
from asrcl.scoring.significance.pairing import pool, sum_seeds
from asrcl.scoring.transcripts.score import Options

DATA = Path(__file__).parents[1] / "data"
REFERENCE = DATA / "ref.trn"
SOURCES = [str(DATA / f"{name}.trn") for name in "abc"]


@pytest.fixture(scope="module")
def systems() -> list[System]:
    return load_systems(SOURCES, REFERENCE)[0]


def test_every_pair_is_tested_and_holm_runs_over_the_pairs(systems: list[System]) -> None:
    found = compare(systems, draws=500)
    assert [(pair.a, pair.b) for pair in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    for test in TESTS:
        assert [pair.p_holm[test] for pair in found.pairs] == holm([pair.tests[test].p_value for pair in found.pairs])
    first = found.pairs[0]
    assert first.interval.estimate == pytest.approx(systems[0].errors.rate - systems[1].errors.rate)
    assert first.interval.p_better < 0.05 and first.interval.low > 0
    again = compare(systems, draws=500)
    assert again == found and compare(systems, draws=500, seed=1).pairs[0].interval != first.interval


def test_stars() -> None:
    assert [stars(p) for p in (0.0009, 0.001, 0.009, 0.049, 0.05, math.nan)] == ["***", "**", "**", "*", "", ""]


def test_systems_are_named_by_file_folder_or_hand(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "hyp.trn").write_bytes((DATA / "a.trn").read_bytes())
    paths = [f"{tmp_path}/x/hyp.trn", f"{tmp_path}/y/hyp.trn"]
    assert [s.name for s in load_systems([*paths, f"mine={SOURCES[0]}"], REFERENCE)[0]] == ["x", "y", "mine"]
    odd = tmp_path / "tau=1.trn"
    odd.write_bytes((DATA / "a.trn").read_bytes())
    assert load_systems([str(odd)], REFERENCE)[0][0].name == "tau=1"
    with pytest.raises(InputError, match=r"several systems would be called a \(.*\); name them, NAME=file"):
        load_systems([SOURCES[0], SOURCES[0]], REFERENCE)


def test_files_of_one_given_name_are_seeds(systems: list[System]) -> None:
    both = load_systems([f"x={SOURCES[0]}", f"x={SOURCES[1]}", f"y={SOURCES[2]}", f"y={SOURCES[0]}"], REFERENCE)[0]
    assert [system.name for system in both] == ["x", "y"] and both[0].files == SOURCES[:2]
    assert both[0].errors == sum_seeds([systems[0].errors, systems[1].errors])
    found = compare(both, ["mapsswe"], draws=50)
    assert found.pairs[0].tests["mapsswe"].unit == "items" and "(2 seeds added)" in as_text(found)


def test_different_numbers_of_seeds_are_refused() -> None:
    """Counts of two seeds against those of one differ in every item, however alike the systems are."""
    found = load_systems([f"x={SOURCES[0]}", f"x={SOURCES[1]}", f"y={SOURCES[2]}"], REFERENCE)[0]
    with pytest.raises(InputError, match=r"different numbers of seeds \(x has 2, y has 1\); give as many files of each"):
        compare(found, ["sign"], draws=50)


def test_different_references_are_refused_whatever_the_test(tmp_path: Path, systems: list[System]) -> None:
    items = systems[0].errors.items
    fourth = items[3]
    for name, changed in (("text", replace(fourth, reference=fourth.reference[::-1])), ("length", replace(fourth, length=99))):
        other = Errors([changed if item.id == changed.id else item for item in items])
        other.save(tmp_path / f"{name}.jsonl")
        with pytest.raises(InputError, match=f"a and {name} have different references for 1 \\({items[3].id}\\)"):
            compare([systems[0], System(name, other)], ["wilcoxon"], draws=50)
        with pytest.raises(InputError, match="have different references"):  # before the texts are lost in the sum of seeds
            load_systems([f"x={SOURCES[0]}", f"x={tmp_path / name}.jsonl"], REFERENCE)


def test_names_and_paths_with_equal_signs(tmp_path: Path) -> None:
    folder = tmp_path / "lr=1,tau=2"
    folder.mkdir()
    (folder / "a.trn").write_bytes((DATA / "a.trn").read_bytes())
    paths = [f"mine={folder}/a.trn", f"{folder}/a.trn"]
    assert [system.name for system in load_systems(paths, REFERENCE)[0]] == ["mine", "a"]
    for wrong in ("mine=", "=a.trn"):
        with pytest.raises(InputError, match="write NAME=FILE, or FILE alone"):
            load_systems([wrong], REFERENCE)


def test_stored_counts_and_results_files_are_systems(tmp_path: Path, fake_run, systems: list[System]) -> None:
    systems[0].errors.save(tmp_path / "a" / "errors.jsonl")
    stored = load_systems([str(tmp_path / "a" / "errors.jsonl")])[0]
    assert stored[0].name == "a" and stored[0].errors == systems[0].errors
    runs = [fake_run(tmp_path, method, seed) for method, seed in (("ihr", 1), ("ihr", 2), ("ft", 1))]
    folders = [str(run.folder) for run in runs]
    found = load_systems([folders[0], f"{folders[1]}/results.json", folders[2]])[0]
    assert [system.name for system in found] == ["ihr", "ft"]
    seeds = [pool(run.final_items(), run.domains) for run in runs[:2]]
    assert found[0].errors == sum_seeds(seeds)
    alone = load_systems([folders[0], folders[2]])[0]
    assert compare(alone, draws=200).pairs[0].interval.p_better > 0.5
    with pytest.raises(InputError, match="would be called ihr"):
        load_systems([folders[0], folders[0]])
    bare = fake_run(tmp_path / "bare", "ihr", 1, keep_items=False)
    with pytest.raises(InputError, match="no counts per item were kept of its last stage"):
        load_systems([str(bare.folder)])
    old = tmp_path / "old" / "results.json"
    old.parent.mkdir()
    old.write_text('{"format": "asrcl-results/0"}')
    with pytest.raises(InputError, match=r"old/results.json: .*asrcl-results/0"):
        load_systems([str(old)])


def test_different_items_are_refused_or_left_out(tmp_path: Path) -> None:
    lines = (DATA / "b.trn").read_text().splitlines(keepends=True)
    (tmp_path / "short.trn").write_text("".join(lines[5:]))
    sources = [SOURCES[0], str(tmp_path / "short.trn")]
    with pytest.raises(InputError, match=r"references without a hypothesis: 5 \(spk0-00, .*add --skip"):
        load_systems(sources, REFERENCE)
    found, skipped = load_systems(sources, REFERENCE, Options(skip=True))
    assert [len(system.errors) for system in found] == [135, 135]
    assert len(skipped) == 2 and skipped[1].startswith("left out for all systems: short lacks 5 (spk0-00, ")
    for name, system in zip("xy", found, strict=True):
        system.errors.save(tmp_path / f"{name}.jsonl")
    Errors([ItemErrors("other", "s", 0, 0, 0, 1)]).save(tmp_path / "z.jsonl")
    with pytest.raises(InputError, match="the systems have no item in common: x lacks 1"):
        load_systems([str(tmp_path / "x.jsonl"), str(tmp_path / "z.jsonl")], options=Options(skip=True))
    score_files(REFERENCE, SOURCES[0]).save(tmp_path / "full.jsonl")
    with pytest.raises(InputError, match="the systems have different items: x lacks 5"):
        load_systems([str(tmp_path / "x.jsonl"), str(tmp_path / "full.jsonl")])


def test_normalisers_reach_hypotheses_and_stored_counts(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "ref.jsonl", {"a-1": "Yes, sir", "b-1": "No"})
    write_jsonl(tmp_path / "x.jsonl", {"a-1": "yes sir", "b-1": "no"})
    score_files(tmp_path / "ref.jsonl", tmp_path / "x.jsonl").save(tmp_path / "y.jsonl")
    sources = [str(tmp_path / "x.jsonl"), str(tmp_path / "y.jsonl")]
    found = load_systems(sources, tmp_path / "ref.jsonl", Options(normaliser="basic"))[0]
    assert [system.errors.total for system in found] == [0, 0]
    assert [s.errors.total for s in load_systems(sources, tmp_path / "ref.jsonl")[0]] == [2, 2]
    Errors([ItemErrors("a-1", "a", 1, 0, 0, 2)]).save(tmp_path / "bare.jsonl")
    with pytest.raises(InputError, match=r"bare.jsonl: its items have no texts to count again"):
        load_systems([str(tmp_path / "bare.jsonl")], options=Options(normaliser="basic"))


def test_what_cannot_be_compared_is_refused(systems: list[System]) -> None:
    with pytest.raises(InputError, match=r"1 system to compare \(a\)"):
        compare(systems[:1])
    with pytest.raises(InputError, match="two systems are called alike in a, a"):
        compare([systems[0], systems[0]])
    with pytest.raises(InputError, match="unknown tests: t; choose among wilcoxon"):
        compare(systems, ["t"])
    with pytest.raises(InputError, match="a hypothesis file needs its reference; add --reference"):
        load_systems(SOURCES)
    other = System("z", Errors([ItemErrors("q", "s", 0, 0, 0, 1)]))
    with pytest.raises(InputError, match="a against z: items in only one of two sets"):
        compare([systems[0], other])
    with pytest.raises(InputError, match=r"none\.trn: no such file or folder"):
        load_systems(["none.trn"], REFERENCE)


def test_views_hold_the_same_numbers(systems: list[System], tmp_path: Path) -> None:
    found = compare(systems, ["bootstrap", "wilcoxon"], draws=300)
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert len(rows) == 6 and float(rows[0]["p_holm"]) == found.pairs[0].p_holm["bootstrap"]
    assert [row["test"] for row in rows_of(found)] == ["bootstrap", "wilcoxon"] * 3
    content = as_json(found)
    assert content["format"] == "asrcl-comparison/1" and len(content["tests"]) == 6
    assert json.loads(json.dumps(content)) == content and content["systems"][0]["errors"] == systems[0].errors.total
    text = as_text(found)
    assert "3 systems on the same 140 items of 10 speakers" in text and "a - c" in text and "rank-biserial" in text
    cells = {(row[0], name): cell for row in matrix(found, "wilcoxon").texts() for name, cell in zip("abc", row[2:], strict=True)}
    assert cells["a", "b"].startswith("+11.20") and cells["b", "a"].startswith("-11.20") and cells["c", "c"] == "–"
    assert re.sub(r"[^*]", "", cells["a", "c"]) == stars(found.pairs[1].p_holm["wilcoxon"])
    table = as_latex(found, "wilcoxon")
    assert r"\toprule" in table and table.count(r"\\") == 4
    draw_matrix(found, "wilcoxon", tmp_path / "m.svg")
    assert (tmp_path / "m.svg").read_text().startswith("<?xml")
    with pytest.raises(InputError, match="pictures are written as png, pdf, svg"):
        draw_matrix(found, "wilcoxon", tmp_path / "m.gif")
    with pytest.raises(InputError, match="the test sign was not made; choose among bootstrap, wilcoxon"):
        matrix(found, "sign")


def test_one_speaker_has_no_interval_and_json_has_null() -> None:
    sets = [Errors([ItemErrors(f"u{k}", "s", n + k, 0, 0, 10) for k in range(4)]) for n in (0, 1)]
    found = compare([System("x", sets[0]), System("y", sets[1])], draws=50)
    row = next(row for row in as_json(found)["tests"] if row["test"] == "bootstrap")
    assert row["p"] is None and row["ci95_low"] is None and row["p_holm"] is None
    assert "no interval over speakers: there is one alone" in as_text(found)


def test_the_command_writes_what_it_prints(tmp_path: Path) -> None:
    for output in ("text", "json", "csv", "latex"):
        text = compare_command(SOURCES, REFERENCE, tests=["sign"], output=output, out=tmp_path / output, draws=50)
        assert (tmp_path / output).read_text() == text and len(text) > 200
    text = compare_command(SOURCES, REFERENCE, by="speaker", plot=tmp_path / "p.png", stars_of="mapsswe", draws=50)
    assert (tmp_path / "p.png").read_bytes()[1:4] == b"PNG" and "10 speakers" in text
    with pytest.raises(InputError, match="unknown output 'html'; choose text, json, csv, latex"):
        compare_command(SOURCES, REFERENCE, output="html")
    with pytest.raises(InputError, match="cannot compare by 'word'; choose item or speaker"):
        compare_command(SOURCES, REFERENCE, by="word")


def test_the_score_command_prints_writes_and_counts(tmp_path: Path) -> None:
    text = score_command(REFERENCE, DATA / "a.trn", Options(normaliser="basic"), out=tmp_path, top=2, worst=1)
    assert re.search(r"^raw +140 +911 +37.32", text, re.MULTILINE) and re.search(r"^basic +140 +911", text, re.MULTILINE)
    assert "most frequent, raw:" in text and "alpha -> charlie" in text and "spk3-12 (12 of 13" in text
    assert {"score.json", "score.csv", "errors.jsonl", "hyp.trn.sys", "errs-a.txt", "wer_a.txt", "basic"} <= {
        path.name for path in tmp_path.iterdir()
    }
    content = json.loads(score_command(REFERENCE, DATA / "a.trn", output="json"))
    assert content["rows"][0]["substitutions"] == 185
    assert score_command(REFERENCE, DATA / "a.trn", output="csv").startswith("text,column,value,items")
    with pytest.raises(InputError, match="unknown output 'xml'"):
        score_command(REFERENCE, DATA / "a.trn", output="xml")
    with pytest.raises(InputError, match="unknown alignment costs"):
        score_command(REFERENCE, DATA / "a.trn", Options(costs="x"))


def test_the_score_command_lists_what_it_skipped_and_cuts_long_lists(tmp_path: Path) -> None:
    (tmp_path / "ref.trn").write_text("a (x)\nb (y)\n" + "no id\n" * 50)
    (tmp_path / "hyp.trn").write_text("a (x)\nb (y)\n")
    text = score_command(tmp_path / "ref.trn", tmp_path / "hyp.trn", Options(skip=True))
    assert "skipped (50):" in text and "... and 10 more" in text and "line 3: expected 'text (id)'" in text
    (tmp_path / "odd.jsonl").write_text('{"id": "a (1)", "text": "x", "pred_text": "x"}\n')
    assert "note (2):" in score_command(tmp_path / "odd.jsonl", out=tmp_path / "out")
    with pytest.raises(InputError, match=r"no results\.json below it"):
        score_command(tmp_path)


def test_one_speaker_has_no_chance_and_infinite_rates_have_dashes() -> None:
    """A resample of one block is that block; errors on empty references have no finite rate."""
    alone = [Errors([ItemErrors(f"u{k}", "s", n + k, 0, 0, 10) for k in range(4)]) for n in (0, 1)]
    found = compare([System("x", alone[0]), System("y", alone[1])], draws=50)
    assert math.isnan(found.pairs[0].interval.p_better) and as_json(found)["tests"][0]["p_a_better"] is None
    empty = [Errors([ItemErrors(f"{k}-u", str(k), 0, 0, n, 0) for k in range(4)]) for n in (1, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare([System("x", empty[0]), System("y", empty[1])], draws=50)
        text = as_text(found)
    assert found.pairs[0].interval.p_better == 0.5 and "no interval where a rate is infinite" in text
    assert "nan" not in text + as_latex(found, "sign")


def test_items_without_speakers_are_told(systems: list[System]) -> None:
    items = [replace(item, group=item.id) for item in systems[0].errors.items]
    text = as_text(compare([System("x", Errors(items)), System("y", Errors(items))], ["sign"], draws=50))
    assert "every item counts as a speaker of its own" in text and "--meta" in text and "-0.00" not in text
    assert "every item counts" not in as_text(compare(systems, ["sign"], draws=50))


def test_the_ending_of_the_file_says_its_format(tmp_path: Path) -> None:
    for name, start in (("x.csv", "a,b,rate_a"), ("x.json", "{"), ("x.tex", "% \\usepackage"), ("x.txt", "3 systems")):
        printed = compare_command(SOURCES, REFERENCE, tests=["sign"], out=tmp_path / name, draws=50)
        assert printed.startswith("3 systems") and (tmp_path / name).read_text().startswith(start)
    compare_command(SOURCES, REFERENCE, tests=["sign"], output="csv", out=tmp_path / "y.json", draws=50)
    assert (tmp_path / "y.json").read_text().startswith("a,b,rate_a")


def test_long_and_foreign_names_fit_the_picture(tmp_path: Path, systems: list[System]) -> None:
    renamed = [replace(system, name=name) for system, name in zip(systems, ("x" * 90, "音声", "c"), strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_matrix(compare(renamed, ["sign"], draws=50), "sign", tmp_path / "x.png")


def test_a_table_of_speakers_holds_for_every_kind_of_source(tmp_path: Path, fake_run) -> None:
    """Counts that were stored too, not for hypothesis files alone; where it can say nothing it is refused."""
    runs = [fake_run(tmp_path, method, 0) for method in ("ft", "ihr")]
    ids = [key for domain in range(5) for key in runs[0].items(runs[0].final_stage(domain), domain).ids]
    table = tmp_path / "utt2spk"
    table.write_text("".join(f"{key} {'ab'[number % 2]}\n" for number, key in enumerate(ids[:-1])))
    homes = [str(run.folder) for run in runs]
    (a, b), _ = load_systems(homes, options=Options(meta=table))
    assert {item.group for item in a.errors.items} == {item.group for item in b.errors.items} == {"a", "b", "-"}
    plain = load_systems(homes)[0][0].errors
    assert [replace(item, group="") for item in a.errors.items] == [replace(item, group="") for item in plain.items]
    stored = tmp_path / "errors.jsonl"
    runs[0].items(4, 0).save(stored)
    ((c, _), _) = load_systems([f"x={stored}", f"y={stored}"], options=Options(meta=table))
    assert {item.group for item in c.errors.items} == {"a", "b"}
    for content, message in (("u 1\n", "none of its ids .* is in the table of --meta"), ("", "names no speaker")):
        table.write_text(content)
        with pytest.raises(InputError, match=message):
            load_systems(homes, options=Options(meta=table))
    (tmp_path / "rooms.csv").write_text("id,room\n" + "".join(f"{key},hall\n" for key in ids))
    with pytest.raises(InputError, match=r"rooms.csv: names no speaker; give a table with a column speaker"):
        load_systems(homes, options=Options(meta=tmp_path / "rooms.csv"))


@pytest.mark.parametrize("given", ["reference_key", "hypothesis_key", "id_key", "format", "reference"])
def test_options_of_hypothesis_files_are_refused_where_there_are_none(tmp_path: Path, fake_run, given: str) -> None:
    homes = [str(fake_run(tmp_path, method, 0).folder) for method in ("ft", "ihr")]
    (tmp_path / "ref.trn").write_text("a (a-1)\n")
    options = Options() if given == "reference" else Options(**{given: "trn"})
    name = {"reference_key": "ref-key", "hypothesis_key": "hyp-key"}.get(given, given.replace("_", "-"))
    with pytest.raises(InputError, match=f"--{name}: of hypothesis files, but all systems are stored counts; leave it out"):
        load_systems(homes, tmp_path / "ref.trn" if given == "reference" else None, options)
