"""What is wrong with a config's data-flow space, told from its text alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from search.data_flow_schema import DataFlowConfig
from search.positions import Location, Problem, did_you_mean

_FLOW: Location = ("space", "data_flow")


def flow_problems(flow: DataFlowConfig, data: Mapping[str, Any], aliases: Sequence[str]) -> Iterator[Problem]:
    """All that can be said from the file alone.

    Args:
        flow: the config's.
        data: the config as it was read.
        aliases: experts of every sort.
    """
    given = data.get("space")
    for key in given if isinstance(given, dict) else ():
        if key != "data_flow":
            yield Problem(
                ("space", str(key)),
                "a path takes layers as they are, and merges no weights: beside space.data_flow this key means "
                "nothing. Leave one of the two out; to search both, give the merge a search of its own under `first`",
                at_key=True,
            )
    known = list(dict.fromkeys(["base", *aliases, *_first(data)]))
    for index, name in enumerate(flow.models or ()):
        if name not in known:
            hint = did_you_mean(name, known)
            message = f"there is no model {name!r}; there are: {', '.join(known)}.{hint}"
            yield Problem((*_FLOW, "models", index), message)
    if flow.ends == "fixed" and flow.depth == 1:
        yield Problem(
            (*_FLOW, "depth"),
            "expected at least 2: with ends: fixed every path has the first layer of model A and its last; found 1",
        )
    if flow.scales == "off" and "scale_per" in flow.model_fields_set:
        message = "it says what has a scale of its own, and scales are off; drop it, or give bounds of scales"
        yield Problem((*_FLOW, "scale_per"), message, at_key=True)
    engine = data.get("engine")
    if isinstance(engine, dict) and engine.get("kind") == "vllm":
        yield Problem(
            ("engine", "kind"),
            "vLLM builds a model once, with layers that stay as they are, and space.data_flow gives every candidate "
            "layers of its own; use kind: hf. What it finds is exported as an ordinary model, which vLLM then serves",
        )
    workers = data.get("workers")
    devices = workers.get("gpus") if isinstance(workers, dict) else None
    if isinstance(devices, int | float) and devices > 1:
        yield Problem(
            ("workers", "gpus"),
            f"a path's layers are run on one device, and every worker is given {devices:g}; expected 1 or less with "
            "space.data_flow",
        )


def _first(data: Mapping[str, Any]) -> list[str]:
    """The name of what a first search chooses."""
    first = data.get("first")
    name = first.get("name") if isinstance(first, dict) else None
    return [name] if isinstance(name, str) else []
