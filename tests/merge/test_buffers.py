"""Running statistics are pooled as the statistics of pooled data."""

import pytest
import torch
from torch import nn

from asrcl.merge import MergeSpec, merge, merge_files


def trained(seed, shift, count):
    torch.manual_seed(seed)
    layer = nn.BatchNorm1d(4, momentum=None)
    data = torch.randn(count, 4) * (1 + seed) + shift
    layer.train()(data)
    return layer, data


@pytest.mark.parametrize("method, knobs", [("average", {}), ("average", {"strength": 0.25}), ("interpolate", {"strength": 0.75})])
def test_variances_of_pooled_data(method, knobs):
    share = knobs.get("strength", 0.5)
    total = 4000
    old, first = trained(0, -2.0, round(total * (1 - share)))
    new, second = trained(1, 3.0, round(total * share))
    merged = merge(old, new, method, **knobs)
    both = torch.cat([first, second])
    torch.testing.assert_close(merged["running_mean"], both.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(merged["running_var"], both.var(0), rtol=2e-3, atol=1e-3)
    assert merged["num_batches_tracked"] == new.num_batches_tracked and merged["num_batches_tracked"].dtype == torch.long


def test_three_models():
    models, data = zip(*(trained(n, shift, 1000) for n, shift in ((0, -2.0), (1, 3.0), (2, 0.5))), strict=True)
    merged = merge(models[0], models[1:], "average")
    torch.testing.assert_close(merged["running_var"], torch.cat(data).var(0), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("rule", ["old", "new"])
def test_statistics_of_one_model(rule):
    (old, _), (new, _) = trained(0, 0.0, 50), trained(1, 3.0, 50)
    kept = merge(old, new, "average", statistics=rule)
    for name in ("running_mean", "running_var"):
        assert torch.equal(kept[name], {"old": old, "new": new}[rule].state_dict()[name])


def test_a_merge_of_files_says_that_statistics_do_not_fit(tmp_path):
    (old, _), (new, _) = trained(0, 0.0, 50), trained(1, 3.0, 50)
    for name, model in (("old", old), ("new", new)):
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    record = merge_files(tmp_path / "old.pt", [tmp_path / "new.pt"], tmp_path / "out.pt", MergeSpec("average"))
    assert next(note for note in record.notes if "update_bn" in note).startswith("2 tensors of running means and variances")
    torch.save({"weight": torch.ones(3)}, tmp_path / "plain.pt")
    record = merge_files(tmp_path / "plain.pt", [tmp_path / "plain.pt"], tmp_path / "same.pt", MergeSpec("average"))
    assert not any("update_bn" in note for note in record.notes)
