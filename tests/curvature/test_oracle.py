"""Factors against curvlinops 3.0.1, an independent K-FAC."""

import pytest
import torch
from curvature_cases import seeded
from torch import nn

from asrcl.curvature import BlockKey, estimate

curvlinops = pytest.importorskip(
    "curvlinops", reason="curvlinops is the oracle of this test (pip install asrcl[dev])"
)


class Labelled:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch.x), batch.y)


@pytest.mark.parametrize("split", [1, 3])
def test_factors_equal_curvlinops_empirical_fisher(split):
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (6,), generator=generator)
    mine = estimate(
        model, cross_entropy, [Labelled(a, b) for a, b in zip(x.chunk(split), y.chunk(split), strict=True)]
    )
    oracle = curvlinops.KFACLinearOperator(
        model.eval(),
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(x, y)],
        fisher_type="empirical",
        check_deterministic=False,
    )
    oracle.compute_kronecker_factors()
    for name, rows in (("0", 4), ("2", 3)):
        block = mine.blocks[BlockKey(f"{name}.weight", 0, rows)]
        torch.testing.assert_close(block.A_II, oracle._input_covariances[name])
        torch.testing.assert_close(block.G_OO, oracle._gradient_covariances[name])
