"""Vectors put onto a base: the fine-tune's own bits, the closed form of several, and no silent mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import Family

from merging.checkpoint import Checkpoint
from merging.export import export
from merging.opening import open_model
from merging.recipe import MergingError
from merging.vectors.equip import Equipment, aliases_of, equip
from merging.vectors.extract import About, Coding, write_vector


@pytest.fixture(scope="module")
def vectors(families: Callable[..., Family], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[tuple[str, torch.dtype, str, str], Path] = {}

    def vector(model: str, dtype: torch.dtype, which: str, codec: str = "exact") -> Path:
        key = (model, dtype, which, codec)
        if key not in made:
            family, made[key] = families(model, dtype), tmp_path_factory.mktemp("vector")
            base = Checkpoint.open(family.base)
            expert = Checkpoint.open(getattr(family, which))
            write_vector(made[key], base, expert, About(which), Coding(codec))
        return made[key]

    return vector


def exported(work: Equipment, out: Path) -> Checkpoint:
    return Checkpoint.open(export(work.recipe, work.sources, out))


@pytest.mark.parametrize(
    "model, dtype",
    [
        ("gpt2", torch.bfloat16),
        pytest.param("llama", torch.float32, marks=pytest.mark.slow),
        pytest.param("llama-tied", torch.float32, marks=pytest.mark.slow),
    ],
)
def test_one_exact_vector_gives_the_fine_tune_back(
    families: Callable[..., Family], vectors: Callable[..., Path], tmp_path: Path, model: str, dtype: torch.dtype
) -> None:
    family = families(model, dtype)
    work = equip(family.base, {"a": vectors(model, dtype, "a")})
    assert exported(work, tmp_path / "out").content == Checkpoint.open(family.a).content


def test_several_are_added_to_scale(
    families: Callable[..., Family], vectors: Callable[..., Path], tmp_path: Path
) -> None:
    family, f32 = families("llama"), torch.float32
    work = equip(family.base, {"a": vectors("llama", f32, "a"), "b": vectors("llama", f32, "b")}, scales={"a": 0.5})
    found = exported(work, tmp_path / "out")
    base, a, b = (Checkpoint.open(path) for path in (family.base, family.a, family.b))
    for name in base.tensors:
        origin = base.read(name)
        wanted = origin + 0.5 * (a.read(name) - origin) + (b.read(name) - origin)
        assert torch.allclose(found.read(name), wanted, atol=1e-6)
    assert {each.method for each in work.recipe.groups.values()} == {"task_arithmetic"}


@pytest.mark.slow
def test_a_negative_scale_takes_away(
    families: Callable[..., Family], vectors: Callable[..., Path], tmp_path: Path
) -> None:
    family = families("llama")
    found = exported(
        equip(family.base, {"a": vectors("llama", torch.float32, "a")}, scales={"a": -1}), tmp_path / "out"
    )
    base, a = Checkpoint.open(family.base), Checkpoint.open(family.a)
    for name in base.tensors:
        assert torch.allclose(found.read(name), 2 * base.read(name) - a.read(name), atol=1e-6)


@pytest.mark.slow
def test_another_base_takes_force(
    families: Callable[..., Family], vectors: Callable[..., Path], tmp_path: Path
) -> None:
    family, vector = families("llama"), vectors("llama", torch.float32, "a", "bf16")
    with pytest.raises(MergingError, match=r"The bases are apart by ‖θ0−θ0′‖/‖θ0‖ = 0\."):
        equip(family.b, {"a": vector})
    work = equip(family.b, {"a": vector}, force=True)
    assert any("is put onto another base" in note and "score the result" in note for note in work.notes)
    found = exported(work, tmp_path / "out")
    base, a, b = (Checkpoint.open(path) for path in (family.base, family.a, family.b))
    for name in base.tensors:
        assert torch.allclose(found.read(name), b.read(name) + a.read(name) - base.read(name), atol=1e-3)


def test_with_its_own_base_at_hand_a_vector_of_bytes_moves_exactly(
    families: Callable[..., Family], vectors: Callable[..., Path], tmp_path: Path
) -> None:
    family, vector = families("llama", torch.bfloat16), vectors("llama", torch.bfloat16, "a")
    with pytest.raises(MergingError, match="differences of bytes"):
        equip(family.b, {"a": vector}, force=True)
    with pytest.raises(MergingError, match="add --force"):
        equip(family.b, {"a": vector}, made_from=family.base)
    work = equip(family.b, {"a": vector}, scales={"a": 0.5}, force=True, made_from=family.base)
    assert "another base" in work.notes[0] and "apart by" in work.notes[1]
    found = exported(work, tmp_path / "out")
    base, a, b = (Checkpoint.open(path) for path in (family.base, family.a, family.b))
    for name in base.tensors:
        origin, one, new = (each.read(name).float() for each in (base, a, b))
        assert torch.equal(found.read(name), (new + 0.5 * (one - new) - 0.5 * (origin - new)).to(torch.bfloat16))


def test_a_model_is_no_vector(families: Callable[..., Family]) -> None:
    family = families("llama")
    with pytest.raises(MergingError, match="expected a task vector or an adapter"):
        equip(family.base, {"a": family.a})
    with pytest.raises(MergingError, match="at least one vector"):
        equip(family.base, {})


def test_the_recipe_is_of_the_fine_tunes_themselves(
    families: Callable[..., Family], vectors: Callable[..., Path]
) -> None:
    """An exact vector and the model that it was made from make the same merge: equal hashes."""
    family, f32 = families("llama"), torch.float32
    work = equip(family.base, {"a": vectors("llama", f32, "a")}, scales={"a": 0.5})
    whole = family.load()
    refs = {"base": whole.refs["base"], "a": whole.refs["a"]}
    assert work.recipe.hash == work.recipe.with_sources(refs).hash
    assert open_model(vectors("llama", f32, "a"), open_model(family.base)).content == refs["a"].content


def test_aliases_are_told_apart() -> None:
    assert aliases_of(["legal-v2", "vector://math", "my/folder/legal-v2", "base"]) == {
        "legal-v2": "legal-v2", "math": "vector://math", "legal-v2_": "my/folder/legal-v2", "base_": "base",
    }  # fmt: skip
    with pytest.raises(MergingError, match="named twice"):
        aliases_of(["a", "a"])
