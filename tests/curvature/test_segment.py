"""What a loss does along a line, and the Fisher information without factors: closed forms and dense matrices."""

import pytest
import torch
from doc_cases import example

from asrcl.curvature import EstimateOptions, estimate
from asrcl.curvature.segment import forms_along, losses_along, mean_item_loss
from asrcl.exceptions import InputError
from asrcl.testing import ClassificationTask, blob_domain, build_mlp

TASK = ClassificationTask()


@pytest.fixture
def case():
    """A small network in float64, batches, and a change of its weights."""
    torch.manual_seed(3)
    model = build_mlp(hidden=5).double()
    domain = blob_domain("blobs", sizes={"train": 20})
    batches = [type(b)(b.ids, b.inputs.double(), b.labels) for b in domain.batches("train", shuffle=True, seed=0)]
    return model, batches, {name: 0.3 * torch.randn_like(value) for name, value in model.state_dict().items()}


def per_item(model, batches, delta):
    """gᵀδ per parameter tensor of every item, [N, P], by plain autograd."""
    rows = []
    for item in (one for batch in batches for one in batch.items()):
        gradients = torch.autograd.grad(TASK.curvature_loss(model, item), list(model.parameters()))
        rows.append([float((g * delta[name]).sum()) for g, (name, _) in zip(gradients, model.named_parameters(), strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


def test_losses_are_those_of_the_moved_model_and_the_weights_come_back(case):
    model, batches, delta = case
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    found = losses_along(model, TASK.curvature_loss, batches, delta, (0.0, 0.25, 1.0))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for step, loss in zip((0.0, 0.25, 1.0), found, strict=True):
        other = build_mlp(hidden=5).double()
        other.load_state_dict({name: value + step * delta[name] for name, value in before.items()})
        assert loss == pytest.approx(mean_item_loss(other.eval(), TASK.curvature_loss, batches), rel=1e-12)


def test_weights_come_back_after_an_error(case):
    model, batches, delta = case
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def failing(net, batch):
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        losses_along(model, failing, batches, delta, (1.0,))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_forms_of_the_empirical_fisher_information(case):
    model, batches, delta = case
    along = per_item(model, batches, delta)
    groups = {"all": list(delta), "first": ["0.weight", "0.bias"]}
    found = forms_along(model, TASK.curvature_loss, batches, delta, groups)
    for group, columns in (("all", slice(None)), ("first", slice(0, 2))):
        part = along[:, columns]
        assert found[group].slope == pytest.approx(float(part.sum(1).mean()), rel=1e-9)
        assert found[group].full == pytest.approx(float(part.sum(1).square().mean() / 2), rel=1e-9)
        assert found[group].block == pytest.approx(float(part.square().sum(1).mean() / 2), rel=1e-9)
    dense = estimate(model, TASK.curvature_loss, batches, structure="dense")
    assert found["all"].block == pytest.approx(float(dense.quadratic(delta)), rel=1e-6)
    diagonal = estimate(model, TASK.curvature_loss, batches, structure="diagonal")
    assert found["all"].diagonal == pytest.approx(float(diagonal.quadratic(delta)), rel=1e-6)
    assert found["all"].full != pytest.approx(found["all"].block, rel=0.05)


def test_drawn_labels_give_the_gauss_newton_form_on_average(case):
    """Of a linear model the Hessian of the cross entropy is the Gauss-Newton matrix, so a second difference is the oracle."""
    _, batches, _ = case
    torch.manual_seed(4)
    model = torch.nn.Linear(8, 4).double()
    delta = {name: 0.3 * torch.randn_like(value) for name, value in model.state_dict().items()}
    back, here, forth = losses_along(model, TASK.curvature_loss, batches, delta, (-1e-3, 0.0, 1e-3))
    curved = (back + forth - 2 * here) / 2e-6
    exact, drawn, empirical = (
        forms_along(model, TASK.curvature_loss, batches, delta, {"all": list(delta)}, options)["all"]
        for options in (EstimateOptions("exact"), EstimateOptions("mc", samples=200), None)
    )
    assert exact.full == pytest.approx(curved, rel=1e-4)
    assert drawn.full == pytest.approx(curved, rel=0.1)
    assert empirical.full != pytest.approx(curved, rel=0.2)


@pytest.mark.parametrize("measure", [losses_along, forms_along])
@pytest.mark.parametrize("wrong", ["name", "shape", "data"])
def test_what_does_not_fit_is_refused_in_one_line(case, measure, wrong):
    model, batches, _ = case
    name = "9.weight" if wrong == "name" else "0.bias"
    delta = {name: torch.zeros(3 if wrong == "shape" else 5)}
    told = {"name": r"9\.weight", "shape": r"0\.bias.*\[3\]", "data": "no data"}[wrong]
    last = (1.0,) if measure is losses_along else {"all": [name]}
    with pytest.raises(InputError, match=told):
        measure(model, TASK.curvature_loss, [] if wrong == "data" else batches, delta, last)


def test_the_example_of_the_page(capsys):
    exec(example("segment", "trust_region.md"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("K-FAC ") and 0 <= float(second) <= 1
