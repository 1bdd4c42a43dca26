"""What a user hands over to be merged: a mergekit config, a short merge config or a recipe, told apart and read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from merging.recipe import FORMAT, MergingError, Recipe
from merging.sources import Sources

Resolve = Callable[[str], Path | None]


def read_config(
    path: Path | str, resolve: Resolve | None = None, *, tokenizer: str | None = None, allow_pickle: bool = False
) -> tuple[Recipe, Sources]:
    """Read a merge from YAML, and load its models.

    Args:
        path: a mergekit config, a short merge config (:mod:`merging.merge_config`), or a recipe as
            :meth:`merging.recipe.Recipe.to_yaml` writes it.
        resolve: finds a model that is named in another way than by its folder; None for what it does not know.
        tokenizer: whose vocabulary the result has: ``base``, ``union`` or a folder with a tokenizer; instead of what
            the config says. A recipe allows no other than its own.
        allow_pickle: also read pickled weights.

    Raises:
        MergingError: none of the three, or models that are not there or not those of the recipe.
    """
    path = Path(path)
    text = read_text(path)
    data = load_yaml(text, path)
    if is_recipe(data):
        recipe = Recipe.from_yaml(text)
        return recipe, _recipe_sources(recipe, path, resolve, tokenizer, allow_pickle)
    if isinstance(data, dict) and "merge_method" not in data and ("experts" in data or "method" in data):
        from merging.merge_config import read_merge

        return read_merge(path, resolve, tokenizer=tokenizer, allow_pickle=allow_pickle)
    from merging.mergekit import read_mergekit

    return read_mergekit(path, resolve, tokenizer=tokenizer, allow_pickle=allow_pickle)


def is_recipe(data: Any) -> bool:
    """Whether loaded YAML says that it is a recipe."""
    return isinstance(data, dict) and str(data.get("format", "")).startswith(FORMAT.split("/")[0])


def read_text(path: Path) -> str:
    """The text of a config file.

    Raises:
        MergingError: not a readable text file.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MergingError(f"expected a merge config in YAML at {path}, could not read it: {error}") from error


def load_yaml(text: str, path: Path) -> Any:
    """Plain data of a YAML text.

    Raises:
        MergingError: not YAML.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
        raise MergingError(f"expected YAML in {path}, found something else: {error}") from error


def find_model(reference: str, folder: Path, resolve: Resolve | None) -> Path:
    """The folder of a model that a config names.

    Args:
        reference: as the config names it.
        folder: that of the config: relative paths are looked up there first, then in the working directory.
        resolve: asked before either.

    Raises:
        MergingError: not found.
    """
    if resolve is not None and (found := resolve(reference)) is not None:
        return found
    places = [folder / reference, Path(reference)]
    for place in places:
        if place.exists():
            return place
    looked = places[0] if Path(reference).is_absolute() else f"{places[0]} and {places[1].absolute()}"
    raise MergingError(
        f"expected a model folder for {reference!r}, found none; looked at {looked}. Nothing is downloaded: give a "
        "local folder"
    )


def find_tokenizer(choice: str | None, folder: Path, resolve: Resolve | None) -> str | Path:
    """Whose vocabulary the result has: ``base`` (also where nothing is said), ``union``, or a folder.

    Args:
        choice: one of the two words, or a reference as in :func:`find_model`.
        folder, resolve: as in :func:`find_model`.

    Raises:
        MergingError: not found.
    """
    return (choice or "base") if choice in {None, "base", "union"} else find_model(str(choice), folder, resolve)


def tokenizer_path(sources: Sources, chosen: str | Path) -> str | None:
    """What a recipe says of where its tokenizer was found; None unless a folder was chosen and is used."""
    return str(chosen) if (sources.tokenizer or "").startswith("path:") else None


def _recipe_sources(
    recipe: Recipe, path: Path, resolve: Resolve | None, tokenizer: str | None, allow_pickle: bool
) -> Sources:
    if recipe.base not in recipe.sources:
        raise MergingError(f"the recipe {path} has base {recipe.base!r}, which is not under its sources")
    found = {alias: find_model(ref.path, path.parent, resolve) for alias, ref in recipe.sources.items()}
    base = found.pop(recipe.base)
    chosen = find_tokenizer(tokenizer or recipe.tokenizer_path or recipe.tokenizer, path.parent, resolve)
    sources = Sources.load(base, found, tokenizer=chosen, allow_pickle=allow_pickle)
    sources.bind(recipe)  # refuses models and tokens that are no longer those that the recipe was made from
    return sources
