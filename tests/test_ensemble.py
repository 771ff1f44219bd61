"""An ensemble learns what its members would learn alone."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from asrcl.exceptions import InputError
from asrcl.studies.ensemble import Ensemble


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double()


def data(copies: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    inputs = torch.randn(steps, copies, 4, 5, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (steps, copies, 4), generator=generator)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_copy_learns_what_it_would_learn_alone(kind):
    inputs, labels = data(copies=3, steps=6)
    together = Ensemble.of(network, seeds=range(3))
    optimizer = kind(together.parameters.values(), lr=0.1, weight_decay=0.01)
    losses = [(together.backward(cross_entropy, x, y), optimizer.step())[0] for x, y in zip(inputs, labels, strict=True)]
    for copy in range(3):
        alone = network(copy)
        own = kind(alone.parameters(), lr=0.1, weight_decay=0.01)
        for step, (x, y) in enumerate(zip(inputs[:, copy], labels[:, copy], strict=True)):
            own.zero_grad()
            loss = cross_entropy(alone(x), y)
            loss.backward()
            own.step()
            assert losses[step][copy].item() == pytest.approx(loss.item(), rel=1e-12)
        for name, parameter in together.member(copy).named_parameters():
            torch.testing.assert_close(parameter, alone.get_parameter(name))


def test_flat_vectors_go_there_and_back_and_shared_inputs_are_seen_by_all():
    ensemble = Ensemble.of(network, seeds=range(2))
    vectors = ensemble.flat()
    assert vectors.shape == (2, 5 * 7 + 7 + 7 * 3 + 3)
    inputs = torch.randn(4, 5, dtype=torch.float64)
    before = ensemble(inputs, shared=True)
    torch.testing.assert_close(before[1], network(1)(inputs))
    ensemble.load_flat(vectors.flip(0))
    torch.testing.assert_close(ensemble(inputs, shared=True), before.flip(0))


def test_running_statistics_and_no_seeds_are_refused():
    with pytest.raises(InputError, match="buffers"):
        Ensemble.of(lambda seed: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), seeds=[1])
    with pytest.raises(InputError, match="one seed"):
        Ensemble.of(network, seeds=[])
