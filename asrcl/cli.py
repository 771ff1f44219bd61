"""The command `asrcl`: its commands (`asrcl.commands`), and where errors meet the user.

Commands that train or decode take Hydra overrides as trailing arguments (`scenario=real_speech train.adapt.epochs=8`).
Exit codes: 0 done, 2 bad input (one line on standard error says what and how to mend it).
"""

from __future__ import annotations

import logging
import sys

import typer

from asrcl.boundary import in_one_line
from asrcl.commands import convert, curvature, experiment, merging, scoring, studies

app = typer.Typer(
    name="asrcl",
    help="Continual adaptation of speech recognisers: learn a new domain without forgetting the old ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for area in (experiment, scoring, merging, curvature, convert, studies):
    app.add_typer(area.app)


def main() -> None:
    """Run the command line; bad input ends in one line (or a table of what differs) and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("speechbrain", "datasets", "matplotlib", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with in_one_line():
        app()


if __name__ == "__main__":
    main()
