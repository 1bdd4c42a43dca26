"""The stages of a search: baselines first, then one coefficient per expert, then the whole space.

Every stage has its own space over the same recipes, so that what one stage learnt can be told to the next: a recipe
with one coefficient per expert is a point of every finer space (DESIGN §5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from merging.recipe import Group, SourceRef
from search.optimizers import registry
from search.optimizers.contract import Genome, Optimizer, Settings
from search.schema import Blocks, Config, Knots
from search.space import Blocks as BlockGranularity
from search.space import Bounds, Granularity, Space, SpaceError
from search.space import Knots as KnotGranularity

LAMBDA_GRID = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
"""Single λ for all experts, the baselines of task arithmetic (0.3–0.4 in its papers, ~1 for few small task vectors)."""


@dataclass(frozen=True)
class Stage:
    """One stage: where it looks, and who proposes.

    Attributes:
        index: from 0.
        name: "baselines", "per-expert" or "full".
        space: genome <-> recipe.
        fixed: (label, genome) of the baselines; empty where an optimizer proposes.
        end: candidate id before which the stage ends; None for the last one, which goes on to the budget.
    """

    index: int
    name: str
    space: Space
    fixed: tuple[tuple[str, Genome], ...] = ()
    end: int | None = None


def build_stages(
    config: Config, groups: Sequence[Group], sources: Mapping[str, SourceRef], ends: Sequence[int] | None = None
) -> list[Stage]:
    """The stages of a config.

    Args:
        config: the run's.
        groups: of the models' layout.
        sources: alias -> model, "base" among them.
        ends: stage ends as stored when the run started; computed from the budget for a new run.
    """
    granularity = _granularity(config.space.granularity)
    low, high = config.space.coefficient
    # every search starts from the same baselines, also where the user's bounds leave them out
    wide = Bounds(min(low, 0.0), max(high, LAMBDA_GRID[-1]))
    baselines = Space(
        base="base",
        sources=sources,
        experts=tuple(config.models.experts),
        groups=groups,
        granularity="model",
        kinds=_kinds(config, groups),
        coefficient=wide,
        dtype=config.models.dtype,
    )

    def space(granularity: Granularity) -> Space:
        return Space(
            base="base",
            sources=sources,
            experts=tuple(config.models.experts),
            groups=groups,
            granularity=granularity,
            kinds=_kinds(config, groups),
            coefficient=Bounds(low, high),
            methods=tuple(config.space.methods),
            method_blocks=config.space.method_blocks,
            normalize=config.space.normalize,
            dtype=config.models.dtype,
        )

    fixed = _baselines(baselines, tuple(config.models.experts))
    names = ["baselines", "full"]
    if granularity != "model" and config.search.per_expert_share > 0.0:
        names.insert(1, "per-expert")
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


def build_optimizer(config: Config, stage: Stage, budget: int, objectives: int) -> Optimizer:
    """The stage's optimizer, fresh.

    Args:
        config: the run's.
        stage: a stage without fixed genomes.
        budget: candidates that the stage was planned to have when the run started.
        objectives: how many.
    """
    low, high = config.space.coefficient
    count = len(config.models.experts)
    mean = min(max(1.0 / count, low), high)
    settings = Settings(
        box=stage.space.box,
        objectives=objectives,
        # stages draw from different streams of one seed
        seed=config.search.seed * 1000 + stage.index,
        budget=budget,
        reference=(0.0,) * objectives,
        center=stage.space.uniform(dict.fromkeys(config.models.experts, mean)),
        options=config.search.optimizer.options,
    )
    return registry.build(config.search.optimizer.name, settings)


def translate(genome: Genome, source: Space, target: Space) -> Genome | None:
    """A point of one space as a point of another, or None where it cannot be expressed there."""
    try:
        return target.encode(source.decode(genome))
    except SpaceError:
        return None


def _baselines(space: Space, experts: tuple[str, ...]) -> tuple[tuple[str, Genome], ...]:
    nothing = dict.fromkeys(experts, 0.0)
    labelled = [("base", nothing)]
    labelled += [(f"expert {name}", {**nothing, name: 1.0}) for name in experts]
    if len(experts) > 1:
        labelled.append(("average", dict.fromkeys(experts, 1.0 / len(experts))))
    labelled += [(f"task arithmetic {value}", dict.fromkeys(experts, value)) for value in LAMBDA_GRID]
    result: dict[str, tuple[str, Genome]] = {}
    for label, coefficients in labelled:
        genome = space.uniform(coefficients)
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


def _granularity(value: object) -> Granularity:
    if isinstance(value, Knots):
        return KnotGranularity(value.knots)
    if isinstance(value, Blocks):
        return BlockGranularity(value.blocks)
    return "layer" if value == "layer" else "model"
