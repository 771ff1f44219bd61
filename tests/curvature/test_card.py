import json

import pytest
import torch
from block_cases import DOUBLE, block_matrix, blocks, everything, spd

from asrcl.curvature import BlockKey, Curvature, DiagonalBlock, KroneckerBlock, card, stored_bytes
from asrcl.curvature.card_view import card_text
from asrcl.curvature.storage import shards
from asrcl.exceptions import InputError


def example(count=3):
    """Kronecker blocks of falling trace, a diagonal, and a parameter without a block."""
    table = {
        BlockKey(f"layer.{n}.weight", 0, 4): KroneckerBlock.of(spd(6, n, 1.0) * 10.0**-n, spd(4, n + 9, 1.0), 7, 3)
        for n in range(count)
    }
    table[BlockKey("bias", 0, 4)] = DiagonalBlock(torch.tensor([3.0, 6.0, 0.0, 3.0], dtype=DOUBLE), 3)
    shapes = {f"layer.{n}.weight": [4, 6] for n in range(count)} | {"bias": [4], "odd": [2, 5]}
    facts = {"fisher": "mc", "structure": "kron", "items": 3, "batches": 2, "losses": ["cross_entropy"], "model_hash": "abc123"}
    return Curvature(table, {**facts, "parameters": shapes, "uncovered": {"odd": "used nowhere"}, "data_hash": "def456"})


@pytest.mark.parametrize("name", list(blocks()))
def test_numbers_are_those_of_the_dense_matrix(name):
    block, _ = blocks()[name]
    (row,) = card(Curvature({BlockKey("w", 0, block.rows): block})).blocks
    values = torch.linalg.eigvalsh(block_matrix(block))
    assert row.weights == len(values) and row.kind == block.kind and row.share == 1
    assert row.trace == pytest.approx(float(values.sum()))
    assert row.largest == pytest.approx(float(values.max())) and row.mean == pytest.approx(float(values.mean()))
    assert row.condition == pytest.approx(float(values.max() / values.median()))
    assert row.effective_rank == pytest.approx(float(values.sum() ** 2 / values.square().sum()))


def test_damping_is_told_by_factor():
    A, G = spd(6, 0, 6.0), spd(4, 1, 6.0)
    curvature = Curvature({BlockKey("w", 0, 4): KroneckerBlock.of(A * 7, G * 3, 7, 3)})
    (row,) = card(curvature, damping=0.01).blocks
    for part, matrix, of in zip(row.damping, (G, A), "GA", strict=True):
        values = torch.linalg.eigvalsh(matrix)
        assert (part.of, part.size) == (of, len(values)) and part.added == pytest.approx(0.01 * float(values.mean()))
        assert part.above == int((values > 0.01 * values.mean()).sum()) < len(values)
    with pytest.raises(InputError, match="damping"):
        card(curvature, damping=-1.0)


def test_the_whole():
    curvature = example()
    found = card(curvature)
    assert (found.covered, found.weights, found.model_bytes) == (3 * 24 + 4, 3 * 24 + 4 + 10, 4 * (3 * 24 + 14))
    assert found.file_bytes == stored_bytes(curvature) and found.ratio == pytest.approx(found.file_bytes / found.model_bytes)
    assert {kind: (c.blocks, c.weights, c.stored_numbers) for kind, c in found.kinds.items()} == {
        "kronecker": (3, 72, 3 * (10 + 21)), "diagonal": (1, 4, 4),
    }  # fmt: skip
    assert found.uncovered == {"odd": "used nowhere"} and found.trace == pytest.approx(curvature.trace())
    assert [row.share for row in found.blocks] == sorted((row.share for row in found.blocks), reverse=True)
    assert sum(row.share for row in found.blocks) == pytest.approx(1)
    assert found.facts["fisher"] == "mc" and found.facts["data_hash"] == "def456" and "parameters" not in found.facts


def test_singular_blocks_and_zeros_have_a_card():
    low = torch.ones(5, 1, dtype=DOUBLE)
    curvature = Curvature({
        BlockKey("low", 0, 2): KroneckerBlock.of(low @ low.T, torch.eye(2), 1, 1),
        BlockKey("none", 0, 2): DiagonalBlock(torch.zeros(2), 1),
    })  # fmt: skip
    rows = {row.name: row for row in card(curvature).blocks}
    assert rows["low"].condition == pytest.approx(1) and rows["low"].effective_rank == pytest.approx(2)
    assert rows["none"].condition is None and rows["none"].effective_rank == 0 and rows["none"].share == 0
    assert "-" in card_text(card(curvature), width=100)
    assert json.loads(json.dumps(card(curvature).as_json(), allow_nan=False))["blocks"][1]["condition"] is None
    assert card(Curvature({})).blocks == [] and card_text(card(Curvature({})), width=100)


@pytest.mark.parametrize("compression", [{}, {"keep": 0.9, "dtype": torch.float16}])
def test_a_file_has_the_card_of_its_curvature(compression, tmp_path):
    curvature = everything().compress(**compression)
    curvature.save(tmp_path / "c.safetensors", max_shard_bytes=900)
    loaded = card(Curvature.load(tmp_path))
    for row, other in zip(loaded.blocks, card(curvature).blocks, strict=True):
        assert (row.name, row.kind, row.size, row.largest) == (other.name, other.kind, other.size, pytest.approx(other.largest))
    assert shards.disk_bytes(tmp_path) == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_shared_factors_are_decomposed_once(monkeypatch):
    shared = KroneckerBlock.of(spd(6, 0), spd(4, 1), 7, 3)
    twins = {BlockKey(name, 0, 4): KroneckerBlock(shared.input.scale(n), shared.output, 7, 3) for n, name in ((1, "q"), (2, "k"))}
    calls = []
    original = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda matrix: calls.append(1) or original(matrix))
    k, q = card(Curvature(twins)).blocks
    assert len(calls) == 2 and k.largest == pytest.approx(2 * q.largest)


# ---- as text


@pytest.mark.parametrize("width", [40, 90, 100, 160])
def test_the_text_fits_and_says_it(width):
    text = card_text(card(example()), width=width)
    assert max(map(len, text.splitlines())) <= max(width, 90)
    for part in ("kron, mc Fisher", "3 items in 2 batches", "cross_entropy", "abc123", "def456", "76 of 86 weights (88.4%)"):
        assert part in text
    assert "1 parameter: used nowhere (odd)" in text and "3 blocks" in text and "1 block," in text
    assert all(f"layer.{n}.weight" in text for n in range(3)) and "…" not in text
    assert ("mean" in text.split("share: of the trace")[0]) == (width >= 140)


def test_few_blocks_and_how_many_more():
    text = card_text(card(example(8)), blocks=2, width=100)
    assert "and 7 more with" in text and "--blocks 9 shows all" in text
    table = text.split("─")[-1]
    assert sum("layer." in line or "bias" in line for line in table.splitlines()) == 2
    assert "more with" not in card_text(card(example(8)), blocks=9, width=100)


def test_long_names_are_broken_after_dots():
    key = BlockKey("encoder.layers.11.self_attention.relative_position.projection.weight", 0, 2)
    text = card_text(card(Curvature({key: DiagonalBlock(torch.ones(2), 1)})), width=90)
    joined = "".join(line.split("diagonal")[0].strip() for line in text.splitlines() if "." in line and ":" not in line)
    assert key.name in joined.replace(" ", "")


def test_names_with_brackets_are_no_markup():
    key = BlockKey("w[red]", 1, 2)
    text = card_text(card(Curvature({key: DiagonalBlock(torch.ones(1), 1)}, {"parameters": {"w[red]": [3]}})), width=100)
    assert "w[red][1:2]" in text
