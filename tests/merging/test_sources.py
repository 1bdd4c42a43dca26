"""Models of any mixture of dtypes and layouts, opened and checked; and those that must be refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from merging import scan as scan_module
from merging.recipe import MergingError
from merging.sources import Sources

UP = "model.layers.0.mlp.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def tensors_of(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        EMBEDDING: torch.randn(7, 4, generator=generator),
        HEAD: torch.randn(7, 4, generator=generator),
        UP: torch.randn(6, 4, generator=generator),
        DOWN: torch.randn(4, 6, generator=generator),
        "model.norm.weight": torch.randn(4, generator=generator),
        "model.steps": torch.tensor([3, 4]),
    }


def write(folder: Path, tensors: dict[str, Tensor], *, pickled: bool = False, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    stated = {"model_type": "llama", "vocab_size": 7, "tie_word_embeddings": False} | config
    (folder / "config.json").write_text(json.dumps(stated))
    return folder


# --- Mixtures --------------------------------------------------------------------------------------------------------

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), piece=st.integers(1, 40))
def test_every_tensor_may_have_its_own_dtype(tmp_path_factory: Any, data: st.DataObject, piece: int) -> None:
    folder, held = tmp_path_factory.mktemp("models"), {}
    for seed, alias in enumerate(("base", "a", "b")):
        held[alias] = {
            name: tensor.to(data.draw(st.sampled_from(DTYPES))) if tensor.is_floating_point() else tensor
            for name, tensor in tensors_of(seed).items()
        }
        write(folder / alias, held[alias])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_module, "_PIECE", piece)
        sources = Sources.load(folder / "base", {"a": folder / "a", "b": folder / "b"})
    assert sources.frozen == ("model.steps",)
    for alias, tensors in held.items():
        for name in sources.tensors:
            assert sources.info(alias, name).dtype == tensors[name].dtype
            assert torch.equal(sources.tensor(alias, name), tensors[name])
    for alias in ("a", "b"):
        pairs = [(held[alias][name].double(), held["base"][name].double()) for name in sources.tensors]
        expected = math.sqrt(sum(((x - y) ** 2).sum() for x, y in pairs) / sum((y**2).sum() for _, y in pairs))
        assert sources.distance[alias] == pytest.approx(expected, rel=1e-5)


def test_integers_are_the_bases(tmp_path: Path) -> None:
    expert = tensors_of(1) | {"model.steps": torch.tensor([9, 9], dtype=torch.int32)}
    sources = Sources.load(write(tmp_path / "base", tensors_of()), {"e": write(tmp_path / "e", expert)})
    assert sources.tensor("base", "model.steps").tolist() == [3, 4]
    with pytest.raises(MergingError, match=r"norm\.weight is float32 in the base and int8 in the expert"):
        odd = write(tmp_path / "odd", tensors_of() | {"model.norm.weight": torch.ones(4, dtype=torch.int8)})
        Sources.load(tmp_path / "base", {"e": odd})


def test_stored_constants_need_not_be_in_every_model(tmp_path: Path) -> None:
    """Old checkpoints store rotary frequencies, new ones compute them."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    old, new = write(tmp_path / "old", tensors_of() | {name: torch.ones(2)}), write(tmp_path / "new", tensors_of(1))
    sources = Sources.load(old, {"e": new})
    assert name in sources.frozen and name not in sources.tensors
    assert name not in Sources.load(new, {"e": old}).tensors


@pytest.mark.parametrize("model", ["phi3", "llama"])
def test_sharded_models_with_fused_projections_and_mixed_dtypes(model: str, tmp_path: Path) -> None:
    size = {
        "vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    folders = {}
    for number, (alias, dtype, shard) in enumerate(
        [("base", torch.bfloat16, "3KB"), ("a", torch.float32, "50GB"), ("b", torch.float16, "5KB")]
    ):
        torch.manual_seed(number)
        built: Any = Phi3ForCausalLM(Phi3Config(**size)) if model == "phi3" else LlamaForCausalLM(LlamaConfig(**size))
        folders[alias] = tmp_path / alias
        built.to(dtype).save_pretrained(folders[alias], max_shard_size=shard)
    sources = Sources.load(folders["base"], {"a": folders["a"], "b": folders["b"]})
    assert len(list(folders["base"].glob("*.safetensors"))) > 3
    assert (model == "phi3") == any("qkv_proj" in name for name in sources.tensors)
    whole = load_file(folders["a"] / "model.safetensors")
    for name in sources.tensors:
        assert torch.equal(sources.tensor("a", name), whole[name])
        assert [sources.info(alias, name).dtype for alias in folders] == [torch.bfloat16, torch.float32, torch.float16]


@pytest.mark.parametrize("stored", ["both", "one"])
def test_an_expert_of_a_tied_model_may_store_the_head_or_not(stored: str, tmp_path: Path) -> None:
    tied = {name: tensor for name, tensor in tensors_of().items() if name != HEAD}
    twice = tied | {HEAD: tied[EMBEDDING].clone()}
    base = write(tmp_path / "base", twice if stored == "both" else tied, tie_word_embeddings=True)
    expert = write(tmp_path / "e", tied if stored == "both" else twice, tie_word_embeddings=True)
    sources = Sources.load(base, {"e": expert})
    assert HEAD not in sources.tensors and sources.distance == {"e": 0.0}
    broken = twice | {HEAD: twice[HEAD] + 1}
    with pytest.raises(MergingError, match="stores two different tensors there"):
        Sources.load(base, {"e": write(tmp_path / "untied", broken, tie_word_embeddings=True)})


# --- Distance --------------------------------------------------------------------------------------------------------


def test_an_unrelated_model_is_named_with_its_ratio(tmp_path: Path) -> None:
    near = {name: tensor * 1.1 if tensor.is_floating_point() else tensor for name, tensor in tensors_of().items()}
    far = {name: tensor * -1 if tensor.is_floating_point() else tensor for name, tensor in tensors_of().items()}
    base = write(tmp_path / "base", tensors_of())
    sources = Sources.load(base, {"near": write(tmp_path / "near", near), "far": write(tmp_path / "far", far)})
    assert sources.distance["near"] == pytest.approx(0.1, rel=1e-5)
    assert sources.distance["far"] == pytest.approx(2.0, rel=1e-6)
    assert len(sources.notes) == 1
    assert "far is far from the base: ‖τ‖/‖θ0‖ = 2.00, where fine-tunes are under about 0.1" in sources.notes[0]


def test_a_base_of_zeros_is_infinitely_far(tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors_of().items()}
    base = write(tmp_path / "base", zeros)
    assert Sources.load(base, {"e": write(tmp_path / "same", zeros)}).distance == {"e": 0.0}
    assert Sources.load(base, {"e": write(tmp_path / "e", tensors_of())}).distance == {"e": math.inf}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_large_weights_are_finite_though_their_squares_are_not(tmp_path: Path, dtype: torch.dtype) -> None:
    base, expert = tensors_of(), tensors_of()
    base[UP], expert[UP] = torch.full((6, 4), 2e38, dtype=dtype), torch.full((6, 4), -2e38, dtype=dtype)
    sources = Sources.load(write(tmp_path / "base", base), {"e": write(tmp_path / "e", expert)})
    assert sources.distance["e"] == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["base", "e"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, bad: float, where: str, dtype: torch.dtype) -> None:
    held = {"base": tensors_of(), "e": tensors_of(1)}
    held[where][DOWN] = held[where][DOWN].to(dtype)
    held[where][DOWN][3, 5] = bad
    paths = {alias: write(tmp_path / alias, tensors) for alias, tensors in held.items()}
    with pytest.raises(MergingError, match=rf"1 NaN or infinite of 24 elements in tensor {DOWN} of .*/{where};"):
        Sources.load(paths["base"], {"e": paths["e"]})


def test_both_may_be_infinite_at_one_place(tmp_path: Path) -> None:
    """Their difference is NaN, and the base is named."""
    held = tensors_of()
    held[DOWN][0, 0] = float("inf")
    with pytest.raises(MergingError, match=r"of .*/base;"):
        Sources.load(write(tmp_path / "base", held), {"e": write(tmp_path / "e", held)})


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_what_is_placed_is_what_is_read(tmp_path: Path) -> None:
    sources = Sources.load(write(tmp_path / "base", tensors_of()), {"e": write(tmp_path / "e", tensors_of(1))})
    arena = torch.empty(24)
    sources.read_into("e", UP, arena)
    assert torch.equal(arena.view(6, 4), tensors_of(1)[UP])
    sources.place("e", UP, arena.view(6, 4))
    assert sources.tensor("e", UP).data_ptr() == arena.data_ptr()
    assert sources.pool(("e",)).sources(UP)[0].data_ptr() == arena.data_ptr()
    assert torch.equal(sources.tensor("base", UP), tensors_of()[UP])
    for wrong in (torch.empty(24), torch.empty(6, 4, dtype=torch.bfloat16)):
        with pytest.raises(MergingError, match=rf"expected \[6, 4\] of torch\.float32 to stand for {UP} of 'e'"):
            sources.place("e", UP, wrong)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings are listed on Linux only")
def test_loading_and_hashing_map_no_file(tmp_path: Path, families: Callable[..., Any]) -> None:
    family = families("mistral-sharded")
    sources = family.load()
    assert sources.refs["a"].content.startswith("sha256:")
    maps = Path("/proc/self/maps").read_text()
    assert str(family.base) not in maps and str(family.a) not in maps
    name = next(iter(sources.tensors))
    held = sources.tensor("a", name)
    assert str(family.a) in Path("/proc/self/maps").read_text()  # the check sees what it looks for
    assert held.numel()


# --- Pickles ---------------------------------------------------------------------------------------------------------


def test_pickles_are_read_when_they_are_allowed(tmp_path: Path) -> None:
    held = tensors_of(1) | {DOWN: torch.randn(6, 4).t()}  # a view, as state dicts may hold
    base, expert = write(tmp_path / "base", tensors_of()), write(tmp_path / "e", held, pickled=True)
    with pytest.raises(MergingError, match=r"only pickled weights .* convert once: .* Or allow pickles"):
        Sources.load(base, {"e": expert})
    sources = Sources.load(base, {"e": expert}, allow_pickle=True)
    for name in sources.tensors:
        assert torch.equal(sources.tensor("e", name), held[name])
        out = torch.empty(sources.info("e", name).shape)
        sources.read_into("e", name, out)
        assert torch.equal(out, held[name])
    again = Sources.load(base, {"e": write(tmp_path / "safe", {n: t.contiguous() for n, t in held.items()})})
    assert again.refs["e"].content == sources.refs["e"].content
    assert again.distance == sources.distance
