"""A run's candidate as a model folder, from the same sources and through the same kernel as when it was scored."""

from __future__ import annotations

from pathlib import Path

from merging.recipe import SourceRef
from search.errors import SearchError
from search.results import Results


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
    from merging.export import export

    candidate = results.candidate(id)
    if candidate.state == "failed":
        raise SearchError(f"{results.folder}: candidate {id} failed ({candidate.reason}); there is nothing to export")
    recipe = results.recipe(id)
    paths = {alias: Path(path) for alias, path in results.started.paths.items()}
    sources = Sources.load(paths.pop("base"), paths)
    changed = [alias for alias, ref in sources.refs.items() if ref.content != results.started.sources[alias]]
    if changed:
        raise SearchError(
            f"{results.folder}: since this run was started, model {', '.join(map(repr, changed))} has changed, so the "
            "export would not be the model that was scored. Restore it first."
        )
    # what is handed on names its parents as the config does, not where they lay on this machine
    models = results.config.models
    named = {"base": models.base, **models.experts}
    refs = {alias: SourceRef(named[alias], ref.content) for alias, ref in recipe.sources.items()}
    return export(recipe.with_sources(refs), sources, out)
