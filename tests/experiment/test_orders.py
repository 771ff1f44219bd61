"""Orders of the domains: names, ranges and drawn ones; each an experiment of its own with everything else shared."""

import pytest

from asrcl.exceptions import InputError
from asrcl.experiment.config import load_config
from asrcl.experiment.orders import draw_orders, wanted_orders
from asrcl.experiment.run import adapt_all, train_all
from asrcl.files import read_json
from asrcl.scoring import RunResult

THREE = "scenario.domains=[{name: low, classes: [0, 1]}, {name: mid, classes: [2, 3]}, {name: high, classes: [4, 5]}]"
NAMED = "++scenario.orders={A: [0, 1, 2], B: [2, 0, 1], C: [1, 2, 0]}"


def configured(folder, name, *more):
    return load_config([f"scenario={name}", f"exp={folder}", "launcher.threads=1", "device=cpu", "tracking.backends=[]", *more])


def scenario(size=3, **orders):
    return {"domains": [{"name": f"d{n}"} for n in range(size)], "orders": orders}


def test_drawn_orders_begin_as_listed_are_all_different_and_never_change():
    five = draw_orders(5, 8)
    assert five[0] == tuple(range(8)) and draw_orders(3, 8) == five[:3]
    assert len(set(five)) == 5 and all(sorted(order) == list(range(8)) for order in five)
    assert five[1] == (3, 7, 5, 2, 4, 1, 6, 0)  # written down: results of other days are compared with it
    assert len(set(draw_orders(6, 3))) == 6


@pytest.mark.parametrize("words", ["A B C", "A-C", "A,B,C", "A-B C"])
def test_names_and_ranges(words):
    found = wanted_orders(scenario(A=[0, 1, 2], B=[2, 0, 1], C=[1, 2, 0]), words)
    assert found == {"A": (0, 1, 2), "B": (2, 0, 1), "C": (1, 2, 0)}


def test_a_name_with_a_dash_is_a_name():
    assert list(wanted_orders(scenario(**{"A": [0, 1, 2], "A-B": [2, 0, 1], "B": [1, 2, 0]}), "A-B")) == ["A-B"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("7", "7 orders of 3 domains: there are 6"),
        ("0", "0 orders of 3 domains"),
        (" , ", "names no order"),
        ("D", "order D: not one of the scenario; its orders are A, B"),
        ("B-A", "--orders B-A: A comes before B"),
        ("A B", r"scenario.orders.B=[0, 1, 1]: no permutation of the 3 domains; give each number from 0 to 2 once"),
    ],
)
def test_what_is_no_order_is_refused_in_one_line(words, message):
    with pytest.raises(InputError) as refused:
        wanted_orders(scenario(A=[0, 1, 2], B=[0, 1, 1]), words)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("order", ["[0, 1]", "[0, 1, true]", "[1, 2, 3]", "{}", "Z", "9"])
def test_one_order_that_is_none_is_refused_when_the_configuration_is_read(order, tmp_path):
    with pytest.raises(InputError, match="order"):
        configured(tmp_path, "split_digits", THREE, f"scenario.order={order}")


@pytest.mark.parametrize("orders", ["[1]", "{1: [0]}", "{a b: [0]}", "{a/b: [0]}"])
def test_names_that_cannot_be_told_from_numbers_or_folders_are_refused(orders, tmp_path):
    with pytest.raises(InputError, match=r"scenario\.orders"):
        configured(tmp_path, "split_digits", f"++scenario.orders={orders}")


def test_one_order_alone(tmp_path):
    config = configured(tmp_path, "split_digits", THREE, NAMED, "scenario.order=B")
    assert [domain["name"] for domain in config.tree["scenario"]["domains"]] == ["high", "low", "mid"]
    assert (config.order, config.runs, config.name) == ("B", config.home / "order_B", "split_digits_order_B")
    assert [domain["name"] for domain in config.listed.tree["scenario"]["domains"]] == ["low", "mid", "high"]
    same = configured(tmp_path, "split_digits", THREE, "scenario.order=[2, 0, 1]")
    assert same.tree["scenario"]["domains"] == config.tree["scenario"]["domains"] and same.order == "2-0-1"
    with pytest.raises(InputError, match=r"--orders A and scenario\.order=B"):
        config.in_orders("A")
    assert configured(tmp_path, "split_digits", THREE, "scenario.order=2").order == "2"
    assert config.in_orders("") == [config]


def test_orders_share_a_cache_and_nothing_else(tmp_path):
    config = configured(tmp_path, "split_digits", THREE, NAMED, "train.adapt.epochs=1", "train.initial.epochs=1")
    train_all(config, [1], "A-B")
    adapt_all(config, ["ft"], [1], decode=True, orders="A-B")
    runs = {name: RunResult.load(config.home / f"order_{name}" / "ft" / "1" / "results.json") for name in "AB"}
    assert [run.scenario for run in runs.values()] == ["split_digits_order_A", "split_digits_order_B"]
    assert runs["B"].domains == ["high", "low", "mid"] and runs["B"].config["scenario"]["listed"] == ["low", "mid", "high"]
    assert not (config.home / "initial").exists() and len(list(config.home.glob("*/cache"))) == 0
    assert len(list((config.home / "cache" / "train").glob("*/key.json"))) == 2 * 3
    first = [read_json(config.home / f"order_{name}" / "initial" / "1" / "model.json")["files"] for name in "AB"]
    assert first[0] != first[1]


def test_tuned_hyper_parameters_are_those_of_the_scenario_in_every_order(tmp_path):
    (tmp_path / "conf" / "tuned").mkdir(parents=True)
    (tmp_path / "conf" / "tuned" / "split_digits.yaml").write_text("# @package _global_\nmethods: {ewc: {strength: 123.0}}\n")
    config = configured(tmp_path, "split_digits", f"config_dir={tmp_path / 'conf'}")
    assert [each.tree["methods"]["ewc"]["strength"] for each in config.in_orders("3")] == [123.0] * 3
