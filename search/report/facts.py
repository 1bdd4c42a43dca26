"""What several parts of the report need to know about a run, worked out once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from evaluators.contract import Split
from search.objectives import Target
from search.report.history import History, read_history
from search.results import Results
from search.statistics import Interval
from search.store import Candidate

Score = tuple[float, float]
"""(value, standard error)."""


@dataclass(frozen=True)
class Named:
    """A candidate that the report calls by a name.

    Attributes:
        id: candidate number.
        name: "chosen", "base", "expert string", "average = best single λ (0.5)".
        role: decides its mark in the figures.
    """

    id: int
    name: str
    role: Literal["chosen", "reference", "baseline"]

    @property
    def short(self) -> str:
        """The first of its names."""
        return self.name.split(" = ")[0]


class Facts:
    """Views of a :class:`Results` that are cheap to ask for often.

    Args:
        results: of the run.
        room: share of what they took at first that sections with much data may take; less than 1 where the file
            became too large.

    Attributes:
        kept: what a section has worked out and needs again when it is made with less room, by the section's name.
    """

    def __init__(self, results: Results, room: float = 1.0) -> None:
        self.results = results
        self.room = room
        self.kept: dict[str, Any] = {}
        self.targets: tuple[Target, ...] = results.objectives.targets
        self.candidates: dict[int, Candidate] = {each.id: each for each in results.candidates}

    @cached_property
    def scored(self) -> list[int]:
        """Ids of the complete candidates with search scores, ascending."""
        scores = self.results.scores["search"]
        return [each.id for each in self.results.candidates if each.state == "complete" and each.id in scores]

    @cached_property
    def history(self) -> History:
        """When and how the run went, by its log.

        Raises:
            SearchError: the log is damaged.
        """
        return read_history(self.results.folder)

    @cached_property
    def pick(self) -> int | None:
        """The chosen candidate, before the choice the knee of the front so far, None before the first score."""
        return self.results.knee() if self.results.chosen is not None or self.results.front else None

    @property
    def pick_name(self) -> str:
        """What the pick is called."""
        return "chosen merge" if self.results.chosen is not None else "knee so far"

    @cached_property
    def baselines(self) -> list[Named]:
        """Baselines; one candidate that is several of them has all their names."""
        names: dict[int, list[str]] = {}
        for each in self.results.baselines:
            names.setdefault(each.candidate, []).append(each.label)
        return [
            Named(id, " = ".join(labels), "reference" if self._is_reference(labels[0]) else "baseline")
            for id, labels in names.items()
        ]

    @cached_property
    def named(self) -> list[Named]:
        """The pick first, then the baselines; a pick that is a baseline appears once, under both names."""
        if self.pick is None:
            return self.baselines
        also = [each.name for each in self.baselines if each.id == self.pick]
        first = Named(self.pick, " = ".join([self.pick_name, *also]), "chosen")
        return [first, *(each for each in self.baselines if each.id != self.pick)]

    def score(self, id: int, split: Split, target: Target) -> Score | None:
        """(value, standard error), or None where it was not measured."""
        return self.results.scores[split].get(id, {}).get(target.name)

    def interval(self, id: int, split: Split, target: Target) -> Interval | None:
        """95 % interval of a score (:func:`search.statistics.interval_of_score`), or None where it was not measured."""
        if target.name not in self.results.scores[split].get(id, {}):
            return None
        return self.results.interval(id, split, target.name)

    @cached_property
    def infeasible(self) -> frozenset[int]:
        """Complete candidates that break a constraint on the search split."""
        return frozenset(id for id in self.scored if self.results.judge.violation(id, "search") > 0.0)

    @cached_property
    def opened(self) -> list[int]:
        """Candidates whose holdout scores are known, ascending."""
        return sorted(self.results.scores["holdout"])

    @cached_property
    def names(self) -> dict[int, str]:
        """What a candidate is called beside its number: the pick and baselines by their names, and other labels."""
        asked = dict.fromkeys(self.picks, "asked for")
        labels = {each.id: each.label for each in self.results.candidates if each.label}
        return asked | labels | {each.id: each.name for each in self.named}

    @cached_property
    def picks(self) -> list[int]:
        """Candidates that somebody asked for by another mix, in that order."""
        return [id for id in dict.fromkeys(id for id, _ in self.results.picks) if id in self.candidates]

    def best_split(self, id: int) -> Split:
        """Where a named candidate is drawn: selection once the run compares there, if it was scored there."""
        split = self.results.split
        return split if id in self.results.scores[split] else "search"

    def retention(self, id: int, split: Split) -> tuple[float, ...] | None:
        """[objectives] retention, None where the candidate was not scored on this split."""
        scores = self.results.scores[split]
        if id not in scores:
            return None
        # the judge reads every score that it is given: hand it the few that matter
        few = {each: scores[each] for each in (id, *self._anchors.values()) if each in scores}
        return self.results.judge.retention(few, id)

    def has_scale(self, target: Target, split: Split) -> bool:
        """Whether retention means (score − base) / (own expert − base) here, and not the place within the bounds."""
        base = self._anchors.get("base")
        own = self._anchors.get(f"expert {target.expert}")
        if target.expert is None or base is None or own is None:
            return False
        low, high = self.score(base, split, target), self.score(own, split, target)
        return low is not None and high is not None and better(target, high[0], low[0])

    @cached_property
    def _anchors(self) -> dict[str, int]:
        labels = ["base", *(f"expert {each.expert}" for each in self.targets if each.expert is not None)]
        found = {label: self.results.judge.labelled(label) for label in labels}
        return {label: id for label, id in found.items() if id is not None}

    @staticmethod
    def _is_reference(label: str) -> bool:
        return label == "base" or label.startswith("expert ")


def better(target: Target, one: float, other: float) -> bool:
    """Whether ``one`` is strictly better than ``other`` in the metric's own direction."""
    return one < other if target.metric.direction == "minimize" else one > other


def gain(target: Target, one: float, other: float) -> float:
    """By how much ``one`` is better than ``other``, in the metric's units."""
    return other - one if target.metric.direction == "minimize" else one - other


def shown_folder(folder: Path) -> Path:
    """The run's folder as it was given; an absolute one is shown from the current directory, or by its name alone, so
    that a report can be passed on without telling how somebody's machine is laid out."""
    if not folder.is_absolute():
        return folder
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) and folder != here else Path(folder.name)


def shown_reference(reference: str) -> str:
    """A model reference as given in the config; of an absolute path only its last part."""
    path = Path(reference)
    return f"…/{path.name}" if path.is_absolute() or reference.startswith("~") else reference


def without_paths(text: str, results: Results) -> str:
    """A reason without the absolute paths of the run and its models."""
    known = {str(results.folder.absolute()): str(shown_folder(results.folder))}
    known |= {path: shown_reference(path) for path in results.started.paths.values()}
    for path in sorted(known, key=len, reverse=True):
        text = text.replace(path, known[path])
    return text
