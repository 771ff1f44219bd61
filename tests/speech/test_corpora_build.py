"""The package builder of the real-speech recipe, on tiny upstream folders and against the real packages."""

import csv
import gzip
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrcl.exceptions import InputError
from asrcl.speech.corpora import load_an4, load_coffee, load_digits, load_packed, to_utterances, validate
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


def deb(path, files):
    """A Debian package: an `ar` archive of a version, control files and the files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": stream.getvalue()}
    parts = [b"!<arch>\n"]
    for name, content in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n"
        parts += [header.encode(), content, b"\n" * (len(content) % 2)]
    path.write_bytes(b"".join(parts))


@pytest.mark.parametrize(
    ("language", "voice", "speaker"), [("en", "US_f_Allison", "allison_smith"), ("it", "IT_m_Carlo", "carlo_flora")]
)
def test_prompts_from_debian_packages(tmp_path, monkeypatch, language, voice, speaker):
    """Everything but G.722 itself: a stand-in for ffmpeg gives as many samples as the file has bytes, twice."""
    sounds, documents = f"usr/share/asterisk/sounds/{language}_{voice}", f"usr/share/doc/asterisk-core-sounds-{language}"
    listing = "; Sounds\n\nvm-goodbye: Goodbye.\ndigits/1: one\nbeep: [a tone]\nmenu: Dial: 1 or 2.\nlost: Not there.\n"
    listing += "digits/1: eleven\nsilent: Nothing.\n"  # listed twice, and a sound that is empty
    deb(tmp_path / f"asterisk-core-sounds-{language}_1_all.deb", {
        f"{documents}/core-sounds-{language}.txt.gz": gzip.compress(listing.encode("utf-8-sig")), f"{documents}/copyright": b"CC",
    })  # fmt: skip
    named = {"vm-goodbye": 400, "digits/1": 80, "beep": 40, "menu": 120, "silent": 0}
    deb(tmp_path / f"asterisk-core-sounds-{language}-g722_1_all.deb", {f"{sounds}/{n}.g722": bytes(s) for n, s in named.items()})
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ffmpeg"
    program.write_text('#!/bin/sh\nwhile [ "$1" != -i ]; do shift; done\ncat "$2" "$2" "$2" "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    packages.build_prompts(tmp_path, tmp_path / "out", language)
    dataset = load_packed(tmp_path / "out", count={"test": None})
    assert set(dataset["speaker"]) == {speaker}
    assert dict(zip(dataset["id"], dataset["text"], strict=True)) == {
        "digits_1": "one", "menu": "Dial: 1 or 2.", "vm-goodbye": "Goodbye.",
    }  # fmt: skip
    assert soundfile.info(tmp_path / "out" / "audio" / "vm-goodbye.flac").frames == 800
    assert (tmp_path / "out" / "UPSTREAM_copyright").read_text() == "CC" and (tmp_path / "out" / "ATTRIBUTION.md").is_file()
    assert validate(dataset, max_broken_share=0, minimum_seconds=0.005)[1] == []
    program.write_text("#!/bin/sh\necho no such codec >&2; exit 1\n")
    with pytest.raises(InputError, match=r"g722: ffmpeg cannot decode it \(no such codec\)"):
        packages.build_prompts(tmp_path, tmp_path / "again", language)
    (tmp_path / f"asterisk-core-sounds-{language}_1_all.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(InputError, match=r"_all\.deb: no Debian package with files"):
        packages.build_prompts(tmp_path, tmp_path / "again", language)


def test_the_part_of_ljspeech(tmp_path):
    (tmp_path / "up" / "wavs").mkdir(parents=True)
    names = [f"LJ001-{n:04d}" for n in range(1, 5)]
    for name in names:
        soundfile.write(tmp_path / "up" / "wavs" / f"{name}.wav", np.zeros(22050), 22050)
    lines = [f"{name}|In 19{n}.|In nineteen {n}." for n, name in enumerate(names)]
    (tmp_path / "up" / "metadata.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "up" / "README").write_text("public domain")
    packages.build_ljspeech(tmp_path / "up", tmp_path / "out")
    dataset = load_packed(tmp_path / "out", count={"test": None})
    assert dataset["id"] == ["LJ001-0001", "LJ001-0003"] and dataset["text"] == ["In nineteen 0.", "In nineteen 2."]
    info = soundfile.info(tmp_path / "out" / "wavs" / "LJ001-0003.flac")
    assert (info.samplerate, info.frames) == (16000, 16000)


def test_download_script_of_the_pretrained_recipe(tmp_path):
    script = ROOT / "recipes" / "pretrained" / "local" / "download.sh"
    subprocess.run(["bash", "-n", script], check=True)
    environment = os.environ | {"PYTHON": sys.executable}
    for arguments, words in (([], "usage:"), ([tmp_path, "an4"], "no corpus an4; choose from ljspeech prompts coffee digits")):
        done = subprocess.run([script, *arguments], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 2 and words in done.stderr
    for name in ("ljspeech_sample", "asterisk_prompts_16k", "s2i_coffee_16k", "fsdd_8k"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.csv").write_text("x")
    done = subprocess.run([script, tmp_path], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.count("is there already") == 4 and "Common Voice needs an account" in done.stderr
    # What was fetched is held against its hash before it is unpacked.
    (tmp_path / "ljspeech_sample" / "manifest.csv").unlink()
    (tmp_path / "bin").mkdir()
    curl = tmp_path / "bin" / "curl"
    curl.write_text('#!/bin/sh\nwhile [ "$1" != --output ]; do shift; done\necho other >"$2"\n')
    curl.chmod(0o755)
    environment |= {"PATH": f"{curl.parent}:{os.environ['PATH']}"}
    done = subprocess.run([script, tmp_path, "ljspeech"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2 and "LJSpeech-1.1.tar.bz2 is not the file that was expected" in done.stderr
