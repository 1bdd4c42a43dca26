"""The whole check, in order: what is wrong in one place hides nothing of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evaluators.contract import Evaluator
from merging.calibration.store import default_cache
from merging.memory import free_memory
from merging.recipe import MergingError
from merging.sizes import ModelSizes, sizes_of
from search.checks.findings import Finding, Findings
from search.checks.hub import tried_once
from search.checks.licences import check_licences
from search.checks.machine import (
    check_devices,
    check_disk,
    check_run_directory,
    check_trackers,
    check_workers,
)
from search.checks.memory import check_memory
from search.checks.models import Models, check_models
from search.checks.plans import Plan, check_plan
from search.checks.scoring import LIVE_BYTES, check_evaluators, check_power, fit_models
from search.checks.subject import Subject, read_subject
from search.checks.tokens import check_tokens
from search.config import read_source
from search.config_problems import place_in_first
from search.errors import SearchError
from search.forecast.arithmetic import forecast, no_costs
from search.forecast.disk import Disk, disk_of
from search.forecast.outline import outline_of
from search.hybrid import first_of
from search.path_memory import largest_export
from search.positions import ConfigError, Placed
from search.virtual import evolved, made_of


@dataclass
class Checked:
    """What a check has found.

    Attributes:
        file: the config.
        findings: errors, then warnings, then notes, each in the order of the file.
        subject: what could be read of the config; None where nothing could.
        models, plan, evaluators: what the config names, as far as it could be used.
        first: of a hybrid, the plan of its first search.
        sizes: of the models; None where they cannot be read.
        disk: what a search writes; None where that cannot be told.
    """

    file: Path
    findings: tuple[Finding, ...] = ()
    subject: Subject | None = None
    models: Models | None = None
    plan: Plan | None = None
    first: Plan | None = None
    evaluators: Mapping[str, Evaluator] | None = None
    sizes: ModelSizes | None = None
    disk: Disk | None = None

    @property
    def errors(self) -> int:
        """How many errors there are."""
        return sum(each.level == "error" for each in self.findings)


def check_config(
    path: Path, overrides: Sequence[str] = (), *, runs: Path = Path("runs"), live: bool | None = None
) -> Checked:
    """Check a config, its models, its data and this machine. Nothing is started, and nothing written.

    Args:
        path: the YAML file.
        overrides: ``key.path=value`` each.
        runs: where run directories lie.
        live: whether to load the base with its weights, so that evaluators are prepared as in the run; where they are
            no more than :data:`search.checks.scoring.LIVE_BYTES` if None.
    """
    try:
        source, _ = read_source(path, overrides)
    except ConfigError as error:
        return Checked(path, tuple(Finding("error", each) for each in error.placed))
    except SearchError as error:  # an override
        return Checked(path, (Finding("error", Placed("", str(error))),))
    findings = Findings(source)
    found = Checked(path)
    with findings.listening(), tried_once():
        found.subject = read_subject(source, findings)
        if found.subject is None:
            findings.note((), "models and data were not looked at: there is too little of a config yet")
        else:
            _look(found, found.subject, runs, live)
    found.findings = findings.sorted
    return found


def _look(found: Checked, subject: Subject, runs: Path, live: bool | None) -> None:
    device = check_devices(subject)
    check_workers(subject)
    check_trackers(subject)
    check_run_directory(subject, runs)
    found.evaluators = check_evaluators(subject)
    check_power(subject, found.evaluators)
    found.models = models = check_models(subject)
    check_tokens(subject, models)
    check_licences(subject, models)
    found.plan = check_plan(subject, models.sources, found.evaluators)
    if subject.config.first is not None and subject.sound("first"):
        with subject.findings.elsewhere(partial(place_in_first, data=subject.loaded.source.data)):
            found.first = check_plan(_first(subject), models.sources, found.evaluators)
    found.sizes = _sizes(subject, models)
    if found.sizes is not None:
        check_memory(subject, found.sizes, device)
        if found.plan.stages and found.plan.rungs:
            found.disk = _disk(subject, runs, models, found.evaluators, found)
            check_disk(subject, found.disk, runs)
        fit_models(subject, models, found.evaluators, device, _loads(subject, found.sizes, live))


def _first(subject: Subject) -> Subject:
    """The first search of a hybrid, of which nothing is wrong by itself."""
    own = ("space", "search", "objectives")
    wrong = frozenset(each for each in subject.wrong if each[:1] and each[0] not in own)
    return Subject(first_of(subject.loaded), subject.findings, wrong)


def _sizes(subject: Subject, models: Models) -> ModelSizes | None:
    if "base" not in models.checkpoints:
        return None
    experts = {alias: folder for alias, folder in models.folders.items() if alias in models.checkpoints}
    try:
        return sizes_of(experts.pop("base"), experts, subject.config.models.dtype)
    except MergingError:
        return None  # said where the model was opened


def _loads(subject: Subject, sizes: ModelSizes, live: bool | None) -> bool:
    if subject.config.engine.kind != "hf":
        return False
    if live is not None:
        return live
    return sizes.live <= LIVE_BYTES and 3 * sizes.live < free_memory()


def _disk(subject: Subject, runs: Path, models: Models, evaluators: Mapping[str, Evaluator], found: Checked) -> Disk:
    """What a search writes at most, as far as that follows from the config alone."""
    if found.plan is None or found.sizes is None:
        raise RuntimeError("the plan comes before the disk")
    outline = outline_of(subject.loaded, evaluators, found.plan.stages)
    return disk_of(
        outline,
        forecast(outline, no_costs(outline)),
        evaluators,
        found.sizes,
        base=models.folders["base"],
        virtual=len(made_of(subject.config)),
        chosen=len(evolved(subject.config)),
        from_files=False,
        runs=runs,
        cache=default_cache(),
        largest=largest_export(subject.config, found.sizes),
    )
