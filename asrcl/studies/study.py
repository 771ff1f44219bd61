"""What every study shares: settings from `conf/study`, results, tables and figures on disk.

A study is a frozen dataclass whose fields are its settings and whose method `run` does the work:

    @dataclass(frozen=True)
    class Trust:
        seeds: int = 5

        def run(self) -> Outcome: ...

`STUDIES` names the module and the class of each. `conf/study/NAME.yaml` holds what differs from the class's defaults, and
`conf/study/NAME_full.yaml` the published size where that is feasible.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from asrcl.adapt.environment import environment
from asrcl.exceptions import InputError
from asrcl.experiment.config import Config, config_folder
from asrcl.experiment.reading import plain as on_one_line
from asrcl.experiment.reading import reading
from asrcl.files import write_json, write_text
from asrcl.scoring.display.figure import save_figure
from asrcl.scoring.display.table import Table, markdown
from asrcl.scoring.display.terminal import aligned_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDIES: Final[dict[str, str]] = {
    "update_magnitude": "asrcl.studies.update_magnitude:UpdateMagnitude",
    "quadratic": "asrcl.studies.quadratic.study:Quadratic",
    "plasticity": "asrcl.studies.plasticity.study:Plasticity",
    "plasticity_rl": "asrcl.studies.reinforcement.study:PlasticityRl",
}
"""Name of a study -> "module:class"."""


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    Attributes:
        tables: name -> table; the names are the markers under which documents show them.
        captions: name of a table -> the sentence above it: what the columns are, how many seeds, which interval.
        figures: name of the file without its ending -> figure.
        numbers: everything that was measured, for `results.json`.
    """

    tables: Mapping[str, Table]
    captions: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)


class Study(Protocol):
    """A frozen dataclass of settings that can be run."""

    def run(self) -> Outcome:
        """Do the work; progress goes to `logging`."""
        ...


def study_of(name: str, overrides: Sequence[str] = ()) -> Study:
    """The study of a name with the settings of `conf/study/<name>.yaml` and of overrides such as `seeds=3`.

    Raises:
        InputError: an unknown study or setting, or a value of another type; the message lists what there is.
    """
    kind = name.removesuffix("_full")
    if kind not in STUDIES:
        raise InputError(f"study {name}: unknown; choose from {', '.join(STUDIES)}")
    module, _, class_name = STUDIES[kind].partition(":")
    return Config({"study": _tree(name, overrides)}).settings(getattr(import_module(module), class_name), "study")


def _tree(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    path = config_folder() / "study" / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"study {name}: {path.parent} has no {path.name}")
    for override in overrides:
        if "=" not in override:
            raise InputError(f"{on_one_line(override)}: not an override; write setting=value")
    with reading(path, "write one setting to a line, name: value"):
        base = OmegaConf.load(path)
    with reading(" ".join(overrides)[:100], "write setting=value", "is no setting"):
        tree = OmegaConf.to_container(OmegaConf.merge(base, OmegaConf.from_dotlist(list(overrides))), resolve=True)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def run_study(name: str, out: Path, overrides: Sequence[str] = ()) -> str:
    """Run a study and write `results.json`, `RESULTS.md` and its figures into a folder.

    Returns:
        The tables as text for a terminal.

    Raises:
        InputError: an unknown study or setting, or a folder that cannot be made; before any work begins.
    """
    study = study_of(name, overrides)
    try:  # now, not after minutes of work that would be lost
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made a folder ({error.strerror}); choose another with --out") from error
    start = time.perf_counter()
    outcome = study.run()
    seconds = round(time.perf_counter() - start, 1)
    for figure_name, figure in outcome.figures.items():
        save_figure(figure, out / f"{figure_name}.png")
    sections = {key: _section(outcome, key) for key in outcome.tables}
    record = {"study": name, "settings": asdict(study), "environment": environment(), "seconds": seconds}  # type: ignore[call-overload]
    write_json(out / "results.json", {**record, "sections": sections, **outcome.numbers})
    pictures = "".join(f"![{key}]({key}.png)\n\n" for key in outcome.figures)
    write_text(out / "RESULTS.md", f"# {name}\n\n" + "\n".join(sections.values()) + f"\n{pictures}{seconds:.0f} s.\n")
    tables = [(outcome.captions.get(key, ""), table) for key, table in outcome.tables.items()]
    return "\n".join(f"{caption}\n{aligned_table(table.header, table.texts())}" for caption, table in tables)


def _section(outcome: Outcome, name: str) -> str:
    """Caption and table of a name, as documents show them."""
    caption = outcome.captions.get(name, "")
    return (f"{caption}\n\n" if caption else "") + markdown(outcome.tables[name])
