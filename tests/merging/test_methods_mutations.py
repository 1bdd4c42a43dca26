"""Would the comparison with the reference notice? One stage of the pipeline is broken at a time; it must, each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from comparison import backend, differing, expected
from torch import Tensor

from merging.methods import pipeline, sparse

TRIMS = ("ties", "breadcrumbs", "breadcrumbs_ties")
DROPS = ("dare_linear", "dare_ties", "della_linear", "della")
ELECTING = ("ties", "dare_ties", "della", "breadcrumbs_ties")
LINEAR = ("dare_linear", "della_linear", "breadcrumbs")
BOTH = ("paper", "mergekit")

agreement, elected, keys, sparsified, tie_keys = (
    pipeline.agreement,
    pipeline.elected,
    pipeline.keys,
    pipeline.sparsified,
    pipeline.tie_keys,
)


@dataclass(frozen=True)
class Mutation:
    """A broken stage.

    Attributes:
        what: it is that no longer happens.
        module, stage: the function that is replaced.
        broken: what replaces it.
        methods, conventions: where that must show.
        shared: parameters without which the stage has nothing to do.
        coefficients: of the sources.
    """

    what: str
    module: Any
    stage: str
    broken: Callable[..., Any]
    methods: tuple[str, ...]
    conventions: tuple[str, ...] = BOTH
    shared: tuple[tuple[str, Any], ...] = ()
    coefficients: tuple[float, ...] = (0.5, -0.75, 1.5)


def everything_at_the_threshold(magnitude: Tensor, threshold: Tensor, last: Tensor, key: Tensor | None) -> Tensor:
    return magnitude >= threshold


def nothing_at_the_threshold(magnitude: Tensor, threshold: Tensor, last: Tensor, key: Tensor | None) -> Tensor:
    return magnitude > threshold


def without_outliers(inputs: Any, base: Tensor, slot: int, plan: Any, key: Tensor | None) -> Tensor:
    """As a trim: only the small ones are dropped."""
    return sparsified(inputs, base, slot, plan._replace(sparsify="trim"), key)


def not_unbiased(inputs: Any, base: Tensor, slot: int, plan: Any, key: Tensor | None) -> Tensor:
    return sparsified(inputs, base, slot, plan._replace(unbiased=False), key)


MUTATIONS = (
    Mutation("trimming", pipeline, "masked", lambda delta, keep: delta, TRIMS),
    Mutation("trimming the largest", pipeline, "sparsified", without_outliers, ("breadcrumbs", "breadcrumbs_ties")),
    Mutation("dropping", pipeline, "masked", lambda delta, keep: delta, DROPS),
    Mutation("keeping few of the equal", pipeline, "above", everything_at_the_threshold, TRIMS),
    Mutation("keeping some of the equal", pipeline, "above", nothing_at_the_threshold, TRIMS),
    Mutation("the order of the equal", pipeline, "tie_keys", lambda *args: -1 - tie_keys(*args), TRIMS),
    Mutation("hashing that order", pipeline, "tie_keys", lambda inputs, plan: inputs.indices, TRIMS, ("paper",)),
    Mutation("seeding masks", pipeline, "keys", lambda index, seed: keys(index, seed * 0), DROPS),
    Mutation(
        "probabilities by rank", pipeline, "keep_probability", lambda rank, low, step: low + 0 * rank, DROPS[2:], BOTH
    ),
    Mutation("electing by the sum", pipeline, "elected", lambda total, positive: torch.ones_like(total), ELECTING),
    Mutation("leaving out who disagrees", pipeline, "agreement", lambda term, sign: term * sign, ELECTING),
    Mutation(
        "the rule for sums of zero",
        pipeline,
        "elected",
        lambda total, positive: elected(total, not positive),
        ELECTING,
        shared=(("rescale", False),),
        coefficients=(1.0, 1.0, -0.5),
    ),
    Mutation(
        "matching the L1 norm",
        sparse,
        "l1_ratio",
        lambda *args: 1.0,
        (*TRIMS, *DROPS),
        ("mergekit",),
        (("rescale", True),),
    ),
    Mutation("matching it after trims", sparse, "l1_ratio", lambda *args: 1.0, TRIMS, ("paper",), (("rescale", True),)),
    Mutation(
        "dividing by the density",
        pipeline,
        "rescaled",
        lambda delta, factor: delta,
        DROPS[:2],
        ("paper",),
        coefficients=(1.0, 1.0, 1.0),
    ),
    Mutation("dividing by the probability", pipeline, "sparsified", not_unbiased, DROPS[2:], ("paper",)),
    Mutation("coefficients", pipeline, "rescaled", lambda delta, factor: delta * factor.abs(), (*TRIMS, *DROPS)),
    Mutation(
        "normalising", pipeline, "normalised", lambda total, weights: total, ELECTING, shared=(("normalize", True),)
    ),
    Mutation(
        "normalising by those that agree",
        pipeline,
        "normalised",
        lambda total, weights: total / len(weights),
        ELECTING,
        shared=(("normalize", True),),
    ),
    Mutation(
        "normalising sums", sparse, "normalized", lambda numbers, what: numbers, LINEAR, shared=(("normalize", True),)
    ),
    Mutation("scaling", pipeline, "scaled", lambda total, scale: total, (*TRIMS, *DROPS), shared=(("scale", 0.7),)),
)
CASES = [
    pytest.param(mutation, method, convention, id=f"{mutation.what}-{method}-{convention}")
    for mutation in MUTATIONS
    for method in mutation.methods
    for convention in mutation.conventions
]


def disagreement(mutation: Mutation, method: str, convention: str) -> int:
    """How many judged elements of an example are off."""
    generator = torch.Generator().manual_seed(11)

    def coarse(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (20, 25), generator=generator) / 128.0

    base = coarse(-20, 21)
    sources = [base + coarse(-3, 4) for _ in mutation.coefficients]
    own: list[dict[str, Any]] = [{"coefficient": c, "density": 0.6} for c in mutation.coefficients]
    for values in own:
        values |= {"epsilon": 0.3} if method.startswith("della") else {}
        values |= {"gamma": 0.1} if method.startswith("breadcrumbs") else {}
    shared = {"convention": convention, **dict(mutation.shared)}
    wanted = expected(method, base, sources, own, shared)
    found = differing(backend(method, base, sources, own, shared), wanted, 2.0**-21)
    assert wanted.doubtful.mean() < 0.01
    return int(found.sum())


@pytest.mark.parametrize(("mutation", "method", "convention"), CASES)
def test_a_broken_stage_is_noticed(
    mutation: Mutation, method: str, convention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disagreement(mutation, method, convention) == 0
    monkeypatch.setattr(mutation.module, mutation.stage, mutation.broken)
    assert disagreement(mutation, method, convention) > 0
