"""The command line: every command explains itself, and bad input ends in one line on standard error and exit code 2."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from asrcl import cli
from asrcl.adapt import load_weights, save_weights

COMMANDS = [
    "run",
    *("prepare", "train", "check", "adapt", "tune", "decode", "score", "compare", "report", "results"),
    *("merge", "methods", "sweep", "curvature", "inspect", "convert"),
]


@pytest.fixture
def asrcl(monkeypatch, capfd):
    """Runs the command in this process: (*arguments) -> (exit code, standard output, standard error)."""
    monkeypatch.setattr(cli.logging, "basicConfig", lambda **_: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["asrcl", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refuses(asrcl):
    """Asserts that a command is refused in one line, and returns the line."""

    def run(*arguments):
        code, _, err = asrcl(*arguments)
        assert code == 2, err
        lines = err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("asrcl: ") and "Traceback" not in err, err
        return lines[0]

    return run


@pytest.fixture(scope="module")
def trained(tones, tmp_path_factory):
    """A scenario with data, tokens and initial model, and the overrides to use it; read only."""
    from asrcl.experiment.config import load_config
    from asrcl.experiment.run import train
    from asrcl.speech.prepare import prepare_data, prepare_tokens

    torch.set_num_threads(1)
    overrides = tones.overrides(tmp_path_factory.mktemp("exp"))
    config = load_config(overrides)
    prepare_data(config)
    prepare_tokens(config)
    train(config, 1)
    return config.home, overrides


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, asrcl):
    code, out, _ = asrcl(command, "--help")
    assert code == 0 and "Usage" in out and command in out


def test_help_lists_the_commands(asrcl):
    _, out, _ = asrcl("--help")
    assert all(command in out for command in COMMANDS)


@pytest.mark.parametrize("arguments", [["sing"], ["train", "--louder"], ["score"], ["merge", "a"]])
def test_wrong_usage_exits_with_2(arguments, asrcl):
    code, _, err = asrcl(*arguments)
    assert code == 2 and "Traceback" not in err


def test_a_whole_experiment(tones, asrcl, tmp_path):
    overrides = tones.overrides(tmp_path)
    for command in ("prepare", "train", "adapt", "decode"):
        methods = ["--methods", "ft ihr"] if command in ("adapt", "decode") else []
        code, _, err = asrcl(command, *methods, *overrides)
        assert code == 0, err
    code, out, _ = asrcl("score", tmp_path / "tones")
    assert code == 0 and "recounted 8 decodes of 2 runs" in out
    code, out, _ = asrcl("report", tmp_path / "tones")
    assert code == 0 and (tmp_path / "tones" / "RESULTS.md").is_file() and "IHR" in out


def test_all_stages_in_one_command_are_the_stages_one_by_one(tones, asrcl, tmp_path):
    """The same files with the same numbers, and the titles of the stages."""
    one, many = tmp_path / "one", tmp_path / "many"
    code, out, err = asrcl("run", "--methods", "ft ihr", *tones.overrides(one))
    assert code == 0, err
    titles = [line.split(" (")[0] for line in out.splitlines() if line.startswith("== ")]
    assert titles == [
        *("== stage 1: data", "== stage 2: tokens", "== stage 3: initial model"),
        *("== stage 4-5: adapt, decode", "== stage 6: score", "== stage 7: report"),
    ]
    for command in ("prepare", "train", "adapt", "decode", "score", "report"):
        methods = ["--methods", "ft ihr"] if command in ("adapt", "decode") else []
        rest = [many / "tones"] if command in ("score", "report") else tones.overrides(many)
        assert asrcl(command, *methods, *rest)[0] == 0
    files = [{p.relative_to(f) for p in f.rglob("*") if p.is_file() and "tensorboard" not in p.parts} for f in (one, many)]
    assert files[0] == files[1]
    for path in files[0]:
        if path.suffix in (".trn", ".safetensors") and "data" not in path.parts:
            assert (one / path).read_bytes() == (many / path).read_bytes()


def test_decoding_with_a_checkpoint_writes_transcripts(trained, asrcl, tmp_path):
    home, overrides = trained
    model = home / "initial" / "1" / "model.safetensors"
    code, out, err = asrcl("decode", "--checkpoint", model, "--domain", "high", "--out", tmp_path, *overrides)
    assert code == 0 and "WER" in out, err
    assert len((tmp_path / "ref.trn").read_text().splitlines()) == 3
    code, again, _ = asrcl("score", tmp_path / "ref.trn", tmp_path / "hyp.trn")
    rate = next(line for line in out.splitlines() if "overall" in line or "all" in line).split()
    assert code == 0 and any(word in again for word in rate if "." in word), (out, again)


def test_tuning_prints_a_table(trained, asrcl, tmp_path):
    home, overrides = trained
    shutil.copytree(home, tmp_path / "tones")
    code, out, err = asrcl("tune", "--method", "fta", "--grid", "strength=0.2,0.8", *overrides, f"exp={tmp_path}")
    assert code == 0 and "strength" in out and "average" in out, err


def test_merging_two_checkpoints(asrcl, tmp_path):
    for name, value in (("old", 0.0), ("new", 1.0)):
        save_weights({"weight": torch.full((2, 3), value)}, tmp_path / f"{name}.safetensors")
    pair = [tmp_path / "old.safetensors", tmp_path / "new.safetensors", "--out", tmp_path / "merged.safetensors"]
    options = ["--method", "interpolate", "--option", "strength=0.25"]
    code, out, _ = asrcl("merge", *pair, *options, "--dry-run")
    assert code == 0 and "weight" in out and not (tmp_path / "merged.safetensors").exists()
    code, _, err = asrcl("merge", *pair, *options)
    assert code == 0, err
    assert load_weights(tmp_path / "merged.safetensors")["weight"].eq(0.25).all()


@pytest.fixture
def pair(curvature_file):
    """Two checkpoints that the curvature fits."""
    paths = []
    for name, value in (("old", 0.0), ("new", 1.0)):
        path = curvature_file.parent / f"{name}.safetensors"
        save_weights({"linear.weight": torch.full((2, 3), value), "linear.bias": torch.full((2,), value)}, path)
        paths.append(path)
    return paths


def test_merging_with_curvature_rules_and_a_budget(asrcl, refuses, pair, curvature_file, tmp_path):
    rules = tmp_path / "merge.yaml"
    rules.write_text("method: ihr\nknobs: {damping: 0.1}\nrules:\n  - {match: '*.bias', method: keep}\n")
    out = tmp_path / "merged.safetensors"
    options = ["--curvature", curvature_file, "--config", rules, "--budget", "0.01", "--knob", "tau=2"]
    code, shown, _ = asrcl("merge", *pair, *options, "--dry-run")
    assert code == 0 and "keep" in shown and "old loss predicted to grow by 0.01" in shown and not out.exists()
    code, shown, err = asrcl("merge", *pair, *options, "--out", out)
    assert code == 0 and "old loss predicted to grow by 0.01" in shown, err
    merged = load_weights(out)
    assert merged["linear.bias"].eq(0).all() and merged["linear.weight"].gt(0).all()
    assert "--budget 0.01" in out.with_name("merged.safetensors.md").read_text()
    assert "--out is missing" in refuses("merge", *pair, "--method", "average")
    save_weights({"linear.weight": torch.zeros(2, 4), "linear.bias": torch.zeros(2)}, tmp_path / "other.safetensors")
    code, _, err = asrcl("merge", pair[0], tmp_path / "other.safetensors", "--method", "average", "--out", out)
    assert code == 2 and "linear.weight" in err and "2x4" in err.replace(", ", "x").replace("[", "").replace("]", "")


def test_converting_a_folder(asrcl, refuses, tmp_path):
    from ct2_writer import tiny_whisper, variables, write_folder

    write_folder(tmp_path / "ct2", variables(tiny_whisper()))
    code, out, err = asrcl("convert", "ctranslate2", tmp_path / "ct2", tmp_path / "hf")
    assert code == 0 and f"converted: {tmp_path / 'hf'}" in out and (tmp_path / "hf" / "model.safetensors").is_file(), err
    assert "model.bin: cannot read it" in refuses("convert", "ctranslate2", tmp_path, tmp_path / "other")
    assert "holds no adapter" in refuses("convert", "peft", tmp_path / "hf", tmp_path / "hf", tmp_path / "other")


def test_merging_within_budgets_and_checking(asrcl, refuses, pair, tones, tmp_path):
    script, out = tmp_path / "rates.py", tmp_path / "kept.safetensors"
    script.write_text(
        "import sys\nfrom safetensors.numpy import load_file\nw = load_file(sys.argv[1])['linear.weight']\n"
        "print('probe', 10 + 2 * float(w.mean()))\nprint('general', 5.0)\n"
    )
    whole = ["merge", *pair, "--method", "interpolate", "--option", "strength=1", "--out", out]
    budgets = ["--budget-domains", "probe:+0.5 general:+5%"]
    code, shown, err = asrcl(*whole, *budgets, "--evaluate", f"{sys.executable} {script} {{model}}")
    assert code == 0 and "strength 0.25 keeps every named domain (8 evaluations)" in shown, err
    assert load_weights(out)["linear.weight"].eq(0.25).all()
    assert "no error rate of probe" in refuses(*whole, *budgets, "--evaluate", "echo probe 5 {model}")
    assert "exit code 1" in refuses(*whole, *budgets, "--evaluate", "false {model}")
    assert "--budget-domains needs --evaluate" in refuses(*whole, *budgets)
    assert "--budget-domains needs --evaluate" in refuses(*whole, "--evaluate", "score {model}")
    overrides = tones.overrides(tmp_path, "scenario=probed")
    assert "run the tokens stage" in refuses("check", "initial", *overrides)
    for command in (["prepare"], ["train"], ["check", "initial"]):
        code, shown, err = asrcl(*command, *overrides)
        assert code == 0, err
    place = tmp_path / "probed" / "initial" / "1" / "model.check.json"
    assert f"card: {place}" in shown and "| probe | test |" in shown and "| low | dev |" in shown
    assert {row["domain"] for row in json.loads(place.read_text())["rows"]} == {"low", "high", "probe"}
    assert "high is learned last" in refuses("adapt", "--methods", "ft", *overrides, "keep=high:+1")
    assert "has no dev set of probe" in refuses("adapt", "--methods", "ft", *overrides, "keep=probe:+1", f"keep_card={place}")


def test_sweeping(asrcl, refuses, pair, curvature_file, tmp_path):
    script = tmp_path / "errors.py"
    script.write_text(
        "import sys\nfrom safetensors.torch import load_file\nw = load_file(sys.argv[1])['linear.weight']\n"
        "print('scored')\nprint(float(w.square().mean()), float((w - 1).square().mean()))\n"
    )
    command = f"{sys.executable} {script} {{model}}"
    arguments = ["sweep", *pair, "--curvature", curvature_file, "--out", tmp_path / "sweep", "--grid", "tau=0,0.5,3 damping=1,10"]
    code, out, err = asrcl(*arguments, "--evaluate", command)
    assert code == 0 and (tmp_path / "sweep" / "pareto.png").is_file(), err
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["rows"].values()
    assert len(rows) == 6 and all(row["scores"].keys() == {"old", "new"} for row in rows)
    assert out.count("*") >= 2 and not list((tmp_path / "sweep").glob("*/*.safetensors"))
    before = (tmp_path / "sweep" / "sweep.json").stat().st_mtime_ns
    assert asrcl(*arguments, "--evaluate", command)[0] == 0 and (tmp_path / "sweep" / "sweep.json").stat().st_mtime_ns == before
    assert "results of another sweep" in refuses(*arguments, "--method", "laplace")
    fresh = [*arguments[:6], tmp_path / "fresh", "--grid", "tau=1"]
    assert "write {model}" in refuses(*fresh, "--evaluate", "score.sh")
    assert "exit code 1" in refuses(*fresh, "--evaluate", "false {model}")
    assert "print two numbers" in refuses(*fresh, "--evaluate", "echo {model}")


def test_listing_methods(asrcl):
    code, out, _ = asrcl("methods")
    continual, merging = out.split("Merge methods:")
    assert code == 0 and "ihr_paper" in continual and "damping=3.0" in continual and "ties" not in continual
    assert "ties" in merging and "arXiv" in merging
    code, out, _ = asrcl("methods", "--merge")
    assert code == 0 and "ties" in out and "ihr_paper" not in out


def test_inspecting_a_checkpoint(asrcl, pair):
    code, out, _ = asrcl("inspect", pair[0])
    assert code == 0 and "8 numbers" in out and "2 float32" in out


@pytest.fixture
def curvature_file(tmp_path):
    """A small curvature of two layers."""
    from asrcl.curvature import BlockKey, Curvature, DiagonalBlock, KroneckerBlock

    kronecker = KroneckerBlock.of(torch.diag(torch.tensor([1.0, 2.0, 4.0])), torch.eye(2), 4, 2)
    blocks = {BlockKey("linear.weight", 0, 2): kronecker, BlockKey("linear.bias", 0, 2): DiagonalBlock(torch.ones(2), 2)}
    facts = {"fisher": "empirical", "structure": "kron", "items": 2, "parameters": {"linear.weight": [2, 3], "linear.bias": [2]}}
    return Curvature(blocks, facts).save(tmp_path / "curvature.safetensors")


def test_inspecting_a_curvature(asrcl, curvature_file):
    code, out, _ = asrcl("inspect", curvature_file)
    assert code == 0 and "kron, empirical Fisher" in out and "8 of 8 weights" in out and "linear.weight" in out
    code, out, _ = asrcl("inspect", curvature_file.parent, "--blocks", 1)
    assert code == 0 and "and 1 more with" in out
    code, out, _ = asrcl("inspect", curvature_file, "--json")
    found = json.loads(out)
    assert code == 0 and found["file_bytes"] == curvature_file.stat().st_size
    assert found["blocks"][0]["largest"] == pytest.approx(0.5)


def test_inspecting_what_is_no_curvature(refuses, curvature_file, tmp_path):
    assert "no such file" in refuses("inspect", tmp_path / "nothing.safetensors")
    (tmp_path / "half.safetensors").write_bytes(b"abc")
    assert "half.safetensors" in refuses("inspect", tmp_path / "half.safetensors")
    curvature_file.write_bytes(curvature_file.read_bytes()[:-1] + b"x")
    assert "is damaged (its checksum differs)" in refuses("inspect", curvature_file)


# ---- bad input


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["prepare", "--stage", "salad"], "--stage salad: choose data, tokens or all"),
        (["prepare", "trian.epochs=3"], "trian"),
        (["prepare", "scenario=nowhere"], "scenario/nowhere"),
        (["prepare", "--domains", "MARS"], "domain MARS: not in this scenario"),
        (["prepare", "nonsense"], "nonsense: not an override"),
        (["train", "--seeds", "one"], "--seeds"),
        (["train", "--seeds", ""], "one seed (--seeds)"),
        (["tune", "--grid", "tau"], "tau: write option=value"),
        (["report", "/nowhere"], "/nowhere: no such folder"),
        (["score", "/nowhere"], "/nowhere"),
        (["merge", "a", "b", "--out", "c", "--knob", "tau"], "tau: write option=value"),
    ],
)
def test_wrong_arguments(arguments, word, refuses, tmp_path):
    if arguments[0] in ("prepare", "train", "tune"):
        arguments = [*arguments, f"exp={tmp_path}"]
    assert word in refuses(*arguments)


def test_report_on_an_empty_folder(refuses, tmp_path):
    assert "no usable results.json below" in refuses("report", tmp_path)
    assert "no results.json below it" in refuses("score", tmp_path)


def test_score_of_different_utterances(refuses, tmp_path):
    (tmp_path / "ref.trn").write_text("one two (a-1)\nthree (a-2)\n")
    (tmp_path / "hyp.trn").write_text("one two (a-1)\n")
    assert "references without a hypothesis: 1 (a-2)" in refuses("score", tmp_path / "ref.trn", tmp_path / "hyp.trn")


def missing_audio(split):
    for path in split.glob("s1*.wav"):
        path.unlink()


def empty_audio(split):
    for path in split.glob("*.wav"):
        soundfile.write(path, np.zeros(0), 16000)


def eight_channels(split):
    for path in split.glob("*.wav"):
        soundfile.write(path, np.zeros((8000, 8)), 16000)


def no_audio_at_all(split):
    for path in split.glob("*.wav"):
        path.write_bytes(b"MZ" + bytes(100))


def rewrite_text(split, change):
    lines = (split / "text").read_text().splitlines()
    (split / "text").write_text("".join(change(line) + "\n" for line in lines))


def empty_transcripts(split):
    rewrite_text(split, lambda line: line.split()[0])


def unknown_characters(split):
    rewrite_text(split, lambda line: line + " 24 größe")


def latin_transcripts(split):
    (split / "text").write_bytes((split / "text").read_text().replace("light", "li\u00e9ght").encode("latin-1"))


def no_list(split):
    (split / "wav.scp").unlink()


@pytest.mark.parametrize(
    "spoil, word",
    [
        (missing_audio, "no such audio file"),
        (empty_audio, "holds no samples"),
        (eight_channels, "has 8 channels"),
        (no_audio_at_all, "not readable as audio"),
        (empty_transcripts, "empty transcript"),
        (unknown_characters, "characters outside the alphabet: '2' '4'"),
        (latin_transcripts, "low/train/text:1: not UTF-8"),
        (no_list, "low/train/wav.scp: cannot be read"),
    ],
)
def test_spoiled_data(spoil, word, tones, refuses, tmp_path):
    shutil.copytree(tones.data, tmp_path / "data")
    spoil(tmp_path / "data" / "low" / "train")
    line = refuses("prepare", *tones.overrides(tmp_path / "exp", f"data_dir={tmp_path / 'data'}"))
    assert word in line
    assert str(tmp_path / "data" / "low" / "train") in line


def test_a_domain_without_test_set(tones, refuses, asrcl, tmp_path):
    shutil.copytree(tones.conf, tmp_path / "conf")
    path = tmp_path / "conf" / "scenario" / "tones.yaml"
    tested = "{kind: kaldi, folder: '${data_dir}/high/test', split: test}"
    path.write_text(path.read_text().replace(f", {tested}", ""))
    overrides = tones.overrides(tmp_path / "exp", f"config_dir={tmp_path / 'conf'}")
    assert asrcl("prepare", *overrides)[0] == 0
    assert "domain high has no test utterances" in refuses("train", *overrides)


def test_an_output_folder_below_a_file(tones, trained, refuses, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot write here" in refuses("prepare", *tones.overrides(tmp_path / "file"))
    home, overrides = trained
    model = home / "initial" / "1" / "model.safetensors"
    out = ["--domain", "high", "--out", tmp_path / "file" / "out"]
    assert "cannot write here" in refuses("decode", "--checkpoint", model, *out, *overrides)


def test_stages_in_the_wrong_order(tones, refuses, tmp_path):
    overrides = tones.overrides(tmp_path)
    assert "run the data stage" in refuses("prepare", "--stage", "tokens", *overrides)
    assert "run the tokens stage" in refuses("train", *overrides)


def test_decoding_what_is_not_there(trained, refuses, tmp_path):
    home, overrides = trained
    model = home / "initial" / "1" / "model.safetensors"
    assert "method magic: not in the configuration" in refuses("decode", "--methods", "magic", *overrides)
    assert "--checkpoint needs --domain" in refuses("decode", "--checkpoint", model, *overrides)
    assert "domain mid: not in this scenario" in refuses("decode", "--checkpoint", model, "--domain", "mid", *overrides)
    (tmp_path / "text.safetensors").write_text("no tensors")
    assert "damaged" in refuses("decode", "--checkpoint", tmp_path / "text.safetensors", "--domain", "low", *overrides)
    refusal = refuses("decode", "--checkpoint", model, "--domain", "low", "--split", "exam", *overrides)
    assert "split exam" in refusal


def test_decoding_with_a_checkpoint_of_another_model(trained, refuses):
    home, overrides = trained
    model = home / "initial" / "1" / "model.safetensors"
    line = refuses("decode", "--checkpoint", model, "--domain", "low", *overrides, "model.width=32")
    assert f"{model}: not a checkpoint of this model" in line


def test_adapting_with_an_initial_model_of_another_size(trained, refuses):
    assert "not a checkpoint of this model" in refuses("adapt", *trained[1], "model.encoder_layers=2")


def test_messages_of_several_lines_become_one(refuses, tmp_path):
    (tmp_path / "scenario").mkdir()
    (tmp_path / "scenario" / "odd.yaml").write_text("name: [odd\n  - x:\n")
    assert "odd.yaml" in refuses("prepare", f"config_dir={tmp_path}", "scenario=odd")


def test_as_a_process_of_its_own(trained, tmp_path):
    """The real thing, with its logging, once: results on standard output, one line and exit code 2 for a mistake."""

    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "asrcl.cli", *arguments], capture_output=True, text=True, check=False)

    (tmp_path / "text.jsonl").write_text(json.dumps({"id": "a", "text": "one two"}) + "\n")
    good = run("score", str(tmp_path / "text.jsonl"), str(tmp_path / "text.jsonl"))
    assert good.returncode == 0 and "WER" in good.stdout and good.stderr == ""
    bad = run("decode", "--methods", "magic", *trained[1])
    assert bad.returncode == 2 and bad.stdout == ""
    assert len(bad.stderr.splitlines()) == 1 and bad.stderr.startswith("asrcl: method magic")


@pytest.mark.parametrize("command", ["merge", "sweep"])
def test_the_help_of_a_merge_method_names_a_command_that_exists(command, asrcl):
    _, out, _ = asrcl(command, "--help")
    assert "asrcl methods" in " ".join(out.replace("│", " ").split()) and "--list" not in out
