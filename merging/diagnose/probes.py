"""Diagnostics that look at what models give for unlabelled inputs: weight disentanglement, activations after a merge.

Inputs come from the caller, inside a callable on the live model. Every probe leaves the live model as the base.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from merging.diagnose.activations import Activations, cka, watch_blocks
from merging.diagnose.candidates import Candidates, Progress, plain
from merging.materialize import Materializer
from merging.recipe import MergingError

if TYPE_CHECKING:
    from torch import nn

Outputs = Callable[["nn.Module"], Tensor]
"""What a live model gives for one task's inputs: [rows, classes] logits, or [..., features], the same rows always."""

Distance = Literal["disagreement", "total_variation", "relative"]

COLLAPSED = 0.7
"""A block whose activations vary less than this, against the parents, has collapsed (REPAIR: Jordan et al. 2022,
arXiv 2211.08403, shows such collapse in averaged networks; the number is a rule of thumb)."""

MERGED = "merged"


@dataclass(frozen=True)
class Disentanglement:
    """ξ(λ): how much a task's outputs change when the other task vectors are added too.

    Attributes:
        aliases: the experts that are added.
        lambdas: of all task vectors.
        distance: between two models' outputs.
        errors: alias -> [lambdas] on this task's inputs; nan where outputs are not finite.
    """

    aliases: tuple[str, ...]
    lambdas: tuple[float, ...]
    distance: Distance
    errors: Mapping[str, tuple[float, ...]]

    @property
    def means(self) -> tuple[float, ...]:
        """[lambdas] mean over the tasks."""
        return tuple(sum(column) / len(column) for column in zip(*self.errors.values(), strict=True))

    def as_data(self) -> dict[str, Any]:
        """Plain JSON."""
        errors = [{"expert": alias, "error": [plain(each) for each in row]} for alias, row in self.errors.items()]
        return {
            "experts": list(self.aliases),
            "lambda": list(self.lambdas),
            "distance": self.distance,
            "errors": errors,
            "mean": [plain(each) for each in self.means],
        }

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Disentanglement:
        """The inverse of :meth:`as_data`."""
        errors = {
            row["expert"]: tuple(math.nan if each is None else float(each) for each in row["error"])
            for row in data["errors"]
        }
        return Disentanglement(tuple(data["experts"]), tuple(data["lambda"]), data["distance"], errors)


@dataclass(frozen=True)
class BlockCheck:
    """One block's output after a merge.

    Attributes:
        name: of the live module.
        variances: model -> total variance over rows, summed over features; ``merged`` among them.
        similarity: (model, model) -> linear CKA in [0, 1]; nan where one does not vary at all.
        finite: whether every value was, of every model.
    """

    name: str
    variances: Mapping[str, float]
    similarity: Mapping[tuple[str, str], float]
    finite: bool
    parents: tuple[str, ...]

    @property
    def variance_ratio(self) -> float:
        """Of the merge, against the mean of its parents; nan where those do not vary."""
        mean = sum(self.variances[each] for each in self.parents) / len(self.parents)
        return self.variances[MERGED] / mean if mean > 0.0 else math.nan


@dataclass(frozen=True)
class ActivationCheck:
    """What a merge does to the activations. Built by :func:`check_activations`.

    Attributes:
        coefficients: alias -> λ of the merge that was looked at.
        blocks: in the order of the model.
        rows: how many rows (tokens, patches) each block gave.
    """

    coefficients: Mapping[str, float]
    blocks: tuple[BlockCheck, ...]
    rows: int

    @property
    def finite(self) -> bool:
        """Whether no block gave NaN or infinity: one that did makes the merge useless."""
        return all(each.finite for each in self.blocks)

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Blocks whose variance ratio is below :data:`COLLAPSED`."""
        return tuple(each.name for each in self.blocks if each.variance_ratio < COLLAPSED)

    def as_data(self) -> dict[str, Any]:
        """Plain JSON."""
        blocks = [
            {
                "block": each.name,
                "finite": each.finite,
                "variance_ratio": plain(each.variance_ratio),
                "variance": [{"model": name, "value": plain(value)} for name, value in each.variances.items()],
                "cka": [{"models": list(pair), "value": plain(value)} for pair, value in each.similarity.items()],
            }
            for each in self.blocks
        ]
        merge = [{"expert": alias, "coefficient": value} for alias, value in self.coefficients.items()]
        return {"merge": merge, "rows": self.rows, "finite": self.finite, "blocks": blocks}


def disentanglement(
    materializer: Materializer,
    outputs: Mapping[str, Outputs],
    *,
    lambdas: Sequence[float] = (0.5, 1.0),
    distance: Distance = "disagreement",
    on_point: Progress | None = None,
) -> Disentanglement:
    """ξ_t(λ) = E_x dist(f(x; θ0 + λτ_t), f(x; θ0 + λ Σ τ)) on task t's own inputs (Ortiz-Jimenez et al. 2023, arXiv
    2305.12827): 0 where no task vector disturbs another's task.

    Args:
        materializer: with its live model.
        outputs: expert -> what the live model gives for this expert's inputs, the same inputs in the same order every
            time; at least two experts. Text: the logits at answer tokens, say.
        lambdas: λ of every task vector.
        distance: ``disagreement``: share of rows whose largest entry is another (the paper's); ``total_variation``:
            of the rows' softmax; ``relative``: ‖f − g‖_F/‖f‖_F of the outputs as they are, f of the first and g of
            the second model above, for what is no classifier.
        on_point: told of progress.

    Raises:
        MergingError: an unknown expert, fewer than two, outputs that change their shape, or one column only where the
            distance compares columns.
    """
    candidates = Candidates(materializer)
    chosen = candidates.known(outputs, least=2)
    values = tuple(sorted({float(each) for each in lambdas}))
    if not values or not all(map(math.isfinite, values)) or distance not in _DISTANCES:
        raise MergingError(
            f"expected finite λ and a distance of {', '.join(_DISTANCES)}, found {list(lambdas)} and {distance!r}"
        )
    errors: dict[str, list[float]] = {alias: [] for alias in chosen}
    total, done = len(values) * (len(chosen) + 1), 0

    def told(what: str) -> None:
        nonlocal done
        done += 1
        if on_point is not None:
            on_point(done, total, what)

    with candidates.restored():
        for value in values:
            finite = candidates.add(dict.fromkeys(chosen, value))
            together = {alias: _given(outputs[alias], materializer, finite) for alias in chosen}
            told(f"all, λ {value:g}")
            for alias in chosen:
                alone = _given(outputs[alias], materializer, candidates.add({alias: value}))
                errors[alias].append(_distance(distance, together[alias], alone, alias))
                told(f"{alias}, λ {value:g}")
    return Disentanglement(chosen, values, distance, {alias: tuple(found) for alias, found in errors.items()})


def check_activations(
    materializer: Materializer,
    run: Callable[[nn.Module], object],
    coefficients: Mapping[str, float] | None = None,
    *,
    rows: int = 256,
    on_point: Progress | None = None,
) -> ActivationCheck:
    """How the activations of θ0 + Σ λ_t·τ_t differ from its parents': variance and CKA block by block, NaN, infinity.

    A block is a numbered module of a stack (a transformer layer); its output is a tensor, or a tuple's first. Of
    pictures between convolutions the second axis counts as features, otherwise the last.
    Every model runs once. Kept are, for each block, a [features] sum, and ``rows`` rows of one model at a time.

    Args:
        materializer: with its live model.
        run: runs the live model on a few inputs, the same ones every time, without generating.
        coefficients: expert -> λ; the mean of all experts if None.
        rows: how many rows CKA is taken over, drawn evenly from all that there are, at least 2.
        on_point: told of progress.

    Raises:
        MergingError: an unknown expert, no blocks, a run that never gets to them, or other rows from model to model.
    """
    candidates = Candidates(materializer)
    parents = candidates.known(None if coefficients is None else coefficients)
    merge = dict(coefficients) if coefficients is not None else dict.fromkeys(parents, 1.0 / len(parents))
    if rows < 2:
        raise MergingError(f"expected at least 2 rows to compare activations over, found {rows}")
    base = materializer.sources.base
    models: dict[str, Mapping[str, float]] = {base: {}, **{each: {each: 1.0} for each in parents}, MERGED: merge}
    if len(models) < len(parents) + 2:
        raise MergingError(f"expected no expert called {MERGED!r}; give it another alias")
    found: dict[str, dict[str, Activations]] = {}
    with candidates.restored():
        for name, mixture in models.items():
            if not candidates.add(mixture):
                raise MergingError(f"the weights of {name} are not finite; there is nothing to run")
            with torch.no_grad(), watch_blocks(materializer.model, rows) as blocks:
                run(materializer.model)
            found[name] = blocks.finished()
            if on_point is not None:
                on_point(len(found), len(models), name)
    return _compared(found, parents, merge)


def _compared(
    found: Mapping[str, Mapping[str, Activations]], parents: Collection[str], merge: Mapping[str, float]
) -> ActivationCheck:
    first = next(iter(found.values()))
    if not first:
        raise MergingError(
            "expected a run through the model's blocks, found that none of them was called; let the callable run the "
            "live model that it is given"
        )
    for name, blocks in found.items():
        if {block: each.rows for block, each in blocks.items()} != {block: each.rows for block, each in first.items()}:
            raise MergingError(
                f"expected the same rows from every model, found others from {name!r}; run the same inputs, and do not "
                "generate"
            )
    checks = [
        BlockCheck(
            block,
            {name: blocks[block].variance for name, blocks in found.items()},
            {(a, b): cka(found[a][block].gram, found[b][block].gram) for a, b in combinations(found, 2)},
            all(blocks[block].finite for blocks in found.values()),
            tuple(parents),
        )
        for block in first
    ]
    return ActivationCheck(merge, tuple(checks), next(iter(first.values())).rows)


def _given(outputs: Outputs, materializer: Materializer, finite: bool) -> Tensor:
    if not finite:
        return torch.full((1, 2), math.nan)
    with torch.no_grad():
        found = outputs(materializer.model)
    if not isinstance(found, Tensor) or found.ndim < 1 or not found.numel():
        raise MergingError(f"expected outputs as a tensor with at least one row, found {found!r:.80}")
    # A copy: the callable may hand out memory that the next model writes to.
    return found.detach().reshape(-1, found.shape[-1]).to("cpu", torch.float64, copy=True)


def _disagreement(one: Tensor, other: Tensor) -> float:
    return float((one.argmax(1) != other.argmax(1)).double().mean())


def _total_variation(one: Tensor, other: Tensor) -> float:
    return float((one.softmax(1) - other.softmax(1)).abs().sum(1).mean() / 2.0)


def _relative(one: Tensor, other: Tensor) -> float:
    size = float(other.norm())
    return float((one - other).norm()) / size if size else math.nan


_DISTANCES: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "disagreement": _disagreement,
    "total_variation": _total_variation,
    "relative": _relative,
}


def _distance(name: Distance, together: Tensor, alone: Tensor, alias: str) -> float:
    if not (together.isfinite().all() and alone.isfinite().all()):
        return math.nan
    if together.shape != alone.shape:
        raise MergingError(
            f"expected the same outputs for {alias!r} every time, found {list(together.shape)} and "
            f"{list(alone.shape)}; give the logits of fixed inputs, not of generated text"
        )
    if together.shape[1] < 2 and name != "relative":
        raise MergingError(
            f"expected at least two columns to compare by {name}, found one in the outputs for {alias!r}; use distance "
            "'relative'"
        )
    return _DISTANCES[name](together, alone)
