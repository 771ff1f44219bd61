"""Models per domain without being told the domain."""

import pytest

from asrcl.adapt import dev_rates, run_stages
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.testing import VectorBatch, tiny_learner, tiny_scenario


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    """One cache for all tests."""
    return tiny_learner(tmp_path_factory.mktemp("selected"), tiny_scenario(3))


LORA = {"rank": 2, "alpha": 8.0}


def test_every_item_has_the_hypothesis_of_the_model_that_is_surest_of_it(learner):
    method = build_method("lora_per_domain", select="confidence", **LORA)
    *_, last = run_stages(learner, method, "test")
    models = [method.weights_for(learner, domain) for domain in learner.scenario.domains]
    assert len({weights.hash for weights in models}) == 3
    for domain, errors in zip(learner.scenario.domains, last.errors, strict=True):
        said = [learner.evaluate(weights, domain).items for weights in models]
        sure = [learner.confidence(weights, domain, "test", learner.evaluate(weights, domain)) for weights in models]
        columns = zip(zip(*sure, strict=True), zip(*said, strict=True), strict=True)
        assert errors.items == [items[column.index(max(column))] for column, items in columns]
        counts = last.record["selected"][domain.name]
        assert list(counts) == [each.name for each in learner.scenario.domains] and sum(counts.values()) == len(errors)


def test_no_domain_is_told(learner):
    """What a domain is called decides with `lora_per_domain`, and nothing here: all domains have the same candidates."""
    told = build_method("lora_per_domain", **LORA)
    chosen = build_method("lora_per_domain", select="confidence", **LORA)
    *_, by_name = run_stages(learner, told, "test")
    *_, by_item = run_stages(learner, chosen, "test")
    assert chosen.state_dict().keys() == {f"method.{name}" for name in told.state_dict()}
    shares = by_item.record["selected"]
    assert any(counts[name] < sum(counts.values()) for name, counts in shares.items())
    assert by_name.errors != by_item.errors


def test_before_a_second_domain_it_is_the_first_model_and_equal_models_choose_the_first(learner):
    first, *_ = run_stages(learner, build_method("lora_per_domain", select="confidence", **LORA), "test")
    plain, *_ = run_stages(learner, build_method("lora_per_domain", **LORA), "test")
    assert first.errors == plain.errors
    *_, same = run_stages(learner, build_method("lora_per_domain", select="confidence", rank=2, alpha=0.0), "test")
    initial = [learner.evaluate(learner.scenario.initial, domain) for domain in learner.scenario.domains]
    assert same.errors == initial
    assert "selected" not in same.record  # there is nothing to choose from


def test_the_search_judges_it_as_it_decodes(learner):
    method = build_method("separate", select="confidence")
    rates = dev_rates(learner, method, None)
    found = [method.evaluate(learner, domain, "dev").rate for domain in learner.scenario.domains]
    assert rates["average"] == pytest.approx(sum(found) / 3) and rates["new"] == found[-1]
    before = learner.evaluate(learner.scenario.initial, learner.scenario.domains[0], "dev").rate
    assert rates["rise"] == pytest.approx(found[0] - before)


def test_it_stands_in_reports_as_a_method_and_not_as_the_oracle_that_it_is_made_of():
    found = build_method("separate", select="confidence")
    assert (found.role, found.kind, found.decoded_by) == ("method", "", "stage_model")
    assert found.label == "Separate models, by confidence" and not found.has_strength


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("ft", {"select": "confidence"}, "decodes all domains with one model"),
        ("initial", {"select": "confidence"}, "decodes all domains with one model"),
        ("lora_per_domain", {"select": "domain"}, "select='domain': choose confidence, calibrated, gated, or leave it out"),
        ("lora_per_domain", {"select": "confidence", "merge": "ihr"}, "nothing to merge"),
    ],
)
def test_what_cannot_be_selected_is_refused(name, options, named):
    with pytest.raises(InputError, match=named):
        build_method(name, **options)


def test_calibrated_confidence_counts_from_that_of_each_model_on_its_own_dev_set(learner):
    method = build_method("lora_per_domain", select="calibrated", **LORA)
    *_, last = run_stages(learner, method, "test")
    domains = learner.scenario.domains
    models = [method.weights_for(learner, domain) for domain in domains]
    usual = []
    for weights, domain in zip(models, domains, strict=True):
        sure = learner.confidence(weights, domain, "dev", learner.evaluate(weights, domain, "dev"))
        usual.append(sum(sure) / len(sure))
    assert [float(method.state_dict()[f"usual.{domain.name}"]) for domain in domains] == pytest.approx(usual)
    said = [learner.evaluate(weights, domains[0]) for weights in models]
    sure = [learner.confidence(weights, domains[0], "test", errors) for weights, errors in zip(models, said, strict=True)]
    for place, item in enumerate(last.errors[0].items):
        best = max(range(3), key=lambda k: sure[k][place] - usual[k])
        assert item == said[best].items[place]
    again = build_method("lora_per_domain", select="calibrated", **LORA)
    again.load_state_dict(method.state_dict())
    assert again.evaluate(learner, domains[0], "test") == last.errors[0]


def test_calibration_needs_a_dev_set(tmp_path, monkeypatch):
    own = tiny_learner(tmp_path, tiny_scenario(2))
    first = own.scenario.domains[0]
    monkeypatch.setattr(type(first), "size", lambda self, split: 0 if split == "dev" else 64)
    with pytest.raises(InputError, match=r"domain blobs0 has no dev set to calibrate its model on; .* select=confidence"):
        list(run_stages(own, build_method("lora_per_domain", select="calibrated"), "test"))


def test_what_is_kept_is_what_domains_add(learner):
    method = build_method("lora_per_domain", select="confidence", **LORA)
    kept = [stage.record["kept_bytes"] for stage in run_stages(learner, method, None)]
    held = [value.nbytes for name, value in method.state_dict().items() if name.startswith("method.increments.")]
    assert kept[0] == 0 < kept[1] < kept[2] == sum(held)
    whole = sum(value.nbytes for value in learner.scenario.initial.values())
    stages = run_stages(learner, build_method("separate", select="confidence"), None)
    assert [stage.record["kept_bytes"] for stage in stages] == [0, whole, 2 * whole]


def test_domains_that_decoding_is_told_are_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    """Heads or languages of their own; images say so by `mixable`, and pretrained recognisers with a language per domain."""
    monkeypatch.setattr(VectorBatch, "mixable", False)
    own = tiny_learner(tmp_path, tiny_scenario(2))
    with pytest.raises(InputError, match=r"domain blobs0 has a head or a language of its own.* use a scenario"):
        list(run_stages(own, build_method("lora_per_domain", select="confidence"), "test"))
    assert not list(tmp_path.rglob("errors.jsonl"))
