"""Short forms of domains, and named orders."""

import pytest
from image_cases import configured

from asrcl.exceptions import InputError


def domains_of(folder, domains, *more):
    return configured(folder, "permuted_digits", f"scenario.domains={domains}", *more).tree["scenario"]["domains"]


def test_short_forms_are_written_out(tmp_path):
    assert domains_of(tmp_path, "[{name: t, classes: 10, splits: 5}]") == [
        {"name": f"t{n}", "classes": [2 * n - 2, 2 * n - 1]} for n in range(1, 6)
    ]
    assert domains_of(tmp_path, "[{name: t, classes: [9, 1, 4, 0], splits: 2}]") == [
        {"name": "t1", "classes": [9, 1]}, {"name": "t2", "classes": [4, 0]}
    ]  # fmt: skip
    assert domains_of(tmp_path, "[{name: p, permutations: 2, rotation: 9}]") == [
        {"name": f"p{n}", "permutation": n, "rotation": 9} for n in (1, 2)
    ]
    assert domains_of(tmp_path, "[{name: r, rotations: [0, 7.5]}]") == [
        {"name": "r0", "rotation": 0}, {"name": "r7.5", "rotation": 7.5}
    ]  # fmt: skip
    assert domains_of(tmp_path, "[{name: c, copies: 2, random_labels: true}]") == [
        {"name": f"c{n}", "random_labels": True} for n in (1, 2)
    ]
    assert domains_of(tmp_path, "[{name: few, classes: 3}]") == [{"name": "few", "classes": [0, 1, 2]}]


def test_names_are_in_the_order_of_their_numbers(tmp_path):
    names = [domain["name"] for domain in domains_of(tmp_path, "[{name: p, permutations: 120}]")]
    assert names == sorted(names) and names[0] == "p001" and names[-1] == "p120"


def test_what_is_written_out_stays_as_it_is(tmp_path):
    from asrcl.images.benchmark import ImageBenchmark

    once = configured(tmp_path, "permuted_digits", "+scenario.label_noise=0.1").tree["scenario"]
    assert ImageBenchmark().checked(once) == once


@pytest.mark.parametrize(
    "domains, fault",
    [
        ("[{name: t, classes: 10, splits: 3}]", r"domain t: splits=3 of classes=10"),
        ("[{name: t, splits: 3}]", r"splits=3 of classes=None"),
        ("[{name: t, classes: 10, splits: 0}]", "splits=0"), ("[{name: t, classes: 10, splits: true}]", "splits=True"),
        ("[{name: p, permutations: many}]", "permutations=many"),
        ("[{name: p, permutations: 100000000}]", "permutations=100000000"),
        ("[{name: r, rotations: 3}]", "rotations=3"), ("[{name: r, rotations: []}]", r"rotations=\[\]"),
        ("[{name: r, rotations: [a]}]", r"rotations=\['a'\]"), ("[{name: r, rotation: 400}]", "rotation=400"),
        ("[{name: r, rotation: nan}]", "rotation=nan"), ("[{name: c, copies: -1}]", "copies=-1"),
        ("[{name: t, copies: 2, permutations: 2}]", "permutations and copies"), ("[{name: t, classes: -1}]", "classes=-1"),
        ("[{name: p, permutations: 2}, {name: p1}]", "two domains have the name p1"),
        ("[{name: p, permutations: 2}, {name: P1}]", "P1"), ("[{name: r, rotations: [3, 3]}]", "two domains have the name r3"),
        ("[{name: a, images: digits}]", "domain a: images=digits"), ("[{name: a, angle: 2}]", r"domain a: has angle.*splits"),
    ],
)  # fmt: skip
def test_forms_that_cannot_be_written_out(tmp_path, domains, fault):
    with pytest.raises(InputError, match=fault) as caught:
        domains_of(tmp_path, domains)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scenario, count", [("split_cifar100", 10), ("cifar100_superclass", 20)])
def test_orders_of_halrp(tmp_path, scenario, count):
    orders = configured(tmp_path, scenario).tree["scenario"]["orders"]
    assert list(orders) == ["A", "B", "C", "D", "E"] and orders["A"] == list(range(count))
    assert all(sorted(order) == orders["A"] for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 5


def test_superclasses_hold_every_class_once(tmp_path):
    domains = configured(tmp_path, "cifar100_superclass").tree["scenario"]["domains"]
    assert [len(domain["classes"]) for domain in domains] == [5] * 20
    assert sorted(number for domain in domains for number in domain["classes"]) == list(range(100))


@pytest.mark.parametrize(
    "orders, fault",
    [
        ("{B: [0, 1, 2, 3, 4, 5, 6, 6]}", r"orders\.B=.*no permutation of the 8 domains"), ("{B: [0, 1]}", r"orders\.B=\[0, 1\]"),
        ("{B: [1, 2, 3, 4, 5, 6, 7, 8]}", "orders.B"), ("{B: [0, 1, 2, 3, 4, 5, 6, a]}", "orders.B"), ("{B: 3}", "orders.B=3"),
        ("[[0, 1]]", r"scenario\.orders: write names and numbers"), ("{B: [false, true, 2, 3, 4, 5, 6, 7]}", "orders.B"),
    ],
)  # fmt: skip
def test_an_order_that_is_no_permutation(tmp_path, orders, fault):
    with pytest.raises(InputError, match=fault) as caught:
        configured(tmp_path, "permuted_digits", f"+scenario.orders={orders}")
    assert "\n" not in str(caught.value)


def test_a_setting_that_no_scenario_has(tmp_path):
    with pytest.raises(InputError, match=r"scenario: has label_nose; known are .*label_noise"):
        configured(tmp_path, "permuted_digits", "+scenario.label_nose=0.4")
