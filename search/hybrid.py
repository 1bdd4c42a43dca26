"""A hybrid: a first search, and a second one in which what the first has chosen is one more expert.

The first search is a run of its own, in the folder ``first`` of the run directory. It has the models, evaluators,
engine and workers of the whole; it chooses on the selection split, and leaves the holdout closed. What it has chosen is
then made as a virtual expert is: a merge in the cache, whose recipe goes into every recipe of the second search. It has
the dtype that it was scored in, and with it the very bits. The second search is the run itself. Once it has begun it
remembers the choice, so the first one's budget can grow no more.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from merging.recipe import Recipe
from search.calibration import calibrated
from search.config import LoadedConfig
from search.errors import SearchError
from search.events import RunStarted
from search.first_config import alone
from search.results import Results
from search.schema import Config
from search.virtual import references


def first_of(loaded: LoadedConfig) -> LoadedConfig:
    """The config of a hybrid's first search. Errors that are found with it point at the hybrid's file."""
    config = alone(loaded.config)
    if not calibrated(config):
        config = config.model_copy(update={"calibration": None})
    return replace(loaded, config=config, first=None, of_first=True)


def choice_of(folder: Path, config: Config) -> Recipe:
    """What a first search has chosen, as the recipe of an expert. It names its parents as the config does, not where
    they lie on this machine; of those that are made, it names the ones that it merges.

    Args:
        folder: the run directory of the first search, which is finished.
        config: the hybrid's.

    Raises:
        SearchError: it has not chosen, or this version reads its recipe otherwise.
    """
    results = Results.load(folder)
    if results.chosen is None:
        raise SearchError(f"{folder}: the first search has chosen nothing yet; run the same command again")
    recipe, named = results.recipe(results.chosen), references(config)
    assignments = (*recipe.groups.values(), *recipe.tensors.values())
    merged = {alias for each in assignments for alias, _ in each.sources}
    sources = {
        alias: replace(ref, path=named[alias] if ref.made_by is None else f"virtual/{alias}")
        for alias, ref in recipe.sources.items()
        if ref.made_by is None or alias in merged
    }
    return recipe.with_sources(sources)


def remembered(loaded: LoadedConfig, started: RunStarted) -> LoadedConfig:
    """The config with what the first search had chosen when the second one began."""
    first = loaded.config.first
    if first is None or first.name not in started.made_by:
        return loaded
    return replace(loaded, first=Recipe.from_yaml(started.made_by[first.name]))
