"""Tiny models to calibrate, and what their layers see, captured by plain hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from families import Family
from test_architectures import GROUPED, IDS, IMAGE, MODELS, SPECIAL, TEXT, V
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from merging.materialize import Materializer, load_model
from merging.recipe import Assignment, Recipe
from merging.sources import Sources

VOICE = {"input_values": torch.linspace(-1, 1, 400).reshape(1, 400)}

MORE: dict[str, tuple[str, dict[str, Any], dict[str, Tensor]]] = {
    "falcon": (
        "FalconForCausalLM",
        {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "multi_query": False},
        IDS,
    ),
    "reward": ("LlamaForSequenceClassification", {**GROUPED, "num_labels": 1}, IDS),
    "classifier": ("GPT2ForSequenceClassification", {**MODELS["gpt2"][1], "num_labels": 3}, IDS),
    "albert": (
        "AlbertForMaskedLM",
        {**TEXT, "embedding_size": 16, "num_hidden_groups": 1, "inner_group_num": 1},
        IDS,
    ),
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        {
            **TEXT,
            **SPECIAL,
            "conv_dim": (8, 8),
            "conv_kernel": (10, 3),
            "conv_stride": (5, 2),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
        VOICE,
    ),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2], "layer_type": "basic", "num_labels": 3},
        {"pixel_values": torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)},
    ),
    "deepseek": (
        "DeepseekV3ForCausalLM",
        {
            **TEXT,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "q_lora_rank": 12,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
        IDS,
    ),
    "llama4": (
        "Llama4ForCausalLM",
        {
            **GROUPED,
            "head_dim": 8,
            "intermediate_size_mlp": 40,
            "num_local_experts": 3,
            "num_experts_per_tok": 1,
            **SPECIAL,
        },
        IDS,
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        {**GROUPED, "head_dim": 8, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 8},
        IDS,
    ),
    "mamba": ("MambaForCausalLM", {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}, IDS),
    "bloom": ("BloomForCausalLM", {"vocab_size": V, "hidden_size": 32, "n_layer": 2, "n_head": 4}, IDS),
    "deberta": (
        "DebertaV2ForSequenceClassification",
        {
            **TEXT,
            "num_labels": 2,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "max_relative_positions": 8,
        },
        IDS,
    ),
    "beit": ("BeitForImageClassification", {**IMAGE, "num_labels": 5}, MODELS["vit"][2]),
}

ALL = {name: entry[:3] for name, entry in MODELS.items()} | MORE


def save_family(name: str, folder: Path, experts: int = 2) -> Family:
    """A random model, and one or two that went a small way from it."""
    class_name, arguments, _ = ALL[name]
    cls = getattr(transformers, class_name)
    torch.manual_seed(11)
    model = cls(cls.config_class(**arguments))
    with torch.no_grad():
        for each in model.parameters():
            each.copy_(torch.where(torch.isfinite(each), each, 0.0))
            each.add_(0.05 * torch.randn_like(each))
    family = Family(folder / "base", folder / "a", folder / "b")
    start = {key: value.clone() for key, value in model.state_dict().items()}
    model.save_pretrained(family.base)
    for path in (family.a, family.b)[:experts]:
        model.load_state_dict(start)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(path)
    return family


def inputs_of(name: str, count: int = 3, seed: int = 0) -> list[dict[str, Tensor]]:
    """Samples of a model: token ids and numbers drawn anew, some of another length where there is only text."""
    generator = torch.Generator().manual_seed(seed)
    return [_drawn(ALL[name][2], generator, number) for number in range(count)]


def _drawn(template: Mapping[str, Tensor], generator: torch.Generator, number: int) -> dict[str, Tensor]:
    drawn = {}
    for key, value in template.items():
        if value.is_floating_point():
            drawn[key] = torch.randn(value.shape, generator=generator)
        elif key.endswith("input_ids"):
            fresh = torch.randint(3, 50, value.shape, generator=generator)
            drawn[key] = torch.where(value == 52, value, fresh)  # images keep their places
        else:
            drawn[key] = value
    if set(drawn) == {"input_ids"} and number % 2:
        drawn["input_ids"] = drawn["input_ids"][:, : 2 + number % 3]
    return drawn


def one_expert(name: str, folder: Path) -> Sources:
    """A base and a."""
    family = save_family(name, folder, experts=1)
    return Sources.load(family.base, {"a": family.a})


def materializer(sources: Sources, dtype: torch.dtype = torch.float64) -> Materializer:
    model: Any = load_model(sources.path, dtype)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped product knows no float64
    return Materializer(sources, model)


def bring(made: Materializer, assignment: Assignment) -> None:
    """The same assignment everywhere."""
    sources = made.sources
    dtype = str(next(made.model.parameters()).dtype).removeprefix("torch.")
    made.apply(Recipe("base", sources.refs, dict.fromkeys(sources.layout.groups, assignment), dtype=dtype))


def hooked(model: nn.Module, samples: list[dict[str, Tensor]]) -> dict[str, tuple[Tensor, int]]:
    """Live parameter name -> (Σ x·xᵀ in float64, rows) of every linear layer and convolution, one sample at a time."""
    found: dict[str, tuple[Tensor, int]] = {}

    def take(name: str, rows: Tensor) -> None:
        rows = rows.reshape(-1, rows.shape[-1]).double()
        total, count = found.get(name, (0.0, 0))
        found[name] = (total + rows.t() @ rows, count + len(rows))

    handles = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) or type(module).__name__.endswith("Router"):
            handles.append(module.register_forward_pre_hook(lambda _, args, p=path: take(f"{p}.weight", args[0])))
        elif isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1:
            handles.append(
                module.register_forward_pre_hook(lambda m, args, p=path: take(f"{p}.weight", patches(m, args[0])))
            )
    with torch.no_grad():
        for sample in samples:
            model(**{key: value.double() if value.is_floating_point() else value for key, value in sample.items()})
    for handle in handles:
        handle.remove()
    return found


def patches(convolution: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """What the kernel sees, read off the convolution itself: its answer to kernels that pick one element each."""
    width = convolution.weight[0].numel()
    picks = torch.eye(width, dtype=inputs.dtype).view(width, *convolution.weight.shape[1:])
    conv = nn.functional.conv1d if isinstance(convolution, nn.Conv1d) else nn.functional.conv2d
    seen = conv(inputs, picks, None, convolution.stride, convolution.padding, convolution.dilation)
    return seen.movedim(1, -1)


def canonical_of(made: Materializer, parameter: Tensor) -> Iterator[str]:
    """The stored tensors of two axes or more that share memory with a live parameter."""
    start, stop = span(parameter)
    for name, tensor in made.tensors.items():
        same = tensor.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
        first, last = span(tensor)
        if same and tensor.ndim > 1 and first < stop and last > start:
            yield name


def span(tensor: Tensor) -> tuple[int, int]:
    start = tensor.storage_offset()
    return start, start + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1


def hooked_experts(model: nn.Module, samples: list[dict[str, Tensor]]) -> dict[str, tuple[Tensor, int]]:
    """Of a Mixtral: name on disk -> (Σ x·xᵀ, rows) of every expert's matrices, computed from what it was sent."""
    found: dict[str, tuple[Tensor, int]] = {}

    def take(layer: int, module: Any, args: tuple[Tensor, Tensor, Tensor]) -> None:
        hidden, chosen, _ = args
        for expert in range(module.num_experts):
            rows = hidden[(chosen == expert).any(-1)].double()
            gate, up = (rows @ module.gate_up_proj[expert].t().double()).chunk(2, -1)
            inner = nn.functional.silu(gate) * up
            for leaf, each in (("w1", rows), ("w3", rows), ("w2", inner)):
                name = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{leaf}.weight"
                total, count = found.get(name, (0.0, 0))
                found[name] = (total + each.t() @ each, count + len(each))

    layers: Any = model.get_submodule("model.layers")
    handles = [
        layer.mlp.experts.register_forward_pre_hook(lambda module, args, number=number: take(number, module, args))
        for number, layer in enumerate(layers)
    ]
    with torch.no_grad():
        for sample in samples:
            model(**sample)
    for handle in handles:
        handle.remove()
    return found
