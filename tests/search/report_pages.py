"""The report as a test reads it: its elements, scripts, words and tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from search.report.facts import Facts
from search.report.figures import page_data
from search.report.html import render
from search.report.markup import Html
from search.report.page import page
from search.report.section import Builder, merged_data
from search.results import Results

SHARED: dict[tuple[object, ...], Results] = {}
"""Runs that several tests only look at, by what they were made with."""
PAGES: dict[int, Page] = {}
"""Their reports."""


def shared_run(synthetic_run: Callable[..., Results], folder: Path, **settings: Any) -> Results:
    """A run made by the factory fixture, once for all tests that look at one of these settings."""
    key = tuple(sorted((name, repr(value)) for name, value in settings.items()))
    if key not in SHARED:
        SHARED[key] = synthetic_run(folder / "run", **settings)
    return SHARED[key]


def page_of(results: Results) -> Page:
    """The report of a run, without the megabytes of plotly; that of a shared run is made once."""
    known = any(results is each for each in SHARED.values())
    if known and id(results) in PAGES:
        return PAGES[id(results)]
    found = Page(render(results).replace(get_plotlyjs(), "plotly", 1))
    if known:
        PAGES[id(results)] = found
    return found


def page_with(results: Results, build: Builder) -> Page:
    """A page with one section alone."""
    facts = Facts(results)
    section = build(facts)
    assert section is not None
    data = merged_data(page_data(facts, section.figures), [section])
    return Page(page(results.name, Html(), [section], data, "plotly"))


class Page(HTMLParser):
    """The elements, scripts, visible text and tables of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.styles, self.text = "", ""
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("meta", "link"):
            return
        self._open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        elif tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("th", "td"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag  # what is opened is closed, in order
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif inside == "style":
            self.styles += data
        else:
            self.text += data
            if inside == "caption":
                self._caption += data
            elif "th" in self._open or "td" in self._open:
                self._rows[-1][-1] += data

    @property
    def data(self) -> dict[str, Any]:
        found = [text for attributes, text in self.scripts if attributes.get("id") == "report-data"]
        return dict(json.loads(found[0]))


def resolved(page: Page) -> list[dict[str, Any]]:
    """The figures with columns and colours filled in, as the page's script does."""
    columns = page.data["columns"]
    columns["hover"] = [f"candidate {id}" for id in columns["id"]]
    columns["spread"] = [0.0] * len(columns["id"])
    columns["symbol"] = ["circle-open" if broken else "circle" for broken in columns["broken"]]
    places = page.data["front"]["places"]

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return [fill(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "css" in value:
            assert f"{value['css']}:" in page.styles
            return "#123456"
        if "says" in value:
            keys = [key.split(":") for key in value["says"]]
            assert all(places[id][view]["scores"] for view, id in keys)  # the script has what it says of each
            return [f"candidate {id}" for _, id in keys]
        if "column" in value:
            return columns[value["column"]][:: value.get("every", 1)]
        return {key: fill(each) for key, each in value.items()}

    return [fill(each) for each in page.data["figures"]]
