import torch
from curvature_cases import Items, make_items, seeded
from torch import nn

from asrcl.curvature import BlockKey, estimate
from asrcl.curvature.estimation.masks import Mask, PaddingMasks, choose, real_positions

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)


def test_layouts_that_a_mask_fits():
    masks = PaddingMasks([MASK], 2)
    (plain,) = masks.candidates(torch.Size([2, 3]))
    assert torch.equal(plain.real, MASK) and plain.index.tolist() == [0, 1, 2, 3]
    (time_first,) = masks.candidates(torch.Size([3, 2]))
    assert torch.equal(time_first.real, MASK.T)
    flat = masks.candidates(torch.Size([6]))
    assert [m.real.tolist() for m in flat] == [MASK.flatten().tolist(), MASK.T.flatten().tolist()]
    (heads,) = masks.candidates(torch.Size([2, 3, 5]))
    assert heads.real.shape == (2, 3, 5) and torch.equal(heads.real[..., 4], MASK)
    assert masks.candidates(torch.Size([1, 5])) == []


def test_equal_masks_are_one_candidate():
    assert len(PaddingMasks([MASK, MASK.clone()], 2).candidates(torch.Size([2, 3]))) == 1


def test_the_mask_without_gradient_at_its_padding_is_chosen():
    mask, other = Mask(MASK), Mask(~MASK)
    gradient = torch.randn(2, 3, 4) * MASK[..., None]
    assert choose([other, mask], gradient) is mask
    everything = Mask(torch.ones_like(MASK))
    assert choose([everything, mask], gradient) is mask, "of two silent masks the one with more padding"
    assert real_positions(gradient, mask).shape == (4, 4)
    assert real_positions(gradient, mask, 1, 2).tolist() == gradient[MASK][1::2].tolist()
    assert everything.index is None and real_positions(gradient, everything).shape == (6, 4)


class TwoStreams(nn.Module):
    """An encoder and a decoder stream of equal padded shape and different lengths."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 2)
        self.decoder = nn.Linear(3, 2)


def test_two_masks_of_equal_shape_are_told_apart_by_gradients():
    model = seeded(TwoStreams)
    x = make_items([4, 4, 4]).x
    lengths = {"encoder": torch.tensor([4, 2, 3]), "decoder": torch.tensor([1, 4, 2])}
    streams = {name: Items(x, n) for name, n in lengths.items()}

    def loss(model, batch):
        parts = [
            (getattr(model, name)(batch.x).pow(3).sum(-1) * stream.mask[:, : batch.x.shape[1]]).sum(1).mean()
            for name, stream in streams.items()
        ]
        return sum(parts)

    curvature = estimate(
        model, loss, [streams["encoder"]], padding=lambda _: [s.mask for s in streams.values()]
    )
    for name, stream in streams.items():
        rows = x[stream.mask]
        block = curvature.blocks[BlockKey(f"{name}.weight", 0, 2)]
        assert block.positions == len(rows)
        torch.testing.assert_close(block.A_II, rows.T @ rows / len(rows))
