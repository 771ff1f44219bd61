"""Several processes train models in which a process uses a head that another does not."""

from image_processes import METHODS, adapt_heads, gradients_of_unlike_losses

from asrcl.testing import run_in_processes


def test_gradients_are_averaged_and_unused_heads_stay_without():
    for found in run_in_processes(gradients_of_unlike_losses, 2, start="forkserver"):
        assert found == [[1.5, 0.0], [1.5, 0.0], None]


def test_heads_and_replay_on_batch_normalisation(tmp_path):
    """Both processes end with one model, which is about as good as that of one process that takes as many steps."""
    together = run_in_processes(adapt_heads, 2, str(tmp_path / "two"), start="forkserver")
    alone = adapt_heads(str(tmp_path / "one"), "train.initial.accumulate=2", "train.adapt.accumulate=2")
    for method in METHODS:
        (errors, weights), (_, other) = (rank[method] for rank in together)
        assert all(bool((value == other[name]).all()) for name, value in weights.items())
        assert sum(errors[2]) < sum(alone[method][0][2]) + 30
