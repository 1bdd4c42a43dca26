"""Merges of adapters, from their folders to live models and exports, beside the models that they were folded into."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from adapter_pools import random_factors
from safetensors.torch import save_file
from torch import Tensor

from merging import arena
from merging.arena import hold
from merging.checkpoint import Checkpoint
from merging.composed import Composed
from merging.export import export
from merging.materialize import Materializer, Sources, load_model
from merging.opening import open_model
from merging.recipe import Assignment, Recipe
from merging.restack import restack
from merging.sizes import sizes_of

Build = Callable[..., Recipe]

TARGETS = {"a": ("q_proj", "down_proj"), "b": ("q_proj", "up_proj")}
CPU = torch.device("cpu")
BOTH = {"a": {"coefficient": 0.7}, "b": {"coefficient": 0.4}}
DENSE = {"a": {"coefficient": 0.7, "density": 0.5}, "b": {"coefficient": 0.4, "density": 0.3}}
NEITHER: dict[str, dict[str, Any]] = {"a": {}, "b": {}}

# Those that see single elements: the same bits from adapters as from the models that they are folded into.
BY_ELEMENT = {
    "task_arithmetic": Assignment.of("task_arithmetic", BOTH),
    "linear": Assignment.of("linear", BOTH),
    "ties": Assignment.of("ties", DENSE, delta_scale=0.9),
    "dare_ties": Assignment.of("dare_ties", DENSE, seed=3),
    "della": Assignment.of("della", BOTH),
    "breadcrumbs": Assignment.of("breadcrumbs", BOTH),
    "magmax": Assignment.of("magmax", BOTH),
    "slerp": Assignment.of("slerp", {"a": {"coefficient": 0.3}, "b": {"coefficient": 0.7}}),
}

# Those that look at task vectors as a whole, from their factors.
FROM_FACTORS = {
    "model_stock": Assignment.of("model_stock", NEITHER),
    "model_stock by row": Assignment.of("model_stock", NEITHER, row_wise=True),
    "multislerp": Assignment.of("multislerp", BOTH, on="task_vectors"),
    "tsv_m": Assignment.of("tsv_m", NEITHER, scale=0.8),
    "iso_c": Assignment.of("iso_c", NEITHER),
    "iso_cts": Assignment.of("iso_cts", NEITHER),
    "wudi": Assignment.of("wudi", NEITHER),
    "knots_ties": Assignment.of("knots_ties", DENSE),
    "knots_dare_ties": Assignment.of("knots_dare_ties", DENSE),
    "core_ties": Assignment.of("core_ties", DENSE),
    "core_dare_ties": Assignment.of("core_dare_ties", DENSE, seed=5),
}


def quick(cases: Iterable[str], *first: str) -> list[Any]:
    """Those named here, and the others among the slow tests."""
    return [pytest.param(case, marks=() if case in first else pytest.mark.slow) for case in cases]


class Adapters(NamedTuple):
    """A base, two adapters of it, and the models that they are folded into."""

    base: Path
    thin: dict[str, Path]
    dense: dict[str, Path]

    def load(self, kind: str = "thin") -> Sources:
        chosen = {"thin": self.thin, "dense": self.dense, "mixed": {"a": self.thin["a"], "b": self.dense["b"]}}
        return Sources.load(self.base, chosen[kind])


def write_adapter(folder: Path, base: Checkpoint, targets: tuple[str, ...], rank: int, seed: int) -> Path:
    """As peft saves one."""
    tensors = {}
    for number, name in enumerate(base.tensors):
        if name.removesuffix(".weight").endswith(targets):
            made = random_factors(base.tensors[name].shape, rank, seed + number, size=0.002)
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{module}.lora_A.weight": made.right, f"{module}.lora_B.weight": made.left}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def fold(folder: Path, adapter: Path, base: Checkpoint) -> Path:
    """What an adapter makes of its base, as a model folder."""
    model = open_model(adapter, base)
    folder.mkdir()
    save_file({name: model.read(name).clone() for name in model.tensors}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(base.config))
    return folder


@pytest.fixture(scope="module")
def adapters(families: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Adapters]:
    made: dict[torch.dtype, Adapters] = {}

    def build(dtype: torch.dtype = torch.float32) -> Adapters:
        if dtype not in made:
            folder, base = tmp_path_factory.mktemp("adapters"), families("llama", dtype).base
            opened = Checkpoint.open(base)
            thin = {
                alias: write_adapter(folder / alias, opened, targets, 3 + number, 100 * number)
                for number, (alias, targets) in enumerate(TARGETS.items())
            }
            dense = {alias: fold(folder / f"{alias}-folded", path, opened) for alias, path in thin.items()}
            made[dtype] = Adapters(base, thin, dense)
        return made[dtype]

    return build


class Merged(NamedTuple):
    digest: str
    weights: dict[str, Tensor]


def written(sources: Sources, recipe: Recipe, **options: Any) -> Merged:
    materializer = Materializer(sources, load_model(sources.path), **options)
    materializer.apply(recipe)
    return Merged(materializer.digest(), {name: each.clone() for name, each in materializer.tensors.items()})


def test_an_adapter_is_the_model_that_it_is_folded_into(adapters: Callable[..., Adapters]) -> None:
    thin, dense = adapters().load(), adapters().load("dense")
    assert {alias: ref.content for alias, ref in thin.refs.items()} == {
        alias: ref.content for alias, ref in dense.refs.items()
    }
    assert thin.distance == pytest.approx(dense.distance, rel=1e-6) and min(thin.distance.values()) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("method", quick(BY_ELEMENT, "ties"))
def test_methods_of_single_elements_give_the_same_bits(
    adapters: Callable[..., Adapters], uniform: Build, tmp_path: Path, method: str, dtype: torch.dtype
) -> None:
    found = []
    for kind in ("thin", "dense"):
        sources = adapters(dtype).load(kind)
        found.append(written(sources, uniform(sources, BY_ELEMENT[method])).digest)
    assert found[0] == found[1] != sources.canonical_content
    if dtype is torch.float32:
        sources = adapters(dtype).load()
        assert (
            Checkpoint.open(export(uniform(sources, BY_ELEMENT[method]), sources, tmp_path / "o")).content == found[0]
        )


@pytest.mark.parametrize("method", quick(FROM_FACTORS, "tsv_m"))
def test_methods_of_whole_task_vectors_agree(
    adapters: Callable[..., Adapters], uniform: Build, tmp_path: Path, method: str
) -> None:
    """With the folded models to 1e-5 of the merged task vector; with an export bit for bit."""
    thin, dense = adapters().load(), adapters().load("dense")
    one = written(thin, uniform(thin, FROM_FACTORS[method]))
    other = written(dense, uniform(dense, FROM_FACTORS[method]))
    moved = 0
    for name, each in other.weights.items():
        base = thin.tensor("base", name)
        size = float(torch.linalg.vector_norm(each - base))
        # What float32 weights round is the same on both sides, but not always to the same side.
        rounded = 6e-8 * float(torch.linalg.vector_norm(base))
        assert float(torch.linalg.vector_norm(one.weights[name] - each)) <= 1e-5 * size + rounded, name
        moved += size > 0
    assert 2 <= moved <= 9  # what one task alone moves, or two against each other, some methods leave out
    folder = export(uniform(thin, FROM_FACTORS[method]), adapters().load(), tmp_path / "out", max_shard_size=9_000)
    assert Checkpoint.open(folder).content == one.digest


@pytest.mark.parametrize("method", quick(["ties", "tsv_m", "core_ties", "model_stock"], "tsv_m"))
def test_adapters_beside_whole_models(adapters: Callable[..., Adapters], uniform: Build, method: str) -> None:
    """As soon as one source is stored as weights, the others are taken as weights too."""
    assignment = {**BY_ELEMENT, **FROM_FACTORS}[method]
    digests = []
    for kind in ("mixed", "dense"):
        sources = adapters().load(kind)
        digests.append(written(sources, uniform(sources, assignment)).digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("home", quick(["host", "shared", "mmap"], "mmap"))
def test_wherever_sources_lie_candidates_are_the_same(
    adapters: Callable[..., Adapters], uniform: Build, home: Any
) -> None:
    sources = adapters().load()
    first = written(sources, uniform(sources, BY_ELEMENT["ties"]), home=home)
    plain = adapters().load("dense")
    assert first.digest == written(plain, uniform(plain, BY_ELEMENT["ties"]), home="host").digest


@pytest.mark.parametrize("home", ["host", "shared"])
def test_what_an_adapter_leaves_alone_lies_once(adapters: Callable[..., Adapters], home: Any) -> None:
    sources, plain = adapters().load(), adapters().load("dense")
    assert hold(sources, CPU, home) == home
    changed = {alias: sources.checkpoints[alias].changes for alias in TARGETS}  # type: ignore[attr-defined]
    for name in sources.tensors:
        base = sources.tensor("base", name)
        for alias in TARGETS:
            found = sources.tensor(alias, name)
            assert torch.equal(found, plain.tensor(alias, name))
            if name not in changed[alias]:
                assert found.data_ptr() == base.data_ptr()
            else:
                assert sources.composes(alias, name) and found.data_ptr() != sources.tensor(alias, name).data_ptr()
                assert sources.factors(alias, name) is sources.factors(alias, name)  # in memory


def test_factors_that_are_larger_than_their_product_are_multiplied_out(
    families: Callable[..., Any], tmp_path: Path
) -> None:
    base = Checkpoint.open(families("llama").base)
    sources = Sources.load(base.path, {"a": write_adapter(tmp_path / "a", base, ("q_proj",), 24, 0)})
    name = "model.layers.0.self_attn.q_proj.weight"
    hold(sources, CPU, "host")
    assert not sources.composes("a", name)
    assert sources.tensor("a", name) is sources.tensor("a", name)
    assert sources.factors("a", name) is not None


def test_memory_is_asked_for_by_what_is_kept(
    adapters: Callable[..., Adapters], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for a base and the factors is enough for adapters, and not for the models that they are folded into."""
    sources = adapters().load()
    base = sum(4 * info.numel for info in sources.tensors.values())
    factors = sum(
        4 * (each.left.numel() + each.right.numel())
        for alias in TARGETS
        for name in sources.tensors
        if (each := sources.factors(alias, name)) is not None and each.rank
    )
    monkeypatch.setattr(arena, "free_memory", lambda: int((base + factors) / arena.SHARE) + 1)
    assert hold(sources, CPU, "auto") == "host"
    assert hold(adapters().load("dense"), CPU, "auto") == "files"
    monkeypatch.setattr(arena, "free_memory", lambda: int((base + factors) / arena.SHARE) - 1)
    assert hold(adapters().load(), CPU, "auto") == "files"


@pytest.mark.parametrize(
    "method", quick(["task_arithmetic", "ties", "della", "tsv_m", "core_ties", "model_stock"], "ties")
)
@pytest.mark.parametrize("home", quick(["host", "mmap"], "host"))
def test_one_tensor_of_a_model_at_a_time(
    adapters: Callable[..., Adapters], uniform: Build, monkeypatch: pytest.MonkeyPatch, method: str, home: Any
) -> None:
    """Of each adapter at most one tensor is multiplied out at any time, and nothing is left of it."""
    sources = adapters().load()
    recipe = uniform(sources, {**BY_ELEMENT, **FROM_FACTORS}[method])
    materializer = Materializer(sources, load_model(sources.path), home=home)
    alive: dict[str, set[str]] = {alias: set() for alias in TARGETS}
    most = dict.fromkeys(TARGETS, 0)
    composed = Sources._composed

    def watched(self: Sources, alias: str, name: str) -> Tensor:
        tensor = composed(self, alias, name)
        alive[alias].add(name)
        most[alias] = max(most[alias], len(alive[alias]))
        weakref.finalize(tensor.untyped_storage(), alive[alias].discard, name)
        return tensor

    monkeypatch.setattr(Sources, "_composed", watched)
    materializer.apply(recipe)
    assert max(most.values()) <= 1 and not any(alive.values())
    assert (max(most.values()) == 0) == (method in {"tsv_m", "core_ties"})


def test_matrix_methods_multiply_out_no_adapter(
    adapters: Callable[..., Adapters], uniform: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = adapters().load()
    monkeypatch.setattr(Sources, "_composed", None)
    materializer = Materializer(sources, load_model(sources.path))
    for method in ("tsv_m", "iso_c", "iso_cts", "wudi", "knots_ties", "core_ties"):
        assert materializer.apply(uniform(sources, FROM_FACTORS[method])).changed_tensors


def test_what_was_made_of_factors_is_not_made_again(
    adapters: Callable[..., Adapters], uniform: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where sources stay in files, factors are read for the first candidate alone."""
    sources = adapters().load()
    materializer = Materializer(sources, load_model(sources.path), home="mmap")
    materializer.apply(uniform(sources, Assignment.of("iso_c", {"a": {}, "b": {}}, scale=1.0)))
    first = materializer.digest()
    monkeypatch.setattr(Composed, "factors", None)
    materializer.apply(uniform(sources, Assignment.of("iso_c", {"a": {}, "b": {}}, scale=0.5)))
    assert materializer.digest() != first


@pytest.mark.slow
def test_candidates_follow_each_other(adapters: Callable[..., Adapters], uniform: Build) -> None:
    """A live model depends on its recipe alone, whatever it held before."""
    sources = adapters().load()
    materializer = Materializer(sources, load_model(sources.path))
    wanted = {}
    for method in ("ties", "tsv_m", "knots_ties", "ties", "tsv_m", "knots_ties"):
        materializer.apply(uniform(sources, {**BY_ELEMENT, **FROM_FACTORS}[method]))
        assert wanted.setdefault(method, materializer.digest()) == materializer.digest()
    assert len(set(wanted.values())) == 3


@pytest.mark.slow
def test_threads_change_no_bit(adapters: Callable[..., Adapters], uniform: Build) -> None:
    one = adapters().load()
    wanted = written(one, uniform(one, FROM_FACTORS["core_ties"])).digest
    torch.set_num_threads(3)
    try:
        sources = adapters().load()
        assert written(sources, uniform(sources, FROM_FACTORS["core_ties"])).digest == wanted
    finally:
        torch.set_num_threads(1)


def test_sizes_are_told_from_what_is_changed(adapters: Callable[..., Adapters]) -> None:
    """An upper bound, from headers alone: what an adapter leaves alone is the base's."""
    made = adapters(torch.bfloat16)
    told, sources = sizes_of(made.base, made.thin).sources, made.load()
    for alias in TARGETS:
        changes = sources.checkpoints[alias].changes  # type: ignore[attr-defined]
        assert told[alias] == sum(4 * sources.tensors[name].numel for name in changes)
    assert told["base"] == sum(2 * info.numel for info in sources.tensors.values())


@pytest.mark.parametrize("method", quick(["ties", "tsv_m"], "tsv_m"))
def test_blocks_beside_others_are_no_factors(
    adapters: Callable[..., Adapters], uniform: Build, tmp_path: Path, method: str
) -> None:
    """An adapter changes its own block of the base; laid upon another it differs by all that the blocks differ."""
    assignment = {**BY_ELEMENT, **FROM_FACTORS}[method]
    layers = ({"base": 0, "a": 0, "b": 0}, {"base": 1, "a": 2, "b": 1}, {"base": 1, "a": 1, "b": 1})
    found = []
    for kind in ("thin", "dense"):
        sources = restack(adapters().load(kind), layers)
        name = "model.layers.1.self_attn.q_proj.weight"
        assert sources.factors("a", name) is None
        assert (sources.factors("b", name) is None) == (kind == "dense")
        recipe = replace(uniform(sources, assignment), layers=layers)
        found.append(Checkpoint.open(export(recipe, sources, tmp_path / kind)))
    for name in found[0].tensors:
        torch.testing.assert_close(found[0].read(name), found[1].read(name), rtol=0, atol=1e-6)
    assert (found[0].content == found[1].content) == (method == "ties")
