"""The worked examples of docs/images.md."""

import sys

import pytest
from doc_cases import DOCS, example
from image_cases import configured

from asrcl.experiment.config import config_folder
from asrcl.experiment.registry import benchmark_of


@pytest.fixture
def my_images(tmp_path, monkeypatch):
    from asrcl.images import data, models

    monkeypatch.setattr(data, "_SOURCES", dict(data._SOURCES))
    monkeypatch.setattr(models.MODELS, "_registered", dict(models.MODELS._registered))
    parts = [example(name, "images.md") for name in ("source", "trunk")]
    (tmp_path / "my_images.py").write_text("\n".join(parts))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_images", None)


def test_a_source_and_a_trunk_of_one_s_own(tmp_path, my_images):
    own = ["imports=[my_images]", "scenario.images.kind=stripes", "+scenario.images.count=40", "model.kind=pooled"]
    config = configured(tmp_path, "permuted_digits", *own, "~model.widths", "~model.dropout", "model=mlp")
    scenario = benchmark_of(config.tree).scenario(config, 1)
    batch = scenario.domains[0].item("train", 0)
    assert scenario.domains[0].size("train") == 40 and batch.pixels[0, 0].sum(1).tolist() == [8.0, 0.0] * 4
    assert scenario.build_model()(batch.pixels, "original").shape == (1, 2)


def test_the_page_names_every_scenario_kind_and_model(tmp_path):
    from asrcl.images.data import _BUILT_IN
    from asrcl.images.models import MODELS

    page = (DOCS / "images.md").read_text(encoding="utf-8")
    names = [path.stem for path in (config_folder() / "scenario").glob("*.yaml")]
    shipped = [name for name in names if configured(tmp_path, name).tree["scenario"].get("benchmark") == "images"]
    assert not [name for name in (*shipped, *_BUILT_IN, *MODELS.names) if f"`{name}`" not in page]
