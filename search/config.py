"""The YAML of a run: everything that affects its result stands in this one file.

:mod:`search.schema` says what may be in it; :func:`load_config` reads it, applies ``--set`` overrides, and reports all
errors at once, each with file, line, column and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from evaluators import registry as evaluators
from evaluators.items import Table
from merging import plain_yaml
from merging.bounded import printable
from merging.recipe import Recipe
from search import references
from search.calibration import calibrated_anywhere, settings_of
from search.config_problems import place_in_first, validate
from search.errors import SearchError
from search.positions import ConfigError, Location, Problem, YamlSource
from search.schema import Config

_OBJECT_IN_FILE = re.compile(r"\.py:\w+$")
"""What ends a reference to something in a Python file: ``my_eval.py:score``."""

_DEEPEST = 64
"""Keys around a key, far above what a config has: data nested much deeper can be neither copied nor validated."""


@dataclass(frozen=True)
class LoadedConfig:
    """A valid config, where it came from, and how to find what it names.

    Attributes:
        config: the validated values, overrides applied.
        path: the file.
        source: for errors that are found later and belong to a place in the file.
        first: what the first search of a hybrid has chosen; None before, and where there is none.
        of_first: this is the config of a hybrid's first search: its own keys stand under ``first`` in the file.
    """

    config: Config
    path: Path
    source: YamlSource
    first: Recipe | None = None
    of_first: bool = False

    def error(self, location: Location, message: str) -> ConfigError:
        """An error that points at a place in the file."""
        place = place_in_first(location, self.source.data) if self.of_first else location
        return self.source.error([Problem(place, message)])

    @contextmanager
    def placing(self, *location: str | int) -> Iterator[None]:
        """Within the context, a mistake that names no place in the file gets this one.

        Raises:
            ConfigError: in place of the :class:`SearchError` that was raised.
        """
        try:
            yield
        except ConfigError:
            raise
        except SearchError as error:
            raise self.error(location, str(error)) from error

    def resolve(self, reference: str) -> Path:
        """A model or data path: ``zoo://…``, ``vector://…``, absolute, or relative to the config's folder, then to the
        current one."""
        named = references.resolve(reference)
        if named is not None:
            return named
        path = Path(reference).expanduser()
        if path.is_absolute():
            return path
        beside = self.path.parent / path
        there = beside.with_name(_OBJECT_IN_FILE.sub(".py", beside.name))
        return beside if there.exists() else path

    def evaluator_options(self, name: str) -> tuple[str, dict[str, Any]]:
        """Type and options of an evaluator, its paths resolved."""
        options = dict(self.config.evaluators[name])
        kind = str(options.pop("type"))
        return kind, self.resolved(evaluators.options_model(kind, folder=self.path.parent), options)

    def resolved(self, model: type[BaseModel], options: dict[str, Any]) -> dict[str, Any]:
        """Options that a model of them accepts, the paths in them resolved."""

        def walk(value: Any) -> Any:
            if isinstance(value, Path):
                return self.resolve(str(value))
            if isinstance(value, dict):
                return {key: walk(each) for key, each in value.items()}
            if isinstance(value, list | tuple):
                return type(value)(walk(each) for each in value)
            if isinstance(value, Table) and value.dataset is not None:
                beside = self.path.parent / value.dataset
                return value.model_copy(update={"dataset": str(beside)}) if beside.is_dir() else value
            if isinstance(value, BaseModel):
                return value.model_copy(update={key: walk(getattr(value, key)) for key in value.model_fields_set})
            return value

        # A reference such as zoo://a/b must not pass through Path, which would fold its slashes.
        validated = model(**_resolve_references(self, options))
        return {key: walk(getattr(validated, key)) for key in validated.model_fields_set}


def load_config(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read, override and validate a config.

    Args:
        path: the YAML file.
        overrides: ``key.path=value`` each, the value in YAML.

    Raises:
        SearchError: everything that is wrong with it, at once.
    """
    source, note = read_source(path, overrides)
    config, problems = validate(source.data, path.parent)
    if problems or config is None:
        raise source.error(problems, note)
    return LoadedConfig(with_calibration(config), path, source)


def read_source(path: Path, overrides: Sequence[str] = ()) -> tuple[YamlSource, str]:
    """A config that is read and not validated.

    Args:
        path: the YAML file.
        overrides: ``key.path=value`` each, the value in YAML.

    Returns:
        The file with the overrides applied to its data, and what to add to errors so that they name them.

    Raises:
        SearchError: no YAML that can be a config, or an override that is none.
    """
    source = YamlSource(path)
    for override in overrides:
        _override(source.data, override)
    return source, f"\n\n(with {', '.join('--set ' + each for each in overrides)})" if overrides else ""


def with_calibration(config: Config) -> Config:
    """The config with its calibration data written out where a method needs some: which data are used stands in the
    config, said or not."""
    return config.model_copy(update={"calibration": settings_of(config)}) if calibrated_anywhere(config) else config


def resolved_yaml(config: Config) -> str:
    """Every value of a config, defaults written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _override(data: dict[str, Any], override: str) -> None:
    shown = printable(override)
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise SearchError(f"--set {shown}: expected key.path=value, such as search.budget.candidates=500")
    try:
        value = plain_yaml.load(text)
    except plain_yaml.PlainYamlError as error:
        raise SearchError(f"--set {shown}: the value is not valid YAML: {error}") from error
    *parents, last = key.split(".")
    if len(parents) >= _DEEPEST:
        raise SearchError(f"--set {shown}: unknown key: no key of a config has {len(parents)} others around it")
    place: Any = data
    part = last
    try:
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
            if not isinstance(place, dict | list):
                raise SearchError(f"--set {shown}: {part!r} is a value in the config, not a section with keys")
        part = last
        place[int(part) if isinstance(place, list) else part] = value
    except (ValueError, IndexError) as error:
        raise SearchError(f"--set {shown}: {part!r} is not an index of that list") from error


def _resolve_references(loaded: LoadedConfig, value: Any) -> Any:
    if isinstance(value, str) and references.is_reference(value):
        return references.resolve(value)
    if isinstance(value, dict):
        return {key: _resolve_references(loaded, each) for key, each in value.items()}
    if isinstance(value, list):
        return [_resolve_references(loaded, each) for each in value]
    return value
