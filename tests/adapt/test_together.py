"""Two processes of one `torchrun`: one model, and one set of files."""

from dataclasses import replace

import pytest
import torch
from adapt_cases import adapt_once, equal_states, largest_difference
from adapt_processes import CYCLE, train, work_together

from asrcl.adapt import load_weights
from asrcl.distributed import Processes, processes
from asrcl.keep import MOST
from asrcl.methods import build_method
from asrcl.scoring import RunResult
from asrcl.testing import build_mlp, run_in_processes, tiny_learner

RUNS = ("even", "uneven", "whole", "resumed", "accumulated")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def ranks(home):
    """What the two processes ended with."""
    return run_in_processes(work_together, 2, str(home), start="forkserver")


@pytest.mark.parametrize("name", RUNS)
def test_processes_end_with_the_same_model(ranks, name):
    first, second = (rank[name] for rank in ranks)
    assert equal_states(first["last"], second["last"])
    assert equal_states(first["final"], second["final"])
    assert first["moments"] == second["moments"]
    assert first["history"] == second["history"]


@pytest.mark.parametrize(
    "name, items, accumulate", [("even", 64, 2), ("uneven", 72, 2), ("accumulated", 72, 4)], ids=["even", "uneven", "accumulated"]
)
def test_two_processes_equal_one_with_twice_as_many_batches_per_step(ranks, tmp_path, name, items, accumulate):
    """Also where the batches of a step differ in size: the step takes the mean over its items."""
    alone = train(tmp_path, replace(CYCLE, accumulate=accumulate), items)
    together = ranks[0][name]
    assert together["steps"] == alone["steps"] == CYCLE.epochs * -(-5 // accumulate if items == 72 else -2)
    assert largest_difference(together["final"], alone["final"]) < 1e-4
    for (train_loss, dev_loss), (train_alone, dev_alone) in zip(together["history"], alone["history"], strict=True):
        assert train_loss == pytest.approx(train_alone, rel=1e-3)
        assert dev_loss == pytest.approx(dev_alone, rel=1e-3)


def test_a_batch_without_a_partner_is_a_step(ranks):
    assert ranks[0]["uneven"]["steps"] == ranks[1]["uneven"]["steps"] == 3 * CYCLE.epochs
    assert ranks[0]["accumulated"]["steps"] == 2 * CYCLE.epochs


def test_resumed_together_is_bit_equal(ranks):
    whole, resumed = ranks[0]["whole"], ranks[0]["resumed"]
    assert equal_states(whole["final"], resumed["final"])
    assert equal_states(whole["last"], resumed["last"])


def test_files_of_a_run_together(ranks, home):
    result = RunResult.load(home / "run" / "results.json")
    assert None not in [count for row in result.errors for count in row]
    assert not list((home / "cache").glob("*/*.work"))
    assert not list((home / "cache").glob("*/*/*.part"))
    state = load_weights(home / "run" / "stage3" / "model.safetensors")
    learner = tiny_learner(home)
    errors = [learner.evaluate(state, domain).total for domain in learner.scenario.domains]
    assert errors == result.errors[2]
    learner.model_with(state)


def test_one_process_shares_with_nobody():
    alone = processes()
    assert (alone.rank, alone.count, alone.agree(True), alone.agree(False)) == (0, 1, True, False)
    model = build_mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    alone.align(model)
    alone.average_gradients(model)
    assert equal_states(before, model.state_dict()) and all(p.grad is None for p in model.parameters())
    assert alone.mean(6.0, 3.0) == 2.0
    batches = [torch.zeros(3), torch.zeros(2)]
    assert [(mine, together) for _, mine, together in alone.share(batches)] == [(3, 3), (2, 2)]
    alone.barrier()


def test_shares_cover_every_batch_once():
    """Three processes and seven batches: blocks of three, three and one."""
    batches = [torch.full((size,), float(size)) for size in range(1, 8)]
    shares = []
    for rank in range(3):
        shares.append(list(Processes(rank, 3).share(batches)))
    assert [len(share) for share in shares] == [3, 3, 3]
    taken = sorted(mine for share in shares for _, mine, _ in share if mine)
    assert taken == [1, 2, 3, 4, 5, 6, 7]
    assert [share[2][1] for share in shares] == [7, 0, 0]
    assert [items for _, _, items in shares[1]] == [6, 15, 7]


def test_methods_are_not_changed_by_company(ranks, home, tmp_path):
    """Curvature, merge and evaluation are the same; only the gradients differ in their last digits."""
    from asrcl.adapt import run_stages

    alone = list(run_stages(tiny_learner(tmp_path), build_method("ihr"), None))
    assert equal_states(alone[0].models[0], load_weights(home / "run" / "stage1" / "model.safetensors"))


def test_processes_agree_on_what_is_kept(tmp_path):
    """Both search with the same evaluations, and end with one strength and one record."""
    run_in_processes(adapt_once, 2, str(tmp_path), "ihr", 3, "", 0, 0.0, "probe:+1 blobs1:+1", start="forkserver")
    record = RunResult.load(tmp_path / "run" / "results.json").stages[2]["keep"]
    chosen = next(entry for entry in record["tried"] if entry["strength"] == record["strength"])
    assert chosen["within"] and len(record["tried"]) == MOST
