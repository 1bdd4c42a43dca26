"""The card's numbers: scores with intervals beside those of base, experts and baselines, and what may be claimed."""

from __future__ import annotations

import math
from collections.abc import Iterator

from evaluators.contract import SPLITS, Split
from search.card.facts import CardFacts
from search.card.markdown import plain, table
from search.ledger import Ledger
from search.minibatch import in_words
from search.objectives import Target
from search.report.facts import Facts
from search.report.markup import number, percent
from search.results import Results


def score_sections(facts: CardFacts) -> Iterator[str]:
    """Markdown parts of "Scores", in order; nothing of a split on which the candidate was not scored."""
    results, id = facts.results, facts.scored
    if results is None or id is None:
        return
    views = Facts(results)
    shown = False
    for split in ("holdout", "selection", "search"):
        # search scores flatter what was picked by them: they stand only where there is nothing better
        if id not in results.scores[split] or (split == "search" and shown):
            continue
        shown = True
        yield f"### {_HEADS[split]}"
        yield _table(facts, views, split, id)
        if split == "search" and (said := in_words(results.config.search.fidelity)):
            yield said.strip()
        if others := _others(results, split, id):
            yield others
    if not shown:
        yield "This candidate has no scores."
    yield (
        "In brackets: 95 % intervals for the choice of items; training or searching again would vary more. "
        + ("Percentages: kept of the expert's own gain over the base. " if _has_percentages(views) else "")
        + f"An arrow says which way is better. {_items(results)}"
    )


def claim_sections(facts: CardFacts) -> Iterator[str]:
    """What the numbers carry, in sentences."""
    results, id = facts.results, facts.scored
    if results is None or id is None:
        return
    if id not in results.scores["holdout"]:
        yield (
            "The holdout was not opened for this candidate: how good it is on items that no choice was made on is not "
            "known."
        )
    if results.chosen is None:
        yield "The run that it comes from is not finished: nothing was chosen on unseen items, and nothing is claimed."
    elif id != results.chosen:
        yield (
            f"The run's own choice was candidate {results.chosen}, and claims were tested for that one. This is "
            f"candidate {facts.candidate}: {plain(facts.rule)}. Nothing is claimed of it beyond the scores above."
        )
    else:
        from search.report.claim import claim_sentences

        yield from (plain(each, 4000) for each in claim_sentences(results))
    yield from _constraints(results, id)
    yield _openings(results, other_runs=id != results.chosen)  # of which the claims speak themselves


_HEADS: dict[Split, str] = {
    "holdout": "Holdout: items that neither the search nor the choice has seen",
    "selection": "Selection: items that the choice was made on",
    "search": "Search: items that the search was led by, and that flatter what it found",
}


def _table(facts: CardFacts, views: Facts, split: Split, id: int) -> str:
    arrows = {"maximize": "↑", "minimize": "↓"}
    header = ["model", *(f"{plain(each.name)} {arrows[each.metric.direction]}" for each in views.targets)]
    rows = [["**this merge**", *_cells(views, split, id)]]
    also = [each.name for each in views.baselines if each.id == id]
    if also:
        rows[0][0] += f" = {plain(also[0])}"
    others = [each for each in views.baselines if each.id != id and each.id in views.results.scores[split]]
    return table(header, [*rows, *([plain(each.name), *_cells(views, split, each.id)] for each in others)])


def _cells(views: Facts, split: Split, id: int) -> Iterator[str]:
    kept = views.retention(id, split)
    for place, target in enumerate(views.targets):
        score = views.score(id, split, target)
        if score is None:
            yield "–"
            continue
        limits = views.results.interval(id, split, target.name)
        ends = f" [{_end(target, limits.low)}, {_end(target, limits.high)}]"
        share = f" ({percent(kept[place])})" if kept is not None and views.has_scale(target, split) else ""
        yield plain(f"{number(target, score[0])}{ends}{share}")


def _end(target: Target, value: float) -> str:
    return number(target, value) if math.isfinite(value) else "?"


def _others(results: Results, split: Split, id: int) -> str:
    """Metrics that are no objective: those of constraints, and what evaluators report besides."""
    names = [name for name in sorted(results.scores[split][id]) if name not in results.objectives.names]
    said = []
    for name in names:
        limits = results.interval(id, split, name)
        value = results.scores[split][id][name][0]
        said.append(f"{name} {value:.4g} [{limits.low:.4g}, {limits.high:.4g}]")
    return plain(f"Besides: {'; '.join(said)}.", 2000) if said else ""


def _constraints(results: Results, id: int) -> Iterator[str]:
    for place, each in enumerate(results.constraints.all):
        said = []
        for split in SPLITS:
            violations = results.violations[split].get(id)
            if violations is not None and place < len(violations):
                said.append(f"{'kept' if violations[place] <= 0.0 else '**broken**'} on {split}")
        if said:
            yield f"Constraint {plain(str(each))}: {', '.join(said)}."


def _openings(results: Results, other_runs: bool) -> str:
    openings = Ledger(results.folder).openings(results.started.holdouts)
    often = {0: "has not been opened", 1: "was opened once"}
    text = f"The run's holdout {often.get(results.openings, f'was opened {results.openings} times')}"
    if openings.runs > 1 and not other_runs:
        return text + "."
    if openings.runs > 1:
        text += f"; {openings.runs} runs have looked at the same items, for {openings.recipes} merges in all"
    elif openings.recipes:
        text += f", for {openings.recipes} merges, baselines among them"
    return text + ". Every look that something is learnt from makes a holdout less of one."


def _items(results: Results) -> str:
    counted = []
    for evaluator, splits in results.started.items.items():
        sizes = ", ".join(f"{len(splits.get(split, []))} {split}" for split in ("selection", "holdout"))
        counted.append(f"{evaluator} {sizes}")
    return plain(f"Items: {'; '.join(counted)}.", 1000)


def _has_percentages(views: Facts) -> bool:
    return any(views.has_scale(target, views.results.split) for target in views.targets)
