"""A plan: what a search will come to in work, time and disk, from its config and, if wanted, from one measured merge
and evaluation. Nothing of it is written into a run directory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from merging.recipe import SourceRef
from search.algebra import searched_experts
from search.borders import MOST_PLANNED, place_borders, told, wants_borders
from search.config import LoadedConfig
from search.errors import SearchError
from search.forecast.arithmetic import Costs, Forecast, forecast, no_costs
from search.forecast.costs import Sample, costs_of, proposing, sample, trials
from search.forecast.disk import Disk, disk_of
from search.forecast.outline import Outline, outline_of
from search.hybrid import first_of
from search.path_memory import largest_export
from search.path_stages import deepest_path
from search.schema import Config
from search.space import PathSpace
from search.stages import Stage, build_optimizer, build_stages
from search.virtual import evolved, experts_of, made_of, needs_calibration
from search.workers.evaluation import CandidateFailed
from search.workers.opening import worker_threads

if TYPE_CHECKING:
    from merging import Sources
    from merging.sizes import ModelSizes
    from search.placement import Placement
    from search.setup import Setup

_LOG = logging.getLogger("paretomerge")


@dataclass(frozen=True)
class Plan:
    """What a search will come to.

    Attributes:
        outline: what the config asks for.
        found: counts; its times mean something where there are costs.
        disk: bytes.
        costs: of one merge and one evaluation; None where nothing was measured.
        timed: what was timed for that.
        threads: CPU threads that it was timed with; 0 where nothing was.
        notes: what the figures leave out, a sentence each.
        first: of the search before this one, where the config is of a hybrid.
    """

    outline: Outline
    found: Forecast
    disk: Disk
    costs: Costs | None = None
    timed: Sample | None = None
    threads: int = 0
    notes: tuple[str, ...] = ()
    first: Plan | None = None


def make_plan(
    loaded: LoadedConfig,
    sizes: ModelSizes,
    placement: Placement,
    *,
    measure: bool,
    runs: Path,
    say: Callable[[str], None] = _LOG.info,
) -> Plan:
    """Plan a search.

    Args:
        loaded: the config.
        sizes: of its models.
        placement: where they will lie; it fits.
        measure: load the models, and time some merges and evaluations.
        runs: where run directories are made.
        say: told one line a step.

    Raises:
        SearchError, MergingError, EvaluatorError, ZooError: what is wrong with the config, its models or its data.
    """
    from merging.calibration.store import default_cache
    from search.setup import build_evaluators, model_paths

    first = None
    if loaded.config.first is not None:
        say("planning the first search")
        first = make_plan(first_of(loaded), sizes, placement, measure=measure, runs=runs, say=say)
        say("planning the second search")
    began = time.perf_counter()
    base, experts = model_paths(loaded)
    measured = _Measured(loaded, say) if measure else None
    evaluators = measured.setup.evaluators if measured is not None else build_evaluators(loaded)
    sources = measured.setup.sources if measured is not None else opened(base, experts)
    borders = place_borders(loaded.config, sources, say) if measured is not None else {}
    stages = _stages(loaded.config, sources, borders)
    start = time.perf_counter() - began
    outline = outline_of(loaded, evaluators, stages, workers=max(1, placement.workers), gpus=placement.gpus)
    costs = measured.costs(outline, stages, start) if measured is not None else None
    found = forecast(outline, costs or no_costs(outline))
    disk = disk_of(
        outline,
        found,
        evaluators,
        sizes,
        base=base,
        virtual=len(made_of(loaded.config)),
        chosen=len(evolved(loaded.config)),
        from_files=any(part.where == "files" for part in placement.parts),
        runs=runs,
        cache=default_cache(),
        largest=largest_export(loaded.config, sizes),
    )
    if first is not None:  # its run lies in the other's directory
        before = first.disk
        disk = replace(disk, database=disk.database + before.database, report=disk.report + before.report)
    return Plan(
        outline=outline,
        found=found,
        disk=disk,
        costs=costs,
        timed=measured.timed if measured is not None else None,
        threads=measured.threads if measured is not None else 0,
        notes=(
            *_notes(loaded, outline, measured is not None),
            *_about_blocks(loaded.config, borders),
            *_about_paths(loaded.config, stages),
        ),
        first=first,
    )


def opened(base: Path, experts: Mapping[str, Path]) -> Sources:
    """Models of which only the headers are read."""
    from merging import Sources
    from merging.opening import open_models

    return Sources.opened(open_models(base, experts))


class _Measured:
    """The live model of a config, its costs timed. Only real experts are in it: virtual ones are not made for a plan,
    and methods that look at inputs are left to the run."""

    def __init__(self, loaded: LoadedConfig, say: Callable[[str], None]) -> None:
        import torch

        from search.setup import set_up

        say("loading models and data")
        self._loaded, self._say = loaded, say
        self.setup: Setup = set_up(loaded, worker_threads(loaded), make=False, say=say)
        self.threads = torch.get_num_threads()
        self.timed: Sample | None = None

    def costs(self, outline: Outline, stages: list[Stage], start: float) -> Costs:
        """Time merges and evaluations, and the optimizers."""
        from search.racing import Racer
        from search.workers.inline import InlineWorker

        loaded, setup = self._loaded, self.setup
        reduced = _with_real_experts(loaded.config)
        worker = InlineWorker(setup.materializer, setup.engine, setup.evaluators)
        racer = Racer(setup.evaluators, setup.objectives, loaded.config.search.fidelity)
        self._say("timing merges and evaluations on items of the search split")
        try:
            self.timed = sample(
                lambda recipe, items: worker.evaluate(recipe, "search", dict(items)),
                trials(_stages(reduced, setup.sources, real=True)),
                racer.rungs,
            )
        except CandidateFailed as failure:
            raise SearchError(
                f"{loaded.path}: none of the merges that were tried could be scored, so nothing can be timed: "
                f"{failure.reason}. `--no-measure` plans without times; `paretomerge check` looks closer"
            ) from failure
        self._say("timing the optimizer")
        plain = costs_of(self.timed, start, {}, list(setup.evaluators))
        seconds = plain.merge.middle + plain.scoring(outline.splits["search"], "middle")
        planned = {each.name: max(1, each.candidates) for each in outline.stages}
        propose = proposing(
            stages,
            outline,
            lambda stage: build_optimizer(
                loaded.config, stage, planned[stage.name], len(loaded.config.objectives), seconds, loaded.path.parent
            ),
            len(loaded.config.objectives),
        )
        more = (1 + len(experts_of(loaded.config))) / (1 + len(reduced.models.experts))
        return costs_of(self.timed, start, propose, list(setup.evaluators), more)


def _with_real_experts(config: Config) -> Config:
    """The config without experts that are made, and without methods that look at inputs. Layers of such experts cost
    what the base's do, which stand in for them."""
    experts, space = config.models.experts, config.space
    methods = [
        each for each in config.space.methods if not needs_calibration(each if isinstance(each, str) else each.name)
    ]
    update: dict[str, object] = {"methods": methods or ["task_arithmetic"]}
    written_out = space.expression is not None and set(searched_experts(config)[0]) <= set(experts)
    if not written_out:
        update |= {"expression": None, "variables": {}}
    if space.experts is not None:
        update["experts"] = [each for each in space.experts if each in experts] or None
    made = {"virtual": {}, "derived": config.models.derived if written_out else {}}
    if space.data_flow is not None and space.data_flow.models is not None:
        named = [each if each in experts else "base" for each in space.data_flow.models]
        update["data_flow"] = space.data_flow.model_copy(update={"models": list(dict.fromkeys(named))})
    models = config.models.model_copy(update=made)
    return config.model_copy(update={"space": space.model_copy(update=update), "models": models, "first": None})


def _stages(
    config: Config, sources: Sources, borders: Mapping[str, Sequence[int]] | None = None, *, real: bool = False
) -> list[Stage]:
    """The stages of a config.

    Args:
        config: the run's.
        sources: the models.
        borders: of blocks, where they were placed.
        real: their recipes are to be materialised; otherwise what the models contain need not be known, and is not
            read.
    """
    layout = sources.layout
    named = ("base", *experts_of(config))
    refs = {alias: sources.refs[alias] if real else SourceRef("", f"planned {alias}") for alias in named}
    tensors = {name: layout.group(name) for name in layout.names}
    return build_stages(config, layout.groups, refs, tensors=tensors, borders=borders)


def _about_blocks(config: Config, borders: Mapping[str, Sequence[int]]) -> list[str]:
    if not wants_borders(config):
        return []
    if borders:
        return [f"Blocks by the task vectors' statistics: {told(borders)}. A run keeps those that it begins with."]
    return [
        f"Where blocks begin is found when the run starts. {MOST_PLANNED} of them are assumed, or one for each layer: "
        "there will be no more."
    ]


def _about_paths(config: Config, stages: Sequence[Stage]) -> list[str]:
    full = stages[-1].space
    if not isinstance(full, PathSpace):
        return []
    deepest = deepest_path(config, full.layers)
    return [
        f"Paths have {deepest} layers at most, and the models {full.layers}: a deep one takes up to "
        f"{deepest / full.layers:.3g} times as long as model A. The times are of paths near model A, where the search "
        "begins."
    ]


def _notes(loaded: LoadedConfig, outline: Outline, measured: bool) -> list[str]:
    config, notes = loaded.config, []
    if made_of(config) and measured:
        notes.append(
            "Virtual experts, and derived ones, are made when the run starts, unless the cache has them: about as "
            "long as one merge and one export each, and for calibrated methods a pass over their inputs. That is "
            "not in the time."
        )
    if config.first is not None:
        notes.append(
            f"The expert {config.first.name} is not known before the first search has ended: merges with it were not "
            "timed, they take what others take."
        )
    if any(needs_calibration(each if isinstance(each, str) else each.name) for each in config.space.methods):
        notes.append("Methods that look at inputs are not in the time: their merges may take longer.")
    if outline.workers > 1 and measured:
        notes.append(
            "One worker was timed, alone: several that share a machine's memory and disk slow each other down."
        )
    if not measured and (config.search.budget.hours or config.search.budget.gpu_hours):
        notes.append("Hours end the search, and were not measured: the counts are those without that limit.")
    return notes
