"""The library's defaults are said once; a recipe that differs from them says so, and why, on the same line."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from asrcl.adapt import CurvatureConfig
from asrcl.curvature import EstimateOptions
from asrcl.merge import methods as merge_methods
from asrcl.merge.steps.ihr import IHR_DAMPING, LAPLACE_DAMPING
from asrcl.methods import build_method

CONF = Path(__file__).parents[1] / "conf"
METHODS = sorted((CONF / "method").glob("*.yaml"))


def check(path: Path, defaults: dict[str, Any]) -> None:
    """A value that is not the default has a comment "not the library's DEFAULT: REASON"."""
    text = path.read_text(encoding="utf-8")
    for name, value in yaml.safe_load(text).items():
        default = defaults.get(name, value)
        default = list(default) if isinstance(default, tuple) else default
        value = float(value) if isinstance(default, float) else value  # "1e-3" is a string to YAML 1.1
        line = next(line for line in text.splitlines() if line.startswith(f"{name}:"))
        said = "null" if default is None else str(default)
        assert (value == default) == (f"not the library's {said}: " not in line), f"{path.name}: {name}"


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_methods(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "like" in content:  # it takes the options of another, which has them checked here
        assert content["like"] in {other.stem for other in METHODS}
        return
    method = type(build_method(content["name"]))
    defaults = {name: given.default for name, given in inspect.signature(method).parameters.items()}
    check(path, {**defaults, "name": content["name"]})


def test_curvature():
    options, config = EstimateOptions(), CurvatureConfig()
    for name in [one.name for one in fields(config) if one.name not in ("layers", "max_items")]:
        assert getattr(config, name) == getattr(options, name)
    check(CONF / "curvature" / "kron.yaml", {one.name: getattr(options, one.name) for one in fields(config)})


@pytest.mark.parametrize("name, damping", [("ihr", IHR_DAMPING), ("laplace", LAPLACE_DAMPING)])
def test_methods_of_a_run_take_the_defaults_of_the_merge(name, damping):
    options = merge_methods()[name].knobs
    assert options["damping"] == damping
    assert build_method(name).options | options == build_method(name).options
