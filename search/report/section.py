"""One section of the report, and how the sections of one page come together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from search.report.facts import Facts
from search.report.figures import Figure
from search.report.markup import Html, element


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Attributes:
        title: plain text; up to its first comma it also names the section's place on the page.
        body: markup, the places of the figures (:meth:`search.report.figures.Figure.html`) among it.
        figures: which the page draws by itself when it is loaded.
        data: name -> plain data; the page's scripts find it as ``report.data.NAME``. Names are unique on the page.
        scripts: of ``search/report/assets``, without ``.js``: ``("layers",)``. They run after ``report.js``, in the
            order of the sections, each once.
        styles: likewise, without ``.css``.
    """

    title: str
    body: Html
    figures: tuple[Figure, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    scripts: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its place on the page: the ``id`` of its element, ``how-this-was-made``."""
        return slug(self.title)

    def html(self) -> Html:
        """The element."""
        heading = f"{self.key}-title"
        return element(
            "section", element("h2", self.title, id=heading), self.body, id=self.key, aria_labelledby=heading
        )


Builder = Callable[[Facts], Section | None]
"""Makes a section of what is known of a run; None where there is nothing to show (yet)."""


def slug(title: str) -> str:
    """``how-this-was-made`` for "How this was made, and when"."""
    return re.sub(r"[^a-z0-9]+", "-", title.partition(",")[0].lower()).strip("-")


def asset(name: str) -> str:
    """The text of a file in ``search/report/assets``: ``report.js``."""
    return resources.files("search.report").joinpath("assets", name).read_text(encoding="utf-8")


def merged_data(own: Mapping[str, Any], sections: Sequence[Section]) -> dict[str, Any]:
    """What the page's scripts read: the page's own data and that of its sections.

    Raises:
        ValueError: two of them use one name.
    """
    found = dict(own)
    for section in sections:
        for name, value in section.data.items():
            if name in found:
                raise ValueError(f"section {section.title!r}: expected a name of its own for its data, found {name!r}")
            found[name] = value
    return found


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once, in the order of first use."""
    return list(dict.fromkeys(names))
