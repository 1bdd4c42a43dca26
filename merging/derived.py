"""Derived experts: named expressions in task vectors, as a merge uses them.

Under a method that is linear in its sources a derived expert is nothing but other coefficients, and no model is made
for it. Under any other method it has to be one: a merge of its experts by task arithmetic, in float32, made once and
kept in the cache like every virtual expert (:mod:`merging.virtual`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from merging.expressions import summed
from merging.methods.contract import suggest
from merging.methods.registry import canonical_recipe
from merging.recipe import Assignment, MergingError, Recipe, SourceRef, Value
from merging.sources import BASE, Sources
from merging.virtual import DTYPE, make

Coefficients = Mapping[str, Mapping[str, float]]
"""Derived expert -> expert -> coefficient of its task vector, as :func:`merging.expressions.expand` gives them."""

METHOD = "task_arithmetic"
"""Which a derived expert is made by where it has to be a model."""

_COEFFICIENT = "coefficient"


def as_linear(assignment: Assignment, derived: Coefficients) -> Assignment:
    """The same assignment in terms of experts where its method is linear in its sources; unchanged elsewhere.

    Linear are task arithmetic that does not divide by the sum of its coefficients, and the linear average of weights:
    there a derived expert is (1 − Σc)·θ0 + Σc·θ_t, whose weights sum to 1.

    Args:
        assignment: any, derived experts among its sources or not.
        derived: of the merge.
    """
    names = [alias for alias, _ in assignment.sources if alias in derived]
    if not names or not _is_linear(assignment):
        return assignment
    terms: list[tuple[str, float]] = []
    for alias, values in assignment.sources:
        weight = float(dict(values)[_COEFFICIENT])
        inner = derived.get(alias, {alias: 1.0})
        terms += [(expert, weight * coefficient) for expert, coefficient in inner.items()]
        if alias in derived and assignment.method == "linear":
            terms += [(BASE, weight), *((BASE, -weight * coefficient) for coefficient in inner.values())]
    named = {alias for alias, _ in assignment.sources}
    sources: dict[str, Mapping[str, Value]] = {
        alias: {_COEFFICIENT: value} for alias, value in summed(terms).items() if value != 0.0 or alias in named
    }
    return Assignment.of(assignment.method, sources, **dict(assignment.parameters))


def _is_linear(assignment: Assignment) -> bool:
    plain = all(
        values.keys() == {_COEFFICIENT} and isinstance(values[_COEFFICIENT], int | float)
        for values in (dict(each) for _, each in assignment.sources)
    )
    if assignment.method == METHOD:
        return plain and dict(assignment.parameters).get("normalize", False) is False
    return plain and assignment.method == "linear"


def recipe_of(name: str, coefficients: Mapping[str, float], sources: Sources) -> Recipe:
    """The merge that a derived expert is.

    Args:
        name: for messages.
        coefficients: expert -> coefficient of its task vector.
        sources: the experts among them.

    Raises:
        MergingError: an expert that is not there.
    """
    for alias in coefficients:
        if alias not in sources.checkpoints:
            raise MergingError(f"{name}: there is no expert {alias!r}{suggest(alias, tuple(sources.checkpoints))}")
    of: dict[str, Mapping[str, Value]] = {alias: {_COEFFICIENT: value} for alias, value in coefficients.items()}
    refs = {alias: sources.refs[alias] for alias in (BASE, *coefficients)}
    vocabulary = sources.tokenizer
    return canonical_recipe(
        Recipe(
            BASE,
            refs,
            dict.fromkeys(sources.layout.groups, Assignment.of(METHOD, of)),
            dtype=DTYPE,
            tokenizer=vocabulary,
            tokenizer_path=str(sources.companions) if (vocabulary or "").startswith("path:") else None,
        )
    )


def joined(
    names: Iterable[str], derived: Coefficients, sources: Sources, cache: Path | None = None
) -> tuple[Sources, dict[str, SourceRef]]:
    """The models with some derived experts among them, made where the cache does not have them.

    Args:
        names: of the derived experts.
        derived: of the merge.
        sources: base and experts.
        cache: the cache directory, by default the project's.

    Returns:
        The models, and how a recipe names all of them: the derived with the merge that makes them again.

    Raises:
        MergingError: one cannot be made.
    """
    recipes = {name: recipe_of(name, derived[name], sources) for name in names}
    made = {name: make(recipe, sources, cache=cache) for name, recipe in recipes.items()}
    whole = sources.joined({name: each.folder for name, each in made.items()}) if made else sources
    return whole, {alias: replace(ref, made_by=recipes.get(alias)) for alias, ref in whole.refs.items()}
