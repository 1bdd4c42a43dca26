"""Groups from names and shapes alone, over the naming of many architectures."""

from __future__ import annotations

import pytest

from merging.layout import Layout, is_buffer, tied_heads
from merging.recipe import Group, MergingError

W, V = (8, 8), (8,)


def blocks(prefix: str, count: int, inner: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{i}.{name}": shape for i in range(count) for name, shape in inner.items()}


LLAMA_BLOCK = {
    "self_attn.q_proj.weight": W,
    "self_attn.q_norm.weight": V,
    "self_attn.o_proj.weight": W,
    "mlp.gate_proj.weight": W,
    "mlp.down_proj.weight": W,
    "input_layernorm.weight": V,
    "post_attention_layernorm.weight": V,
}


def test_a_decoder_only_model() -> None:
    shapes = {"model.embed_tokens.weight": (50, 8), "model.norm.weight": V, "lm_head.weight": (50, 8)}
    layout = Layout.of(shapes | blocks("model.layers", 12, LLAMA_BLOCK))
    assert layout.depth() == 12 and layout.stacks == ("",)
    outside = [Group("norm"), Group("embedding"), Group("head")]
    assert set(layout.groups[:3]) == set(outside)
    assert list(layout.groups[3:6]) == [Group("attention", 0), Group("mlp", 0), Group("norm", 0)]
    assert layout.groups[-1] == Group("norm", 11), "depth is a number, not text: 11 comes after 2"
    assert layout.of_group(Group("norm", 3)) == (
        "model.layers.3.input_layernorm.weight",
        "model.layers.3.post_attention_layernorm.weight",
        "model.layers.3.self_attn.q_norm.weight",
    )
    assert tied_heads(shapes, Layout.of(shapes)) == {"lm_head.weight": "model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("prefix", "name", "shape", "kind"),
    [
        ("transformer.h", "attn.c_attn.weight", W, "attention"),
        ("h", "mlp.c_fc.bias", V, "mlp"),
        ("h", "ln_1.weight", V, "norm"),
        ("gpt_neox.layers", "attention.query_key_value.weight", W, "attention"),
        ("gpt_neox.layers", "mlp.dense_h_to_4h.weight", W, "mlp"),
        ("transformer.h", "ln_attn.bias", V, "norm"),
        ("model.decoder.layers", "fc1.weight", W, "mlp"),
        ("model.decoder.layers", "self_attn_layer_norm.weight", V, "norm"),
        ("model.layers", "block_sparse_moe.experts.7.w2.weight", W, "mlp"),
        ("model.layers", "mlp.shared_expert.gate_proj.weight", W, "mlp"),
        ("bert.encoder.layer", "attention.output.dense.weight", W, "attention"),
        ("bert.encoder.layer", "attention.output.LayerNorm.weight", V, "norm"),
        ("bert.encoder.layer", "intermediate.dense.weight", W, "mlp"),
        ("bert.encoder.layer", "output.dense.weight", W, "mlp"),
        ("backbone.layers", "mixer.in_proj.weight", W, "attention"),
        ("model.layers", "novel.thing.weight", W, "other"),
    ],
)
def test_module_kinds_inside_blocks(prefix: str, name: str, shape: tuple[int, ...], kind: str) -> None:
    filler = {"some.weight": W, "more.weight": W}
    layout = Layout.of(blocks(prefix, 3, filler | {name: shape}))
    assert layout.group(f"{prefix}.2.{name}") == Group(kind, 2)


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("transformer.wte.weight", (50, 8), "embedding"),
        ("transformer.wpe.weight", (64, 8), "embedding"),
        ("transformer.ln_f.bias", V, "norm"),
        ("shared.weight", (50, 8), "embedding"),
        ("embed_out.weight", (50, 8), "head"),
        ("cls.predictions.transform.dense.weight", W, "head"),
        ("lm_head.dense.bias", V, "head"),
        ("vit.embeddings.patch_embeddings.projection.weight", (8, 3, 2, 2), "embedding"),
        ("vit.embeddings.cls_token", (1, 1, 8), "embedding"),
        ("nomic_bert.emb_ln.weight", V, "norm"),
        ("logit_scale", (), "other"),
        ("output.weight", (50, 8), "head"),
        ("score.weight", (3, 8), "head"),
        ("unheard_of.weight", (50, 8), "head"),
        ("unheard_of.weight", (9, 8), "other"),
        ("multi_modal_projector.0.weight", (9, 9), "other"),
    ],
)
def test_module_kinds_outside_blocks(name: str, shape: tuple[int, ...], kind: str) -> None:
    shapes = {"model.embed_tokens.weight": (50, 8), name: shape} | blocks("model.layers", 2, LLAMA_BLOCK)
    assert Layout.of(shapes).group(name) == Group(kind)


def test_an_encoder_and_a_decoder_are_two_stacks_and_sublayers_are_no_depth() -> None:
    inner = {"layer.0.SelfAttention.q.weight": W, "layer.1.DenseReluDense.wi.weight": W, "layer.0.layer_norm.weight": V}
    shapes = {"shared.weight": (50, 8), "decoder.final_layer_norm.weight": V}
    layout = Layout.of(shapes | blocks("encoder.block", 4, inner) | blocks("decoder.block", 2, inner))
    assert layout.stacks == ("decoder", "encoder")
    assert (layout.depth("encoder"), layout.depth("decoder"), layout.depth()) == (4, 2, 0)
    assert layout.group("encoder.block.3.layer.1.DenseReluDense.wi.weight") == Group("mlp", 3, "encoder")
    assert layout.group("decoder.block.0.layer.0.layer_norm.weight") == Group("norm", 0, "decoder")
    assert layout.group("decoder.final_layer_norm.weight") == Group("norm", None, "decoder")
    assert layout.group("shared.weight") == Group("embedding"), "what both stacks use belongs to neither"


@pytest.mark.parametrize(
    ("tower", "inner", "language", "model", "head"),
    [
        ("vision_tower", "vision_model.", "language_model", "model.", "language_model.lm_head.weight"),
        ("model.vision_tower", "", "model.language_model", "", "lm_head.weight"),
    ],
)
def test_what_hangs_around_a_stack_belongs_to_it(tower: str, inner: str, language: str, model: str, head: str) -> None:
    outside = {
        f"{tower}.{inner}embeddings.patch_embedding.weight": (8, 3, 2, 2),
        f"{tower}.{inner}post_layernorm.bias": V,
        f"{language}.{model}embed_tokens.weight": (50, 8),
        "multi_modal_projector.linear_1.weight": W,
        head: (50, 8),
    }
    tower, language = f"{tower}.{inner}encoder.layers", f"{language}.{model}layers"
    layout = Layout.of(outside | blocks(tower, 3, LLAMA_BLOCK) | blocks(language, 2, LLAMA_BLOCK))
    assert layout.stacks == ("language_model", "vision_tower")
    assert [str(layout.group(name)) for name in outside] == [
        "vision_tower/embedding",
        "vision_tower/norm",
        "language_model/embedding",
        "other",
        "language_model/head" if head.startswith("language_model") else "head",
    ]
    assert layout.group(f"{tower}.2.mlp.gate_proj.weight") == Group("mlp", 2, "vision_tower")


def test_two_stacks_in_one_tower_share_its_name() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "model.visual.patch_embed.proj.weight": (8, 3, 2, 2),
        "model.visual.merger.fc.weight": W,
        "lm_head.weight": (50, 8),
    }
    for prefix in ("model.visual.blocks", "model.visual.mergers", "model.language_model.layers"):
        shapes |= blocks(prefix, 2, LLAMA_BLOCK)
    layout = Layout.of(shapes | {"model.language_model.norm.weight": V, "model.scale": ()})
    assert layout.stacks == ("language_model", "visual.blocks", "visual.mergers")
    assert [str(layout.group(name)) for name in shapes][:3] == ["visual/embedding", "visual/other", "head"]
    assert str(layout.group("model.language_model.norm.weight")) == "language_model/norm"
    assert str(layout.group("model.scale")) == "other"


def test_a_stack_inside_the_module_of_another_is_told_from_it() -> None:
    shapes = blocks("model.layers", 2, LLAMA_BLOCK) | blocks("model.layers.extra", 3, LLAMA_BLOCK)
    layout = Layout.of(shapes)
    assert (layout.depth("extra"), layout.depth("")) == (3, 2)
    assert str(layout.group("model.layers.extra.2.mlp.gate_proj.weight")) == "extra/mlp.2"


def test_stack_names_are_unique_and_parse() -> None:
    prefixes = ("model.visual.blocks", "model.language_model.layers", "model.audio.encoder.layers", "mtp.layers")
    shapes = {}
    for prefix in prefixes:
        shapes |= blocks(prefix, 2, LLAMA_BLOCK)
    layout = Layout.of(shapes)
    assert len(set(layout.stacks)) == 4
    assert all(Group.parse(str(group)) == group for group in layout.groups)
    assert set(layout.stacks) == {"model.visual", "model.language_model", "model.audio", "mtp"}
    counts = [len(layout.of_group(Group("norm", 1, stack))) for stack in layout.stacks]
    assert counts == [3] * 4


def test_experts_are_no_depth_even_where_they_outnumber_the_layers() -> None:
    experts = {f"mlp.experts.{i}.up_proj.weight": W for i in range(64)}
    layout = Layout.of(blocks("model.layers", 2, experts))
    assert layout.depth() == 2
    assert layout.groups == (Group("mlp", 0), Group("mlp", 1))


def test_a_sequential_with_gaps_or_single_matrices_is_no_stack() -> None:
    shapes = blocks("model.layers", 2, LLAMA_BLOCK) | {"projector.0.weight": W, "projector.2.weight": W}
    shapes |= {"convs.0.conv.weight": (8, 1, 3), "convs.1.conv.weight": (8, 8, 3)}
    layout = Layout.of(shapes)
    assert layout.stacks == ("",) and layout.group("projector.2.weight") == Group("other")
    assert layout.group("convs.1.conv.weight") == Group("other")


def test_a_model_without_blocks_and_one_with_a_single_block() -> None:
    assert Layout.of({"embed.weight": (50, 8), "rnn.weight": W}).stacks == ()
    assert Layout.of(blocks("model.layers", 1, LLAMA_BLOCK)).depth() == 1


def test_stored_constants_are_not_weights() -> None:
    assert is_buffer("h.0.attn.bias", (1, 1, 64, 64)) and is_buffer("layers.0.rotary_emb.inv_freq", (4,))
    assert is_buffer("layers.0.attention.masked_bias", ())
    assert not is_buffer("h.0.attn.c_attn.bias", (24,)) and not is_buffer("conv.bias", (1, 1, 3, 5))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(MergingError, match="knows no tensor 'x'"):
        Layout.of(blocks("h", 2, LLAMA_BLOCK)).group("x")
