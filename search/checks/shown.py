"""A check's outcome for people and for programs: findings, and what would be run."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from evaluators.contract import SPLITS
from search.calibration import calibrated, options_of, settings_of
from search.checks.course import Checked
from search.checks.findings import LEVELS
from search.checks.plans import Plan, sizes_of
from search.first_config import alone
from search.ranges import size_text
from search.schema import Config, VirtualConfig
from search.virtual import CHOICE, DERIVED, forms_of, members, told

if TYPE_CHECKING:
    from rich.table import Table

    from search.forecast.disk import Disk

_CODE_IS_RUN = "the code of a plug-in is run"


def _made(config: Config) -> dict[str, VirtualConfig]:
    """What is made of the experts, or only written in terms of them."""
    forms = forms_of(config).items()
    derived = {name: VirtualConfig(method=DERIVED, of=list(form), coefficients=form) for name, form in forms}
    return derived | config.models.virtual


def facts(checked: Checked) -> dict[str, Any]:
    """Everything that is known, as plain data. Sizes in bytes."""
    counts = {level + "s": sum(each.level == level for each in checked.findings) for level in LEVELS}
    return {
        "config": str(checked.file),
        "good": checked.errors == 0,
        **counts,
        "findings": [each.as_data(checked.file) for each in checked.findings],
        "summary": _summary(checked),
    }


def paragraphs(checked: Checked, width: int | None = None) -> Iterator[str]:
    """Findings as text, and how many there are.

    Args:
        checked: the outcome.
        width: columns to break messages at, between words; None: one line each. Lines of the file stay whole.
    """
    for each in checked.findings:
        if _CODE_IS_RUN not in each.placed.message:  # that was said before it ran
            message, *excerpt = each.as_text(checked.file).split("\n")
            lines = [message] if width is None else wrap(message, width, break_long_words=False, break_on_hyphens=False)
            yield "\n".join([*lines, *excerpt])
    counts = [(sum(each.level == level for each in checked.findings), level) for level in LEVELS]
    told = ", ".join(f"{count} {level}{'s' * (count > 1)}" for count, level in counts if count and level != "note")
    if told:
        yield f"{checked.file}: {told}"


def table(checked: Checked) -> Table:
    """What would be run, on 80 columns and more."""
    from rich.table import Table

    from search.report.terminal import cell

    shown = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column(no_wrap=True, style="bold")
    shown.add_column(overflow="fold")
    for name, text in _rows(checked):
        shown.add_row(name, cell(text))
    return shown


def _rows(checked: Checked) -> Iterator[tuple[str, str]]:
    summary = _summary(checked)
    if not summary or checked.subject is None:
        return
    for name, model in summary["models"].items():
        yield ("base" if name == "base" else f"expert {name}"), _model_text(model)
    for name, made in summary["virtual"].items():
        yield f"{made['kind']} {name}", made["told"]
    for alias, text in summary["calibration"].items():
        yield f"inputs of {alias}", text
    for name, each in summary["evaluators"].items():
        items = ", ".join(f"{count:,} {split}" for split, count in each["items"].items())
        yield f"evaluator {name}", f"{each['type']}: {', '.join(each['metrics'])}; items: {items}"
    yield "objectives", ", ".join(summary["objectives"])
    if summary["constraints"]:
        yield "constraints", "; ".join(summary["constraints"])
    if "first" in summary:
        yield f"expert {summary['first']['name']}", f"{CHOICE}, for {', '.join(summary['first']['objectives'])}"
        yield from _search_rows(summary["first"], "first, ")
    yield from _search_rows(summary, "second, " if "first" in summary else "")
    yield "workers", summary["workers"]
    if summary["disk"] is not None:
        yield "disk", _disk_text(summary["disk"])


def _search_rows(search: dict[str, Any], which: str) -> Iterator[tuple[str, str]]:
    """Stages, optimizer and limits of a search."""
    for stage in search["stages"]:
        choices = f", {stage['categorical']} choices" if stage["categorical"] else ""
        genes = "" if stage["fixed"] else f" of {stage['continuous']} numbers{choices}"
        many = "candidate" if stage["candidates"] == 1 else "candidates"
        yield f"{which}stage {stage['name']}", f"{stage['candidates']:,} {many}{genes}"
    yield f"{which}optimizer", f"{search['optimizer']}, seed {search['seed']}"
    if search["minibatch"] is None:
        yield f"{which}rungs", f"{', '.join(f'{each:,}' for each in search['rungs'])} items a candidate"
    else:
        redraw = search["minibatch"]["redraw"]
        again = "" if redraw == "never" else f", drawn anew for every {redraw} candidates"
        yield f"{which}minibatch", f"{search['rungs'][-1]:,} items a candidate{again}"
    yield f"{which}limits", _limits_text(search["budget"])


def _search_data(config: Config, plan: Plan) -> dict[str, Any]:
    """The same as plain data."""
    fidelity = config.search.fidelity
    return {
        "stages": [
            {
                "name": stage.name,
                "candidates": size,
                "fixed": bool(stage.fixed),
                "continuous": stage.space.box.continuous,
                "categorical": len(stage.space.box.categories),
            }
            for stage, size in zip(plan.stages, sizes_of(plan.stages, config.search.budget.candidates), strict=True)
        ],
        "optimizer": config.search.optimizer.name,
        "seed": config.search.seed,
        "rungs": list(plan.rungs),
        "minibatch": None if fidelity.minibatch is None else fidelity.model_dump(mode="json"),
        "budget": config.search.budget.model_dump(mode="json"),
    }


def _first_data(checked: Checked) -> dict[str, Any]:
    """Of a hybrid's first search."""
    if checked.subject is None or checked.subject.config.first is None or checked.first is None:
        return {}
    whole, objectives = checked.subject.config, [each.name for each in checked.first.targets]
    first = {"name": checked.subject.config.first.name, "objectives": objectives}
    return {"first": first | _search_data(alone(whole), checked.first)}


def _summary(checked: Checked) -> dict[str, Any] | None:
    """What would be run; None where errors leave that open."""
    subject, plan, models, evaluators = checked.subject, checked.plan, checked.models, checked.evaluators
    if subject is None or plan is None or models is None or evaluators is None or checked.errors:
        return None
    config = subject.config
    references = {"base": config.models.base, **config.models.experts}
    seen, sizes = models.sample, checked.sizes
    return {
        "name": config.name,
        "models": {
            alias: {
                "given": reference,
                "parameters": None if sizes is None else sizes.parameters,
                "bytes": None if sizes is None else sizes.sources.get(alias),
                "distance": None if seen is None else seen.distance.get(alias),
                "looked_at": None if seen is None else seen.share,
            }
            for alias, reference in references.items()
        },
        "virtual": {
            name: {
                "kind": "derived" if name in config.models.derived else "virtual",
                "method": each.method,
                "of": list(members(each, config)),
                "told": told(name, config),
            }
            for name, each in _made(config).items()
        },
        "calibration": {alias: _inputs_text(checked, alias) for alias in calibrated(config)},
        "evaluators": {
            name: {
                "type": str(config.evaluators[name]["type"]),
                "metrics": [metric.name for metric in each.metrics],
                "items": {split: len(each.items(split)) for split in SPLITS},
            }
            for name, each in evaluators.items()
        },
        "objectives": [each.name for each in plan.targets],
        "constraints": [str(each) for each in plan.constraints],
        **_first_data(checked),
        **_search_data(config, plan),
        "workers": _workers_text(checked),
        "disk": None if checked.disk is None else _disk_data(checked.disk),
    }


def _model_text(model: dict[str, Any]) -> str:
    parts = [model["given"]]
    if model["parameters"] is not None and model["bytes"] is not None:
        parts.append(f"{_counted(model['parameters'])} parameters, {size_text(model['bytes'])}")
    if model["distance"] is not None:
        sampled = "" if model["looked_at"] == 1.0 else f" in {model['looked_at']:.2%} of the weights"
        parts.append(f"‖τ‖/‖θ0‖ = {model['distance']:.3g}{sampled}")
    return "; ".join(parts)


def _inputs_text(checked: Checked, alias: str) -> str:
    if checked.subject is None:
        return ""
    config = checked.subject.config
    options = options_of(config, alias)
    whence = f"the evaluator {options.evaluator}" if options.data is None else "data of its own"
    return f"{settings_of(config).items} at most, from {whence}"


def _limits_text(budget: dict[str, Any]) -> str:
    parts = [f"{budget['candidates']:,} candidates"]
    parts += [f"{budget['items']:,} items"] if budget.get("items") else []
    parts += [f"{budget['hours']:g} hours"] if budget.get("hours") else []
    parts += [f"{budget['gpu_hours']:g} GPU-hours"] if budget.get("gpu_hours") else []
    if budget.get("plateau"):
        parts.append(f"or {budget['plateau']['candidates']} candidates without gain")
    return ", ".join(parts)


def _workers_text(checked: Checked) -> str:
    if checked.subject is None:
        return ""
    config = checked.subject.config
    kind = "this process" if config.workers.kind == "inline" else f"{config.workers.count or 'as many as fit'} of Ray"
    count = config.engine.threads
    threads = f", {count} thread{'s' * (count > 1)}" if count else ""
    return f"{kind}; {config.engine.kind} on {config.engine.device}{threads}"


def _disk_data(disk: Disk) -> dict[str, int]:
    """What a search writes at most, in bytes: the run directory, virtual experts beside what is in the cache already,
    one export; and what is free."""
    return {
        "run": round(disk.run.high),
        "cache": round(disk.virtual.high),
        "export": round(disk.export.high),
        "runs_free": disk.free,
        "cache_free": disk.free_cache,
    }


def _disk_text(disk: dict[str, Any]) -> str:
    parts = [f"run {size_text(disk['run'])} at most", f"export {size_text(disk['export'])}"]
    parts += [f"virtual experts {size_text(disk['cache'])}"] if disk["cache"] else []
    return ", ".join(parts) + f"; free: {size_text(disk['runs_free'])}"


def _counted(number: int) -> str:
    for bound, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= bound:
            return f"{number / bound:.3g} {word}"
    return str(number)
