"""A run's candidate as a model folder, from the same sources and through the same kernel as when it was scored."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from merging.recipe import MergingError, Recipe
from search.errors import SearchError
from search.results import Results

if TYPE_CHECKING:
    from merging import Sources
    from merging.calibration.contract import Calibration

_LOG = logging.getLogger("paretomerge")


def export_candidate(results: Results, id: int, out: Path) -> Path:
    """Write a candidate as a Hugging Face folder.

    Args:
        results: of the run.
        id: the candidate.
        out: a folder that does not exist yet, or is empty.

    Returns:
        The folder.

    Raises:
        SearchError: no such candidate, it failed, or a source model has changed since.
        MergingError: the folder cannot be written, or exists.
    """
    from merging import Sources
    from merging.configs import remade
    from merging.export import export

    candidate = results.candidate(id)
    if candidate.state == "failed":
        raise SearchError(f"{results.folder}: candidate {id} failed ({candidate.reason}); there is nothing to export")
    recipe = results.recipe(id)
    made_by = {alias: ref.made_by for alias, ref in recipe.sources.items() if ref.made_by is not None}
    paths = {alias: Path(path) for alias, path in results.started.paths.items() if alias not in made_by}
    parents = Sources.load(paths.pop("base"), paths)
    _refuse_changed(parents, results)
    calibrate = partial(_collected, results)
    virtual = {
        alias: remade(alias, recipe.sources[alias], lambda _: parents, recipe.dtype, calibrate) for alias in made_by
    }
    sources = parents.joined(virtual) if virtual else parents
    # what is handed on names its parents as the config does, not where they lay on this machine
    models = results.config.models
    named = {"base": models.base, **models.experts, **{alias: f"virtual/{alias}" for alias in made_by}}
    refs = {alias: replace(ref, path=named[alias]) for alias, ref in recipe.sources.items()}
    return export(recipe.with_sources(refs), sources, out, calibration=calibrate(recipe, parents, recipe.dtype))


def _collected(results: Results, recipe: Recipe, sources: Sources, dtype: str | None) -> Calibration | None:
    """What a recipe over the experts needs: from the cache, or collected again on the run's own data.

    Raises:
        MergingError: the data are not those of the run any more.
        SearchError, EvaluatorError: they cannot be read.
    """
    from merging.configs import kept_calibration, needed_calibration
    from search.ingredients import Inputs
    from search.setup import build_evaluators

    try:
        return kept_calibration(recipe, sources, dtype)
    except MergingError as error:
        inputs = Inputs(results.loaded, sources, build_evaluators(results.loaded), _LOG.info)
        inputs.check()
        try:
            found = inputs.collected(recipe)
        finally:
            inputs.close()
        if found is None or found.fingerprint != needed_calibration(recipe):
            raise MergingError(
                f"{error}. The run's data, read again, are others than when it was started: restore them"
            ) from error
        return found


def _refuse_changed(sources: Sources, results: Results) -> None:
    changed = [alias for alias, ref in sources.refs.items() if ref.content != results.started.sources[alias]]
    if changed:
        raise SearchError(
            f"{results.folder}: since this run was started, model {', '.join(map(repr, changed))} has changed, so the "
            "export would not be the model that was scored. Restore it first."
        )
