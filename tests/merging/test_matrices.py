"""Which matrices a stored tensor consists of: by what real modules do with the parts, and by names, shapes, configs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from comparison import backend_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from merging.fused import Level, arrangement
from merging.kernel import Task, merge_tensor
from merging.matrices import Part, matrices, parts
from merging.methods import canonical, get
from merging.methods.contract import Values
from merging.pool import Pool
from merging.recipe import Assignment
from merging.sources import Sources

TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
FALCON = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
GPT = {
    "vocab_size": 40,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# config, tensor of the fused projection, tensor of the projection after it; parts: which of query, key and value.
ATTENTION: dict[str, tuple[Callable[[], Any], str, str]] = {
    "gpt2": (lambda: hf.GPT2Config(**GPT), "c_attn.weight", "attn.c_proj.weight"),
    "gpt_bigcode": (lambda: hf.GPTBigCodeConfig(**GPT, multi_query=False), "c_attn.weight", "attn.c_proj.weight"),
    "gpt_bigcode multi-query": (lambda: hf.GPTBigCodeConfig(**GPT), "c_attn.weight", "attn.c_proj.weight"),
    "gpt_neox": (
        lambda: hf.GPTNeoXConfig(**{**TINY, "num_key_value_heads": 4}),
        "query_key_value.weight",
        "attention.dense.weight",
    ),
    "bloom": (
        lambda: hf.BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=4),
        "query_key_value.weight",
        "self_attention.dense.weight",
    ),
    "falcon": (
        lambda: hf.FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True),
        "query_key_value.weight",
        "self_attention.dense.weight",
    ),
    "falcon multi-query": (
        lambda: hf.FalconConfig(**FALCON, multi_query=True, new_decoder_architecture=False),
        "query_key_value.weight",
        "self_attention.dense.weight",
    ),
    "falcon by head": (
        lambda: hf.FalconConfig(**FALCON, multi_query=False, new_decoder_architecture=False, alibi=True),
        "query_key_value.weight",
        "self_attention.dense.weight",
    ),
    "phi3": (lambda: hf.Phi3Config(**TINY), "qkv_proj.weight", "o_proj.weight"),
    "mpt": (
        lambda: hf.MptConfig(vocab_size=40, d_model=16, n_layers=1, n_heads=4, max_seq_len=32),
        "Wqkv.weight",
        "attn.out_proj.weight",
    ),
    "codegen": (
        lambda: hf.CodeGenConfig(vocab_size=40, n_embd=16, n_layer=1, n_head=4, n_positions=32, rotary_dim=2),
        "qkv_proj.weight",
        "attn.out_proj.weight",
    ),
    "persimmon": (
        lambda: hf.PersimmonConfig(**{**TINY, "num_key_value_heads": 4}, qk_layernorm=False),
        "query_key_value.weight",
        "self_attn.dense.weight",
    ),
    "modernbert": (
        lambda: hf.ModernBertConfig(**{**TINY, "num_key_value_heads": 4}, reference_compile=False),
        "Wqkv.weight",
        "attn.Wo.weight",
    ),
    "dbrx": (
        lambda: hf.DbrxConfig(
            vocab_size=40,
            d_model=16,
            n_layers=1,
            n_heads=4,
            max_seq_len=32,
            attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 100.0},
            ffn_config={"ffn_hidden_size": 12, "moe_num_experts": 3, "moe_top_k": 1},
        ),
        "Wqkv.weight",
        "out_proj.weight",
    ),
}  # fmt: skip

# config, tensor of gate and up, tensor of what comes after.
GATED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "phi3": (lambda: hf.Phi3Config(**TINY), "gate_up_proj.weight", "down_proj.weight"),
    "glm": (lambda: hf.GlmConfig(**TINY, head_dim=4), "gate_up_proj.weight", "down_proj.weight"),
    "modernbert": (
        lambda: hf.ModernBertConfig(**{**TINY, "num_key_value_heads": 4}, reference_compile=False),
        "Wi.weight",
        "mlp.Wo.weight",
    ),
    "llama4": (
        lambda: hf.Llama4TextConfig(**TINY, num_local_experts=3, head_dim=4, intermediate_size_mlp=12),
        "experts.gate_up_proj",
        "experts.down_proj",
    ),
    "gpt_oss": (
        lambda: hf.GptOssConfig(**TINY, num_local_experts=3, num_experts_per_tok=2, head_dim=4, rope_parameters=ROPE),
        "experts.gate_up_proj",
        "experts.down_proj",
    ),
}


def built(config: Any) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """A random model without biases in the way, its tensors, and its config as it is stored."""
    torch.manual_seed(3)
    if config.model_type == "modernbert":
        config.attn_implementation = "eager"
        model = hf.ModernBertModel(config)
    else:
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    tensors = dict(model.eval().state_dict())
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.endswith("bias") and not name.endswith(("layernorm.bias", "ln_1.bias")):
                tensor.zero_()
            elif tensor.ndim > 1:
                tensor.normal_(0.0, 0.3)
    return model, tensors, config.to_dict()


def found(tensors: dict[str, Tensor], ending: str) -> str:
    (name,) = (name for name in tensors if name.endswith(ending) and "shared_expert" not in name)
    return name


def without(model: nn.Module, tensor: Tensor, *kept: Part) -> Tensor:
    """What the model says where these parts are zero."""
    before = tensor.clone()
    with torch.no_grad():
        for part in kept:
            part.put(tensor, torch.zeros_like(part.take(tensor)))
        said: Tensor = model(torch.arange(3, 15).view(1, -1))[0]
        tensor.copy_(before)
    return said


def same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("what", ATTENTION)
def test_query_key_and_value_are_told_apart(what: str) -> None:
    """Without queries attention is uniform, as it is without keys; without values there is none."""
    config, fused, after = ATTENTION[what]
    model, tensors, stored = built(config())
    name = found(tensors, fused)
    pieces = parts(name, tuple(tensors[name].shape), stored)
    assert len(pieces) == 3
    tensor, plain = tensors[name], without(model, tensors[name])
    query, key, value = (without(model, tensor, piece) for piece in pieces)
    (last,) = parts(found(tensors, after), tuple(tensors[found(tensors, after)].shape), stored)
    nothing = without(model, tensors[found(tensors, after)], last)
    if what == "codegen":  # it stores the values in the middle
        key, value = value, key
    assert same(query, key) and same(value, nothing)
    assert not same(query, plain) and not same(query, value) and not same(plain, value)


@pytest.mark.parametrize("what", GATED)
def test_gate_and_up_are_told_apart(what: str) -> None:
    """Of a product, one factor is enough to make it zero."""
    config, fused, after = GATED[what]
    model, tensors, stored = built(config())
    name = found(tensors, fused)
    pieces = parts(name, tuple(tensors[name].shape), stored)
    assert len(pieces) == (6 if "experts" in fused else 2)
    tensor, last = tensors[name], tensors[found(tensors, after)]
    nothing = without(model, last, *parts(found(tensors, after), tuple(last.shape), stored))
    gate, up = (without(model, tensor, *pieces[number::2]) for number in range(2))
    assert same(gate, nothing) and not same(without(model, tensor), nothing)
    if what == "gpt_oss":  # its up is counted from one
        assert not same(up, nothing)
    else:
        assert same(up, nothing)


def test_stacks_that_are_stored_one_below_the_other() -> None:
    """DBRX: an expert's hidden units in all three matrices; without those of one, the others still work."""
    model, tensors, stored = built(ATTENTION["dbrx"][0]())
    first = {
        ending: parts(found(tensors, ending), tuple(tensors[found(tensors, ending)].shape), stored)
        for ending in ("mlp.w1", "mlp.v1", "mlp.w2")
    }
    assert [len(each) for each in first.values()] == [3, 3, 3]
    assert [each[0].turned for each in first.values()] == [False, False, True]
    one = [without(model, tensors[found(tensors, ending)], each[1]) for ending, each in first.items()]
    every = [without(model, tensors[found(tensors, ending)], *each) for ending, each in first.items()]
    assert same(one[0], one[1]) and same(one[1], one[2]) and same(every[0], every[2])
    assert not same(one[0], every[0])


# Names, shapes and configs of models that are too large to build: (name, shape, config) -> (parts, their shape).
OPT = {"hidden_size": 16, "num_attention_heads": 4, "vocab_size": 40}
GQA = {**OPT, "num_key_value_heads": 2}
GLM = {**OPT, "model_type": "chatglm", "multi_query_group_num": 2, "kv_channels": 4}
DELTA = {
    **OPT,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 4,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 6,
}
MIXTURE = {**OPT, "num_local_experts": 3}
QWEN_VL = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 24,
    "num_attention_heads": 4,
    "vision_config": {"embed_dim": 12, "num_heads": 3},
}
KINDS: dict[str, tuple[str, tuple[int, ...], dict[str, Any], int, tuple[int, int]]] = {
    "plain": ("layers.0.q_proj.weight", (16, 16), OPT, 1, (16, 16)),
    "conv1d by its config": ("h.0.mlp.c_proj.weight", (64, 16), {"model_type": "gpt2"}, 1, (16, 64)),
    "conv1d's namesake": ("h.0.mlp.c_proj.weight", (16, 64), {"model_type": "gpt_neo"}, 1, (16, 64)),
    "conv1d in a part": ("h.0.mlp.c_fc.weight", (16, 64), {"decoder": {"model_type": "gpt2"}}, 1, (64, 16)),
    "cross-attention": ("h.0.crossattention.c_attn.weight", (16, 32), {"model_type": "gpt2"}, 2, (16, 16)),
    "tower": ("visual.blocks.0.attn.qkv.weight", (36, 12), QWEN_VL, 3, (12, 12)),
    "openai clip": ("visual.transformer.resblocks.0.attn.in_proj_weight", (36, 12), {}, 3, (12, 12)),
    "hiera, which widens": ("blocks.2.attn.qkv.weight", (72, 12), {}, 3, (24, 12)),
    "unknown query_key_value": ("layers.0.query_key_value.weight", (48, 16), OPT, 1, (48, 16)),
    "chatglm": ("layers.0.query_key_value.weight", (32, 16), GLM, 3, (16, 16)),
    "internlm2": ("layers.0.attention.wqkv.weight", (32, 16), {"model_type": "internlm2", **GQA}, 3, (16, 16)),
    "delta net": ("layers.0.linear_attn.in_proj_qkv.weight", (40, 16), DELTA, 3, (8, 16)),
    "granite's experts": ("layers.0.block_sparse_moe.input_linear.weight", (3, 40, 16), MIXTURE, 6, (20, 16)),
    "granite's speech": ("encoder.input_linear.weight", (44, 16), OPT, 1, (44, 16)),
    "experts [in, out]": ("layers.0.mlp.experts.down_proj", (3, 20, 16), {"text_config": OPT}, 3, (16, 20)),
    "experts [out, in]": ("layers.0.mlp.experts.down_proj", (3, 16, 20), {"text_config": OPT}, 3, (16, 20)),
    "square experts": ("layers.0.experts.down_proj", (3, 16, 16), {"model_type": "llama4", **OPT}, 3, (16, 16)),
    "convolution": ("encoder.conv1.weight", (16, 8, 3), OPT, 1, (16, 24)),
    "patches": ("embeddings.patch_embeddings.projection.weight", (16, 3, 4, 4), OPT, 1, (16, 48)),
    "xlnet": ("layer.0.rel_attn.q", (16, 4, 4), OPT, 1, (16, 16)),
    "one row": ("layers.0.shared_expert_gate.weight", (1, 16), OPT, 1, (1, 16)),
    "t5's bias": ("block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 4), OPT, 0, (0, 0)),
    "expert biases": ("layers.0.mlp.experts.gate_up_proj_bias", (3, 40), OPT, 0, (0, 0)),
    "depthwise": ("layers.0.mixer.conv1d.weight", (32, 1, 4), OPT, 0, (0, 0)),
    "mamba's rates": ("layers.0.mixer.A_log", (32, 16), OPT, 0, (0, 0)),
    "weight norm": ("pos_conv_embed.conv.weight_v", (16, 8, 3), OPT, 0, (0, 0)),
    "positions": ("embeddings.position_embeddings", (1, 17, 16), OPT, 0, (0, 0)),
    "bias": ("layers.0.q_proj.bias", (16,), OPT, 0, (0, 0)),
    "empty": ("layers.0.q_proj.weight", (0, 16), OPT, 0, (0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("what", KINDS)
def test_names_shapes_and_configs(what: str) -> None:
    name, shape, config, count, size = KINDS[what]
    kind = "embedding" if "embed" in name else "other"
    pieces = parts(name, shape, config, inside=any(word.isdecimal() for word in name.split(".")), kind=kind)
    assert len(pieces) == count
    if pieces:
        assert tuple(pieces[0].take(torch.empty(shape)).shape) == size


@given(st.sampled_from([each for each in KINDS.values() if each[3]]), st.integers(0, 1000))
def test_parts_cover_a_tensor_once(kind: tuple[Any, ...], seed: int) -> None:
    """What is taken and put again is the tensor, and every element is in one part."""
    name, shape, config, *_ = kind
    pieces = parts(name, shape, config, kind="embedding" if "embed" in name else "other")
    tensor = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    copy, counted = torch.full(shape, torch.nan), torch.zeros(shape)
    for piece in pieces:
        piece.put(copy, piece.take(tensor))
        piece.put(counted, piece.take(counted) + 1)
    assert torch.equal(copy, tensor) and bool((counted == 1).all())


def test_where_the_config_is_in_doubt_the_tensor_stays_whole() -> None:
    """Two towers of one width that would share it out differently; shapes that fit nothing."""
    one, other = ({"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": each} for each in (4, 4))
    levels = Level.all({"text_config": one, "vision_config": {**other, "model_type": "minimax"}})
    assert arrangement(("qkv_proj",), 48, 16, levels) is None
    assert arrangement(("qkv_proj",), 48, 16, levels[:2]) is not None
    assert arrangement(("qkv_proj",), 47, 16, levels[:2]) is None
    assert arrangement(("gate_up_proj",), 41, 16, ()) is None


@pytest.mark.parametrize("method", ["tsv_m", "iso_c", "iso_cts", "wudi"])
@pytest.mark.parametrize("what", ["gpt2", "gpt_neox", "falcon", "phi3", "llama4"])
def test_a_fused_tensor_is_merged_as_its_matrices_apart(method: str, what: str) -> None:
    config, fused, _ = (GATED if what == "llama4" else ATTENTION)[what]
    stored = config().to_dict()
    shape = {"gpt2": (16, 48), "falcon": (32, 16), "phi3": (32, 16), "llama4": (3, 16, 40)}.get(what, (48, 16))
    generator = torch.Generator().manual_seed(5)
    name = f"layers.0.{fused}"
    models = [{name: torch.randn(shape, generator=generator) * size} for size in (1.0, 0.1, 0.1, 0.1)]
    models[1:] = [{name: models[0][name] + each[name]} for each in models[1:]]
    spelled = canonical(Assignment.of(method, {alias: {} for alias in "abc"}))
    held = dict(zip(("base", "a", "b", "c"), models, strict=True))
    pool = Pool("base", ("a", "b", "c"), (name,), lambda alias, each: held[alias][each], config=stored)
    merged = torch.empty(shape)
    merge_tensor(name, Task(get(method), Values.of(spelled), pool), merged)
    pieces = matrices(pool, name)
    assert len(pieces) == (6 if what == "llama4" else 3)
    for piece in pieces:
        apart = [{"layers.0.x.weight": piece.take(model[name]).contiguous()} for model in models]
        alone = backend_model(method, apart[0], apart[1:], [{}] * 3, {})["layers.0.x.weight"]
        torch.testing.assert_close(piece.take(merged), alone, rtol=1e-6, atol=1e-6)


def test_sources_tell_their_config(families: Callable[..., Any]) -> None:
    sources: Sources = families("gpt2").load()
    pool = sources.pool(("a", "b"))
    assert pool.config["model_type"] == "gpt2"
    assert [len(matrices(pool, f"transformer.h.1.{name}")) for name in ("attn.c_attn.weight", "mlp.c_fc.weight")] == [
        3,
        1,
    ]
    assert all(piece.turned for piece in matrices(pool, "transformer.h.1.attn.c_proj.weight"))
    for name in ("wte.weight", "wpe.weight", "h.1.ln_1.weight", "h.1.attn.c_attn.bias"):
        assert matrices(pool, f"transformer.{name}") == ()
    untied = families("llama").load()
    assert matrices(untied.pool(("a",)), "lm_head.weight") == ()
    assert len(matrices(untied.pool(("a",)), "model.layers.0.mlp.down_proj.weight")) == 1
    assert {name: untied.pool(("a",)).shape(name) for name in untied.tensors} == {
        name: info.shape for name, info in untied.tensors.items()
    }
