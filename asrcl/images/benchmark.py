"""The image benchmark: a source of images and a list of domains make a scenario.

    name: permuted_digits
    benchmark: images
    images: {kind: digits}
    incremental: domain
    domains: [{name: original}, {name: permuted1, permutation: 1}, {name: rotated30, rotation: 30}, {name: low, classes: [0, 1]}]

A domain has the images as they are, or with `permutation` (a seed), `rotation` (degrees), `classes` (some of them) or all of
these, may name `images` of its own, and may have variants (`asrcl.images.variants`); `asrcl.images.entries` has short forms for
many domains. `orders` names orders of them, each a list of places in `domains`. `incremental` says what is known at test time, in
the words of van de Ven and Tolias (2019):

    domain   not which domain it is, and it does not matter: all have the same outputs (labels are numbered within a domain)
    task     which domain it is: every domain has a head of its own
    class    not which domain it is, and it matters: one head tells the classes of all domains apart
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from asrcl.exceptions import InputError
from asrcl.experiment.config import Config, check_scenario
from asrcl.experiment.orders import named_order
from asrcl.experiment.registry import register_benchmark
from asrcl.images.entries import written_out
from asrcl.images.variants import VARIANTS

if TYPE_CHECKING:
    from asrcl.adapt import Scenario
    from asrcl.images.data import Images
    from asrcl.images.domain import ImageDomain

SETTINGS: Final = ("domain", "task", "class")
OF_THE_EXPERIMENT: Final = ("name", "benchmark", "domains", "probes", "orders", "order", "listed", "initial", "learn_first")
KNOWN: Final = (*OF_THE_EXPERIMENT, "images", "incremental", *VARIANTS)


@register_benchmark("images")
class ImageBenchmark:
    """Classification of images, behind the `asrcl.experiment.registry.Benchmark` protocol."""

    stages: tuple[str, ...] = ()
    needs: Mapping[str, Any] = {"model": dict, "train.batch_size": int, "train.label_smoothing": float, "scenario.images": dict}

    def checked(self, scenario: dict[str, Any]) -> dict[str, Any]:
        """The scenario with every domain written out, and `incremental` domain where it says nothing.

        Raises:
            InputError: an unknown setting, a domain with something that no domain has, or an order that is none.
        """
        scenario = {"incremental": "domain", "images": {"kind": "digits"}, "initial": {}, **scenario}
        if unknown := set(scenario) - set(KNOWN):
            raise InputError(f"scenario: has {', '.join(sorted(map(str, unknown)))}; known are {', '.join(KNOWN)}")
        if scenario["incremental"] not in SETTINGS:
            raise InputError(f"scenario.incremental={scenario['incremental']}: choose from {', '.join(SETTINGS)}")
        scenario |= {group: written_out(scenario[group], scenario) for group in ("domains", "probes")}
        check_scenario(scenario)  # the names that are new
        kinds = {"classes" in entry for entry in scenario["domains"]}
        if scenario["incremental"] == "class" and len(kinds) > 1:
            raise InputError("scenario.incremental=class: give classes to all domains or to none")
        for order in scenario.get("orders", {}):
            named_order(scenario, order)
        return scenario

    def prepare(self, config: Config, stage: str, only: Iterable[str] | None = None) -> None:
        """Nothing: images are read when they are needed."""

    def scenario(self, config: Config, seed: int | None = None) -> Scenario:
        """Domains, the classification task and the model."""
        from asrcl.adapt import Scenario
        from asrcl.images.models import build_classifier
        from asrcl.images.task import ImageTask

        settings = config.tree["scenario"]
        domains, heads = load_domains(config, settings["domains"])
        probes, _ = load_domains(config, settings["probes"])
        model, shape = config.tree["model"], domains[0].shape
        for domain in [*domains, *probes]:
            if domain.shape != shape:
                raise InputError(
                    f"domain {domain.name}: images of shape {domain.shape}, {domains[0].name} has {shape}; bring them to one "
                    "(options size and channels of images)"
                )
        for probe in probes:
            if settings["incremental"] == "task" or probe.classes != domains[0].classes:
                raise InputError(
                    f"probe {probe.name}: the model has no outputs for its classes; give it those of the domains, and with "
                    "incremental: task no probes"
                )
        example = build_classifier(model, shape, heads)  # bad settings are found now
        names = {domain.name: domain.classes for domain in [*domains, *probes]}
        return Scenario(
            settings["name"],
            domains,
            ImageTask(names, config.tree["train"]["label_smoothing"]),
            lambda: build_classifier(model, shape, heads),
            model_config={"model": model, "heads": [list(head) for head in heads.items()]},  # their order places them
            probes=probes,
            private=example.private,
        )

    def train_initial(self, config: Config, seed: int) -> None:
        """The initial model, trained on the first domain."""
        from asrcl.experiment.initial import train_first

        train_first(config, self.scenario(config), seed)


def load_domains(config: Config, entries: Sequence[Mapping[str, Any]]) -> tuple[list[ImageDomain], dict[str, int]]:
    """Domains of a list of the configuration, and the number of classes of each head (see `asrcl.images.models.Classifier`).

    Raises:
        InputError: an unknown source, a change that does not fit, or domains that do not fit together.
    """
    from asrcl.images.data import load_images
    from asrcl.images.domain import ImageDomain

    scenario, sources = config.tree["scenario"], {}
    incremental, domains = scenario["incremental"], []
    for number, entry in enumerate(entries):
        options = entry.get("images") or scenario["images"]
        if str(options) not in sources:
            sources[str(options)] = load_images(options, config.tree["data_dir"])
        splits = _changed(sources[str(options)], entry, incremental)
        if incremental == "class" and not any("classes" in domain for domain in scenario["domains"]):
            splits = {split: _shifted(images, number, len(entries)) for split, images in splits.items()}
        domains.append(ImageDomain(entry["name"], splits, config.tree["train"]["batch_size"], mixable=incremental != "task"))
    sizes = {domain.name: len(domain.classes) for domain in domains}
    if incremental == "task":
        return domains, sizes
    if len(set(sizes.values())) > 1:
        raise InputError(f"scenario: one head for all, but the domains have {sizes} classes; use incremental: task")
    return domains, {"": max(sizes.values(), default=0)}


def _changed(splits: Mapping[str, Images], entry: Mapping[str, Any], incremental: str) -> dict[str, Images]:
    """The splits of one domain."""
    from asrcl.images.domain import of_classes, permuted, rotated
    from asrcl.images.variants import varied

    where, found = f"domain {entry['name']}", dict(splits)
    if (classes := entry.get("classes")) is not None:
        last = len(found["train"].classes) - 1
        different = {number for number in classes if type(number) is int} if isinstance(classes, list) else set()
        if len(different) < 2 or len(different) < len(classes) or not different <= set(range(last + 1)):
            raise InputError(f"{where}: classes={classes}; give two or more different ones from 0 to {last}")
        found = {split: of_classes(images, classes, relabel=incremental != "class") for split, images in found.items()}
    if len(found["train"].labels.unique()) < 2:
        raise InputError(f"{where}: its training images are all of one class; a task needs two or more")
    found = varied(found, entry, entry["name"])
    if (degrees := entry.get("rotation")) is not None:
        found = {split: rotated(images, float(degrees)) for split, images in found.items()}
    if (seed := entry.get("permutation")) is not None:
        found = {split: permuted(images, seed) for split, images in found.items()}
    return found


def _shifted(images: Images, number: int, count: int) -> Images:
    """Classes of a domain that are others than those of every other domain."""
    names = tuple(f"{name}/{domain}" for domain in range(count) for name in images.classes)
    return images.labelled(images.labels + number * len(images.classes), names)
