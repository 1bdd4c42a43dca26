"""The stages of a search: baselines first, then one coefficient per expert, then the whole space.

Every stage has its own space over the same recipes, so that what one stage learnt can be told to the next: a recipe
with one coefficient per expert is a point of every finer space (DESIGN §5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from merging.recipe import Group, SourceRef
from search.algebra import searched_experts
from search.borders import as_borders, planned_borders, wants_borders
from search.events import LOG_VERSION
from search.optimizers import registry
from search.optimizers.contract import Genome, Optimizer, Settings
from search.path_stages import path_spaces
from search.schema import Config
from search.space import AnySpace, Borders, Bounds, Granularity, MethodChoice, PlacedBlocks, Space, SpaceError
from search.space import Blocks as BlockGranularity
from search.space import Knots as KnotGranularity
from search.space.methods import PLANNED
from search.space_schema import AUTO, Blocks, Knots
from search.virtual import ALONE, evolved, experts_of, forms_of

LAMBDA_GRID = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
"""Single λ for all experts, the baselines of task arithmetic (0.3–0.4 in its papers, ~1 for few small task vectors)."""

PRESETS = (
    MethodChoice("ties", {"density": 0.2}),
    MethodChoice("dare_ties", {"density": 0.5}),
)
"""What the papers recommend without validation data: TIES keeps a fifth of each task vector, averages what agrees and
adds it whole, λ = 1 (Yadav et al. 2023); DARE drops half before TIES' election (Yu et al. 2023, merges of several)."""


@dataclass(frozen=True)
class Stage:
    """One stage: where it looks, and who proposes.

    Attributes:
        index: from 0.
        name: "baselines", "per-expert" or "full"; a data-flow search has no "per-expert".
        space: genome <-> recipe.
        fixed: (label, genome) of the baselines; empty where an optimizer proposes.
        end: candidate id before which the stage ends; None for the last one, which goes on to the budget.
    """

    index: int
    name: str
    space: AnySpace
    fixed: tuple[tuple[str, Genome], ...] = ()
    end: int | None = None


def build_stages(
    config: Config,
    groups: Sequence[Group],
    sources: Mapping[str, SourceRef],
    ends: Sequence[int] | None = None,
    *,
    version: int = LOG_VERSION,
    tensors: Mapping[str, Group] | None = None,
    calibration: str = PLANNED,
    borders: Mapping[str, Sequence[int]] | None = None,
) -> list[Stage]:
    """The stages of a config.

    Args:
        config: the run's.
        groups: of the models' layout.
        sources: alias -> model, "base" among them.
        ends: stage ends as stored when the run started; computed from the budget for a new run.
        version: of the baselines, as stored when the run started: 1 for runs from before :data:`PRESETS`.
        tensors: canonical tensor name -> its group; needed at ``granularity: tensor``.
        calibration: fingerprint of the calibration data, for methods that need any.
        borders: stack -> first depths of the blocks, where the config leaves them to be placed; as stored when the run
            started. None: they are not known yet, and as many as there may be are assumed.

    Raises:
        SpaceError: the config's space contradicts itself or the model.
    """
    if config.space.data_flow is not None:
        return _path_stages(config, groups, sources, ends)
    placed = as_borders(borders or planned_borders(groups)) if wants_borders(config) else {}
    granularity = _granularity(config.space.granularity, placed)
    blocks = placed if config.space.method_blocks == AUTO else config.space.method_blocks
    experts = experts_of(config)
    low, high = config.space.coefficient
    methods = [
        each if isinstance(each, str) else MethodChoice(each.name, each.parameters) for each in config.space.methods
    ]
    common = partial(
        Space,
        base="base",
        sources=sources,
        experts=experts,
        groups=groups,
        kinds=_kinds(config, groups),
        dtype=config.models.dtype,
        tensors=tensors,
    )
    taking, mixing = searched_experts(config)
    # Every search starts from the same baselines, also where the user's bounds leave them out.
    derived = forms_of(config)
    written = [value for form in derived.values() for value in form.values()]
    baselines = common(
        granularity="model",
        coefficient=Bounds(min(low, 0.0, *written), max(high, LAMBDA_GRID[-1], *written)),
        methods=("task_arithmetic", *PRESETS) if version > 1 else ("task_arithmetic",),
    )

    def space(granularity: Granularity) -> Space:
        return common(
            granularity=granularity,
            coefficient=Bounds(low, high),
            shared=config.space.shared,
            mixing=mixing,
            taking=taking,
            methods=methods,
            method_blocks=blocks or 1,
            method_kinds=config.space.method_kinds,
            density=Bounds(*config.space.density),
            shared_density=config.space.shared_density,
            normalize=config.space.normalize,
            calibration=calibration,
        )

    fixed = _baselines(baselines, config, derived)
    names = stage_names(config)
    if ends is None:
        ends = _ends(names, len(fixed), config)
    stages = []
    for index, name in enumerate(names):
        end = ends[index] if index < len(ends) else None
        if name == "baselines":
            stages.append(Stage(index, name, baselines, fixed, end))
        else:
            stages.append(Stage(index, name, space("model" if name == "per-expert" else granularity), (), end))
    return stages


def stage_names(config: Config) -> list[str]:
    """Names of the stages by index; nothing is built for it."""
    finer = config.space.data_flow is None and config.space.granularity != "model"
    if finer and config.search.per_expert_share > 0.0:
        return ["baselines", "per-expert", "full"]
    return ["baselines", "full"]


def build_optimizer(
    config: Config,
    stage: Stage,
    budget: int,
    objectives: int,
    seconds: float | None = None,
    folder: Path | None = None,
) -> Optimizer:
    """The stage's optimizer, fresh.

    Args:
        config: the run's.
        stage: a stage without fixed genomes.
        budget: candidates that the stage was planned to have when the run started.
        objectives: how many.
        seconds: what evaluating one candidate costs, as logged when the stage began; None where nothing is known.
        folder: of the config file: where a plug-in's relative file is looked for.
    """
    settings = Settings(
        box=stage.space.box,
        objectives=objectives,
        # stages draw from different streams of one seed
        seed=config.search.seed * 1000 + stage.index,
        budget=budget,
        reference=(0.0,) * objectives,
        center=stage.space.center(),
        options=config.search.optimizer.options,
        seconds=seconds,
        canonical=stage.space.canonical,
        sure=stage.space.sure,
    )
    return registry.build(config.search.optimizer.name, settings, folder=folder)


def translate(genome: Genome, source: AnySpace, target: AnySpace) -> Genome | None:
    """A point of one space as a point of another, or None where it cannot be expressed there."""
    try:
        return target.encode(source.decode(genome))
    except SpaceError:
        return None


def _path_stages(
    config: Config, groups: Sequence[Group], sources: Mapping[str, SourceRef], ends: Sequence[int] | None
) -> list[Stage]:
    known, full = path_spaces(config, groups, sources)
    end = _ends(stage_names(config), len(known.points), config)[0] if ends is None else ends[0]
    return [Stage(0, "baselines", known, known.points, end), Stage(1, "full", full)]


def _baselines(space: Space, config: Config, derived: Mapping[str, dict[str, float]]) -> tuple[tuple[str, Genome], ...]:
    """What needs no search. What is made of the experts stands alone: an average over that too would be nobody's
    baseline. A derived expert may have a skill of its own, and is labelled as experts are."""
    experts = tuple(config.models.experts)
    nothing = dict.fromkeys(experts_of(config), 0.0)

    def everyone(value: float, method: str | None = None) -> Genome:
        return space.uniform(nothing | dict.fromkeys(experts, value), method)

    labelled = [("base", space.uniform(nothing))]
    labelled += [(f"expert {name}", space.uniform({**nothing, name: 1.0})) for name in experts]
    for name, form in derived.items():
        labelled.append((f"expert {name}", space.uniform(nothing | ({name: 1.0} if name in nothing else form))))
    made = (*config.models.virtual, *evolved(config))
    labelled += [(f"{name}{ALONE}", space.uniform({**nothing, name: 1.0})) for name in made]
    if len(experts) > 1:
        labelled.append(("average", everyone(1.0 / len(experts))))
    labelled += [(f"task arithmetic {value}", everyone(value)) for value in LAMBDA_GRID]
    for method in space.methods[1:]:
        labelled.append((f"{method} λ=1", everyone(1.0, method)))
    result: dict[str, tuple[str, Genome]] = {}
    for label, genome in labelled:
        result.setdefault(space.decode(genome).hash, (label, genome))
    return tuple(result.values())


def _ends(names: Sequence[str], baselines: int, config: Config) -> list[int]:
    budget = config.search.budget.candidates
    first = min(baselines, budget)
    if "per-expert" not in names:
        return [first]
    return [first, first + round((budget - first) * config.search.per_expert_share)]


def _kinds(config: Config, groups: Sequence[Group]) -> list[list[str]]:
    if config.space.kinds is not None:
        return [list(kinds) for kinds in config.space.kinds]
    present = sorted({group.kind for group in groups})
    return [[kind] for kind in present]


def _granularity(value: object, borders: Borders) -> Granularity:
    if isinstance(value, Knots):
        return KnotGranularity(value.knots)
    if isinstance(value, Blocks):
        return PlacedBlocks(borders) if value.blocks == AUTO else BlockGranularity(value.blocks)
    return cast(Granularity, value)
