"""Gram matrices of inputs that come from merged layers, block by block from the first (RegMean++).

RegMean takes each layer's inputs from the unmerged expert, but in the merged model they come from merged layers below.
Here the live model is, for a block and a source, the merge in everything that is used before the block, and the source
in the block itself, so that a block's matrices are collected when all below them are known. Nguyen et al. 2025,
"RegMean++: Enhancing Effectiveness and Generalization of Regression Mean for Model Merging", arXiv 2508.03121.
"""

from __future__ import annotations

from collections.abc import Mapping

from merging.calibration.grams import collect_grams
from merging.calibration.live import Live
from merging.calibration.samples import Samples
from merging.calibration.store import Writer
from merging.calibration.survey import Stage, Survey, stage_of
from merging.recipe import Assignment, Group, Recipe


def collect_sequential(
    live: Live,
    assignment: Assignment,
    samples: Mapping[str, Samples],
    writers: Mapping[str, Writer],
    memory: int,
) -> None:
    """Collect the matrices of sources stage by stage. The materializer's calibration must read the writers.

    Args:
        live: whose materializer merges.
        assignment: of the whole model, over the aliases of its sources.
        samples: alias -> inputs, of every source of the assignment.
        writers: alias -> where its matrices go, of the sources whose are not there yet.
        memory: bytes that matrices and buffers may take.

    Raises:
        MergingError: activations that are NaN or infinite, samples that the model refuses, or a merge that fails.
    """
    surveys = {alias: live.survey(alias, each) for alias, each in samples.items()}
    order = _order(surveys)
    rank = {stage: number for number, stage in enumerate(order)}
    for stage in order:
        for alias in writers:
            found = surveys[alias]
            if stage not in found.linear_stages():
                continue
            live.materializer.apply(_mixed(live, assignment, alias, stage, rank, found))
            collect_grams(live, found, samples[alias], alias, writers[alias], memory, (stage,))


def _order(surveys: Mapping[str, Survey]) -> list[Stage]:
    """The stages of all sources in the order of their first use; rare ones stand behind those that they follow."""
    longest = max(surveys.values(), key=lambda found: len(found.stages))
    order = list(longest.stages)
    for found in surveys.values():
        place = 0
        for stage in found.stages:
            if stage in order:
                place = order.index(stage) + 1
            else:
                order.insert(place, stage)
                place += 1
    return order


def _mixed(
    live: Live, assignment: Assignment, alias: str, stage: Stage, rank: Mapping[Stage, int], found: Survey
) -> Recipe:
    """The merge below a stage, the source in it, and above whatever is not run: the base."""
    source, base = live.alone(alias), live.base
    beyond = found.after((stage,))

    def what(each: Stage) -> Assignment:
        if rank.get(each, len(rank)) < rank[stage]:
            return assignment
        return base if each in beyond else source

    groups: dict[Group, Assignment] = {}
    tensors: dict[str, Assignment] = {}
    for group in live.sources.layout.groups:
        if group.depth is None:
            groups[group] = source
            tensors |= {name: what(stage_of(live.sources, name)) for name in live.sources.layout.of_group(group)}
        else:
            groups[group] = what(Stage(group.stack, group.depth, ""))
    return live.recipe(groups, tensors)
