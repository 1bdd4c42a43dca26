"""A path through the layers of several models in words: ``a0–7 b3 b4·0.82 a8–11``.

It is read from the recipe alone, so that a terminal, a card or a page can say it of any merge whose blocks come from
one model each, whoever made it: a search, a merge config, or a person.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from merging.recipe import Recipe
from search.report.markup import count, listed
from search.space.hops import Hop, path_of
from search.space.scales import SpaceError

STEP = 1000
"""Scales are shown by whole thousandths of them, rounded half up; texts have two digits."""
MOST_PARTS = 12
"""Parts of a path that is said in passing."""
MANY_PARTS = 24
"""Parts of a path, each with its scale, where there is room for some lines."""


@dataclass(frozen=True)
class Stretch:
    """Hops that follow each other in their model, too.

    Attributes:
        start: number of its first hop, which is the number of that block in the result, from 0.
        alias: the model.
        first, last: its layers.
        scale: of every hop of it, in whole :data:`STEP`; None where they differ.
    """

    start: int
    alias: str
    first: int
    last: int
    scale: int | None

    @property
    def length(self) -> int:
        """How many hops."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{layers_text(self.alias, self.first, self.last)}{times_text(self.scale)}"


def hops_in(recipe: Recipe) -> tuple[Hop, ...] | None:
    """The hops of a merge that is a path; None of one that merges weights, or says nothing of layers."""
    try:
        return path_of(recipe)
    except SpaceError:
        return None


def stretches(hops: Sequence[Hop], *, scaled: bool = True) -> list[Stretch]:
    """A path in as few parts as can be.

    Args:
        hops: in order.
        scaled: hops of different scales stand apart.
    """
    found: list[Stretch] = []
    for number, hop in enumerate(hops):
        scale = in_steps(hop.scale)
        before = found[-1] if found else None
        follows = before is not None and before.alias == hop.alias and before.last + 1 == hop.layer
        if before is not None and follows and (not scaled or before.scale == scale):
            together = scale if before.scale == scale else None
            found[-1] = Stretch(before.start, before.alias, before.first, hop.layer, together)
        else:
            found.append(Stretch(number, hop.alias, hop.layer, hop.layer, scale))
    return found


def path_text(hops: Sequence[Hop], most: int = MOST_PARTS, *, cut: bool = True) -> str:
    """``a0–7 b3 b4·0.82 a8–11``: a number after the dot is the scale of every hop of that part; 1.00 is not said.

    Args:
        hops: in order.
        most: parts; of a path that takes more, the scales are said as their range.
        cut: where it takes more even then, leave its middle out.
    """
    parts = [str(each) for each in stretches(hops)]
    if len(parts) <= most:
        return " ".join(parts)
    plain = [layers_text(each.alias, each.first, each.last) for each in stretches(hops, scaled=False)]
    if cut and len(plain) > most:
        half = most // 2
        plain = [*plain[:half], "…", *plain[-half:]]
    scales = scales_text(hops)
    return " ".join(plain) + (f" ({scales})" if scales else "")


def scales_text(hops: Sequence[Hop]) -> str:
    """``scales 0.71 to 1.32``; "" where all are 1."""
    steps = [in_steps(each.scale) for each in hops]
    if not steps or set(steps) == {STEP}:
        return ""
    low, high = hundredths(min(steps)), hundredths(max(steps))
    return f"scale {low}" if low == high else f"scales {low} to {high}"


def counts_text(hops: Sequence[Hop]) -> str:
    """``14 hops over 12 different layers, 9 of a and 3 of b; 2 of them more than once; scales 0.71 to 1.32``."""
    layers = {(each.alias, each.layer): 0 for each in hops}
    for each in hops:
        layers[each.alias, each.layer] += 1
    aliases = list(dict.fromkeys(each.alias for each in hops))
    of = [f"{sum(alias == each for each, _ in layers)} of {alias}" for alias in aliases]
    said = f"{count(len(hops), 'hop')} over {count(len(layers), 'different layer')}, {listed(of)}"
    again = sum(often > 1 for often in layers.values())
    scales = scales_text(hops)
    return "; ".join([said, *([f"{again} of them more than once"] if again else []), *([scales] if scales else [])])


def path_rows(hops: Sequence[Hop]) -> list[list[str]]:
    """A table's rows: the blocks of the result, the model and the layers that they are, the scale before each."""
    return [
        [_span(each.start, each.start + each.length - 1), each.alias, _span(each.first, each.last),
         hundredths(each.scale or STEP)]
        for each in stretches(hops)
    ]  # fmt: skip


PATH_HEADER = ("blocks", "model", "layers", "scale")
"""Of :func:`path_rows`."""


def layers_text(alias: str, first: int, last: int) -> str:
    """``a3``, ``a3–7``; a name of several letters keeps its distance: ``math.3``."""
    return f"{alias}{'' if re.fullmatch('[A-Za-z]', alias) else '.'}{_span(first, last)}"


def times_text(scale: int | None) -> str:
    """``·0.82``; "" for 1."""
    text = "" if scale is None else hundredths(scale)
    return f"·{text}" if text not in ("", "1.00") else ""


def in_steps(scale: float) -> int:
    """A scale in whole :data:`STEP`, halves up."""
    return int(scale * STEP + 0.5)


def hundredths(steps: int) -> str:
    """``0.82`` of 820, halves up: as the page's script rounds."""
    whole = (steps + 5) // 10
    return f"{whole // 100}.{whole % 100:02d}"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"
