"""Where canonical tensors lie in live ones, against the conversions run on real data; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import transformers.conversion_mapping as conversion_mapping
import transformers.core_model_loading as loading
from families import Family
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from merging.conversion import EVERY, place
from merging.live import load_model, map_live
from merging.recipe import MergingError
from merging.sources import Sources

Shapes = dict[str, tuple[int, ...]]

BIG = 96  # squares of it are larger than what is followed element by element
assert BIG * BIG > EVERY


class Bare(PreTrainedModel):
    """A model that is nothing but its parameters."""

    config_class = PretrainedConfig
    base_model_prefix = "model"

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__(PretrainedConfig())
        for name, tensor in tensors.items():
            *modules, leaf = name.split(".")
            parent: nn.Module = self
            for module in modules:
                if not hasattr(parent, module):
                    parent.add_module(module, nn.Module())
                parent = getattr(parent, module)
            parent.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))


class Negate(loading.ConversionOps):
    def convert(self, input_dict: dict[str, Any], target_patterns: list[str], **_: Any) -> dict[str, Tensor]:
        return {target_patterns[0]: -next(iter(input_dict.values()))[0]}


class WriteIn(loading.ConversionOps):
    def convert(self, input_dict: dict[str, Any], target_patterns: list[str], **_: Any) -> dict[str, Tensor]:
        return {target_patterns[0]: next(iter(input_dict.values()))[0].zero_()}


def build(
    monkeypatch: pytest.MonkeyPatch,
    disk: Shapes,
    sources: list[str],
    targets: list[str],
    operations: list[Any],
    live: Shapes,
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """A model that holds what the converter makes of random tensors, and those tensors."""
    tensors = {name: torch.randn(shape) for name, shape in disk.items()}
    model = Bare({name: torch.zeros(shape) for name, shape in live.items()})

    def transforms(*_: Any, **__: Any) -> list[Any]:
        return [loading.WeightConverter(list(sources), list(targets), operations)]

    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", transforms)
    (converter,) = transforms()
    for name in sorted(tensors, key=loading.dot_natural_key):
        target, pattern = converter.rename_source_key(name)
        converter.add_tensor(target, name, pattern, tensors[name].clone())
    for name, made in converter.convert(target, model=model, config=model.config).items():
        model.get_parameter(name).data = made[0] if isinstance(made, list) else made
    return model, tensors


EXPERTS = {f"e.experts.{i}.{w}.weight": (6, 4) if w != "w2" else (4, 6) for i in range(11) for w in ("w1", "w2", "w3")}

REARRANGED = {
    "transposed": ({"m.x": (5, 3)}, ["m.x"], ["m.y"], [loading.Transpose(0, 1)], {"m.y": (3, 5)}, False),
    "transposed within": (
        {"m.x": (7, 96, 32)},
        ["m.x"],
        ["m.y"],
        [loading.Transpose(1, 2)],
        {"m.y": (7, 32, 96)},
        False,
    ),
    "transposed unless it is already": (
        {"m.x": (BIG, BIG + 1)},
        ["m.x"],
        ["m.x"],
        [loading.Transpose(0, 1, check_dims=True)],
        {"m.x": (BIG + 1, BIG)},
        False,
    ),
    "experts": (
        {name: shape for name, shape in EXPERTS.items() if "w2" not in name},
        ["experts.*.w1.weight", "experts.*.w3.weight"],
        ["experts.gate_up"],
        [loading.MergeModulelist(0), loading.Concatenate(1)],
        {"e.experts.gate_up": (11, 12, 4)},
        True,
    ),
    "experts beside each other": (
        {name: shape for name, shape in EXPERTS.items() if "w2" not in name},
        ["experts.*.w1.weight", "experts.*.w3.weight"],
        ["experts.gate_up"],
        [loading.MergeModulelist(0), loading.Concatenate(2)],
        {"e.experts.gate_up": (11, 6, 8)},
        False,
    ),
    "experts of two kinds": (
        {name: shape for name, shape in EXPERTS.items() if "w2" not in name and ".10." not in name},
        ["experts.*.w1.weight", "experts.*.w3.weight"],
        ["text.gate_up", "vision.gate_up"],
        [loading.ErnieFuseAndSplitTextVisionExperts(0, 1)],
        {"e.text.gate_up": (5, 12, 4), "e.vision.gate_up": (5, 12, 4)},
        True,
    ),
    "columns joined": (
        {"a.q": (BIG, BIG), "a.k": (BIG, 3)},
        ["a.q", "a.k"],
        ["a.qk"],
        [loading.Concatenate(1)],
        {"a.qk": (BIG, BIG + 3)},
        False,
    ),
    "rows joined": (
        {"a.q": (8, 4), "a.k": (2, 4)},
        ["a.q", "a.k"],
        ["a.qk"],
        [loading.Concatenate(0)],
        {"a.qk": (10, 4)},
        True,
    ),
    "flattened": (
        {"p.w": (4, 3, 2, 5, 5)},
        ["p.w"],
        ["p.l"],
        [loading.Conv3dToLinear(3, (2, 5, 5))],
        {"p.l": (4, 150)},
        True,
    ),
    "a scalar and a vector": (
        {"a.q": (1,), "a.k": (3,)},
        ["a.q", "a.k"],
        ["a.b"],
        [loading.Concatenate(0)],
        {"a.b": (4,)},
        True,
    ),
}

SPLIT = {
    "equal parts": (
        {"a.qkv": (9, 4)},
        ["a.qkv"],
        ["a.q", "a.k", "a.v"],
        [loading.Chunk(0)],
        {f"a.{x}": (3, 4) for x in "qkv"},
    ),
    "columns": (
        {"a.gu": (BIG, 2 * BIG)},
        ["a.gu"],
        ["a.g", "a.u"],
        [loading.Chunk(1)],
        {"a.g": (BIG, BIG), "a.u": (BIG, BIG)},
    ),
    "unequal parts": ({"a.qk": (9, 4)}, ["a.qk"], ["a.q", "a.k"], [loading.Split(0)], {"a.q": (7, 4), "a.k": (2, 4)}),
    "every second row": (
        {"a.gu": (10, 4)},
        ["a.gu"],
        ["a.g", "a.u"],
        [loading.Interleave(0), loading.Chunk(0)],
        {"a.g": (5, 4), "a.u": (5, 4)},
    ),
}

REFUSED = {
    "interleaved": ({"m.x": (12, 4)}, ["m.x"], ["m.y"], [loading.Interleave(0)], {"m.y": (12, 4)}, "more than slices"),
    "interleaved, large": (
        {"m.x": (BIG, BIG)},
        ["m.x"],
        ["m.y"],
        [loading.Interleave(0)],
        {"m.y": (BIG, BIG)},
        "more than slices",
    ),
    "permuted for rotary embeddings": (
        {"m.x": (12, 4)},
        ["m.x"],
        ["m.y"],
        [loading.PermuteForRope()],
        {"m.y": (12, 4)},
        "more than slices",
    ),
    "other numbers": ({"m.x": (4, 4)}, ["m.x"], ["m.y"], [Negate()], {"m.y": (4, 4)}, "more than slices"),
    "in place": ({"m.x": (4, 4)}, ["m.x"], ["m.y"], [WriteIn()], {"m.y": (4, 4)}, "changes a tensor in place"),
    "another shape": (
        {"m.x": (4, 4), "m.z": (4, 4)},
        ["m.x", "m.z"],
        ["m.y"],
        [loading.Concatenate(0)],
        {"m.y": (9, 4)},
        "has another shape",
    ),
}


@pytest.mark.parametrize("case", REARRANGED)
def test_rearranged_tensors_are_views(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    *setup, contiguous = REARRANGED[case]
    model, tensors = build(monkeypatch, *setup)
    found = place(model, setup[0])
    assert found.views.keys() == tensors.keys() and not found.pieces and not found.unplaced
    for name, (within, offset, strides) in found.views.items():
        view = model.get_parameter(within).as_strided(tensors[name].shape, strides, offset)
        assert torch.equal(view, tensors[name]) and view.is_contiguous() == contiguous


@pytest.mark.parametrize("case", SPLIT)
def test_split_tensors_are_pieces(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    model, tensors = build(monkeypatch, *SPLIT[case])
    found = place(model, SPLIT[case][0])
    assert found.pieces.keys() == SPLIT[case][4].keys() and not found.views
    for own, (within, offset, strides) in found.pieces.items():
        live = model.get_parameter(own)
        assert torch.equal(tensors[within].as_strided(live.shape, strides, offset), live)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_rearrangement_is_refused(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    *setup, message = REFUSED[case]
    model, _ = build(monkeypatch, *setup)
    for own, shape in setup[-1].items():
        model.get_parameter(own).data = torch.zeros(shape)
    operation = type(setup[3][0]).__name__
    with pytest.raises(MergingError, match=rf"converts \d tensors .* into m\.y .*{operation}.*first m\.x, .*{message}"):
        place(model, setup[0])


def test_a_name_that_is_live_already_is_not_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints that were saved in the live layout meet the same rules as the original ones."""
    model = Bare({"old.x": torch.zeros(2), "new.y": torch.zeros(2)})
    rules = [loading.WeightRenaming("old", "new")]
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda *_: rules)
    found = place(model, {"old.x": (2,), "old.y": (2,), "old.z": (2,)})
    assert {name: view.within for name, view in found.views.items()} == {"old.x": "old.x", "old.y": "new.y"}
    assert found.unplaced == ("old.z",)


def copy(folder: Path, to: Path, **config: Any) -> Path:
    """A model folder with other entries in its config; None takes one out."""
    shutil.copytree(folder, to)
    old = json.loads((to / "config.json").read_text())
    new = {key: value for key, value in (old | config).items() if value is not None}
    (to / "config.json").write_text(json.dumps(new))
    return to


@pytest.mark.parametrize("architectures", [None, [], ["NoSuchModel"], [3], ["PretrainedConfig"], ["GPT2LMHeadModel"]])
def test_the_class_is_the_named_one_or_the_causal_language_model(
    families: Callable[..., Family], tmp_path: Path, architectures: list[Any] | None
) -> None:
    model = load_model(copy(families("gpt2").base, tmp_path / "m", architectures=architectures))
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_is_no_language_model_is_loaded_without_being_named(tmp_path: Path) -> None:
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.ViTModel(transformers.ViTConfig(**size, image_size=8, patch_size=4))
    model.save_pretrained(tmp_path / "vit")
    folder = copy(tmp_path / "vit", tmp_path / "m", architectures=None)
    loaded = load_model(folder, dtype="bfloat16")
    assert type(loaded).__name__ == "ViTModel" and {each.dtype for each in loaded.parameters()} == {torch.bfloat16}
    map_live(Sources.load(folder, {}), loaded)


def test_code_in_the_folder_is_not_run(families: Callable[..., Family], tmp_path: Path) -> None:
    folder = copy(
        families("gpt2").base,
        tmp_path / "m",
        architectures=["Evil"],
        auto_map={"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Config"},
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\nclass Config: ...\n")
    assert type(load_model(folder)).__name__ == "GPT2LMHeadModel"
    assert not (tmp_path / "ran").exists()


def test_what_transformers_cannot_load_says_so(tmp_path: Path) -> None:
    with pytest.raises(MergingError, match="language model that transformers can load, or another architecture"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(MergingError, match="it refused"):
        load_model(tmp_path)


def test_weights_of_another_model_are_refused(families: Callable[..., Family], llama: Sources) -> None:
    with pytest.raises(MergingError, match=r"found other weights in \d+ tensors.*Load it with load_model"):
        map_live(llama, load_model(families("llama").a))
    with pytest.raises(MergingError, match=r"\d+ tensors of .* have no parameter in the live GPT2LMHeadModel"):
        map_live(llama, load_model(families("gpt2").base))


def test_other_shapes_are_refused(llama: Sources) -> None:
    model = load_model(llama.path)
    model.resize_token_embeddings(60)
    with pytest.raises(
        MergingError, match=r"expected lm_head\.weight in shape \[53, 24\], found .* in shape \[60, 24\]"
    ):
        map_live(llama, model)


def test_parameters_without_a_tensor_are_refused_and_constants_are_not(llama: Sources) -> None:
    model = load_model(llama.path)
    model.extra = nn.Linear(2, 2, bias=False)
    with pytest.raises(MergingError, match=r"1 parameters .* are not in the checkpoint: extra\.weight"):
        map_live(llama, model)
    model._keys_to_ignore_on_save = ["extra.weight"]
    assert len(map_live(llama, model).tensors) == len(llama.tensors)


def test_two_tensors_that_are_one_parameter_are_refused(llama: Sources) -> None:
    model = load_model(llama.path)
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(MergingError, match=r"lm_head\.weight.* are one parameter .* but two tensors on disk"):
        map_live(llama, model)


def test_what_a_class_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch, llama: Sources) -> None:
    model = load_model(llama.path)
    del model.model.layers[2]
    model._keys_to_ignore_on_load_unexpected = {r"model\.layers\.2\."}
    live = map_live(llama, model)
    assert len(live.unused) == 9 and all(name.startswith("model.layers.2.") for name in live.unused)
    assert set(live.tensors) | set(live.unused) == set(llama.tensors)


def test_changed_models_are_noticed(families: Callable[..., Family]) -> None:
    sources = families("llama-tied").load()

    def untie(model: nn.Module) -> None:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)

    def move(model: nn.Module) -> None:
        weight = model.model.layers[1].mlp.up_proj.weight
        weight.data = weight.data.clone()

    def transpose(model: nn.Module) -> None:
        weight = model.model.layers[1].self_attn.q_proj.weight
        weight.data = weight.data.T

    def remove(model: nn.Module) -> None:
        del model.model.norm.weight

    for change in (untie, move, transpose, remove):
        model = load_model(sources.path)
        live = map_live(sources, model)
        live.check_in_place()
        change(model)
        with pytest.raises(MergingError, match="moved, replaced or untied"):
            live.check_in_place()


def test_parts_of_a_split_tensor_share_its_memory(tmp_path: Path) -> None:
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.NomicBertModel(transformers.NomicBertConfig(vocab_size=9, **size)).save_pretrained(tmp_path)
    sources = Sources.load(tmp_path, {})
    model = load_model(tmp_path)
    live = map_live(sources, model)
    (name,) = (name for name in live.tensors if name.endswith("Wqkv.weight"))
    live.tensors[name].fill_(3)
    attention = model.layers[0].self_attn
    assert all((part.weight == 3).all() for part in (attention.q_proj, attention.k_proj, attention.v_proj))
    again = map_live(sources, load_model(tmp_path))
    assert torch.equal(again.tensors[name], sources.tensor("base", name))
    attention.k_proj.weight = nn.Parameter(attention.k_proj.weight.clone())
    with pytest.raises(MergingError, match=r"a live parameter of .*Wqkv\.weight was moved, replaced or untied"):
        live.check_in_place()
    assert map_live(sources, load_model(tmp_path)).tensors[name].is_contiguous()
