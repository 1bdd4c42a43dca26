"""Small problems that RegMean solves, and their solution by another way."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from merging.calibration.contract import Gram
from merging.calibration.given import GivenCalibration, gram_of
from merging.kernel import Task, merge_tensor
from merging.methods import canonical, get
from merging.methods.contract import Values
from merging.pool import Pool
from merging.recipe import Assignment, Value

ALIASES = "abcde"
NAME = "layer.weight"


def assignment(coefficients: Sequence[float], method: str = "regmean", **shared: Value) -> Assignment:
    own = {alias: {"coefficient": c} for alias, c in zip(ALIASES, coefficients, strict=False)}
    return Assignment.of(method, own, calibration="sha256:here", **shared)


def pool_of(
    base: Tensor, sources: Sequence[Tensor], grams: Sequence[Gram | None], aliases: Sequence[str] | None = None
) -> Pool:
    """Sources called a, b, c, …, their contents too; the pool has those that are named."""
    weights = {"base": base, **dict(zip(ALIASES, sources, strict=False))}
    tables = {alias: {} if gram is None else {NAME: gram} for alias, gram in zip(ALIASES, grams, strict=False)}
    pool = Pool("base", tuple(aliases or ALIASES[: len(sources)]), (NAME,), lambda alias, _: weights[alias])
    pool.calibration = GivenCalibration(tables, fingerprint="sha256:here")
    return pool


def run(pool: Pool, spelled: Assignment, dtype: torch.dtype = torch.float64) -> Tensor:
    out = torch.full(pool.base(NAME).shape, math.nan, dtype=dtype)
    merge_tensor(NAME, Task(get(spelled.method), Values.of(spelled), pool), out)
    return out


def merge(
    sources: Sequence[Tensor],
    grams: Sequence[Gram | None],
    coefficients: Sequence[float] | None = None,
    *,
    base: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    **shared: Value,
) -> Tensor:
    """The merged weight as the backend writes it."""
    spelled = canonical(assignment(coefficients or [1.0] * len(sources), **shared))
    origin = torch.zeros_like(sources[0]) if base is None else base
    return run(pool_of(origin, sources, grams, [alias for alias, _ in spelled.sources]), spelled, dtype)


def problem(seed: int, tokens: Sequence[int], out: int = 6, width: int = 9) -> tuple[list[Tensor], list[Tensor]]:
    """Weights [out, in] near each other, and the inputs [tokens, in] of each."""
    random = torch.Generator().manual_seed(seed)
    start = torch.randn(out, width, generator=random)
    weights = [start + 0.1 * torch.randn(out, width, generator=random) for _ in tokens]
    spread = torch.rand(width, generator=random) + 0.1
    return weights, [torch.randn(rows, width, generator=random) * spread for rows in tokens]


def moments(inputs: Sequence[Tensor]) -> list[Gram]:
    return [gram_of(each, "x") for each in inputs]


def known(inputs: Sequence[Tensor]) -> list[Gram | None]:
    """None where no input is."""
    return [gram_of(each, "x") if each.shape[-2] else None for each in inputs]


def regression(
    weights: Sequence[Tensor], inputs: Sequence[Tensor], shares: Sequence[float], alpha: float, ridge: float
) -> np.ndarray:
    """W by numpy.linalg.lstsq of the one stacked problem: α and the ridge are further inputs."""
    width = weights[0].shape[1]
    xs = [each.double().numpy() for each in inputs]
    grams = [x.T @ x / max(1, len(x)) for x in xs]
    added = ridge * float(np.mean([np.trace(gram) / width for gram in grams]))
    rows, wanted = [], []
    for weight, x, gram, share in zip(weights, xs, grams, shares, strict=True):
        whole = np.concatenate(
            [
                math.sqrt(alpha / max(1, len(x))) * x,
                math.sqrt(1 - alpha) * np.diag(np.sqrt(np.diag(gram))),
                math.sqrt(added) * np.eye(width),
            ]
        )
        rows.append(math.sqrt(share) * whole)
        wanted.append(rows[-1] @ weight.double().numpy().T)
    found, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=None)
    result: np.ndarray = found.T
    return result
