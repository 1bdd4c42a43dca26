"""Calibration data of one merge: those that a short merge config names, or a file beside a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from evaluators.contract import EvaluatorError
from merging.recipe import MergingError, Recipe
from search.errors import SearchError
from search.live_experts import LiveExperts
from search.schema import CalibrationConfig
from search.virtual import Say

if TYPE_CHECKING:
    from evaluators.calibration import InputsOptions
    from merging import Sources
    from merging.calibration import CollectedCalibration
    from merging.calibration.contract import Calibration


class MergeInputs:
    """Reads calibration inputs for a merge, and collects what its methods need."""

    def __init__(self, path: Path, say: Say, file: Path | None = None) -> None:
        """Args:
        path: the merge config, or the recipe.
        say: told one line a step.
        file: YAML with ``items``, ``seed`` and ``inputs``, for a recipe.
        """
        self._path = path
        self._say = say
        self._file = file
        self._read: CollectedCalibration | None = None

    def read(self, section: Mapping[str, Any], sources: Sources, dtype: str | None) -> str:
        """The fingerprint of the data that a short merge config names: see :data:`merging.configs.ReadInputs`."""
        self._read = self._calibration(section, sources, self._path, dtype)
        return self._read.fingerprint

    def calibrate(self, recipe: Recipe, sources: Sources, dtype: str | None) -> Calibration | None:
        """What a recipe needs, collected: from the config's data, from the file's, or as far as the cache has it.

        Raises:
            MergingError: nothing of it is there, or other data than the recipe was made with.
            SearchError: the data cannot be read.
        """
        from merging.configs import kept_calibration, needed_calibration

        wanted = needed_calibration(recipe)
        if wanted is None:
            return None
        calibration = self._read
        if calibration is None or calibration.fingerprint != wanted:
            if self._file is None:
                try:
                    return kept_calibration(recipe, sources, dtype)
                except MergingError as error:
                    raise MergingError(
                        f"{error}; or name the data with --calibration FILE. What a run recorded from its evaluators, "
                        "`paretomerge export RUN` records again"
                    ) from error
            calibration = self._from_file(self._file, recipe, sources, dtype)
        if calibration.fingerprint != wanted:
            raise MergingError(
                f"{self._file}: the recipe was made with other calibration data ({wanted[:19]}…) than these "
                f"({calibration.fingerprint[:19]}…): other inputs, or another number or seed of them"
            )
        live = LiveExperts(sources, dtype)
        try:
            assignments = {*recipe.groups.values(), *recipe.tensors.values()}
            calibration.collect(live.materializer, assignments, notify=self._say)
        finally:
            live.close()
        return calibration

    def _from_file(self, file: Path, recipe: Recipe, sources: Sources, dtype: str | None) -> CollectedCalibration:
        from merging.configs import load_yaml, read_text

        data = load_yaml(read_text(file), file)
        section = data.get("calibration", data) if isinstance(data, dict) else data
        if not isinstance(section, dict):
            raise SearchError(f"{file}: expected calibration data, {{items: …, inputs: {{expert: {{data: file}}}}}}")
        bound = {alias: own for alias, own in sources.bind(recipe).items() if alias != recipe.base}
        return self._calibration(section, sources, file, dtype, bound)

    def _calibration(
        self,
        section: Mapping[str, Any],
        sources: Sources,
        path: Path,
        dtype: str | None,
        bound: Mapping[str, str] | None = None,
    ) -> CollectedCalibration:
        """Read the inputs.

        Args:
            section: as it stands in the file.
            sources: the models.
            path: of the file.
            dtype: of the live model.
            bound: alias in the file -> alias in the sources; the same for all experts if None.
        """
        from evaluators.calibration import read_inputs
        from merging.calibration import CollectedCalibration, Samples

        bound = bound or {alias: alias for alias in sources.checkpoints if alias != sources.base}
        settings = _settings(section, path)
        options = _options(settings, tuple(bound), path)
        live = LiveExperts(sources, dtype)
        samples: dict[str, tuple[str, Samples]] = {}
        try:
            for alias, own in bound.items():
                self._say(f"calibration: reading inputs of {alias}")
                given = read_inputs(options[alias], live.engine(own), settings.items, settings.seed)
                found = Samples.of(given)
                other, known = samples.setdefault(sources.refs[own].content, (alias, found))
                if known.hash != found.hash:
                    raise MergingError(
                        f"it has the same weights as {other}, and other inputs; name the same inputs for both, or "
                        "leave one of them out"
                    )
        except (EvaluatorError, MergingError) as error:
            raise SearchError(f"{path}: calibration of {alias}: {error}") from error
        finally:
            live.close()
        return CollectedCalibration({content: known for content, (_, known) in samples.items()})


def wants_file(recipe: Recipe, path: Path) -> bool:
    """Whether a file with calibration data could have an effect: something in the recipe was made with such, and its
    own file does not name them."""
    from merging.configs import is_recipe, load_yaml, needed_calibration, read_text

    def needs(one: Recipe) -> bool:
        made_by = [ref.made_by for ref in one.sources.values() if ref.made_by is not None]
        return needed_calibration(one) is not None or any(needs(each) for each in made_by)

    return is_recipe(load_yaml(read_text(path), path)) and needs(recipe)


def _settings(section: Mapping[str, Any], path: Path) -> CalibrationConfig:
    try:
        return CalibrationConfig.model_validate(section)
    except ValidationError as error:
        raise SearchError(f"{path}: {_said(error, 'calibration', list(CalibrationConfig.model_fields))}") from error


def _options(settings: CalibrationConfig, experts: tuple[str, ...], path: Path) -> dict[str, InputsOptions]:
    """Where the inputs of every expert come from, paths from the file's folder or else the working directory."""
    from evaluators.calibration import InputsOptions
    from search.positions import did_you_mean

    for alias in settings.inputs:
        if alias not in experts:
            hint = did_you_mean(alias, experts)
            raise SearchError(
                f"{path}: calibration.inputs: there is no expert {alias!r}; there are: {', '.join(experts)}.{hint}"
            )
    found = {}
    for alias in experts:
        if alias not in settings.inputs:
            raise SearchError(
                f"{path}: the expert {alias!r} needs calibration inputs; name them under calibration.inputs.{alias}: "
                "{data: file, text: …}"
            )
        where = f"calibration.inputs.{alias}"
        try:
            options = InputsOptions.model_validate(settings.inputs[alias])
        except ValidationError as error:
            raise SearchError(f"{path}: {_said(error, where, list(InputsOptions.model_fields))}") from error
        if options.data is None:
            raise SearchError(f"{path}: {where}: a merge has no evaluators; name a file with `data`")
        beside = path.parent / options.data if isinstance(options.data, Path) else None
        found[alias] = (
            options.model_copy(update={"data": beside}) if beside is not None and beside.exists() else options
        )
    return found


def _said(error: ValidationError, where: str, known: list[str]) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join([where, *(str(part) for part in first["loc"] if not str(part).startswith("data "))])
    if first["type"] == "extra_forbidden":
        return f"{place}: unknown key. Known keys: {', '.join(known)}."
    return f"{place}: {first['msg'].removeprefix('Value error, ')}"
