"""Any architecture by structure: tiny random models of many kinds, mapped, merged live, exported and reloaded."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from families import Family
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from merging.checkpoint import SINGLE, Checkpoint
from merging.export import export
from merging.live import load_model, map_live
from merging.materialize import Materializer
from merging.recipe import Assignment, Group, Recipe
from merging.sources import Sources

V, P = 53, 8
TEXT = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**TEXT, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 8}
BLOCKS = {name: size for name, size in TEXT.items() if name != "vocab_size"}
IMAGE = {**BLOCKS, "image_size": 16, "patch_size": P}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SPEECH = {
    "vocab_size": V,
    "d_model": 24,
    **{
        f"{part}_{name}": size
        for part in ("encoder", "decoder")
        for name, size in {"layers": 2, "attention_heads": 4, "ffn_dim": 40}.items()
    },
    **SPECIAL,
    "decoder_start_token_id": 1,
}
T5 = {"vocab_size": V, "d_model": 24, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 6}

IDS = {"input_ids": torch.tensor([[1, 5, 9, 2, 40]])}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)}
PAIRED = {**IDS, "decoder_input_ids": torch.tensor([[1, 7, 3]])}
PICTURED = {"input_ids": torch.tensor([[1, 52, 52, 52, 52, 9, 4]]), **PIXELS}
HEARD = {"input_features": torch.linspace(-1, 1, 8 * 32).reshape(1, 8, 32), "decoder_input_ids": IDS["input_ids"]}


def towers() -> dict[str, dict[str, Any]]:
    return {"text_config": {**TEXT, **SPECIAL, "max_position_embeddings": 32}, "vision_config": IMAGE}


# Name -> (class, its config's arguments, inputs, stacks). The config's class is the model class's own.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Tensor], tuple[str, ...]]] = {
    "llama": ("LlamaForCausalLM", GROUPED, IDS, ("",)),
    "qwen2": ("Qwen2ForCausalLM", {**GROUPED, "tie_word_embeddings": True}, IDS, ("",)),
    "qwen3": ("Qwen3ForCausalLM", WIDE, IDS, ("",)),
    "mistral": ("MistralForCausalLM", GROUPED, IDS, ("",)),
    "gemma": ("GemmaForCausalLM", WIDE, IDS, ("",)),
    "gemma2": ("Gemma2ForCausalLM", WIDE, IDS, ("",)),
    "gemma3": ("Gemma3ForCausalLM", WIDE, IDS, ("",)),
    "phi": ("PhiForCausalLM", GROUPED, IDS, ("",)),
    "phi3": ("Phi3ForCausalLM", {**GROUPED, **SPECIAL}, IDS, ("",)),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": V, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64, **SPECIAL},
        IDS,
        ("",),
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", TEXT, IDS, ("",)),
    "mixtral": ("MixtralForCausalLM", {**GROUPED, "num_local_experts": 3}, IDS, ("",)),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        {**GROUPED, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 20},
        IDS,
        ("",),
    ),
    "bert": ("BertForMaskedLM", TEXT, IDS, ("",)),
    "bert-classifier": ("BertForSequenceClassification", {**TEXT, "num_labels": 3}, IDS, ("",)),
    "modernbert": ("ModernBertForMaskedLM", {**TEXT, **SPECIAL, "cls_token_id": 1, "sep_token_id": 2}, IDS, ("",)),
    "nomic-bert": ("NomicBertForMaskedLM", TEXT, IDS, ("",)),
    "t5": ("T5ForConditionalGeneration", T5, PAIRED, ("decoder", "encoder")),
    "marian": ("MarianMTModel", {**SPEECH, "forced_eos_token_id": 2}, PAIRED, ("decoder", "encoder")),
    "whisper": (
        "WhisperForConditionalGeneration",
        {**SPEECH, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
        HEARD,
        ("decoder", "encoder"),
    ),
    "vit": ("ViTForImageClassification", {**IMAGE, "num_labels": 5}, PIXELS, ("",)),
    "dinov2": (
        "Dinov2Model",
        {**{key: size for key, size in IMAGE.items() if key != "intermediate_size"}, "use_swiglu_ffn": True},
        PIXELS,
        ("",),
    ),
    "clip": ("CLIPModel", {**towers(), "projection_dim": 16}, {**IDS, **PIXELS}, ("text_model", "vision_model")),
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "vision_config": {**IMAGE, "model_type": "clip_vision_model"},
            "text_config": {**GROUPED, "model_type": "llama"},
            "image_token_index": 52,
        },
        PICTURED,
        ("language_model", "vision_tower"),
    ),
    "gemma3-vision": (
        "Gemma3ForConditionalGeneration",
        {"vision_config": IMAGE, "text_config": WIDE, "mm_tokens_per_image": 4, "image_token_index": 52},
        {**PICTURED, "token_type_ids": torch.tensor([[0, 1, 1, 1, 1, 0, 0]])},
        ("language_model", "vision_tower"),
    ),
}

# What is no attention, mlp, norm, embedding or head by any reading.
OTHER = re.compile(r"layer_scale|projector|_projection\.|logit_scale|final_logits_bias|encoder\.conv\d|pooler")


def save_family(name: str, folder: Path) -> Family:
    """A random model, and two that went a small way from it."""
    class_name, arguments, _, _ = MODELS[name]
    cls = getattr(transformers, class_name)
    torch.manual_seed(11)
    model = cls(cls.config_class(**arguments))
    family = Family(folder / "base", folder / "a", folder / "b")
    start = {key: value.clone() for key, value in model.state_dict().items()}
    model.save_pretrained(family.base)
    for path in (family.a, family.b):
        model.load_state_dict(start)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(path)
    return family


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    made: dict[str, Family] = {}

    def get(name: str) -> Family:
        if name not in made:
            made[name] = save_family(name, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(scope="module")
def load(family: Callable[[str], Family]) -> Callable[[str], Sources]:
    """Sources by name; read-only."""
    return cache(lambda name: family(name).load())


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False))


def same_parameters(a: nn.Module, b: nn.Module) -> bool:
    first, second = parameters_of(a), parameters_of(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def outputs(model: nn.Module, name: str) -> list[Tensor]:
    with torch.no_grad():
        return [each for each in model(**MODELS[name][2]).to_tuple() if isinstance(each, Tensor)]


def task_arithmetic(a: float, b: float) -> Assignment:
    return Assignment.of("task_arithmetic", {"a": {"coefficient": a}, "b": {"coefficient": b}})


def some_fast(names: Iterable[str]) -> list[Any]:
    """Every third architecture, and those whose layouts are joined or split; the others in the slow tests."""
    always = ("mixtral", "llava", "gpt2")
    chosen = enumerate(names)
    return [pytest.param(n, marks=() if k % 3 == 0 or n in always else pytest.mark.slow) for k, n in chosen]


@pytest.mark.parametrize("name", some_fast(MODELS))
def test_writing_an_expert_through_the_views_makes_the_live_model_that_expert(
    load: Callable[[str], Sources], name: str
) -> None:
    """The truth is transformers' own: the expert as from_pretrained loads it, parameter by parameter."""
    sources = load(name)
    model = load_model(sources.path)
    assert type(model).__name__ == MODELS[name][0] and not model.training
    before = outputs(model, name)
    live = map_live(sources, model)
    assert list(live.tensors) == list(sources.tensors) and live.unused == ()
    for each, tensor in live.tensors.items():
        assert torch.equal(tensor, sources.tensor("base", each)) and tensor.is_contiguous()
    assert all(map(torch.equal, before, outputs(model, name))), "mapping changes nothing"
    for each, tensor in live.tensors.items():
        tensor.copy_(sources.tensor("a", each))
    live.check_in_place()
    expert = load_model(sources.checkpoints["a"].path)
    assert same_parameters(model, expert)
    assert all(map(torch.equal, outputs(expert, name), outputs(model, name)))


@pytest.mark.parametrize("name", MODELS)
def test_groups(load: Callable[[str], Sources], name: str) -> None:
    layout = load(name).layout
    assert layout.stacks == MODELS[name][3]
    for stack in layout.stacks:
        assert layout.depth(stack) == 2
        for depth in range(2):
            kinds = {group.kind for group in layout.groups if (group.stack, group.depth) == (stack, depth)}
            assert kinds - {"other"} == {"attention", "mlp", "norm"}
    assert any(group.kind == "embedding" and group.depth is None for group in layout.groups)
    other = [each for group in layout.groups if group.kind == "other" for each in layout.of_group(group)]
    assert all(OTHER.search(each) for each in other), other


@pytest.mark.parametrize("name", some_fast(MODELS))
def test_live_exported_and_reloaded_are_the_same_bits(
    load: Callable[[str], Sources], uniform: Callable[..., Recipe], tmp_path: Path, name: str
) -> None:
    sources = load(name)
    model = load_model(sources.path)
    materializer = Materializer(sources, model)
    recipe = uniform(sources, task_arithmetic(0.6, 0.5))
    materializer.apply(recipe)
    folder = export(recipe, sources, tmp_path / "out")
    assert Checkpoint.open(folder).content == materializer.digest() != sources.canonical_content
    assert set(Checkpoint.open(folder).tensors) == set(Checkpoint.open(sources.path).tensors)
    reloaded = getattr(transformers, MODELS[name][0]).from_pretrained(folder)
    assert same_parameters(reloaded, model)
    # the weights are the same bits; some processors multiply memory of another alignment in another order
    torch.testing.assert_close(outputs(reloaded.eval(), name), outputs(model, name), rtol=1e-5, atol=1e-6)


def test_a_mixture_is_exported_under_its_names_on_disk_and_is_the_merge_of_its_matrices(
    load: Callable[[str], Sources], uniform: Callable[..., Recipe], tmp_path: Path
) -> None:
    sources = load("mixtral")
    folder = export(uniform(sources, task_arithmetic(0.7, -0.4)), sources, tmp_path / "out")
    base, a, b, merged = (
        {name: tensor.double().numpy() for name, tensor in load_file(path / SINGLE).items()}
        for path in (*(each.path for each in sources.checkpoints.values()), folder)
    )
    assert merged.keys() == base.keys() and "model.layers.1.block_sparse_moe.experts.2.w3.weight" in merged
    for name in base:
        exact = base[name] + 0.7 * (a[name] - base[name]) - 0.4 * (b[name] - base[name])
        np.testing.assert_allclose(merged[name], exact, rtol=2e-7, atol=1e-8)
    assert {str(sources.layout.group(name)) for name in base if ".experts." in name} == {"mlp.0", "mlp.1"}


@pytest.mark.parametrize("name", ["mixtral", "nomic-bert", "llava"])
def test_places_come_from_structure_where_all_contents_are_alike(
    family: Callable[[str], Family], tmp_path: Path, name: str
) -> None:
    """In a base of zeros no content tells two tensors apart."""
    folder = tmp_path / "zeros"
    shutil.copytree(family(name).base, folder)
    save_file({each: torch.zeros_like(t) for each, t in load_file(folder / SINGLE).items()}, folder / SINGLE)
    sources = Sources.load(folder, {"a": family(name).a})
    model = load_model(folder)
    for each, tensor in map_live(sources, model).tensors.items():
        tensor.copy_(sources.tensor("a", each))
    assert same_parameters(model, load_model(family(name).a))


def rewrite(family: Family, folder: Path, rename: Callable[[str], str]) -> Sources:
    """The same models under other names on disk."""
    for alias, path in (("base", family.base), ("a", family.a)):
        shutil.copytree(path, folder / alias)
        tensors = load_file(path / SINGLE)
        save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / alias / SINGLE)
    return Sources.load(folder / "base", {"a": folder / "a"})


@pytest.mark.parametrize(
    ("name", "pattern", "replacement"),
    [
        ("llava", r"^vision_tower\.", "vision_tower.vision_model."),
        ("bert", r"^bert\.(.*)LayerNorm\.weight", r"bert.\1LayerNorm.gamma"),
        ("bert", r"LayerNorm\.bias", "LayerNorm.beta"),
        ("gpt2", r"^transformer\.", ""),
        ("whisper", r"^model\.", ""),
    ],
)
def test_the_names_of_older_checkpoints(
    family: Callable[[str], Family], tmp_path: Path, name: str, pattern: str, replacement: str
) -> None:
    sources = rewrite(family(name), tmp_path, lambda each: re.sub(pattern, replacement, each))
    assert set(sources.tensors) != set(family(name).load().tensors)
    model = load_model(sources.path)
    live = map_live(sources, model)
    for each, tensor in live.tensors.items():
        tensor.copy_(sources.tensor("a", each))
    assert same_parameters(model, load_model(family(name).a))
    assert {group.kind for group in sources.layout.groups if group.depth == 1} >= {"attention", "mlp", "norm"}


@pytest.mark.parametrize("name", ["mixtral", "llava", "vit", "nomic-bert", "dinov2"])
def test_checkpoints_that_were_saved_as_the_model_lives(
    family: Callable[[str], Family], tmp_path: Path, name: str
) -> None:
    for alias in ("base", "a"):
        model = load_model(getattr(family(name), alias))
        model.save_pretrained(tmp_path / alias, save_original_format=False)
    sources = Sources.load(tmp_path / "base", {"a": tmp_path / "a"})
    model = load_model(sources.path)
    live = map_live(sources, model)
    for each, tensor in live.tensors.items():
        assert tensor.data_ptr() == model.get_parameter(each).data_ptr()
        tensor.copy_(sources.tensor("a", each))
    assert same_parameters(model, load_model(family(name).a))
    for stack in sources.layout.stacks:
        for depth in range(2):
            assert {Group("attention", depth, stack), Group("mlp", depth, stack)} <= set(sources.layout.groups)


def test_merging_only_the_language_part_of_a_llava(
    load: Callable[[str], Sources], uniform: Callable[..., Recipe], tmp_path: Path
) -> None:
    sources = load("llava")
    base_alone = Assignment.of("task_arithmetic", {})
    rest = {group: base_alone for group in sources.layout.groups if group.stack != "language_model"}
    assert {str(group) for group in rest} > {
        "vision_tower/embedding",
        "vision_tower/norm",
        "vision_tower/mlp.1",
        "other",
    }
    recipe = uniform(sources, task_arithmetic(0.5, 0.5), rest)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    model = load_model(sources.path)
    Materializer(sources, model).apply(recipe)
    base = parameters_of(load_model(sources.path))
    changed = {name for name, tensor in parameters_of(model).items() if not torch.equal(tensor, base[name])}
    assert changed == {name for name in base if name.startswith(("model.language_model.", "lm_head."))}
    folder = export(recipe, sources, tmp_path / "out")
    assert same_parameters(load_model(folder), model)
