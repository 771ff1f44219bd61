import gc
import json
import pickle
import zlib

import pytest
import torch
from block_cases import assert_same, block_matrix, blocks, everything, rows_like
from curvature_cases import TwoLayer, make_items, masks, seeded, sequence_loss
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from asrcl.curvature import BlockKey, Curvature, DenseBlock, DiagonalBlock, EigenBlock, KroneckerBlock, estimate, storage
from asrcl.curvature.storage import shards
from asrcl.curvature.storage.lazy import LazyBlocks
from asrcl.curvature.storage.packing import pack, unpack
from asrcl.exceptions import InputError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def curvature():
    model, items = seeded(TwoLayer), make_items((3, 2))
    diagonal = estimate(model, sequence_loss, [items], structure="diagonal")
    return estimate(model, sequence_loss, [items], padding=masks, metadata={"loss": "squares"}).fill(diagonal)


@pytest.fixture
def saved(curvature, tmp_path):
    curvature.save(tmp_path / "deep" / "curvature.safetensors")
    return tmp_path / "deep" / "curvature.safetensors"


@pytest.fixture
def reads(monkeypatch):
    """Names of the tensors read from files, as they are read."""
    seen = []
    original = shards.TensorFiles.read
    monkeypatch.setattr(shards.TensorFiles, "read", lambda self, name: seen.append(name) or original(self, name))
    return seen


# ---- round trips


@pytest.mark.parametrize("lazy", [True, False])
def test_round_trip_is_exact(curvature, saved, lazy):
    assert_same(Curvature.load(saved, lazy=lazy), curvature)
    assert list(saved.parent.iterdir()) == [saved], "no temporary file is left"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("limit", [storage.MAX_SHARD_BYTES, 700])
def test_every_kind_in_every_type(dtype, limit, tmp_path):
    curvature = everything(dtype).scale(0.3)
    written = curvature.save(tmp_path / "c.safetensors", max_shard_bytes=limit)
    assert (len(list(tmp_path.iterdir())) > 2) == (limit == 700)
    for path in (written, tmp_path / "c.safetensors", tmp_path):
        assert_same(Curvature.load(path), curvature)
    assert written.stat().st_size == storage.file_bytes(curvature.blocks, curvature.metadata) or limit == 700


@pytest.mark.parametrize("name", list(blocks()))
def test_a_loaded_block_is_the_same_matrix(name, tmp_path):
    block, shape = blocks()[name]
    key = BlockKey("w", 2, 2 + block.rows)
    Curvature({key: block}).save(tmp_path / "c.safetensors")
    loaded = Curvature.load(tmp_path / "c.safetensors")
    torch.testing.assert_close(block_matrix(loaded.blocks[key]), block_matrix(block))
    delta = {"w": torch.cat([rows_like((2, *shape[1:])), rows_like(shape)])}
    torch.testing.assert_close(loaded.quadratic(delta), Curvature({key: block}).quadratic(delta))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (5, 5), (3, 4, 4)])
def test_packing_is_lossless(shape, dtype):
    M = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    M = torch.triu(M) + torch.triu(M, 1).mT
    packed = pack(M)
    assert packed.shape == (*shape[:-2], shape[-1] * (shape[-1] + 1) // 2) and packed.dtype == dtype
    assert torch.equal(unpack(packed, shape[-1]), M)
    if shape == (5, 5):
        assert all(packed[i * 5 - i * (i - 1) // 2 + j - i] == M[i, j] for i in range(5) for j in range(i, 5))


def test_tensors_without_memory_of_their_own(tmp_path):
    """Transposed, sliced and tracked tensors are stored as what they show."""
    wide = torch.arange(24.0).reshape(4, 6)
    tensor = wide.T[1:4].requires_grad_()
    Curvature({BlockKey("w", 0, 3): DiagonalBlock(tensor, 4)}).save(tmp_path / "c.safetensors")
    assert torch.equal(Curvature.load(tmp_path).blocks[BlockKey("w", 0, 3)].square_sum, tensor)


# ---- the format page


def test_the_file_is_as_the_format_page_says(curvature, saved):
    with safe_open(saved, framework="pt") as stream:
        header = stream.metadata()
    assert (header["format"], header["version"]) == ("asrcl-curvature", "2")
    tensors = load_file(saved)
    entry = next(e for e in json.loads(header["blocks"]) if e["parameter"] == "first.weight")
    assert entry["kind"] == "kronecker" and entry["rows"] == [0, 4] and (entry["positions"], entry["items"]) == (5, 2)
    assert (entry["input"]["form"], entry["input"]["size"], entry["transposed"]) == ("dense", 3, False)
    block = curvature.blocks[BlockKey("first.weight", 0, 4)]
    rows, columns = torch.triu_indices(3, 3)
    packed = tensors[entry["input"]["matrix"]]
    torch.testing.assert_close(packed / entry["positions"], block.A_II[rows, columns])
    rows, columns = torch.triu_indices(4, 4)
    torch.testing.assert_close(tensors[entry["output"]["matrix"]] / entry["items"], block.G_OO[rows, columns])
    assert json.loads(header["metadata"])["loss"] == "squares"
    sums = json.loads(header["checksums"])
    assert sums[entry["input"]["matrix"]] == f"{zlib.crc32(packed.numpy().tobytes()):08x}" and set(sums) == set(tensors)
    whole = "\n".join(header[key] for key in ("blocks", "metadata", "checksums"))
    assert header["checksum"] == f"{zlib.crc32(whole.encode()):08x}"


def test_shared_tensors_are_stored_once_and_stay_shared(tmp_path):
    everything().save(tmp_path / "c.safetensors")
    tensors = load_file(tmp_path / "c.safetensors")
    assert "q[0:3].input.matrix" in tensors and "k[0:3].input.matrix" not in tensors
    assert "eigen[0:4].row_vectors" in tensors and "eigen twin[4:8].row_vectors" not in tensors
    loaded = Curvature.load(tmp_path / "c.safetensors")
    q, k = (loaded.blocks[BlockKey(name, 0, 3)] for name in "qk")
    assert q.input.matrix is k.input.matrix and q.output.matrix is not k.output.matrix
    for moved in (loaded.to("cpu", torch.float32), Curvature.load(tmp_path / "c.safetensors", lazy=False)):
        assert moved.blocks[BlockKey("q", 0, 3)].input.matrix is moved.blocks[BlockKey("k", 0, 3)].input.matrix


# ---- lazy loading


def test_opening_and_questions_of_shape_read_no_tensor(curvature, saved, reads):
    loaded = Curvature.load(saved)
    loaded.check(seeded(TwoLayer))
    assert loaded.report() == curvature.report() and loaded.names() == curvature.names()
    assert BlockKey("first.weight", 0, 4) in loaded.blocks and "first.weight" not in loaded.blocks
    assert len(loaded.blocks) == len(curvature.blocks) and sorted(loaded.blocks) == sorted(curvature.blocks)
    assert storage.file_bytes(loaded.blocks, loaded.metadata) == saved.stat().st_size
    with pytest.raises(InputError, match=r"first\.weight\[0:4\] does not fit"):
        loaded.check({"first.weight": torch.ones(4, 4)})
    with pytest.raises(InputError, match="does not fit"):
        loaded.quadratic({"first.weight": torch.ones(4, 4)})
    assert reads == []


def test_only_what_is_asked_for_is_read(saved, reads):
    loaded = Curvature.load(saved)
    loaded.blocks_of("first.weight")
    assert sorted(reads) == ["first.weight[0:4].input.matrix", "first.weight[0:4].output.matrix"]
    reads.clear()
    loaded.quadratic({"last.bias": torch.ones(2)})
    assert len(reads) == 1 and reads[0].startswith("last.bias")


def test_nothing_is_kept_but_what_lives_is_shared(tmp_path, reads):
    everything().save(tmp_path / "c.safetensors")
    loaded = Curvature.load(tmp_path / "c.safetensors")
    q = loaded.blocks[BlockKey("q", 0, 3)]
    assert loaded.blocks[BlockKey("q", 0, 3)].input.matrix is q.input.matrix
    assert len(reads) == 2
    del q
    gc.collect()
    assert loaded.blocks[BlockKey("q", 0, 3)].rows == 3 and len(reads) == 4


def test_a_part_of_a_curvature_is_taken_without_reading_any(curvature, saved, reads):
    loaded = Curvature.load(saved)
    part = loaded.without(["first.weight", "unknown"])
    assert reads == [] and part.names() == [name for name in curvature.names() if name != "first.weight"]
    assert part.report() == curvature.without(["first.weight"]).report() and reads == []
    assert "first.weight" in loaded.names()
    name = part.names()[0]
    for key, block in part.blocks_of(name).items():
        assert_same(Curvature({key: block}), Curvature({key: curvature.blocks[key]}))


def test_lazy_curvatures_compute_as_eager_ones(tmp_path):
    curvature = everything()
    curvature.save(tmp_path / "c.safetensors")
    lazy = Curvature.load(tmp_path / "c.safetensors")
    delta = {"q": rows_like((3, 6)), "eigen": rows_like((4, 6)), "dense whole": rows_like((3, 4))}
    for made, expected in (
        (lazy, curvature),
        (lazy.scale(2.0), curvature.scale(2.0)),
        (lazy + lazy, curvature + curvature),
        (lazy.to(dtype=torch.float32), curvature.to(dtype=torch.float32)),
        (pickle.loads(pickle.dumps(lazy)), curvature),
    ):
        torch.testing.assert_close(made.quadratic(delta), expected.quadratic(delta))
        assert set(made.blocks) == set(expected.blocks) and made.trace() == pytest.approx(expected.trace())
        for name, value in expected.solve(delta, 0.1).items():
            torch.testing.assert_close(made.solve(delta, 0.1)[name], value)


@pytest.mark.parametrize("limit", [storage.MAX_SHARD_BYTES, 700])
def test_a_lazy_curvature_may_replace_its_own_file(limit, tmp_path):
    curvature = everything()
    curvature.save(tmp_path / "c.safetensors", max_shard_bytes=limit)
    lazy = Curvature.load(tmp_path)
    lazy.scale(2.0).save(tmp_path / "c.safetensors", max_shard_bytes=limit)
    assert_same(lazy, curvature)
    assert_same(Curvature.load(tmp_path), curvature.scale(2.0))


# ---- damage


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, 0.99])
def test_truncated_files_are_refused(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=r"curvature\.safetensors: not .*curvature file") as caught:
        Curvature.load(saved)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Curvature.load(tmp_path / "nothing.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="no curvature"):
        Curvature.load(tmp_path / "model.safetensors")


def test_a_flipped_bit_in_a_tensor_is_found_and_named(saved):
    content = bytearray(saved.read_bytes())
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    name = "last.weight[0:2].input.matrix"
    content[8 + length + table[name]["data_offsets"][0] + 3] ^= 1
    saved.write_bytes(content)
    loaded = Curvature.load(saved)
    assert loaded.blocks[BlockKey("first.weight", 0, 4)].items == 2, "other blocks are still good"
    pattern = r"curvature\.safetensors: tensor last\.weight\[0:2\]\.input\.matrix is damaged.*estimate the curvature again"
    for refused in (lambda: loaded.blocks_of("last.weight"), lambda: Curvature.load(saved, lazy=False)):
        with pytest.raises(InputError, match=pattern) as caught:
            refused()
        assert "\n" not in str(caught.value)


def test_a_flipped_bit_anywhere_is_found(tmp_path):
    """Or changes nothing that is read: padding."""
    curvature = Curvature({BlockKey("w", 0, 2): blocks()["diagonal"][0].map(lambda t: t[:2].contiguous())}, {"items": 3})
    path = tmp_path / "c.safetensors"
    curvature.save(path)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            loaded = Curvature.load(path, lazy=False)
        except InputError:
            continue
        assert_same(loaded, curvature)


def rewrite(path, change_tensors=lambda t: t, seal=True, **header):
    """The file with other tensors or header fields; `seal` makes the checksums right again."""
    with safe_open(path, framework="pt") as stream:
        old = stream.metadata()
    tensors = change_tensors(load_file(path))
    new = {**old, **header}
    if seal:
        sums = {name: f"{zlib.crc32(t.numpy().tobytes()):08x}" for name, t in tensors.items()}
        new["checksums"] = header.get("checksums", json.dumps(sums))
        new["checksum"] = storage.files._own_checksum(new)
    save_file(tensors, path, new)


def without_first(tensors):
    return dict(list(tensors.items())[1:])


def with_nan(tensors):
    return {name: tensor * float("nan") for name, tensor in tensors.items()}


def cut(tensors):
    return {name: tensor[:-1].contiguous() for name, tensor in tensors.items()}


def as_integers(tensors):
    return {name: tensor.to(torch.int32) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "change, header, message",
    [
        (lambda t: t, {"version": "9"}, "version 9"),
        (lambda t: t, {"version": "1"}, "format version 1, .* estimate the curvature again"),
        (lambda t: t, {"blocks": "[{]"}, "not a readable"),
        (lambda t: t, {"blocks": "{}"}, None),
        (lambda t: t, {"blocks": "[3]"}, "not a readable"),
        (lambda t: t, {"metadata": ""}, "not a readable"),
        (lambda t: t, {"checksums": "{}"}, "not a readable.*no checksum"),
        (lambda t: t, {"blocks": '[{"kind": "magic", "parameter": "w", "rows": [0, 1]}]'}, "not a readable.*unknown kind magic"),
        (without_first, {}, "not a readable.*is missing"),
        (with_nan, {}, "not finite"),
        (cut, {}, "wrong shape"),
        (as_integers, {}, "has the type I32"),
    ],
)
def test_damaged_contents_are_refused(saved, change, header, message):
    rewrite(saved, change, **header)
    if message is None:
        assert len(Curvature.load(saved).blocks) == 0
        return
    with pytest.raises(InputError, match=message) as caught:
        Curvature.load(saved, lazy=False)
    assert "\n" not in str(caught.value) and "curvature.safetensors" in str(caught.value)


def test_an_edited_header_without_its_checksum_is_refused(saved):
    with safe_open(saved, framework="pt") as stream:
        old = stream.metadata()
    rewrite(saved, seal=False, blocks=old["blocks"].replace('"items": 2', '"items": 3', 1))
    with pytest.raises(InputError, match="header is damaged"):
        Curvature.load(saved)


def entries_of(path):
    with safe_open(path, framework="pt") as stream:
        return json.loads(stream.metadata()["blocks"])


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("kronecker dense", {"items": 0}, "estimated from 0 items"),
        ("kronecker dense", {"items": "3"}, "not a readable"),
        ("kronecker dense", {"positions": -1}, "estimated from -1 positions"),
        ("kronecker dense", {"rows": [0, 5]}, "wrong shape"),
        ("kronecker dense", {"rows": [0]}, "not a readable"),
        ("kronecker dense", {"transposed": True}, "wrong shape"),
        ("kronecker dense", {"input": {"form": "dense"}}, "not a readable"),
        ("kronecker dense", {"input": {"form": "sparse"}}, "unknown form sparse"),
        ("kronecker isotropic", {"input": {"form": "dense", "size": 6, "unit": -1.0, "matrix": "x"}}, "unit -1"),
        ("eigen", {"shape": [6, 4]}, "wrong shape"),
        ("eigen", {"row_vectors": "nowhere"}, "tensor nowhere is missing"),
        ("dense rows", {"shape": [4, 6, 5]}, "wrong shape"),
        ("dense rows", {"rows": [0, 5]}, "wrong shape"),
        ("diagonal", {"shape": []}, "wrong shape"),
        ("diagonal", {"shape": [6, 4]}, "wrong shape"),
    ],
)
def test_entries_that_contradict_themselves_are_refused(kind, change, message, tmp_path):
    path = tmp_path / "c.safetensors"
    block, _ = blocks()[kind]
    Curvature({BlockKey("w", 0, block.rows): block}).save(path)
    rewrite(path, blocks=json.dumps([entries_of(path)[0] | change]))
    with pytest.raises(InputError, match=message):
        Curvature.load(path)


def test_a_block_twice_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    everything().save(path)
    rewrite(path, blocks=json.dumps(entries_of(path)[:1] * 2))
    with pytest.raises(InputError, match="there twice"):
        Curvature.load(path)


# ---- what cannot be written


@pytest.mark.parametrize("value", [object(), float("nan")])
def test_a_failed_save_leaves_the_old_file(curvature, saved, value):
    before = saved.read_bytes()
    bad = Curvature(curvature.blocks, {"thing": value})
    with pytest.raises(InputError, match="not JSON"):
        bad.save(saved)
    assert saved.read_bytes() == before


@pytest.mark.parametrize(
    "block, message",
    [
        (KroneckerBlock.of(torch.eye(3), torch.tensor([[1.0, 1.0], [0.0, 1.0]]), 1, 1), r"w\[0:2\]\.output.*not symmetric"),
        (DiagonalBlock(torch.tensor([1.0, float("inf")]), 1), r"w\[0:2\]\.square_sum.*not finite"),
        (DiagonalBlock(torch.ones(2, dtype=torch.int64), 1), r"w\[0:2\].*int64"),
        (DenseBlock(torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]), 1, 2), "not symmetric"),
        (EigenBlock(None, None, torch.full((2, 2), float("nan")), 1), "not finite"),
    ],
)
def test_blocks_that_no_file_may_hold(block, message, tmp_path):
    with pytest.raises(InputError, match=message):
        Curvature({BlockKey("w", 0, 2): block}).save(tmp_path / "c.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_shards_need_room(tmp_path):
    with pytest.raises(InputError, match="max_shard_bytes"):
        everything().save(tmp_path / "c.safetensors", max_shard_bytes=0)


def test_a_loaded_curvature_is_lazy_unless_told_otherwise(saved):
    assert isinstance(Curvature.load(saved).blocks, LazyBlocks)
    assert isinstance(Curvature.load(saved, lazy=False).blocks, dict)


def test_diagonal_blocks_keep_their_shape(tmp_path):
    block = DiagonalBlock(torch.rand(2, 3, 5), 4)
    Curvature({BlockKey("conv", 0, 2): block}).save(tmp_path / "c.safetensors")
    loaded = Curvature.load(tmp_path / "c.safetensors").blocks[BlockKey("conv", 0, 2)]
    assert torch.equal(loaded.diagonal, block.diagonal)
