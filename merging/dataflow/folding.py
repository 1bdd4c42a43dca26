"""Scales of hops into the weights: the same model without them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import replace

from merging.dataflow.writers import find_writers
from merging.methods.registry import canonical
from merging.recipe import Assignment, MergingError, Recipe, scales_of
from merging.restack import Restacked, for_recipe
from merging.sources import Sources

MOST = 1e30
"""The largest product of scales, and one over it the smallest: float32 and bfloat16 end at 3e38."""


def writer_factors(scales: Sequence[float]) -> tuple[float, ...]:
    """[hops] what is added to the residual stream within each hop is multiplied by: 1/(s_0·…·s_i).

    Args:
        scales: [hops] what the hidden state is multiplied by before each, finite and > 0.

    Raises:
        MergingError: a product that is no number that can be divided by.
    """
    products = list(itertools.accumulate(scales, operator.mul))
    for number, product in enumerate(products):
        if not 1 / MOST <= product <= MOST:
            raise MergingError(
                f"the scales up to block {number} have the product {product:g}; expected one between {1 / MOST:g} and "
                f"{MOST:g}: the weights have to hold what they are divided by it. Use scales nearer to 1"
            )
    return tuple(1.0 / product for product in products)


def folded(recipe: Recipe, sources: Sources) -> Recipe:
    """The same model as a recipe without scales: what is exported.

    Let x_i be the hidden state behind block i, f_i what the block adds to it, and s_i the scale of its hop:
    x_i = s_i·x_{i−1} + f_i(s_i·x_{i−1}). With C_i = s_0·…·s_i and y_i = x_i/C_i that is
    y_i = y_{i−1} + f_i(C_i·y_{i−1})/C_i. In a pre-norm model f_i reads the stream through a norm, and a norm forgets a
    factor, so f_i(C_i·y) = f_i(y): an ordinary block whose last matrices are divided by C_i. The final norm takes C
    out of the last y.

    What a norm forgets, it forgets up to its epsilon: RMSNorm(C·y) = y/√(mean(y²) + ε/C²), with the mean over a token's
    hidden state. So the folded model is, exactly, the one that multiplies the hidden state and whose epsilons are
    multiplied along, ε·C². One that leaves them as they are, as EvoLLM's released model does, differs by a share of
    ε·|1/C² − 1|/(2·mean(y²)) in each norm. Measured at mean(y²) = 1 and ε = 1e-6, relative to the largest logit: within
    2e-5 for C from 0.25 upwards (7e-7 at 10, 1.2e-5 at 0.3, 1.2e-4 at 0.1), 1 % at 0.01, 50 % at 0.001. A first hop is
    the worst place, since embeddings are small (mean square 0.01 in our zoo, below ε in Mistral 7B): there a scale of
    0.4 moves logits by 0.5 %. What is searched here, scored and exported is the folded function throughout (see
    :mod:`merging.dataflow`), so no scale makes an export another model than the one that was scored.

    Args:
        recipe: with ``layers``. Where its scales are None or 1, it is returned without them.
        sources: the models that it is made from, not restacked.

    Raises:
        MergingError: scales that are no finite numbers above 0, one for each block, or whose product leaves the range
            of numbers; a block whose residual writers are not copied from one model (``passthrough``); an architecture
            that cannot be folded (:func:`merging.dataflow.residual_writers`).
    """
    if recipe.scales is None:
        return recipe
    scales = scales_of(recipe.scales, recipe.layers)
    plain = replace(recipe, scales=None)
    if set(scales) == {1.0}:
        return plain
    view = for_recipe(sources, recipe)
    assert isinstance(view, Restacked)  # scales_of has refused a recipe without layers
    writers = find_writers(view.inner)
    exceptions = dict(recipe.tensors)
    for number, factor in enumerate(writer_factors(scales)):
        if factor != 1.0:
            for name in view.from_block(number, writers):
                assignment = recipe.for_tensor(name, view.layout.group(name))
                exceptions[name] = multiplied(assignment, factor, name)
    return replace(plain, tensors=exceptions)


def multiplied(assignment: Assignment, factor: float, name: str) -> Assignment:
    """What a residual writer is made by, times a factor: of an export, and of a live hop.

    Args:
        assignment: without the factor.
        factor: see :func:`writer_factors`.
        name: of the tensor in the result.

    Raises:
        MergingError: it is not copied from one model.
    """
    spelled = canonical(assignment)
    if spelled.method != "passthrough":
        raise MergingError(
            f"the scales of the recipe are to be folded into {name}, which is merged by {spelled.method}; scales need "
            "blocks that are copied from one model each (method passthrough). Write the merge as a model first, and "
            "take its blocks"
        )
    parameters = dict(spelled.parameters)
    return canonical(
        replace(spelled, parameters=tuple(sorted({**parameters, "scale": float(parameters["scale"]) * factor}.items())))
    )
