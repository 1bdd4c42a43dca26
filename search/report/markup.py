"""HTML that is safe by default, and numbers as people read them.

Names of models, metrics and candidates, and the reasons of failures, come from outside. Text is escaped unless it is
:class:`Html`, which only :func:`element` and :func:`join` make.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from statistics import NormalDist

from search.objectives import Target
from search.statistics import Interval

_TURNING = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
Z95 = NormalDist().inv_cdf(0.975)
"""Standard errors in the half-width of a two-sided 95 % interval (normal approximation)."""


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Content = str | Sequence[str]


def escape(text: str) -> Html:
    """Text as markup, unless it is markup already."""
    return text if isinstance(text, Html) else Html(html.escape(readable(text), quote=True))


def readable(text: str) -> str:
    """The text with the signs spelled out that would turn the order of what stands around it."""
    return _TURNING.sub(lambda found: ascii(found[0])[1:-1], text)


def join(parts: Iterable[str], between: str = "") -> Html:
    """Escape each part that is not markup and put them in a row."""
    return Html(escape(between).join(escape(each) for each in parts))


def element(tag: str, /, *content: Content, **attributes: str | bool) -> Html:
    """One HTML element.

    Args:
        tag: its name.
        content: children; plain text is escaped, sequences are flattened by one level.
        attributes: ``class_`` and ``for_`` lose their underscore, other underscores become hyphens; True writes the
            bare name, False leaves it out.
    """
    words = [tag]
    for key, value in attributes.items():
        plain = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(plain)
        elif value is not False:
            words.append(f'{plain}="{escape(value)}"')
    children = [part for each in content for part in ([each] if isinstance(each, str) else each)]
    return Html(f"<{' '.join(words)}>{join(children)}</{tag}>")


def table(caption: str, header: Sequence[Content], rows: Sequence[Sequence[str]], *, tall: bool = False) -> Html:
    """A data table whose first column names its rows, in a box that scrolls sideways on a narrow screen.

    Args:
        caption: what it shows; read aloud first.
        header: one cell a column.
        rows: cells of each row.
        tall: scroll inside a box of limited height.
    """
    head = element("tr", [element("th", each, scope="col") for each in header])
    body = [
        element("tr", element("th", row[0], scope="row"), [element("td", each) for each in row[1:]]) for row in rows
    ]
    whole = element("table", element("caption", caption), element("thead", head), element("tbody", body))
    return scrolling(whole, caption, tall=tall)


def scrolling(content: Html, label: str, *, tall: bool = False) -> Html:
    """A box that scrolls, also with the keyboard."""
    return element(
        "div", content, class_="scroll tall" if tall else "scroll", tabindex="0", role="region", aria_label=label
    )


def details(summary: str, *content: Html) -> Html:
    """A part that opens on demand."""
    return element("details", element("summary", summary), *content)


def for_plot(text: str) -> str:
    """Text for plotly, which reads a few tags and entities as markup: they are shown as they were written."""
    return html.escape(text, quote=False)


def count(number: int, word: str, plural: str = "") -> str:
    """``1 candidate``, ``3 candidates``."""
    return f"{number} {word if number == 1 else plural or word + 's'}"


def listed(words: Sequence[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""


def number(target: Target, value: float) -> str:
    """A metric's value with a thousandth of its range as the last digit."""
    return f"{value:.{decimals(target)}f}".replace("-", "−")


def measured(target: Target, score: tuple[float, float] | None) -> str:
    """``0.712 ± 0.031``: a value and the half-width of its 95 % interval; – where nothing was measured.

    Args:
        target: whose score it is.
        score: (value, standard error).
    """
    if score is None:
        return "–"
    value, error = score
    spread = f"{Z95 * error:.{decimals(target)}f}" if math.isfinite(error) else "unknown"
    return f"{number(target, value)} ± {spread}"


def ranged(target: Target, interval: Interval | None) -> str:
    """``0.712 (0.681 to 0.743)``: a value and its 95 % interval; – where nothing was measured."""
    if interval is None:
        return "–"
    value, low, high = (number(target, each) for each in (interval.value, interval.low, interval.high))
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"{value} (interval unknown)"
    return f"{value} ({low} to {high})"


def candidate(id: int) -> Html:
    """A candidate's number as a button that selects it everywhere on the page."""
    return element(
        "button", str(id), type="button", class_="candidate", data_candidate=str(id), title=f"Select candidate {id}"
    )


def percent(share: float) -> str:
    """``83 %``; negative where it is."""
    rounded = round(100.0 * share)
    return f"{rounded} %".replace("-", "−")


def decimals(target: Target) -> int:
    """Digits after the point that a thousandth of the metric's range needs."""
    return min(9, max(0, 3 - math.floor(math.log10(target.high - target.low) + 1e-9)))
