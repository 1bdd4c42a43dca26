"""The mix chooser: sliders and bounds that move a recommendation, by the rule of ``paretomerge choose``.

The page's script applies the rule (:func:`search.choice.choose`) to what stands here: retentions, utilities and
confidence bounds of the finalists on the selection split, in full precision, so that both come to the same candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from search.choice import bound_on, eligible, metric_name
from search.errors import SearchError
from search.pareto import AUGMENTATION
from search.report.facts import Facts, shown_folder
from search.report.markup import Html, count, element, join, listed, percent, ranged
from search.report.section import Section
from search.store import Store

TITLE = "Choose a mix"
CONFIDENCES = ("0.5", "0.9", "0.95")
"""One-sided; with 0.5 the score itself is its bound."""
DEFAULT_CONFIDENCE = "0.9"
"""As ``--confidence`` has it."""


def mix_section(facts: Facts) -> Section | None:
    """Sliders, bounds and the candidate that they lead to; before the finals, why there is none."""
    if facts.results.chosen is None and facts.scored and len(facts.infeasible) == len(facts.scored):
        broken = listed(facts.results.constraints.names)
        return Section(TITLE, element("p", f"No candidate keeps the constraints on the search split: {broken}."))
    if facts.results.chosen is None:
        text = (
            "No mix can be recommended yet: the finalists have no selection scores, so there is nothing honest to "
            "choose on. Let the run finish (the same `paretomerge run` command goes on with it), then write the report "
            "again."
        )
        return Section(TITLE, element("p", text))
    pool = eligible(facts.results)
    if not pool:
        broken = listed(facts.results.constraints.names)
        return Section(TITLE, element("p", f"No finalist keeps the constraints on the selection split: {broken}."))
    metrics = _metrics(facts, pool)
    body = [
        element("p", _explained(facts, pool), class_="note"),
        element("form", _sliders(facts), _bounds(metrics), id="mix-form", class_="mix"),
        element("p", id="mix-says", role="status", class_="panel"),
        element("div", id="mix-shows"),
        element("p", "To have it:", id="mix-to"),
        element("pre", id="mix-commands", tabindex="0", aria_label="Commands for this mix"),
        element("noscript", element("p", "Without JavaScript: paretomerge choose RUN --mix NAME=WEIGHT,…")),
    ]
    return Section(
        TITLE, join(body), data={"mix": mix_data(facts, pool, metrics)}, scripts=("mix",), styles=("details",)
    )


def mix_data(facts: Facts, pool: Sequence[int], metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the script chooses by, and what it shows.

    Args:
        facts: of a run with selection scores.
        pool: the candidates to choose from.
        metrics: see :func:`_metrics`.

    Returns:
        ``ids`` [n] ascending, ``retention`` and ``utility`` [n][objectives] exactly as the rule sees them, ``kept``
        [n][objectives] retention in words, ``metrics``, and the run's name for commands.
    """
    judge, scores = facts.results.judge, facts.results.scores["selection"]
    ids = sorted(pool)
    retention = [judge.retention(scores, id) for id in ids]
    scaled = [facts.has_scale(each, "selection") for each in facts.targets]
    folder = shown_folder(facts.results.folder)
    return {
        "ids": ids,
        "retention": [list(each) for each in retention],
        "utility": judge.utilities(scores, ids).tolist(),
        "augmentation": AUGMENTATION,
        "kept": [[percent(share) if scaled[place] else "" for place, share in enumerate(row)] for row in retention],
        "objectives": [_word(facts, each.name) for each in facts.targets],
        "metrics": list(metrics),
        "chosen": facts.results.chosen,
        "opened": [id for id in ids if id in facts.results.scores["holdout"]],
        "run": str(folder),
        "out": str(folder / "export"),
    }


def _metrics(facts: Facts, pool: Sequence[int]) -> list[dict[str, Any]]:
    """Every metric of the run: its name, its word for commands, on which side a bound lies, its range; the candidates'
    values in words, and confidence -> [n] their confidence bounds on that side."""
    ids = sorted(pool)
    store = Store.open(facts.results.folder, read_only=True)
    try:
        items = {id: store.item_scores(id, "selection") for id in ids}
    finally:
        store.close()
    names = [each.name for each in facts.targets]
    names += [each for each in facts.results.scores["selection"][ids[0]] if each not in names]
    found = []
    for name in names:
        constraint = bound_on(facts.results, name, 0.0, 0.5)
        found.append(
            {
                "name": name,
                "word": _word(facts, name),
                "side": constraint.side,
                "low": constraint.low if math.isfinite(constraint.low) else None,
                "high": constraint.high if math.isfinite(constraint.high) else None,
                "says": [_says(facts, id, name) for id in ids],
                "bounds": {
                    each: [bound_on(facts.results, name, 0.0, float(each)).bound(items[id]) for id in ids]
                    for each in CONFIDENCES
                },
            }
        )
    return found


def _says(facts: Facts, id: int, name: str) -> str:
    interval = facts.results.interval(id, "selection", name)
    target = next((each for each in facts.targets if each.name == name), None)
    if target is not None:
        return ranged(target, interval)
    return f"{interval.value:.4g} ({interval.low:.4g} to {interval.high:.4g})"


def _word(facts: Facts, name: str) -> str:
    """The shortest that a command takes for a metric."""
    evaluator = name.partition(".")[0]
    try:
        return evaluator if metric_name(facts.results, evaluator) == name else name
    except SearchError:  # several metrics: it has to be named whole
        return name


def _explained(facts: Facts, pool: Sequence[int]) -> str:
    said = (
        f"Say how much each skill counts: the recommendation among {count(len(pool), 'finalist')} follows, by the same "
        "rule as paretomerge choose (augmented Tchebycheff of retention) and by selection scores alone. "
    )
    if len(facts.targets) == 1:
        said = (
            f"With one objective there is nothing to mix; bounds can be set, and the best of "
            f"{count(len(pool), 'finalist')} that keeps them is recommended, by selection scores alone. "
        )
    return said + (
        "A ring marks it in the drawings of the front. Many tries on the same selection items flatter what they find, "
        "too; paretomerge choose looks at the holdout of the one that you take, and writes that down."
    )


def _sliders(facts: Facts) -> Html:
    if len(facts.targets) == 1:
        return Html()
    rows = [
        element(
            "div",
            element("label", each.name, for_=f"mix-weight-{index}"),
            element(
                "input", type="range", id=f"mix-weight-{index}", min="0", max="100", step="1", value="50",
                autocomplete="off",
            ),
            element("output", "50", for_=f"mix-weight-{index}", id=f"mix-share-{index}", aria_live="off"),
            class_="slider",
        )
        for index, each in enumerate(facts.targets)
    ]  # fmt: skip
    again = element("button", "All the same", type="button", id="mix-equal")
    return element("fieldset", element("legend", "How much each skill counts"), rows, again)


def _bounds(metrics: Sequence[dict[str, Any]]) -> Html:
    rows = []
    for index, each in enumerate(metrics):
        side = "at least" if each["side"] == "at_least" else "at most"
        limits = {key: str(each[side]) for key, side in (("min", "low"), ("max", "high")) if each[side] is not None}
        field = element(
            "input", type="number", step="any", id=f"mix-bound-{index}", inputmode="decimal", autocomplete="off",
            **limits,
        )  # fmt: skip
        label = element("label", f"{each['name']} {side}", for_=f"mix-bound-{index}")
        rows.append(element("div", label, field, class_="bound"))
    options = [element("option", each, selected=each == DEFAULT_CONFIDENCE) for each in CONFIDENCES]
    sure = element(
        "div",
        element("label", "shown with confidence", for_="mix-confidence"),
        element("select", options, id="mix-confidence", autocomplete="off"),
        class_="bound",
    )
    return element("fieldset", element("legend", "Bounds that it must keep, if any"), rows, sure)
