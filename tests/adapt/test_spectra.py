"""The observer of spectra, against dense matrices on a toy; the same on a Conformer stands in tests/speech/test_spectra.py."""

import json

import numpy as np
import pytest
import torch
from adapt_cases import QUICK

from asrcl.adapt import run_method
from asrcl.adapt.observers import standard_observers
from asrcl.adapt.spectra import LossSpectra
from asrcl.contract.outputs import Outputs
from asrcl.curvature.gauss_newton import ggn_operator
from asrcl.curvature.spectrum import hessian_operator
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.testing import tiny_learner, tiny_scenario


def eigenvalues(operator):
    return np.linalg.eigvalsh(operator @ np.eye(operator.shape[0]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    learner = tiny_learner(home, tiny_scenario(3), QUICK)
    learner.diagnostics = "spectra"
    run_method(learner, build_method("fta"), home / "run")
    return learner, json.loads((home / "run" / "results.json").read_text()), home


def test_a_run_tells_the_spectrum_at_the_start_of_every_domain(run):
    learner, result, _ = run
    assert "spectra" not in result["stages"][0]
    assert [stage["spectra"]["domain"] for stage in result["stages"][1:]] == ["blobs1", "blobs2"]
    found = result["stages"][1]["spectra"]
    # Both spectra are of the weights before the stage, on data of the domain to be learned.
    model, domain = learner.model_with(learner.initial).double(), learner.scenario.domains[1]
    batches = []
    for batch in domain.batches("train", shuffle=True, seed=0):
        if sum(map(len, batches)) < 32:
            batches.append(type(batch)(batch.ids, batch.inputs.double(), batch.labels, batch.domain))
    assert found["items"] == sum(map(len, batches)) >= 32
    task = learner.task
    hessian = eigenvalues(hessian_operator(model, task.curvature_loss, batches))
    loss = lambda logits, batch: torch.nn.functional.cross_entropy(logits, batch.labels)  # noqa: E731
    fisher = eigenvalues(ggn_operator(model, lambda net, batch: net(batch.inputs), loss, batches))
    assert found["weights"] == len(hessian)
    for name, values in (("hessian", hessian), ("fisher", fisher)):
        assert found[name]["largest"] == pytest.approx(values.max(), rel=1e-4)
        shares = [np.mean(np.abs(values) > epsilon) for epsilon in found["epsilons"]]
        assert found[name]["epsilon_rank"] == pytest.approx(shares, abs=0.12)


    exact = LossSpectra(epsilons=(0.001, 0.1), steps=1000).of(model, task, batches)
    for name, values in (("hessian", hessian), ("fisher", fisher)):
        assert exact[name]["epsilon_rank"] == pytest.approx([np.mean(np.abs(values) > e) for e in (0.001, 0.1)], abs=1e-6)
        assert exact[name]["trace"] == pytest.approx(values.sum(), rel=1e-4)


def test_the_fisher_information_is_the_hessian_of_the_divergence(run):
    learner, _, _ = run
    model, domain = learner.model_with(learner.initial).double(), learner.scenario.domains[1]
    batch = next(iter(domain.batches("train", shuffle=False, seed=0)))
    batch = type(batch)(batch.ids, batch.inputs.double(), batch.labels)

    def divergence(net, given):
        outputs = learner.task.outputs(net, given)
        return learner.task.distillation(outputs, Outputs((outputs.logits[0].detach(),), (None,)), 1.0)

    loss = lambda logits, given: torch.nn.functional.cross_entropy(logits, given.labels)  # noqa: E731
    expected = eigenvalues(ggn_operator(model, lambda net, given: net(given.inputs), loss, [batch]))
    np.testing.assert_allclose(eigenvalues(hessian_operator(model, divergence, [batch])), expected, atol=1e-6)


def test_the_cache_does_it_once(run):
    _, result, home = run
    entries = sorted((home / "cache" / "spectra").glob("*/spectra.json"))
    assert len(entries) == 2
    before = [entry.stat().st_mtime_ns for entry in entries]
    again = tiny_learner(home, tiny_scenario(3), QUICK)
    again.diagnostics = "spectra"
    run_method(again, build_method("fta"), home / "again")
    assert [entry.stat().st_mtime_ns for entry in entries] == before
    assert json.loads((home / "again" / "results.json").read_text())["stages"][1]["spectra"] == result["stages"][1]["spectra"]


def test_the_model_is_left_as_it_was(run):
    learner, _, _ = run
    model = learner.model_with(learner.initial).float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = next(iter(learner.scenario.domains[1].batches("train", shuffle=False, seed=0)))
    found = LossSpectra(epsilons=(1e-7, 0.1), steps=4, draws=1).of(model, learner.task, [batch])
    unresolved, share = found["hessian"]["epsilon_rank"]
    assert unresolved is None and 0 <= share <= 1  # single precision says nothing of 1e-7 beside an eigenvalue of this size
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_spectra_asks_for_spectra():
    assert [any(isinstance(o, LossSpectra) for o in standard_observers(word)) for word in ("none", "used", "all", "spectra")] == [
        False, False, False, True,
    ]  # fmt: skip
    with pytest.raises(InputError, match="diagnostics=spectrum: choose none, used, all or spectra"):
        standard_observers("spectrum")
