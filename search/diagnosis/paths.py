"""What a diagnosis says of a search for paths through layers, whose weights stay as they are: which part applies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from merging.scan import PLAUSIBLE
from merging.sources import BASE
from search.path_stages import models_of

if TYPE_CHECKING:
    from merging.diagnose.results import Diagnosis, Measures
    from search.schema import Config


@dataclass(frozen=True)
class Paths:
    """A data-flow space, as far as a diagnosis of its models speaks of it.

    Attributes:
        models: whose layers paths are made of; the first is model A.
        distance: model -> ‖θ − θ_A‖/‖θ0‖ over all layers, of those that were looked at; not of A.
        made: models that the diagnosis did not look at, since they are made of others.
        merging: which search of the config merges weights, in words; "" where none does.
    """

    models: tuple[str, ...]
    distance: dict[str, float]
    made: tuple[str, ...]
    merging: str

    @property
    def sentences(self) -> tuple[str, ...]:
        """For people, before the verdict."""
        where = "This search lays paths through layers (data_flow), whose weights stay as they are."
        where += " What is said of merging below (verdict, conflicts, a space) "
        where += f"is about {self.merging} alone." if self.merging else "foretells nothing of paths."
        first, *others = self.models
        told = [f"Layers of {', '.join([f'{first} (model A)', *others])}: one architecture, so any may follow any."]
        if self.distance:
            listed = ", ".join(f"{name} {value:.2f}" for name, value in self.distance.items())
            told[0] += f" What counts is how far they lie from A's (‖θ − θ_A‖/‖θ0‖ of the layers): {listed}."
        far = [name for name, value in self.distance.items() if value > PLAUSIBLE]
        if far:
            told.append(
                f"For {', '.join(far)} that is more than {PLAUSIBLE:g}, farther than fine-tunes of one base lie apart: "
                "such layers were trained on hidden states unlike A's, and hardly compare."
            )
        if self.made:
            end = ", so no distance from it is known" if first in self.made else ""
            told.append(f"Made of other models, and not looked at: {', '.join(self.made)}{end}.")
        return (where, *told)

    def as_data(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "models": list(self.models), "distance": dict(self.distance), "made": list(self.made),
            "merging": self.merging,
        }  # fmt: skip


def paths_of(config: Config, diagnosis: Diagnosis) -> Paths | None:
    """What to say of a config's paths; None where it lays none.

    Args:
        config: of a search, or of a hybrid, whose first search always merges weights.
        diagnosis: of its base and experts.
    """
    if config.space.data_flow is None:
        return None
    models, looked_at, known = models_of(config), {BASE, *diagnosis.aliases}, {}
    if models[0] in looked_at:
        layers = [each for group, each in diagnosis.groups.items() if group.depth is not None]
        base = sum(each.base_norm**2 for each in layers)
        for other in (each for each in models[1:] if each in looked_at and base):
            known[other] = math.sqrt(sum(_apart(each, models[0], other) ** 2 for each in layers) / base)
    made = tuple(each for each in models if each not in looked_at)
    return Paths(models, known, made, "the first search" if config.first is not None else "")


def _apart(scope: Measures, one: str, other: str) -> float:
    """‖θ_one − θ_other‖ of two models that were looked at."""
    if BASE in (one, other):
        return scope.norm[other if one == BASE else one]
    return scope.euclidean[(one, other) if (one, other) in scope.euclidean else (other, one)]
