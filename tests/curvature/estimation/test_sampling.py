import itertools

import pytest
import torch
import torch.nn.functional as F

from asrcl.curvature.estimation.sampling import (
    Alignments,
    Bernoulli,
    Categorical,
    Gaussian,
    sample_categorical,
    sample_ctc_labels,
)
from asrcl.exceptions import InputError

DRAWS = 20_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def assert_mean(rows, truth):
    """The mean over the first axis is the truth up to 4.5 standard errors."""
    error = (rows.mean(0) - truth).abs()
    assert (error <= 4.5 * rows.std(0) / len(rows) ** 0.5 + 1e-12).all()


def outer(rows):
    return rows[:, :, None] * rows[:, None, :]


def collapse(path, blank):
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def enumerate_labels(log_probs_TC, blank):
    """Every label sequence with its probability."""
    found = {}
    frames, classes = log_probs_TC.shape
    for path in itertools.product(range(classes), repeat=frames):
        probability = log_probs_TC[range(frames), list(path)].sum().exp().item()
        labels = collapse(path, blank)
        found[labels] = found.get(labels, 0.0) + probability
    return found


def ctc_score(logits_TC, labels, blank):
    """Gradient of the CTC loss of one label sequence with respect to the logits, flat."""
    leaf = logits_TC.clone().requires_grad_()
    target = torch.tensor([labels], dtype=torch.long).reshape(1, len(labels))
    lengths = torch.tensor([len(leaf)]), torch.tensor([len(labels)])
    loss = F.ctc_loss(leaf.log_softmax(-1)[:, None], target, *lengths, blank, reduction="sum")
    return torch.autograd.grad(loss, leaf)[0].flatten()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_classes_come_with_the_probabilities_of_the_softmax(dtype):
    logits = torch.tensor([1.0, -0.5, float("-inf"), 0.25], dtype=dtype)
    drawn = sample_categorical(logits.expand(DRAWS, 4), generator())
    assert_mean(F.one_hot(drawn, 4).double(), logits.double().softmax(-1))
    assert not (drawn == 2).any()


def test_draws_depend_on_the_generator_alone():
    logits = normal(50, 7)
    first = sample_categorical(logits, generator(3))
    assert torch.equal(first, sample_categorical(logits, generator(3)))
    assert not torch.equal(first, sample_categorical(logits, generator(4)))


def test_a_certain_path_collapses_as_ctc_says():
    paths = [[1, 1, 0, 1, 2, 2], [0, 0, 0, 0, 0, 0], [2, 1, 1, 0, 0, 0], [1, 2, 1, 2, 1, 2]]
    log_probs = F.one_hot(torch.tensor(paths).mT, 3).double().log()
    labels, counts = sample_ctc_labels(log_probs, torch.tensor([6, 6, 2, 5]), 0, generator())
    assert labels.tolist() == [[1, 1, 2, 0, 0], [0, 0, 0, 0, 0], [2, 1, 0, 0, 0], [1, 2, 1, 2, 1]]
    assert counts.tolist() == [3, 0, 2, 5]


def test_all_blank_gives_no_labels_and_a_finite_gradient():
    log_probs = torch.tensor([0.0, -400.0, -400.0]).expand(4, 2, 3)
    labels, counts = sample_ctc_labels(log_probs, torch.tensor([4, 3]), 0, generator())
    assert labels.shape == (2, 0) and counts.tolist() == [0, 0]
    gradient = Alignments(torch.tensor([4, 3]), 0).sample(log_probs, torch.ones(2), generator())
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("frames", [2, 3])
def test_ctc_labels_and_scores_match_the_enumeration_of_all_paths(blank, frames):
    logits_TC = normal(3, 3, seed=1)
    log_probs_TC = logits_TC.log_softmax(-1)
    truth = enumerate_labels(log_probs_TC[:frames], blank)
    assert sum(truth.values()) == pytest.approx(1)
    log_probs, lengths = log_probs_TC[:, None].expand(3, DRAWS, 3), torch.full((DRAWS,), frames)
    labels, counts = sample_ctc_labels(log_probs, lengths, blank, generator())
    drawn = [tuple(row[:count]) for row, count in zip(labels.tolist(), counts.tolist(), strict=True)]
    assert set(drawn) <= set(truth)
    for sequence, probability in truth.items():
        assert_mean(torch.tensor([d == sequence for d in drawn]).double(), torch.tensor(probability))

    scores = {sequence: ctc_score(logits_TC[:frames], sequence, blank) for sequence in truth}
    fisher = sum(truth[s] * torch.outer(g, g) for s, g in scores.items())
    assert sum(truth[s] * g for s, g in scores.items()).abs().max() < 1e-12
    gradient = Alignments(lengths, blank).sample(log_probs, torch.full((DRAWS,), 0.3).double(), generator(1))
    assert (gradient[frames:] == 0).all()
    rows = gradient[:frames].transpose(0, 1).flatten(1)
    assert_mean(rows, torch.zeros(1))
    assert_mean(outer(rows), 0.3 * fisher)


def test_the_ctc_gradient_is_that_of_the_logits():
    logits = normal(3, 3, seed=2)
    score = ctc_score(logits, (1, 2), 0)
    step = 1e-6 * torch.eye(9, dtype=torch.float64).reshape(9, 3, 3)

    def loss(z):
        lengths = torch.tensor([3]), torch.tensor([2])
        return F.ctc_loss(z.log_softmax(-1)[:, None], torch.tensor([[1, 2]]), *lengths, reduction="sum")

    differences = torch.stack([(loss(logits + d) - loss(logits - d)) / 2e-6 for d in step])
    torch.testing.assert_close(score, differences, rtol=1e-6, atol=1e-8)


def fisher_of(likelihood, z):
    """The Fisher information of one position by enumerating labels, or by its known variance."""
    if isinstance(likelihood, Gaussian):
        return 2 * torch.eye(len(z)).double()
    if isinstance(likelihood, Bernoulli):
        return torch.diag(z.sigmoid() * (1 - z.sigmoid()))
    p = z.softmax(-1)
    target = torch.eye(len(z)).double()
    if likelihood.normalised:
        return torch.diag(p)
    return sum(p[c] * torch.outer(p - target[c], p - target[c]) for c in range(len(z)))


LIKELIHOODS = [Categorical(-1), Categorical(-1, normalised=True), Gaussian(), Bernoulli()]


def weights(likelihood, rows, value):
    shape = (rows,) if isinstance(likelihood, Categorical) else (rows, 3)
    return torch.full(shape, value).double()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_drawn_gradients_have_the_fisher_information_as_second_moment(likelihood):
    z = normal(3, seed=4).log_softmax(-1)
    rows = likelihood.sample(z.expand(DRAWS, 3), weights(likelihood, DRAWS, 0.7), generator())
    assert_mean(outer(rows), 0.7 * fisher_of(likelihood, z))
    assert_mean(rows[1:, :, None] * rows[:-1, None, :], rows.mean(0)[:, None] * rows.mean(0))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_columns_make_the_exact_information_and_signs_part_the_positions(likelihood):
    z, v = normal(3, seed=5).log_softmax(-1), weights(likelihood, DRAWS, 0.7)
    columns = [likelihood.column(z.expand(DRAWS, 3), v, c, generator(c)) for c in range(likelihood.columns(z[None]))]
    for row in (0, DRAWS - 1):
        total = sum(torch.outer(c[row], c[row]) for c in columns)
        torch.testing.assert_close(total, 0.7 * fisher_of(likelihood, z))
    for c in columns:
        assert_mean(c[1:, :, None] * c[:-1, None, :], torch.zeros(1))


@pytest.mark.parametrize("likelihood", [Gaussian(), Bernoulli()])
def test_a_vector_of_outputs_is_one_column(likelihood):
    z = normal(5)
    column = likelihood.column(z, torch.ones(5).double(), 0, generator())
    assert likelihood.columns(z) == 1
    torch.testing.assert_close(column.square(), fisher_of(likelihood, z).diagonal())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_garbage_without_weight_gives_zeros(likelihood):
    z = torch.full((2, 3), float("nan"))
    v = weights(likelihood, 2, 0.0).float()
    assert (likelihood.sample(z, v, generator()) == 0).all()
    assert (likelihood.column(z, v, 0, generator()) == 0).all()


def test_ctc_has_no_columns():
    alignments = Alignments(torch.tensor([2]), 0)
    for call in (lambda: alignments.columns(normal(2, 1, 3)), lambda: alignments.column(normal(2, 1, 3), None, 0, generator())):
        with pytest.raises(InputError, match="use fisher='mc'"):
            call()


def test_log_probabilities_must_be_normalised_where_they_count():
    z, v = normal(4, 3), torch.tensor([1.0, 0, 1, 1])
    good = z.log_softmax(-1)
    good[1] = 5.0
    Categorical(-1, normalised=True).check(good, v)
    Categorical(-1, normalised=True).check(good.bfloat16(), v)
    Categorical(-1).check(z, v)
    with pytest.raises(InputError, match="must sum to 1 over axis -1; use log_softmax"):
        Categorical(-1, normalised=True).check(z, v)


def test_ctc_frames_beyond_the_length_need_not_be_normalised():
    z = normal(4, 2, 3).log_softmax(-1)
    z[2:, 0] = 5.0
    Alignments(torch.tensor([2, 4]), 0).check(z, torch.ones(2))
    Alignments(torch.tensor([4, 4]), 0).check(z, torch.tensor([0.0, 1.0]))
    with pytest.raises(InputError, match="log_softmax"):
        Alignments(torch.tensor([3, 4]), 0).check(z, torch.ones(2))
