"""Scales of hops: what a folded model computes, in which architectures, and what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import Family
from hop_reference import Hop, blocks_of, greedy, load, logits, path_model, with_epsilons
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from merging.checkpoint import Checkpoint
from merging.configs import read_config
from merging.dataflow import folded, residual_writers, writer_factors, writers
from merging.dataflow.probing import Probe
from merging.dataflow.writers import find_writers
from merging.export import export
from merging.methods.registry import canonical, canonical_recipe
from merging.recipe import Assignment, MergingError, Recipe
from merging.restack import restack
from merging.sources import Sources
from merging.verification import verify_export

SIZE = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = SIZE | {"head_dim": 8}
FULL = SIZE | {"num_key_value_heads": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
GPT2 = {"vocab_size": 53, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1}

FOLDING: dict[str, dict[str, Any]] = {
    "Llama": SIZE,
    "Qwen2": SIZE,
    "Qwen3": HEADS,
    "Mistral": SIZE,
    "GPT2": GPT2 | {"eos_token_id": 2, "pad_token_id": 0},
    "Phi": SIZE,
    "Phi3": SIZE,
    "Gemma": HEADS,
    "Granite": SIZE | {"residual_multiplier": 0.3},
    "GPTNeoX": FULL,
    "Glm4": HEADS,
    "Mixtral": SIZE | {"num_local_experts": 3},
    "Qwen2Moe": SIZE | EXPERTS | {"shared_expert_intermediate_size": 16, "mlp_only_layers": [1]},
    "DeepseekV3": FULL | LATENT | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    | {"num_experts_per_tok": 2, "moe_intermediate_size": 16},
}  # fmt: skip
QUICK = ("Llama", "GPT2")

TOKENS = torch.arange(3, 23)[None]
HOPS: tuple[Hop, ...] = (
    ("a", 0, 1.0), ("a", 1, 0.7), ("b", 1, 1.4), ("a", 1, 1.0), ("b", 2, 0.6), ("a", 2, 1.3)
)  # fmt: skip


def family(kind: str, settings: dict[str, Any], folder: Path) -> Family:
    """Random models with weights of everyday sizes: no bias 0, no norm 1, hidden states of size 1."""
    config = getattr(transformers, f"{kind}Config")(**settings)
    found = Family(*(folder / name for name in ("base", "a", "b")))
    torch.manual_seed(11)
    for path in (found.base, found.a, found.b):
        model = AutoModelForCausalLM.from_config(config).eval()
        inside = {id(each) for each in blocks_of(model)[2].parameters()}
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim < 2:
                    parameter.uniform_(0.5, 1.5)
                else:
                    parameter.normal_(0.0, parameter.shape[-1] ** -0.5 if id(parameter) in inside else 1.0)
            head = model.get_output_embeddings().weight
            if head is not model.get_input_embeddings().weight:
                head.mul_(0.2)
        model.save_pretrained(path)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    known: dict[str, Family] = {}

    def build(kind: str) -> Family:
        if kind not in known:
            known[kind] = family(kind, FOLDING[kind], tmp_path_factory.mktemp(kind))
        return known[kind]

    return build


@pytest.fixture(scope="module")
def llama(made: Callable[[str], Family]) -> Family:
    return made("Llama")


def recipe_of(sources: Sources, hops: Sequence[Hop], outside: str = "a") -> Recipe:
    """A path as data-flow candidates spell it."""
    layers = tuple({alias: layer} for alias, layer, _ in hops)
    groups = {
        group: canonical(Assignment.of("passthrough", {outside if group.depth is None else hops[group.depth][0]: {}}))
        for group in restack(sources, layers).layout.groups
    }
    scales = tuple(scale for _, _, scale in hops)
    return Recipe("base", sources.refs, groups, layers=layers, scales=scales if set(scales) != {1.0} else None)


def folders(models: Family) -> dict[str, Path]:
    return {"a": models.a, "b": models.b}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k in QUICK else pytest.mark.slow) for k in FOLDING])
def test_an_exported_path_computes_what_a_loop_with_scales_computes(
    kind: str, made: Callable[[str], Family], tmp_path: Path
) -> None:
    models = made(kind)
    hops = HOPS if kind != "Qwen2Moe" else (*HOPS[:1], *HOPS[2:4], ("b", 0, 0.8), HOPS[-1])
    sources = models.load()
    recipe = recipe_of(sources, hops)
    out = export(recipe, sources, tmp_path / "out")
    model, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    expected = logits(path_model(folders(models), hops, "a"), TOKENS)
    found = logits(model.eval(), TOKENS)
    assert float((found - expected).abs().max()) <= 2e-5 * max(1.0, float(expected.abs().max()))
    # The scales matter, and folding is what makes them: without either, it is another function.
    unscaled = logits(path_model(folders(models), [(a, at, 1.0) for a, at, _ in hops], "a"), TOKENS)
    assert float((unscaled - expected).abs().max()) > 0.05
    # The recipe beside the weights is the original one, and gives the same bits again.
    again, reread = read_config(out / "recipe.yaml")
    assert again == recipe and again.hash == recipe.hash and again.scales == tuple(scale for _, _, scale in hops)
    assert verify_export(out, again, reread).content == Checkpoint.open(export(again, reread, tmp_path / "two")).content


def test_the_exported_folder_generates_as_the_loop_does(llama: Family, tmp_path: Path) -> None:
    sources = llama.load()
    out = export(recipe_of(sources, HOPS), sources, tmp_path / "out")
    written = load(out).generate(TOKENS, max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert written[0, TOKENS.shape[1] :].tolist() == greedy(path_model(folders(llama), HOPS, "a"), TOKENS, 16)


@pytest.mark.parametrize("small", [0.5, 1e-3])
def test_a_norms_epsilon_is_all_that_a_fold_changes(small: float, llama: Family, tmp_path: Path) -> None:
    """At a product of 1e-3 a mean square of 1 is as small as the epsilon of 1e-6: a norm that looks at the scaled
    state sees another one. The folded model is the one whose epsilons are scaled along."""
    hops = [("a", 0, small), ("a", 1, 1.0), ("b", 2, 1.0)]
    sources = llama.load()
    found = logits(load(export(recipe_of(sources, hops), sources, tmp_path / "out")), TOKENS)
    explicit = logits(path_model(folders(llama), hops, "a"), TOKENS)
    along = logits(with_epsilons(path_model(folders(llama), hops, "a"), hops), TOKENS)
    size = float(explicit.abs().max())
    assert float((found - along).abs().max()) <= 2e-5 * size
    if small == 1e-3:
        assert float((found - explicit).abs().max()) > 1e-2 * size
    else:
        assert float((found - explicit).abs().max()) <= 2e-5 * size


def test_writers_are_found_by_structure(llama: Family, made: Callable[[str], Family]) -> None:
    ends = {re.sub(r".*layers\.\d+\.", "", name) for name in residual_writers(llama.load())}
    assert ends == {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
    blocks = [{f"model.layers.{at}.{leaf}.weight" for leaf in ("self_attn.o_proj", "mlp.down_proj")} for at in range(3)]
    assert find_writers(llama.load()) == tuple(map(frozenset, blocks))
    ends = {re.sub(r".*h\.\d+\.", "", name) for name in residual_writers(made("GPT2").load())}
    assert ends == {f"{part}.c_proj.{leaf}" for part in ("attn", "mlp") for leaf in ("weight", "bias")}
    mixed = made("Qwen2Moe").load()
    assert {name for name in residual_writers(mixed) if ".1." in name and "experts" not in name} == blocks[1]
    assert "model.layers.0.mlp.shared_expert.down_proj.weight" in residual_writers(mixed)
    assert {name for name in residual_writers(mixed) if ".2." in name and "experts." in name} == {
        f"model.layers.2.mlp.experts.{expert}.down_proj.weight" for expert in range(4)
    } | {name for name in residual_writers(mixed) if ".2." in name and "experts.2." in name}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k == "Llama" else pytest.mark.slow) for k in FOLDING])
def test_writers_are_the_same_where_sublayers_are_narrow(
    kind: str, made: Callable[[str], Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is tried is a narrow model, since a block of a mixture of experts may have more weights than fit."""
    sources, found, sizes = made(kind).load(), [], []

    def spied(model: torch.nn.Module, *rest: Any) -> Probe:
        sizes.append(sum(each.numel() for each in model.parameters()))
        return Probe(model, *rest)

    monkeypatch.setattr(writers, "Probe", spied)
    for width in (8, 10**9):
        monkeypatch.setattr(writers, "_WIDTH", width)
        writers._find.cache_clear()
        found.append(find_writers(sources))
    assert found[0] == found[1]
    assert len(sizes) == 2 and (kind == "GPT2" or sizes[0] < sizes[1])  # GPT-2's width follows from the hidden size


REFUSED = {
    "Gemma2": (HEADS, "what post_feedforward_layernorm adds to the residual stream is not multiplied"),
    "Olmo2": (SIZE, "reads the residual stream without a norm"),
    "OpenAIGPT": ({k: v for k, v in GPT2.items() if k != "bos_token_id"}, "reads the residual stream without a norm"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k == "Gemma2" else pytest.mark.slow) for k in REFUSED])
def test_architectures_that_do_not_survive_folding_are_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    settings, why = REFUSED[kind]
    models = family(kind, settings, tmp_path)
    sources = models.load()
    hops = (("a", 0, 1.0), ("b", 1, 0.5), ("a", 2, 1.0))
    with pytest.raises(MergingError, match=f"cannot be folded .*{why}.*data_flow: {{scales: off}}"):
        export(recipe_of(sources, hops), sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # Without scales, the same path is a model.
    plain = recipe_of(sources, [(alias, at, 1.0) for alias, at, _ in hops])
    assert Checkpoint.open(export(plain, sources, tmp_path / "out")).content


def test_an_order_that_the_config_cannot_describe_is_refused(made: Callable[[str], Family], tmp_path: Path) -> None:
    """DeepSeek's config says how many blocks are dense, and means the first: block 0 elsewhere would not be loaded."""
    sources = made("DeepseekV3").load()
    recipe = recipe_of(sources, [("a", 0, 1.0), ("a", 1, 1.0), ("b", 0, 1.0)])
    with pytest.raises(MergingError, match=r"cannot describe the blocks in this order: .*layers\.2\.mlp"):
        export(recipe, sources, tmp_path / "out")


def test_scale_one_is_the_identity(llama: Family) -> None:
    sources = llama.load()
    plain = recipe_of(sources, [(alias, at, 1.0) for alias, at, _ in HOPS])
    ones = replace(plain, scales=(1.0,) * len(HOPS))
    assert folded(plain, sources) == plain == folded(ones, sources) == canonical_recipe(ones)
    assert ones.hash == plain.hash


SCALES = st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]), min_size=4, max_size=4)


@settings(max_examples=20, deadline=None)
@given(scales=SCALES, at=st.integers(0, 2))
def test_products_of_scales_are_what_is_folded(llama: Family, scales: list[float], at: int) -> None:
    """Each writer is divided by the product of the scales so far, whatever they are; to scale twice in a row, with a
    silent block between, is to scale by the product."""
    sources = llama.load()
    blocks = [("a", 0), ("b", 1), ("a", 1), ("b", 2)]
    found = folded(recipe_of(sources, [(*block, scale) for block, scale in zip(blocks, scales, strict=True)]), sources)
    for number in range(4):
        product = math.prod(scales[: number + 1])
        for leaf in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            name = f"model.layers.{number}.{leaf}"
            assert (name in found.tensors) == (product != 1.0)
            if product != 1.0:
                expected = Assignment.of("passthrough", {blocks[number][0]: {}}, scale=1 / product)
                assert found.tensors[name] == canonical(expected)
    assert found.scales is None and found.groups == recipe_of(sources, [(*block, 1.0) for block in blocks]).groups
    moved = list(scales)
    moved[at], moved[at + 1] = 1.0, scales[at] * scales[at + 1]
    assert writer_factors(moved)[at + 1 :] == writer_factors(scales)[at + 1 :]


@settings(max_examples=15, deadline=None)
@given(scales=SCALES, cut=st.integers(1, 3))
def test_folding_commutes_with_composing_paths(llama: Family, scales: list[float], cut: int) -> None:
    """The second part of a path, folded by itself, is that part of the whole, divided by the product of the first."""
    sources = llama.load()
    hops: list[Hop] = [(*block, s) for block, s in zip([("a", 0), ("b", 1), ("a", 1), ("b", 2)], scales, strict=True)]
    factors = writer_factors(scales)
    first, second = writer_factors(scales[:cut]), writer_factors(scales[cut:])
    assert factors == (*first, *(first[-1] * each for each in second))
    whole = folded(recipe_of(sources, hops), sources)
    part = folded(recipe_of(sources, hops[cut:]), sources)
    for number, factor in enumerate(second):
        name = f"model.layers.{number + cut}.mlp.down_proj.weight"
        own = part.tensors.get(f"model.layers.{number}.mlp.down_proj.weight")
        assert (own is None) == (factor == 1.0)
        scale = dict(whole.tensors[name].parameters)["scale"] if name in whole.tensors else 1.0
        assert scale == first[-1] * (1.0 if own is None else float(dict(own.parameters)["scale"]))


def test_scales_of_writers_multiply_what_the_recipe_says_already(llama: Family) -> None:
    """LLaMA-Pro's identity blocks stay silent, and exceptions of single tensors are kept."""
    sources = llama.load()
    recipe = recipe_of(sources, [("a", 0, 1.0), ("a", 0, 0.5), ("a", 1, 1.0)])
    silent = {
        f"model.layers.1.{leaf}.weight": Assignment.of("passthrough", {"a": {}}, scale=0.0)
        for leaf in ("self_attn.o_proj", "mlp.down_proj")
    }
    half = {"model.layers.2.mlp.down_proj.weight": Assignment.of("passthrough", {"a": {}}, scale=3.0)}
    found = folded(replace(recipe, tensors=silent | half), sources)
    assert {dict(found.tensors[name].parameters)["scale"] for name in silent} == {0.0}
    assert dict(found.tensors["model.layers.2.mlp.down_proj.weight"].parameters)["scale"] == 6.0
    assert dict(found.tensors["model.layers.2.self_attn.o_proj.weight"].parameters)["scale"] == 2.0


def test_a_silent_hop_whose_scale_is_undone_is_none(llama: Family, tmp_path: Path) -> None:
    """LLaMA-Pro's expansion is a point of the space: a hop that adds nothing, at any scale, and the model without."""
    sources = llama.load()
    recipe = recipe_of(sources, [("a", 0, 1.0), ("b", 1, 2.0), ("a", 2, 0.5)])
    silent = Assignment.of("passthrough", {"b": {}}, scale=0.0)
    tensors = {f"model.layers.1.{leaf}.weight": silent for leaf in ("self_attn.o_proj", "mlp.down_proj")}
    deep = export(replace(recipe, tensors=tensors), sources, tmp_path / "deep")
    shallow = export(recipe_of(sources, [("a", 0, 1.0), ("a", 2, 1.0)]), sources, tmp_path / "shallow")
    assert torch.equal(logits(load(deep), TOKENS), logits(load(shallow), TOKENS))


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((1.0, 0.0, 1.0), "the scale of block 1 to be a finite number above 0, found 0.0: 0 would erase"),
        ((1.0, -1.0, 1.0), "found -1.0: .* the sign of a hidden state cannot be folded"),
        ((1.0, math.nan, 1.0), "above 0, found nan"),
        ((1.0, math.inf, 1.0), "above 0, found inf"),
        ((1.0, True, 1.0), "above 0, found True"),
        ((1.0, 2.0), "a scale for each of the 3 blocks of the layers, found 2"),
        ((1e-20, 1e-20, 1.0), "up to block 1 have the product 1e-40; expected one between 1e-30 and 1e"),
    ],
)
def test_scales_that_cannot_be_folded(scales: tuple[float, ...], message: str, llama: Family, tmp_path: Path) -> None:
    sources = llama.load()
    recipe = recipe_of(sources, [("a", 0, 1.0), ("b", 1, 1.0), ("a", 2, 1.0)])
    with pytest.raises(MergingError, match=message):
        export(replace(recipe, scales=scales), sources, tmp_path / "out")


def test_blocks_that_are_merged_and_not_copied_are_refused(llama: Family, tmp_path: Path) -> None:
    sources = llama.load()
    layers = ({"base": 0, "a": 0}, {"base": 1, "a": 1})
    groups = dict.fromkeys(
        restack(sources, layers).layout.groups, Assignment.of("task_arithmetic", {"a": {"coefficient": 0.5}})
    )
    recipe = Recipe("base", sources.refs, groups, layers=layers, scales=(0.5, 1.0))
    with pytest.raises(MergingError, match="merged by task_arithmetic; scales need blocks that are copied"):
        export(recipe, sources, tmp_path / "out")
