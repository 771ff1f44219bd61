"""The card of a merged model: what it says, and that it says no more."""

import dataclasses
import json
import math
import re

import pytest
import yaml

from asrcl.exceptions import InputError
from asrcl.files import write_json
from asrcl.merge.card import (
    TOP,
    Budget,
    CurvatureFile,
    LayerRecord,
    MergeRecord,
    Parent,
    Totals,
    card_text,
    public_name,
)
from asrcl.merge.executor import Effect

COMMAND = "asrcl merge /home/me/old.pt new.pt --curvature c.safetensors -o out"


@pytest.fixture
def record():
    layers = tuple(LayerRecord(f"layers.{n}.weight", "ihr", 0.5, 0.001 * n) for n in range(30))
    return MergeRecord(
        method="ihr",
        parents=(
            Parent.of("old", "/secret/hub/models--openai--whisper-small/snapshots/abc", "a" * 64, "hf folder"),
            Parent.of("new", "/secret/exp/new model.pt", "b" * 64, "torch"),
        ),
        knobs={"tau": 1.0, "rescale": "layer"},
        rest="1/t",
        statistics="pool",
        rules=({"match": ["ctc.*|x"], "method": "average", "knobs": {"strength": 0.3}},),
        curvature=(CurvatureFile("/secret/c.safetensors", "0123", 12000, "mc"),),
        date="2026-03-01",
        version="0.1.0",
        command=COMMAND,
        counts={"ihr": 30, "average 0.5": 100},
        layers=(*layers, LayerRecord("norm.weight", "average 0.5", 0.5)),
        totals=Totals(0.42, 0.435, 900, 1000),
        budget=Budget(0.435, 0.8, 0.68),
        notes=("the tokens are those of the old model",),
        library_name="transformers",
        name="Whisper, two accents",
    )


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def rows_of(text, head):
    after = text.split(f"| {head}", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in after.splitlines()[2:]]


def test_the_front_matter_is_what_the_hub_reads(record):
    assert front_matter(card_text(record)) == {
        "base_model": ["openai/whisper-small", "new model.pt"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "asrcl"],
    }


@pytest.mark.parametrize("name", ["no", "1e3", "a: b", "#x", "- y", 'quo"te', "ünï"])
def test_names_survive_the_front_matter(record, name):
    parents = (dataclasses.replace(record.parents[0], name=name),)
    assert front_matter(card_text(dataclasses.replace(record, parents=parents)))["base_model"] == [name]


def test_places_of_the_machine_show_in_the_command_alone(record):
    text = card_text(record)
    assert "/secret" not in text and text.count("/home/me") == 1
    raw = dataclasses.replace(record, parents=(Parent("old", "/secret/x/old.pt"), Parent("new", "C:\\secret\\new.pt")))
    assert "secret" not in card_text(raw) and "`old.pt`" in card_text(raw) and "`new.pt`" in card_text(raw)
    assert public_name("exp/old/") == "old"


def test_everything_that_was_asked_for_is_in_it(record):
    text = card_text(record)
    facts = ["a" * 64, "b" * 64, "hf folder", "rescale", "1/t", "pool", "12,000", "mc", "0123", "strength = 0.3", "0.1.0"]
    assert [fact for fact in (*facts, "2026-03-01") if fact not in text] == []
    assert f"```bash\n{COMMAND}\n```" in text and "½ δᵀFδ" in text and "nats" in text
    assert "all steps were multiplied by 0.8" in text and "90.0% of the weights" in text
    assert "`ctc.*\\|x`" in text and "- the tokens are those of the old model" in text


def test_the_dearest_layers_come_first_and_the_rest_is_summed(record):
    rows = rows_of(card_text(record), "tensor ")
    assert len(rows) == TOP + 1
    assert [row[0] for row in rows[:2]] == ["`layers.29.weight`", "`layers.28.weight`"]
    assert rows[-1][0] == "10 more" and float(rows[-1][3]) == pytest.approx(0.045)
    shares = [float(row[4].strip(" |%")) for row in rows]
    assert sum(shares) == pytest.approx(100, abs=1.5)


def test_without_curvature_it_promises_nothing(record):
    layers = tuple(LayerRecord(f"l.{n}", "average 0.5", n / 100) for n in range(25))
    bare = MergeRecord("average", record.parents, layers=layers)
    text = card_text(bare)
    assert "no increase of its loss can be predicted" in text and "nats" not in text
    assert rows_of(text, "tensor ")[0][0] == "`l.24`"
    assert "## Curvature" not in text and "## Notes" not in text and "How to make it again" not in text


def test_tables_are_rectangular_whatever_the_names(record):
    odd = dataclasses.replace(record, layers=(LayerRecord("a|b`c\nd", "ihr", 1.0, 0.5), *record.layers), command="x ```` y")
    text = card_text(odd)
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "`````bash\nx ```` y\n`````" in text


def test_layers_from_measured_effects():
    assert LayerRecord.of("w", "ihr", Effect(1.0, 4.0, 0.5)) == LayerRecord("w", "ihr", 0.25, 0.5)
    assert LayerRecord.of("w", "ihr", Effect(0.0, 0.0, None)).relative is None
    assert LayerRecord.of("w", "new", None) == LayerRecord("w", "new")


def test_records_survive_being_written(record, tmp_path):
    write_json(tmp_path / "merge.json", record.as_json())
    again = MergeRecord.load(tmp_path / "merge.json")
    assert again == record and card_text(again) == card_text(record)
    odd = dataclasses.replace(record, totals=Totals(math.nan, math.inf))
    assert json.loads(json.dumps(odd.as_json(), allow_nan=False))["totals"]["predicted"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "no 'asrcl merge record 1'"),
        ({"colour": 1}, "record: unknown entry 'colour'"),
        ({"parents": [{"role": "old"}]}, "parents: no entry 'name'"),
        ({"layers": {}}, "layers must be a list"),
        ({"totals": 3}, "totals must hold entries"),
    ],
)
def test_other_files_are_refused(record, tmp_path, change, message):
    write_json(tmp_path / "merge.json", record.as_json() | change)
    with pytest.raises(InputError, match=message) as error:
        MergeRecord.load(tmp_path / "merge.json")
    assert str(tmp_path / "merge.json") in str(error.value)
