"""Several processes give what one process gives, and fail together."""

import functools
import os

import curvature_processes as work
import pytest
import torch

from asrcl.curvature.estimation.sharing import Group
from asrcl.testing import run_in_processes

TOLERANCE = {"ekfac": 1e-9}  # an eigenvector moves more than the matrix, by its inverse gap


@functools.cache
def together(count):
    """Results of all cases, by process."""
    return run_in_processes(work.run_cases, count, start="forkserver")


def assert_same(found, expected, tolerance=1e-12):
    (blocks, metadata), (expected_blocks, expected_metadata) = found, expected
    assert metadata == expected_metadata
    assert list(blocks) == list(expected_blocks)
    for key, (kind, counts, tensors) in blocks.items():
        expected_kind, expected_counts, expected_tensors = expected_blocks[key]
        assert (kind, counts, tensors.keys()) == (expected_kind, expected_counts, expected_tensors.keys()), key
        for role, tensor in tensors.items():
            expected_tensor = expected_tensors[role]
            if role.endswith("_vectors"):
                tensor, expected_tensor = (V.abs() for V in (tensor, expected_tensor))
            error = (tensor - expected_tensor).abs().max() / expected_tensor.abs().max().clamp(min=1e-300)
            assert error <= tolerance and tensor.dtype == expected_tensor.dtype, (key, role, error)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", work.CASES)
def test_processes_equal_one(name, count):
    results = together(count)
    alone = work.plain(work.run_case(name))
    for result in results:
        assert_same(result[name], alone, TOLERANCE.get(name, 1e-12))
        assert_same(result[name], results[0][name], 0)


def test_cases_hold_what_they_should():
    blocks, metadata = work.plain(work.run_case("kron"))
    kinds = {key.name: kind for key, (kind, _, _) in blocks.items()}
    assert kinds["table.weight"] == kinds["conv.weight"] == kinds["tied.weight"] == kinds["rare.weight"] == "kronecker"
    assert kinds["depthwise.weight"] == "dense" and kinds["norm.weight"] == kinds["gru.weight_hh_l0"] == "diagonal"
    assert "einsum" in metadata["notes"]["mixed"] and metadata["uncovered"].keys() == {"unused.weight", "unused.bias"}
    assert (metadata["batches"], metadata["items"]) == (5, 15)
    whole = {key: counts["items"] for key, (_, counts, _) in blocks.items()}
    assert set(whole.values()) == {15}, "a branch that only some items take is averaged over all"
    assert work.plain(work.run_case("unmasked"))[1]["unmasked"]


@pytest.mark.parametrize("rare", [0, 1, 4])
@pytest.mark.parametrize("structure", ["kron", "diagonal"])
def test_when_a_branch_is_taken_does_not_matter(rare, structure):
    batches = work.zoo_batches(5, rare=rare)
    ordered, first = (
        work.estimate(work.zoo(), work.zoo_loss, some, structure=structure)
        for some in (batches, [batches[rare], *batches[:rare], *batches[rare + 1 :]])
    )
    assert_same(work.plain(ordered), work.plain(first))


@pytest.mark.parametrize("trouble, kind", [("nan", "InputError"), ("raise", "ArithmeticError")])
def test_an_error_in_one_process_is_raised_by_all(trouble, kind):
    outcomes = run_in_processes(work.fail_on_one, 3, trouble, start="forkserver", timeout=60)
    names, messages, calls = zip(*outcomes, strict=True)
    assert names[1] == kind and names[0] == names[2] == (kind if kind == "InputError" else "RuntimeError")
    assert all(messages[1] in message for message in messages)
    if kind == "InputError":
        assert set(messages) == {messages[1]} and "the loss is nan" in messages[0]
    else:
        assert messages[0] == "process 1 failed with ArithmeticError: in the middle"
    assert calls[1] == 2 and max(calls) < 100, "the others stop soon, not at the end of their share"


def test_a_damaged_checkpoint_of_one_process_is_refused_by_all(tmp_path):
    messages = run_in_processes(work.refuse_on_one, 2, str(tmp_path / "sums"), start="forkserver", timeout=60)
    assert messages[0] == messages[1] and messages[0].startswith("InputError") and "sums.1-of-2" in messages[0]


def test_a_model_wrapped_for_training_is_the_model_itself():
    for wrapped, alone in run_in_processes(work.wrapped_for_training, 2, start="forkserver", timeout=60):
        assert_same(wrapped, alone, 0)


def test_checkpoints_of_several_processes(tmp_path):
    path = str(tmp_path / "sums")
    results = run_in_processes(work.break_off_together, 2, "kron", path, 2, start="forkserver")
    alone = work.plain(work.run_case("kron"))
    for files, result in results:
        assert set(files) == {"sums.0-of-2", "sums.1-of-2"}
        assert_same(result, alone)
    assert not os.listdir(tmp_path)


def test_one_process_talks_to_nobody():
    group = Group.current()
    assert group == Group(0, 1) and group.mine(7)
    sums = {"a": torch.ones(2)}
    assert group.add(sums)["a"] is sums["a"] and group.add_counts({"a": 2}) == {"a": 2}
    with pytest.raises(ValueError, match="own"), group.together() as failed:
        assert not failed()
        raise ValueError("own")
