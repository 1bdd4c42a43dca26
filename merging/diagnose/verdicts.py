"""A diagnosis in plain words: whether these models are likely to merge, why, and what to try first.

Rules, not a model: every reason names its number and its threshold. How little the weights alone foretell is part of
the verdict (:data:`CAVEAT`, measured in docs/diagnostics.md); what scores say weighs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from merging.diagnose import rules
from merging.diagnose.evidence import Drawn, of_curves
from merging.diagnose.regions import Region, listed
from merging.diagnose.results import Diagnosis
from merging.diagnose.rules import Reason

__all__ = ["Reason", "Suggested", "Verdict", "verdict"]

Level = Literal["likely", "uncertain", "unlikely"]

CAVEAT = (
    "This is read from the weights alone, which foretell little. A few dozen scored items of one first merge foretell "
    "far more (--data, or --config)."
)

_OF_MERGES = frozenset({"barrier", "activation", "lambda"})
"""Kinds of reasons that a merge itself gave."""

_ROOM = 1.5
"""A search is given so many times the λ that geometry suggests."""


@dataclass(frozen=True)
class Suggested:
    """Where to begin.

    Attributes:
        method: a registered merge method.
        coefficient: of every expert, low and high, for a search.
        start: one λ for all, to try first.
        separate: regions in words that should have coefficients of their own.
        borders: stack -> first depths of its blocks of layers, 0 the first; empty where one block will do.
    """

    method: str
    coefficient: tuple[float, float]
    start: float
    separate: tuple[str, ...] = ()
    borders: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What a diagnosis comes to.

    Attributes:
        headline: one sentence.
        reasons: in the order in which they matter to a reader.
        advice: one sentence each.
        suggested: the same as data.
        level: ``likely``: a plain sum is likely to do; ``uncertain``; ``unlikely``.
    """

    headline: str
    reasons: tuple[Reason, ...]
    advice: tuple[str, ...]
    suggested: Suggested
    level: Level

    def as_data(self) -> dict[str, Any]:
        """Plain JSON."""
        suggested = asdict(self.suggested) | {
            "coefficient": list(self.suggested.coefficient),
            "separate": list(self.suggested.separate),
            "borders": [{"stack": stack, "first_depths": list(first)} for stack, first in self.suggested.borders],
        }
        return {
            "level": self.level,
            "headline": self.headline,
            "reasons": [each.as_data() for each in self.reasons],
            "advice": list(self.advice),
            "suggested": suggested,
        }


def verdict(diagnosis: Diagnosis, curves: Drawn | None = None) -> Verdict:
    """Say in words what a diagnosis found.

    Args:
        diagnosis: of a base and one expert or more.
        curves: what was drawn with data, if anything.
    """
    weights = rules.of_weights(diagnosis)
    data = [] if curves is None else of_curves(curves, diagnosis.aliases)
    level = _level(weights, data, len(diagnosis.aliases))
    suggested = _suggested(diagnosis, weights, curves)
    advice = _advice(diagnosis, weights, data, level, suggested)
    return Verdict(_headline(diagnosis, weights, data, level), (*data, *weights), tuple(advice), suggested, level)


def _level(weights: Sequence[Reason], data: Sequence[Reason], experts: int) -> Level:
    """Data decide where they speak of a merge; otherwise concerns are counted, and large but alike is no concern."""
    effects = [each.effect for each in (*weights, *data)]
    if "worst" in effects:
        return "unlikely"
    asked = [each.effect for each in data if each.kind in _OF_MERGES and each.effect != "neutral"]
    bad = [each for each in weights if each.effect == "bad"]
    if any(each.words == "alike" for each in weights):
        bad = [each for each in bad if each.kind != "size"]
    if asked:
        concerns = asked.count("bad")
        if not concerns and any(each.kind == "barrier" for each in data):
            return "likely"
        return "unlikely" if concerns > 1 or (concerns and bad) else "uncertain" if concerns or bad else "likely"
    if experts == 1:
        return "uncertain" if bad else "likely"
    return "likely" if not bad else "uncertain" if len(bad) == 1 else "unlikely"


def _headline(diagnosis: Diagnosis, weights: Sequence[Reason], data: Sequence[Reason], level: Level) -> str:
    words = [each.words for each in (*weights, *data) if each.words]
    start = ", ".join(dict.fromkeys(words)) or "nothing stands out"
    if len(diagnosis.aliases) == 1:
        end = {
            "likely": "adding this task vector to the base, or to others, is likely to do",
            "uncertain": "this task vector may not add up with others",
            "unlikely": "this does not look like a fine-tune of that base",
        }[level]
    else:
        end = {
            "likely": "task arithmetic is likely to do",
            "uncertain": "they may merge, at a loss; score a first merge before you search long",
            "unlikely": "a plain sum will probably lose much of what each can do",
        }[level]
    places = rules.hot_places(diagnosis)
    local = f"; conflict is concentrated in {listed(places)}: give {_them(places)}" if places else ""
    return f"{start[0].upper()}{start[1:]}: {end}{local}."


def _suggested(diagnosis: Diagnosis, weights: Sequence[Reason], curves: Drawn | None) -> Suggested:
    full = rules.full_lambda(diagnosis.whole, diagnosis.aliases, diagnosis.pairs)
    measured = next((each.best for each in curves.lambdas if each.best), None) if curves is not None else None
    # One task vector alone is whole at 1; of several there is less room (docs/diagnostics.md).
    start = round(measured or (full if len(diagnosis.aliases) == 1 else rules.FIRST * full), 2)
    conflict = any(each.kind == "conflict" and each.effect == "bad" for each in weights)
    # What is opposed may have to be subtracted.
    low = -0.5 if any(each.words == "opposed" for each in weights) else 0.0
    return Suggested(
        "ties" if conflict else "task_arithmetic",
        (low, max(1.0, round(_ROOM * max(full, start), 1))),
        start,
        tuple(each.text for each in rules.hot_places(diagnosis)),
        _borders(diagnosis),
    )


def _borders(diagnosis: Diagnosis) -> tuple[tuple[str, tuple[int, ...]], ...]:
    from merging.diagnose.borders import borders_by_stack

    return tuple((stack, first) for stack, first in borders_by_stack(diagnosis).items() if len(first) > 1)


def _advice(
    diagnosis: Diagnosis, weights: Sequence[Reason], data: Sequence[Reason], level: Level, suggested: Suggested
) -> list[str]:
    kinds = {each.kind for each in weights if each.effect in {"bad", "worst"}}
    found = []
    if any(each.effect == "worst" and each.kind == "size" for each in weights):
        found.append("Check that all models were trained from this base: compare config.json and the tokenizer first.")
    if len(diagnosis.aliases) > 1:
        if level == "unlikely" or "size" in kinds:
            found.append(
                "Try a method that looks at a few inputs of each expert (regmean), or one that keeps singular "
                "directions apart (tsv_m, wudi), next to task_arithmetic."
            )
        if "balance" in kinds:
            found.append("Give every expert a coefficient of its own: the weaker one needs the larger.")
        if suggested.method == "ties":
            found.append("Try ties, which settles conflicts of sign element by element.")
        found.append(_first(suggested))
    if suggested.separate:
        places = rules.hot_places(diagnosis)
        outside = all(each.first is None for each in places)
        how = "kinds: a list of its own" if outside else "granularity: layer, or blocks, and kinds of their own"
        found.append(f"In a search let {listed(places)} have coefficients apart from the rest ({how}).")
    for stack, first in suggested.borders:
        tower = f" of {stack}" if stack else ""
        starts = ", ".join(map(str, first))
        text = f"The layers{tower} fall into {len(first)} blocks, which begin at {starts} (granularity: blocks: auto)."
        found.append(text)
    if not data:
        found.append(CAVEAT)
    return found


def _first(suggested: Suggested) -> str:
    low, high = suggested.coefficient
    return (
        f"Start with {suggested.method}, one coefficient of {suggested.start:g} for all, and let a search vary each "
        f"from {low:g} to {high:g}."
    ).replace("-", "−")


def _them(places: Sequence[Region]) -> str:
    one = len(places) == 1 and places[0].first == places[0].last
    what = "coefficients" if all(each.first is None for each in places) else "a block"
    return f"{'it' if one else 'those'} {what} of {'its' if one else 'their'} own"
