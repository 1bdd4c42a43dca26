"""Models that are known by what they change of a base: read as the same model in a folder of its own is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from families import Family
from safetensors.torch import save_file
from torch import Tensor

from merging.checkpoint import Checkpoint
from merging.composed import Composed, Factored, Factors, factors_of
from merging.opening import open_model
from merging.recipe import MergingError


@dataclass(frozen=True)
class Replaced:
    """A tensor as a whole."""

    tensor: Tensor
    factors: Factors | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    def compose(self, base: Tensor) -> Tensor:
        return self.tensor.clone()


@pytest.fixture(scope="module")
def gpt2_family(families: Callable[..., Family]) -> Family:
    """Fused attention, stored [in, out]."""
    return families("gpt2")


def some_factors(shape: tuple[int, ...], rank: int = 3, seed: int = 0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.Size(shape[1:]).numel()
    return Factors.of(
        torch.randn(shape[0], rank, generator=generator), 0.01 * torch.randn(rank, columns, generator=generator)
    )


def test_it_reads_as_the_same_model_in_a_folder_of_its_own(gpt2_family: Family, tmp_path: Path) -> None:
    base, expert = Checkpoint.open(gpt2_family.base), Checkpoint.open(gpt2_family.a)
    composed = Composed(gpt2_family.a, base, {name: Replaced(expert.read(name)) for name in expert.tensors})
    assert composed.content == expert.content != base.content
    untouched = Composed(gpt2_family.a, base, {})
    assert untouched.content == base.content


def test_what_is_not_changed_is_the_bases_own_memory(gpt2_family: Family) -> None:
    base = Checkpoint.open(gpt2_family.base)
    name, other = [each for each in base.tensors if each.endswith("attn.c_attn.weight")][:2]
    composed = Composed(
        gpt2_family.base, base, {name: Factored.over(some_factors(base.tensors[name].shape), torch.float32)}
    )
    assert composed.read(other).data_ptr() == base.read(other).data_ptr()
    assert not torch.equal(composed.read(name), base.read(name))
    unchanged = factors_of(composed, other)
    assert unchanged is not None
    assert unchanged.rank == 0
    assert not unchanged.dense().any()


def test_pieces_are_those_of_the_whole(gpt2_family: Family) -> None:
    base = Checkpoint.open(gpt2_family.base)
    name = next(each for each in base.tensors if each.endswith("mlp.c_fc.weight"))
    composed = Composed(
        gpt2_family.base, base, {name: Factored.over(some_factors(base.tensors[name].shape), torch.float32)}
    )
    whole, piece = composed.read(name), torch.empty(17)
    assert torch.allclose(whole - base.read(name), composed.changes[name].factors.dense(), atol=1e-6)
    with composed.reader(name) as read:
        read(piece, 5)
    assert torch.equal(piece, whole.reshape(-1)[5:22])


def test_a_small_change_of_a_narrow_base_is_not_rounded_away(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"w": torch.ones(4, 6, dtype=torch.bfloat16)}, folder / "model.safetensors")
    base, factors = Checkpoint.open(folder), Factors.of(torch.full((4, 1), 1e-4), torch.ones(1, 6))
    composed = Composed(folder, base, {"w": Factored.over(factors, torch.bfloat16)})
    assert composed.tensors["w"].dtype == torch.float32
    assert torch.equal(composed.read("w"), torch.full((4, 6), 1.0 + 1e-4))


def test_what_does_not_fit_the_base_is_refused(gpt2_family: Family) -> None:
    base = Checkpoint.open(gpt2_family.base)
    with pytest.raises(MergingError, match="another base"):
        Composed(gpt2_family.a, base, {"model.layers.0.nowhere": Replaced(torch.zeros(2))})
    name = next(iter(base.tensors))
    with pytest.raises(MergingError, match="another base, or is damaged"):
        Composed(gpt2_family.a, base, {name: Replaced(torch.zeros(2))}).read(name)
    with pytest.raises(MergingError, match="expected factors"):
        Factors.of(torch.zeros(3, 2), torch.zeros(3, 2))


def test_an_adapter_without_its_config_is_told_what_is_missing(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(MergingError, match="expected adapter_config"):
        open_model(tmp_path)


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(MergingError, match="found an adapter, which is what changes a model"):
        open_model(tmp_path)
