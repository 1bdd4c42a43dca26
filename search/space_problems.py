"""What is wrong with the methods that a config's space chooses from, and with bounds that they do not accept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from search.positions import Location, Problem
from search.space import MethodChoice, SpaceError
from search.space.methods import coefficient_bounds, searched
from search.space.methods import problems as method_problems
from search.space.scales import density_steps
from search.space_schema import SpaceConfig
from search.virtual import needs_calibration

_METHODS: Location = ("space", "methods")


def space_problems(data: dict[str, Any]) -> Iterator[Problem]:
    """All that can be said from the file alone.

    Args:
        data: the config as it was read; what else is wrong with it is said by others.
    """
    models = data.get("models")
    experts = models.get("experts") if isinstance(models, dict) else None
    made = [models.get(each) for each in ("virtual", "derived")] if isinstance(models, dict) else []
    try:
        space = SpaceConfig.model_validate(data.get("space", {}))
    except ValidationError:
        return
    if not isinstance(experts, dict) or not experts:
        return
    count = len(experts) + sum(len(each) for each in made if isinstance(each, dict))
    densities = False
    for index, each in enumerate(space.methods):
        choice = MethodChoice(each) if isinstance(each, str) else MethodChoice(each.name, each.parameters)
        found = list(_of_method(choice, index, count)) or list(_beside(choice, index, space, count > len(experts)))
        yield from found
        if not found:
            try:
                densities |= searched(choice, count, space.normalize).density != "none"
            except SpaceError as error:
                yield Problem((*_METHODS, index), str(error))
    if densities:
        try:
            density_steps(*space.density)
        except SpaceError as error:
            yield Problem(("space", "density"), str(error))


def _of_method(choice: MethodChoice, index: int, experts: int) -> Iterator[Problem]:
    for parameter, message in method_problems(choice, experts):
        yield Problem((*_METHODS, index, "parameters", parameter) if parameter else (*_METHODS, index), message)


def _beside(choice: MethodChoice, index: int, space: SpaceConfig, virtual: bool) -> Iterator[Problem]:
    """What is wrong with a method beside the rest of the config."""
    low, high = coefficient_bounds(choice.name)
    if space.coefficient[0] < low or space.coefficient[1] > high:
        yield Problem(
            ("space", "coefficient"),
            f"{choice.name} accepts coefficients in [{low:g}, {high:g}], found {list(space.coefficient)}; narrow the "
            f"bounds, or leave {choice.name} out of space.methods",
        )
    if virtual and needs_calibration(choice.name):
        yield Problem(
            (*_METHODS, index),
            f"{choice.name} looks at inputs of what it merges, and of the virtual experts and derived ones, which "
            f"the space holds too, there are none. Use one or the other: name {choice.name} under models.virtual, or "
            "drop models.virtual and models.derived",
        )
