"""Tests of significance against NIST's sc_stats (tests/scoring/data/sc_stats.json), textbook values and each other."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from asrcl.exceptions import InputError
from asrcl.scoring import Errors, ItemErrors, count_errors, score_files
from asrcl.scoring.counting.segments import cut, segment_differences
from asrcl.scoring.significance.bootstrap import bootstrap_p, paired_bootstrap
from asrcl.scoring.significance.paired_tests import (
    bootstrap_test,
    mapsswe_p,
    mapsswe_test,
    mcnemar_test,
    sign_test,
    wilcoxon_test,
)
from asrcl.scoring.significance.pairing import sum_seeds

DATA = Path(__file__).parents[1] / "data"
VECTORS = json.loads((DATA / "sc_stats.json").read_text())


def load(system: str) -> Errors:
    return score_files(DATA / "ref.trn", DATA / f"{system}.trn", "sclite")


def counts(values: list[int], speakers: int = 100) -> Errors:
    return Errors([ItemErrors(f"u{k}", f"s{k % speakers}", value, 0, 0, 10) for k, value in enumerate(values)])


@pytest.mark.parametrize("pair", VECTORS)
def test_segments_and_z_are_those_of_sc_stats(pair: str) -> None:
    a, b = map(load, pair.split())
    difference, unit = cut(a, b, "sclite")
    segments, mean, deviation, z = VECTORS[pair]["mapsswe"]
    assert (len(difference), unit) == (segments, "segments")
    assert difference.mean() == pytest.approx(mean, abs=5e-4) and difference.std(ddof=1) == pytest.approx(deviation, abs=5e-4)
    found = mapsswe_test(a, b, "sclite")
    assert found.statistic == pytest.approx(z, abs=5e-4) and found.p_value == pytest.approx(2 * stats.norm.sf(found.statistic))
    assert [a.total, b.total] == VECTORS[pair]["mapsswe_errors"] and found.effect < 0


@pytest.mark.parametrize("pair", VECTORS)
def test_ranks_signs_and_lone_mistakes_are_those_of_sc_stats(pair: str) -> None:
    a, b = map(load, pair.split())
    vector = VECTORS[pair]
    ranks = wilcoxon_test(a, b, "group")
    assert ranks.statistic == min(vector["wilcoxon_ranks"]) and ranks.unit == "speakers" and ranks.used == 10
    against, favour = vector["wilcoxon_ranks"]  # positive ranks: a has the higher rate
    assert ranks.effect == pytest.approx((favour - against) / (favour + against))
    sign = sign_test(a, b, "group")
    assert [sign.used - sign.statistic, sign.statistic] == vector["sign"]
    both_right, only_b_wrong, only_a_wrong, both_wrong = vector["mcnemar"]
    alone = mcnemar_test(a, b)
    assert (alone.statistic, alone.used) == (only_a_wrong, only_a_wrong + only_b_wrong)
    right = sum(x.errors == y.errors == 0 for x, y in zip(a.items, b.items, strict=True))
    assert right == both_right and 140 - right - alone.used == both_wrong


def test_segments_by_hand() -> None:
    # Two right words in a row cut; one does not; an insertion counts where it stands; ends of utterances cut.
    said = {"u": "a b c d e f", "v": "a b"}
    a = count_errors(said, {"u": "x b c d e y", "v": "a b"})
    b = count_errors(said, {"u": "a b c d z f", "v": "x b oh"})
    difference, _ = cut(a, b)
    assert difference.tolist() == [1, 0, -2]
    assert cut(a, a)[0].tolist() == [0, 0] and cut(a, b, buffer=4)[0].tolist() == [1, -2]
    assert cut(count_errors({}, {}), count_errors({}, {}))[0].tolist() == []


def test_a_gap_of_right_words_counts_only_words_both_recognised() -> None:
    slots = np.zeros(11, dtype=np.int64)  # five words
    is_word, utterance = np.arange(11) % 2, np.zeros(11, dtype=np.int64)
    a, b = slots.copy(), slots.copy()
    a[1], a[9] = 1, 1  # words 1 and 5
    assert segment_differences(a, b, is_word, utterance).tolist() == [1, 1]
    b[6] = 1  # an insertion of b between words 3 and 4: one right word on its right, two on its left
    assert segment_differences(a, b, is_word, utterance).tolist() == [1, 0]
    assert segment_differences(slots, slots, is_word, utterance).tolist() == []


def test_segments_fall_back_on_items_without_texts_and_refuse_other_references() -> None:
    a, b = counts([0, 1, 2, 0]), counts([0, 3, 2, 1])
    assert cut(a, b)[0].tolist() == [-2, 0, -1] and cut(a, b)[1] == "items"
    assert mapsswe_test(sum_seeds([a, a]), sum_seeds([b, b])).unit == "items"
    with pytest.raises(InputError, match=r"different references for 1 \(u\); score both against one file"):
        mapsswe_test(count_errors({"u": "a b"}, {"u": "a"}), count_errors({"u": "a c"}, {"u": "a"}))


def test_effects_speak_for_the_better_system() -> None:
    a, b = counts([0, 1, 0, 2, 1, 0, 3, 1]), counts([1, 3, 0, 5, 5, 6, 10, 0])
    ranks = wilcoxon_test(a, b)
    assert (ranks.statistic, ranks.used) == (1.5, 7) and ranks.effect == pytest.approx((26.5 - 1.5) / 28)
    assert ranks.p_value == stats.wilcoxon([-1, -2, -3, -4, -6, -7, 1]).pvalue
    sign = sign_test(a, b)
    assert (sign.effect, sign.used, sign.p_value) == (6 / 7, 7, stats.binomtest(6, 7).pvalue)
    test, interval = bootstrap_test(a, b)
    assert test.effect == pytest.approx(100 * 22 / 30) and interval.estimate == pytest.approx(a.rate - b.rate)
    assert mapsswe_test(a, b).effect > 0 and mcnemar_test(a, b).effect == 2.5 / 1.5  # u0 and u5 against u7
    for forth, back in ((wilcoxon_test(a, b), wilcoxon_test(b, a)), (mapsswe_test(a, b), mapsswe_test(b, a))):
        assert forth.effect == pytest.approx(-back.effect) and forth.p_value == pytest.approx(back.p_value)


def test_equal_systems_differ_in_no_test() -> None:
    a = counts([0, 1, 2, 3])
    tests = [wilcoxon_test(a, a), sign_test(a, a), mcnemar_test(a, a), mapsswe_test(a, a), bootstrap_test(a, a)[0]]
    assert [test.p_value for test in tests] == [1.0] * 5
    assert [math.isnan(test.effect) for test in tests] == [True, True, True, False, False]


def test_few_pairs_do_not_pass_for_certainty() -> None:
    z, p = mapsswe_p(np.array([1]))
    assert (z, p) == (math.inf, 1.0)
    assert mapsswe_p(np.array([-1, -1, -1])) == (-math.inf, 0.25) and mapsswe_p(np.zeros(0, dtype=np.int64)) == (0.0, 1.0)
    alike, worse = counts([1] * 4, speakers=2), counts([2] * 4, speakers=2)
    assert bootstrap_test(alike, worse)[0].p_value == 0.5
    one = bootstrap_test(counts([1, 2], speakers=1), counts([2, 2], speakers=1))[0]
    assert math.isnan(one.p_value) and one.used == 1


def test_by_must_be_known() -> None:
    with pytest.raises(InputError, match="cannot test by 'word'; choose 'item' or 'group'"):
        sign_test(counts([1]), counts([1]), "word")
    with pytest.raises(InputError, match="unknown interval 'bca'"):
        paired_bootstrap(counts([1, 2]), counts([1, 3]), interval="bca")


def test_the_student_interval_and_its_p_value_agree_with_the_t_test() -> None:
    # Equal lengths per speaker: the difference of rates is a mean over speakers, and the t test is its exact counterpart.
    generator = np.random.default_rng(3)
    a = counts(generator.integers(0, 6, 12).tolist())
    b = Errors([replace(item, substitutions=item.substitutions + int(generator.integers(-1, 4))) for item in a.items])
    found = paired_bootstrap(a, b, n=20_000, interval="student")
    gaps = [10.0 * (x.errors - y.errors) for x, y in zip(a.items, b.items, strict=True)]
    exact = stats.ttest_1samp(gaps, 0)
    low, high = exact.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(low, rel=0.03), pytest.approx(high, rel=0.03))
    assert found.p_value == pytest.approx(exact.pvalue, rel=0.1)
    assert (found.p_value < 0.05) == (found.high < 0 or found.low > 0)
    narrow = paired_bootstrap(a, b, n=20_000)
    assert math.isnan(narrow.p_value) and narrow.high - narrow.low < found.high - found.low
    assert bootstrap_p(0.0, np.zeros(10), 5) == 1.0
