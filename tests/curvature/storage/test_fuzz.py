"""Damaged and hostile curvature files: read right, or refused in one line that names the file; nothing else.

`ASRCL_FUZZ=20` tries twenty times more.
"""

import json
import math
import os
from functools import cache

import pytest
import torch
from block_cases import assert_same, everything
from curvature_cases import TwoLayer, make_items, masks, seeded, sequence_loss
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asrcl.curvature import Curvature, card, correct, estimate, storage
from asrcl.curvature.card_view import card_text
from asrcl.curvature.storage import files, shards
from asrcl.curvature.storage.packing import checksum
from asrcl.exceptions import InputError

torch.set_num_threads(1)
MANY = int(os.environ.get("ASRCL_FUZZ", "1"))
UNHEALTHY = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
fuzzed = settings(max_examples=200 * MANY, derandomize=MANY == 1, deadline=None, suppress_health_check=UNHEALTHY)


@cache
def estimated():
    model, items = seeded(TwoLayer), make_items((3, 2))
    diagonal = estimate(model, sequence_loss, [items], structure="diagonal")
    return estimate(model, sequence_loss, [items], padding=masks, metadata={"loss": "squares"}).fill(diagonal)


CURVATURES = {"all kinds": everything, "estimated": estimated, "half": lambda: everything(torch.float16)}


def everything_read(path):
    """Whatever a user may do with a file; the curvature, if all of it worked."""
    found = Curvature.load(path)
    shapes = {n: tuple(s) for n, s in found.metadata.get("parameters", {}).items() if math.prod(s) < 1000}
    delta = {name: torch.ones(shape, dtype=torch.float64) for name, shape in shapes.items()}
    state = dict(delta)
    steps = (
        lambda: (found.report(), found.names(), found.model_bytes, found.canonical_name("module.q")),
        lambda: (found.trace(), found.diagonals(), [found.eigenvalues(name) for name in found.names()]),
        lambda: card_text(card(found, spectrum_points=3)),
        lambda: (found.quadratic(delta), found.multiply(delta), found.solve(delta, 0.1)),
        lambda: (found.check(state), found.taken_at(state)),
        lambda: (found + found, found.fill(found), found.scale(2.0), found.decompose()),
        lambda: found.compress(keep=0.9, dtype=torch.float16),
        lambda: correct(found, seeded(TwoLayer), sequence_loss, [make_items((3, 2))]),
        lambda: found.save(path.parent / "again.safetensors"),
        lambda: (storage.is_curvature(path), shards.disk_bytes(path), storage.file_bytes(found.blocks, found.metadata)),
    )
    for step in steps:
        attempt(step)
    return Curvature.load(path, lazy=False)


def attempt(step, path=""):
    """What a step gives, or None where it is refused in one line."""
    try:
        return step()
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return None


def opened(path):
    storage.is_curvature(path)
    attempt(lambda: shards.disk_bytes(path), path.parent)
    return attempt(lambda: everything_read(path), path.parent)


@pytest.fixture(scope="module", params=CURVATURES)
def written(request, tmp_path_factory):
    """A curvature in one file, and in several."""
    folder, curvature = tmp_path_factory.mktemp("whole"), CURVATURES[request.param]()
    return curvature, curvature.save(folder / "c.safetensors"), curvature.save(folder / "d.safetensors", max_shard_bytes=100)


@fuzzed
@given(data=st.data())
def test_damaged_bytes_are_found(written, tmp_path, data):
    curvature, single, index = written
    whole = data.draw(st.sampled_from([single, index, *sorted(index.parent.glob("d-*.safetensors"))]))
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1)) if content else 0
        kind = data.draw(st.sampled_from(["flip", "cut", "zero", "insert", "delete"]))
        if kind == "flip" and content:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del content[place:]
        elif kind == "zero":
            content[place : place + 64] = bytes(len(content[place : place + 64]))
        elif kind == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            del content[place : place + data.draw(st.integers(1, 64))]
    for other in index.parent.iterdir():
        (tmp_path / other.name).write_bytes(bytes(content) if other == whole else other.read_bytes())
    found = opened(tmp_path / (single.name if whole == single else index.name))
    if found is not None:
        assert_same(found, curvature)


def json_values():
    return st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([-1, 0, 1, 2, 1 << 40, 1 << 70, 10**400, -(10**400), 0.5, 1e308, math.nan, math.inf, -math.inf]),
        st.sampled_from(["", "kronecker", "diagonal", "lowrank", "q", "module.q", "\ud800", "1", "x" * 3000]),
        st.sampled_from([[], {}, [[]], [1, 2], [-1, 2], {"a": 1}, ["q"], [1 << 62, 1 << 62], {"q": [3, 6]}, {"q": [1 << 62]}]),
    )


def paths(value, path=()):
    """Where something may be changed in a JSON value."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from paths(part, (*path, key))


def changed(value, path, new):
    """A JSON value with one place changed, or left out where `new` is DELETED."""
    if not path:
        return {} if new is DELETED else new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) > 1 or new is not DELETED:
        copy[path[0]] = changed(copy[path[0]], path[1:], new)
    else:
        del copy[path[0]]
    return copy


DELETED = object()


def sealed(header):
    """A header that agrees with itself, as whoever means harm would write it."""
    text = "\n".join(header[part] for part in ("blocks", "metadata", "checksums"))
    return header | {"checksum": checksum(text.encode("utf-8", "surrogatepass"))}


def edited(header, data):
    for _ in range(data.draw(st.integers(1, 2))):
        part = data.draw(st.sampled_from(["blocks", "metadata", "checksums"]))
        value = json.loads(header[part])
        place = data.draw(st.sampled_from(list(paths(value))))
        new = data.draw(st.one_of(st.just(DELETED), json_values()))
        header = header | {part: json.dumps(changed(value, place, new))}
    return sealed(header)


@fuzzed
@given(data=st.data())
def test_edited_headers_are_read_or_refused(written, tmp_path, data):
    _, single, index = written
    if data.draw(st.booleans()):
        content = single.read_bytes()
        length = int.from_bytes(content[:8], "little")
        table = json.loads(content[8 : 8 + length])
        table["__metadata__"] = edited(table["__metadata__"], data)
        text = json.dumps(table).encode()
        (tmp_path / "c.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
        opened(tmp_path / "c.safetensors")
        return
    for other in index.parent.glob("d-*"):
        (tmp_path / other.name).write_bytes(other.read_bytes())
    table = json.loads(index.read_text())
    if data.draw(st.booleans()):
        table["metadata"] = edited(table["metadata"], data)
    else:
        place, new = st.sampled_from(list(paths(table))), st.one_of(st.just(DELETED), json_values())
        table = changed(table, data.draw(place), data.draw(new))
    (tmp_path / index.name).write_text(json.dumps(table))
    opened(tmp_path / index.name)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, "1" * 100_000, '"\\ud800"', "NaN", ""])
@pytest.mark.parametrize("part", ["blocks", "metadata", "checksums"])
def test_json_that_breaks_parsers_is_refused(tmp_path, part, text):
    header = {"format": files.FORMAT, "version": files.VERSION, "blocks": "[]", "metadata": "{}", "checksums": "{}"}
    (tmp_path / "c.safetensors").write_bytes(shards.header_text(sealed(header | {part: text}), []))
    with pytest.raises(InputError, match="readable curvature file") as caught:
        Curvature.load(tmp_path / "c.safetensors")
    assert "\n" not in str(caught.value) and "c.safetensors" in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["x" * 300 + ".safetensors", "a\0b.safetensors", "no/such/folder/c.safetensors", ""])
def test_names_that_no_file_can_have_are_refused(tmp_path, name):
    path = f"{tmp_path}/{name}"
    storage.is_curvature(path)
    for call in (Curvature.load, shards.disk_bytes):
        with pytest.raises(InputError):
            call(path)


def test_a_device_that_is_not_there_is_named(written):
    with pytest.raises(InputError, match="device=xyz"):
        Curvature.load(written[1], "xyz")
