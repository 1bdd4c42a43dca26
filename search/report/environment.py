"""The report's section on what the run was made of: models, data, settings, machine, starts, looks at the holdout."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import search
from evaluators.contract import SPLITS
from merging.bounded import read_json
from merging.recipe import Recipe
from search.borders import told
from search.data_flow_schema import DataFlowConfig
from search.errors import SearchError
from search.ledger import Ledger, Openings
from search.path_stages import indicators_of, models_of
from search.ranges import duration
from search.report.facts import Facts, shown_reference, without_paths
from search.report.markup import Html, count, element, join, listed, table
from search.report.section import Section
from search.schema import Config
from search.store import FIRST
from search.virtual import CHOICE, references

TITLE = "How this was made"


def environment_section(facts: Facts) -> Section:
    """Everything that identifies the run.

    Raises:
        SearchError: the log is damaged.
    """
    parts = [_models(facts), _items(facts), _settings(facts), _starts(facts), *_holdout(facts), _machine(facts)]
    return Section(TITLE, join(parts))


def _models(facts: Facts) -> Html:
    started = facts.results.started
    named = references(facts.results.config)
    rows = [
        [alias, shown_reference(named.get(alias, alias)), element("code", content)]
        for alias, content in started.sources.items()
    ]
    return table("Models, by the content of their tensors", ["model", "given as", "content hash"], rows)


def _items(facts: Facts) -> Html:
    started = facts.results.started
    rows = [
        [name, *(str(len(splits.get(each, []))) for each in SPLITS), element("code", started.evaluators.get(name, "–"))]
        for name, splits in started.items.items()
    ]
    note = "A fingerprint covers the evaluator's code, options and the content of every item."
    whole = table("Items per split", ["evaluator", *SPLITS, "fingerprint"], rows)
    return join([whole, element("p", note, class_="note")])


def _settings(facts: Facts) -> Html:
    started, config = facts.results.started, facts.results.config
    optimizer = config.search.optimizer
    rows = [
        ["optimizer", " ".join([optimizer.name, *(f"{name}={value}" for name, value in optimizer.options.items())])],
        ["seed", str(config.search.seed)],
        ["budget", _budget(facts)],
        ["schedule", f"{started.schedule or 'strict'}, window {started.window}"],
        ["workers", config.workers.kind],
        ["engine", started.engine or "known to the workers alone"],
        ["CPU threads", str(started.threads)],
        *([["blocks: auto", told(started.borders)]] if started.borders else []),
        ["calibration data", started.calibration or "none"],
        ["holdout opened", count(facts.results.openings, "time")],
        ["written by", f"paretomerge {search.__version__}"],
    ]  # fmt: skip
    rows += [[f"derived expert {name}", text] for name, text in config.models.derived.items()]
    if config.first is not None:
        recipe = Recipe.from_yaml(started.made_by[config.first.name])
        where = f"{CHOICE}, a run of its own in the folder {FIRST} of this one; recipe {recipe.hash[:12]}"
        rows.append([f"expert {config.first.name}", where])
    if config.space.data_flow is not None:
        rows.append(["data-flow space", _flow(config, config.space.data_flow)])
    if config.space.expression is not None:
        bounds = [f"{name} in [{low:g}, {high:g}]" for name, (low, high) in config.space.variables.items()]
        rows.append(["expression", f"{config.space.expression}; {', '.join(bounds)}"])
    rows += [[f"plug-in {name}", content] for name, content in started.plugins.items()]
    return table("Settings", ["what", "value"], rows)


def _flow(config: Config, flow: DataFlowConfig) -> str:
    """What paths may be like."""
    models = models_of(config)
    order = "all of a model, then all of the next" if flow.arrangement == "models" else "layer by layer of all models"
    scales = "no scales"
    if flow.scales != "off":
        low, high = flow.scales
        scales = f"scales {low:g} to {high:g}, one for every {'hop' if flow.scale_per == 'hop' else 'pair of layers'}"
    said = [
        f"layers of {listed(models)}",
        f"{count(flow.repetitions, 'repetition')}, {order}"
        if len(models) > 1
        else count(flow.repetitions, "repetition"),
        f"moved by up to {count(flow.shift, 'place')}" if flow.shift else "in this order",
        scales,
        f"ends {flow.ends}",
        f"at most {flow.depth} hops" if flow.depth is not None else f"at most twice the layers of {models[0]}",
        f"indicators by {indicators_of(config)}",
    ]
    return "; ".join(said)


def _budget(facts: Facts) -> str:
    """The limits, and the one at which the search ended."""
    budget = facts.results.config.search.budget
    limits = [count(budget.candidates, "candidate")]
    limits += [f"{budget.items} items"] if budget.items is not None else []
    limits += [f"{budget.hours:g} hours"] if budget.hours is not None else []
    limits += [f"{budget.gpu_hours:g} GPU-hours"] if budget.gpu_hours is not None else []
    limits += ["a plateau of the hypervolume"] if budget.plateau is not None else []
    spent = facts.history.spent
    ended = f"; the search ended at {spent.detail} ({spent.limit})" if spent is not None else ""
    return f"{listed(limits, 'or')}{ended}"


def _starts(facts: Facts) -> Html:
    history = facts.history
    rows = []
    before = facts.results.started.config.get("search", {}).get("budget", {}).get("candidates", 0)
    for index, start in enumerate(history.starts, start=1):
        now = start.budget or before
        grown = f"{before} → {now}" if now != before else str(now)
        rows.append(
            [
                str(index), _moment(start.at), str(start.after), duration(3600.0 * start.hours), grown,
                str(start.different) if index > 1 else "–",
            ]
        )  # fmt: skip
        before = now
    header = ["start", "when", "candidates before", "searched before", "budget", "proposed otherwise"]
    note = (
        "Between two starts a run's config may grow its budget, and change workers and trackers; all else is refused. "
        "Proposed otherwise: candidates of the log that the code of that start would not have proposed; 0 where the "
        "code is the same. "
        f"The last event was written {_moment(history.began[1])}."
    )
    return join([table("Starts of the run", header, rows), element("p", note, class_="note")])


def _holdout(facts: Facts) -> list[Html]:
    """The ledger: who looked when, and how many runs beside this one have looked at the same items."""
    openings = facts.history.openings
    if not openings:
        return [element("p", "The holdout has not been opened.")]
    rows = [
        [str(index), _moment(at), ", ".join(str(id) for id in event.candidates), element("code", event.data[:16])]
        for index, (at, event) in enumerate(openings, start=1)
    ]
    note = _others(facts)
    return [
        table("Openings of the holdout", ["opening", "when", "for candidates", "data"], rows),
        element("p", note, class_="note"),
    ]


def _others(facts: Facts) -> str:
    """What the ledger beside the runs says."""
    try:
        found = Ledger(facts.results.folder).openings(facts.results.started.holdouts)
    except SearchError as error:
        return f"The ledger beside the run cannot be read: {without_paths(str(error), facts.results)}"
    if found == Openings(0, 0):
        return (
            "There is no ledger beside this run, so nothing is known of other runs that looked at the same items: keep "
            "holdouts.jsonl with the runs."
        )
    return (
        f"By the ledger beside the run, {count(found.runs, 'run')} looked at these holdout items, for "
        f"{count(found.recipes, 'different merge')}. Each look that leads to a decision makes the holdout a little "
        "less of one."
    )


def _machine(facts: Facts) -> Html:
    try:
        data = read_json(facts.results.folder / "environment.json")
        packages = data.pop("packages")
        pairs = [*packages.items(), *_flat(data)]
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return element("p", "environment.json is missing from the run directory, or cannot be read.")
    rows = [[str(name), "not installed" if value is None else str(value)] for name, value in pairs]
    return table("Environment when the run started", ["what", "version"], rows)


def _flat(data: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name} ")
        elif isinstance(value, list):
            yield f"{before}{name}", ", ".join(str(each) for each in value) or "none"
        else:
            yield f"{before}{name}", "unknown" if value is None else value


def _moment(at: float) -> str:
    """Coordinated universal time, to the minute."""
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
    except (OverflowError, ValueError, OSError):
        return "unknown"
