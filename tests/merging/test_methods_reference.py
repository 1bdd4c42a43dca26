"""Every method against a float64 reference written from its definition: shapes, dtypes, edges, both conventions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
import torch
from comparison import DTYPES, backend, backend_model, contents_of, differing, exact, expected
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_pipeline import Refused
from torch import Tensor

from merging.recipe import MergingError

SHAPES = ((), (1,), (7,), (37,), (1, 1), (5, 1), (1, 9), (6, 8), (3, 5, 7), (40, 33))
KINDS = ("dense", "dense", "dense", "coarse", "coarse", "sparse", "constant", "unchanged", "duplicates")
COUNTS = {
    "slerp": (2, 2),
    "nuslerp": (2, 2),
    "model_stock": (2, 5),
    "arcee_fusion": (1, 1),
    "nearswap": (1, 1),
    "passthrough": (1, 1),
}
WITHOUT_SOURCES = ("task_arithmetic", "ties", "dare_linear", "dare_ties", "della_linear", "della", "breadcrumbs")

number = st.sampled_from([1.0, 1.0, 0.5, -0.5, 0.3, -1.0, 1.25, 0.75, 0.0, 2.0]) | st.floats(-2, 2).map(
    lambda value: round(value, 2)
)
positive = st.sampled_from([1.0, 0.5, 0.3, 2.0, 0.05])
density = st.sampled_from([0.0, 1.0, 0.2, 0.5, 0.9, 1 / 64, 0.33]) | st.floats(0, 1).map(lambda value: round(value, 3))

OWN: dict[str, st.SearchStrategy[Any]] = {
    "coefficient": number,
    "density": density,
    "epsilon": st.sampled_from([0.07, 0.0, 0.15, 0.01]),
    "gamma": st.sampled_from([0.01, 0.0, 0.1, 0.3, 1.0]),
    "threshold": st.sampled_from([0.4, 0.0, 0.2, 1.0]),
}
SHARED: dict[str, st.SearchStrategy[Any]] = {
    "normalize": st.booleans(),
    "rescale": st.booleans(),
    "scale": st.sampled_from([1.0, 1.0, 0.5, -1.0, 1.7, 0.0]),
    "convention": st.sampled_from(["paper", "mergekit"]),
    "seed": st.sampled_from([0, 1, 12345]),
    "on": st.sampled_from(["weights", "task_vectors"]),
    "flatten": st.booleans(),
    "row_wise": st.booleans(),
    "trim": st.just("tensor"),
    "density": density,
    "clamp": st.sampled_from([1e-4, 0.0, 0.01, 0.1]),
    "agreement": st.sampled_from([0, 1, 2, 3, 6]),
    "spread": st.sampled_from([1.5, 0.0, 0.5]),
    "epsilon": st.sampled_from([1e-5, 1e-3, 0.0]),
    "r": st.sampled_from([0.1, 0.5]),
    "alpha": st.sampled_from([0.2, 1.0]),
    "max_iter": st.sampled_from([10, 1, 3]),
    "tol": st.just(1e-5),
    "eps": st.just(1e-8),
    "t": st.sampled_from([0.0, 0.001, 0.01, 1.0]),
    "delta_scale": st.sampled_from([1.0, 1.0, 0.5, 0.0, 1.5]),
}


@dataclass(frozen=True)
class Example:
    """One call of one method."""

    base: Tensor
    sources: list[Tensor]
    per_source: list[dict[str, Any]]
    shared: dict[str, Any]
    contents: list[str]
    chunk: int | None


@dataclass
class Tally:
    """How many elements were compared, and how many had to be left out."""

    judged: int = 0
    doubtful: int = 0
    refused: int = 0
    examples: int = 0


def tensors(kind: str, shape: tuple[int, ...], count: int, seed: int, wide: float) -> list[Tensor]:
    """[1 + count] a base and sources in float32; ``wide`` is the size of the base's elements."""
    random = np.random.default_rng(seed)
    base = random.standard_normal(shape) * wide
    deltas = [random.standard_t(4, shape) * 0.4 * wide for _ in range(count)]
    if kind == "coarse":  # few distinct values: ties, zeros and exact cancellations, in every dtype
        base = random.integers(-8, 9, shape) / 64
        deltas = [random.integers(-3, 4, shape) / 128 for _ in range(count)]
    if kind == "sparse":
        deltas = [delta * (random.random(shape) < 0.3) for delta in deltas]
    if kind == "constant":
        base = np.full(shape, 0.5)
        deltas = [np.full(shape, random.integers(-3, 4) / 32) for _ in range(count)]
    if kind == "unchanged":
        deltas = [np.zeros(shape) for _ in range(count)]
    if kind == "duplicates":
        base = np.round(base * 256) / 256
        first, second = np.round(deltas[0] * 512) / 512, deltas[-1]
        deltas = [first, first, -first, second, -second][:count]
    return [torch.from_numpy(np.asarray(each, np.float32)) for each in (base, *(base + delta for delta in deltas))]


@st.composite
def examples(draw: st.DrawFn, method: str) -> Example:
    low, high = COUNTS.get(method, (0 if method in WITHOUT_SOURCES else 1, 5))
    count = draw(st.integers(low, high)) if draw(st.integers(0, 3)) else min(max(low, 3), high)
    kind, dtype = draw(st.sampled_from(KINDS)), draw(st.sampled_from(DTYPES))
    shape = draw(st.sampled_from(SHAPES))
    if kind == "duplicates" and count < 2:
        kind = "dense"
    # The importances of arcee_fusion are lost in float32's noise where softmaxes hardly differ.
    wide = 1.0 if method == "arcee_fusion" else 0.05
    base, *sources = (each.to(dtype) for each in tensors(kind, shape, count, draw(st.integers(0, 2**32 - 1)), wide))

    own_defaults = reference.PER_SOURCE.get(method, {})
    names = {*own_defaults} | ({"coefficient"} if method not in reference.NO_COEFFICIENT else set())
    per_source = []
    for _ in range(count):
        values = {
            name: draw(OWN[name]) for name in sorted(names) if name not in own_defaults or draw(st.integers(0, 4))
        }
        if method == "karcher":
            values["coefficient"] = draw(positive)
        per_source.append(values)
    shared = {name: draw(SHARED[name]) for name in sorted(reference.SHARED[method]) if draw(st.integers(0, 4))}
    shared |= {"delta_scale": draw(SHARED["delta_scale"])} if draw(st.booleans()) else {}
    if method == "nearswap":
        shared["t"] = draw(SHARED["t"])
    if method == "sce":
        shared.setdefault("density", 0.4)
    contents = contents_of(count)
    if kind == "duplicates":
        contents[1] = contents[0]
    return Example(base, sources, per_source, shared, contents, draw(st.sampled_from([None, None, 7, 64])))


def compare(method: str, example: Example, tally: Tally) -> None:
    args = (example.base, example.sources, example.per_source, example.shared)
    tally.examples += 1
    try:
        wanted = expected(method, *args, name="layer.weight", contents=example.contents)
    except Refused:
        tally.refused += 1
        if example.shared.get("scale") == 0 or any(values.get("coefficient") == 0 for values in example.per_source):
            return  # what has no effect may be left out before it is looked at
        with pytest.raises(MergingError):
            backend(method, *args, name="layer.weight", contents=example.contents)
        return
    merged = backend(method, *args, name="layer.weight", contents=example.contents, chunk=example.chunk)
    assert merged.dtype == example.base.dtype and merged.shape == example.base.shape
    # Kept probabilities are float32, and so is the factor that makes up for what was dropped.
    loose = 2.0**-21 if method in {"della", "della_linear"} else 0.0
    far = differing(merged, wanted, loose)
    tally.judged += far.size
    tally.doubtful += int(wanted.doubtful.sum())
    if far.any():
        where = tuple(int(each) for each in np.argwhere(far)[0])
        raise AssertionError(
            f"{method}: {int(far.sum())} of {far.size} elements differ, first at {where}: backend "
            f"{exact(merged)[where]!r}, reference {wanted.value[where]!r}, base {exact(example.base)[where]!r}, deltas "
            f"{[float(exact(s)[where] - exact(example.base)[where]) for s in example.sources]}; {example.per_source} "
            f"{example.shared} {example.base.dtype} {tuple(example.base.shape)}"
        )


# Those whose drawing of masks takes long stand beside others of the same stages.
_LONG = {"della_linear", "dare_linear", "breadcrumbs_ties"}


@pytest.mark.parametrize(
    "method",
    [pytest.param(each, marks=[pytest.mark.slow] if each in _LONG else []) for each in sorted(reference.METHODS)],
)
def test_the_backend_equals_the_reference(method: str) -> None:
    tally = Tally()

    @settings(deadline=None, max_examples=110, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(examples(method))
    def run(example: Example) -> None:
        compare(method, example, tally)

    run()
    assert tally.judged > 1000
    assert tally.doubtful < 0.01 * tally.judged, f"{tally.doubtful} of {tally.judged} elements could not be judged"
    assert tally.refused < 0.5 * tally.examples


@pytest.mark.parametrize("method", sorted(reference.METHODS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tensors_of_many_pieces_equal_the_reference(method: str, dtype: torch.dtype) -> None:
    """Thresholds, ranks, sums and keys run on over the borders of the pieces that the backend works in."""
    count = min(COUNTS.get(method, (3, 3)))
    wide = 1.0 if method == "arcee_fusion" else 0.05
    base, *sources = (each.to(dtype) for each in tensors("dense", (301, 307), count, 1, wide))
    own = [{} if method in reference.NO_COEFFICIENT else {"coefficient": 0.5 + 0.25 * i} for i in range(count)]
    shared = {"t": 0.01} if method == "nearswap" else {"density": 0.3} if method == "sce" else {}
    tally = Tally()
    compare(method, Example(base, sources, own, shared, contents_of(count), None), tally)
    assert tally.doubtful < 0.01 * tally.judged


@settings(deadline=None, max_examples=60, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    shapes=st.lists(st.sampled_from(SHAPES[:-1]), min_size=1, max_size=4),
    kind=st.sampled_from(sorted(set(KINDS))),
    densities=st.lists(density, min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
    shared=st.fixed_dictionaries(
        {}, optional={name: SHARED[name] for name in ("rescale", "scale", "seed", "normalize")}
    ),
)
def test_trimming_a_whole_model_equals_the_reference(
    shapes: list[tuple[int, ...]],
    kind: str,
    densities: list[float],
    dtype: torch.dtype,
    seed: int,
    shared: dict[str, Any],
) -> None:
    made = {f"t{i}": tensors(kind, shape, len(densities), seed + i, 0.05) for i, shape in enumerate(shapes)}
    base, *sources = ({name: each[i].to(dtype) for name, each in made.items()} for i in range(len(densities) + 1))
    own = [{"coefficient": 1.0 - 0.25 * i, "density": each} for i, each in enumerate(densities)]
    wanted = reference.merge_model(
        {name: exact(tensor) for name, tensor in base.items()},
        [{name: exact(tensor) for name, tensor in source.items()} for source in sources],
        own,
        shared,
    )
    merged = backend_model("ties", base, sources, own, {**shared, "trim": "model"})
    for name, tensor in merged.items():
        assert not differing(tensor, wanted[name]).any(), name
