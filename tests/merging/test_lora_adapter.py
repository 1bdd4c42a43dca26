"""Adapter folders: PEFT's format read by its closed forms, and what is wrong with them said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_folders import LAYER, ROOT, factors, write_adapter_folder, write_base
from safetensors.torch import save_file
from torch import Tensor

from merging.checkpoint import Checkpoint
from merging.composed import Composed
from merging.files import SafetensorsFile
from merging.lora.source import open_adapter
from merging.opening import open_model
from merging.recipe import MergingError
from merging.sources import Sources

Q0, Q1 = f"{LAYER.format(0)}.weight", f"{LAYER.format(1)}.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_base(tmp_path_factory.mktemp("adapters") / "base"))


@pytest.fixture
def opened(base: Checkpoint, tmp_path: Path) -> Callable[..., Composed]:
    """Opens an adapter that is written with these tensors and settings."""

    def build(tensors: dict[str, Tensor] | None = None, **config: Any) -> Composed:
        return open_adapter(write_adapter_folder(tmp_path / "adapter", tensors, **config), base)

    return build


def delta(composed: Composed, name: str) -> Tensor:
    return composed.read(name) - composed.base.read(name)


@pytest.mark.parametrize(("config", "scale"), [({}, 2.0), ({"use_rslora": True}, 4 / math.sqrt(2))])
def test_the_change_is_the_scaled_product(opened: Callable[..., Composed], config: Any, scale: float) -> None:
    a, b = factors()
    composed = opened(**config)
    assert torch.allclose(delta(composed, Q0), scale * b @ a, atol=1e-5)
    assert composed.changes.keys() == {Q0}
    assert not delta(composed, Q1).any()
    found = composed.factors(Q0)
    assert found is not None and found.rank == 2


def test_patterns_are_whole_names_or_their_ends(opened: Callable[..., Composed]) -> None:
    """PEFT's rule: the first pattern that is the name, or its end after a dot; as a regular expression."""
    tensors = {}
    for layer, rank in ((0, 3), (1, 1)):
        a, b = factors(layer, rank)
        stem = ROOT + LAYER.format(layer)
        tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    ranks = {"proj": 7, r"layers\.0\.self_attn\.q_proj": 3, "q_proj": 1}
    composed = opened(tensors, rank_pattern=ranks, alpha_pattern={"1.self_attn.q_proj": 5})
    for name, layer, rank, scale in ((Q0, 0, 3, 4 / 3), (Q1, 1, 1, 5.0)):
        a, b = factors(layer, rank)
        assert torch.allclose(delta(composed, name), scale * b @ a, atol=1e-5)


def test_magnitudes_set_the_norm_of_every_output(opened: Callable[..., Composed], base: Checkpoint) -> None:
    a, b = factors()
    stem, wanted = ROOT + LAYER.format(0), torch.arange(1.0, 7.0)
    composed = opened(
        {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b, f"{stem}.lora_magnitude_vector": wanted}, use_dora=True
    )
    found, moved = composed.read(Q0), base.read(Q0) + 2.0 * b @ a
    assert torch.allclose(found.norm(dim=1), wanted, atol=1e-5)
    assert torch.allclose(torch.cosine_similarity(found, moved), torch.ones(6), atol=1e-6)
    assert composed.factors(Q0) is None


@pytest.mark.parametrize("vector", ["", ".weight", ".default", ".default.weight"])
def test_names_of_other_savers(opened: Callable[..., Composed], base: Checkpoint, vector: str) -> None:
    """The adapter's own name, wrappers of torch.compile and FSDP, all spellings of DoRA: the same adapter."""
    a, b = factors()
    stem = f"{ROOT}_orig_mod.{LAYER.format(0)}"
    saved = f"{ROOT}model.norm.modules_to_save.default.weight"
    tensors = {f"{stem}.lora_A.default.weight": a, f"{stem}.lora_B.default.weight": b, saved: torch.full((6,), 2.0)}
    wanted = base.read(Q0) + 2.0 * b @ a
    if vector:
        tensors[f"{stem}.lora_magnitude_vector{vector}"] = torch.full((6,), 3.0)
        wanted = 3.0 * wanted / wanted.norm(dim=1, keepdim=True)
    composed = opened(tensors)
    assert torch.allclose(composed.read(Q0), wanted, atol=1e-5)
    assert torch.equal(composed.read("model.norm.weight"), torch.full((6,), 2.0))


def test_what_the_base_has_already_is_no_change(opened: Callable[..., Composed], base: Checkpoint) -> None:
    a, b = factors()
    stem = ROOT + LAYER.format(0)
    composed = opened(
        {
            f"{stem}.lora_A.weight": a,
            f"{stem}.lora_B.weight": b,
            f"{ROOT}model.norm.weight": base.read("model.norm.weight").clone(),
            f"{ROOT}lm_head.weight": 2.0 * base.read("lm_head.weight"),
        },
        modules_to_save=["norm", "lm_head"],
    )
    assert composed.changes.keys() == {Q0, "lm_head.weight"}
    assert composed.factors("lm_head.weight") is None
    assert composed.factors("model.norm.weight").rank == 0  # type: ignore[union-attr]


def test_opening_reads_no_weights(base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only headers, of the base and of the adapter, until a tensor is asked for."""
    folder, read = write_adapter_folder(tmp_path / "adapter"), []
    original = SafetensorsFile.read
    monkeypatch.setattr(SafetensorsFile, "read", lambda self, name: read.append(name) or original(self, name))
    composed = open_adapter(folder, base)
    assert read == []
    composed.read(Q1)
    assert read == [Q1]
    composed.factors(Q0)
    assert read[1:] == [f"{STEM}.lora_B.weight", f"{STEM}.lora_A.weight"]


def test_it_is_a_source_of_a_merge(base: Checkpoint, tmp_path: Path) -> None:
    """Beside other experts, with the same content as the same model in a folder of its own."""
    folder = write_adapter_folder(tmp_path / "adapter")
    sources = Sources.load(base.path, {"adapted": folder})
    composed = sources.checkpoints["adapted"]
    whole = {name: composed.read(name).clone() for name in composed.tensors}
    (tmp_path / "dense").mkdir()
    save_file(whole, tmp_path / "dense" / "model.safetensors")
    (tmp_path / "dense" / "config.json").write_text((base.path / "config.json").read_text())
    assert composed.content == Checkpoint.open(tmp_path / "dense").content
    assert sources.distance["adapted"] > 0


def test_another_base_is_a_note(opened: Callable[..., Composed], base: Checkpoint, tmp_path: Path) -> None:
    composed = opened(base_model_name_or_path="somebody/other-model")
    (note,) = composed.notes
    assert "somebody/other-model" in note and str(base.path) in note
    for said in ("base", "somebody/base", str(base.path), "elsewhere/base/"):
        folder = write_adapter_folder(tmp_path / said.replace("/", "-"), base_model_name_or_path=said)
        assert open_adapter(folder, base).notes == ()


A, B = factors()
STEM = ROOT + LAYER.format(0)
GOOD = {f"{STEM}.lora_A.weight": A, f"{STEM}.lora_B.weight": B}
BAD: dict[str, tuple[dict[str, Tensor], dict[str, Any], str]] = {
    "other kind": (GOOD, {"peft_type": "LOHA"}, "found peft_type LOHA"),
    "no kind": (GOOD, {"peft_type": None}, "found no peft_type"),
    "pissa": (GOOD, {"init_lora_weights": "pissa_niter_16"}, "started from parts of the base.*path_initial_model"),
    "router": (GOOD, {"arrow_config": {"top_k": 1}}, "router over several adapters"),
    "replicated": (GOOD, {"layer_replication": [[0, 2]]}, "repeats layers"),
    "activated": (GOOD, {"alora_invocation_tokens": [1]}, "active only after certain tokens"),
    "rank": (GOOD, {"r": 3}, "expected rank 3, as its config says.*ZeRO-3"),
    "rank is no number": (GOOD, {"r": "2"}, "expected a rank of at least 1 as r"),
    "alpha is no number": (GOOD, {"lora_alpha": float("nan")}, "expected a number as lora_alpha"),
    "alpha is beyond numbers": (GOOD, {"lora_alpha": 10**400}, "expected a number as lora_alpha"),
    "no pattern": (GOOD, {"rank_pattern": {"q_proj(": 2}}, "expected regular expressions in rank_pattern"),
    "endless pattern": (GOOD, {"rank_pattern": {"(a+)+b": 2}}, "repeats too much"),
    "optional without end": (GOOD, {"alpha_pattern": {"a?" * 30 + "a" * 30: 2}}, "repeats too much"),
    "half": ({f"{STEM}.lora_A.weight": A}, {}, "found lora_A without lora_B"),
    "nothing": ({f"{STEM}.lora_A.weight": A[:0], f"{STEM}.lora_B.weight": B[:, :0]}, {}, "ZeRO-3"),
    "two adapters": (GOOD | {f"{STEM}.lora_A.second.weight": A}, {}, "found two tensors for the same place"),
    "unknown part": (GOOD | {f"{STEM}.lora_diag.weight": A}, {}, "lora_diag.weight, which is neither"),
    "other width": ({f"{STEM}.lora_A.weight": A[:, :5], f"{STEM}.lora_B.weight": B}, {}, r"fit the base's .*\[6, 6\]"),
    "no magnitude": (GOOD, {"use_dora": True}, "expected a lora_magnitude_vector"),
    "other magnitude": (GOOD | {f"{STEM}.lora_magnitude_vector": torch.ones(5)}, {"use_dora": True}, r"shape \[6\]"),
    "resized": (GOOD | {f"{ROOT}lm_head.weight": torch.ones(13, 6)}, {}, "vocabulary was resized"),
    "other modules": (
        {f"{ROOT}model.layers.7.mlp.fc.lora_A.weight": A, f"{ROOT}model.layers.7.mlp.fc.lora_B.weight": B},
        {"base_model_name_or_path": "somebody/deeper"},
        "does not have: model.layers.7.mlp.fc.weight. It says that it was trained on somebody/deeper",
    ),
    "new head": (GOOD | {f"{ROOT}score.weight": torch.ones(2, 6)}, {}, "load the base with such a head"),
    "tokens": (
        GOOD | {f"{ROOT}model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 6)},
        {"trainable_token_indices": [1, 99]},
        "expected the trained tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_one_paragraph_says_what_is_wrong(opened: Callable[..., Composed], case: str) -> None:
    tensors, config, said = BAD[case]
    with pytest.raises(MergingError, match=said) as raised:
        opened(tensors, **config)
    assert "\n" not in str(raised.value) and "expected" in str(raised.value)


def test_damaged_files(base: Checkpoint, tmp_path: Path) -> None:
    folder = write_adapter_folder(tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    with pytest.raises(MergingError, match="truncated or corrupt"):
        open_adapter(folder, base)
    weights.unlink()
    with pytest.raises(MergingError, match=r"expected adapter_model.safetensors.*complete"):
        open_adapter(folder, base)
    (folder / "adapter_config.json").write_text("[1]")
    with pytest.raises(MergingError, match="expected a JSON object"):
        open_adapter(folder, base)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(MergingError, match="expected JSON"):
        open_adapter(folder, base)
    (folder / "adapter_config.json").unlink()
    write_adapter_folder(folder / "second")
    with pytest.raises(MergingError, match=r"in folders of their own \(second\)"):
        open_adapter(folder, base)


def test_pickled_weights_are_read_where_they_are_allowed(base: Checkpoint, tmp_path: Path) -> None:
    folder = write_adapter_folder(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(GOOD, folder / "adapter_model.bin")
    with pytest.raises(MergingError, match="can run code"):
        open_adapter(folder, base)
    composed = open_model(folder, base, allow_pickle=True)
    assert torch.allclose(composed.read(Q0) - base.read(Q0), 2.0 * B @ A, atol=1e-5)


def test_an_adapter_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(MergingError, match="found an adapter"):
        Sources.load(write_adapter_folder(tmp_path / "adapter"), {})


def test_a_sparse_config_is_peft_s_defaults(base: Checkpoint, tmp_path: Path) -> None:
    """r and alpha are 8 where nothing is said."""
    a, b = factors(rank=8)
    folder = write_adapter_folder(tmp_path / "adapter", {f"{STEM}.lora_A.weight": a, f"{STEM}.lora_B.weight": b})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert torch.allclose(open_adapter(folder, base).read(Q0) - base.read(Q0), b @ a, atol=1e-5)
