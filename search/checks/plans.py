"""The space, the stages and the budget of a config: that they can be built, and that they leave room for a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from evaluators.contract import Evaluator
from merging.recipe import SourceRef
from merging.sources import Sources
from search import virtual
from search.borders import MOST_PLANNED, wants_borders
from search.calibration import calibrated
from search.checks.findings import Findings
from search.checks.paths import check_paths
from search.checks.subject import Subject
from search.constraints import Constraint, constraint_of
from search.ingredients import Inputs
from search.objectives import Objectives, Target, target_of
from search.racing import Racer
from search.space.any_path import AnyPath
from search.space.methods import PLANNED
from search.space_schema import AUTO
from search.stages import Stage, build_optimizer, build_stages


@dataclass
class Plan:
    """What would be run, as far as it could be built.

    Attributes:
        targets: objectives that could be resolved.
        constraints: those that could be.
        stages: () where the space could not be built.
        rungs: items after which is decided whether a candidate goes on, over all evaluators.
    """

    targets: list[Target] = field(default_factory=list)
    constraints: list[Constraint] = field(default_factory=list)
    stages: tuple[Stage, ...] = ()
    rungs: tuple[int, ...] = ()


def check_plan(subject: Subject, sources: Sources | None, evaluators: Mapping[str, Evaluator]) -> Plan:
    """Resolve objectives and constraints one by one; build virtual experts, stages and optimizers over the models."""
    plan = Plan()
    _resolve(subject, evaluators, plan)
    if sources is not None:
        _check_virtual(subject, sources, evaluators)
        _build(subject, sources, plan)
    complete = len(plan.targets) == len(subject.config.objectives) and len(evaluators) == len(subject.config.evaluators)
    if complete:
        rungs = Racer(evaluators, Objectives(plan.targets), subject.config.search.fidelity).rungs
        sizes = [sum(len(ids) for ids in rung.values()) for rung in rungs]
        plan.rungs = tuple(sum(sizes[: place + 1]) for place in range(len(sizes)))
        if plan.stages and subject.sound("search"):
            _check_budget(subject, plan, evaluators)
    return plan


def _resolve(subject: Subject, evaluators: Mapping[str, Evaluator], plan: Plan) -> None:
    config = subject.config
    for index, objective in enumerate(config.objectives):
        if objective.metric.partition(".")[0] in evaluators and subject.sound("objectives", index):
            with subject.findings.at("objectives", index):
                plan.targets.append(target_of(subject.loaded, index, evaluators))
    for key in config.constraints:
        if key.partition(".")[0] in evaluators and subject.sound("constraints", key):
            with subject.findings.at("constraints", key):
                plan.constraints.append(constraint_of(subject.loaded, key, evaluators))
    used = {each.metric.partition(".")[0] for each in config.objectives}
    used |= {key.partition(".")[0] for key in config.constraints}
    for name in evaluators.keys() - used:
        if subject.sound("objectives") and subject.sound("constraints"):
            subject.findings.note(
                ("evaluators", name),
                "it is neither an objective nor a constraint: every candidate is scored by it, and nothing follows "
                "from its scores",
                at_key=True,
            )


def _check_virtual(subject: Subject, sources: Sources, evaluators: Mapping[str, Evaluator]) -> None:
    """Recipes of virtual experts, and the rows that experts are calibrated on."""
    config = subject.config
    whole = subject.sound("models", "virtual") and subject.sound("models", "derived")
    if not (whole and subject.sound("space") and subject.sound("calibration")):
        return
    refs = _planned(sources) | {name: SourceRef("", f"planned:{name}") for name in virtual.evolved(config)}
    for name, each in virtual.made_of(config).items():
        with subject.findings.at(*virtual.place_of(name, config)):
            refs[name] = SourceRef("", f"planned:{name}")
            virtual.recipe_of(each, config, sources.layout.groups, refs)
    inputs = Inputs(subject.loaded, sources, evaluators, lambda _: None)
    for alias in calibrated(config):
        given = config.calibration is not None and alias in config.calibration.inputs
        place = ("calibration", "inputs", alias) if given else ("models", "experts", alias)
        with subject.findings.at(*place):
            inputs.check_expert(alias)


def _planned(sources: Sources) -> dict[str, SourceRef]:
    """The models as recipes name them, without their content: hashing all weights would take minutes."""
    return {alias: SourceRef(str(each.path), f"planned:{alias}") for alias, each in sources.checkpoints.items()}


def _build(subject: Subject, sources: Sources, plan: Plan) -> None:
    config, layout = subject.config, sources.layout
    if not (subject.sound("space") and subject.sound("models", "virtual") and subject.sound("models", "derived")):
        return
    refs = _planned(sources) | {
        name: SourceRef("", f"planned:{name}") for name in (*virtual.made_of(config), *virtual.evolved(config))
    }
    tensors = {name: layout.group(name) for name in layout.names}
    with subject.findings.at("space"):
        plan.stages = tuple(build_stages(config, layout.groups, refs, tensors=tensors, calibration=PLANNED))
    if config.space.data_flow is not None:
        check_paths(subject, sources, plan.stages)
    if wants_borders(config):
        key = "method_blocks" if config.space.method_blocks == AUTO else "granularity"
        subject.findings.note(
            ("space", key),
            f"where blocks begin is found when the run starts, by the task vectors of every layer: {MOST_PLANNED} of "
            "them at most, which is what is counted here; `paretomerge plan` looks",
            at_key=True,
        )
    if not subject.sound("search", "optimizer") or not subject.sound("search", "budget"):
        return
    for stage, size in zip(plan.stages, sizes_of(plan.stages, config.search.budget.candidates), strict=True):
        if not stage.fixed and size:
            with subject.findings.at("search", "optimizer"):
                build_optimizer(config, stage, size, len(config.objectives), folder=subject.loaded.path.parent)


def sizes_of(stages: tuple[Stage, ...], candidates: int) -> list[int]:
    """Candidates of each stage."""
    ends = [candidates if stage.end is None else min(candidates, stage.end) for stage in stages]
    return [max(0, end - start) for start, end in zip([0, *ends], ends, strict=False)]


def _check_budget(subject: Subject, plan: Plan, evaluators: Mapping[str, Evaluator]) -> None:
    """Room for a search beside the baselines, and for the finalists."""
    findings, settings = subject.findings, subject.config.search
    sizes = sizes_of(plan.stages, settings.budget.candidates)
    baselines = sum(len(stage.fixed) for stage in plan.stages)
    if settings.budget.candidates <= baselines:
        findings.warn(
            ("search", "budget", "candidates"),
            f"the {baselines} baselines come first, so that {settings.budget.candidates} candidates leave none to "
            "search with",
        )
    items = sum(len(each.items("search")) for each in evaluators.values())
    if settings.budget.items is not None:
        left = (
            round(settings.budget.items * (1.0 - settings.reserve)) - min(baselines, settings.budget.candidates) * items
        )
        if left <= 0:
            findings.warn(
                ("search", "budget", "items"),
                f"{baselines} baselines on {items} items each take {baselines * items}, and {settings.budget.items} "
                f"with {settings.reserve:.0%} of them kept for the finalists leave none to search with",
            )
    _compare_with_genes(findings, plan, sizes)
    if settings.finalists is not None and settings.finalists > settings.budget.candidates:
        findings.note(("search", "finalists"), f"there are no more candidates than {settings.budget.candidates}")


_COARSER = "a coarser space.granularity"
_SMALLER_PATHS = "fewer repetitions, scales: off or scale_per: hop"


def _compare_with_genes(findings: Findings, plan: Plan, sizes: list[int]) -> None:
    for stage, size in zip(plan.stages, sizes, strict=True):
        genes = stage.space.box.continuous + len(stage.space.box.categories)
        if not stage.fixed and 0 < size < genes:
            findings.note(
                ("search", "budget", "candidates"),
                f"the stage {stage.name} has {size} candidate{'s' * (size > 1)} for {genes} genes, too few to find its "
                f"way: take more, or {_SMALLER_PATHS if isinstance(stage.space, AnyPath) else _COARSER}",
            )
