"""The package builder of the real-speech recipe, on tiny upstream folders and against the real packages."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrcl.exceptions import InputError
from asrcl.speech.corpora import load_an4, load_coffee, load_digits, to_utterances, validate
from asrcl.text import ALPHABET

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "recipes" / "real_speech" / "local"
DATA = Path(os.environ.get("ASRCL_DATA", ROOT / ".." / "shared" / "data"))


def module(name):
    spec = importlib.util.spec_from_file_location(name, LOCAL / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


packages, coffee = module("build_packages"), module("build_coffee")


def manifest(name):
    path = DATA / name / "manifest.csv"
    if not path.is_file():
        pytest.skip(f"{name} is not here; set ASRCL_DATA to the folder that holds it")
    return list(csv.DictReader(path.open(encoding="utf-8")))


def write_mfc(path, table, order):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.array([table.size], order + "i4").tobytes() + table.astype(order + "f4").tobytes())


@pytest.mark.parametrize("order", ["<", ">"])
def test_sphinx_files_of_both_byte_orders(tmp_path, order):
    table = np.random.default_rng(0).normal(size=(7, 13)).astype(np.float32)
    write_mfc(tmp_path / "a.mfc", table, order)
    np.testing.assert_array_equal(packages.read_mfc(tmp_path / "a.mfc"), table)


@pytest.mark.parametrize("content", [b"", b"abc", b"\x01\x00\x00\x00", b"\x02\x00\x00\x00" + bytes(8)])
def test_other_files_are_no_cepstra(tmp_path, content):
    (tmp_path / "a.mfc").write_bytes(content)
    with pytest.raises(InputError, match=r"a.mfc: .*13"):
        packages.read_mfc(tmp_path / "a.mfc")


def test_an4_is_rebuilt_as_it_is(tmp_path):
    """Real utterances, taken apart into upstream's layout and packed again."""
    rows = [r for r in manifest("an4_mfcc13") if r["speaker"] in ("fash", "fkai", "mmxg")]
    feats, up = np.load(DATA / "an4_mfcc13" / "feats.npy", mmap_mode="r"), tmp_path / "up" / "an4"
    (up / "etc").mkdir(parents=True)
    lines = [f"{r['text'].upper()} ({r['utt_id']})" for r in rows]
    (up / "etc" / "an4_combined.transcription").write_text("\n".join(lines) + "\n")
    (up / "README").write_text("free for any use")
    for row in rows:
        write_mfc(up / "feat" / f"{row['src']}.mfc", feats[int(row["start"]) : int(row["end"])], ">")
    packages.build_an4(tmp_path / "up", tmp_path / "an4_mfcc13")
    built = list(csv.DictReader((tmp_path / "an4_mfcc13" / "manifest.csv").open()))
    assert len(built) == len(rows)
    wanted, new = {r["utt_id"]: r for r in rows}, np.load(tmp_path / "an4_mfcc13" / "feats.npy")
    for row in built:
        old = wanted[row["utt_id"]]
        assert {k: row[k] for k in row if k not in ("start", "end")} == {
            k: old[k] for k in row if k not in ("start", "end")
        }
        part = feats[int(old["start"]) : int(old["end"])]
        np.testing.assert_array_equal(new[int(row["start"]) : int(row["end"])], part)
    assert validate(load_an4(tmp_path / "an4_mfcc13"), alphabet=ALPHABET, max_broken_share=0)[1] == []
    assert (tmp_path / "an4_mfcc13" / "UPSTREAM_README").read_text() == "free for any use"


def test_digits_are_rebuilt_as_they_are(tmp_path):
    """The rebuilt package gives the same connected digits, sample by sample, as the real one."""
    rows = [r for r in manifest("fsdd_8k") if r["speaker"] in ("lucas", "yweweler") and int(r["take"]) < 7]
    up, small = tmp_path / "up", tmp_path / "small"
    (up / "recordings").mkdir(parents=True)
    (up / "metadata.py").write_text((DATA / "fsdd_8k" / "UPSTREAM_metadata.txt").read_text())
    for row in rows:
        part = dict(start=int(row["start"]), stop=int(row["end"]))
        samples, rate = soundfile.read(DATA / "fsdd_8k" / row["path"], dtype="int16", **part)
        soundfile.write(up / row["src"], samples, rate)
    packages.build_digits(up, tmp_path / "fsdd_8k")
    (small / "audio").mkdir(parents=True)
    for speaker in ("lucas", "yweweler"):
        (small / "audio" / f"{speaker}.flac").symlink_to(
            (DATA / "fsdd_8k" / "audio" / f"{speaker}.flac").resolve()
        )
    with (small / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    count = {"train": 3, "dev": 2, "test": 3}
    pairs = [
        load_digits(folder, ["DEU"], count, audio_dir=folder / "out")
        for folder in (small, tmp_path / "fsdd_8k")
    ]
    for real, built in zip(*map(to_utterances, pairs), strict=True):
        assert (real.id, real.text, real.start, real.end) == (built.id, built.text, built.start, built.end)
        np.testing.assert_array_equal(soundfile.read(real.path)[0], soundfile.read(built.path)[0])


def test_incomplete_upstream_is_named(tmp_path):
    command = [sys.executable, LOCAL / "build_packages.py", "an4", tmp_path, tmp_path / "out"]
    (tmp_path / "an4" / "etc").mkdir(parents=True)
    (tmp_path / "an4" / "etc" / "an4_combined.transcription").write_text("YES (a-b)\n")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        "no an4*_clstk/*/*.mfc here; check that the upstream folder is complete"
    )
    (tmp_path / "an4" / "etc" / "an4_combined.transcription").write_text("YES\n")
    with pytest.raises(InputError, match=r"transcription:1: expected 'WORDS \(id\)'"):
        packages.build_an4(tmp_path, tmp_path / "out")


def test_download_script_refuses_unknown_corpora(tmp_path):
    script = LOCAL / "download.sh"
    environment = os.environ | {"PYTHON": sys.executable}
    for arguments, words in (
        ([], "usage:"),
        ([tmp_path, "mnist"], "no corpus mnist; choose from an4 digits coffee"),
    ):
        done = subprocess.run(
            [script, *arguments], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 2
        assert words in done.stderr
    (tmp_path / "fsdd_8k").mkdir()
    (tmp_path / "fsdd_8k" / "manifest.csv").write_text("x")
    done = subprocess.run(
        [script, tmp_path, "digits"], capture_output=True, text=True, env=environment, check=True
    )
    assert "is there already" in done.stdout


ORDER = {
    "size": "large",
    "roast": "dark roast",
    "coffeeDrink": "latte",
    "milkAmount": "a bit of milk",
    "sugarAmount": "sugar",
}


def test_order_grammar_allows_every_order_of_the_given_slots():
    grammar = coffee.order_grammar({name: [value] for name, value in ORDER.items()})
    assert "(<size> <roast> | <roast> <size>) <coffeeDrink>" in grammar
    assert "with (<milkAmount> and <sugarAmount> | <sugarAmount> and <milkAmount>)" in grammar
    plain = coffee.order_grammar({"coffeeDrink": ["latte"]})
    assert "with" not in plain
    assert coffee.free_grammar({"a": ORDER}).count("[<size>]") == 2
    with pytest.raises(InputError, match="an order names a coffeeDrink"):
        coffee.order_grammar({"size": ["large"]})


def test_slots_are_read_back_from_words():
    values = {name: {value} for name, value in ORDER.items()} | {
        "sugarAmount": {"sugar", "a lot of brown sugar"}
    }
    assert coffee.slots_of("get me a large dark roast latte with sugar and a bit of milk", values) == ORDER
    brown = coffee.slots_of("latte with a lot of brown sugar", values)
    assert brown == {"coffeeDrink": "latte", "sugarAmount": "a lot of brown sugar"}


def test_slots_of_the_real_orders():
    rows = manifest("s2i_coffee_16k")
    labels = [json.loads(row["slots"]) for row in rows]
    values = {name: {s[name] for s in labels if name in s} for name in coffee.SLOTS}
    for row, slots in zip(rows, labels, strict=True):
        assert coffee.slots_of(row["text"], values) == slots


def test_article():
    assert coffee.one_article("an light roast and an espresso") == "a light roast and an espresso"


def test_trim_keeps_speech_and_a_margin():
    noise = np.random.default_rng(0)
    samples = np.concatenate(
        [noise.normal(0, 2, 16000), noise.normal(0, 3000, 8000), noise.normal(0, 2, 12345)]
    )
    kept = coffee.trim(samples.astype(np.int16))
    assert len(kept) == 8000 + 2 * coffee.MARGIN * coffee.FRAME


def test_coffee_is_built_around_a_decoder(tmp_path, monkeypatch):
    """Everything but pocketsphinx itself: labels, levels, clusters, splits, files."""
    clean = tmp_path / "up" / "data" / "speech" / "clean"
    clean.mkdir(parents=True)
    (tmp_path / "up" / "data" / "label").mkdir()
    noise, labels = np.random.default_rng(0), {}
    for index in range(24):
        name = f"{index:02d}.wav"
        labels[name] = {"intent": "orderDrink", "slots": {"coffeeDrink": "latte", "milkAmount": " milk"}}
        colour = np.convolve(
            noise.normal(0, 3000, 9000), np.ones(1 + index % 6 * 4) / (1 + index % 6), mode="same"
        )
        soundfile.write(clean / name, colour.astype(np.int16), 16000)
    (tmp_path / "up" / "data" / "label" / "label.json").write_text(json.dumps(labels))
    (tmp_path / "up" / "LICENSE").write_text("Apache")

    class Scripted:
        def __call__(self, samples, grammar, name):
            self.last = name if name != "free" else self.last
            number = int(self.last[:2])
            if name != "free":
                return "" if number == 23 else "get me a latte with milk"
            return ["get me a latte with milk", "make me a latte with milk", "make me a latte"][number % 3]

    monkeypatch.setattr(coffee, "OrderDecoder", Scripted)
    monkeypatch.setattr(coffee, "CLUSTERS", 6)
    rows, attribution, notices = coffee.build_coffee(tmp_path / "up", tmp_path / "out")
    packages._finish(tmp_path / "out", rows, attribution, notices)
    assert len(rows) == 23
    assert {r["level"] for r in rows if int(r["utt_id"]) % 3 == 1} == {"B"}
    dataset = load_coffee(tmp_path / "out")
    assert validate(dataset, max_broken_share=0, decode=True)[1] == []
    assert {"train", "test"} <= set(dataset["split"])
    homes = {}
    for row in to_utterances(dataset):
        assert homes.setdefault(row.speaker, row.split) == row.split
