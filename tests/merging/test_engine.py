"""Every method in live models: any history, any number of threads, eager or compiled, sharded or not, the same bits."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merging import kernel
from merging.arena import allocate, hold, layout_order
from merging.checkpoint import Checkpoint
from merging.compiled import available, worthwhile
from merging.export import export
from merging.kernel import Piece, Task, compiles, merge_tensor, merge_tensors
from merging.materialize import Materializer, MergeFailed, Sources, load_model
from merging.methods import canonical, get
from merging.methods.contract import Values
from merging.pool import Pool
from merging.recipe import Assignment, MergingError, Recipe, Value

Build = Callable[..., Recipe]

BOTH = {"a": {"coefficient": 0.7}, "b": {"coefficient": 0.4}}
ONE: dict[str, dict[str, Value]] = {"a": {}}
NEITHER: dict[str, dict[str, Value]] = {"a": {}, "b": {}}

ASSIGNMENTS = {
    "linear": Assignment.of("linear", BOTH),
    "task_arithmetic": Assignment.of("task_arithmetic", BOTH, scale=0.9),
    "slerp": Assignment.of("slerp", BOTH),
    "slerp on task vectors": Assignment.of("slerp", BOTH, on="task_vectors"),
    "nuslerp": Assignment.of("nuslerp", BOTH),
    "nuslerp by row": Assignment.of("nuslerp", BOTH, flatten=False),
    "multislerp": Assignment.of("multislerp", BOTH),
    "karcher": Assignment.of("karcher", NEITHER),
    "model_stock": Assignment.of("model_stock", NEITHER),
    "ties": Assignment.of("ties", {"a": {"coefficient": 0.7, "density": 0.3}, "b": {"coefficient": 0.4}}),
    "ties of the model": Assignment.of("ties", BOTH, trim="model"),
    "ties by mergekit": Assignment.of("ties", BOTH, convention="mergekit", rescale=True),
    "dare_linear": Assignment.of("dare_linear", BOTH),
    "dare_ties": Assignment.of("dare_ties", BOTH, seed=3),
    "dare_ties by mergekit": Assignment.of("dare_ties", BOTH, convention="mergekit"),
    "della": Assignment.of("della", BOTH),
    "della_linear by mergekit": Assignment.of("della_linear", BOTH, convention="mergekit"),
    "breadcrumbs": Assignment.of("breadcrumbs", BOTH),
    "breadcrumbs_ties": Assignment.of("breadcrumbs_ties", BOTH, delta_scale=1.2),
    "magmax": Assignment.of("magmax", BOTH),
    "sce": Assignment.of("sce", NEITHER, density=0.4),
    "consensus_ta": Assignment.of("consensus_ta", BOTH),
    "pcb": Assignment.of("pcb", BOTH),
    "arcee_fusion": Assignment.of("arcee_fusion", ONE),
    "nearswap": Assignment.of("nearswap", ONE, t=0.001),
    "ram": Assignment.of("ram", NEITHER),
    "ramplus_tl": Assignment.of("ramplus_tl", NEITHER),
    "passthrough": Assignment.of("passthrough", {"b": {}}, scale=0.8),
    "tsv_m": Assignment.of("tsv_m", NEITHER, scale=0.8),
    "iso_c": Assignment.of("iso_c", NEITHER),
    "iso_cts": Assignment.of("iso_cts", NEITHER, common_fraction=0.6),
    "wudi": Assignment.of("wudi", NEITHER, delta_scale=1.2),
    "knots_ties": Assignment.of("knots_ties", BOTH),
    "knots_dare_ties": Assignment.of("knots_dare_ties", BOTH, seed=3),
    "core_ties": Assignment.of("core_ties", BOTH, normalize=False),
    "core_dare_ties": Assignment.of("core_dare_ties", BOTH),
}


@pytest.fixture(scope="module")
def half(families: Callable[..., Any]) -> Sources:
    sources: Sources = families("llama", torch.bfloat16).load()
    return sources


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def written(sources: Sources, recipe: Recipe, **options: Any) -> str:
    """The digest of a recipe in a model that never held another."""
    materializer = Materializer(sources, load_model(sources.path), **options)
    materializer.apply(recipe)
    return materializer.digest()


def test_every_method_is_here() -> None:
    from merging.methods.registry import BUILT_IN

    # those that need data have live models of their own: see test_calibrated_models.py
    plain = {name for name in BUILT_IN if not get(name).needs.calibration}
    assert {assignment.method for assignment in ASSIGNMENTS.values()} == plain


@pytest.mark.parametrize(
    ("what", "dtype"),
    [
        # every second one here, the others in the slow tests: kernels are shared, and each method has its reference
        pytest.param(what, torch.bfloat16, marks=pytest.mark.slow if index % 2 else ())
        for index, what in enumerate(ASSIGNMENTS)
    ]
    + [(what, torch.float32) for what in ("slerp", "ties", "della", "pcb")],
    ids=str,
)
def test_live_and_exported_are_the_same_bits(
    families: Callable[..., Any], uniform: Build, tmp_path: Path, what: str, dtype: torch.dtype
) -> None:
    """Arenas or mapped files, whole shards or small ones, live memory or files: one model."""
    sources: Sources = families("llama", dtype).load()
    recipe = uniform(sources, ASSIGNMENTS[what])
    live = written(sources, recipe)
    mapped = families("llama", dtype).load()
    folder = export(recipe, mapped, tmp_path / "out", max_shard_size=9_000)
    assert Checkpoint.open(folder).content == live != sources.canonical_content
    if what in {"ties", "dare_ties", "pcb"}:
        assert written(families("llama", dtype).load(), recipe, home="mmap") == live


@pytest.mark.slow
@settings(max_examples=7, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(ASSIGNMENTS)), st.sampled_from(sorted(ASSIGNMENTS)), st.integers(0, 4)),
        min_size=2,
        max_size=5,
    )
)
def test_no_history_of_candidates_leaves_a_trace(
    half: Sources, uniform: Build, steps: list[tuple[str, str, int]]
) -> None:
    """A → B → failed → A through dirty groups is a fresh write of A, whatever the methods."""
    groups = half.layout.groups
    breaks = Assignment.of("task_arithmetic", {"a": {"coefficient": 1e38}}, scale=1e38)
    materializer = Materializer(half, load_model(half.path))
    for everywhere, exception, number in steps:
        recipe = uniform(half, ASSIGNMENTS[everywhere], {groups[number]: ASSIGNMENTS[exception]})
        materializer.apply(recipe)
        digest = materializer.digest()
        with pytest.raises(MergeFailed):
            materializer.apply(uniform(half, ASSIGNMENTS[everywhere], {groups[-number]: breaks}))
        materializer.apply(recipe)
        assert materializer.digest() == digest == written(half, recipe)


@pytest.mark.parametrize("what", ["slerp", "ties by mergekit", "dare_ties by mergekit", "sce", "pcb", "arcee_fusion"])
def test_threads_change_nothing(half: Sources, uniform: Build, what: str) -> None:
    """Of the methods that sum or sort something: the others have nothing that threads could change."""
    digests = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        digests.add(written(half, uniform(half, ASSIGNMENTS[what])))
    assert len(digests) == 1


def tensors(dtype: torch.dtype, size: int) -> dict[str, torch.Tensor]:
    """A base, and two that are near it, with exact zeros among the task vectors where they are 16 bits wide."""
    generator = torch.Generator().manual_seed(11)
    base = torch.randn(size, generator=generator) * 0.02
    near = {alias: base + torch.randn(size, generator=generator) * 3e-4 for alias in "ab"}
    return {"base": base.to(dtype)} | {alias: each.to(dtype) for alias, each in near.items()}


def run(assignment: Assignment, weights: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    spelled = canonical(assignment)
    aliases = tuple(alias for alias, _ in spelled.sources)
    pool = Pool("base", aliases, ("w",), lambda alias, _: weights[alias])
    out = torch.full_like(weights["base"], math.nan)
    merge_tensor("w", Task(get(spelled.method), Values.of(spelled), pool), out, **options)
    return out


@pytest.mark.slow
@pytest.mark.skipif(not available("cpu"), reason="no C++ compiler")
@pytest.mark.parametrize("what", ["linear", "ties", "ties by mergekit", "dare_ties", "della", "magmax"])
def test_compiled_and_eager_are_the_same_bits_in_float32(what: str) -> None:
    """Where float64 is summed in; test_conformance.py has every method in bfloat16."""
    weights = tensors(torch.float32, 3 * (1 << 14) + 77)
    eager = run(ASSIGNMENTS[what], weights)
    assert torch.isfinite(eager).all()
    assert torch.equal(run(ASSIGNMENTS[what], weights, compiled=True), eager)


@pytest.mark.slow
@pytest.mark.skipif(not available("cpu"), reason="no C++ compiler")
def test_a_compiled_candidate_that_is_not_finite_is_noticed(half: Sources) -> None:
    weights = tensors(torch.bfloat16, 1 << 15)
    task = ASSIGNMENTS["task_arithmetic"]
    spelled = canonical(dataclasses.replace(task, parameters=(("scale", 1e38),)))
    pool = Pool("base", ("a", "b"), ("w",), lambda alias, _: weights[alias])
    weights["a"][7] = 1e6
    out = torch.empty_like(weights["base"])
    ends = merge_tensor("w", Task(get(spelled.method), Values.of(spelled), pool), out, compiled=True)
    assert not all(bool(torch.isfinite(end)) for end in ends) and not bool(torch.isfinite(out).all())


def test_what_is_compiled_follows_from_what_it_costs() -> None:
    assignment = canonical(ASSIGNMENTS["ties"])
    task = Task(get("ties"), Values.of(assignment), Pool("base", ("a", "b"), ("w",), lambda *_: torch.empty(0)))
    if available("cpu"):
        assert compiles(task, "auto", 10**8, "cpu", candidates=100) and not compiles(task, "auto", 10**5, "cpu")
        assert worthwhile("always", 0.0, "cpu")
    assert not worthwhile("never", 1e9, "cpu")
    row = canonical(ASSIGNMENTS["pcb"])
    assert not compiles(Task(get("pcb"), Values.of(row), task.pool), "always", 10**10, "cpu")


def test_arenas_hold_what_the_files_do_in_the_order_of_the_layout(families: Callable[..., Any]) -> None:
    sources: Sources = families("llama", torch.bfloat16).load()
    plain = families("llama", torch.bfloat16).load()
    assert hold(sources, torch.device("cpu"), "host") == hold(sources, torch.device("cpu"), "mmap")
    order = layout_order(sources)
    for alias in sources.checkpoints:
        addresses = [sources.tensor(alias, name).data_ptr() for name in order]
        assert addresses == sorted(addresses)
        assert all(torch.equal(sources.tensor(alias, name), plain.tensor(alias, name)) for name in order)
    ranks = [sources.layout.groups.index(sources.layout.group(name)) for name in order]
    assert ranks == sorted(ranks)


@pytest.mark.parametrize("what", ["linear", "task_arithmetic", "ties"])
def test_sources_of_two_widths_are_live_what_they_are_exported(
    families: Callable[..., Any], uniform: Build, tmp_path: Path, what: str
) -> None:
    narrow, wide = families("llama", torch.bfloat16), families("llama", torch.float32)
    sources = Sources.load(narrow.base, {"a": wide.a, "b": narrow.b})
    recipe = uniform(sources, ASSIGNMENTS[what])
    folder = export(recipe, Sources.load(narrow.base, {"a": wide.a, "b": narrow.b}), tmp_path / "out")
    assert Checkpoint.open(folder).content == written(sources, recipe)


def test_neighbours_are_joined_only_where_all_arenas_have_them_at_one_distance() -> None:
    """Dtypes of two widths are padded differently: what follows in one arena is shifted in the other."""
    sizes = {"x": 40, "y": 56}
    generator = torch.Generator().manual_seed(2)
    weights: dict[str, dict[str, torch.Tensor]] = {}
    for alias, dtype in (
        ("base", torch.bfloat16),
        ("a", torch.float32),
        ("b", torch.bfloat16),
        ("out", torch.bfloat16),
    ):
        arena, offsets = allocate(list(sizes.values()), dtype, torch.device("cpu"))
        weights[alias] = {n: arena[o : o + sizes[n]] for n, o in zip(sizes, offsets, strict=True)}
        for each in weights[alias].values():
            each.copy_(torch.randn(each.shape, generator=generator))
    for aliases in (("a", "b"), ("b",)):
        pool = Pool("base", aliases, tuple(sizes), lambda alias, name: weights[alias][name])
        spelled = canonical(Assignment.of("task_arithmetic", {alias: {"coefficient": 0.4} for alias in aliases}))
        task = Task(get(spelled.method), Values.of(spelled), pool)
        merge_tensors([Piece(name, task, weights["out"][name], False) for name in sizes])
        for name in sizes:
            alone = torch.empty(sizes[name], dtype=torch.bfloat16)
            merge_tensor(name, task, alone)
            assert torch.equal(weights["out"][name], alone), (aliases, name)


def test_sources_that_are_brought_to_a_device_are_there_for_one_tensor_at_a_time(
    families: Callable[..., Any], uniform: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a second device: what is done where there is one must not change the result."""
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Counted(kernel._Run):
        def __init__(self, *arguments: Any) -> None:
            alive.append(sum(each() is not None for each in made))
            made.append(weakref.ref(self))
            super().__init__(*arguments)

    monkeypatch.setattr(kernel, "_Run", Counted)
    digests = []
    for brought in (False, True):
        monkeypatch.setattr(kernel, "_is_made_for", lambda *_, brought=brought: brought)
        made.clear()
        alive.clear()
        sources = families("llama", torch.bfloat16).load()
        digests.append(written(sources, uniform(sources, ASSIGNMENTS["task_arithmetic"])))
        assert len(made) == len(sources.tensors) and (max(alive) == 0) == brought
    assert digests[0] == digests[1]


def test_an_unknown_home_is_refused(half: Sources) -> None:
    with pytest.raises(MergingError, match=r"auto, device, host, shared or mmap, found 'moon'"):
        Materializer(half, load_model(half.path), home="moon")  # type: ignore[arg-type]
