"""A diagnosis of whole models: scopes from sums, one pass in little memory, factors, and what is refused."""

from __future__ import annotations

import json
import math
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diagnosed_models import block, noise, sources_of, write, zeros
from families import Family
from safetensors.torch import load_file
from vocabulary_models import EMBEDDING, make

from merging.checkpoint import Checkpoint, content_hash
from merging.composed import Composed, Factored, Factors
from merging.diagnose import Diagnosis, Settings, diagnose
from merging.recipe import Group, MergingError
from merging.sources import Sources

AB = ("a", "b")
FEW = Settings(rank_k=4)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    base = noise(zeros(depths=3), 0)
    one, two = noise(base, 1, 0.01), noise(base, 2, 0.02)
    two[block(2)] = two[block(2)] - 5.0 * one[block(2)]
    return sources_of(tmp_path_factory.mktemp("noisy"), base, a=one, b=two)


@pytest.fixture(scope="module")
def found(noisy: Sources) -> Diagnosis:
    return diagnose(noisy, FEW)


def flat(sources: Sources, alias: str, names: Any) -> torch.Tensor:
    parts = [sources.tensor(alias, each).double() - sources.tensor("base", each).double() for each in names]
    return torch.cat([each.reshape(-1) for each in parts])


def test_scopes_are_sums_and_no_means(noisy: Sources, found: Diagnosis) -> None:
    places = found.places
    scopes = {
        "whole": (found.whole, list(places)),
        "kind": (found.kinds["mlp"], [name for name in places if places[name].kind == "mlp"]),
        "depth": (found.depths["", 2], [name for name in places if places[name].depth == 2]),
        "group": (found.groups[Group("attention", 1)], [block(1, "self_attn.q_proj")]),
        "tensor": (found.tensors[block(2)], [block(2)]),
    }
    for scope, (measures, names) in scopes.items():
        one, two = flat(noisy, "a", names), flat(noisy, "b", names)
        cosine = float(one @ two / one.norm() / two.norm())
        assert measures.cosine[AB] == pytest.approx(cosine, abs=1e-12), scope
        assert measures.norm["b"] == pytest.approx(float(two.norm()), rel=1e-12), scope
        assert measures.pearson[AB] == pytest.approx(float(torch.corrcoef(torch.stack([one, two]))[0, 1]), abs=1e-10)
        assert measures.elements == one.numel() and measures.z[AB] == pytest.approx(
            cosine * math.sqrt(one.numel()), abs=1e-9
        )
    mean = sum(found.tensors[name].cosine[AB] for name in places) / len(places)
    assert abs(found.whole.cosine[AB] - mean) > 0.05


def test_counts_and_ranks_of_scopes(noisy: Sources, found: Diagnosis) -> None:
    for name in ("overlap", "sign_conflict"):
        values = [getattr(each, name)[AB] for each in found.tensors.values() if AB in getattr(each, name)]
        assert min(values) < getattr(found.whole, name)[AB] < max(values)
    # ranks of larger scopes: means weighted by elements, of the tensors that are matrices
    matrices = [name for name, each in found.tensors.items() if each.effective_rank]
    assert set(matrices) == {name for name in found.places if "proj" in name}
    weight = sum(found.tensors[name].elements for name in matrices)
    mean = sum(found.tensors[name].effective_rank["a"] * found.tensors[name].elements for name in matrices) / weight
    assert found.whole.effective_rank["a"] == pytest.approx(mean) and found.whole.matrix_elements == weight
    assert found.whole.interference == pytest.approx(sum(found.tensors[name].interference or 0.0 for name in matrices))


def test_keys_of_the_scopes(noisy: Sources, found: Diagnosis) -> None:
    assert set(found.kinds) == {"attention", "mlp", "norm", "embedding"}
    assert list(found.depths) == [("", 0), ("", 1), ("", 2)] and found.stacks == ("",)
    assert set(found.groups) == set(noisy.layout.groups) and set(found.tensors) == set(noisy.tensors)
    assert found.aliases == AB and found.pairs == (AB,) and found.notes == () and found.seconds > 0.0
    assert found.references == {alias: str(each.path) for alias, each in noisy.checkpoints.items()}
    assert found.contents == {alias: each.content for alias, each in noisy.checkpoints.items()}


def test_known_ranks_and_a_planted_subspace(tmp_path: Path) -> None:
    base = zeros(depths=2, shape=(24, 40))
    q = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(0))).Q
    p = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(1))).Q
    one = {block(0): q[:, :6] @ p[:, :6].mT, block(1): q[:, :2] @ p[:, :2].mT}
    two = {block(0): q[:, 3:9] @ p[:, 6:12].mT}
    found = diagnose(sources_of(tmp_path, base, a=one, b=two), FEW)
    first, second = found.tensors[block(0)], found.tensors[block(1)]
    assert first.effective_rank == pytest.approx({"a": 6.0, "b": 6.0}, rel=1e-3)
    assert first.stable_rank == pytest.approx({"a": 6.0, "b": 6.0}, rel=1e-3)
    assert first.cosine[AB] == pytest.approx(0.0, abs=1e-6)
    assert second.effective_rank["a"] == pytest.approx(2.0, rel=1e-3) and "b" not in second.effective_rank
    assert AB not in second.subspace_left and second.cosine == {}
    assert found.whole.base_norm == 0.0 and found.whole.norm_ratio == {}


def test_settings_are_followed(noisy: Sources, found: Diagnosis) -> None:
    off = diagnose(noisy, Settings(spectra="off"))
    assert not off.whole.effective_rank and off.whole.interference is None and off.whole.matrix_elements == 0
    assert off.whole.cosine == found.whole.cosine
    assert diagnose(noisy, Settings(spectra="off"), contents=False).contents == {}
    assert diagnose(noisy, Settings(density=0.5)).whole.overlap_chance[AB] == pytest.approx(1 / 3, rel=1e-3)
    estimated = diagnose(noisy, Settings(rank_k=4, exact_rank=8))
    assert "12 task vectors" in estimated.notes[-1] and not estimated.whole.alignment
    assert estimated.whole.effective_rank["a"] == pytest.approx(found.whole.effective_rank["a"], rel=0.1)


def test_sampled_spectra(tmp_path: Path) -> None:
    base = noise(zeros(depths=6), 0)
    found = diagnose(sources_of(tmp_path, base, a=noise(base, 1)), Settings(spectra="sampled"))
    assert [depth for depth in range(6) if found.tensors[block(depth)].stable_rank] == [0, 2, 3, 5]
    assert "up to 4" in found.notes[-1]


def test_weights_are_read_once_and_one_tensor_of_each_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = noise(zeros(depths=6), 0)
    folders = sources_of(tmp_path, base, a=noise(base, 1), b=noise(base, 2)).checkpoints
    sources = Sources.opened({alias: Checkpoint.open(each.path) for alias, each in folders.items()})
    reads: Counter[tuple[str, str]] = Counter()
    held, peak = 0, 0
    read_into, read = Sources.read_into, Checkpoint.read

    def let_go(size: int) -> None:
        nonlocal held
        held -= size

    def counted(self: Sources, alias: str, name: str, out: torch.Tensor) -> None:
        nonlocal held, peak
        reads[alias, name] += 1
        held += out.nbytes
        peak = max(peak, held)
        weakref.finalize(out, let_go, out.nbytes)
        read_into(self, alias, name, out)

    def mapped(self: Checkpoint, name: str) -> torch.Tensor:
        reads[str(self.path), name] += 1
        return read(self, name)

    monkeypatch.setattr(Sources, "read_into", counted)
    monkeypatch.setattr(Checkpoint, "read", mapped)
    diagnose(sources, FEW)
    assert set(reads.values()) == {1} and set(reads) == {(a, name) for a in sources.checkpoints for name in base}
    assert peak == 3 * max(each.nbytes for each in base.values())
    assert held == 0


def test_hashes_on_the_way_are_those_of_the_checkpoints(families: Callable[..., Family]) -> None:
    """Also of tensors that take no part: tied heads and buffers."""
    family = families("llama-tied", torch.bfloat16)
    sources = Sources.load(family.base, {"a": family.a})
    contents = diagnose(sources, Settings(spectra="off")).contents
    assert contents == {alias: Checkpoint.open(each.path).content for alias, each in sources.checkpoints.items()}


@pytest.mark.parametrize(
    "name", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama-tied", "mistral-sharded"))]
)
def test_architectures(families: Callable[..., Family], name: str) -> None:
    family = families(name)
    sources = Sources.load(family.base, {"a": family.a, "b": family.b, "again": family.a})
    found = diagnose(sources, FEW)
    assert found.whole.norm_ratio["a"] == pytest.approx(sources.distance["a"], rel=1e-5)
    assert found.whole.cosine["a", "again"] == pytest.approx(1.0, abs=1e-12)
    assert found.whole.overlap["a", "again"] == 1.0 and found.whole.euclidean["a", "again"] == 0.0
    assert found.whole.subspace_left["a", "again"] == pytest.approx(1.0)
    assert abs(found.whole.z[AB]) < 5.0 and found.whole.sign_conflict[AB] == pytest.approx(0.5, abs=0.06)
    assert set(found.whole.effective_rank) == {"a", "b", "again"}
    assert Diagnosis.from_data(json.loads(json.dumps(found.as_data(), allow_nan=False))) == found


def test_fused_projections_are_taken_apart(families: Callable[..., Family]) -> None:
    """GPT-2 stores query, key and value side by side, turned: three matrices, not one."""
    family = families("gpt2")
    sources = Sources.load(family.base, {"a": family.a})
    name = next(each for each in sources.tensors if "0.attn.c_attn.weight" in each)
    found = diagnose(sources, FEW).tensors[name]
    delta = (sources.tensor("a", name).double() - sources.tensor("base", name).double()).mT.reshape(3, 24, 24)
    stable = [float(each.square().sum() / torch.linalg.svdvals(each)[0] ** 2) for each in delta]
    assert found.stable_rank["a"] == pytest.approx(sum(stable) / 3, rel=1e-6) and found.matrix_elements == 3 * 24 * 24


def adapter(folder: Path, base: Checkpoint, seed: int, where: str = "proj") -> Composed:
    generator = torch.Generator().manual_seed(seed)
    changes = {
        name: Factored.over(
            Factors.of(
                torch.randn(info.shape[0], 3, generator=generator), torch.randn(3, info.shape[1], generator=generator)
            ),
            info.dtype,
        )
        for name, info in base.tensors.items()
        if where in name and len(info.shape) == 2
    }
    return Composed(folder, base, changes)


def test_adapters_by_their_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Checkpoint.open(write(tmp_path / "base", noise(zeros(), 0)))
    experts = {alias: adapter(tmp_path / alias, base, seed) for seed, alias in enumerate(AB)}
    thin = Sources.opened({"base": base, **experts})
    folders = {
        alias: write(tmp_path / alias, {name: each.read(name) for name in each.tensors})
        for alias, each in experts.items()
    }
    thick = diagnose(Sources.load(base.path, folders), FEW)
    monkeypatch.setattr("merging.diagnose.spectra.eigh", lambda *_: pytest.fail("a product was multiplied out"))
    found = diagnose(thin, FEW)
    assert found.contents == {alias: thin.checkpoints[alias].content for alias in found.contents}
    for name in ("norm", "cosine", "overlap", "sign_conflict", "subspace_left", "alignment", "stable_rank"):
        assert getattr(found.whole, name) == pytest.approx(getattr(thick.whole, name), abs=1e-5), name
    # of the densified models rounding adds a little to every direction
    assert found.whole.effective_rank == pytest.approx(thick.whole.effective_rank, rel=1e-2)
    assert found.kinds["norm"].changed == {"a": 0.0, "b": 0.0} and not found.kinds["norm"].cosine


def test_factors_of_fused_and_turned_projections(families: Callable[..., Family], tmp_path: Path) -> None:
    base = Checkpoint.open(families("gpt2").base)
    model = adapter(tmp_path / "a", base, 0, "c_attn.weight")
    dense = write(tmp_path / "dense", {name: model.read(name) for name in base.tensors})
    (dense / "config.json").write_text((base.path / "config.json").read_text())
    thin = diagnose(Sources.opened({"base": base, "a": model}), FEW)
    thick = diagnose(Sources.opened({"base": base, "a": Checkpoint.open(dense)}), FEW)
    name = next(each for each in thin.tensors if "0.attn.c_attn.weight" in each)
    assert thin.tensors[name].matrix_elements == 3 * 24 * 24
    for rank in ("stable_rank", "energy_rank"):
        assert getattr(thin.tensors[name], rank) == pytest.approx(getattr(thick.tensors[name], rank), rel=1e-4), rank


def test_an_adapter_beside_a_fine_tune(tmp_path: Path) -> None:
    base = Checkpoint.open(write(tmp_path / "base", noise(zeros(), 0)))
    tuned = {name: base.read(name) + each for name, each in noise(zeros(), 5, 0.1).items()}
    models = {"a": adapter(tmp_path / "a", base, 0), "b": Checkpoint.open(write(tmp_path / "b", tuned))}
    found = diagnose(Sources.opened({"base": base, **models}), FEW)
    dense = write(tmp_path / "dense", {name: models["a"].read(name) for name in base.tensors})
    truth = diagnose(Sources.load(base.path, {"a": dense, "b": tmp_path / "b"}), FEW)
    assert found.whole.alignment == pytest.approx(truth.whole.alignment, abs=1e-4)
    assert found.whole.subspace_right == pytest.approx(truth.whole.subspace_right, abs=1e-4)


def test_progress_and_interruption(noisy: Sources) -> None:
    told: list[tuple[int, int, str]] = []
    diagnose(noisy, Settings(spectra="off"), lambda *each: told.append(each))
    names = list(noisy.tensors)
    assert told == [*((number, len(names), name) for number, name in enumerate(names)), (len(names), len(names), "")]

    def stop(done: int, *_: Any) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diagnose(noisy, Settings(spectra="off"), stop)


def test_what_is_refused(tmp_path: Path) -> None:
    base = noise(zeros(), 0)
    alone = Sources.opened({"base": Checkpoint.open(write(tmp_path / "base", base))})
    with pytest.raises(MergingError, match="expected a base and one fine-tune of it or more"):
        diagnose(alone)
    if not torch.cuda.is_available():
        with pytest.raises(MergingError, match="expected a device with float64"):
            diagnose(sources_of(tmp_path / "more", base, a=noise(base, 1)), device="cuda")
    with pytest.raises(MergingError, match="expected a device with float64"):
        diagnose(alone, device="warp drive")
    broken = {name: each.clone() for name, each in base.items()}
    broken[block(1)][3, 4] = float("nan")
    opened = {"base": alone.checkpoints["base"], "a": Checkpoint.open(write(tmp_path / "a", broken))}
    with pytest.raises(MergingError, match=r"expected finite weights, found 1 NaN or infinite .* model.layers.1.mlp"):
        diagnose(Sources.opened(opened))


def test_notes(tmp_path: Path) -> None:
    base = noise(zeros(), 0)
    sources = sources_of(tmp_path, base, near={}, far=noise(base, 1, 2.0))
    opened = Sources.opened(sources.checkpoints)
    for each in (sources, opened):  # said once, whoever finds it
        notes = diagnose(each, Settings(spectra="off")).notes
        assert len([note for note in notes if "is far from the base" in note]) == 1
        assert len([note for note in notes if note.startswith("near has the base's weights")]) == 1
        assert len(notes) == 2


def test_a_stack_of_its_own_and_a_mixture(tmp_path: Path) -> None:
    base = {f"encoder.block.{depth}.layer.0.SelfAttention.q.weight": torch.zeros(8, 8) for depth in range(2)}
    base |= {f"encoder.block.{depth}.layer.1.DenseReluDense.wi.weight": torch.zeros(16, 8) for depth in range(2)}
    base |= {name.replace("encoder", "decoder"): each for name, each in base.items()}
    base |= {f"decoder.block.{depth}.mlp.experts.gate_up_proj": torch.zeros(4, 8, 32) for depth in range(2)}
    found = diagnose(sources_of(tmp_path, base, a=noise(base, 1)), FEW)
    assert found.stacks == ("decoder", "encoder") and ("encoder", 1) in found.depths
    assert {"encoder/attention", "decoder/mlp"} <= set(found.kinds)
    assert found.tensors["decoder.block.0.mlp.experts.gate_up_proj"].matrix_elements == 4 * 8 * 32


def test_united_vocabularies(tmp_path: Path) -> None:
    """Rows are those of the same token; the hashes those of the folders all the same."""
    paths = {
        alias: make(tmp_path / alias, ids, seed=seed)
        for seed, (alias, ids) in enumerate(
            {"base": {"<unk>": 0, "p": 1, "q": 2}, "a": {"<unk>": 0, "q": 1, "p": 2, "new": 3}}.items()
        )
    }
    sources = Sources.load(paths["base"], {"a": paths["a"]}, tokenizer="union")
    found = diagnose(sources, FEW)
    delta = sources.tensor("a", EMBEDDING).double() - sources.tensor("base", EMBEDDING).double()
    assert found.tensors[EMBEDDING].norm["a"] == pytest.approx(float(delta.norm()), rel=1e-12)
    assert found.tensors[EMBEDDING].elements == 4 * 3
    assert found.contents == {alias: Checkpoint.open(path).content for alias, path in paths.items()}


def test_other_dtypes_of_one_expert(tmp_path: Path) -> None:
    base = noise(zeros(), 0)
    sources = sources_of(tmp_path, base, a=noise(base, 1))
    file = sources.checkpoints["a"].path / "model.safetensors"
    double = write(tmp_path / "double", {name: each.double() for name, each in load_file(file).items()})
    again = Sources.load(sources.path, {"a": double})
    assert diagnose(again, FEW).whole == diagnose(sources, FEW).whole
    assert diagnose(again, FEW).contents["a"] == content_hash(again.tensors, lambda name: again.tensor("a", name))
