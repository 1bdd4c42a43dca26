"""What a config says of calibration data, checked: for whom there must be some, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from merging.recipe import MergingError
from search.algebra import searched_experts
from search.first_config import alone
from search.positions import Location, Problem, did_you_mean
from search.schema import CalibrationConfig, Config
from search.space.methods import MethodChoice
from search.space.scales import SpaceError
from search.virtual import members, needs_calibration

if TYPE_CHECKING:
    from evaluators.calibration import InputsOptions


def choices_of(config: Config) -> list[MethodChoice]:
    """The methods of the config's space."""
    return [
        MethodChoice(each) if isinstance(each, str) else MethodChoice(each.name, each.parameters)
        for each in config.space.methods
    ]


def searches_calibrated(config: Config) -> bool:
    """Whether a method of the space looks at inputs.

    Raises:
        MergingError: there is no such method.
    """
    return any(needs_calibration(each.name) for each in choices_of(config))


def calibrated(config: Config) -> tuple[str, ...]:
    """The experts that calibration data are needed for, in the config's order.

    Raises:
        MergingError: there is no such method.
        SpaceError: the expression of the space means nothing.
    """
    needed = set(searched_experts(config)[0]) if searches_calibrated(config) else set()
    for virtual in config.models.virtual.values():
        if needs_calibration(virtual.method):
            needed |= set(members(virtual, config))
    return tuple(alias for alias in config.models.experts if alias in needed)


def calibrated_anywhere(config: Config) -> tuple[str, ...]:
    """As :func:`calibrated`, those of the first search of a hybrid among them."""
    needed = set(calibrated(config))
    if config.first is not None:
        needed |= set(calibrated(alone(config)))
    return tuple(alias for alias in config.models.experts if alias in needed)


def settings_of(config: Config) -> CalibrationConfig:
    """The config's ``calibration``, or its defaults."""
    return config.calibration if config.calibration is not None else CalibrationConfig()


def default_evaluator(config: Config, expert: str) -> str | None:
    """The evaluator that an expert is calibrated on where the config says nothing: that of its name, or of the
    objective that names it."""
    if expert in config.evaluators:
        return expert
    return next((each.metric.partition(".")[0] for each in config.objectives if each.expert == expert), None)


def options_of(config: Config, expert: str) -> InputsOptions:
    """Where the inputs of an expert come from; paths as they stand in the file."""
    from evaluators.calibration import InputsOptions

    given = settings_of(config).inputs.get(expert)
    return InputsOptions.model_validate({"evaluator": default_evaluator(config, expert)} if given is None else given)


def problems(config: Config) -> Iterator[Problem]:
    """What is wrong with the calibration data of a config."""
    try:
        needed = calibrated_anywhere(config)
    except (MergingError, SpaceError):
        return  # said where the method is named, or the expression
    location: Location = ("calibration",)
    if config.calibration is not None and not needed:
        yield Problem(
            location,
            "no method looks at inputs, neither of models.virtual nor of space.methods; leave it out, or name one that "
            "does (`paretomerge ls methods`)",
            at_key=True,
        )
        return
    given = settings_of(config).inputs
    for alias in given:
        place: Location = (*location, "inputs", alias)
        if alias in config.models.virtual or alias in config.models.derived:
            kind = "virtual" if alias in config.models.virtual else "derived"
            yield Problem(
                place, f"{alias!r} is a {kind} expert; inputs belong to those that it is made of", at_key=True
            )
        elif alias not in config.models.experts:
            known = ", ".join(config.models.experts)
            hint = did_you_mean(alias, config.models.experts)
            yield Problem(place, f"there is no expert {alias!r}; there are: {known}.{hint}", at_key=True)
        elif alias not in needed:
            yield Problem(place, f"no calibrated method merges {alias!r}; leave its inputs out", at_key=True)
    both = (config,) if config.first is None else (config, alone(config))
    for alias in needed:
        if alias not in given and all(default_evaluator(each, alias) is None for each in both):
            yield Problem(
                location,
                f"the expert {alias!r} needs inputs, and no evaluator has its name or is its objective's; name them "
                f"under calibration.inputs.{alias}: {{evaluator: …}} or {{data: file}}",
                at_key=True,
            )
        named = given.get(alias, {}).get("evaluator")
        if named is not None and named not in config.evaluators:
            hint = did_you_mean(str(named), config.evaluators)
            known = ", ".join(config.evaluators)
            place = (*location, "inputs", alias, "evaluator")
            yield Problem(place, f"there is no evaluator {named!r}; there are: {known}.{hint}")
