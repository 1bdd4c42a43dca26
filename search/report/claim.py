"""The claim of a finished run, in words and as data: it beats the best baseline by so much, or it does not."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from search.claims import ALPHA, Claims, Comparison
from search.ledger import Ledger
from search.objectives import Target
from search.report.facts import gain
from search.report.markup import count, listed
from search.results import Results
from search.statistics import Paired


def claim_sentences(results: Results) -> list[str]:
    """Paragraphs about the chosen candidate on holdout; none before there is one."""
    claims = results.claims
    if claims is None:
        return []
    said = [_verdict(claims)]
    if claims.optimism:
        said.append(_optimism(claims))
    others = [id for id in claims.indistinguishable if id != claims.chosen]
    if others:
        shown = listed([str(id) for id in others[:8]]) + (" and more" if len(others) > 8 else "")
        said.append(
            f"{count(len(others), 'other finalist')} cannot be told from it on the selection split: {shown}. A simpler "
            "or safer one of them would be as good a choice."
        )
    openings = Ledger(results.folder).openings(results.started.holdouts)
    if openings.runs > 1:
        said.append(
            f"This holdout has been looked at by {openings.runs} runs in this folder, for {openings.recipes} merges; "
            "with every look that something is learnt from, it becomes less of a holdout."
        )
    return said


def headline(results: Results) -> list[str]:
    """The claim against all baselines, on holdout: by the number that the choice was made by, then by objective; none
    before there are comparisons. It says "beats" only where the adjusted p-value does."""
    claims = results.claims
    if claims is None or not claims.comparisons:
        return []
    broken = [each.baseline for each in claims.comparisons if _breaks(results, each.baseline.candidate)]
    said = [_against_all(claims, {each.candidate for each in broken})]
    said += [_by_objective(target, claims.comparisons) for target in results.objectives.targets]
    return said


def _breaks(results: Results, id: int) -> bool:
    """Whether a baseline breaks a constraint where choices are made."""
    return id >= 0 and results.judge.violation(id, "selection") > 0.0


def _against_all(claims: Claims, broken: Set[int]) -> str:
    who = f"Candidate {claims.chosen}"
    beaten = [each for each in claims.comparisons if each.beaten]
    others = [each for each in claims.comparisons if not each.beaten]
    by = "on holdout, by the number that the choice was made by (about the smallest retention)"
    if not others:
        worst = max(beaten, key=lambda each: each.p_scalar)
        largest = f"adjusted p {p_value(worst.p_scalar)}"
        if len(beaten) == 1:
            return f"{who} beats its only baseline, {worst.baseline.label}, {by}: {largest}."
        return f"{who} beats every one of {len(beaten)} baselines {by}: largest {largest}, against {_label(worst)}."
    missed = listed(
        [
            f"{_label(each)} (adjusted p {p_value(each.p_scalar)}"
            + ("; it breaks a constraint)" if each.baseline.candidate in broken else ")")
            for each in others[:4]
        ]
    )
    more = f" and {len(others) - 4} more" if len(others) > 4 else ""
    if not beaten:
        return f"{who} is not shown to beat any baseline {by}: {missed}{more}."
    share = f"{len(beaten)} of {len(claims.comparisons)} baselines"
    return f"{who} beats {share} {by}. It is not shown to beat {missed}{more}."


def _by_objective(target: Target, comparisons: Sequence[Comparison]) -> str:
    """``string.accuracy: better than 6 of 7 baselines (adjusted p <= 0.012), worse than expert string.``"""
    shown = [each for each in comparisons if each.p[target.name] <= ALPHA]
    ahead = [each for each in shown if gain(target, each.objectives[target.name].difference, 0.0) > 0.0]
    behind = [each for each in shown if gain(target, each.objectives[target.name].difference, 0.0) < 0.0]
    open_ = [each for each in comparisons if each not in ahead and each not in behind]
    parts = []
    if ahead:
        largest = max(each.p[target.name] for each in ahead)
        limit = "p < 0.001" if largest < 0.001 else f"p up to {largest:.2g}"
        many = "every baseline" if len(ahead) == len(comparisons) else f"{len(ahead)} of {len(comparisons)} baselines"
        parts.append(f"better than {many} (adjusted {limit})")
    parts += [f"worse than {listed([_label(each) for each in behind])}"] if behind else []
    parts += [f"not to be told from {listed([_label(each) for each in open_])}"] if open_ else []
    return f"On {target.name} it is {listed(parts)}."


def _label(each: Comparison) -> str:
    return each.baseline.label.split(" = ")[0]


def claim_data(results: Results) -> dict[str, Any] | None:
    """The same, for machines; None before there is a chosen candidate with holdout scores."""
    claims = results.claims
    if claims is None:
        return None
    best = claims.best
    return {
        "beats_best_baseline": None if best is None else best.beaten,
        "best_baseline": None if best is None else best.baseline.label,
        "comparisons": [_comparison_data(each) for each in claims.comparisons],
        "optimism": {
            name: {"value": each.value, "low": each.low, "high": each.high} for name, each in claims.optimism.items()
        },
        "indistinguishable": claims.indistinguishable,
        "finalists": [{"id": id, "p_better": objectives} for id, objectives in claims.finalists.items()],
    }


def _comparison_data(each: Comparison) -> dict[str, Any]:
    scalar = each.scalar
    return {
        "label": each.baseline.label,
        "id": each.baseline.candidate if each.baseline.candidate >= 0 else None,
        "difference": scalar.difference,
        "low": scalar.low,
        "high": scalar.high,
        "p": each.p_scalar,
        "beaten": each.beaten,
        "objectives": {
            name: {"difference": pair.difference, "low": pair.low, "high": pair.high, "p": each.p[name], "n": pair.n}
            for name, pair in each.objectives.items()
        },
    }


def _verdict(claims: Claims) -> str:
    best = claims.best
    if best is None:
        return "There is no baseline with holdout scores to compare it with."
    itself = f" It is itself a baseline ({claims.is_baseline[0]})." if claims.is_baseline else ""
    head = f"The best baseline by selection scores is {best.baseline.label}"
    scalar = best.scalar
    size = (
        f"{abs(scalar.difference):.3f} in the number that the choice was made by (about the smallest retention; 95 % "
        f"interval {scalar.low:+.3f} to {scalar.high:+.3f}, adjusted p {p_value(best.p_scalar)})"
    )
    each = listed([_difference(name, pair, best.p[name]) for name, pair in best.objectives.items()])
    if best.beaten:
        return f"{head}: the chosen merge beats it by {size}.{itself} Paired, on the same items: {each}."
    if scalar.difference > 0.0:
        why = f"it is ahead by {size}, which chance could do"
    else:
        why = f"it is behind by {size}" if scalar.difference < 0.0 else "they are equal"
    return f"{head}. The chosen merge does not beat it: {why}.{itself} Paired, on the same items: {each}."


def _difference(name: str, pair: Paired, p: float) -> str:
    return f"{name} {pair.difference:+.3f} ({pair.low:+.3f} to {pair.high:+.3f}, adjusted p {p_value(p)})"


def _optimism(claims: Claims) -> str:
    parts = [
        f"{name} {each.value:+.3f} ({each.low:+.3f} to {each.high:+.3f})" for name, each in claims.optimism.items()
    ]
    return f"Optimism, what the search split promised beyond the holdout: {listed(parts)}."


def p_value(value: float) -> str:
    """Two digits; what is smaller than 0.001 is only said to be."""
    return f"= {value:.2g}" if value >= 0.001 else "< 0.001"
