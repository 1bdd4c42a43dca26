"""Every merge method again, in plain numpy and float64, written from the definitions and not from the package's code.

One tensor at a time: all of it in memory, sorted and summed in the most direct way. Only what *selects* (differences
that are ranked or compared, ranks, hash keys) is float32 and uint32, because there the definitions say so.

Beside the value stand the elements that no comparison can judge (``doubtful``: an election whose sum nearly cancels, a
selection within rounding of its threshold) and the sum of the magnitudes that were added up, to which the rounding
errors of another order of operations are proportional.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import reference_methods as methods
from reference_pipeline import Array, Case, Merged, Parameters, drop, largest, pipeline, ranked_drop, tails, trim

DELTA = {"scale": 1.0, "rescale": True, "seed": 0, "convention": "paper"}
SHARED: dict[str, dict[str, Any]] = {
    "linear": {"normalize": True},
    "task_arithmetic": {"scale": 1.0, "normalize": False},
    "slerp": {"on": "weights"},
    "nuslerp": {"on": "weights", "flatten": True, "row_wise": False},
    "multislerp": {"on": "weights", "normalize": True, "eps": 1e-8},
    "karcher": {"max_iter": 10, "tol": 1e-5},
    "ties": {**DELTA, "normalize": True, "rescale": False, "trim": "tensor"},
    "dare_linear": {**DELTA, "normalize": False},
    "dare_ties": {**DELTA, "normalize": True},
    "della_linear": {**DELTA, "normalize": False},
    "della": {**DELTA, "normalize": True},
    "breadcrumbs": {**DELTA, "normalize": False, "rescale": False},
    "breadcrumbs_ties": {**DELTA, "normalize": True, "rescale": False},
    "magmax": {"scale": 1.0},
    "sce": {"density": 1.0, "scale": 1.0, "convention": "paper"},
    "consensus_ta": {"agreement": 2, "scale": 1.0},
    "pcb": {"density": 0.2, "scale": 1.0, "clamp": 1e-4},
    "model_stock": {"row_wise": False, "convention": "paper"},
    "arcee_fusion": {"spread": 1.5},
    "nearswap": {},
    "ram": {"epsilon": 1e-5},
    "ramplus_tl": {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2},
    "passthrough": {"scale": 1.0},
}
PER_SOURCE: dict[str, dict[str, Any]] = {
    "karcher": {"coefficient": 1.0},
    "ties": {"density": 0.2},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della_linear": {"density": 0.7, "epsilon": 0.07},
    "della": {"density": 0.7, "epsilon": 0.07},
    "breadcrumbs": {"density": 0.9, "gamma": 0.01},
    "breadcrumbs_ties": {"density": 0.9, "gamma": 0.01},
    "magmax": {"coefficient": 1.0},
    "consensus_ta": {"coefficient": 1.0, "threshold": 0.4},
    "pcb": {"coefficient": 1.0},
}
NO_COEFFICIENT = ("sce", "model_stock", "arcee_fusion", "nearswap", "ram", "ramplus_tl", "passthrough")


def compute(
    method: str,
    base: Array,
    sources: Sequence[Array],
    per_source: Sequence[Parameters],
    shared: Parameters,
    *,
    name: str = "x",
    contents: Sequence[str] = (),
    trimmed: Sequence[Array] | None = None,
) -> Merged:
    """One merged tensor.

    Args:
        method: as recipes write it.
        base: float64 (values of any narrower dtype are exact in it).
        sources: [sources] float64, shaped like the base.
        per_source: [sources] parameters; what is missing takes its default.
        shared: likewise.
        name: of the tensor.
        contents: [sources] content hashes.
        trimmed: [sources] masks of a trim over a whole model; None trims this tensor alone.

    Raises:
        Refused: the definitions make it an error.
    """
    options = {"delta_scale": 1.0, **SHARED[method], **shared}
    own = [{**PER_SOURCE.get(method, {}), **values} for values in per_source]
    case = Case(base, sources, own, options, name, contents or [f"sha256:{i}" for i in range(len(sources))], trimmed)
    if base.size == 0:
        return Merged(base.copy(), case.nowhere(), np.abs(base))
    value, doubtful, magnitude = METHODS[method](case)
    amount = float(options["delta_scale"])
    if amount != 1.0:
        value = base + amount * (value - base)
        magnitude = np.abs(base) + abs(amount) * (magnitude + np.abs(base))
    return Merged(value, np.broadcast_to(doubtful, base.shape), np.broadcast_to(magnitude, base.shape))


def merge(
    method: str,
    base: Array,
    sources: list[Array],
    per_source: list[dict[str, Any]],
    shared: dict[str, Any],
    *,
    name: str,
    contents: list[str],
) -> Array:
    """The value alone; see :func:`compute`."""
    return compute(method, base, sources, per_source, shared, name=name, contents=contents).value


def margin(
    method: str,
    base: Array,
    sources: list[Array],
    per_source: list[dict[str, Any]],
    shared: dict[str, Any],
    *,
    name: str,
    contents: list[str],
) -> Array:
    """The elements that a comparison must leave out and count; see :func:`compute`."""
    return compute(method, base, sources, per_source, shared, name=name, contents=contents).doubtful


def merge_model(
    base: Mapping[str, Array],
    sources: Sequence[Mapping[str, Array]],
    per_source: Sequence[Parameters],
    shared: Parameters,
    *,
    contents: Sequence[str] = (),
) -> dict[str, Merged]:
    """TIES with ``trim=model``: name -> merged tensor. Each source keeps its largest elements over all tensors."""
    seed = int(shared.get("seed", 0))
    masks: list[dict[str, Array]] = []
    for source, values in zip(sources, per_source, strict=True):
        deltas = {name: source[name].astype(np.float32) - base[name].astype(np.float32) for name in sorted(base)}
        density = float(values.get("density", PER_SOURCE["ties"]["density"]))
        masks.append(largest(deltas, round(density * sum(delta.size for delta in deltas.values())), seed))
    return {
        name: compute(
            "ties",
            base[name],
            [source[name] for source in sources],
            per_source,
            shared,
            name=name,
            contents=contents,
            trimmed=[mask[name] for mask in masks],
        )
        for name in base
    }


METHODS: dict[str, Callable[[Case], Merged]] = {
    "linear": methods.linear,
    "task_arithmetic": methods.task_arithmetic,
    "slerp": methods.slerp,
    "nuslerp": methods.nuslerp,
    "multislerp": methods.multislerp,
    "karcher": methods.karcher,
    "ties": pipeline(trim, elects=True),
    "dare_linear": pipeline(drop, elects=False),
    "dare_ties": pipeline(drop, elects=True),
    "della_linear": pipeline(ranked_drop, elects=False),
    "della": pipeline(ranked_drop, elects=True),
    "breadcrumbs": pipeline(tails, elects=False),
    "breadcrumbs_ties": pipeline(tails, elects=True),
    "magmax": methods.magmax,
    "sce": methods.sce,
    "consensus_ta": methods.consensus_ta,
    "pcb": methods.pcb,
    "model_stock": methods.model_stock,
    "arcee_fusion": methods.arcee_fusion,
    "nearswap": methods.nearswap,
    "ram": methods.ram,
    "ramplus_tl": methods.ramplus_tl,
    "passthrough": methods.passthrough,
}
