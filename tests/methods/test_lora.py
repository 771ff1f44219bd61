"""LoRA: what is trained, what it starts from, and that its end is plain weights."""

import pytest
import torch
from method_cases import Alone, Raw
from torch import nn

from asrcl.adapt import run_stages
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.testing import build_mlp, tiny_learner, tiny_scenario


def trained(method, model, steps=3):
    """Some steps of training, and the state before and after in the plain layout."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrapped = method.wrap(Alone(), model)
    optimizer = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], 0.05)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        wrapped(torch.randint(5, (6, 7))).square().mean().backward()
        optimizer.step()
    return before, method.unwrap(Alone(), wrapped), wrapped


def test_only_factors_are_trained_and_weights_end_plain():
    torch.manual_seed(0)
    method = build_method("lora", rank=2)
    before, after, wrapped = trained(method, Raw())
    assert after.keys() == before.keys()
    assert all(name.rpartition(".")[2] in ("A", "B") for name, p in wrapped.named_parameters() if p.requires_grad)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    weights = {"attention.in_proj_weight", "attention.out_proj.weight", "convolution.weight"}
    assert changed == weights | {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    for name in weights:
        change = (after[name] - before[name]).flatten(1)
        assert torch.linalg.matrix_rank(change, rtol=1e-4) <= 2
    Raw().load_state_dict(after)


def test_the_merged_weights_compute_what_the_wrapped_model_does():
    torch.manual_seed(0)
    _, after, wrapped = trained(build_method("lora", rank=2), Raw())
    plain = Raw()
    plain.load_state_dict(after)
    tokens = torch.randint(5, (3, 7))
    torch.testing.assert_close(plain.eval()(tokens), wrapped.eval()(tokens))


def test_the_update_is_alpha_over_rank_times_the_product_and_zero_at_first():
    torch.manual_seed(0)
    method = build_method("lora", rank=4, alpha=6.0, targets=["0.weight"])
    model = build_mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrapped = method.wrap(Alone(), model)
    assert all(torch.equal(value, before[name]) for name, value in method.unwrap(Alone(), wrapped).items())
    update = wrapped[0].parametrizations.weight[0]
    assert update.A.shape == (4, 8) and update.B.shape == (16, 4)
    bound = 1 / 8**0.5  # of a uniform distribution with Kaiming's a = sqrt(5), as PEFT draws A
    assert 0.8 * bound < float(update.A.abs().max()) <= bound
    with torch.no_grad():
        update.B.normal_()
    torch.testing.assert_close(method.unwrap(Alone(), wrapped)["0.weight"], before["0.weight"] + 1.5 * update.B @ update.A)
    assert torch.equal(method.unwrap(Alone(), wrapped)["3.weight"], before["3.weight"])


def test_the_factors_depend_on_seed_and_stage_alone():
    def drawn(stage, noise):
        torch.rand(noise)
        learner = Alone()
        learner.stage = stage
        return build_method("lora").wrap(learner, build_mlp())[0].parametrizations.weight[0].A

    assert torch.equal(drawn(2, 1), drawn(2, 5)) and not torch.equal(drawn(2, 1), drawn(3, 1))


def test_full_rank_fits_what_fine_tuning_fits(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2))
    rates = {}
    for name, options in (("initial", {}), ("ft", {}), ("lora", {"rank": 8, "alpha": 16.0})):
        *_, last = run_stages(learner, build_method(name, **options), "test")
        rates[name] = last.errors[1].rate
    assert rates["lora"] < rates["initial"] / 2


def test_stages_end_with_weights_of_the_plain_model(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(3))
    *_, last = run_stages(learner, build_method("lora"), "test")
    assert last.models[0].keys() == learner.initial.keys()
    assert not hasattr(learner.model_with(last.models[0])[0], "parametrizations")  # other operations see a plain model


def test_targets_that_match_nothing():
    with pytest.raises(InputError, match=r"targets=\['encoder.*0\.weight, 3\.weight"):
        build_method("lora", targets=["encoder*"]).wrap(Alone(), build_mlp())


class Tied(nn.Module):
    """An output layer that shares the embedding's weight, a layer under two names, and a normalised one."""

    def __init__(self):
        super().__init__()
        self.output = nn.Linear(4, 5, bias=False)
        self.embedding = nn.Embedding(5, 4)
        self.output.weight = self.embedding.weight
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, tokens):
        return self.output(self.normed(self.second(self.first(self.embedding(tokens)))))


def test_tied_shared_and_normalised_weights_end_as_they_were_trained():
    torch.manual_seed(0)
    before, after, wrapped = trained(build_method("lora", rank=2), Tied())
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"first.weight", "second.weight"} and torch.equal(after["first.weight"], after["second.weight"])
    plain = Tied()
    plain.load_state_dict(after)
    tokens = torch.randint(5, (3, 7))
    torch.testing.assert_close(plain(tokens), wrapped(tokens))
