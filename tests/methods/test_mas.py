"""Memory aware synapses: importance against its closed form, item by item and all at once; what does not count."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from asrcl.adapt import run_stages
from asrcl.contract.outputs import Outputs
from asrcl.exceptions import InputError
from asrcl.methods import FineTuning, Weights, build_method
from asrcl.methods.mas import _one_by_one, absolute_gradients
from asrcl.testing import ClassificationTask, blob_domain, tiny_learner, tiny_scenario

SIZES = {"train": 40}


class Alone:
    """A learner of one model."""

    device, last, task = "cpu", False, ClassificationTask()

    def __init__(self, model):
        self.model = model

    def frozen(self, weights):
        return self.model.requires_grad_(False).eval()

    def foreign(self, domain):
        return set()


def importance(model, domain, **options):
    method = build_method("mas", **options)
    return method.importance(Alone(model), domain, Weights(model.state_dict()))


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(8, 4)


def test_importance_of_a_linear_map():
    """F = Wa + b: the gradient of its squared norm is 2 F aᵀ, and 2 F for the bias."""
    model, domain = linear(), blob_domain("blobs", sizes=SIZES, batch_size=16)
    inputs, _ = domain._tensors("train")
    outputs = model(inputs).detach()
    found = importance(model, domain)
    torch.testing.assert_close(found["weight"], (2 * outputs[:, :, None] * inputs[:, None]).abs().mean(0))
    torch.testing.assert_close(found["bias"], (2 * outputs).abs().mean(0))


def test_probabilities_are_the_softmax():
    model, domain = linear(), blob_domain("blobs", sizes=SIZES, batch_size=40)
    inputs, _ = domain._tensors("train")
    bias = model.bias.detach().requires_grad_()
    gradients = [
        torch.autograd.grad((a @ model.weight.detach().T + bias).softmax(-1).square().sum(), bias)[0].abs() for a in inputs
    ]
    torch.testing.assert_close(importance(model, domain, outputs="probabilities")["bias"], torch.stack(gradients).mean(0))


def test_labels_and_batches_do_not_matter():
    model, domain = linear(), blob_domain("blobs", sizes=SIZES, batch_size=16)
    inputs, labels = domain._tensors("train")
    other = type(domain)("other", {"train": (inputs, labels.roll(7))}, batch_size=10)
    one, two = importance(model, domain), importance(model, other)
    for name in one:
        torch.testing.assert_close(one[name], two[name])


def test_max_items_takes_whole_batches():
    model, domain = linear(), blob_domain("blobs", sizes=SIZES, batch_size=16)
    inputs = torch.cat([b.inputs for b, _ in zip(domain.batches("train", shuffle=True, seed=0), range(2), strict=False)])
    found = importance(model, domain, max_items=17)
    torch.testing.assert_close(found["bias"], (2 * model(inputs).detach()).abs().mean(0))


def test_all_items_at_once_and_one_by_one_agree():
    """With a convolution, batch statistics that are not those of the batch, and a parameter that nothing uses."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm, self.linear = nn.Conv1d(1, 3, 3), nn.BatchNorm1d(3), nn.Linear(18, 4)
            self.unused = nn.Parameter(torch.ones(2))
            self.follow = True

        def forward(self, inputs):
            if not self.follow and float(inputs.sum()) == 0:
                raise AssertionError("not in this test")
            return self.linear(self.norm(self.convolution(inputs[:, None])).relu().flatten(1))

    torch.manual_seed(1)
    model = Net().eval()
    model.norm.running_mean.normal_()
    batch = next(iter(blob_domain("blobs", batch_size=12).batches("train", shuffle=False, seed=0)))
    size = build_method("mas")._size
    together = absolute_gradients(ClassificationTask(), model, batch, size)
    model.follow = False  # reading a number out of a tensor is what vmap cannot follow
    apart = absolute_gradients(ClassificationTask(), model, batch, size)
    assert not together.pop("unused").any() and "unused" not in apart
    assert together.keys() == apart.keys()
    for name in apart:
        torch.testing.assert_close(together[name], apart[name], rtol=1e-4, atol=1e-5)


def test_what_is_padded_does_not_count():
    logits = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    size = build_method("mas")._size
    assert float(size(Outputs((logits, logits[:, 0]), (torch.tensor([[True, False]]), None)))) == 5.0 + 5.0


def test_a_fault_of_the_model_is_not_hidden():
    class Broken(nn.Linear):
        def forward(self, inputs):
            raise RuntimeError("broken")

    batch = SimpleNamespace(items=lambda: iter([SimpleNamespace(inputs=torch.ones(1, 8))]))
    with pytest.raises(RuntimeError, match="broken"):
        list(_one_by_one(ClassificationTask(), Broken(8, 4), batch, build_method("mas")._size))
    with pytest.raises(RuntimeError, match="broken"):
        absolute_gradients(ClassificationTask(), Broken(8, 4), batch, build_method("mas")._size)


def models(learner, method):
    return [stage.models[0].hash for stage in run_stages(learner, method, None)]


def test_strength_zero_is_plain_fine_tuning_to_the_bit(tmp_path):
    scenario = tiny_scenario(dropout=0.2)
    plain = models(tiny_learner(tmp_path / "plain", scenario), FineTuning())
    assert models(tiny_learner(tmp_path / "mas", scenario), build_method("mas", strength=0.0)) == plain


def test_more_strength_keeps_the_weights_closer(tmp_path):
    learner, moved = tiny_learner(tmp_path, tiny_scenario(2)), []
    for strength in (0.0, 0.01, 1.0):
        *_, stage = run_stages(learner, build_method("mas", strength=strength), None)
        moved.append(stage.record["update_norm"])
    assert moved[0] > 1.1 * moved[1] > 1.21 * moved[2]


@pytest.mark.parametrize("option", [{"outputs": "loss"}, {"max_items": 0}, {"strength": -1.0}, {"mode": "last"}, {"decay": 2.0}])
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
        build_method("mas", **option)
