"""A path in a live model is the path: against blocks in a loop, against its export, with a cache, and whatever came
before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import Family
from hop_reference import greedy, logits, path_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from path_models import PATHS, Hops, path_recipe, save_path_family
from torch import Tensor, nn

from merging.checkpoint import Checkpoint
from merging.dataflow import PathMaterializer, path_materializer
from merging.dataflow.hops import Hop, LiveConfig
from merging.dataflow.scaled_writers import ScaledWriters
from merging.export import export
from merging.kernel import MergeFailed
from merging.live import load_model
from merging.materialize import Materializer
from merging.recipe import Assignment, Group, MergingError
from merging.sources import Sources

IDS = torch.tensor([[1, 7, 30, 12, 44, 3, 9, 21, 17, 40, 8, 2], [1, 50, 31, 9, 9, 11, 4, 6, 33, 28, 5, 19]])
DEEP: Hops = [("a", 0), ("b", 2), ("b", 2), ("b", 2), ("base", 1), ("a", 1), ("b", 3), ("a", 3)]
SCALES = (1.2, 0.7, 1.0, 1.3, 0.9, 0.8, 1.1, 1.4)

Opened = tuple[Sources, nn.Module, PathMaterializer]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Family]:
    made: dict[str, Family] = {}

    def family(name: str, **more: Any) -> Family:
        key = f"{name}{more}"
        if key not in made:
            made[key] = save_path_family(name, tmp_path_factory.mktemp(name), **more)
        return made[key]

    return family


def opened(family: Family, dtype: torch.dtype | None = None, **options: Any) -> Opened:
    sources = family.load()
    model = load_model(family.base, dtype=dtype)
    return sources, model, PathMaterializer(sources, model, **options)


@torch.no_grad()
def live(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    found: Tensor = model(ids, use_cache=False).logits
    return found


def folders(family: Family) -> dict[str, Path]:
    return {"base": family.base, "a": family.a, "b": family.b}


def loop(family: Family, hops: Hops, outside: str, scales: Any = None) -> Any:
    every = scales or (1.0,) * len(hops)
    return path_model(folders(family), [(*hop, scale) for hop, scale in zip(hops, every, strict=True)], outside)


def few(*names: str) -> list[Any]:
    """These now, the others of all families where slow tests run."""
    return [*names, *(pytest.param(name, marks=pytest.mark.slow) for name in PATHS if name not in names)]


@pytest.mark.parametrize("name", few("mistral"))
def test_it_computes_what_blocks_in_a_loop_compute(name: str, saved: Callable[..., Family]) -> None:
    family = saved(name)
    sources, model, paths = opened(family)
    paths.apply(path_recipe(sources, DEEP, "b"))
    by_hand = loop(family, DEEP, "b")
    torch.testing.assert_close(live(model), logits(by_hand, IDS), rtol=0, atol=1e-6)
    # And the plain models.
    paths.apply(path_recipe(sources, [("b", layer) for layer in range(4)], "b"))
    assert torch.equal(live(model), live(load_model(family.b)))


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral", "qwen2-kinds", "gpt2", "mixtral", "phi")),
    ],
)
def test_scales_multiply_the_hidden_state_before_a_hop(name: str, saved: Callable[..., Family]) -> None:
    """With norms that forget factors, epsilon and all: the epsilon of the models here is as good as none."""
    epsilon = {{"gpt2": "layer_norm_epsilon", "phi": "layer_norm_eps"}.get(name, "rms_norm_eps"): 1e-12}
    family = saved(name, **epsilon)
    sources, model, paths = opened(family)
    paths.apply(path_recipe(sources, DEEP, "a", SCALES))
    found = live(model)
    torch.testing.assert_close(found, logits(loop(family, DEEP, "a", SCALES), IDS), rtol=0, atol=2e-5)
    paths.apply(path_recipe(sources, DEEP, "a"))
    assert float((live(model) - found).abs().max()) > 0.02


@pytest.mark.parametrize("name", few("llama", "qwen2-kinds"))
def test_the_live_model_is_its_export(name: str, saved: Callable[..., Family], tmp_path: Path) -> None:
    sources, model, paths = opened(saved(name))
    scalable = name not in ("gemma3", "olmo2")  # a norm behind each sublayer
    for number, scales in enumerate((None, SCALES) if scalable else (None,)):
        recipe = path_recipe(sources, DEEP, "b", scales)
        paths.apply(recipe)
        out = export(recipe, sources, tmp_path / str(number))
        assert paths.digest() == Checkpoint.open(out).content
        torch.testing.assert_close(live(model), live(load_model(out)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", few("qwen2-kinds"))
def test_a_cache_has_a_slot_for_every_hop(name: str, saved: Callable[..., Family]) -> None:
    """A layer three times in a row keeps three sets of keys and values, in windows and without."""
    sources, model, paths = opened(saved(name))
    scales = None if name in ("gemma3", "olmo2") else SCALES
    paths.apply(path_recipe(sources, DEEP, "a", scales))
    generate: Any = getattr(model, "generate")  # noqa: B009
    found = generate(IDS[:1], max_new_tokens=9, do_sample=False, use_cache=True, eos_token_id=None)
    assert found[0, IDS.shape[1] :].tolist() == greedy(model, IDS[:1], 9)
    with torch.no_grad():
        cache = model(IDS, use_cache=True).past_key_values
    assert len(cache.layers) == len(DEEP)
    keys = [layer.keys for layer in cache.layers[1:4]]
    assert not torch.equal(keys[0], keys[1]) and not torch.equal(keys[1], keys[2])


def test_hidden_states_of_every_hop_are_recorded(saved: Callable[..., Family]) -> None:
    sources, model, paths = opened(saved("llama"))
    with torch.no_grad():
        assert len(model(IDS, output_hidden_states=True).hidden_states) == 5
        paths.apply(path_recipe(sources, DEEP))
        states = model(IDS, output_hidden_states=True).hidden_states
    assert len(states) == len(DEEP) + 1 and not torch.equal(states[2], states[3])


HOPS = st.lists(st.tuples(st.sampled_from(["base", "a", "b"]), st.integers(0, 3)), min_size=1, max_size=7)
BAD = st.sampled_from(["layer", "merge", "scales", "missing"])


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(HOPS, st.sampled_from(["base", "a", "b"]), st.booleans(), st.none() | BAD), max_size=4), HOPS)
def test_nothing_of_earlier_candidates_is_left(
    saved: Callable[..., Family], steps: list[tuple[Hops, str, bool, str | None]], last: Hops
) -> None:
    family = saved("llama")
    sources, model, paths = opened(family)
    for hops, outside, scaled, bad in steps:
        scales = [0.5 + 0.2 * number for number in range(len(hops))] if scaled else None
        recipe = path_recipe(sources, hops, outside, scales)
        if bad is None:
            paths.apply(recipe)
            live(model)
            continue
        before = live(model)
        with pytest.raises(MergingError):
            paths.apply(broken(recipe, bad))
        assert torch.equal(live(model), before)
    paths.apply(path_recipe(sources, last, "b"))
    _, fresh_model, fresh = opened(family)
    fresh.apply(path_recipe(sources, last, "b"))
    assert paths.digest() == fresh.digest() and torch.equal(live(model), live(fresh_model))


def broken(recipe: Any, how: str) -> Any:
    """Not a path, in one way or another."""
    group = next(iter(recipe.groups))
    if how == "layer":
        return replace(recipe, layers=(dict.fromkeys(recipe.layers[0], 4), *recipe.layers[1:]))
    if how == "merge":
        merged = Assignment.of("linear", {"a": {"coefficient": 0.5}, "b": {"coefficient": 0.5}})
        return replace(recipe, groups={**recipe.groups, group: merged})
    if how == "scales":
        return replace(recipe, scales=(1e-31,) * len(recipe.layers))
    return replace(recipe, groups={each: found for each, found in recipe.groups.items() if each != group})


@pytest.mark.parametrize("where", ["hang", "follow", "put", "_write"])
def test_broken_off_in_the_middle_of_a_candidate(
    where: str, saved: Callable[..., Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit's exception arises anywhere: half a config, half a path, a hook that nobody knows of."""
    sources, model, paths = opened(saved("qwen2-kinds"))
    wanted = live(model)

    def broken(*given: Any) -> None:
        if where == "follow":
            given[0]._config.num_hidden_layers = 7
            given[0]._changed.add(("num_hidden_layers",))
        if where == "put":
            given[0].module.register_forward_hook(lambda module, args, output: output * 0)
        raise TimeoutError

    with monkeypatch.context() as patch:
        owner = {"hang": path_materializer, "follow": LiveConfig, "put": Hop, "_write": ScaledWriters}[where]
        patch.setattr(owner, where, broken)
        with pytest.raises(TimeoutError):
            paths.apply(path_recipe(sources, DEEP, "b", SCALES))
    paths.forget()
    paths.apply(path_recipe(sources, [("base", layer) for layer in range(4)], "base"))
    assert torch.equal(live(model), wanted) and paths.digest() == sources.canonical_content
    config: Any = model.config
    assert config.num_hidden_layers == 4 and config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2


def test_every_layer_is_in_memory_once(saved: Callable[..., Family]) -> None:
    sources, model, paths = opened(saved("llama"))
    paths.apply(path_recipe(sources, DEEP, "b", SCALES))
    block: Any = model.get_submodule("model.layers")
    weights = [each.self_attn.q_proj.weight for each in block]
    assert weights[1].data_ptr() == weights[2].data_ptr() == weights[3].data_ptr() != weights[4].data_ptr()
    name = "model.layers.2.self_attn.q_proj.weight"
    assert weights[1].data_ptr() == sources.tensor("b", name).data_ptr()
    assert block[1] is not block[2] and block[1].self_attn.layer_idx == 1 and block[3].self_attn.layer_idx == 3
    own, copies = paths.bytes
    assert copies == 0 and own == sum(each.nbytes for each in _shared(paths))


def _shared(paths: PathMaterializer) -> list[Tensor]:
    """All tensors of layers in the present path, of what stands around it, and of the base, with which it began."""
    sources = paths.sources
    taken = {("base", layer) for layer in range(4)} | set(DEEP)
    outside = [name for name in sources.tensors if ".layers." not in name]
    inside = [(alias, name) for alias, layer in taken for name in sources.tensors if f".layers.{layer}." in name]
    every = [*inside, *((alias, name) for alias in ("base", "b") for name in outside)]
    return [sources.tensor(alias, name) for alias, name in every]


def test_what_stands_outside_the_layers_is_whose_the_recipe_says(saved: Callable[..., Family]) -> None:
    family = saved("llama-tied")
    sources, model, paths = opened(family)
    paths.apply(path_recipe(sources, [("a", layer) for layer in range(4)], "b"))
    head: Any = model.get_submodule("lm_head")
    embedding: Any = model.get_submodule("model.embed_tokens")
    assert head.weight is embedding.weight
    assert torch.equal(head.weight, sources.tensor("b", "model.embed_tokens.weight"))
    by_hand = loop(family, [("a", layer) for layer in range(4)], "b")
    torch.testing.assert_close(live(model), logits(by_hand, IDS), rtol=0, atol=1e-6)
    # A recipe without layers is the plain path of its models.
    groups = {
        group: Assignment.of("passthrough", {"a" if group.depth == 1 else "b": {}}) for group in sources.layout.groups
    }
    plain = replace(path_recipe(sources, [("b", 0)]), groups=groups, layers=None)
    paths.apply(plain)
    mixed = [("b", 0), ("a", 1), ("b", 2), ("b", 3)]
    torch.testing.assert_close(live(model), logits(loop(family, mixed, "b"), IDS), rtol=0, atol=1e-6)
    materializer = Materializer(sources, load_model(family.base))
    materializer.apply(plain)
    assert paths.digest() == materializer.digest()


def test_applied_says_what_is_another(saved: Callable[..., Family]) -> None:
    sources, _, paths = opened(saved("llama"))
    hops: list[tuple[str, int]] = [("base", 0), ("base", 1), ("a", 2), ("base", 3)]
    applied = paths.apply(path_recipe(sources, hops, "base"))
    assert {group.depth for group in applied.changed_groups} == {2} and Group("mlp", 2) in applied.changed_groups
    assert all(name.startswith("model.layers.2.") for name in applied.changed_tensors)
    assert paths.apply(path_recipe(sources, hops, "base")).changed_tensors == ()
    applied = paths.apply(path_recipe(sources, [*hops, ("a", 0)], "a"))
    assert {group.depth for group in applied.changed_groups} == {None, 4}
    assert "model.layers.4.mlp.up_proj.weight" in applied.changed_tensors
    assert set(paths.tensors) >= set(applied.changed_tensors)


def test_weights_that_are_no_numbers_in_the_live_dtype_are_refused(tmp_path: Path) -> None:
    family = save_path_family("llama", tmp_path)
    tuned = load_model(family.b)
    with torch.no_grad():
        tuned.get_parameter("model.layers.2.mlp.up_proj.weight")[0, 0] = 1e6
    tuned.save_pretrained(family.b)  # type: ignore[operator]
    sources, model, paths = opened(family, torch.float16)
    before = live(model)
    with pytest.raises(MergeFailed, match=r"up_proj.weight of 'b' is not finite in float16.*models.dtype"):
        paths.apply(path_recipe(sources, DEEP, "a", dtype="float16"))
    assert torch.equal(live(model), before)
    paths.apply(path_recipe(sources, [("b", 1), ("a", 0)], "b", dtype="float16"))
    assert torch.isfinite(live(model)).all()
