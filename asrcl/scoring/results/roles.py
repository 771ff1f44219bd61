"""What a run is to a report: a small vocabulary in place of the ids of methods.

Three words of a run, and what they may be:

    role         initial     the model that all others start from, never adapted
                 method      what is judged
                 reference   a method that others are measured by, and that competes with them
                 oracle      knows more than a method may (the domain of a test item, the data of all domains); does not compete

    kind         what metrics take a run for; empty for others
                 fine_tuning   plain sequential fine-tuning, a reference: AVG_FT of COV
                 separate      a model per domain, an oracle: AVG_sep of COV
                 joint         trained on the data of all domains, an oracle: J of intransigence

    decoded_by   stage_model     after stage i, every domain is decoded by what the method has then, one model or several
                 domain_model    every domain that was learned is decoded by the model of its stage, which nothing changes; what
                                 is measured of it later does not count
                 initial_model   the model never changes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from asrcl.exceptions import InputError

ROLES: Final = ("initial", "method", "reference", "oracle")
KINDS: Final = {"fine_tuning": "reference", "separate": "oracle", "joint": "oracle"}
"""Each kind with the role that it is of."""
DECODERS: Final = ("stage_model", "domain_model", "initial_model")
COMPETING: Final = ("method", "reference")


@dataclass(frozen=True, slots=True)
class Standing:
    """Role, kind, decoding model and label of a run."""

    role: str = "method"
    kind: str = ""
    decoded_by: str = "stage_model"
    label: str = ""


def standing_of(method: str) -> Standing:
    """What a run that does not say it is taken for: results of versions that knew it by the id of the method."""
    known = {
        "initial": Standing("initial", decoded_by="initial_model", label="Initial model"),
        "ft": Standing("reference", "fine_tuning", label="Fine-tuning (FT)"),
        "fta": Standing(label="FT + averaging (FTA)"),
        "ewc": Standing(label="EWC"),
        "ihr": Standing(label="IHR"),
        "ihr_paper": Standing(label="IHR (paper's damping)"),
        "laplace": Standing(label="Laplace merge"),
        "separate": Standing("oracle", "separate", "domain_model", "Separate models"),
        "joint": Standing("oracle", "joint", label="Joint training"),
    }
    return known.get(method, Standing(label=method))


def check_standing(role: object, kind: object, decoded_by: object, where: str) -> None:
    """Refuse words that are not of the vocabulary.

    Raises:
        InputError: the field is named, with what it may be.
    """
    for name, value, choices in (("role", role, ROLES), ("kind", kind, ("", *KINDS)), ("decoded_by", decoded_by, DECODERS)):
        if value not in choices:
            raise InputError(f"{where}: {name} is {value!r}; choose {', '.join(choice or '(empty)' for choice in choices)}")
    if kind and KINDS[str(kind)] != role:
        raise InputError(f"{where}: kind {kind} is of role {KINDS[str(kind)]}, not {role}")
