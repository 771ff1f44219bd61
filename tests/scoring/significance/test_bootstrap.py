import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from asrcl.exceptions import InputError
from asrcl.scoring import Errors, ItemErrors
from asrcl.scoring.significance.bootstrap import bootstrap_ci, paired_bootstrap
from asrcl.scoring.significance.paired_tests import holm, wilcoxon_test
from asrcl.scoring.significance.pairing import pool, sum_seeds


def counts(values: list[int], speaker: str | None = None, length: int = 10) -> Errors:
    return Errors([ItemErrors(f"u{i}", speaker or f"s{i}", v, 0, 0, length) for i, v in enumerate(values)])


def test_wilcoxon_is_the_textbook_test_in_either_order_of_items() -> None:
    a, b = counts([0, 1, 0, 2, 1, 0, 3, 1]), counts([1, 3, 0, 5, 5, 6, 10, 0])
    found = wilcoxon_test(a, Errors(b.items[::-1]))
    # Differences -1 -2 -3 -4 -6 -7 +1, one zero: ranks of +1 and -1 are 1.5, so W+ = 1.5.
    assert (found.statistic, found.items, found.used) == (1.5, 8, 7)
    assert found.direction == "better"
    assert found.p_value == stats.wilcoxon([-1, -2, -3, -4, -6, -7, 1]).pvalue
    back = wilcoxon_test(b, a)
    assert back.direction == "worse" and back.p_value == found.p_value


def test_wilcoxon_direction_follows_ranks_of_the_items_that_differ() -> None:
    # One large loss against two small gains: ranks 3 against 1.5 + 1.5, a tie; with many ties of zero around.
    assert wilcoxon_test(counts([0] * 20 + [9, 0, 0]), counts([0] * 20 + [0, 1, 1])).direction == "equal"
    assert wilcoxon_test(counts([0] * 20 + [9, 0, 0, 0]), counts([0] * 20 + [0, 1, 1, 1])).direction == "better"


def test_wilcoxon_of_equal_systems() -> None:
    same = wilcoxon_test(counts([1, 2]), counts([1, 2]))
    assert (same.p_value, same.direction, same.used) == (1.0, "equal", 0)


def test_comparisons_refuse_other_items_and_units() -> None:
    with pytest.raises(InputError, match=r"in only one of two sets: 1 \(u2\)"):
        wilcoxon_test(counts([1, 2]), counts([1, 2, 3]))
    with pytest.raises(InputError, match="images with words"):
        paired_bootstrap(counts([1]), Errors(counts([1]).items, unit="image"))
    with pytest.raises(InputError, match="1 domains against 2"):
        paired_bootstrap([counts([1])], [counts([1]), counts([1])])


def test_holm_by_hand() -> None:
    # Sorted 0.005 0.01 0.03 0.04 times 4 3 2 1, made monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    adjusted = holm([0.02, math.nan, 0.5])
    assert adjusted[0] == 0.04 and math.isnan(adjusted[1]) and adjusted[2] == 0.5
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        holm([1.5])


def naive_draws(errors: Errors, n: int, seed: int) -> np.ndarray:
    """Speaker bootstrap by loops, another random stream: an oracle up to Monte Carlo error."""
    generator, parts = np.random.default_rng(seed), list(errors.by_group().values())
    rates = []
    for _ in range(n):
        drawn = [parts[k] for k in generator.integers(len(parts), size=len(parts))]
        rates.append(100 * sum(p.total for p in drawn) / sum(p.length for p in drawn))
    return np.array(rates)


def test_the_interval_agrees_with_a_naive_bootstrap(fake_set) -> None:
    errors = fake_set(20.0, seed=3)
    found = bootstrap_ci(errors, n=4000)
    low, high = np.quantile(naive_draws(errors, 4000, seed=9), [0.025, 0.975])
    assert found.estimate == pytest.approx(errors.rate)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.5), pytest.approx(high, abs=0.5))
    assert found.low < errors.rate < found.high and found.blocks == 6
    assert found == bootstrap_ci(errors, n=4000) != bootstrap_ci(errors, n=4000, seed=1)


def test_speakers_of_different_skill_widen_the_interval(fake_set) -> None:
    errors = fake_set(20.0, seed=3, count=600)
    by_speaker, by_item = bootstrap_ci(errors), bootstrap_ci(errors, by="item")
    assert by_speaker.high - by_speaker.low > 2 * (by_item.high - by_item.low)
    assert by_item.blocks == 600


def test_coverage_is_near_95_percent() -> None:
    generator, hits, truth = np.random.default_rng(0), 0, 20.0
    for trial in range(200):
        skill = generator.beta(4, 16, size=40)
        items = [
            ItemErrors(f"{s}-{k}", str(s), int(generator.binomial(10, skill[s])), 0, 0, 10)
            for s in range(40)
            for k in range(3)
        ]
        interval = bootstrap_ci(Errors(items), n=300, seed=trial)
        hits += interval.low <= truth <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_several_domains_average_and_keep_their_number_of_speakers() -> None:
    easy, hard = counts([1] * 5), Errors([ItemErrors(f"v{i}", f"h{i}", 5, 0, 0, 10) for i in range(5)])
    found = bootstrap_ci([easy, hard])
    # Speakers within a domain are alike, so only a change in the mix of domains could move the mean.
    assert (found.estimate, found.low, found.high, found.blocks) == (30.0, 30.0, 30.0, 10)


def test_a_speaker_of_two_domains_is_drawn_once_for_both() -> None:
    first, second = counts([0, 2, 4, 6, 8, 10]), counts([10, 8, 6, 4, 2, 0])
    found = bootstrap_ci([first, second])
    # What a speaker loses in one domain it gains in the other: drawn jointly, the mean cannot move.
    assert (found.low, found.high) == (pytest.approx(50.0), pytest.approx(50.0))


def test_one_speaker_gives_no_interval_and_empty_sets_no_crash() -> None:
    alone = bootstrap_ci(counts([1, 2, 3], speaker="s"))
    assert alone.estimate == 20.0 and math.isnan(alone.low) and math.isnan(alone.high)
    assert math.isnan(bootstrap_ci(Errors([])).low)


def test_paired_bootstrap_removes_what_both_share(fake_set) -> None:
    worse = fake_set(20.0, seed=1, count=120)
    better = Errors([replace(i, substitutions=max(0, i.substitutions - 1)) for i in worse.items])
    found = paired_bootstrap(better, Errors(worse.items[::-1]))
    single = bootstrap_ci(worse)
    assert found.estimate == pytest.approx(better.rate - worse.rate)
    assert found.low <= found.estimate <= found.high < 0 and found.p_better == 1.0
    assert found.high - found.low < single.high - single.low
    assert paired_bootstrap(worse, better).p_better == 0.0
    assert paired_bootstrap(worse, worse).p_better == 0.5


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="cannot resample by 'word'"):
        bootstrap_ci(counts([1]), by="word")
    with pytest.raises(InputError, match="0 bootstrap resamples"):
        bootstrap_ci(counts([1]), n=0)


def test_pooled_seeds_keep_speakers_and_do_not_narrow_the_interval() -> None:
    one = counts([0, 1, 2, 3, 4, 9])
    pooled = pool([one, one, one])
    assert len(pooled) == 18 and pooled.items[0].id == "seed0/u0" and pooled.items[-1].id == "seed2/u5"
    assert pooled.rate == pytest.approx(one.rate) and set(pooled.by_group()) == set(one.by_group())
    first, three = bootstrap_ci(one), bootstrap_ci(pooled)
    assert (three.low, three.high) == (pytest.approx(first.low), pytest.approx(first.high))
    with pytest.raises(InputError, match="cannot pool 2 sets"):
        pool([one, one], ["x", "x"])
    with pytest.raises(InputError, match="cannot pool 0 sets"):
        pool([])


def test_summed_seeds_count_every_item_once() -> None:
    a, b = counts([0, 1, 2]), counts([1, 1, 5])
    added = sum_seeds([a, Errors(b.items[::-1])])
    assert [item.errors for item in added.items] == [1, 2, 7] and [i.length for i in added.items] == [20] * 3
    assert added.rate == pytest.approx(pool([a, b]).rate)
    # Copies of one seed carry no evidence: the p value stays, where pooled items would make it shrink.
    x, y = counts([0, 0, 1, 2, 0, 3]), counts([1, 2, 4, 3, 5, 9])
    once = wilcoxon_test(x, y).p_value
    assert wilcoxon_test(sum_seeds([x] * 5), sum_seeds([y] * 5)).p_value == pytest.approx(once)
    assert wilcoxon_test(pool([x] * 5), pool([y] * 5)).p_value < once / 10
    with pytest.raises(InputError, match="no seeds"):
        sum_seeds([])
