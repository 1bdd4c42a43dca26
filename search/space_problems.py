"""What is wrong with the methods that a config's space chooses from, and with bounds that they do not accept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from merging.expressions import expand
from merging.recipe import MergingError
from search.algebra import mixing_of
from search.data_flow_problems import flow_problems
from search.positions import Location, Problem, did_you_mean
from search.space import MethodChoice, Mixing, SpaceError
from search.space.methods import coefficient_bounds, searched, takes_coefficients
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
    aliases = [str(name) for each in (experts, *reversed(made)) if isinstance(each, dict) for name in each]
    aliases += _evolved(data.get("first"))
    if space.data_flow is not None:
        yield from flow_problems(space.data_flow, data, aliases)
        return
    found = list(_of_experts(space, data.get("space", {}), aliases))
    yield from found
    if found:
        return
    try:
        if space.expression is not None:
            expand(_derived(data["models"]), map(str, experts))
    except MergingError:
        return  # what is wrong with a derived expert is said where it stands
    try:
        taking, mixing = _mixing(space, data["models"], aliases)
    except SpaceError as error:
        yield Problem(("space", "expression"), str(error))
        return
    count, made_too = len(taking), not set(taking) <= set(experts)
    densities = False
    for index, each in enumerate(space.methods):
        choice = MethodChoice(each) if isinstance(each, str) else MethodChoice(each.name, each.parameters)
        found = list(_of_method(choice, index, count)) or list(_beside(choice, index, space, made_too, mixing))
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


def _evolved(first: Any) -> list[str]:
    """What a first search chooses, by its name."""
    return [first["name"]] if isinstance(first, dict) and isinstance(first.get("name"), str) else []


def _of_experts(space: SpaceConfig, given: Mapping[str, Any], aliases: Sequence[str]) -> Iterator[Problem]:
    """What is wrong with the experts that are named, and with an expression beside other keys."""
    for index, alias in enumerate(space.experts or ()):
        if alias not in aliases:
            hint = did_you_mean(alias, aliases)
            known = ", ".join(map(str, aliases))
            yield Problem(("space", "experts", index), f"there is no expert {alias!r}; there are: {known}.{hint}")
        elif alias in (space.experts or ())[:index]:
            yield Problem(("space", "experts", index), f"the expert {alias!r} is named twice")
    if space.expression is None:
        if space.variables:
            yield Problem(
                ("space", "variables"),
                "there is no expression that they are of; give space.expression, such as legal + a*(real - synthetic)",
                at_key=True,
            )
        return
    for key in ("coefficient", "shared", "experts"):
        if key in given:
            yield Problem(
                ("space", key),
                "the expression says how experts are combined, and its variables have bounds of their own; leave this "
                "out, or the expression",
                at_key=True,
            )
    if not space.variables:
        yield Problem(
            ("space", "expression"),
            "nothing in it is searched; name a variable, as in legal + a*(real - synthetic) with variables: {a: [0, "
            "1.5]}, or make it a derived expert under models.derived",
        )


def _mixing(
    space: SpaceConfig, models: Mapping[str, Any], aliases: Sequence[str]
) -> tuple[tuple[str, ...], Mixing | None]:
    """The experts that are merged, and their coefficients where an expression gives them.

    Raises:
        SpaceError: an expression that means nothing.
    """
    if space.expression is None:
        return tuple(space.experts or aliases), None
    derived = _derived(models)
    return mixing_of(space, [each for each in aliases if each not in derived], derived)


def _derived(models: Mapping[str, Any]) -> dict[str, str]:
    given = models.get("derived")
    return {str(name): str(text) for name, text in given.items()} if isinstance(given, dict) else {}


def _of_method(choice: MethodChoice, index: int, experts: int) -> Iterator[Problem]:
    for parameter, message in method_problems(choice, experts):
        yield Problem((*_METHODS, index, "parameters", parameter) if parameter else (*_METHODS, index), message)


def _beside(
    choice: MethodChoice, index: int, space: SpaceConfig, virtual: bool, mixing: Mixing | None
) -> Iterator[Problem]:
    """What is wrong with a method beside the rest of the config."""
    low, high = coefficient_bounds(choice.name)
    if mixing is not None:
        ranges = [mixing.range_of(expert) for expert in range(len(mixing.offset))]
        least, most = min(each for each, _ in ranges), max(each for _, each in ranges)
        if least < low or most > high:
            yield Problem(
                ("space", "expression"),
                f"{choice.name} accepts coefficients in [{low:g}, {high:g}], and this expression gives some in "
                f"[{least:g}, {most:g}]; narrow its variables, or leave {choice.name} out of space.methods",
            )
        if not takes_coefficients(choice.name):
            yield Problem(
                (*_METHODS, index), f"an expression gives coefficients, and {choice.name} takes none; leave it out"
            )
    elif space.coefficient[0] < low or space.coefficient[1] > high:
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
