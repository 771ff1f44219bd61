"""Write trained initial models of a scenario, in half precision with their tokeniser, to the folder that comes with the recipe.

    tools/ship_initial.py "1 2 3" scenario=accents exp=exp

`asrcl train scenario.initial.models=null` has trained them below exp. The folder is the one that `scenario.initial.models` names;
`models.json` there says how they were made and holds the hash of every file (see `asrcl.speech.initial`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from asrcl.adapt import load_weights, save_weights
from asrcl.exceptions import InputError
from asrcl.experiment.config import Config, config_folder, load_config
from asrcl.experiment.initial import initial_path
from asrcl.files import copy_file, hash_file, read_json, write_json
from asrcl.speech.initial import tokenizer_path, training_settings, what_it_depends_on
from asrcl.speech.prepare import data_folder


def ship(config: Config, seeds: list[int]) -> Path:
    """Write the models of some seeds; returns their folder.

    Raises:
        InputError: the scenario names no folder, or a seed has not been trained here.
    """
    wanted = config.tree["scenario"]["initial"].get("models")
    if not wanted:
        raise InputError(f"scenario {config.tree['scenario']['name']}: initial.models names no folder for trained initial models")
    folder = config_folder().parent / wanted
    copy_file(tokenizer_path(config), folder / "pieces.model")
    names, trained = ["pieces.model"], {}
    for seed in seeds:
        record = read_json(initial_path(config, seed).with_suffix(".json"))
        if "training" not in record:
            raise InputError(f"{initial_path(config, seed)}: was not trained here; run asrcl train scenario.initial.models=null")
        state = load_weights(initial_path(config, seed))
        names.append(f"seed{seed}.safetensors")
        half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
        save_weights(half, folder / names[-1])
        trained[str(seed)] = {"dev_loss": [round(epoch["dev_loss"], 3) for epoch in record["training"]]}
    content: dict[str, Any] = {
        "command": f'asrcl train --seeds "{" ".join(map(str, seeds))}" scenario={config.tree["scenario"]["name"]} '
        "scenario.initial.models=null",
        "settings": what_it_depends_on(config),
        "corpus": config.tree["scenario"]["initial"]["corpus"],
        "train": {key: value for key, value in training_settings(config).tree["train"].items() if key != "adapt"},
        "data": read_json(data_folder(config, "_initial") / "features" / "meta.json")["fingerprints"],
        "trained": trained,
        "files": {name: {"hash": hash_file(folder / name), "bytes": (folder / name).stat().st_size} for name in names},
    }
    write_json(folder / "models.json", content)
    return folder


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(ship(load_config(sys.argv[2:]), [int(word) for word in sys.argv[1].split()]))
