"""The select boxes of a section that shows what one candidate is made of, and what their script needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from search.report.coefficients import Fitted
from search.report.facts import Facts
from search.report.figures import Data
from search.report.markup import count


def heading(facts: Facts, id: int) -> str:
    """``candidate 57 · chosen merge``."""
    names = [each.name for each in facts.named if each.id == id]
    return f"candidate {id}" + (f" · {names[0]}" if names else "")


def offered(facts: Facts, known: Collection[int], shown: int) -> Data:
    """What the select boxes offer.

    Args:
        facts: of the run.
        known: candidates that can be shown.
        shown: the one that is shown first.

    Returns:
        ``same``: repetitions -> what they repeat; ``names``; ``choices``: (heading, ids); ``shown``.
    """
    same = {
        str(each.id): each.duplicate_of
        for each in facts.results.candidates
        if each.duplicate_of in known and each.id not in known
    }
    names = {str(each.id): each.name for each in facts.named}
    return {"same": same, "names": names, "choices": _choices(facts, known), "shown": shown}


def missing_text(facts: Facts, fitted: Fitted) -> str:
    """Which candidates a figure cannot show, and why; "" where it can show all."""
    text = ""
    if fitted.left_out:
        text += (
            f"To keep the file small, {count(fitted.left_out, 'candidate')} of {len(facts.candidates)} are left out: "
            "those that are farthest from the front. `paretomerge export RUN --candidate ID --out DIR` writes the "
            "recipe of any candidate. "
        )
    if fitted.unreadable:
        text += f"The recipes of {count(len(fitted.unreadable), 'candidate')} cannot be read by this version."
    return text


def _choices(facts: Facts, known: Collection[int]) -> list[list[object]]:
    """(heading, ids) of the select boxes; each candidate stands under the first heading that it belongs to."""
    given: Mapping[str, Sequence[int]] = {
        "the pick and baselines": [each.id for each in facts.named],
        "front": facts.results.front,
        "finalists": facts.results.finalists,
        "asked for": [id for id, _ in facts.results.picks],
        "others": sorted(known),
    }
    seen: set[int] = set()
    found: list[list[object]] = []
    for title, ids in given.items():
        own = [id for id in dict.fromkeys(ids) if id in known and id not in seen]
        seen.update(own)
        if own:
            found.append([title, own])
    return found
