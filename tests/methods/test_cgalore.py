"""CGaLore: the filter against its dense form, the running factors, and that what is protected stays where it was."""

import pytest
import torch
from torch import nn

from asrcl.adapt import CurvatureConfig, DomainLearner, TrainConfig, run_stages
from asrcl.curvature import BlockKey, Curvature, DenseBlock, KroneckerBlock, kron
from asrcl.exceptions import InputError
from asrcl.methods import Weights, build_method
from asrcl.testing import tiny_learner, tiny_scenario

ADAM = TrainConfig(epochs=3, optimizer="adamw", learning_rate=0.01, weight_decay=0.1, average_best=1)
ITEMS, POSITIONS = 10, 30


def square(generator, size):
    half = torch.randn(size, size + 2, generator=generator, dtype=torch.float64)
    return half @ half.T


class Given:
    """A learner of a linear map (O = 3, I = 4) with a bias that hands out the factors of one domain after the other."""

    stage, last, device = 2, False, "cpu"

    def __init__(self, seed, count, transposed=False, scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        self.factors = [(square(generator, 3), square(generator, 4)) for _ in range(count)]
        self.transposed, self.scale = transposed, scale
        self.weights = Weights({"weight": torch.zeros(4, 3) if transposed else torch.zeros(3, 4), "bias": torch.zeros(3)})

    def private(self, domain):
        return set()

    def estimate_curvature(self, weights, domain, structure):
        G_OO, A_II = self.factors[domain]
        sums = A_II * POSITIONS, self.scale * G_OO * ITEMS
        block = KroneckerBlock.of(*sums, POSITIONS, ITEMS, transposed=self.transposed)
        return Curvature({BlockKey("weight", 0, 4 if self.transposed else 3): block}, {})

    def learned(self, method):
        for number in range(len(self.factors)):
            method.end_domain(self, number, None, self.weights)
        method.start_domain(self, None)
        method.wrap(self, nn.Module())
        return method


def running(given, rate):
    """The factors that a running set holds, each domain's divided by its mean eigenvalue; by hand."""
    pairs = [(G / G.diagonal().mean(), A / A.diagonal().mean()) for G, A in given.factors]
    found = pairs[0]
    for pair in pairs[1:]:
        found = tuple((1 - rate) * before + rate * new for before, new in zip(found, pair, strict=True))
    return found


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sides", ["both", "input"])
@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_the_soft_filter_is_the_damped_inverse_of_the_whole_matrix(transposed, sides, rate):
    given = Given(1, 3, transposed)
    method = given.learned(build_method("cgalore", keep=0.4, sides=sides, rate=rate))
    G_OO, A_II = running(given, rate)
    G_OO = torch.eye(3).double() if sides == "input" else G_OO
    change = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    whole = torch.kron(G_OO, A_II) + 0.4 * torch.eye(12).double()
    expected = (0.4 * torch.linalg.solve(whole, change.double().flatten())).view(3, 4).float()
    found = method.left_of("weight", change.T if transposed else change)
    torch.testing.assert_close(found.T if transposed else found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sides", ["both", "input"])
def test_the_hard_filter_leaves_nothing_where_the_old_loss_is_curved(sides):
    given = Given(3, 2)
    method = given.learned(build_method("cgalore", form="hard", keep=0.5, sides=sides))
    G_OO, A_II = running(given, 0.25)
    G_OO = torch.eye(3).double() if sides == "input" else G_OO
    vectors = torch.linalg.eigh(torch.kron(G_OO, A_II)).eigenvectors
    change = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    found = method.left_of("weight", change)
    curved, flat = vectors[:, 6:].T, vectors[:, :6].T  # half of 12 directions; of equal ones (input) all are kept or none
    assert (curved @ found.double().flatten()).norm() < 1e-6 * change.norm()
    torch.testing.assert_close(flat @ found.double().flatten(), flat @ change.double().flatten(), rtol=0, atol=1e-6)
    torch.testing.assert_close(method.left_of("weight", found), found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("unit", ["layer", "model"])
def test_the_scale_of_the_old_loss_does_not_matter(unit):
    change = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    filtered = [Given(4, 2, scale=scale).learned(build_method("cgalore", unit=unit)) for scale in (1.0, 1e-6)]
    torch.testing.assert_close(*(method.left_of("weight", change) for method in filtered))


def test_in_units_of_the_model_a_flat_layer_is_freer():
    class Two(Given):
        def estimate_curvature(self, weights, domain, structure):
            G_OO, A_II = self.factors[domain]
            blocks = {
                BlockKey(name, 0, 3): KroneckerBlock.of(A_II * POSITIONS, scale * G_OO * ITEMS, POSITIONS, ITEMS)
                for name, scale in (("flat", 0.01), ("curved", 1.0))
            }
            return Curvature(blocks, {})

    given, change = Two(5, 1), torch.ones(3, 4)
    given.weights = Weights({"flat": torch.zeros(3, 4), "curved": torch.zeros(3, 4)})
    kept = {}
    for unit in ("layer", "model"):
        method = given.learned(build_method("cgalore", unit=unit))
        kept[unit] = [float(method.left_of(name, change).norm()) for name in ("flat", "curved")]
    assert kept["layer"][0] == pytest.approx(kept["layer"][1], rel=1e-4)
    assert kept["model"][0] > 1.1 * kept["layer"][0] and kept["model"][1] < kept["layer"][1]
    G_OO, A_II = given.factors[0]
    mean = float(torch.kron(G_OO, A_II).diagonal().mean()) * (1 + 0.01) / 2
    whole = 0.01 * torch.kron(G_OO, A_II) / mean + 0.3 * torch.eye(12).double()
    expected = 0.3 * torch.linalg.solve(whole, change.double().flatten())
    assert kept["model"][0] == pytest.approx(float(expected.norm()), rel=1e-4)


def test_depthwise_kernels_are_filtered_row_by_row():
    from asrcl.methods.kronecker import Filter, blended, spectral

    matrices = [torch.stack([square(torch.Generator().manual_seed(seed + row), 5) for row in range(2)]) for seed in (7, 17)]
    blocks = [DenseBlock(matrix * ITEMS, ITEMS, 2) for matrix in matrices]
    kept = blended(blended(None, blocks[0], 0.25, 2.0), blocks[1], 0.25, 4.0)
    mixed = 0.75 * matrices[0] / 2 + 0.25 * matrices[1] / 4
    rows, columns, values = spectral(kept, input_alone=True)
    found = Filter(rows, columns, 0.3 / (0.3 + values))(change := torch.randn(2, 1, 5, dtype=torch.float64))
    expected = 0.3 * torch.linalg.solve(mixed + 0.3 * torch.eye(5).double(), change.view(2, 5, 1))
    torch.testing.assert_close(found, expected.view(2, 1, 5))


def trained(folder, train=ADAM, **options):
    """A run over two domains with curvature of all layers: its learner, method, and the weights of both stages."""
    scenario = tiny_scenario(2)
    learner = DomainLearner(scenario, tiny_learner(folder).cache, train, CurvatureConfig(layers="all"), 0)
    method = build_method("cgalore", **options)
    first, second = (stage.models[0] for stage in run_stages(learner, method, None))
    return learner, method, first, second


@pytest.mark.parametrize("sides", ["both", "input"])
def test_the_whole_way_of_adam_and_weight_decay_lies_in_the_flat_directions(tmp_path, sides):
    _, method, first, second = trained(tmp_path, form="hard", keep=0.5, sides=sides)
    for name, filters in method._filters.items():
        way = second[name] - first[name]
        [part] = filters.values()
        inside = kron.rotate(part.rows, way.flatten(1), part.columns)
        assert inside.abs().max() > 1e-2 and 0.5 <= float(part.gains.mean()) < 0.6
        assert (inside * (1 - part.gains)).norm() < 1e-5 * way.norm()  # rounding of some dozen steps
    assert method._filters.keys() == {"0.weight", "3.weight"}


@pytest.mark.parametrize("rest", ["freeze", "train"])
def test_biases(tmp_path, rest):
    _, _, first, second = trained(tmp_path, rest=rest)
    moved = {name for name, value in first.items() if not torch.equal(value, second[name])}
    assert moved == {"0.weight", "3.weight"} | (set() if rest == "freeze" else {"0.bias", "3.bias"})


def models(learner, method):
    return [stage.models[0].hash for stage in run_stages(learner, method, None)]


def test_where_all_is_kept_it_is_plain_fine_tuning_to_the_bit(tmp_path):
    scenario = tiny_scenario(dropout=0.2)
    plain = models(tiny_learner(tmp_path / "plain", scenario), build_method("ft"))
    free = build_method("cgalore", keep=float("inf"), rest="train")
    assert models(tiny_learner(tmp_path / "free", scenario), free) == plain


@pytest.mark.parametrize("form, keeps", [("soft", (0.01, 0.3, 100.0)), ("hard", (0.1, 0.5, 0.95))])
def test_less_kept_of_a_step_keeps_the_old_loss_lower(tmp_path, form, keeps):
    losses = []
    for keep in keeps:
        learner, _, _, second = trained(tmp_path, form=form, keep=keep)
        losses.append(learner.mean_loss(second, learner.scenario.domains[0], "train"))
    assert losses[0] < losses[1] < losses[2]


def test_any_merge_can_follow(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2))
    rates = [models(learner, build_method("cgalore", merge=merge))[1] for merge in (None, {"method": "ihr"})]
    assert rates[0] != rates[1]


@pytest.mark.parametrize("transposed", [False, True])
def test_the_state_is_all_there_is(transposed):
    given = Given(6, 3, transposed)
    method = given.learned(build_method("cgalore"))
    copy = build_method("cgalore")
    copy.load_state_dict({name: value.clone() for name, value in method.state_dict().items()})
    copy.wrap(given, nn.Module())
    change = torch.ones(4, 3) if transposed else torch.ones(3, 4)
    assert torch.equal(copy.left_of("weight", change), method.left_of("weight", change))
    given.weights = Weights({"weight": torch.zeros(5, 5)})
    with pytest.raises(InputError, match=r"cgalore.*weight\["):
        copy.start_domain(given, None)


@pytest.mark.parametrize(
    "option",
    [
        *({"keep": 0.0}, {"keep": 1.5, "form": "hard"}, {"form": "firm"}, {"sides": "output"}),
        *({"rate": 2.0}, {"unit": "net"}, {"rest": "keep"}),
    ],
)
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
        build_method("cgalore", **option)
