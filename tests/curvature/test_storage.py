import json

import pytest
import torch
from curvature_cases import TwoLayer, make_items, masks, seeded, sequence_loss
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from asrcl.curvature import BlockKey, Curvature, DiagonalBlock, KroneckerBlock, estimate
from asrcl.exceptions import InputError


@pytest.fixture
def curvature():
    model, items = seeded(TwoLayer), make_items((3, 2))
    diagonal = estimate(model, sequence_loss, [items], structure="diagonal")
    return estimate(model, sequence_loss, [items], padding=masks, metadata={"loss": "squares"}).fill(diagonal)


@pytest.fixture
def saved(curvature, tmp_path):
    curvature.save(tmp_path / "deep" / "curvature.safetensors")
    return tmp_path / "deep" / "curvature.safetensors"


def test_round_trip_is_exact(curvature, saved):
    loaded = Curvature.load(saved)
    assert loaded.metadata == curvature.metadata
    assert list(loaded.blocks) == list(curvature.blocks)
    for key, block in curvature.blocks.items():
        other = loaded.blocks[key]
        assert other.kind == block.kind and other.items == block.items
        assert getattr(other, "positions", 0) == getattr(block, "positions", 0)
        for role, tensor in block.tensors().items():
            assert torch.equal(other.tensors()[role], tensor) and other.tensors()[role].dtype == tensor.dtype
    assert list(saved.parent.iterdir()) == [saved], "no temporary file is left"


def test_the_file_is_as_the_format_page_says(curvature, saved):
    with safe_open(saved, framework="pt") as stream:
        header = stream.metadata()
    assert (header["format"], header["version"]) == ("asrcl-curvature", "1")
    tensors = load_file(saved)
    entry = next(e for e in json.loads(header["blocks"]) if e["parameter"] == "first.weight")
    assert (
        entry["kind"] == "kronecker"
        and entry["rows"] == [0, 4]
        and (entry["positions"], entry["items"]) == (5, 2)
    )
    block = curvature.blocks[BlockKey("first.weight", 0, 4)]
    torch.testing.assert_close(tensors[entry["input"]] / entry["positions"], block.A_II)
    torch.testing.assert_close(tensors[entry["output"]] / entry["items"], block.G_OO)
    assert json.loads(header["metadata"])["loss"] == "squares"


def test_shared_inputs_are_stored_once(tmp_path):
    gram = torch.eye(3)
    blocks = {
        BlockKey(n, 0, 2): KroneckerBlock(gram, torch.eye(2) * (i + 1), 4, 2) for i, n in enumerate("qkv")
    }
    Curvature(blocks).save(tmp_path / "c.safetensors")
    assert len(load_file(tmp_path / "c.safetensors")) == 4
    loaded = Curvature.load(tmp_path / "c.safetensors")
    assert len({id(block.input_sum) for block in loaded.blocks.values()}) == 1


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, 0.99])
def test_truncated_files_are_refused(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=r"curvature\.safetensors: not a readable curvature file") as caught:
        Curvature.load(saved)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Curvature.load(tmp_path / "nothing.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="no curvature"):
        Curvature.load(tmp_path / "model.safetensors")


def rewrite(path, change_tensors=lambda t: t, **header):
    with safe_open(path, framework="pt") as stream:
        old = stream.metadata()
    save_file(change_tensors(load_file(path)), path, {**old, **header})


def without_first(tensors):
    return dict(list(tensors.items())[1:])


def with_nan(tensors):
    return {name: tensor * float("nan") for name, tensor in tensors.items()}


def cut(tensors):
    return {name: tensor[:-1].contiguous() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "change, header, message",
    [
        (lambda t: t, {"version": "9"}, "version 9"),
        (lambda t: t, {"blocks": "[{]"}, "not a readable"),
        (lambda t: t, {"blocks": '[{"kind": "magic", "parameter": "w", "rows": [0, 1]}]'}, "not a readable"),
        (without_first, {}, "not a readable"),
        (with_nan, {}, "not finite"),
        (cut, {}, "wrong shape"),
    ],
)
def test_damaged_contents_are_refused(saved, change, header, message):
    rewrite(saved, change, **header)
    with pytest.raises(InputError, match=message):
        Curvature.load(saved)


def test_a_failed_save_leaves_the_old_file(curvature, saved):
    before = saved.read_bytes()
    bad = Curvature(curvature.blocks, {"thing": object()})
    with pytest.raises(InputError, match="not JSON"):
        bad.save(saved)
    assert saved.read_bytes() == before


def test_diagonal_blocks_keep_their_shape(tmp_path):
    block = DiagonalBlock(torch.rand(2, 3, 5), 4)
    Curvature({BlockKey("conv", 0, 2): block}).save(tmp_path / "c.safetensors")
    loaded = Curvature.load(tmp_path / "c.safetensors").blocks[BlockKey("conv", 0, 2)]
    assert torch.equal(loaded.diagonal, block.diagonal)
