"""What single findings of a diagnosis say in words, each with its number, its threshold and where that is from.

Thresholds are rules of thumb from the literature, or chance levels; which of them foretell anything on this project's
own models is measured in docs/diagnostics.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from merging.diagnose.regions import Region, listed, regions
from merging.diagnose.results import Diagnosis, Measures, Pair
from merging.scan import PLAUSIBLE

LARGE = 0.1
"""‖τ‖/‖θ0‖ above this is more than a fine-tune usually moves: continued pre-training, or a base of few steps."""

UNEQUAL = 3.0
"""Largest ‖τ‖ over the smallest: above this one model drowns the others. A rule of thumb."""

ORTHOGONAL = 0.1
"""|cosine| below this: task vectors of different tasks lie near 0 (Ilharco et al. 2023, arXiv 2212.04089, figure 5)."""

ALIKE = 0.5
"""Cosine above this: experts of one kind, of which an average loses little and gains little (model kinship, arXiv
2410.12613). Our number."""

OPPOSED = -0.1
"""Cosine below this: what one model learns the other unlearns. Our number, the mirror of ORTHOGONAL."""

CONFLICT = 2.0
"""Share of conflicting positions over what independent task vectors have: from here on it is much. Our number."""

STANDS_OUT = 1.5
"""A group whose conflict is so many times the whole model's is named, and its ratio of norms from twice the whole's."""

SERVED = 0.85
"""Share of a task vector that lies in the leading directions of the sum, of two experts: below this the sum passes one
of them by. Set by this project's own pairs (docs/diagnostics.md), where this number foretold losses best; the measure
is that of Marczak et al. 2025 (arXiv 2502.04959), who found the same of it."""

FIRST = 0.8
"""Of the coefficient that geometry suggests, what was best in the median of this project's pairs
(docs/diagnostics.md)."""

UNTOUCHED = 0.5
"""Below this share of changed weights a task vector is called sparse."""

Effect = Literal["good", "neutral", "bad", "worst"]


@dataclass(frozen=True)
class Reason:
    """One finding.

    Attributes:
        kind: what was looked at: ``size``, ``balance``, ``direction``, ``conflict``, ``sparsity``, ``subspace``, or of
            curves ``lambda``, ``barrier``, ``redundancy``, ``activation``.
        text: one sentence for people.
        value: the number it rests on; None where there are several.
        threshold: what it was compared with; None where it is only said.
        where: the part of the model, in words; "" for the whole.
        effect: what it means for a merge.
        words: what the headline calls it; "" where that says nothing.
    """

    kind: str
    text: str
    value: float | None = None
    threshold: float | None = None
    where: str = ""
    effect: Effect = "neutral"
    words: str = ""

    def as_data(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def of_weights(diagnosis: Diagnosis) -> list[Reason]:
    """Everything that the weights alone say, in the order in which a reader wants it."""
    unchanged = [alias for alias in diagnosis.aliases if diagnosis.whole.norm[alias] == 0.0]
    if unchanged:
        return [
            Reason("size", f"{_and(unchanged)}: exactly the base; there is no task vector.", 0.0, effect="bad",
                   words="without a task vector")
        ]  # fmt: skip
    found = [*_size(diagnosis), *_balance(diagnosis)]
    if len(diagnosis.aliases) > 1:
        found += [*_direction(diagnosis), *_conflict(diagnosis), *_subspace(diagnosis)]
    return found + _sparsity(diagnosis)


def conflict_share(measures: Measures, pair: Pair) -> float | None:
    """Of the positions that one of two experts or both keep at the density, the share at which both do with opposite
    signs, in [0, 1]; None where nothing is kept."""
    overlap = measures.overlap.get(pair)
    if overlap is None:
        return None
    return overlap * measures.sign_conflict.get(pair, 0.0)  # without a common position there is no conflict


def conflict_chance(measures: Measures, pair: Pair) -> float | None:
    """The same of independent task vectors: half of the positions that they share by chance."""
    chance = measures.overlap_chance.get(pair)
    return None if chance is None else chance / 2.0


def full_lambda(measures: Measures, aliases: Sequence[str], pairs: Iterable[Pair]) -> float:
    """λ* = Σ‖τ_t‖² / ‖Στ_t‖²: the one coefficient at which λΣτ has as much along the task vectors, all together, as
    each has along itself, Σ⟨λΣτ, τ_t⟩ = Σ‖τ_t‖². 1 for orthogonal task vectors, 1/T for T equal ones. In (0, 1.5]:
    opposed ones would go beyond.

    Args:
        measures: of the whole model.
        aliases: of the experts.
        pairs: of them.
    """
    squares = sum(measures.norm[alias] ** 2 for alias in aliases)
    crossed = sum(measures.cosine.get((a, b), 0.0) * measures.norm[a] * measures.norm[b] for a, b in pairs)
    whole = squares + 2.0 * crossed
    return min(1.5, squares / whole) if whole > 0.0 else 1.5


def worst_pair(diagnosis: Diagnosis, values: dict[Pair, float]) -> Pair | None:
    """The pair with the largest value."""
    return max((pair for pair in diagnosis.pairs if pair in values), key=lambda pair: values[pair], default=None)


def number(value: float) -> str:
    """Two digits that count, with a true minus."""
    plain = 0.095 <= abs(value) < 1000.0 or value == 0.0
    return (f"{value:.2f}" if plain else f"{value:.2g}").replace("-", "−")


def span(values: Iterable[float]) -> str:
    """From the smallest to the largest; one number where they are written alike."""
    known = list(values)
    least, most = number(min(known)), number(max(known))
    return least if least == most else f"{least} to {most}"


def _size(diagnosis: Diagnosis) -> list[Reason]:
    ratios = diagnosis.whole.norm_ratio
    if not ratios:
        return []
    alias = max(ratios, key=lambda each: ratios[each])
    largest = ratios[alias]
    start = f"The task vectors measure {span(ratios.values())} of the base's weights (‖τ‖/‖θ0‖)"
    if largest > PLAUSIBLE:
        text = (
            f"{alias} is {number(largest)} of the base's weights away (‖τ‖/‖θ0‖); fine-tunes stay under about 0.1, "
            "unrelated models are near 1.4: it may come from another base."
        )
        return [Reason("size", text, largest, PLAUSIBLE, effect="worst", words="far from the base")]
    if largest > LARGE:
        text = f"{start}: large, beyond about {LARGE:g} effects of task vectors seldom just add up."
        return [Reason("size", text, largest, LARGE, _widest(diagnosis), "bad", "large")]
    return [Reason("size", f"{start}: small.", largest, LARGE, _widest(diagnosis), "good", "small")]


def _widest(diagnosis: Diagnosis) -> str:
    """Where ‖τ‖/‖θ0‖ is at least twice that of the whole model."""
    whole = max(diagnosis.whole.norm_ratio.values())
    found = regions(diagnosis, lambda each: max(each.norm_ratio.values(), default=None), 2.0 * whole)
    return listed(found) if found else ""


def _balance(diagnosis: Diagnosis) -> list[Reason]:
    factor = diagnosis.whole.imbalance
    if factor is None or factor <= UNEQUAL:
        return []
    norms = diagnosis.whole.norm
    strong, weak = (pick(norms, key=lambda each: norms[each]) for pick in (max, min))
    times = f"{factor:.1f}" if factor < 1000.0 else number(factor)
    text = f"{strong} moves {times} times as far as {weak}: with one coefficient for all, {strong} drowns {weak}."
    return [Reason("balance", text, factor, UNEQUAL, effect="bad", words="unequal")]


def _direction(diagnosis: Diagnosis) -> list[Reason]:
    cosines = diagnosis.whole.cosine
    if not cosines:
        return []
    a, b = min(cosines, key=lambda pair: cosines[pair])
    least, most = cosines[a, b], max(cosines.values())
    where = listed(_opposed(diagnosis)) if _opposed(diagnosis) else ""
    if least < OPPOSED:
        text = f"{a} and {b} point against each other (cosine {number(least)}): what one learns the other unlearns."
        return [Reason("direction", text, least, OPPOSED, where, "bad", "opposed")]
    local = [] if not where else [
        Reason("direction", f"In {where} two experts point against each other.", None, OPPOSED, where, "neutral")
    ]  # fmt: skip
    start = f"Cosine{'' if len(cosines) == 1 else 's'} of the task vectors: {span(cosines.values())}"
    if least > ALIKE:
        text = f"{start}: they learned much the same, so that their mean loses little, and gains little."
        return [Reason("direction", text, least, ALIKE, effect="good", words="alike"), *local]
    if most <= ORTHOGONAL:
        text = f"{start}: orthogonal, as those of different tasks are."
        return [Reason("direction", text, most, ORTHOGONAL, effect="good", words="orthogonal"), *local]
    text = f"{start}: they share some of what they learned, and sums count that twice."
    return [Reason("direction", text, most, ORTHOGONAL, words="partly aligned"), *local]


def _opposed(diagnosis: Diagnosis) -> list[Region]:
    def against(measures: Measures) -> float | None:
        return -min(measures.cosine.values()) if measures.cosine else None

    return regions(diagnosis, against, -OPPOSED)


def _conflict(diagnosis: Diagnosis) -> list[Reason]:
    whole = diagnosis.whole
    shares = {pair: share for pair in diagnosis.pairs if (share := conflict_share(whole, pair)) is not None}
    pair = worst_pair(diagnosis, shares)
    if pair is None:
        return []
    chance, share = conflict_chance(whole, pair) or 0.0, shares[pair]
    text = (
        f"Of the {diagnosis.settings.density:.0%} largest changes {share:.1%} meet one of opposite sign"
        f"{'' if len(shares) == 1 else f' ({pair[0]} and {pair[1]}, the worst pair)'}; independent task vectors have "
        f"{chance:.1%}."
    )
    much = share >= CONFLICT * chance
    said = Reason(
        "conflict", text, share, CONFLICT * chance, "", "bad" if much else "good",
        "much conflict" if much else "little conflict",
    )  # fmt: skip
    places = hot_places(diagnosis)
    if not places:
        return [said]
    where = listed(places)
    local = f"Conflict is concentrated in {where}: up to {places[0].value:.1%} there."
    return [said, Reason("conflict", local, places[0].value, STANDS_OUT * share, where)]


def hot_places(diagnosis: Diagnosis) -> list[Region]:
    """Where conflict is :data:`STANDS_OUT` times that of the whole model, and beyond chance."""

    def share(measures: Measures) -> float | None:
        found = [each for pair in diagnosis.pairs if (each := conflict_share(measures, pair)) is not None]
        return max(found, default=None)

    def chance(measures: Measures) -> float:
        return max((conflict_chance(measures, pair) or 0.0 for pair in diagnosis.pairs), default=0.0)

    whole = share(diagnosis.whole)
    if whole is None:
        return []
    return regions(diagnosis, share, STANDS_OUT * max(whole, chance(diagnosis.whole)))


def _subspace(diagnosis: Diagnosis) -> list[Reason]:
    whole = diagnosis.whole
    found = []
    if whole.interference_ratio is not None and len(whole.alignment) == len(diagnosis.aliases):
        alias = min(whole.alignment, key=lambda each: whole.alignment[each])
        text = (
            f"The leading directions of the sum hold {whole.alignment[alias]:.0%} of {alias}, which they serve least; "
            f"singular task interference is {number(whole.interference_ratio)} (0 where no task touches "
            f"another's directions, {(len(diagnosis.aliases) - 1) ** 2} for equal ones, more where many touch)."
        )
        least = whole.alignment[alias]
        passed_by = len(diagnosis.aliases) == 2 and least < SERVED
        found.append(
            Reason(
                "subspace", text, least, SERVED if len(diagnosis.aliases) == 2 else None,
                effect="bad" if passed_by else "neutral", words=f"{alias} poorly served" if passed_by else "",
            )
        )  # fmt: skip
    return found


def _sparsity(diagnosis: Diagnosis) -> list[Reason]:
    found = []
    sparse = {alias: share for alias, share in diagnosis.whole.changed.items() if share < UNTOUCHED}
    if sparse:
        said = ", ".join(f"{alias} {share:.0%}" for alias, share in sparse.items())
        text = f"Only part of the weights changed at all ({said}): stored as a task vector that is small."
        found.append(Reason("sparsity", text, min(sparse.values()), UNTOUCHED))
    return found


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
