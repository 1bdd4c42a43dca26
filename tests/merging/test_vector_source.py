"""A vector over its base is the fine-tune: bit by bit where it says so, as far as it says elsewhere, and over no other
base."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import Family
from safetensors.torch import load_file, save_file

from merging.checkpoint import Checkpoint
from merging.composed import Composed, Factored, Factors
from merging.opening import open_model
from merging.recipe import MergingError
from merging.sources import Sources
from merging.vectors import extract as extraction
from merging.vectors.extract import About, Coding, write_vector
from merging.vectors.manifest import Manifest
from merging.vectors.sketch import distance, sketch_of
from merging.vectors.source import Shards, base_distance, check_fits, open_vector
from merging.vectors.store import verify
from merging.verification import same_bits

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def made() -> dict[object, Path]:
    """What was extracted before."""
    return {}


@pytest.fixture
def make(made: dict[object, Path], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Make:
    """``make(base, expert, coding)`` gives the folder of a vector that a test may break."""

    def write(base: Path, expert: Path | Checkpoint, coding: Coding | None = None) -> Path:
        coding = coding or Coding()
        key = (base, expert, repr(coding), extraction.SHARD_BYTES)
        if key not in made:
            folder = tmp_path_factory.mktemp("vector")
            origin = open_model(base)
            tuned = expert if isinstance(expert, Checkpoint) else open_model(expert, origin)
            write_vector(folder, origin, tuned, About("v"), coding)
            made[key] = folder
        return Path(shutil.copytree(made[key], tmp_path / f"vector-{len(list(tmp_path.iterdir()))}"))

    return write


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("gpt2", torch.bfloat16),
        *(
            pytest.param(name, dtype, marks=pytest.mark.slow)
            for name in ("llama", "llama-tied", "gpt2", "mistral-sharded")
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
        ),
    ],
)
def test_an_exact_vector_is_the_fine_tune_bit_by_bit(
    families: Callable[..., Family], make: Make, name: str, dtype: torch.dtype
) -> None:
    family = families(name, dtype)
    folder = make(family.base, family.a)
    expert, composed = Checkpoint.open(family.a), open_vector(folder, Checkpoint.open(family.base))
    assert composed.content == expert.content == composed.manifest.content == composed.manifest.expert.content
    assert all(same_bits(composed.read(each), expert.read(each)) for each in expert.tensors)
    assert composed.manifest.error == 0.0 and composed.manifest.is_exact
    assert composed.manifest.bytes < composed.manifest.expert.bytes


@pytest.mark.parametrize(
    "codec, options",
    [
        ("svd", {"rank": 4}),
        *(
            pytest.param(codec, options, marks=pytest.mark.slow)
            for codec, options in (("topk", {"density": 0.2}), ("onebit", {}), ("bf16", {}))
        ),
    ],
)
def test_the_error_that_a_vector_states_is_that_of_the_composed_model(
    families: Callable[..., Family], make: Make, codec: str, options: dict[str, object]
) -> None:
    family = families("llama")
    folder = make(family.base, family.a, Coding(codec, options))
    base, expert = Checkpoint.open(family.base), Checkpoint.open(family.a)
    composed = open_vector(folder, base)
    lost = moved = start = 0.0
    for name, info in expert.tensors.items():
        if not info.dtype.is_floating_point:
            continue
        wanted, found, origin = (each.read(name).double() for each in (expert, composed, base))
        lost += float((wanted - found).square().sum())
        moved += float((wanted - origin).square().sum())
        start += float(origin.square().sum())
        norm = float((wanted - origin).norm())
        assert composed.manifest.tensors[name].norm == pytest.approx(norm, rel=1e-12)
    manifest = composed.manifest
    assert manifest.error == pytest.approx(math.sqrt(lost / moved), rel=1e-9) and manifest.error > 0
    assert manifest.norm == pytest.approx(math.sqrt(moved), rel=1e-12)
    assert manifest.distance == pytest.approx(math.sqrt(moved / start), rel=1e-12)
    assert manifest.content == composed.content != expert.content


@pytest.mark.slow
def test_a_budget_is_kept(families: Callable[..., Family], make: Make) -> None:
    family = families("llama")
    manifests = {budget: Manifest.read(make(family.base, family.a, Coding(budget=budget))) for budget in (0.01, 0.2)}
    for budget, manifest in manifests.items():
        assert 0 < manifest.error <= budget and all(each.error <= budget for each in manifest.tensors.values())
    assert manifests[0.2].bytes < manifests[0.01].bytes


def test_factors_stay_factored_and_compose_the_same_bits(families: Callable[..., Family], make: Make) -> None:
    base = Checkpoint.open(families("llama").base)
    name = "model.layers.1.mlp.up_proj.weight"
    rows, columns = base.tensors[name].shape
    torch.manual_seed(3)
    factors = Factors.of(torch.randn(rows, 3) * 0.1, torch.randn(3, columns) * 0.1)
    adapter = Composed(base.path, base, {name: Factored.over(factors, torch.float32)})
    folder = make(base.path, adapter)
    composed = open_vector(folder, base)
    assert composed.content == adapter.content
    assert {key: each.codec for key, each in composed.manifest.tensors.items() if each.codec != "equal"} == {
        name: "factored"
    }
    kept = composed.factors(name)
    assert kept is not None and kept.rank == 3 and torch.equal(kept.dense(), factors.dense())
    assert composed.changes.keys() == {name}  # all others are the base's own memory
    full = rows * columns * 4
    assert composed.manifest.bytes == 3 * (rows + columns) * 4 < full


def test_an_adapter_of_peft_becomes_a_vector_of_its_factors(
    families: Callable[..., Family], make: Make, tmp_path: Path
) -> None:
    base = Checkpoint.open(families("llama").base)
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.manual_seed(5)
    parts = {}
    for name, info in base.tensors.items():
        module = name.removesuffix(".weight")
        if module.endswith(("q_proj", "down_proj")):
            parts[f"base_model.model.{module}.lora_A.weight"] = torch.randn(2, info.shape[1])
            parts[f"base_model.model.{module}.lora_B.weight"] = 0.01 * torch.randn(info.shape[0], 2)
    save_file(parts, folder / "adapter_model.safetensors")
    adapter, composed = open_model(folder, base), open_vector(make(base.path, folder), base)
    assert composed.content == adapter.content != base.content
    found = {name for name, each in composed.manifest.tensors.items() if each.codec == "factored"}
    assert len(found) == len(parts) // 2 and composed.manifest.is_exact
    for name in found:
        module = name.removesuffix(".weight")
        left, right = (parts[f"base_model.model.{module}.lora_{part}.weight"] for part in "BA")
        assert torch.allclose(composed.read(name) - base.read(name), 3 * left @ right, atol=1e-6)
    numbers = sum(each.numel() for each in parts.values())
    assert composed.manifest.bytes <= 4 * numbers


def test_a_vector_is_a_source_like_any_other(families: Callable[..., Family], make: Make) -> None:
    family = families("llama")
    folder = make(family.base, family.a)
    whole = family.load()
    sources = Sources.load(family.base, {"a": folder, "b": family.b})
    assert sources.refs["a"].content == whole.refs["a"].content
    assert sources.distance == pytest.approx(whole.distance)


@pytest.mark.slow
def test_shards_are_written_as_they_fill_up(
    families: Callable[..., Family], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "SHARD_BYTES", 20_000)
    family = families("llama")
    folder = make(family.base, family.a)
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(shards) > 3 and shards[-1] == f"vector-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    largest = max(each.bytes for each in Manifest.read(folder).tensors.values())
    assert max((folder / name).stat().st_size for name in shards) < max(20_000, largest) + 20_000
    manifest, notes = verify(folder, Checkpoint.open(family.base))
    assert manifest.is_exact and not notes


def test_one_tensor_of_each_model_is_in_memory_at_a_time(
    families: Callable[..., Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read for encoding is let go before the next is read."""
    import weakref

    living: list[weakref.ref[torch.Tensor]] = []
    most = 0
    own = extraction._own

    def counted(checkpoint: Checkpoint, name: str) -> torch.Tensor:
        nonlocal most
        found = own(checkpoint, name)
        living.append(weakref.ref(found))
        most = max(most, sum(each() is not None for each in living))
        return found

    monkeypatch.setattr(extraction, "_own", counted)
    family = families("llama")
    write_vector(tmp_path, Checkpoint.open(family.base), Checkpoint.open(family.a), About("v"), Coding("bf16"))
    assert len(living) > 40 and most <= 4  # two of this tensor, and the two before while their names are rebound


def test_another_base_is_refused_with_its_distance(families: Callable[..., Family], make: Make) -> None:
    family = families("llama")
    folder = make(family.base, family.a, Coding("bf16"))
    other = Checkpoint.open(family.b)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(MergingError, match=r"expected the base base .*‖θ0−θ0′‖/‖θ0‖ = 0\.\d+ \(estimated\)") as refused:
        open_vector(folder, other)
    assert "\n" not in str(refused.value) and "--force" in str(refused.value)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_forced_vector_adds_its_change(families: Callable[..., Family], make: Make) -> None:
    family = families("llama")
    folder = make(family.base, family.a, Coding("bf16"))
    base, own, other = (Checkpoint.open(path) for path in (family.base, family.base, family.b))
    forced, plain = open_vector(folder, other, force=True), open_vector(folder, own, force=True)
    assert forced.forced and "put onto another base" in forced.notes[0] and not plain.forced and not plain.notes
    for name in base.tensors:
        change = plain.read(name) - base.read(name)
        assert torch.allclose(forced.read(name) - other.read(name), change, atol=3e-7)


def test_differences_of_bytes_are_never_forced_onto_another_base(families: Callable[..., Family], make: Make) -> None:
    family = families("llama", torch.bfloat16)
    folder = make(family.base, family.a)
    with pytest.raises(MergingError, match=r"differences of bytes.*--made-from"):
        open_vector(folder, Checkpoint.open(family.b), force=True)


def test_another_architecture_or_shape_is_refused_even_by_force(families: Callable[..., Family], make: Make) -> None:
    folder = make(families("llama").base, families("llama").a, Coding("bf16"))
    with pytest.raises(MergingError, match="expected a base of model_type 'llama'"):
        open_vector(folder, Checkpoint.open(families("gpt2").base), force=True)
    with pytest.raises(MergingError, match=r"expected lm_head.weight of \[53, 24\].*no such tensor"):
        open_vector(folder, Checkpoint.open(families("llama-tied").base), force=True)


@pytest.mark.parametrize("shape", [(10**6, 24), (53, 24, 1), (7,)])
def test_a_shape_that_no_fine_tune_could_have_takes_no_memory(
    families: Callable[..., Family], make: Make, shape: tuple[int, ...]
) -> None:
    family = families("llama")
    folder = make(family.base, family.a, Coding("bf16"))
    manifest, name = Manifest.read(folder), "lm_head.weight"
    changed = replace(manifest.tensors[name], shape=shape)
    with pytest.raises(MergingError, match="of about the base's shape"):
        check_fits(folder, replace(manifest, tensors={name: changed}), Checkpoint.open(family.base))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_sketch_of_nothing_finite_is_damage(
    families: Callable[..., Family], make: Make, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    family = families("llama")
    folder = make(family.base, family.a, Coding("bf16"))
    manifest = Manifest.read(folder)
    monkeypatch.setattr(Shards, "sketch", lambda self: torch.full((len(manifest.tensors), 64), value))
    with pytest.raises(MergingError, match="sketch of the base is not finite"):
        base_distance(folder, manifest, Checkpoint.open(family.b))


@pytest.mark.parametrize("size, spread", [(3_000, 1.0), (400_000, 1.0), (400_000, 0.0)])
def test_sketches_tell_the_distance(tmp_path: Path, size: int, spread: float) -> None:
    """Of a dense difference, and (spread 0) of one in a single row: within 4 standard deviations of √(2/64)."""
    torch.manual_seed(size)
    one = {f"layers.{k}.weight": torch.randn(size // 100, 100) for k in range(3)}
    two = {name: tensor + spread * 0.05 * torch.randn_like(tensor) for name, tensor in one.items()}
    two["layers.1.weight"][7] += 3.0
    models = []
    for at, tensors in enumerate((one, two)):
        folder = tmp_path / str(at)
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "llama"}')
        models.append(Checkpoint.open(folder))
    sketches = [sketch_of(each, sorted(one)) for each in models]
    true = math.sqrt(sum(float((one[name] - two[name]).double().square().sum()) for name in one))
    assert distance(sketches[0][0], sketches[1][0]) == pytest.approx(true, rel=4 * math.sqrt(2 / 64) / 2)
    assert distance(sketches[0][0], sketches[0][0]) == 0
    norm = math.sqrt(sum(float(each.double().square().sum()) for each in one.values()))
    assert sketches[0][1] == pytest.approx(norm, rel=1e-12)


@pytest.mark.slow
def test_the_distance_of_bases_is_that_of_their_weights(families: Callable[..., Family], make: Make) -> None:
    family = families("llama")
    folder = make(family.base, family.a)
    found = base_distance(folder, Manifest.read(folder), Checkpoint.open(family.b))
    assert found == pytest.approx(family.load().distance["b"], rel=0.15)


def test_damage_is_found_wherever_it_is(families: Callable[..., Family], make: Make, tmp_path: Path) -> None:
    family = families("llama")
    folder, base = make(family.base, family.a, Coding("bf16")), Checkpoint.open(family.base)
    shard = next(folder.glob("*.safetensors"))
    whole = shard.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")

    def broken(content: bytes) -> None:
        shard.write_bytes(content)
        for read in (lambda: open_vector(folder, base).content, lambda: verify(folder)):
            with pytest.raises(MergingError) as refused:
                read()
            assert "\n" not in str(refused.value) and "get it again" in str(refused.value)

    def flipped(place: int) -> bytes:
        return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]

    broken(flipped((start + len(whole)) // 2))
    broken(flipped(len(whole) - 1))
    shard.write_bytes(flipped(start))  # in the sketch, which only another base is compared with
    with pytest.raises(MergingError, match="SHA-256"):
        verify(folder)
    broken(whole[:-1])
    broken(whole[: len(whole) // 2])
    shard.unlink()
    with pytest.raises(MergingError, match="it is missing"):
        open_vector(folder, base)


def test_a_link_out_of_the_folder_is_not_read(families: Callable[..., Family], make: Make, tmp_path: Path) -> None:
    family = families("llama")
    folder = make(family.base, family.a)
    shard = next(folder.glob("*.safetensors"))
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MergingError, match="lie in its own folder, found a link"):
        open_vector(folder, Checkpoint.open(family.base))


def test_a_vector_without_its_base_is_no_model(families: Callable[..., Family], make: Make) -> None:
    folder = make(families("llama").base, families("llama").a)
    with pytest.raises(MergingError, match="found a task vector"):
        open_model(folder)


def test_weights_that_are_not_finite_are_refused(families: Callable[..., Family], make: Make, tmp_path: Path) -> None:
    family = families("llama")
    shutil.copytree(family.a, tmp_path / "nan")
    tensors = load_file(tmp_path / "nan" / "model.safetensors")
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, tmp_path / "nan" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergingError, match=r"1 NaN or infinite.*model.norm.weight"):
        make(family.base, tmp_path / "nan")


def test_a_fine_tune_of_another_architecture_is_refused(families: Callable[..., Family], make: Make) -> None:
    with pytest.raises(MergingError, match="expected models of one architecture"):
        make(families("llama").base, families("gpt2").a)


@pytest.mark.slow
def test_a_fine_tune_that_ties_its_head_has_the_embedding_there(families: Callable[..., Family], make: Make) -> None:
    base, expert = Checkpoint.open(families("llama").base), Checkpoint.open(families("llama-tied").a)
    composed = open_vector(make(base.path, expert.path), base)
    assert composed.manifest.is_exact and "lm_head.weight" not in expert.tensors
    assert same_bits(composed.read("lm_head.weight"), expert.read("model.embed_tokens.weight"))
    assert all(same_bits(composed.read(name), expert.read(name)) for name in expert.tensors)


def test_provenance_names_no_place_of_this_machine(families: Callable[..., Family], make: Make, tmp_path: Path) -> None:
    family = families("llama")
    shutil.copytree(family.a, tmp_path / "merged")
    recipe = {
        "format": "paretomerge-recipe/1", "base": "base", "dtype": None, "groups": [],
        "sources": {"base": {"path": str(tmp_path / "secret" / "base"), "content": "sha256:0"}},
    }  # fmt: skip
    (tmp_path / "merged" / "recipe.yaml").write_text(json.dumps(recipe))
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    config |= {"rope_theta": 5e5, "_name_or_path": str(tmp_path)}
    (tmp_path / "merged" / "config.json").write_text(json.dumps(config))
    folder = make(family.base, tmp_path / "merged")
    for file in folder.glob("*.*"):
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    manifest = Manifest.read(folder)
    assert manifest.provenance["recipe"]["sources"]["base"]["path"] == "base"
    assert "config.json" in manifest.files  # since the fine-tune's says another thing
    composed = open_vector(folder, Checkpoint.open(family.base))
    assert composed.config["rope_theta"] == 5e5 and "_name_or_path" not in composed.config
