"""What was measured, as Markdown tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from experiments.diagnosing.correlate import Pair, chance, correlation, spearman
from experiments.diagnosing.predictors import PREDICTORS, Costs

_COSTS: dict[Costs, str] = {
    "weights": "weights alone",
    "inputs": "unlabelled inputs",
    "scores": "scores of a few items",
}


def predictors_table(pairs: Sequence[Pair]) -> str:
    """A row for every predictor: correlations with the gap, over all pairs, within families, and in the larger ones."""
    names = [name for name in dict.fromkeys(each.family for each in pairs) if _count(pairs, name) >= 6]
    heads = [f"{name} ({_count(pairs, name)})" for name in names]
    lines = [
        "| | needs | expected | within families | 95 % | all pairs | " + " | ".join(heads) + " |",
        "|---|---|---|---|---|---|" + "---|" * len(heads),
    ]
    for key, each in PREDICTORS.items():
        found = correlation(pairs, key)
        if not found.count:
            continue
        own = [_of_family(pairs, name, key) for name in names]
        sign = "+" if each.worse > 0 else "−"
        cells = [
            each.title, _COSTS[each.costs], sign if each.foretold else f"({sign})", f"**{_signed(found.within)}**",
            f"{_signed(found.low)} to {_signed(found.high)}", _signed(found.overall), *map(_signed, own),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def chance_lines(pairs: Sequence[Pair]) -> str:
    """What the best of the predictors reaches by chance."""
    lines = []
    for costs, says in _COSTS.items():
        keys = [key for key, each in PREDICTORS.items() if each.costs == costs]
        known = [each for each in pairs if all(key in each.values for key in keys)]
        if known:
            lines.append(
                f"- {says}: {len(keys)} numbers; the best by chance, in 1 of 20 cases: {chance(known, keys):.2f}"
            )
    return "\n".join(lines)


def verdicts_table(pairs: Sequence[Pair]) -> str:
    """The gap by what the verdict says, from the weights alone."""
    from merging.diagnose.results import Diagnosis
    from merging.diagnose.verdicts import verdict

    levels: dict[str, list[Pair]] = {"likely": [], "uncertain": [], "unlikely": []}
    for pair in pairs:
        if pair.diagnosis:
            levels[verdict(Diagnosis.from_data(pair.diagnosis)).level].append(pair)
    lines = ["| a plain sum is | pairs | mean gap | smallest | largest | which |", "|---|---|---|---|---|---|"]
    for level, members in levels.items():
        gaps = [each.gap for each in members]
        numbers = [f"{statistics.fmean(gaps):.2f}", f"{min(gaps):.2f}", f"{max(gaps):.2f}"] if gaps else ["–"] * 3
        which = ", ".join(f"{name} {_count(members, name)}" for name in dict.fromkeys(each.family for each in members))
        lines.append(f"| {level} | {len(members)} | " + " | ".join([*numbers, which or "–"]) + " |")
    return "\n".join(lines)


def lambda_lines(pairs: Sequence[Pair]) -> str:
    """How near λ* of the geometry comes to the best λ, against always saying what is best on the other families."""
    from merging.diagnose.results import Diagnosis
    from merging.diagnose.rules import full_lambda

    known = [each for each in pairs if each.diagnosis]
    if not known:
        return ""
    geometry = []
    for pair in known:
        found = Diagnosis.from_data(pair.diagnosis)
        geometry.append(full_lambda(found.whole, found.aliases, found.pairs))
    told, best = np.array(geometry), np.array([each.best for each in known])
    constant = []
    for pair in known:
        others = [each.best for each in known if each.family != pair.family]
        constant.append(statistics.median(others) if others else math.nan)
    ratio = statistics.median(best / told)
    return "\n".join(
        [
            f"- λ* and the best λ: Spearman {_signed(spearman(told, best))}, mean error "
            f"{np.abs(told - best).mean():.2f}; the best λ is {ratio:.2f} λ* in the median",
            f"- {ratio:.2f} λ*: mean error {np.abs(ratio * told - best).mean():.2f}",
            "- always the median best λ of the other families: mean error "
            f"{np.abs(np.array(constant) - best).mean():.2f}",
        ]
    )


def pairs_table(pairs: Sequence[Pair]) -> str:
    """Every pair."""
    keys = ("norm_ratio", "imbalance", "cosine", "sign_conflict", "overlap_lift", "alignment", "look_gap")
    lines = [
        "| family | seed | pair | gap | best λ | " + " | ".join(PREDICTORS[key].title for key in keys) + " |",
        "|---|---|---|---|---|" + "---|" * len(keys),
    ]
    for each in pairs:
        numbers = [f"{each.values[key]:.3g}" if key in each.values else "–" for key in keys]
        cells = [each.family, str(each.seed), each.name, f"{each.gap:.2f}", f"{each.best:g}", *numbers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _count(pairs: Sequence[Pair], family: str) -> int:
    return sum(each.family == family for each in pairs)


def _of_family(pairs: Sequence[Pair], family: str, key: str) -> float:
    known = [each for each in pairs if each.family == family and key in each.values]
    return spearman(np.array([each.values[key] for each in known]), np.array([each.gap for each in known]))


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")
