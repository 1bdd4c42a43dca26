"""What a run has found so far, read from its database alone: no model, no evaluator, no torch.

Status, report and export all read this, also while the search is running in another process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.contract import SPLITS, Split
from merging.recipe import Group, Recipe, SourceRef
from search.config import LoadedConfig
from search.consistency import check_consistent
from search.constraints import Constraints
from search.course import HEARD, MOST_FOR_VOLUME, Course, Running
from search.errors import SearchError
from search.events import Asked, EvaluationStarted, Incident, Opened, OptimizerNoted, Picked, RunStarted
from search.first_config import is_first, name_of
from search.judge import Baseline, Judge, Scores
from search.lock import is_held
from search.minibatch import independent
from search.objectives import Objectives
from search.optimizers.contract import Genome
from search.positions import YamlSource
from search.schema import Config
from search.space.methods import PLANNED
from search.stages import Stage, build_stages, stage_names
from search.statistics import Interval, interval_of_score
from search.store import DATABASE, FIRST, Candidate, Store

if TYPE_CHECKING:
    from search.claims import Claims


@dataclass(frozen=True)
class Results:
    """A snapshot of a run.

    Attributes:
        folder: the run directory.
        state: "running", "interrupted" or "finished".
        config: as resolved when the run started, with the budget as it is now.
        started: the first event.
        candidates: all, by id.
        scores: split -> candidate -> metric -> (value, standard error).
        finalists: named for the selection split; empty before.
        chosen: the run's recommendation, or None before.
        openings: how often the holdout was opened.
        picks: (candidate, rule) of every other mix that somebody asked for.
        notes: stage -> what its optimizer last said of itself.
        violations: split -> candidate -> [constraints] > 0 where one is broken.
        items: scored by the search, those of candidates that were stopped early among them.
        evaluations: started evaluations, on any split, repeated ones included.
        seconds: "materialize", "evaluate", "optimize", "store" -> wall seconds in all.
        candidate_seconds: (candidate, split) -> the same of one candidate.
        incidents: what went wrong and was mended, oldest first.
        course: how far it is: what is under way, what failed and why, what it took.
    """

    folder: Path
    state: str
    config: Config
    started: RunStarted
    candidates: tuple[Candidate, ...]
    scores: dict[Split, Scores]
    finalists: tuple[int, ...]
    chosen: int | None
    openings: int
    picks: tuple[tuple[int, str], ...]
    notes: dict[int, dict[str, float | str]]
    violations: dict[Split, dict[int, tuple[float, ...]]]
    items: int
    evaluations: int
    seconds: dict[str, float]
    candidate_seconds: dict[tuple[int, str], dict[str, float]]
    incidents: tuple[Incident, ...]
    course: Course

    @staticmethod
    def load(folder: Path) -> Results:
        """Read a run.

        Raises:
            SearchError: no run is there, or it is damaged, or it has not begun.
        """
        store = Store.open(folder, read_only=True)
        try:
            held = is_held(folder)
            started = store.started()
            if started is None:
                raise SearchError(f"{folder}: this run has not begun yet; wait a moment, or start it again")
            course = Course(started, folder)
            genomes: dict[int, Genome] = {}
            repeated = openings = 0
            picks: list[tuple[int, str]] = []
            notes: dict[int, dict[str, float | str]] = {}
            incidents: list[Incident] = []
            for entry in store.entries(*HEARD, Picked, OptimizerNoted):
                course.note(entry.event, entry.at)
                match entry.event:
                    case Asked() as asked:
                        genomes[asked.candidate] = asked.genome
                    case EvaluationStarted():
                        repeated += 1
                    case Opened():
                        openings += 1
                    case Picked() as picked:
                        picks.append((picked.candidate, picked.rule))
                    case OptimizerNoted() as noted:
                        notes[noted.stage] = noted.facts
                    case Incident() as incident:
                        incidents.append(incident)
            candidates = tuple(store.candidates(genomes))
            by_candidate = store.seconds()
            seconds = dict.fromkeys(("materialize", "evaluate", "optimize", "store"), 0.0)
            for each in by_candidate.values():
                for what, value in each.items():
                    seconds[what] = seconds.get(what, 0.0) + value
            duplicates = sum(each.duplicate_of is not None for each in candidates)
            results = Results(
                folder=folder,
                state=course.state(held=held),
                config=course.config,
                started=started,
                candidates=candidates,
                scores={split: store.scores(split) for split in SPLITS},
                finalists=course.finalists,
                chosen=course.chosen,
                openings=openings,
                picks=tuple(picks),
                notes=notes,
                items=course.pace.items,
                violations={split: store.violations(split) for split in SPLITS},
                evaluations=len(genomes) - duplicates + repeated,
                seconds=seconds,
                candidate_seconds=by_candidate,
                incidents=tuple(incidents),
                course=course,
            )
            check_consistent(results)
            return results
        finally:
            store.close()

    @property
    def name(self) -> str:
        """The run's name: its directory's; see :func:`search.first_config.name_of`."""
        return name_of(self.folder, first=self.is_first)

    @property
    def is_first(self) -> bool:
        """Whether it is the first search of a hybrid."""
        return is_first(self.folder, self.config, self.started)

    @cached_property
    def objectives(self) -> Objectives:
        """As they were when the run started."""
        return Objectives.from_data(self.started.objectives)

    @cached_property
    def loaded(self) -> LoadedConfig:
        """The config, with relative paths from where its file lay.

        Raises:
            SearchError: the run directory has no copy of the file.
        """
        given = YamlSource(self.folder / "config.yaml")
        path = Path(self.started.folder or self.folder) / "config.yaml"
        first = None if self.config.first is None else self.started.made_by.get(self.config.first.name)
        chosen = None if first is None else Recipe.from_yaml(first)
        return LoadedConfig(self.config, path, given, chosen, of_first=self.is_first)

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages and their spaces."""
        made_by = {alias: Recipe.from_yaml(text) for alias, text in self.started.made_by.items()}
        sources = {
            alias: SourceRef(self.started.paths[alias], content, made_by.get(alias))
            for alias, content in self.started.sources.items()
        }
        groups = [Group.parse(each) for each in self.started.groups]
        return build_stages(
            self.config,
            groups,
            sources,
            self.started.stage_ends,
            version=self.started.version,
            tensors={name: Group.parse(group) for name, group in self.started.tensors.items()} or None,
            calibration=self.started.calibration or PLANNED,
            borders=self.started.borders,
        )

    @cached_property
    def judge(self) -> Judge:
        """Fronts, knees and baselines."""
        return Judge(self.objectives, self.candidates, stage_names(self.config), self.violations)

    @cached_property
    def constraints(self) -> Constraints:
        """As they were when the run started."""
        return Constraints.from_data(self.started.constraints, self.started.clusters)

    @cached_property
    def claims(self) -> Claims | None:
        """What may be said of the chosen candidate; None before it has holdout scores, and for logs that lack what it
        takes."""
        from search.claims import Claims  # reads results itself

        if self.chosen is None or self.chosen not in self.scores["holdout"]:
            return None
        return Claims(self)

    @property
    def split(self) -> Split:
        """The split on which candidates are compared now: selection once every finalist has its score there."""
        selection = self.scores["selection"]
        return "selection" if self.finalists and self.chosen is not None and selection else "search"

    @cached_property
    def front(self) -> list[int]:
        """The non-dominated candidates: finalists on selection scores when there are any, else on search scores."""
        if self.split == "selection":
            return self.judge.front(self.scores["selection"], self.finalists, "selection")
        return self.judge.front(self.scores["search"])

    @cached_property
    def baselines(self) -> list[Baseline]:
        """What a winner has to beat."""
        return self.judge.baselines(self.scores["search"])

    @cached_property
    def hypervolume(self) -> float:
        """Of the front on the search split, in utilities, against the run's fixed reference point."""
        scores = self.scores["search"]
        return self.judge.hypervolume(scores, self.judge.front(scores))

    @property
    def running(self) -> tuple[Running, ...]:
        """Evaluations under way; those that were, where nobody works on the run."""
        return tuple(self.course.running.values())

    @property
    def known_hypervolume(self) -> float | None:
        """:attr:`hypervolume` where it is quick to tell: computed for few objectives, as the finish has logged it for
        many; None for a run of many objectives that is not finished."""
        if len(self.objectives.targets) <= MOST_FOR_VOLUME:
            return self.hypervolume
        return self.course.final_hypervolume

    def candidate(self, id: int) -> Candidate:
        """A candidate by its number.

        Raises:
            SearchError: there is none.
        """
        found = next((each for each in self.candidates if each.id == id), None)
        if found is None:
            last = len(self.candidates) - 1
            raise SearchError(f"{self.folder}: there is no candidate {id}; they are numbered 0 to {last}")
        return found

    def recipe(self, id: int) -> Recipe:
        """The recipe of a candidate, rebuilt from its genome and checked against the stored hash.

        Raises:
            SearchError: no such candidate, or this version decodes its genome to another recipe.
        """
        candidate = self.candidate(id)
        recipe = self.stages[candidate.stage].space.decode(candidate.genome)
        if recipe.hash != candidate.recipe_hash:
            raise SearchError(
                f"{self.folder}: candidate {id} was scored as recipe {candidate.recipe_hash[:12]}, but this version "
                f"decodes it to {recipe.hash[:12]}. Use the version that environment.json names."
            )
        return recipe

    def _first_facts(self) -> dict[str, Any]:
        """Of a hybrid: the expert that its first search has chosen, the recipe, and where that search is; None where
        its directory was removed."""
        first = self.config.first
        if first is None:
            return {}
        recipe = Recipe.from_yaml(self.started.made_by[first.name])
        run = None if self.first_run is None else str(self.first_run)
        return {"first": {"name": first.name, "recipe_hash": recipe.hash, "run": run}}

    @property
    def first_run(self) -> Path | None:
        """The directory of a hybrid's first search; None where there is none, or none any more."""
        folder = self.folder / FIRST
        return folder if self.config.first is not None and (folder / DATABASE).is_file() else None

    def knee(self) -> int:
        """The chosen candidate, or before the finish the knee of the front as it stands.

        Raises:
            SearchError: nothing is on the front yet.
        """
        if self.chosen is not None:
            return self.chosen
        if not self.front:
            raise SearchError(f"{self.folder}: no candidate has scores yet; resume the run with the same command")
        return self.judge.knee(self.scores[self.split], self.front)

    def values(self, id: int, split: Split) -> dict[str, float]:
        """``evaluator.metric`` -> value; a duplicate has the scores of the candidate it repeats."""
        own = self.scores[split].get(id)
        if own is None and (of := self.candidate(id).duplicate_of) is not None:
            own = self.scores[split].get(of)
        return {metric: value for metric, (value, _) in (own or {}).items()}

    def interval(self, id: int, split: Split, metric: str) -> Interval:
        """95 % interval of a candidate's score; the metric's own bounds keep it inside.

        Raises:
            KeyError: the candidate was not scored on the split.
        """
        value, error = self.scores[split][id][metric]
        own = self.started.metrics.get(metric, {"low": -math.inf, "high": math.inf})
        evaluator = metric.partition(".")[0]
        items = self.started.items.get(evaluator, {}).get(split, [])
        clusters = self.started.clusters.get(evaluator)
        everything = split != "search" or bool(self.candidate(id).label)
        n = independent(items, clusters, self.config.search.fidelity, everything)
        return interval_of_score(value, error, n, (own["low"], own["high"]))

    def status(self, *, candidates: bool = False) -> dict[str, Any]:
        """The facts that ``paretomerge status --json`` prints; documented in the README."""
        states = [each.state for each in self.candidates]
        counts: dict[str, Any] = {
            "done": states.count("complete") + states.count("duplicate"),
            "failed": states.count("failed"),
            "censored": states.count("censored"),
            "running": states.count("running"),
        }
        if candidates:
            counts["list"] = [
                {
                    "id": each.id,
                    "state": each.state,
                    "stage": stage_names(self.config)[each.stage],
                    "label": each.label,
                    "recipe_hash": each.recipe_hash,
                    "search": self.values(each.id, "search"),
                    "seconds": self.candidate_seconds.get((each.id, "search"), {}),
                    **({"reason": each.reason} if each.reason else {}),
                    **({"duplicate_of": each.duplicate_of} if each.duplicate_of is not None else {}),
                }
                for each in self.candidates
            ]
        return {
            "name": self.name,
            "state": self.state,
            **self._first_facts(),
            "budget": self.config.search.budget.candidates,
            "candidates": counts,
            "objectives": self.started.objectives,
            "front": [
                {
                    "id": id,
                    "recipe_hash": self.candidate(id).recipe_hash,
                    "search": self.values(id, "search"),
                    "selection": self.values(id, "selection"),
                }
                for id in self.front
            ],
            "chosen": None
            if self.chosen is None
            else {
                "id": self.chosen,
                "recipe_hash": self.candidate(self.chosen).recipe_hash,
                **{split: self.values(self.chosen, split) for split in SPLITS},
            },
            "baselines": [
                {
                    "label": each.label,
                    "id": each.candidate,
                    "recipe_hash": self.candidate(each.candidate).recipe_hash,
                    **{split: self.values(each.candidate, split) for split in SPLITS},
                }
                for each in self.baselines
            ],
            "hypervolume": self.known_hypervolume,
            "constraints": [
                {
                    "says": str(each),
                    "kept_by": sum(row[place] <= 0.0 for row in self.violations["search"].values()),
                }
                for place, each in enumerate(self.constraints.all)
            ],
            "optimizers": {stage_names(self.config)[stage]: facts for stage, facts in self.notes.items()},
            "picks": [{"id": id, "rule": rule} for id, rule in self.picks],
            "items": self.items,
            "evaluations": self.evaluations,
            "holdout_openings": self.openings,
            "seconds": self.seconds,
        }
