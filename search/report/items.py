"""The report's section on single items: which the merge won and lost against each parent, and whether chance would."""

from __future__ import annotations

import math
from collections.abc import Sequence

from search.report.claim import p_value
from search.report.facts import Facts
from search.report.figures import Data
from search.report.item_texts import Said, texts_of
from search.report.markup import Html, count, element, join, listed, table
from search.report.section import Section
from search.report.wins import BEST_EXPERT, Duel, Duels, Listed, duels_on, splits_of

TITLE = "Items won and lost"
NAME = "items"
ROOM = 250_000
"""Characters of texts of items, in all."""

_DUELS = ["against", "metric", "won", "lost", "both right", "neither", "same", "difference (95 %)", "p, adjusted"]
_LISTED = ["item", "stratum", "what it asks", "merge", "the other"]


def items_section(facts: Facts) -> Section | None:
    """Wins and losses of the pick, which the reader may exchange for another finalist; None before the first score.

    Raises:
        SearchError: item scores are damaged.
    """
    splits = splits_of(facts)
    if facts.pick is None or not splits:
        return None
    found = [each for each in (duels_on(facts, split) for split in splits) if each.duels.get(facts.pick)]
    if not found:
        return Section(TITLE, element("p", "There is nothing to compare with yet: no baseline has scores."))
    texts, reasons = _texts(facts, found)
    first = found[0].duels[facts.pick]
    body = [
        _controls(facts, found),
        element("p", _heading(facts, found[0]), id="items-says", role="status", class_="note"),
        element(
            "figure",
            element(
                "div", class_="plot", id="items-0", role="img", style=f"height:{_height(first)}px",
                aria_label="Bars of items won and lost; their numbers are in the table below",
            ),
            element("figcaption", _caption(facts, found)),
        ),
        element("div", _duels_table(first), id="items-duels"),
        element("h3", "Items with the largest difference"),
        element("p", _listed_note(reasons), class_="note"),
        element("div", _listed_table("Won", first[0].best, texts), id="items-won"),
        element("div", _listed_table("Lost", first[0].worst, texts), id="items-lost"),
    ]  # fmt: skip
    return Section(TITLE, join(body), data={NAME: _data(facts, found, texts)}, scripts=(NAME,), styles=("details",))


def _controls(facts: Facts, found: Sequence[Duels]) -> Html:
    """Select boxes that the script fills."""
    boxes = [("split", "Items of"), ("merge", "Candidate"), ("against", "Against"), ("measure", "By")]
    return element(
        "div",
        [element("label", f"{text} ", element("select", id=f"items-{name}")) for name, text in boxes],
        class_="controls",
    )


def _heading(facts: Facts, found: Duels) -> str:
    return f"{_name(facts, facts.pick or 0)}, items of the {found.split} split"


def _name(facts: Facts, id: int) -> str:
    names = [each.name for each in facts.named if each.id == id]
    return f"candidate {id}" + (f" · {names[0]}" if names else "")


def _height(duels: Sequence[Duel]) -> int:
    return 110 + 30 * len(dict.fromkeys(each.against for each in duels))


def _caption(facts: Facts, found: Sequence[Duels]) -> str:
    text = (
        "Bars to the right: items on which the merge is better than the other; to the left: on which it is worse. "
        "Items on which they are equal are not drawn; of these the table says how many both have right. "
    )
    if any(duel.other is None for each in found for own in each.duels.values() for duel in own):
        text += (
            f"“{BEST_EXPERT}” is no model: for every item it takes the expert that does best on it, so no choice among "
            "experts can beat it; items won against it are those that no expert gets right. "
        )
    fidelity = facts.results.config.search.fidelity
    for each in found:
        if each.split == "search" and fidelity.minibatch is not None:
            text += (
                f"Each candidate was scored on {fidelity.minibatch} of the search items, baselines on all of them: "
                "every comparison is on the candidate's own items, and with whoever was scored on these. "
            )
        if each.split == "holdout":
            text += "Holdout items decided nothing; for the chosen merge p is the one of the comparisons above. "
        else:
            text += (
                f"Merges were picked by their {each.split} scores, which flatters them there: read its p-values as a "
                "description. "
            )
        if each.left_out:
            text += (
                f"On {each.split}, {count(each.left_out, 'candidate')} with scores are not compared here, to keep the "
                "report small. "
            )
    return text + (
        "p is two-sided: McNemar's mid-p for right or wrong, a sign-flip test for other scores; adjusted (Holm) over "
        "all that can be chosen here on one split."
    )


def _listed_note(reasons: Sequence[str]) -> str:
    text = (
        "Of items with the same difference first those that fewest of the other merges get right (won), or most "
        "(lost). "
    )
    if reasons:
        text += f"Items are named by their ids alone for {listed(list(reasons))}."
    return text


def _duels_table(duels: Sequence[Duel]) -> Html:
    return table("Items won and lost against each parent and baseline", _DUELS, [_duel_row(each) for each in duels])


def _duel_row(duel: Duel) -> list[str]:
    return [
        duel.against, duel.measure.name, str(duel.won), str(duel.lost), *_shared(duel), _difference(duel), _p(duel.p),
    ]  # fmt: skip


def _shared(duel: Duel) -> list[str]:
    """Items on which both are right, neither is, and all that are equal."""
    return ["–" if each is None else str(each) for each in (duel.both, duel.neither, duel.same)]


def _difference(duel: Duel) -> str:
    test = duel.test
    if math.isnan(test.difference):
        return "–"
    value = test.difference if abs(test.difference) >= 5e-4 else 0.0  # no "−0.000"
    interval = f" ({test.low:+.3f} to {test.high:+.3f})" if math.isfinite(test.low + test.high) else ""
    return f"{value:+.3f}{interval}".replace("-", "−")


def _p(value: float) -> str:
    return "–" if math.isnan(value) else p_value(value)


def _listed_table(what: str, items: Sequence[Listed], texts: dict[str, Said]) -> Html:
    rows = []
    for each in items:
        said = texts.get(each.id, Said("", ""))
        rows.append([each.id, said.stratum or "–", said.text or "–", _score(each.merge), _score(each.other)])
    if not rows:
        return element("p", f"{what}: no item.", class_="note")
    return element("div", table(f"{what}, against the first of the table above", _LISTED, rows), class_="words")


def _score(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _texts(facts: Facts, found: Sequence[Duels]) -> tuple[dict[str, Said], list[str]]:
    """What the listed items ask, the pick's first, as far as there is room; and the evaluators that cannot be read."""
    wanted: dict[str, dict[str, None]] = {}
    for duels in found:
        for own in duels.duels.values():
            for duel in own:
                names = wanted.setdefault(duel.measure.evaluator, {})
                names.update(dict.fromkeys(each.id for each in (*duel.best, *duel.worst)))
    texts: dict[str, Said] = {}
    reasons = []
    room = ROOM if facts.room >= 1.0 else round(facts.kept.get("texts of items", ROOM) * facts.room)
    for evaluator, ids in wanted.items():
        known, reason = texts_of(facts.results, evaluator)
        if reason:
            reasons.append(f"{evaluator} ({reason})")
        for id in ids:
            if id in known and room > 0:
                texts[id] = known[id]
                room -= len(known[id].text) + len(known[id].stratum)
    facts.kept.setdefault("texts of items", sum(len(each.text) + len(each.stratum) for each in texts.values()))
    return texts, reasons


def _data(facts: Facts, found: Sequence[Duels], texts: dict[str, Said]) -> Data:
    items: dict[str, int] = {}

    def lines(some: Sequence[Listed]) -> list[list[object]]:
        return [[items.setdefault(each.id, len(items)), _short(each.merge), _short(each.other)] for each in some]

    splits = [
        {
            "name": duels.split,
            "duels": {
                str(merge): [
                    [
                        each.against, duels.measures.index(each.measure), each.won, each.lost, *_shared(each),
                        _difference(each), _p(each.p), lines(each.best), lines(each.worst),
                    ]
                    for each in own
                ]
                for merge, own in duels.duels.items()
            },
            "merges": list(duels.merges),
        }
        for duels in found
    ]  # fmt: skip
    return {
        "splits": splits,
        "measures": [each.name for each in found[0].measures],
        "items": [[id, *texts.get(id, Said("", ""))] for id in items],
        "names": {str(each.id): each.name for each in facts.named},
        "shown": facts.pick,
        "headers": [_DUELS, _LISTED],
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")
