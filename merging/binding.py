"""Which loaded model is which source of a recipe: told by content, whatever both call them."""

from __future__ import annotations

from collections.abc import Mapping

from merging.recipe import MergingError, Recipe, SourceRef


def bind(recipe: Recipe, refs: Mapping[str, SourceRef], base: str) -> dict[str, str]:
    """The recipe's aliases -> those of the loaded models.

    Args:
        recipe: any.
        refs: alias -> where each loaded model is, and the hash of its content.
        base: alias of the loaded base.

    Raises:
        MergingError: the recipe was made from other models.
    """
    if recipe.sources == refs and recipe.base == base:
        return {alias: alias for alias in refs}
    held: dict[str, str] = {}
    for alias, ref in refs.items():
        held.setdefault(ref.content, alias)
    bound = {}
    for alias, ref in recipe.sources.items():
        own = refs.get(alias)
        if own is not None and own.content == ref.content:
            bound[alias] = alias
        elif ref.content in held:
            bound[alias] = held[ref.content]
        else:
            there = f"{own.path} now contains {own.content[:19]}…" if own else "no loaded model has that content"
            raise MergingError(
                f"the recipe's source {alias!r} ({ref.path}) was {ref.content[:19]}… when it was made; {there}. "
                "Give the models that the recipe was made from"
            )
    if recipe.base not in bound or refs[bound[recipe.base]].content != refs[base].content:
        raise MergingError(
            f"the recipe's base {recipe.base!r} is not the base that was loaded ({refs[base].path}); load the recipe's "
            "base"
        )
    return bound
