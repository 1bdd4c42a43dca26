"""What is wrong with a config, told from its text alone: unknown keys, wrong values, names that nothing has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from evaluators import registry as evaluators
from evaluators.calibration import InputsOptions
from evaluators.contract import EvaluatorError
from search.calibration import problems as calibration_problems
from search.data_flow_schema import DataFlowConfig
from search.first_config import alone, data_of_first
from search.first_config import problems as first_problems
from search.optimizers import registry as optimizers
from search.optimizers.contract import OptimizerError
from search.positions import Location, Problem, did_you_mean
from search.schema import (
    Budget,
    CalibrationConfig,
    Config,
    ConstraintConfig,
    EngineConfig,
    FidelityConfig,
    FirstConfig,
    Models,
    Objective,
    PlateauConfig,
    SearchSettings,
    SpaceConfig,
    VirtualConfig,
    WorkersConfig,
)
from search.space_problems import space_problems
from search.space_schema import MethodConfig
from search.virtual import CHOICE, evolved
from search.virtual import problems as virtual_problems


def validate(data: dict[str, Any], folder: Path) -> tuple[Config | None, list[Problem]]:
    """A config as it was read, validated.

    Args:
        data: what the file says, overrides applied.
        folder: of the file: where a plug-in's relative file is looked for. Its code is run, since it says what its
            options are.

    Returns:
        The config, None where its own keys are wrong; and everything that is wrong with it.
    """
    problems: list[Problem] = []
    config: Config | None = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        problems.extend(_problems(error, ()))
    if isinstance(data.get("evaluators"), dict):
        problems.extend(_evaluator_problems(data["evaluators"], folder))
    problems.extend(_inputs_problems(data.get("calibration")))
    problems.extend(_optimizer_problems(data, folder))
    problems.extend(_tracker_problems(data.get("trackers")))
    problems.extend(space_problems(data))
    problems.extend(_of_first(data, folder))
    if config is not None and not problems:
        problems.extend(_cross_problems(config))
    return config, problems


def place_in_first(location: Location, data: dict[str, Any]) -> Location:
    """Where a file says what the config of a hybrid's first search (:mod:`search.first_config`) has at a place."""
    section = data.get("first")
    if not isinstance(section, dict):
        return location
    own = ("space", "search", *(("objectives",) if "objectives" in section else ()))
    return ("first", *location) if location[:1] and location[0] in own else location


def _problems(error: ValidationError, prefix: Location) -> Iterator[Problem]:
    """Pydantic's errors in our words. Alternatives of a union complain once each: only the last word is kept."""
    seen: set[Location] = set()
    for each in error.errors(include_url=False):
        location = prefix + tuple(part for part in each["loc"] if part != "[key]")  # said of a key itself
        # a union's tags ("Knots", "literal['model','layer']") are not keys of the file
        plain = tuple(part for part in location if isinstance(part, int) or not _is_tag(str(part)))
        if not plain and each["msg"].startswith("Value error, objectives:"):  # said of the whole config, about one key
            plain, each["msg"] = ("objectives",), each["msg"].replace("objectives: ", "", 1)
        if each["type"] == "extra_forbidden":
            parent = _model_at(plain[:-1])
            known = list(parent.model_fields) if parent is not None else []
            keys = f" Known keys: {', '.join(known)}." if known else ""
            message = f"unknown key{'.' + did_you_mean(str(plain[-1]), known)}{keys}"
        elif each["type"] in ("model_type", "dict_type"):
            parent = _model_at(plain)
            keys = f" ({', '.join(parent.model_fields)})" if parent is not None else ""
            message = f"expected keys with values{keys}, found {each['input']!r}"
        elif each["type"] == "missing":
            message = "is required and missing"
        else:
            # our own validators say what they found
            said = each["type"] == "value_error" or isinstance(each["input"], dict | list)
            found = "" if said else f", found {each['input']!r}"
            message = each["msg"].removeprefix("Value error, ").replace("Input should be", "expected") + found
            if each["type"] == "literal_error":
                message += "." + did_you_mean(str(each["input"]), _expected(each["ctx"]["expected"]))
        if plain in seen:
            continue
        seen.add(plain)
        yield Problem(plain, message, at_key=each["type"] == "extra_forbidden")


def _of_first(data: dict[str, Any], folder: Path) -> Iterator[Problem]:
    """As of any other search, what is wrong with a hybrid's first one."""
    own = data_of_first(data)
    if own is None:
        return
    for problem in (*_optimizer_problems(own, folder), *space_problems(own)):
        yield Problem(place_in_first(problem.location, data), problem.message, problem.at_key)


def _is_tag(part: str) -> bool:
    kinds = ("literal[", "list[", "dict[", "function-", "data ", "language ")
    return part in {"Knots", "Blocks", "MethodConfig"} or part.startswith(kinds)


def _expected(text: str) -> list[str]:
    return [part.strip(" '\"") for part in text.replace(" or ", ",").split(",")]


def _model_at(location: Location) -> type[BaseModel] | None:
    """The config model whose keys stand at a location."""
    if location[:1] == ("first",):
        return FirstConfig if len(location) == 1 else _model_at(location[1:])
    models: dict[Location, type[BaseModel]] = {
        (): Config,
        ("models",): Models,
        ("space",): SpaceConfig,
        ("space", "data_flow"): DataFlowConfig,
        ("search",): SearchSettings,
        ("search", "budget"): Budget,
        ("search", "budget", "plateau"): PlateauConfig,
        ("search", "fidelity"): FidelityConfig,
        ("engine",): EngineConfig,
        ("workers",): WorkersConfig,
    }
    if len(location) == 3 and location[:2] == ("space", "methods"):
        return MethodConfig
    if len(location) == 3 and location[:2] == ("models", "virtual"):
        return VirtualConfig
    if location == ("calibration",):
        return CalibrationConfig
    if len(location) == 2 and location[0] == "objectives":
        return Objective
    if len(location) == 2 and location[0] == "constraints":
        return ConstraintConfig
    return models.get(location)


def _evaluator_problems(section: dict[str, Any], folder: Path) -> Iterator[Problem]:
    for name, options in section.items():
        location: Location = ("evaluators", name)
        if not isinstance(options, dict):
            continue
        kind = options.get("type")
        if kind is None:
            yield Problem(location, f"`type` is required and missing; one of {', '.join(evaluators.names())}")
            continue
        try:
            model = evaluators.options_model(str(kind), folder=folder)
        except EvaluatorError as error:
            yield Problem((*location, "type"), str(error))
            continue
        try:
            model.model_validate({key: value for key, value in options.items() if key != "type"})
        except ValidationError as error:
            yield from _known_keys(_problems(error, location), model, "type, ")


def _inputs_problems(section: object) -> Iterator[Problem]:
    """What is wrong with where calibration inputs come from."""
    inputs = section.get("inputs") if isinstance(section, dict) else None
    for alias, options in inputs.items() if isinstance(inputs, dict) else ():
        if isinstance(options, dict):
            try:
                InputsOptions.model_validate(options)
            except ValidationError as error:
                yield from _known_keys(_problems(error, ("calibration", "inputs", alias)), InputsOptions, "")


def _known_keys(problems: Iterable[Problem], model: type[BaseModel], first: str) -> Iterator[Problem]:
    """Problems, unknown keys among them with those that there are."""
    for problem in problems:
        if "unknown key" in problem.message:
            known = list(model.model_fields)
            hint = did_you_mean(str(problem.location[-1]), known)
            message = f"unknown key.{hint} Known keys: {first}{', '.join(known)}."
            yield Problem(problem.location, message, at_key=True)
        else:
            yield problem


def _tracker_problems(section: object) -> Iterator[Problem]:
    from search.trackers import OPTIONS

    for name, options in section.items() if isinstance(section, dict) else ():
        if isinstance(options, dict) and name in OPTIONS:
            try:
                OPTIONS[name].model_validate(options)
            except ValidationError as error:
                yield from _known_keys(_problems(error, ("trackers", name)), OPTIONS[name], "")


def _optimizer_problems(data: dict[str, Any], folder: Path) -> Iterator[Problem]:
    section = data.get("search")
    given = section.get("optimizer") if isinstance(section, dict) else None
    if given is None:
        return
    options = {"name": given} if isinstance(given, str) else given
    if not isinstance(options, dict) or not isinstance(options.get("name"), str):
        return
    location: Location = ("search", "optimizer")
    place = location if isinstance(given, str) else (*location, "name")
    known = list(optimizers.optimizers())
    if options["name"] not in known and ":" not in options["name"]:
        hint = did_you_mean(options["name"], known)
        yield Problem(
            place, f"expected one of {', '.join(known)}, or path/to/file.py:Name; found {options['name']!r}.{hint}"
        )
        return
    try:
        model = optimizers.options_model(options["name"], folder=folder)
    except OptimizerError as error:
        yield Problem(place, str(error))
        return
    try:
        model.model_validate({key: value for key, value in options.items() if key != "name"})
    except ValidationError as error:
        for problem in _problems(error, location):
            known = list(model.model_fields)
            extra = f"{did_you_mean(str(problem.location[-1]), known)} Known options: {', '.join(known)}."
            message = problem.message + (extra if problem.at_key else "")
            yield Problem(problem.location, message, problem.at_key)


def _skilled(config: Config) -> list[str]:
    """The experts that an objective may be the skill of."""
    return [*config.models.experts, *config.models.derived]


def _cross_problems(config: Config) -> Iterator[Problem]:
    """What no single value shows."""
    yield from first_problems(config)
    yield from _wrong_objectives(config, ())
    if config.first is not None and config.first.objectives is not None:
        yield from _wrong_objectives(alone(config), ("first",))
    yield from virtual_problems(config)
    yield from calibration_problems(config)
    for name in config.constraints:
        evaluator = name.partition(".")[0]
        if evaluator not in config.evaluators:
            known = ", ".join(config.evaluators)
            hint = did_you_mean(evaluator, config.evaluators)
            yield Problem(("constraints", name), f"there is no evaluator {evaluator!r}; there are: {known}.{hint}")


def _wrong_objectives(config: Config, prefix: Location) -> Iterator[Problem]:
    for index, objective in enumerate(config.objectives):
        evaluator, dot, metric = objective.metric.partition(".")
        location: Location = (*prefix, "objectives", index)
        if not dot or not metric:
            yield Problem(location, f"expected evaluator.metric, such as string.accuracy; found {objective.metric!r}")
        elif evaluator not in config.evaluators:
            known = ", ".join(config.evaluators)
            hint = did_you_mean(evaluator, config.evaluators)
            yield Problem(location, f"there is no evaluator {evaluator!r}; there are: {known}.{hint}")
        if objective.expert in (*config.models.virtual, *evolved(config)):
            what = "a virtual expert" if objective.expert in config.models.virtual else CHOICE
            message = f"{objective.expert!r} is {what}, a merge; a skill is an expert's that was trained for it"
            yield Problem((*location, "expert"), message)
        elif objective.expert is not None and objective.expert not in _skilled(config):
            known = ", ".join(_skilled(config))
            hint = did_you_mean(objective.expert, _skilled(config))
            yield Problem((*location, "expert"), f"there is no expert {objective.expert!r}; there are: {known}.{hint}")
