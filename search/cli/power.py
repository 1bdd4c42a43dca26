"""``paretomerge power``."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.cli.options import ConfigArgument, JsonOption, SetOption

if TYPE_CHECKING:
    from rich.table import Table

    from evaluators.contract import Evaluator, Metric, Split
    from search.config import LoadedConfig

DISCORDANCES = (0.1, 0.2, 0.3)
POWER = 0.8
ALPHA = 0.05
LEVEL = 0.95
USUAL_FINALISTS = 16


def power(
    config: ConfigArgument,
    set: SetOption = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="A run with these items: how much its baselines differ is measured. By default runs/NAME if it fits.",
        ),
    ] = None,
    finalists: Annotated[
        int | None,
        typer.Option("--finalists", min=1, help="How many are tested; the run's or the config's if left out."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """What difference the config's items can resolve, before anything is spent on them. Loads no model.

    Two merges that are compared on the same n items differ on a share of them, the discordance; the more they differ
    item by item, the more items it takes to tell which is better.
    """
    from rich.console import Console

    from search.checks.hub import tried_once
    from search.config import load_config
    from search.report.console import print_json
    from search.setup import build_evaluators

    loaded = load_config(config, set or [])
    with tried_once():
        evaluators = build_evaluators(loaded)
    run, measured = _run_and_measured(run, loaded, evaluators)
    found = {
        "run": None if run is None else str(run),
        **facts(loaded, evaluators, measured, _tests(loaded, run, finalists)),
    }
    if json:
        print_json(found)
        return
    console = Console()
    console.print(_table(found))
    for line in _sentences(found):
        console.print(line, soft_wrap=not console.is_terminal)


def facts(
    loaded: LoadedConfig,
    evaluators: Mapping[str, Evaluator],
    measured: Mapping[str, dict[str, Any]],
    tests: Mapping[str, int],
) -> dict[str, Any]:
    """Everything the command says, as plain data. Differences are in the metric's own unit; None: cannot be found. Rows
    with "minibatch" are of what candidates are scored on, where that is not the whole split.

    Args:
        loaded: the config.
        evaluators: built, not prepared.
        measured: ``evaluator.metric`` -> what :func:`_measured` gives; may be empty.
        tests: "finalists", "objectives", "baselines" and their product, "tests".
    """
    from evaluators.contract import SPLITS

    rows = []
    for name, evaluator in evaluators.items():
        for metric in evaluator.metrics:
            for split in SPLITS:
                key, n = f"{name}.{metric.name}", len(evaluator.items(split))
                rows.append(_row(key, metric, split, n, measured.get(key), tests["tests"]))
                if split == "search":
                    of_all = partial(_row, key, metric, split, measured=measured.get(key), tests=tests["tests"])
                    rows += [_drawn(of_all, each, n) for each in _minibatches(loaded) if each["size"] < n]
    return {"name": loaded.config.name, "alpha": ALPHA, "power": POWER, "level": LEVEL, **tests, "rows": rows}


def _row(
    key: str, metric: Metric, split: Split, n: int, measured: Mapping[str, Any] | None, tests: int
) -> dict[str, Any]:
    from search.statistics import half_width

    width = metric.high - metric.low
    bounded = math.isfinite(width)
    row: dict[str, Any] = {
        "metric": key, "split": split, "items": n, "range": width if bounded else None,
        "half_width": _or_none(half_width(n, level=LEVEL) * width) if bounded else None,
        "resolves": None, "resolves_adjusted": None, "measured": None,
    }  # fmt: skip
    if bounded:
        for name, alpha in (("resolves", ALPHA), ("resolves_adjusted", ALPHA / tests)):
            row[name] = {str(each): _difference(n, alpha, width, {"discordance": each}) for each in DISCORDANCES}
    if measured is not None:
        spread = {measured["kind"]: measured["value"]}
        scale = width if measured["kind"] == "discordance" else 1.0
        row["measured"] = {
            **measured,
            "resolves": _difference(n, ALPHA, scale, spread),
            "resolves_adjusted": _difference(n, ALPHA / tests, scale, spread),
        }
    return row


def _minibatches(loaded: LoadedConfig) -> list[dict[str, Any]]:
    """Of each search of a config whose candidates are scored on some of the items: "of", "first" for that of a hybrid,
    else ""; "size" and "redraw" as in the config."""
    config = loaded.config
    searches = {"first": config.first.search} if config.first is not None else {}
    return [
        {"of": of, "size": each.fidelity.minibatch, "redraw": each.fidelity.redraw}
        for of, each in {**searches, "": config.search}.items()
        if each.fidelity.minibatch is not None
    ]


def _drawn(row_of: Callable[[int], dict[str, Any]], minibatch: dict[str, Any], n: int) -> dict[str, Any]:
    """The row of a minibatch: candidates that are scored on the same one compare as on so few items. "apart" is the
    smallest difference found between two that are not: unpaired, of 0/1 items of which half are right, the worst case.
    """
    row = row_of(minibatch["size"])
    apart = None
    if row["range"] is not None and minibatch["redraw"] != "never":
        apart = _difference(minibatch["size"], ALPHA, row["range"], {"sd": math.sqrt(0.5)})
    return {**row, "minibatch": {**minibatch, "out_of": n, "apart": apart}}


def _difference(n: int, alpha: float, scale: float, spread: Mapping[str, float]) -> float | None:
    from search.statistics import detectable_difference

    found = detectable_difference(
        n, discordance=spread.get("discordance"), sd=spread.get("sd"), alpha=alpha, power=POWER
    )
    return _or_none(scale * found)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


# -- a run's own noise ------------------------------------------------------------------------------------------------


def _run_and_measured(
    run: Path | None, loaded: LoadedConfig, evaluators: Mapping[str, Evaluator]
) -> tuple[Path | None, dict[str, dict[str, Any]]]:
    """The run that was named, or the config's own where there is one that fits, and what it measured."""
    from search.errors import SearchError
    from search.store import DATABASE

    if run is not None:
        return run, _measured(run, loaded, evaluators)
    own = Path("runs") / loaded.config.name
    if (own / DATABASE).is_file():
        with contextlib.suppress(SearchError):  # nobody asked for it: a run of other items is no mistake
            return own, _measured(own, loaded, evaluators)
    return None, {}


def _tests(loaded: LoadedConfig, run: Path | None, finalists: int | None) -> dict[str, int]:
    """How many p-values a report would adjust for."""
    from search.path_stages import models_of
    from search.virtual import experts_of

    settings = loaded.config.search
    # base, experts, average; the best λ and the best presets; the search with one coefficient per expert; the control
    alone = {*experts_of(loaded.config), *loaded.config.models.derived}
    if loaded.config.space.data_flow is None:
        baselines = len(alone) + 5 + (settings.per_expert_share > 0.0) + settings.control
    else:  # base, experts, model A up-scaled, it and every other model as stacked halves
        baselines = len(alone) + 1 + len(models_of(loaded.config)) + settings.control
    count = finalists or settings.finalists or USUAL_FINALISTS
    if run is not None:
        from search.results import Results

        results = Results.load(run)
        baselines = max(1, len(results.baselines))
        count = finalists or len(results.finalists) or count
    objectives = len(loaded.config.objectives)
    return {
        "finalists": count, "objectives": objectives, "baselines": baselines, "tests": count * objectives * baselines,
    }  # fmt: skip


def _measured(run: Path, loaded: LoadedConfig, evaluators: Mapping[str, Evaluator]) -> dict[str, dict[str, Any]]:
    """``evaluator.metric`` -> how much pairs of a run's baselines differ item by item, on the search split.

    "kind": "discordance" for 0/1 items, else "sd" of the contributions to the difference; "value": the median over the
    pairs, with "low" and "high", their range; "pairs": how many.

    Raises:
        SearchError: no run, other items than the config's, or fewer than two baselines scored.
    """
    from search.errors import SearchError
    from search.results import Results
    from search.statistics.samples import tabulate
    from search.store import Store

    results = Results.load(run)
    labelled = [each.id for each in results.candidates if each.label and each.state == "complete"]
    if len(labelled) < 2:
        raise SearchError(
            f"{run}: expected at least two baselines with scores, found {len(labelled)}; let the run go on for a while"
        )
    store = Store.open(run, read_only=True)
    try:
        scores = [store.item_scores(each, "search") for each in labelled]
    finally:
        store.close()
    found = {}
    for name, evaluator in evaluators.items():
        known = frozenset(evaluator.items("search").ids)
        if any(name not in each or not known.issuperset(each[name].ids) for each in scores):
            raise SearchError(
                f"{run}: the items that it scored with {name!r} are not those of {loaded.path}; give a run of this "
                "config, or leave --run out"
            )
        for metric in evaluator.metrics:
            table = tabulate([each[name] for each in scores], metric.name)
            found[f"{name}.{metric.name}"] = _spread(table.values, table.weights)
    return {key: each for key, each in found.items() if each is not None}


def _spread(values: Any, weights: Any) -> dict[str, Any] | None:
    from itertools import combinations

    import numpy as np

    from search.statistics.paired import contributions
    from search.statistics.samples import Table

    n = values.shape[1]
    binary = bool(np.isin(values, (0.0, 1.0)).all() and (weights == weights[:1, :1]).all())
    table = Table(values, weights)
    pairs = []
    for one, other in combinations(range(len(values)), 2) if n > 1 else ():
        if binary:
            pairs.append(float((values[one] != values[other]).mean()))
        else:
            pairs.append(float(np.std(contributions(table, one, other) * n, ddof=1)))
    pairs = [each for each in pairs if each > 0.0]  # equal merges, such as a base and a coefficient of 0
    if not pairs:
        return None
    kind = "discordance" if binary else "sd"
    return {"kind": kind, "value": float(np.median(pairs)), "low": min(pairs), "high": max(pairs), "pairs": len(pairs)}


# -- words ------------------------------------------------------------------------------------------------------------


def _table(found: Mapping[str, Any]) -> Table:
    from itertools import groupby

    from rich import box
    from rich.table import Table
    from rich.text import Text

    usual = str(DISCORDANCES[1])
    table = Table(
        title=f"What the items of {found['name']} can resolve",
        caption=f"smallest difference found with {found['power']:.0%} power at alpha {found['alpha']:g}, where two "
        "merges differ on so many of the items; in points, hundredths of the metric's range, or in its own unit if it "
        f"has none. Adjusted: for {_product(found)}."
        + (f" Measured: the median pair of baselines in {found['run']}." if found["run"] else ""),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("metric\n  split", overflow="fold")
    names = ["items", "± 95%", *(f"{each:.0%}" for each in DISCORDANCES), f"{DISCORDANCES[1]:.0%}\nadj."]
    for name in [*names, *(["meas-\nured", "adj.", "differ"] if found["run"] else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    for metric, rows in groupby(found["rows"], key=lambda row: row["metric"]):
        table.add_row(Text(metric, "bold"))
        for row in rows:
            plain, adjusted, width = row["resolves"] or {}, row["resolves_adjusted"] or {}, row["range"]
            values = [row["half_width"], *(plain.get(str(each)) for each in DISCORDANCES), adjusted.get(usual)]
            cells = [_points(each, width) for each in values]
            if found["run"]:
                cells += _measured_cells(row["measured"], width)
            table.add_row(f"  {_scope(row, short=True)}", str(row["items"]), *cells)
    return table


def _measured_cells(measured: Mapping[str, Any] | None, width: float | None) -> list[str]:
    if measured is None:
        return ["–"] * 3
    differ = f"{measured['value']:.0%}" if measured["kind"] == "discordance" else f"sd {measured['value']:.3g}"
    return [_points(measured["resolves"], width), _points(measured["resolves_adjusted"], width), differ]


def _points(value: float | None, width: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if width is None else f"{100.0 * value / width:.1f}"


def _product(found: Mapping[str, Any]) -> str:
    return (
        f"{found['tests']} tests ({found['finalists']} finalists × {found['objectives']} objectives × "
        f"{found['baselines']} baselines)"
    )


def _scope(row: Mapping[str, Any], *, short: bool = False) -> str:
    """Which items a row is of."""
    minibatch = row.get("minibatch")
    if minibatch is None:
        return str(row["split"])
    of = f"{minibatch['of']} search's " if minibatch["of"] else ""
    if short or minibatch["redraw"] == "never":
        return f"{of}minibatch"
    return f"{of}minibatch for {minibatch['redraw']} candidates"


def _sentences(found: Mapping[str, Any]) -> list[str]:
    told = [f"{row['metric']}, {_scope(row)}: with {row['items']} items, {_conclusion(row)}" for row in found["rows"]]
    drawn = [row for row in found["rows"] if "minibatch" in row]
    if drawn:
        told.append(
            "Candidates are compared with each other as the rows of minibatches say, and with baselines, which see all "
            "search items, no better. The finalists that minibatches name are decided among on all selection items."
        )
    return told


def _conclusion(row: Mapping[str, Any]) -> str:
    measured, plain = row["measured"], row["resolves"]
    if measured is None and plain is None:
        return "nothing can be said in advance, since the metric has no bounds; --run RUN measures how much it varies."
    span: dict[str, float | None] = {"": measured["resolves"]} if measured else plain
    told = [each for each in span.values() if each is not None]
    if not told:
        return "no difference that is possible can be told apart; take more items."
    minibatch = row.get("minibatch") or {}
    apart = minibatch.get("apart")
    ends = dict.fromkeys(_points(each, row["range"]) for each in (told[0], told[-1]))
    unit = "" if row["range"] is None else " points"
    rest = [f"{float(each):.0%}" for each, value in span.items() if value is None]
    also = f", and none at all where two merges differ on only {' or '.join(rest)} of the items" if rest else ""
    others = "" if apart is None else f"; between candidates of two minibatches, below {_points(apart, row['range'])}"
    return f"differences below {' to '.join(ends)}{unit} cannot be told apart{also}{others}."
