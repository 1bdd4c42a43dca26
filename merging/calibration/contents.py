"""Assignments that name models by what they contain: the same under any aliases."""

from __future__ import annotations

from collections.abc import Mapping

from merging.methods.registry import canonical, get
from merging.recipe import Assignment, MergingError


def by_content(assignment: Assignment, contents: Mapping[str, str]) -> Assignment:
    """The canonical assignment with every alias replaced by its content; of a symmetric method, sorted by these.

    Args:
        assignment: over aliases.
        contents: alias -> content (:attr:`merging.recipe.SourceRef.content`).

    Raises:
        MergingError: an alias without a content, or an assignment that its method refuses.
    """
    spelled = canonical(assignment)
    unknown = [alias for alias, _ in spelled.sources if alias not in contents]
    if unknown:
        raise MergingError(f"expected the models {', '.join(sorted(contents))}, found {unknown[0]!r}")
    sources = [(contents[alias], values) for alias, values in spelled.sources]
    if get(spelled.method).symmetric:
        sources.sort()
    return Assignment(spelled.method, tuple(sources), spelled.parameters)
