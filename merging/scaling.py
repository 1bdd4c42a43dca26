"""Scalings of a finished merge, on top of any method: LiNeS by depth, ExPO beyond the result.

Both multiply ``delta_scale``, which every method has: θ = θ0 + delta_scale·(merged − θ0), before the one rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from merging.layout import Layout
from merging.recipe import Assignment, Group, MergingError, Recipe


def lines(recipe: Recipe, layout: Layout, alpha: float, beta: float) -> Recipe:
    """LiNeS: shallow layers keep less of what was merged, deep ones more (Wang et al. 2024, arXiv 2410.17146).

    Block l of the L of its stack is scaled by s_l = α + β·l/(L − 1), what lies outside the blocks by α. With β = 1 − α,
    as the paper edits one fine-tuned model, the last block keeps all. A stack of one block has s = α + β: its only
    block is the last.

    Args:
        recipe: any.
        layout: of the result: of the base, or of the restacked sources where the recipe has ``layers``.
        alpha, beta: α and β; finite.

    Raises:
        MergingError: a number that is not finite.
    """
    _check("alpha", alpha)
    _check("beta", beta)

    def factor(group: Group) -> float:
        if group.depth is None:
            return alpha
        last = layout.depth(group.stack) - 1
        return alpha + beta * (group.depth / last if last > 0 else 1.0)

    return _scaled(recipe, factor, layout)


def expo(recipe: Recipe, alpha: float) -> Recipe:
    """ExPO: go on in the merge's direction, θ = merged + α·(merged − θ0) (Zheng et al. 2024, arXiv 2404.16792).

    Args:
        recipe: any.
        alpha: α; finite. 0 changes nothing, −1 is the base.

    Raises:
        MergingError: a number that is not finite.
    """
    _check("alpha", alpha)
    return _scaled(recipe, lambda _: 1.0 + alpha, None)


def _check(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MergingError(f"expected a finite number for {name}, found {value!r}")


def _scaled(recipe: Recipe, factor: Callable[[Group], float], layout: Layout | None) -> Recipe:
    """The recipe with every assignment's ``delta_scale`` multiplied by the factor of its group."""

    def scaled(assignment: Assignment, by: float) -> Assignment:
        parameters = dict(assignment.parameters)
        return replace(
            assignment,
            parameters=tuple(
                sorted({**parameters, "delta_scale": float(parameters.get("delta_scale", 1.0)) * by}.items())
            ),
        )

    outside = Group("other")
    return replace(
        recipe,
        groups={group: scaled(each, factor(group)) for group, each in recipe.groups.items()},
        tensors={
            name: scaled(each, factor(outside if layout is None else layout.group(name)))
            for name, each in recipe.tensors.items()
        },
    )
