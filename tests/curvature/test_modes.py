import pytest
from torch import nn

from asrcl.curvature.modes import evaluated


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_modes_and_flags_come_back(error):
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    model[1].eval()
    model[0].bias.requires_grad_(False)
    before = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    try:
        with evaluated(model, [model[2].weight]):
            assert not any(m.training for m in model.modules())
            assert [name for name, p in model.named_parameters() if p.requires_grad] == ["2.weight"]
            if error:
                raise error
    except RuntimeError:
        pass
    assert before == ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
