"""Methods that score the elements of a tensor against each other: SCE by variance, PCB and Arcee fusion by importance.

The scores' order statistics are exact. PCB and Arcee fusion use exponentials and logarithms, which libraries round in
their own ways: their results are the same for every cut and number of threads, and may differ in a last digit between
kinds of processors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from merging.masks import keys, seed32
from merging.methods.arithmetic import base_plus
from merging.methods.contract import Context, Elements, Elementwise, Inputs, Method, Needs, Parameter, Values
from merging.methods.pipeline import above, agreement, elected, masked, normalised, scaled, summed
from merging.methods.pointwise import COEFFICIENT, SCALE, deltas_of
from merging.methods.sparse import CONVENTION
from merging.pool import Pool, pieces, tree_sum
from merging.quantiles import order_statistics
from merging.selection import EVERYTHING, Cut, Order, cut_by, is_tied

# Within it torch starts no threads, whose number would decide which elements its vector instructions see.
_CHUNK = 1 << 15
_DEVICE_CHUNK = 1 << 24

_SMALLEST = torch.finfo(torch.float32).tiny  # spreads below it count as equal; not a denormal, which may be flushed


class ScePlan(NamedTuple):
    """What is compiled in.

    Attributes:
        selects: only the elements of a cut by variance take part.
        tied: the cut goes through equal variances, which are told apart by keys.
        mergekit: its keys, its election and its floor of the divisor.
    """

    selects: bool
    tied: bool
    mergekit: bool


class Energies(NamedTuple):
    """What the merge of a tensor needs to know of a selection.

    Attributes:
        cut: where the selected spreads end.
        means: [sources] mean of τ̂² over the tensor.
    """

    cut: Cut
    means: tuple[float, ...]


class Sce(Elementwise):
    """Select, calculate, erase (Wan et al. 2024, arXiv 2408.07990, FuseChat).

    Select: of each tensor, the ρ·n elements that differ most between the sources, by the variance of τ_t over t; other
    elements stay the base's. Calculate: η_t, proportional to the mean of τ̂_t². Erase: what disagrees with
    γ = sgn Σ τ̂_t is left out. θ = θ0 + s·Σ η_t·τ̂_t / Σ η_t over the sources that agree.

    paper: k = round(ρ·n), equal variances by hashed key; a zero sum elects nothing. mergekit: k = int(ρ · the number of
    elements that vary), ties by index; a zero sum elects the positive; the divisor is at least 1e-6, and where Σ of the
    mean squares is below 1e-6, which light fine-tunes can fall under, all η are equal. In both ρ ≥ 1 selects all.
    With one source no element varies: ρ < 1 then keeps what the keys say.
    """

    name: ClassVar[str] = "sce"
    needs: ClassVar[Needs] = Needs(base=True)
    eager_ns: ClassVar[float] = 12.0
    formula: ClassVar[str] = (
        "θ = θ0 + scale·Σ_A η_t·τ̂_t / Σ_A η_t, τ̂_t = τ_t where Var_t τ_t is largest, η_t ∝ mean τ̂_t²"
    )
    paper: ClassVar[str] = "Wan et al. 2024, arXiv 2408.07990"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("density", float, "selected fraction ρ of each tensor", default=1.0, low=0.0, high=1.0),
        SCALE,
        CONVENTION,
    )

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        mergekit = values.shared["convention"] == "mergekit"
        numel = pool.base(name).numel()
        count = self._count(pool, name, float(values.shared["density"]), mergekit)
        if not count:
            return base_plus(())
        seed = 0 if mergekit else seed32(0, "", name, "ties")
        order: Order = "index" if mergekit else "hash"
        found: Energies = pool.lately((self.name, name, count, order), lambda: energies(pool, name, count, order, seed))
        total = math.fsum(found.means)
        even = total < 1e-6 if mergekit else total == 0.0
        shares = [1.0 / len(found.means) if even else mean / total for mean in found.means]
        return Elements(
            select_calculate_erase,
            (ScePlan(count < numel, count < numel and is_tied(found.cut), mergekit),),
            (*shares, found.cut.threshold, float(values.shared["scale"])),
            (found.cut.key, seed),
            sources=tuple(range(len(shares))),
            indexed=count < numel and is_tied(found.cut),
        )

    def _count(self, pool: Pool, name: str, density: float, mergekit: bool) -> int:
        """How many elements are selected."""
        numel = pool.base(name).numel()
        if density >= 1.0:
            return numel
        if not mergekit:
            return round(density * numel)
        varying = pool.once((self.name, "varying", name), lambda: int((spreads(pool, name) > _SMALLEST).sum()))
        return int(varying * density)


def select_calculate_erase(inputs: Inputs, plan: ScePlan) -> Tensor:
    """b + s · Σ_A η τ̂ / Σ_A η, in the dtype of the numbers."""
    count = len(inputs.sources)
    terms = deltas_of(inputs)
    if plan.selects:
        keep = selected(inputs, plan, inputs.numbers[count], inputs.integers[0], inputs.integers[1])
        terms = [masked(term, keep) for term in terms]
    sign = elected(summed(terms), plan.mergekit)
    agreeing = [agreement(term, sign) for term in terms]
    shares = [inputs.numbers[number] for number in range(count)]
    total = summed([size * share for size, share in zip(agreeing, shares, strict=True)]) * sign
    weights = [size.sign() * share for size, share in zip(agreeing, shares, strict=True)]
    mean = total / summed(weights).clamp(min=1e-6) if plan.mergekit else normalised(total, weights)
    return scaled(mean, inputs.numbers[-1]) + inputs.base.to(total.dtype)


def selected(inputs: Inputs, plan: ScePlan, threshold: Tensor, last: Tensor, seed: Tensor) -> Tensor:
    """Which elements belong to a cut by spread."""
    key = None
    if plan.tied:
        key = inputs.indices if plan.mergekit else keys(inputs.indices, seed)
    return above(spread(inputs), threshold.to(torch.float32), last, key)


def spread(inputs: Inputs) -> Tensor:
    """N³ times the population variance of the N float32 differences, in float32: it orders the same, undivided.

    Sums in float64, in which N·τ and Σ τ are as good as exact: equal differences have a spread of exactly 0.
    """
    base = inputs.base.to(torch.float32)
    deltas = [(source.to(torch.float32) - base).to(torch.float64) for source in inputs.sources]
    total = summed(deltas)
    gaps = [delta * len(deltas) - total for delta in deltas]
    return summed([gap * gap for gap in gaps]).to(torch.float32).clamp(min=_SMALLEST)


def spreads(pool: Pool, name: str) -> Tensor:
    """:func:`spread` of all elements of a tensor, flat."""
    found = torch.empty(pool.base(name).numel(), dtype=torch.float32)
    for start, stop, piece in _inputs(pool, name):
        found[start:stop] = spread(piece)
    return found


def energies(pool: Pool, name: str, count: int, order: Order, seed: int) -> Energies:
    """The cut that selects ``count`` elements, and what is then left of each source."""
    numel = pool.base(name).numel()
    # Equal elements are told apart even where nothing varies: spreads are never 0.
    where = cut_by(spreads(pool, name), count, order, seed) if count < numel else EVERYTHING
    plan = ScePlan(count < numel, count < numel and is_tied(where), order == "index")
    threshold, last, start_key = torch.tensor(where.threshold), torch.tensor(where.key), torch.tensor(seed)
    sums: list[list[float]] = [[] for _ in pool.aliases]
    for start, stop, piece in _inputs(pool, name):
        indices = torch.arange(start, stop).to(torch.int32)
        keep = selected(piece._replace(indices=indices), plan, threshold, last, start_key) if plan.selects else None
        for parts, delta in zip(sums, deltas_of(piece), strict=True):
            squares = delta * delta
            parts.append(tree_sum(squares if keep is None else squares * keep))
    return Energies(where, tuple(math.fsum(parts) / max(numel, 1) for parts in sums))


def _inputs(pool: Pool, name: str) -> Iterator[tuple[int, int, Inputs]]:
    """(start, stop, pieces of the base and of all sources), on the CPU, with numbers in float64."""
    base, sources = pool.base(name).reshape(-1).cpu(), [each.reshape(-1).cpu() for each in pool.sources(name)]
    numbers, empty = torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.int32)
    for start, stop in pieces(base.numel(), _CHUNK):
        piece = tuple(each[start:stop] for each in sources)
        yield start, stop, Inputs(base[start:stop], piece, numbers, empty, empty, ())


class Competition(NamedTuple):
    """What PCB needs to know of one source in one tensor.

    Attributes:
        low, high: |τ| is clamped to this range.
        level, top: the score from which on an element counts, and the largest; top ≤ level: none counts.
    """

    low: float
    high: float
    level: float
    top: float


class Pcb(Method):
    """Parameter competition balancing (Du et al. 2024, arXiv 2410.02396), as the authors' code has it, per tensor.

    |τ_t| is clamped at its ``clamp`` and 1 − ``clamp`` quantiles. An element's score within its task is
    exp(N·u²), where u is |τ_t| mapped linearly to [0, 1] over the tensor; between tasks it is tanh(τ_t·Σ_j τ_j), so
    elements against the common direction score below 0. Of the products, those below the ρ·n largest are raised to
    the smallest of them; mapped linearly to [0, 1] they are the shares s_t of the elements.
    θ = θ0 + scale·Σ λ_t·s_t·τ_t / Σ s_t. The coefficients do not enter the scores: a source of coefficient 0 competes.
    A tensor in which all |τ_t|, or all scores, are equal has shares of 0; where all shares are 0 the base's weight
    stays. Computed in float64 throughout. The paper has ρ of 0.05 to 0.2.
    """

    name: ClassVar[str] = "pcb"
    scope: ClassVar = "matrix"
    needs: ClassVar[Needs] = Needs(base=True)
    formula: ClassVar[str] = "θ = θ0 + scale·Σ λ_t·s_t·τ_t / Σ s_t, s_t = N(top-ρ(exp(N·N(|τ_t|)²)·tanh(τ_t·Σ τ_j)))"
    paper: ClassVar[str] = "Du et al. 2024, arXiv 2410.02396"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        COEFFICIENT,
        Parameter("density", float, "fraction ρ of each tensor that competes", default=0.2, low=0.0, high=1.0),
        SCALE,
        Parameter("clamp", float, "fraction of |τ| that is clamped at either end", default=1e-4, low=0.0, high=0.5),
    )

    def prepare(self, pool: Pool, name: str, values: Values) -> tuple[Competition, ...]:
        """[sources] where their clamps and levels lie."""
        clamp, density = float(values.shared["clamp"]), float(values.shared["density"])
        if not pool.base(name).numel():
            return ()
        ranges = pool.lately((self.name, name, clamp), lambda: _ranges(pool, name, clamp))
        found: tuple[Competition, ...] = pool.lately(
            (self.name, name, clamp, density), lambda: _competition(pool, name, ranges, density)
        )
        return found

    def apply(self, context: Context, values: Values, out: Tensor) -> None:
        """See the class."""
        assert context.base is not None
        coefficients, scale = values.column("coefficient"), float(values.shared["scale"])
        base, target = context.base.reshape(-1), out.view(-1)
        sources = [each.reshape(-1) for each in context.sources]
        for start, stop in pieces(target.numel(), _CHUNK if out.device.type == "cpu" else _DEVICE_CHUNK):
            wide = base[start:stop].to(torch.float64)
            deltas = [each[start:stop].to(torch.float64) - wide for each in sources]
            everything = summed(deltas)
            total, divisor = torch.zeros_like(wide), torch.zeros_like(wide)
            for delta, coefficient, at in zip(deltas, coefficients, context.statistics, strict=True):
                share = _share(delta, everything, len(deltas), at)
                total += delta.sign() * delta.abs().clamp(at.low, at.high) * share * coefficient
                divisor += share
            target[start:stop] = total / divisor.clamp(min=1e-12) * scale + wide


def _score(delta: Tensor, everything: Tensor, count: int, low: float, high: float) -> Tensor:
    """exp(N·u²)·tanh(τ_t·Σ τ_j)."""
    place = (delta.abs().clamp(low, high) - low) / (high - low) if high > low else torch.zeros_like(delta)
    return torch.exp(place * place * count) * torch.tanh(delta * everything)


def _share(delta: Tensor, everything: Tensor, count: int, at: Competition) -> Tensor:
    """Scores from the level up, in [0, 1]."""
    if not at.top > at.level:
        return torch.zeros_like(delta)
    return (_score(delta, everything, count, at.low, at.high).clamp(min=at.level) - at.level) / (at.top - at.level)


def _ranges(pool: Pool, name: str, clamp: float) -> tuple[tuple[float, float], ...]:
    """[sources] the order statistics that |τ| is clamped at."""
    numel = pool.base(name).numel()
    low, high = int(numel * clamp), int(numel * (1.0 - clamp) - 1.0)

    def sizes(number: int) -> Iterator[np.ndarray]:
        for _, _, piece in _inputs(pool, name):
            yield deltas_of(piece)[number].abs().numpy()

    found = []
    for number in range(len(pool.aliases)):
        smallest, largest = order_statistics(partial(sizes, number), numel, (low, high))
        found.append((min(smallest, largest), largest))
    return tuple(found)


def _competition(
    pool: Pool, name: str, ranges: tuple[tuple[float, float], ...], density: float
) -> tuple[Competition, ...]:
    """[sources] with the level that a fraction of the scores reaches."""
    numel = pool.base(name).numel()
    position = int(numel * (1.0 - density))

    def scores(number: int) -> Iterator[np.ndarray]:
        for _, _, piece in _inputs(pool, name):
            deltas = deltas_of(piece)
            yield _score(deltas[number], summed(deltas), len(deltas), *ranges[number]).numpy()

    found = []
    for number, (low, high) in enumerate(ranges):
        level = top = math.inf
        if position < numel:
            level, top = order_statistics(partial(scores, number), numel, (position, numel - 1))
        found.append(Competition(low, high, level, top))
    return tuple(found)


class Importance(NamedTuple):
    """What Arcee fusion needs to know of a tensor.

    Attributes:
        divergences: float32, one per row along the last axis.
        quartiles: of the importances: lower, median, upper.
    """

    divergences: Tensor
    quartiles: tuple[float, float, float]


class ArceeFusion(Method):
    """Takes of the other model what is unusually important (mergekit's ``arcee_fusion``).

    The importance of an element is |τ_1|·KL(softmax(θ_1) ‖ softmax(θ0)), the divergence being that of its row along
    the last axis, with 1e-8 added to either probability. θ = θ0 + τ_1 where the importance reaches
    median + ``spread``·(upper − lower quartile), of all elements of the tensor; elsewhere the base's weight stays.
    Importances are float32, as mergekit's are; fine-tunes are so near their base that the divergence of a row is
    mostly float32's rounding. mergekit takes quartiles of more than 10⁶ elements from a random sample; here they are
    exact.
    """

    name: ClassVar[str] = "arcee_fusion"
    scope: ClassVar = "row"
    needs: ClassVar[Needs] = Needs(base=True, minimum=1, maximum=1)
    formula: ClassVar[str] = "θ = θ0 + τ_1·[I ≥ median I + spread·(Q3 − Q1)], I = |τ_1|·KL(softmax θ_1 ‖ softmax θ0)"
    paper: ClassVar[str] = "no paper; definition of mergekit 0.1.5"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("spread", float, "interquartile ranges above the median from which on a weight is taken", 1.5),
    )

    def statistics(self, pool: Pool, name: str) -> Any:
        """Divergences and quartiles: they depend on the models alone."""
        base, source = pool.base(name).reshape(-1).cpu(), pool.source(name, 0).reshape(-1).cpu()
        numel, width = base.numel(), pool.base(name).shape[-1] if pool.base(name).dim() else 1
        if not numel:
            return None
        step = max(1, _CHUNK // width) * width
        parts = [
            divergence(source[start:stop].view(-1, width), base[start:stop].view(-1, width))
            for start, stop in pieces(numel, step)
        ]
        rows = torch.cat(parts)

        def importances() -> Iterator[np.ndarray]:
            for start, stop in pieces(numel, step):
                own = rows[start // width : stop // width]
                yield importance(source[start:stop], base[start:stop], own).to(torch.float64).numpy()

        first, middle, third = (int(part * (numel - 1)) for part in (0.25, 0.5, 0.75))
        return Importance(rows, order_statistics(importances, numel, (first, middle, third)))  # type: ignore[arg-type]

    def apply(self, context: Context, values: Values, out: Tensor) -> None:
        """See the class."""
        assert context.base is not None
        found: Importance = context.statistics
        lower, median, upper = found.quartiles
        threshold = median + float(values.shared["spread"]) * (upper - lower)
        width = context.shape[-1] if context.shape else 1
        source, base = context.sources[0].reshape(-1), context.base.reshape(-1)
        rows = found.divergences[context.start // width : (context.start + base.numel()) // width].to(out.device)
        taken = importance(source, base, rows) >= torch.tensor(threshold, dtype=torch.float32, device=out.device)
        wide = base.to(out.dtype)
        delta = source.to(out.dtype) - wide
        out.view(-1).copy_(masked(delta, taken) + wide)


def divergence(source: Tensor, base: Tensor) -> Tensor:
    """[rows] KL(softmax(source) + 1e-8 ‖ softmax(base) + 1e-8) of [rows, width], in float32 as mergekit has it."""
    p, q = (torch.softmax(each.to(torch.float32), dim=-1) + 1e-8 for each in (source, base))
    terms = p * torch.log(p / q)
    # A fixed tree of additions: a library's sum of a long row depends on the number of threads.
    length = terms.shape[-1]
    while length > 1:
        half = length // 2
        terms[:, :half] += terms[:, length - half : length]
        length -= half
    return terms[:, 0].clone()


def importance(source: Tensor, base: Tensor, divergences: Tensor) -> Tensor:
    """|τ| times the divergence of the row, flat, in float32."""
    distance = (source.to(torch.float32) - base.to(torch.float32)).abs()
    return (distance.view(len(divergences), -1) * divergences[:, None]).view(-1)
