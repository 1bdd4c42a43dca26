"""What a user hands over to be merged: a mergekit config, a short merge config or a recipe, told apart and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from merging import bounded, plain_yaml
from merging.calibration.contract import Calibration
from merging.methods.contract import CALIBRATION
from merging.methods.registry import get
from merging.recipe import FORMAT, MergingError, Recipe, SourceRef
from merging.sources import Sources

Resolve = Callable[[str], Path | None]

Calibrate = Callable[[Recipe, Sources, str | None], Calibration | None]
"""Gives the statistics that a recipe over these sources needs, collected in a live model of this dtype (the base's if
None); None where it needs none."""

ReadInputs = Callable[[Mapping[str, Any], Sources, str | None], str]
"""Reads the ``calibration:`` of a short merge config for these sources and a live model of this dtype, and returns its
fingerprint."""


def needed_calibration(recipe: Recipe) -> str | None:
    """The fingerprint of the calibration data that a recipe was made with, None where it needs none.

    Raises:
        MergingError: no such method, or several kinds of data.
    """
    assignments = {*recipe.groups.values(), *recipe.tensors.values()}
    needing = [each for each in assignments if get(each.method).needs.calibration]
    found = {str(dict(each.parameters).get(CALIBRATION.name)) for each in needing}
    if len(found) > 1:
        raise MergingError(f"expected one set of calibration data in a recipe, found {', '.join(sorted(found))}")
    return next(iter(found), None)


def kept_calibration(recipe: Recipe, sources: Sources, dtype: str | None) -> Calibration | None:
    """What a recipe needs, as far as the cache still has it: see :data:`Calibrate`.

    Raises:
        MergingError: the cache does not have it.
    """
    fingerprint = needed_calibration(recipe)
    if fingerprint is None:
        return None
    from merging.calibration import CollectedCalibration

    stored = {str(info.dtype).removeprefix("torch.") for info in sources.tensors.values()}
    return CollectedCalibration.from_cache(fingerprint, dtype=dtype or "+".join(sorted(stored)))


def read_config(
    path: Path | str,
    resolve: Resolve | None = None,
    *,
    tokenizer: str | None = None,
    allow_pickle: bool = False,
    calibrate: Calibrate = kept_calibration,
    read_inputs: ReadInputs | None = None,
) -> tuple[Recipe, Sources]:
    """Read a merge from YAML, and load its models.

    Args:
        path: a mergekit config, a short merge config (:mod:`merging.merge_config`), or a recipe as
            :meth:`merging.recipe.Recipe.to_yaml` writes it.
        resolve: finds a model that is named in another way than by its folder; None for what it does not know.
        tokenizer: whose vocabulary the result has: ``base``, ``union`` or a folder with a tokenizer; instead of what
            the config says. A recipe allows no other than its own.
        allow_pickle: also read pickled weights.
        calibrate: asked where a recipe's virtual expert has to be made again, and needs calibration data for it.
        read_inputs: asked where a short merge config names calibration data; without it they are refused.

    Raises:
        MergingError: none of the three, or models that are not there or not those of the recipe.
    """
    path = Path(path)
    text = read_text(path)
    data = load_yaml(text, path)
    if is_recipe(data):
        recipe = Recipe.from_yaml(text)
        return recipe, _recipe_sources(recipe, path, resolve, tokenizer, allow_pickle, calibrate)
    if isinstance(data, dict) and "merge_method" not in data and ("experts" in data or "method" in data):
        from merging.merge_config import read_merge

        return read_merge(path, resolve, tokenizer=tokenizer, allow_pickle=allow_pickle, read_inputs=read_inputs)
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
        return bounded.read_text(path, bounded.LARGEST_RECIPE)
    except (OSError, UnicodeDecodeError) as error:
        raise MergingError(f"expected a merge config in YAML at {path}, could not read it: {error}") from error


def load_yaml(text: str, path: Path) -> Any:
    """Plain data of a YAML text.

    Raises:
        MergingError: not YAML.
    """
    try:
        return plain_yaml.load(text)
    except plain_yaml.PlainYamlError as error:
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
        "local folder (where a recipe names it: `--model ALIAS=FOLDER`)"
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
    recipe: Recipe,
    path: Path,
    resolve: Resolve | None,
    tokenizer: str | None,
    allow_pickle: bool,
    calibrate: Calibrate,
) -> Sources:
    if recipe.base not in recipe.sources:
        raise MergingError(f"the recipe {path} has base {recipe.base!r}, which is not under its sources")
    refs = {alias: ref for alias, ref in recipe.sources.items() if not _is_lost(ref, path.parent)}
    if recipe.base not in refs:
        raise MergingError(f"the base of the recipe {path} is a virtual expert, found no folder at its path")
    found = {alias: find_model(ref.path, path.parent, resolve) for alias, ref in refs.items()}
    base = found.pop(recipe.base)
    chosen = find_tokenizer(tokenizer or recipe.tokenizer_path or recipe.tokenizer, path.parent, resolve)
    sources = Sources.load(base, found, tokenizer=chosen, allow_pickle=allow_pickle)
    lost = {alias: ref for alias, ref in recipe.sources.items() if alias not in refs}
    if lost:

        def parents(made_by: Recipe) -> Sources:
            held = {ref.content for ref in sources.refs.values()}
            if all(ref.content in held for ref in made_by.sources.values()):
                return sources
            return _recipe_sources(made_by, path, resolve, None, allow_pickle, calibrate)

        made = {alias: remade(alias, ref, parents, recipe.dtype, calibrate) for alias, ref in lost.items()}
        sources = sources.joined(made)
    sources.bind(recipe)  # refuses models and tokens that are no longer those that the recipe was made from
    return sources


def _is_lost(ref: SourceRef, folder: Path) -> bool:
    """Whether a model is not where the recipe says, but can be made again."""
    return ref.made_by is not None and not any(place.exists() for place in (folder / ref.path, Path(ref.path)))


def remade(
    alias: str,
    ref: SourceRef,
    parents: Callable[[Recipe], Sources],
    dtype: str | None,
    calibrate: Calibrate = kept_calibration,
) -> Path:
    """The folder of a virtual expert: from the cache, or made again by its own recipe.

    Args:
        alias: what it is called.
        ref: it, with ``made_by``.
        parents: loads what it is made from.
        dtype: of the recipe that names it: what it is calibrated in.
        calibrate: gives the calibration data that it is made with.

    Raises:
        MergingError: it cannot be made, or comes out with other weights than it had.
    """
    from merging.virtual import find, make

    recipe = ref.made_by
    if recipe is None:
        raise ValueError(f"{alias} is no virtual expert")
    try:
        found = find(recipe, live_dtype=dtype)
        if found is None:
            sources = parents(recipe)
            found = make(recipe, sources, calibration=lambda: calibrate(recipe, sources, dtype), live_dtype=dtype)
    except MergingError as error:
        raise MergingError(f"the recipe's source {alias!r} is a virtual expert, to be made again: {error}") from error
    if found.content != ref.content:
        raise MergingError(
            f"the recipe's source {alias!r} is a virtual expert that was {ref.content[:19]}… when the recipe was made; "
            f"made again by its own recipe it is {found.content[:19]}…: this version of paretomerge, of its libraries "
            "or this machine computes it differently. Use those that it was made with, or give its folder as its path"
        )
    return found.folder
