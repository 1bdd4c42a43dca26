"""The report's tables: scores by split, the front, failures, time, and what the run was made of."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import search
from evaluators.contract import SPLITS, Split
from search.objectives import Target
from search.report.facts import Facts, gain, shown_folder, shown_reference, without_paths
from search.report.markup import (
    Html,
    count,
    duration,
    element,
    join,
    measured,
    percent,
    scrolling,
    table,
)

MOST_IDS = 20
"""Candidate numbers that are named for one reason of failure."""


def scores_table(facts: Facts) -> Html:
    """The pick and the baselines on every split, with 95 % intervals, and what they keep on the last of them."""
    splits = [split for split in SPLITS if any(each.id in facts.results.scores[split] for each in facts.named)]
    groups = [
        element("th", each.name, element("small", _direction(each)), colspan=str(len(splits) + 1), scope="colgroup")
        for each in facts.targets
    ]
    under = [element("th", each, scope="col") for _ in facts.targets for each in (*splits, "kept")]
    rows = []
    for each in facts.named:
        name = element("th", each.name, element("small", f" candidate {each.id}"), scope="row")
        retained = _last_retention(facts, each.id)
        cells = []
        for index, target in enumerate(facts.targets):
            cells += [element("td", measured(target, facts.score(each.id, split, target))) for split in splits]
            cells.append(element("td", _kept(facts, target, index, retained)))
        rows.append(element("tr", name, cells, class_="pick" if each.role == "chosen" else ""))
    caption = "Scores with half-widths of 95 % intervals, by split"
    corner = element("td", rowspan="2")
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", corner, groups), element("tr", under)),
        element("tbody", rows),
    )
    note = (
        "Intervals are value ± 1.96 standard errors over the items, which are taken as independent; near the ends of a "
        "metric's range they are too narrow. "
    )
    unopened = "– : not scored on that split. " if splits != ["search"] else ""
    kept = (
        "kept: (score − base) / (own expert − base) on the last split that has scores; – where there is no such scale."
    )
    return join([scrolling(whole, caption), element("p", note + unopened + kept, class_="note")])


def optimism_table(facts: Facts) -> Html:
    """How much the search flattered the chosen merge; empty before its holdout is known."""
    id = facts.results.chosen
    if id is None or id not in facts.results.scores["holdout"]:
        return Html()
    rows = []
    for target in facts.targets:
        row = [target.name]
        for split in ("search", "selection"):
            first, last = facts.score(id, split, target), facts.score(id, "holdout", target)
            if first is None or last is None:
                row.append("–")
            else:
                row.append(measured(target, (gain(target, first[0], last[0]), math.hypot(first[1], last[1]))))
        rows.append(row)
    return join(
        [
            table("Optimism of the chosen merge", ["objective", "search − holdout", "selection − holdout"], rows),
            element(
                "p",
                "In the metric's units, signed so that positive means that the first split flattered the merge. It "
                "holds the luck of being picked, and any difference in difficulty between the splits; ± is the 95 % "
                "half-width of the difference.",
                class_="note",
            ),
        ]
    )


def front_table(facts: Facts) -> Html:
    """Every member of the front."""
    split = facts.results.split
    splits: list[Split] = ["search", "selection"] if split == "selection" else ["search"]
    header = ["candidate", "recipe"]
    header += [f"{target.name}, {each}" for target in facts.targets for each in splits]
    header += [f"{target.name}, kept" for target in facts.targets]
    rows = []
    for id in facts.results.front:
        retained = facts.retention(id, split)
        name = str(id) + (" chosen" if id == facts.results.chosen else "")
        row = [name, element("code", facts.candidates[id].recipe_hash[:12])]
        row += [measured(target, facts.score(id, each, target)) for target in facts.targets for each in splits]
        row += [_kept(facts, each, index, (split, retained)) for index, each in enumerate(facts.targets)]
        rows.append(row)
    return table(f"The front by {split} scores; kept: retention on {split} items", header, rows, tall=True)


def failures_table(facts: Facts) -> Html:
    """Reasons, and the candidates that have them."""
    reasons: dict[str, list[int]] = {}
    for each in facts.results.candidates:
        if each.state in ("failed", "censored"):
            reason = without_paths(each.reason, facts.results) or "no reason was recorded"
            reasons.setdefault(f"{each.state}: {reason}", []).append(each.id)
    if not reasons:
        return element("p", "No candidate failed.")
    rows = []
    for reason, ids in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[1])):
        more = f" and {len(ids) - MOST_IDS} more" if len(ids) > MOST_IDS else ""
        rows.append([reason, str(len(ids)), ", ".join(str(each) for each in ids[:MOST_IDS]) + more])
    return table("What failed, and why", ["reason", "how often", "candidates"], rows, tall=True)


def time_table(facts: Facts) -> Html:
    """Where the time went."""
    seconds = facts.results.seconds
    whole = sum(seconds.values())
    rows = [
        [
            what,
            duration(value),
            percent(value / whole) if whole else "–",
            duration(value / max(1, facts.results.evaluations)),
        ]
        for what, value in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    rows.append(
        ["all", duration(whole), percent(1.0) if whole else "–", duration(whole / max(1, facts.results.evaluations))]
    )
    label = f"Wall time of {count(facts.results.evaluations, 'evaluation')} on all splits"
    return table(label, ["part", "time", "share", "per evaluation"], rows)


def made_of(facts: Facts) -> Html:
    """Models, items, environment, versions."""
    started, config = facts.results.started, facts.results.config
    optimizer = config.search.optimizer
    references = {"base": config.models.base, **config.models.experts}
    models = [
        [alias, shown_reference(references.get(alias, alias)), element("code", content)]
        for alias, content in started.sources.items()
    ]
    items = [
        [name, *(str(len(splits.get(each, []))) for each in SPLITS), element("code", started.evaluators.get(name, "–"))]
        for name, splits in started.items.items()
    ]
    settings = [
        ["optimizer", " ".join([optimizer.name, *(f"{name}={value}" for name, value in optimizer.options.items())])],
        ["seed", str(config.search.seed)],
        ["budget", count(config.search.budget.candidates, "candidate")],
        ["engine", started.engine],
        ["CPU threads", str(started.threads)],
        ["holdout opened", count(facts.results.openings, "time")],
        ["written by", f"paretomerge {search.__version__}"],
    ]  # fmt: skip
    return join(
        [
            table("Models, by the content of their tensors", ["model", "given as", "content hash"], models),
            table("Items per split", ["evaluator", *SPLITS, "fingerprint"], items),
            table("Settings", ["what", "value"], settings),
            _environment(facts.results.folder),
        ]
    )


def commands(facts: Facts) -> Html:
    """How to export, and how to go on."""
    folder = shown_folder(facts.results.folder)
    run = shlex.quote(str(folder))
    parts = []
    if facts.pick is not None:
        out = shlex.quote(str(folder / "export" / str(facts.pick)))
        parts += [
            element("p", f"To have the {facts.pick_name} as a Hugging Face folder:"),
            element("pre", f"paretomerge export {run} --candidate {facts.pick} --out {out}"),
        ]
    words = ["paretomerge run CONFIG"]
    words += [] if folder.parent == Path("runs") else ["--runs", shlex.quote(str(folder.parent))]
    words += [] if folder.name == facts.results.config.name else ["--name", shlex.quote(folder.name)]
    if facts.results.state == "finished":
        words.append(f"--set search.budget.candidates={2 * facts.results.config.search.budget.candidates}")
        text = "To go on with a larger budget:"
    else:
        text = "To go on:"
    return join(
        [
            *parts,
            element("p", text),
            element("pre", " ".join(words)),
            element(
                "p",
                "CONFIG is the file that the run was started with, with the same --set options as then; config.yaml in "
                "the run directory is a copy of it, and resolved.yaml has every value.",
                class_="note",
            ),
        ]
    )


def _environment(folder: Path) -> Html:
    try:
        data = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        packages = data.pop("packages")
        pairs = [*packages.items(), *data.items()]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return element("p", "environment.json is missing from the run directory, or cannot be read.")
    rows = [[str(name), "not installed" if value is None else str(value)] for name, value in pairs]
    return table("Environment when the run started", ["what", "version"], rows)


def _last_retention(facts: Facts, id: int) -> tuple[Split, tuple[float, ...] | None]:
    for split in reversed(SPLITS):
        retained = facts.retention(id, split)
        if retained is not None:
            return split, retained
    return "search", None


def _kept(facts: Facts, target: Target, index: int, retained: tuple[Split, tuple[float, ...] | None]) -> str:
    split, shares = retained
    return percent(shares[index]) if shares is not None and facts.has_scale(target, split) else "–"


def _direction(target: Target) -> str:
    unit = f", {target.metric.unit}" if target.metric.unit else ""
    return f" {target.metric.direction}{unit}"
