"""What there is to say of a data-flow space, once the models are known."""

from __future__ import annotations

from collections.abc import Sequence

from merging.sources import Sources
from search.checks.subject import Subject
from search.path_stages import REAL_INDICATORS, flow_of, indicators_of
from search.positions import Location
from search.space import PathSpace
from search.stages import Stage

_FLOW: Location = ("space", "data_flow")

MANY_GENES = 1000
"""Above this, a search with full covariances slows down, and few budgets suffice."""


def check_paths(subject: Subject, sources: Sources, stages: Sequence[Stage]) -> None:
    """That paths of these models can be exported with their scales; and what may not be meant so.

    Args:
        subject: the config, with a data-flow space.
        sources: its models.
        stages: of the search; empty where they could not be built.
    """
    from merging.dataflow import residual_writers

    config, findings = subject.config, subject.findings
    flow = flow_of(config)
    if flow.scales != "off":
        with findings.at(*_FLOW, "scales"):
            residual_writers(sources)
    full = stages[-1].space if stages else None
    if not isinstance(full, PathSpace):
        return
    if full.depth < full.layers:
        findings.note(
            (*_FLOW, "depth"),
            f"model {full.models[0]} has {full.layers} layers: with {full.depth} at most the search begins with the "
            f"first ones of it{' and the last' if flow.ends == 'fixed' else ''}, and finds shallower models only",
        )
    if flow.scale_per == "pair" and full.box.continuous > MANY_GENES:
        findings.note(
            (*_FLOW, "scale_per"),
            f"that is a gene for each of {(len(full.models) * full.layers) ** 2:,} pairs of layers, few of which occur "
            "in any path; scale_per: hop has one for each slot",
        )
    if config.search.optimizer.name in REAL_INDICATORS and indicators_of(config) == "choice":
        findings.note(
            (*_FLOW, "indicators"),
            f"{config.search.optimizer.name} takes choices for whole numbers; threshold is what the paper searched "
            "with CMA-ES, and auto takes",
        )
    if flow.indicators == "threshold" and (config.search.control or config.search.optimizer.name == "random"):
        findings.warn(
            (*_FLOW, "indicators"),
            "a random search draws real indicators evenly, and half of all slots make no model; with auto, or choice, "
            "it draws paths near model A",
        )
    if config.search.optimizer.options.get("start") == "middle":
        findings.warn(
            ("search", "optimizer"),
            "start: middle has every indicator at its threshold: the first paths have half of all slots in them, and "
            "are no models. The published data-flow search starts near model A, which is start: center",
        )
    if (choices := len(full.box.categories)) and config.search.optimizer.name in ("gp", "grid", "sobol"):
        findings.warn(
            ("search", "optimizer"),
            f"{config.search.optimizer.name} is for a few genes, and this space has {choices} choices beside "
            f"{full.box.continuous} numbers; catcma, sms_emoa or nsga2 can deal with them, and auto takes one",
        )
