"""Benchmarks by name: that of docs/adapt.md runs without the speech packages; what is unknown is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from doc_cases import example

from asrcl.exceptions import InputError
from asrcl.experiment.config import config_folder, load_config
from asrcl.experiment.registry import BENCHMARKS, Registry, benchmark_of, import_plugins

SCENARIO = "name: blobs\nbenchmark: blobs\ndomains: [{name: a}, {name: b}, {name: c}]\n"
PROGRAM = """
import sys
from pathlib import Path

import asrcl.cli

overrides = sys.argv[1:]
model = Path("exp/blobs/initial/1/model.safetensors")
for command in (
    ["run", "--methods", "fta"],
    ["train"],
    ["adapt", "--methods", "ft ihr"],
    ["decode", "--methods", "ft ihr"],
    ["decode", "--checkpoint", str(model), "--domain", "blobs2"],
    ["tune", "--method", "fta", "--grid", "strength=0.2,0.8"],
    ["curvature", str(model), "--domain", "blobs1", "--out", "curvature.safetensors"],
):
    sys.argv = ["asrcl", *command, *overrides]
    try:
        asrcl.cli.main()
    except SystemExit as stop:
        assert not stop.code, (command, stop.code)
print(sorted(name for name in sys.modules if name.split(".")[0] in
             ("speechbrain", "torchaudio", "sentencepiece", "datasets", "soundfile") or name.startswith("asrcl.speech")))
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The folder of the benchmark's module, on the path, and of its configuration."""
    (tmp_path / "blob_plugin.py").write_text(example("blob_plugin.py"))
    (tmp_path / "conf" / "scenario").mkdir(parents=True)
    (tmp_path / "conf" / "scenario" / "blobs.yaml").write_text(SCENARIO)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("blob_plugin", None)
    BENCHMARKS._registered.pop("blobs", None)


def overrides(folder, *more):
    return [f"config_dir={folder / 'conf'}", "scenario=blobs", "train=quick", "imports=[blob_plugin]", "device=cpu", *more]


def test_commands_import_speech_for_a_speech_benchmark_only(plugin):
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(plugin), root])}
    command = [sys.executable, "-c", PROGRAM, *overrides(plugin, "exp=exp", "launcher.threads=1")]
    done = subprocess.run(command, cwd=plugin, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "[]"
    assert (plugin / "exp" / "blobs" / "ihr" / "1" / "results.json").is_file() and (plugin / "curvature.safetensors").is_file()


def test_a_benchmark_completes_and_checks_its_scenario(plugin):
    config = load_config(overrides(plugin))
    assert config.tree["scenario"]["points"] == 60 and config.tree["scenario"]["probes"] == []
    assert type(benchmark_of(config.tree)).__name__ == "BlobBenchmark"
    with pytest.raises(InputError, match=r"scenario\.points=many: expected .*integer"):
        load_config(overrides(plugin, "+scenario.points=many"))


def test_an_unknown_benchmark_is_refused_with_those_there_are(plugin):
    import_plugins(["blob_plugin"])
    with pytest.raises(InputError, match=r"scenario\.benchmark=vision: .*blobs, images, speech") as refused:
        load_config(["+scenario.benchmark=vision"])
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match=r"imports: .*nowhere_at_all"):
        load_config(["imports=[nowhere_at_all]"])


def test_a_name_is_given_once():
    registry = Registry("kind", {"dict": "builtins:dict"})
    registry.register("mine")(int)
    assert registry.register("mine")(int) is int and registry.names == ["dict", "mine"]
    assert registry.get("dict") is dict and registry.get("mine") is int
    for name in ("mine", "dict"):
        with pytest.raises(InputError, match=rf"kind={name}: .*builtins:float"):
            registry.register(name)(float)


def test_every_shipped_scenario_is_of_a_known_benchmark():
    for path in (config_folder() / "scenario").glob("*.yaml"):
        config = load_config([f"scenario={path.stem}", "data_dir=/data"])
        known = {"images": "ImageBenchmark", "speech": "SpeechBenchmark"}
        assert type(benchmark_of(config.tree)).__name__ == known[config.tree["scenario"].get("benchmark", "speech")]
