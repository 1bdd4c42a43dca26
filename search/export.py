"""A run's candidate as a model folder, from the same sources and through the same kernel as when it was scored.

The folder is whole or not there: weights, tokenizer, recipe, picture and card are written beside its place, the weights
read back and compared, and then it gets its name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merging.recipe import MergingError, Recipe
from search.errors import SearchError
from search.results import Results

if TYPE_CHECKING:
    from merging import Sources
    from merging.calibration.contract import Calibration
    from merging.companions import Companions
    from merging.verification import Verified
    from search.card import CardFacts, Parent

_LOG = logging.getLogger("paretomerge")

PICTURE = "front.png"
_VERSIONS = ("paretomerge", "torch", "transformers", "safetensors")


@dataclass(frozen=True)
class ExportOptions:
    """What may be said of an export.

    Attributes:
        tokenizer_from: alias of the model that gives tokenizer, chat template and generation settings; by the rule of
            :mod:`merging.companions` if None.
        hub_ids: alias -> ``owner/name`` of parents on the Hub.
        repository: that it is to be pushed to; None where it stays.
        rule: how the candidate was picked, in words.
    """

    tokenizer_from: str | None = None
    hub_ids: Mapping[str, str] | None = None
    repository: str | None = None
    rule: str = ""


@dataclass(frozen=True)
class Exported:
    """A folder that was written and read back.

    Attributes:
        folder: the model.
        candidate: its number; None for a single merge.
        recipe_hash: of what it holds.
        content: hash of its weights.
        files: weight file -> SHA-256, hex.
        tensors: how many were compared with the recipe's.
        tokenizer_from: alias of the model that gives the tokenizer.
        base_models: ids on the Hub of the parents, as far as they are known.
        license: what the card states; None where it states none.
        warnings: what the person who exports should know.
    """

    folder: Path
    candidate: int | None
    recipe_hash: str
    content: str
    files: dict[str, str]
    tensors: int
    tokenizer_from: str
    base_models: tuple[str, ...]
    license: str | None
    warnings: tuple[str, ...]

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder),
            "candidate": self.candidate,
            "recipe_hash": self.recipe_hash,
            "content": self.content,
            "files": self.files,
            "verified_tensors": self.tensors,
            "tokenizer_from": self.tokenizer_from,
            "base_models": list(self.base_models),
            "license": self.license,
            "warnings": list(self.warnings),
        }


def export_candidate(results: Results, id: int, out: Path, options: ExportOptions | None = None) -> Exported:
    """Write a candidate as a Hugging Face folder, with its model card, and check what was written.

    Args:
        results: of the run.
        id: the candidate.
        out: a folder that does not exist yet, or is empty.
        options: see :class:`ExportOptions`.

    Raises:
        SearchError: no such candidate, it failed, or a source model has changed since.
        MergingError: the folder cannot be written, or exists, or does not hold what it should.
    """
    return write_export(work_of(results, id), out, options or ExportOptions())


def work_of(results: Results, id: int) -> Work:
    """What it takes to write a candidate: its recipe, and the run's models, opened and found unchanged.

    Raises:
        SearchError: no such candidate, it failed, or a source model has changed since.
        MergingError: a model cannot be read, or a virtual expert not be made again.
    """
    from merging import Sources
    from merging.configs import remade

    candidate = results.candidate(id)
    if candidate.state == "failed":
        raise SearchError(f"{results.folder}: candidate {id} failed ({candidate.reason}); there is nothing to export")
    recipe = results.recipe(id)
    made_by = {alias: ref.made_by for alias, ref in recipe.sources.items() if ref.made_by is not None}
    paths = {alias: Path(path) for alias, path in results.started.paths.items() if alias not in made_by}
    parents = Sources.load(paths["base"], {alias: path for alias, path in paths.items() if alias != "base"})
    _refuse_changed(parents, results)
    calibrate = partial(_collected, results)

    def made(made_by: Recipe) -> Sources:
        """The parents of a merge, those among them that are merges themselves made again."""
        inner = {alias: ref for alias, ref in made_by.sources.items() if ref.made_by is not None}
        found = {alias: remade(alias, ref, made, recipe.dtype, calibrate) for alias, ref in inner.items()}
        return parents.joined(found) if found else parents

    sources = made(recipe)
    models = results.config.models
    calibration = calibrate(recipe, parents, recipe.dtype)
    return Work(recipe, sources, calibration, {"base": models.base, **models.experts}, paths, results, id)


def check_export(results: Results, id: int, folder: Path, options: ExportOptions | None = None) -> Exported:
    """Compare a folder that was exported before with the candidate, bit by bit. Its card stays as it is.

    Raises:
        SearchError, MergingError: as :func:`export_candidate`, or the folder holds something else.
    """
    from merging.companions import choose_companions
    from merging.verification import verify_export
    from search.card.parents import parents_of, shareable

    options, work = options or ExportOptions(), work_of(results, id)
    verified = verify_export(folder, work.recipe, work.sources, work.calibration)
    parents = tuple(parents_of(work.recipe, work.references, work.folders, options.hub_ids))
    shared = shareable(work.recipe, work.references, work.folders, options.hub_ids)
    companions = choose_companions(work.sources, options.tokenizer_from)
    return _exported(_facts(work, options, shared, parents, companions, verified, folder), folder)


def holds(folder: Path, recipe: Recipe) -> bool:
    """Whether a folder is an export of a recipe, by what it says itself."""
    from merging import bounded

    try:
        return Recipe.from_yaml(bounded.read_text(folder / "recipe.yaml", bounded.LARGEST_RECIPE)).hash == recipe.hash
    except (OSError, UnicodeDecodeError, MergingError):
        return False


@dataclass(frozen=True)
class Work:
    """A merge that is to be written.

    Attributes:
        recipe: what.
        sources: the models, virtual experts among them.
        calibration: what was collected for methods that need it.
        references: alias -> how the user named the model.
        folders: alias -> where it lies.
        results: the run that it comes from; None for a single merge.
        candidate: its number there.
        max_shard_size: bytes of a weight file; merging's own default if None.
        keep_paths: leave the models' paths in ``recipe.yaml`` and ``mergekit.yaml`` as they are.
        title: heading of the card; the run and the candidate if "".
    """

    recipe: Recipe
    sources: Sources
    calibration: Calibration | None
    references: Mapping[str, str]
    folders: Mapping[str, Path]
    results: Results | None = None
    candidate: int | None = None
    max_shard_size: int | None = None
    keep_paths: bool = False
    title: str = ""


def write_export(work: Work, out: Path, options: ExportOptions) -> Exported:
    """Write a merge, its card and its picture, and compare the weights with the recipe's.

    Raises:
        SearchError, MergingError: as :func:`export_candidate`.
    """
    from merging.companions import choose_companions
    from merging.export import SHARD_BYTES, export
    from merging.verification import verify_export
    from search.card import write_card
    from search.card.parents import parents_of, shareable

    parents = parents_of(work.recipe, work.references, work.folders, options.hub_ids)
    shared = shareable(work.recipe, work.references, work.folders, options.hub_ids)
    companions = choose_companions(work.sources, options.tokenizer_from)
    written: list[Exported] = []

    def finish(folder: Path) -> None:
        verified = verify_export(folder, work.recipe, work.sources, work.calibration)
        facts = _facts(work, options, shared, tuple(parents), companions, verified, folder)
        facts = replace(facts, picture=_picture(work, folder), mergekit=_mergekit(shared, work.sources))
        write_card(facts)
        written.append(_exported(facts, out))

    export(
        work.recipe if work.keep_paths else shared,
        work.sources,
        out,
        max_shard_size=work.max_shard_size or SHARD_BYTES,
        calibration=work.calibration,
        companions=companions,
        finish=finish,
    )
    return written[0]


def _facts(
    work: Work,
    options: ExportOptions,
    shared: Recipe,
    parents: tuple[Parent, ...],
    companions: Companions,
    verified: Verified,
    folder: Path,
) -> CardFacts:
    from search.card import CardFacts

    name = work.title or (f"{work.results.name}, candidate {work.candidate}" if work.results is not None else "Merge")
    return CardFacts(
        title=options.repository.partition("/")[2] if options.repository else name,
        folder=folder,
        recipe=shared,
        parents=parents,
        companions=companions,
        verified=verified,
        results=work.results,
        candidate=work.candidate,
        rule=options.rule,
        repository=options.repository,
        repeat=_repeat(shared, parents),
        versions={each: metadata.version(each) for each in _VERSIONS},
    )


def _mergekit(recipe: Recipe, sources: Sources) -> str | None:
    from merging.mergekit_export import to_mergekit

    try:
        return to_mergekit(recipe, sources)
    except MergingError:  # mergekit has no equivalent
        return None


def _picture(work: Work, folder: Path) -> str | None:
    """The picture of the front; a run without scores has none."""
    if work.results is None:
        return None
    from search.report.picture import write_front_picture

    try:
        write_front_picture(work.results, folder / PICTURE, highlight=work.candidate)
    except SearchError as error:
        _LOG.warning("the card has no picture: %s", error)
        return None
    return PICTURE


def _repeat(recipe: Recipe, parents: tuple[Parent, ...]) -> tuple[str, ...]:
    """Commands that make the weights again, from this folder."""
    import zoo

    elsewhere = [
        alias for alias, ref in recipe.sources.items() if ref.made_by is None and not zoo.is_reference(ref.path)
    ]
    given = "".join(f" --model {alias}=PATH" for alias in elsewhere)
    ids = [each for each in parents if each.hub_id is not None]
    fetched = tuple(f"$ hf download {each.hub_id}" for each in ids)
    return (*fetched, f"$ paretomerge merge recipe.yaml again{given}")


def _exported(facts: CardFacts, out: Path) -> Exported:
    return Exported(
        folder=out,
        candidate=facts.candidate,
        recipe_hash=facts.recipe.hash,
        content=facts.verified.content,
        files=facts.verified.files,
        tensors=facts.verified.tensors,
        tokenizer_from=facts.companions.alias,
        base_models=tuple(dict.fromkeys(each.hub_id for each in facts.parents if each.hub_id is not None)),
        license=facts.license,
        warnings=tuple(facts.warnings()),
    )


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
