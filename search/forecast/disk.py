"""What a search will leave on disk, and what it will read: arithmetic on counts and on the models' headers.

What a run's database takes was fitted to finished runs: item scores as they lie in their table, the log's events with
what SQLite adds to them. It comes out within a fifth of what runs of 40 to 1857 candidates took (a test compares).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evaluators.contract import Evaluator
from search.forecast.arithmetic import Forecast
from search.forecast.outline import Outline
from search.ranges import Range

if TYPE_CHECKING:
    from merging.sizes import ModelSizes

REPORT = Range(4_900_000.0, 5_300_000.0, 6_000_000.0)
"""Of ``report.html``: plotly is 4.8 MB of it, and it is kept below 6."""
WRITE_AHEAD = Range(0.0, 4_200_000.0, 4_200_000.0)
"""Of the database's write-ahead log, while the run goes on."""
GENE = 21.0
"""Bytes of one number of a genome, in the log."""
EVENTS = 1100.0
"""Bytes that a candidate's events take beside its genome, with what follows from them in other tables."""
RUNG = 300.0
SQLITE = 1.35
"""Of the log, what pages and indices add."""
ITEM_ID = 80.0
"""Bytes of one item's id in all its copies."""
FLOAT32 = 4


@dataclass(frozen=True)
class Disk:
    """Bytes.

    Attributes:
        database: the run's log and item scores, with those of a control.
        report: the HTML file.
        export: one exported model, tokenizer and config with it.
        virtual: all virtual experts, and the choice of a first search, in the user's cache, once for all runs.
        read_first: of models when the run starts.
        read_each: of models for every candidate: 0 where the sources are kept in memory.
        free: where the run directory will be.
        free_cache: where the cache is.
    """

    database: Range
    report: Range
    export: Range
    virtual: Range
    read_first: Range
    read_each: Range
    free: int
    free_cache: int

    @property
    def run(self) -> Range:
        """The run directory, while the search runs."""
        return self.database + self.report + WRITE_AHEAD

    @property
    def enough(self) -> bool:
        """Whether the run directory, one export and the virtual experts have room."""
        return self.run.high + self.export.high < self.free and self.virtual.high < self.free_cache


def disk_of(
    outline: Outline,
    found: Forecast,
    evaluators: Mapping[str, Evaluator],
    sizes: ModelSizes,
    *,
    base: Path,
    virtual: int,
    from_files: bool,
    runs: Path,
    cache: Path,
    chosen: int = 0,
    largest: int | None = None,
) -> Disk:
    """What a search will take of the disk.

    Args:
        outline: of the search.
        found: its forecast.
        evaluators: whose item scores are stored.
        sizes: of the models.
        base: folder of the base: its tokenizer goes into an export.
        virtual: how many virtual experts there are.
        from_files: whether candidates read their sources from disk.
        runs: where run directories are made; may not be there yet.
        cache: the user's cache; may not be there yet.
        chosen: how many experts are the choice of a first search, and kept in the dtype of the live model.
        largest: bytes of the weights of an export, at most, where candidates differ in depth.
    """
    exported = Range.exactly(sizes.live) if largest is None else Range(sizes.around + sizes.layer, sizes.live, largest)
    sources = float(sum(sizes.sources.values()))
    beside = sum(each.stat().st_size for each in base.iterdir() if each.is_file() and each.suffix in _COMPANIONS)
    return Disk(
        database=database_bytes(outline, found, {name: len(each.metrics) for name, each in evaluators.items()}),
        report=REPORT,
        export=exported + Range.exactly(float(beside)),
        virtual=Range.exactly(float(virtual * sizes.parameters * FLOAT32 + chosen * sizes.live)),
        # once to know them by their content; once more into memory, where the system has not kept them
        read_first=Range(sources, sources, 2.0 * sources),
        read_each=Range(0.0, sources, sources) if from_files else Range.exactly(0.0),
        free=free_at(runs),
        free_cache=free_at(cache),
    )


def database_bytes(outline: Outline, found: Forecast, metrics: Mapping[str, int]) -> Range:
    """Of the run's database.

    Args:
        outline: of the search.
        found: its forecast.
        metrics: evaluator -> metrics of every item.
    """
    finals = {each.name: each.items for each in found.stages}
    scores = Range.exactly(0.0)
    for split, items in (("search", found.items), *((each, finals[each]) for each in ("selection", "holdout"))):
        rows = sum(_row(count * (16 * metrics[name] + 1)) for name, count in outline.splits[split].of.items())
        scores += items.scaled(rows / max(1, outline.splits[split].total))
    genes = {each.name: each.numbers + each.categories for each in outline.stages}
    events = Range.exactly(0.0)
    for stage in found.stages:
        if stage.name in genes:
            rungs = RUNG * (len(outline.rungs) - 1)
            events += stage.candidates.scaled((GENE * genes[stage.name] + EVENTS + rungs) * SQLITE)
    ids = ITEM_ID * sum(each.total for each in outline.splits.values())
    own = scores + events + Range.exactly(ids + 60_000.0)
    return own.scaled(2.0) if outline.control else own


def _row(size: int) -> float:
    """What a row with so many bytes of item scores takes in SQLite's pages: whole ones of its own where it is longer
    than one, the rest of it beside others."""
    payload, own = size + _BESIDE, 0
    if payload > _LONGEST_LOCAL:
        rest = _LEAST_LOCAL + (payload - _LEAST_LOCAL) % _OVERFLOW
        local = rest if rest <= _LONGEST_LOCAL else _LEAST_LOCAL
        own, payload = math.ceil((payload - local) / _OVERFLOW), local
    return own * _PAGE + _PAGE / max(1, _LONGEST_LOCAL // payload)


def free_at(folder: Path) -> int:
    """Free bytes where a folder is, or will be made."""
    here = folder.absolute()
    while not here.exists():
        here = here.parent
    return shutil.disk_usage(here).free


_PAGE, _OVERFLOW, _LONGEST_LOCAL, _LEAST_LOCAL = 4096, 4092, 4061, 489
"""Of SQLite's file format: a page, what one holds of a long row, and what of a row lies in the table's own pages."""
_BESIDE = 200
"""Bytes of a row of item scores beside the scores: names, digest, index."""

_COMPANIONS = frozenset({".json", ".txt", ".model", ".jinja"})
