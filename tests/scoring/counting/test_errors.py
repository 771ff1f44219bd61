import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asrcl.scoring
from asrcl.exceptions import InputError
from asrcl.scoring import Errors, ItemErrors, count_errors

words = st.lists(st.sampled_from(["a", "bb", "ccc", "dé"]), max_size=6).map(" ".join)


def edit_distance(first: list[str] | str, second: list[str] | str) -> int:
    """Textbook dynamic programming, as an oracle."""
    row = list(range(len(second) + 1))
    for i, left in enumerate(first, start=1):
        previous, row[0] = row[0], i
        for j, right in enumerate(second, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_counts_are_the_edit_distance_of_words_and_characters(pairs: list[tuple[str, str]]) -> None:
    said = {str(i): pair[0] for i, pair in enumerate(pairs)}
    heard = {str(i): pair[1] for i, pair in enumerate(pairs)}
    for entry in count_errors(said, heard).items:
        reference, hypothesis = said[entry.id], heard[entry.id]
        assert entry.errors == edit_distance(reference.split(), hypothesis.split())
        assert entry.character_errors == edit_distance(reference, hypothesis)
        assert (entry.length, entry.character_length) == (len(reference.split()), len(reference))
        assert entry.length - entry.deletions + entry.insertions == len(hypothesis.split())


def test_the_three_kinds_and_the_rate_of_a_known_pair() -> None:
    errors = count_errors(
        {"u": "the cat sat on mats", "v": "yes"}, {"u": "the hat sat on", "v": "oh yes"}, {"u": "s"}
    )
    first, second = errors.items
    assert (first.substitutions, first.deletions, first.insertions, first.group) == (1, 1, 0, "s")
    assert (second.substitutions, second.deletions, second.insertions, second.group) == (0, 0, 1, "v")
    assert errors.rate == pytest.approx(100 * 3 / 6)
    assert errors.rate == pytest.approx(
        100 * jiwer.wer(["the cat sat on mats", "yes"], ["the hat sat on", "oh yes"])
    )
    assert (errors.substitutions, errors.deletions, errors.insertions) == (1, 1, 1)
    assert errors.item_rate == 100.0


def test_runs_of_white_space_do_not_count() -> None:
    assert count_errors({"u": " a\t b \n"}, {"u": "a b"}).character_errors == 0


def test_rules_at_the_edges() -> None:
    silent = count_errors({"a": "", "b": ""}, {"a": "", "b": ""})
    assert (silent.rate, silent.length) == (0.0, 0)
    assert math.isnan(silent.character_rate)
    babble = count_errors({"a": ""}, {"a": "uh huh"})
    assert math.isinf(babble.rate) and babble.total == 2
    mixed = count_errors({"a": "", "b": "x y"}, {"a": "uh", "b": "x y"})
    assert mixed.rate == 50.0
    empty = count_errors({}, {})
    assert math.isnan(empty.rate) and math.isnan(empty.item_rate) and len(empty) == 0


def test_a_classifier_counts_wrong_images() -> None:
    errors = Errors([ItemErrors(str(i), str(i), int(i < 3), 0, 0, 1) for i in range(12)], unit="image")
    assert (errors.rate, errors.item_rate, errors.length) == (25.0, 25.0, 12)
    assert math.isnan(errors.character_rate)


def test_different_ids_are_named_and_counted() -> None:
    references = {f"utt{i}": "a" for i in range(9)}
    with pytest.raises(
        InputError, match=r"without a hypothesis: 8 \(utt1, utt2, .*…\).*without a reference: 1 \(x\)"
    ):
        count_errors(references, {"utt0": "a", "x": "b"})


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    # U+2028 is a line break to str.splitlines, but an ordinary character in a JSON string.
    odd = ItemErrors("id\u2028x", "spk", 1, 2, 3, 4, "réf", "hyp", 5, 6)
    errors = Errors([odd, ItemErrors("b", "c", 0, 0, 0, 0)], unit="character")
    errors.save(tmp_path / "new" / "errors.jsonl")
    assert Errors.load(tmp_path / "new" / "errors.jsonl") == errors
    header = json.loads((tmp_path / "new" / "errors.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert header == {"format": "asrcl-errors/1", "unit": "character", "items": 2}
    Errors([]).save(tmp_path / "none.jsonl")
    assert Errors.load(tmp_path / "none.jsonl") == Errors([])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: [], "line 1: expected format"),
        (lambda lines: [lines[0].replace("errors/1", "errors/9"), *lines[1:]], "found asrcl-errors/9"),
        (lambda lines: lines[:-1], "line 1 promises 2 items, 1 follow"),
        (lambda lines: [*lines[:2], "{"], "line 3: not JSON"),
        (lambda lines: [*lines[:2], "[1]"], "line 3: expected a JSON object"),
        (
            lambda lines: [*lines[:2], lines[2].replace('"length": 10', '"length": -1')],
            r"line 3: .*\(length\)",
        ),
        (
            lambda lines: [*lines[:2], lines[2].replace('"length": 10', '"length": true')],
            r"line 3: .*\(length\)",
        ),
        (lambda lines: [*lines[:2], lines[2].replace('"group"', '"grp"')], r"line 3: .*2 \(group, grp\)"),
        (lambda lines: [*lines[:2], lines[1]], "scored twice: 1 .a."),
        (lambda lines: [lines[0].replace('"unit"', '"u"'), *lines[1:]], "line 1: the header names no unit"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path: Path, item, edit, message: str) -> None:
    path = tmp_path / "errors.jsonl"
    Errors([item("a", "s", 1), item("b", "s", 2)]).save(path)
    lines = edit(path.read_text().splitlines())
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(InputError, match=message) as caught:
        Errors.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Errors.load(tmp_path / "none.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        Errors.load(tmp_path / "binary.jsonl")


def test_merge_joins_shards_and_refuses_overlap(item) -> None:
    first, second = Errors([item("a", "s", 1)]), Errors([item("b", "t", 2)])
    merged = first.merge(second)
    assert merged.ids == ["a", "b"] and merged.rate == 15.0 and len(first) == 1
    assert {name: part.total for name, part in merged.by_group().items()} == {"s": 1, "t": 2}
    with pytest.raises(InputError, match=r"scored twice: 1 \(a\)"):
        merged.merge(first)
    with pytest.raises(InputError, match="different units"):
        first.merge(Errors([], unit="image"))


def test_scoring_never_imports_torch_nor_matplotlib() -> None:
    home = Path(asrcl.scoring.__file__).parents[2]
    paths = [path.relative_to(home).with_suffix("") for path in Path(asrcl.scoring.__file__).parent.rglob("*.py")]
    modules = sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)
    assert {"asrcl.scoring.commands.score", "asrcl.scoring.significance.power"} <= set(modules)
    code = f"import sys, {', '.join(modules)}"
    check = f"{code}\nsys.exit(bool({{'torch', 'matplotlib'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "line 2: not JSON .nested too deeply"),
        ('{"id": "\\ud800"}', "line 2: not JSON .*half of a surrogate pair"),
        ("{", "line 2: not JSON .*column 2"),
    ],
)
def test_lines_that_could_not_be_used_are_refused(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "errors.jsonl"
    path.write_text('{"format": "asrcl-errors/1", "unit": "word", "items": 1}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        Errors.load(path)
    with pytest.raises(InputError, match=r"cannot read it \(Is a directory\)"):
        Errors.load(tmp_path)


def test_items_are_written_without_copying_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dataclasses.asdict` copies every value deeply, which is most of the time of a large set."""
    monkeypatch.setattr("copy.deepcopy", lambda *_: pytest.fail("copied"))
    errors = count_errors({"u": "é b"}, {"u": "b"}, {"u": "s"})
    errors.save(tmp_path / "e.jsonl")
    assert Errors.load(tmp_path / "e.jsonl") == errors
    row = json.loads((tmp_path / "e.jsonl").read_text().splitlines()[1])
    assert list(row) == [entry.name for entry in dataclasses.fields(ItemErrors) if not entry.name.startswith("raw_")]
