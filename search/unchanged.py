"""What must be unchanged for a run to go on: its config, its models, its data, its code.

Only a budget may grow, and a control may be asked for later: everything else would make scores of two kinds stand in
one log. What the first search of a hybrid has chosen is a model of the second one: once that has begun, not even the
first one's budget may grow.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from merging.recipe import Recipe
from search.config import LoadedConfig, resolved_yaml
from search.errors import SearchError
from search.events import RunStarted
from search.schema import Budget, Config, FidelityConfig, OptimizerConfig, PlateauConfig


def with_its_defaults(loaded: LoadedConfig, started: RunStarted) -> LoadedConfig:
    """A run that began when other values were the defaults goes on with those, where the config leaves them out."""
    if started.version > 1:
        return loaded
    config = loaded.config
    were = {"optimizer": OptimizerConfig(name="sms_emoa"), "finalists": 16, "fidelity": FidelityConfig(rungs=())}
    given = config.search.model_fields_set
    settings = config.search.model_copy(update={key: each for key, each in were.items() if key not in given})
    return replace(loaded, config=config.model_copy(update={"search": settings}))


def refuse_changed_config(now: Config, started: RunStarted, folder: Path) -> None:
    """Raises SearchError with a diff unless the config is the stored one, or differs in a grown budget, or in who works
    and who looks on, only."""
    before = _stored_config(started)
    grown = _grown(before.search.budget, now.search.budget)
    # a control is a run of its own beside this one: it may be asked for later
    settings = before.search.model_copy(update={"budget": now.search.budget, "control": now.search.control})
    before = before.model_copy(update={"workers": now.workers, "trackers": now.trackers})
    if grown and before.model_copy(update={"search": settings}) == now:
        return
    lines = list(
        difflib.unified_diff(
            resolved_yaml(before).splitlines(),
            resolved_yaml(now).splitlines(),
            "as started",
            "now",
            lineterm="",
            n=0,
        )
    )
    why = "this run was started with another config; only search.budget may grow"
    if started.of_hybrid and now.first is not None:
        raise SearchError(
            f"{folder}: this is the first search of a hybrid, in another place than its own. It goes on in "
            "runs/NAME/first, by the command that began it: put it back there, or give this search another --name"
        )
    if before.first is not None and before.first != now.first:
        why = (
            "its second search began with what the first one had chosen, so that nothing under `first` may change any "
            "more, and its budget no longer grow; search.budget, that of the second search, still may"
        )
    raise SearchError(
        f"{folder}: {why}. Restore the config, or give the changed search another --name. What differs:\n"
        + "\n".join(lines)
    )


def refuse_changed_inputs(started: RunStarted, now: RunStarted, folder: Path) -> None:
    """Raises SearchError unless models, layout, data and engine are what the run was started with."""
    changed = [_of_model(name, started, now) for name in _differing(started.sources, now.sources)]
    if started.calibration != now.calibration:
        changed.append("the calibration data, or the experts that they are of")
    changed += [f"evaluator {name!r} (its data, options or code)" for name in _differing(
        started.evaluators, now.evaluators
    )]  # fmt: skip
    if started.groups != now.groups:
        changed.append("the layout of the models")
    if started.engine != now.engine:
        changed.append(f"the engine (was {started.engine}, is {now.engine})")
    changed += [f"plug-in {name!r} (its code)" for name in _differing(started.plugins, now.plugins)]
    if not _same_objectives(started.objectives, now.objectives):
        changed.append("the objectives' metrics or bounds")
    if changed:
        raise SearchError(
            f"{folder}: since this run was started, these have changed: {'; '.join(changed)}. Its stored scores would "
            "not belong to them. Restore them, or start a new run with another --name."
        )


def _of_model(name: str, started: RunStarted, now: RunStarted) -> str:
    """A model that changed; of a virtual expert, why it came out otherwise."""
    before, after = (each.made_by.get(name) for each in (started, now))
    if before is None or after is None:
        return f"model {name!r}"
    if Recipe.from_yaml(before).hash != Recipe.from_yaml(after).hash:
        return f"virtual expert {name!r} (what it is made of: its experts or their calibration data)"
    return (
        f"virtual expert {name!r} (the cache did not have it any more, and made anew it has other weights: this "
        "version of paretomerge, of its libraries or this machine computes it differently)"
    )


def _stored_config(started: RunStarted) -> Config:
    """The config as it was, in today's keys: what there was no key for was off."""
    config = Config.model_validate(started.config)
    if started.version > 1:
        return config
    settings = config.search.model_copy(update={"fidelity": FidelityConfig(rungs=())})
    return config.model_copy(update={"search": settings})


def _grown(before: Budget, now: Budget) -> bool:
    limits = ((before.items, now.items), (before.hours, now.hours), (before.gpu_hours, now.gpu_hours))
    more = all(new is None or (old is not None and new >= old) for old, new in limits)
    return more and now.candidates >= before.candidates and _more_patient(before.plateau, now.plateau)


def _more_patient(before: PlateauConfig | None, now: PlateauConfig | None) -> bool:
    if before is None or now is None:
        return now is None
    return now.candidates >= before.candidates and now.gain <= before.gain


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


def _same_objectives(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> bool:
    """Equal in all that both logs say: older ones say less of a metric's own range."""
    if len(one) != len(other):
        return False
    pairs = zip(one, other, strict=True)
    return all(a[key] == b[key] for a, b in pairs for key in a.keys() & b.keys())
