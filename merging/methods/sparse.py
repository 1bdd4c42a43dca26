"""Methods on sparsified task vectors: TIES, DARE, DELLA and Breadcrumbs, with and without sign election."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from merging.masks import last_kept, seed32
from merging.methods.arithmetic import normalized, without_zeros
from merging.methods.contract import Elements, Elementwise, Inputs, Needs, Parameter, Values
from merging.methods.pipeline import Divide, Plan, Sparsify, pipeline, sparsified, tie_keys
from merging.pool import Pool, pieces, tree_sum
from merging.recipe import Assignment, MergingError
from merging.selection import (
    ALL_KEYS,
    EVERYTHING,
    NO_KEYS,
    NOTHING,
    Cut,
    Order,
    cuts,
    is_tied,
    model_cuts,
    row_ranks,
    row_width,
)

CONVENTION = Parameter(
    "convention", str, "whose details where the two differ", default="paper", choices=("paper", "mergekit")
)
COEFFICIENT = Parameter("coefficient", float, "coefficient λ_t of this source's task vector", per_source=True)
SCALE = Parameter("scale", float, "factor on the merged task vector", default=1.0)
SEED = Parameter("seed", int, "of the element keys that draw masks and break ties", default=0, low=0, high=2**32 - 1)

_CHUNK = 1 << 16
_LARGEST_INVERSE = float(1 << 24)  # 1/P of what is kept: keys are compared with P on a grid of 2⁻²⁴
_SMALLEST_SUM = 1e-7  # mergekit leaves a task vector alone whose L1 norm is below this


def density(default: float) -> Parameter:
    """The kept fraction of each source's task vector."""
    return Parameter("density", float, "kept fraction ρ_t of this source", default, 0.0, 1.0, per_source=True)


def switch(name: str, default: bool, doc: str) -> Parameter:
    """A shared yes or no."""
    return Parameter(name, bool, doc, default=default)


NORMALIZE_SUM = switch("normalize", False, "divide by the sum of the coefficients")
NORMALIZE_MEAN = switch(
    "normalize", True, "divide by how many sources agree (paper) or by the sum of their coefficients (mergekit)"
)


class Part(NamedTuple):
    """What the kernel needs to know of one source, besides its factor.

    Attributes:
        below, above: it keeps what belongs to the first cut and not to the second; probabilities for ``ranked``.
        seed: of its keys.
        last: the last key that a random mask keeps.
        factor: of what is kept, by convention; an L1 ratio comes on top.
        field: ranks, for ``ranked``.
    """

    below: Cut = EVERYTHING
    above: Cut = NOTHING
    seed: int = 0
    last: int = ALL_KEYS
    factor: float = 1.0
    field: Tensor | None = None


class SparseMethod(Elementwise):
    """θ = θ0 + s·combine(f_t·sparsify(τ_t)): what the methods of this module share.

    Class attributes:
        sparsify: see :class:`merging.methods.pipeline.Plan`.
        elect: drop what disagrees with the sign of the sum.
    """

    needs: ClassVar[Needs] = Needs(base=True, minimum=0)
    symmetric: ClassVar[bool] = True
    eager_ns: ClassVar[float] = 15.0
    sparsify: ClassVar[Sparsify]
    elect: ClassVar[bool]

    def part(self, pool: Pool, name: str, number: int, values: Values) -> Part:
        """How one source is sparsified."""
        raise NotImplementedError

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See :meth:`merging.methods.contract.Elementwise.prepare`."""
        parts = [self.part(pool, name, number, values) for number in range(len(values.sources))]
        plan = self._plan(values, parts)
        shared_seed = seed32(int(values.shared["seed"]), "", name, "ties")
        coefficients = values.column("coefficient")
        factors = self._factors(values)
        numbers: list[float] = []
        integers: list[int] = []
        size = 0.0
        for number, part in enumerate(parts):
            factor = factors[number] * part.factor * self._l1(pool, name, number, values, part, plan, shared_seed)
            size += abs(factor)
            numbers += (factor, part.below.threshold, part.above.threshold, coefficients[number])
            integers += (part.seed, part.below.key, part.above.key, part.last)
        return Elements(
            pipeline,
            (plan,),
            (*numbers, float(values.shared["scale"])),
            (*integers, shared_seed),
            sources=tuple(range(len(parts))),
            indexed=plan.tied or self.sparsify in {"drop", "ranked"},
            fields=tuple(part.field for part in parts if part.field is not None),
            gain=self._gain(plan, size * abs(float(values.shared["scale"]))),
        )

    def reduce(self, assignment: Assignment) -> Assignment:
        """Sources of coefficient 0 are left out; without any, or with scale 0, it is the base."""
        values = Values.of(assignment)
        self._factors(values)  # refuses a zero sum
        kept = without_zeros(assignment, values) if values.shared["scale"] != 0.0 else ()
        if kept:
            return replace(assignment, sources=kept)
        defaults = {each.name: each.default for each in self.parameters if not each.per_source}
        return Assignment.of(
            assignment.method, {}, **{name: each for name, each in defaults.items() if each is not None}
        )

    def _plan(self, values: Values, parts: list[Part]) -> Plan:
        cuts = [each for part in parts for each in (part.below, part.above)] if self.sparsify in _BY_CUTS else []
        mergekit = values.shared["convention"] == "mergekit"
        divide: Divide = "none"
        if self.elect and values.shared["normalize"]:
            divide = "coefficients" if mergekit else "count"
        return Plan(
            sparsify=self.sparsify,
            tied=any(is_tied(each) for each in cuts),
            hashed=not mergekit,
            unbiased=self.sparsify == "ranked" and bool(values.shared["rescale"]) and not mergekit,
            elect=self.elect,
            zero_is_positive=mergekit,
            divide=divide,
        )

    def _gain(self, plan: Plan, size: float) -> float:
        if plan.divide == "coefficients":  # of those that agree: coefficients of two signs may nearly cancel
            return math.inf
        return 1.0 + 2.0 * size * (_LARGEST_INVERSE if plan.unbiased else 1.0)

    def _factors(self, values: Values) -> tuple[float, ...]:
        coefficients = values.column("coefficient")
        if self.elect or not values.shared["normalize"] or not coefficients:
            return coefficients
        if values.shared["convention"] == "mergekit" and abs(sum(coefficients)) < 1e-8:
            return coefficients
        return normalized(coefficients, self.name)

    def _l1(self, pool: Pool, name: str, number: int, values: Values, part: Part, plan: Plan, seed: int) -> float:
        """Σ|τ| / Σ|τ̂|, where the convention rescales so."""
        matched = values.shared["rescale"] and (self.sparsify in _BY_CUTS or values.shared["convention"] == "mergekit")
        if not matched:
            return 1.0
        own = plan._replace(unbiased=False)
        key = (self.name, "l1", name, number, own, part._replace(field=None), seed)
        return float(pool.lately(key, lambda: l1_ratio(pool, name, number, own, part, seed)))


_BY_CUTS = frozenset({"trim", "tails"})


def l1_ratio(pool: Pool, name: str, number: int, plan: Plan, part: Part, seed: int) -> float:
    """Σ|τ| / Σ|τ̂| of a tensor in float64, by a fixed tree; 1 where either is below 1e-7 (mergekit's guard).

    The one reduction that a candidate may need; it is remembered for every cut.
    """
    numbers = torch.tensor([1.0, part.below.threshold, part.above.threshold, 1.0, 1.0], dtype=torch.float64)
    integers = torch.tensor([part.seed, part.below.key, part.above.key, part.last, seed], dtype=torch.int32)
    base, source = pool.base(name).reshape(-1).cpu(), pool.source(name, number).reshape(-1).cpu()
    before, after = [], []
    for start, stop in pieces(base.numel(), _CHUNK):
        index = torch.arange(start, stop).to(torch.int32)
        fields = () if part.field is None else (part.field[start:stop],)
        piece = Inputs(base[start:stop], (source[start:stop],), numbers, integers, index, fields)
        wide = piece.base.to(torch.float64)
        before.append(tree_sum((piece.sources[0].to(torch.float64) - wide).abs()))
        key = tie_keys(piece, plan) if plan.tied else None
        after.append(tree_sum(sparsified(piece, wide, 0, plan, key).abs()))
    total, left = float(np.sum(before)), float(np.sum(after))
    return 1.0 if min(total, left) < _SMALLEST_SUM else total / left


class Ties(SparseMethod):
    """Trim, elect, merge what agrees (Yadav et al. 2023, arXiv 2306.01708, algorithm 1).

    Trim keeps the ρ_t·n largest |τ_t| of each tensor (``trim: model``: of the whole model, as the paper's code does).
    Elect: γ = sgn Σ_t λ_t·τ̂_t. Merge: the mean of λ_t·τ̂_t over the sources that agree with γ.

    paper: k = round(ρ·n); equal |τ| at the threshold are kept by hashed key; the mean divides by the number of sources
    that agree; where the sum is exactly 0 nothing is elected and the base's weight stays (the authors' code puts the
    whole model's majority sign there, which no single tensor knows). mergekit: k = max(1, int(ρ·n)), equal |τ| by
    index, the mean divides by Σ λ_t of those that agree, a zero sum elects the positive.
    ``normalize: false`` sums instead of averaging. ``rescale`` gives each trimmed task vector its L1 norm back.
    """

    name: ClassVar[str] = "ties"
    formula: ClassVar[str] = "θ = θ0 + scale·mean{λ_t·τ̂_t : sgn τ̂_t·λ_t = γ}, τ̂_t = top-ρ_t(τ_t), γ = sgn Σ λ_t·τ̂_t"
    paper: ClassVar[str] = "Yadav et al. 2023, arXiv 2306.01708"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        COEFFICIENT,
        density(0.2),
        SCALE,
        NORMALIZE_MEAN,
        switch("rescale", False, "give the trimmed task vector its L1 norm back"),
        Parameter(
            "trim", str, "what the kept fraction is a fraction of", default="tensor", choices=("tensor", "model")
        ),
        SEED,
        CONVENTION,
    )
    sparsify: ClassVar[Sparsify] = "trim"
    elect: ClassVar[bool] = True

    def reduce(self, assignment: Assignment) -> Assignment:
        """As every sparse method; mergekit knows no trimming of whole models."""
        shared = dict(assignment.parameters)
        if shared["trim"] == "model" and shared["convention"] == "mergekit":
            raise MergingError("ties has trim: model in the paper's convention only; mergekit trims tensor by tensor")
        return super().reduce(assignment)

    def part(self, pool: Pool, name: str, number: int, values: Values) -> Part:
        """The cut of a tensor, or of the model."""
        kept = float(values.sources[number]["density"])
        seed = int(values.shared["seed"])
        if values.shared["trim"] == "model":
            seeds = pool.once(("seeds", seed), lambda: {each: seed32(seed, "", each, "ties") for each in pool.names})
            total = pool.once("elements", lambda: sum(pool.base(each).numel() for each in pool.names))
            count = round(kept * total)
            cuts = pool.lately(("trim model", number, count, seed), lambda: model_cuts(pool, number, count, seeds))
            return Part(below=cuts[name])
        return Part(below=trim(pool, name, number, kept, values))


def trim(pool: Pool, name: str, number: int, kept: float, values: Values) -> Cut:
    """The cut that keeps a fraction of a tensor's |τ|, by the assignment's convention."""
    numel = pool.base(name).numel()
    if values.shared["convention"] == "mergekit":
        count = numel if kept >= 1.0 else max(1, int(kept * numel)) if kept > 0.0 else 0
        return cuts(pool, name, number, (count,), "index", 0)[0]
    return cuts(pool, name, number, (round(kept * numel),), "hash", _tie_seed(name, values))[0]


def _tie_seed(name: str, values: Values) -> int:
    return seed32(int(values.shared["seed"]), "", name, "ties")


class DareLinear(SparseMethod):
    """Drop at random and rescale, then add (Yu et al. 2023, arXiv 2311.03099).

    Every element of τ_t is kept with probability ρ_t, by the element's own key: masks of larger densities contain those
    of smaller ones. paper: what is kept is divided by ρ_t (unbiased; the variance is (1−ρ)/ρ·τ²; ρ = 0 gives the base).
    mergekit: it is multiplied by Σ|τ|/Σ|τ̂| over the tensor, one more pass over it.
    """

    name: ClassVar[str] = "dare_linear"
    formula: ClassVar[str] = "θ = θ0 + scale·Σ λ_t·m_t⊙τ_t/ρ_t, m_t ~ Bernoulli(ρ_t) (÷ Σ λ_t)"
    paper: ClassVar[str] = "Yu et al. 2023, arXiv 2311.03099"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        COEFFICIENT,
        density(0.5),
        SCALE,
        NORMALIZE_SUM,
        switch("rescale", True, "make up for what was dropped"),
        SEED,
        CONVENTION,
    )
    sparsify: ClassVar[Sparsify] = "drop"
    elect: ClassVar[bool] = False

    def part(self, pool: Pool, name: str, number: int, values: Values) -> Part:
        """A random mask of the density."""
        kept = float(values.sources[number]["density"])
        seed = seed32(int(values.shared["seed"]), pool.content(number), name, "drop")
        if kept <= 0.0:
            return Part(seed=seed, last=NO_KEYS, factor=0.0)
        exact = values.shared["rescale"] and values.shared["convention"] == "paper"
        return Part(seed=seed, last=last_kept(kept), factor=1.0 / kept if exact else 1.0)


class DareTies(DareLinear):
    """DARE's drop and rescale, then TIES' election and disjoint mean (Yu et al. 2023, arXiv 2311.03099, §4).

    The conventions of both: see ``dare_linear`` for the rescaling and ``ties`` for the election and the mean.
    """

    name: ClassVar[str] = "dare_ties"
    formula: ClassVar[str] = "θ = θ0 + scale·mean{λ_t·τ̂_t that agree with sgn Σ λ_t·τ̂_t}, τ̂_t = m_t⊙τ_t/ρ_t"
    parameters: ClassVar[tuple[Parameter, ...]] = tuple(
        NORMALIZE_MEAN if each.name == "normalize" else each for each in DareLinear.parameters
    )
    elect: ClassVar[bool] = True


class DellaLinear(SparseMethod):
    """MagPrune: drop at random, the small ones likelier (Deep et al. 2024, arXiv 2406.11617), then add.

    r is the rank of |τ| within its row (last axis; a vector is one row), 0 for the smallest, 1 for the largest, ½ in a
    row of one; P = (ρ − ε) + 2ε·r is the probability to keep. paper: P is clipped to [0, 1], and each kept element is
    divided by its own P (unbiased where P > 0). mergekit: ρ ± ε must lie inside (0, 1), and the kept elements are
    multiplied by Σ|τ|/Σ|τ̂| over the tensor; ρ ≥ 1 keeps all.
    Ranks take 2 bytes an element and source, once.
    """

    name: ClassVar[str] = "della_linear"
    formula: ClassVar[str] = "θ = θ0 + scale·Σ λ_t·m_t⊙τ_t/P_t, m_t ~ Bernoulli(P_t), P_t = ρ_t − ε_t + 2ε_t·rank"
    paper: ClassVar[str] = "Deep et al. 2024, arXiv 2406.11617"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        COEFFICIENT,
        density(0.7),
        Parameter("epsilon", float, "half width ε of the window of probabilities", 0.07, 0.0, 0.5, per_source=True),
        SCALE,
        NORMALIZE_SUM,
        switch("rescale", True, "make up for what was dropped"),
        SEED,
        CONVENTION,
    )
    sparsify: ClassVar[Sparsify] = "ranked"
    elect: ClassVar[bool] = False

    def part(self, pool: Pool, name: str, number: int, values: Values) -> Part:
        """Ranks, and the line from the smallest's probability to the largest's."""
        kept, window = (float(values.sources[number][each]) for each in ("density", "epsilon"))
        if values.shared["convention"] == "mergekit":
            if kept >= 1.0 or kept <= 0.0:
                window = 0.0
            elif not 0.0 < kept - window <= kept + window < 1.0:
                raise MergingError(
                    f"{self.name} in mergekit's convention needs density − epsilon > 0 and density + epsilon < 1, "
                    f"found density {kept:g} and epsilon {window:g}; narrow epsilon, or use convention: paper"
                )
        width = row_width(tuple(pool.base(name).shape))
        step = 2.0 * window / (width - 1) if width > 1 else 0.0
        lowest = kept - window if width > 1 else kept
        return Part(
            below=Cut(lowest, ALL_KEYS),
            above=Cut(step, NO_KEYS),
            seed=seed32(int(values.shared["seed"]), pool.content(number), name, "drop"),
            field=pool.once(("ranks", name, number), lambda: row_ranks(pool, name, number)),
        )


class Della(DellaLinear):
    """DELLA: MagPrune, then elect signs and average what agrees (Deep et al. 2024, arXiv 2406.11617).

    See ``della_linear`` for the drop and ``ties`` for the election and the mean, with their conventions.
    """

    name: ClassVar[str] = "della"
    formula: ClassVar[str] = "θ = θ0 + scale·mean{λ_t·τ̂_t that agree with sgn Σ λ_t·τ̂_t}, τ̂_t = m_t⊙τ_t/P_t"
    parameters: ClassVar[tuple[Parameter, ...]] = tuple(
        NORMALIZE_MEAN if each.name == "normalize" else each for each in DellaLinear.parameters
    )
    elect: ClassVar[bool] = True


class Breadcrumbs(SparseMethod):
    """Drop the outliers and the crumbs of every task vector, then add (Davari & Belilovsky 2023, arXiv 2312.06795).

    Of |τ| in ascending order the γ·n largest are dropped, then the smallest until ρ·n are left.
    paper: k = round(ρ·n), ties by hashed key, γ always acts. mergekit: k = int(ρ·n), ties by index, ρ ≥ 1 keeps all,
    whatever γ is. In both int(γ·n) are dropped at the top, so nothing where γ·n < 1.
    """

    name: ClassVar[str] = "breadcrumbs"
    formula: ClassVar[str] = "θ = θ0 + scale·Σ λ_t·τ̂_t, τ̂_t = τ_t without its γ_t·n largest and its smallest (÷ Σ λ_t)"
    paper: ClassVar[str] = "Davari & Belilovsky 2023, arXiv 2312.06795"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        COEFFICIENT,
        density(0.9),
        Parameter("gamma", float, "fraction γ_t of the largest that is dropped", 0.01, 0.0, 1.0, per_source=True),
        SCALE,
        NORMALIZE_SUM,
        switch("rescale", False, "give the trimmed task vector its L1 norm back"),
        SEED,
        CONVENTION,
    )
    sparsify: ClassVar[Sparsify] = "tails"
    elect: ClassVar[bool] = False

    def part(self, pool: Pool, name: str, number: int, values: Values) -> Part:
        """Two cuts: above the first and not above the second."""
        kept, outliers = (float(values.sources[number][each]) for each in ("density", "gamma"))
        numel = pool.base(name).numel()
        mergekit = values.shared["convention"] == "mergekit"
        if mergekit and kept >= 1.0:
            return Part()
        count = int(kept * numel) if mergekit else round(kept * numel)
        top = int(outliers * numel)
        bottom = max(0, numel - count - top)
        end = min(bottom + count, numel if mergekit else numel - top)
        order: Order = "reversed" if mergekit else "hash"
        seed = 0 if mergekit else _tie_seed(name, values)
        below, above = cuts(pool, name, number, (numel - bottom, numel - end), order, seed)
        return Part(below=below, above=above)


class BreadcrumbsTies(Breadcrumbs):
    """Breadcrumbs, then elect signs and average what agrees.

    See ``breadcrumbs`` for the tails and ``ties`` for the election and the mean, with their conventions.
    """

    name: ClassVar[str] = "breadcrumbs_ties"
    formula: ClassVar[str] = "θ = θ0 + scale·mean{λ_t·τ̂_t that agree with sgn Σ λ_t·τ̂_t}, τ̂_t as in breadcrumbs"
    parameters: ClassVar[tuple[Parameter, ...]] = tuple(
        NORMALIZE_MEAN if each.name == "normalize" else each for each in Breadcrumbs.parameters
    )
    elect: ClassVar[bool] = True
