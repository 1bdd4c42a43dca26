"""Greedy soup: an average of those fine-tunes that do each other no harm, found by their scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real

from merging.configs import tokenizer_path
from merging.methods.registry import canonical
from merging.recipe import Assignment, MergingError, Recipe
from merging.sources import Sources

Score = Callable[[Recipe], float]


@dataclass(frozen=True)
class Tasting:
    """One average that was scored.

    Attributes:
        members: aliases of the models in it, in the order in which they were added.
        recipe: their mean.
        score: what it was found to be worth.
        kept: whether it became the soup: for a single model, whether it is the best one.
    """

    members: tuple[str, ...]
    recipe: Recipe
    score: float
    kept: bool


@dataclass(frozen=True)
class Soup:
    """The outcome of :func:`greedy_soup`.

    Attributes:
        recipe: the mean of the members, by method ``linear``.
        members: aliases, in the order in which they were added.
        score: the recipe's.
        tastings: everything that was scored, in order: every model alone, then one mean for each further model.
    """

    recipe: Recipe
    members: tuple[str, ...]
    score: float
    tastings: tuple[Tasting, ...]


def greedy_soup(models: Sources | Recipe, score: Score, *, aliases: Sequence[str] | None = None) -> Soup:
    """Add models to a mean, the best first, each only if the score of the mean does not fall.

    Wortsman et al. 2022, arXiv 2203.05482, recipe 1. With N models the score is asked for 2N − 1 times: once for each
    model, and once for the mean with each but the best. The soup never scores below the best model. It was chosen by
    these scores, so they flatter it: report one from other data.

    Args:
        models: opened models, or a recipe over them, whose dtype, layers and tokenizer are kept and whose assignments
            are replaced.
        score: what a recipe is worth, the higher the better; deterministic. Negate what should be small.
        aliases: the models that may take part; the base's own alias too. By default all but the base.

    Raises:
        MergingError: no models, an unknown or repeated one, or a score that is not a finite number.
    """
    template = models if isinstance(models, Recipe) else _template(models)
    chosen = _candidates(template, aliases)
    alone = [_taste(template, (alias,), score) for alias in chosen]
    # The sort is stable: of equal scores the earlier model comes first.
    ranked = sorted(alone, key=lambda tasting: -tasting.score)
    soup = ranked[0]
    tried = []
    for candidate in ranked[1:]:
        mean = _taste(template, soup.members + candidate.members, score)
        kept = mean.score >= soup.score
        tried.append(replace(mean, kept=kept))
        soup = mean if kept else soup
    best = ranked[0].members
    tastings = (*(replace(each, kept=each.members == best) for each in alone), *tried)
    return Soup(soup.recipe, soup.members, soup.score, tastings)


def _template(sources: Sources) -> Recipe:
    nothing = Assignment.of("task_arithmetic", {})
    groups = dict.fromkeys(sources.layout.groups, nothing)
    path = tokenizer_path(sources, sources.companions)
    return Recipe(sources.base, sources.refs, groups, tokenizer=sources.tokenizer, tokenizer_path=path)


def _candidates(template: Recipe, aliases: Sequence[str] | None) -> tuple[str, ...]:
    chosen = tuple(alias for alias in template.sources if alias != template.base) if aliases is None else tuple(aliases)
    if not chosen:
        raise MergingError("a greedy soup expects at least one model besides the base, found none")
    unknown = [alias for alias in chosen if alias not in template.sources]
    if unknown or len(set(chosen)) < len(chosen):
        raise MergingError(
            f"a greedy soup expects different models of {', '.join(template.sources)}, found {', '.join(chosen)}"
        )
    return chosen


def _taste(template: Recipe, members: tuple[str, ...], score: Score) -> Tasting:
    mean = canonical(Assignment.of("linear", {alias: {"coefficient": 1.0} for alias in members}))
    recipe = replace(template, groups=dict.fromkeys(template.groups, mean), tensors={})
    found = score(recipe)
    if isinstance(found, bool) or not isinstance(found, Real) or not math.isfinite(found):
        raise MergingError(
            f"expected the score of a soup of {', '.join(members)} to be a finite number, found {found!r}"
        )
    return Tasting(members, recipe, float(found), kept=False)
