"""The user's configuration: Hydra groups composed into one tree, and the typed settings read from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asrcl.exceptions import InputError

_Settings = TypeVar("_Settings")


def config_folder() -> Path:
    """The folder of configuration groups: `conf/` of a checkout, or the one shipped in the package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise InputError(f"{package}: found no conf/config.yaml beside or inside the package; install asrcl again")


@dataclass(frozen=True)
class Config:
    """A composed configuration.

    Attributes:
        tree: everything, resolved, as plain dicts and lists.
        overrides: what the user changed, as typed.
    """

    tree: dict[str, Any]
    overrides: tuple[str, ...] = ()

    @property
    def home(self) -> Path:
        """Output folder of the scenario: `<exp>/<scenario name>`."""
        return Path(self.tree["exp"]) / self.tree["scenario"]["name"]

    @property
    def device(self) -> str:
        """The device to compute on; "auto" takes a GPU when there is one."""
        wanted = str(self.tree["device"])
        if wanted == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if wanted.startswith("cuda") and not torch.cuda.is_available():
            raise InputError("device=cuda: no GPU here; use device=cpu or device=auto")
        return wanted

    def settings(self, kind: type[_Settings], *path: str) -> _Settings:
        """A typed settings object from the subtree at `path`.

        Raises:
            InputError: unknown or missing keys.
        """
        values: Any = self.tree
        for key in path:
            values = values[key]
        name = ".".join(path)
        known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
        if unknown := set(values) - known:
            raise InputError(
                f"{name}: unknown settings {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}"
            )
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose `conf/config.yaml` with Hydra overrides such as `scenario=real_speech` or `train.adapt.epochs=8`.

    Raises:
        InputError: an override that does not fit, or an interpolation that cannot be resolved.
    """
    for override in overrides:
        if "=" not in override:
            raise InputError(f"{override}: not an override; write group=choice or some.setting=value")
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            tree = compose("config", overrides=list(overrides))
        assert isinstance(tree, DictConfig)
        plain = OmegaConf.to_container(tree, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"configuration: {reason[:300]}; see the folder {config_folder()} for what can be set"
        ) from error
    assert isinstance(plain, dict)
    return Config({str(key): value for key, value in plain.items()}, tuple(overrides))
