"""Models under check: shapes, weights, tokens, licences. What a sample says is what the whole would say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checking import check, edited, found, made, project, reweigh
from safetensors.torch import load_file

from merging.checkpoint import Checkpoint
from merging.sampling import sample
from merging.sources import Sources


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return {key: value.double() for key, value in load_file(folder / name / "model.safetensors").items()}


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def opened(folder: Path, *names: str) -> Sources:
    return Sources.opened({"base": Checkpoint.open(folder / "base")} | {n: Checkpoint.open(folder / n) for n in names})


def test_a_sample_of_everything_is_exact() -> None:
    seen = sample(opened(made(), "one", "two"))
    base, one, two = (flat(weights(made(), name)) for name in ("base", "one", "two"))
    assert seen.share == 1.0 and seen.elements == len(base)
    assert seen.distance["one"] == pytest.approx(float((one - base).norm() / base.norm()), rel=1e-9)
    assert seen.norms["two"] == pytest.approx(float((two - base).norm()), rel=1e-9)
    cosine = torch.nn.functional.cosine_similarity(one - base, two - base, dim=0)
    assert seen.cosines == {("one", "two"): pytest.approx(float(cosine), abs=1e-9)}
    assert not seen.equal and not seen.broken


def test_a_small_sample_is_near_the_whole(tmp_path: Path) -> None:
    """Tensors of very different scales: pieces of each stand for all of it."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    shapes = {f"model.layers.{k}.mlp.up_proj.weight": (512, 1024) for k in range(6)} | {"model.norm.weight": (1024,)}
    base = {name: torch.randn(shape, generator=generator) * (k + 1) for k, (name, shape) in enumerate(shapes.items())}
    one = {n: t + 0.1 * (k + 1) * torch.randn(t.shape, generator=generator) for k, (n, t) in enumerate(base.items())}
    two = {name: base[name] + 0.6 * (one[name] - base[name]) for name in base}
    for folder, tensors in (("base", base), ("one", one), ("two", two)):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / "config.json").write_text(
            json.dumps({"model_type": "llama", "tie_word_embeddings": False})
        )
    seen, whole = (sample(opened(tmp_path, "one", "two"), budget=size) for size in (8_000_000, 10**9))
    assert 0.1 < seen.share < 0.4 and whole.share == 1.0
    assert seen.elements < whole.elements
    for alias in ("one", "two"):
        assert seen.distance[alias] == pytest.approx(whole.distance[alias], rel=0.01)
    assert seen.cosines["one", "two"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
def test_models_without_fault_are_not_mentioned(tmp_path: Path) -> None:
    checked = check(project(tmp_path))
    assert not checked.findings
    assert checked.models is not None and checked.models.sample is not None
    assert 0.0 < checked.models.sample.distance["one"] < 0.1


def test_an_expert_that_is_the_base_is_an_error(tmp_path: Path) -> None:
    path = project(tmp_path)
    shutil.copytree(tmp_path / "base", tmp_path / "two", dirs_exist_ok=True)
    errors = found(check(path), "error")
    assert list(errors) == ["models.experts.two"] and "has the weights of the base" in errors["models.experts.two"]


@pytest.mark.slow
def test_two_experts_that_are_one_model(tmp_path: Path) -> None:
    path = project(tmp_path)
    shutil.copytree(tmp_path / "one", tmp_path / "two", dirs_exist_ok=True)
    warnings = found(check(path), "warning")
    assert list(warnings) == ["models.experts.two"]
    assert "has the weights of the expert 'one'" in warnings["models.experts.two"]


def test_task_vectors_of_one_direction_and_of_unequal_length(tmp_path: Path) -> None:
    path = project(tmp_path)
    base, one = weights(tmp_path, "base"), weights(tmp_path, "one")
    reweigh(tmp_path / "two", lambda t: t.update({n: (base[n] + 0.25 * (one[n] - base[n])).float() for n in t}))
    notes = found(check(path), "note")
    assert "points almost where that of 'one' does: cosine 1.000" in notes["models.experts.two"]
    assert "4.0 times as long as that of 'two'" in notes["models.experts.one"]


@pytest.mark.slow
def test_a_model_of_another_base_and_one_of_long_training(tmp_path: Path) -> None:
    path = project(tmp_path)
    torch.manual_seed(1)
    base = weights(tmp_path, "base")
    reweigh(tmp_path / "two", lambda t: t.update({n: torch.randn_like(v) * (v.std() + 0.1) for n, v in t.items()}))
    reweigh(
        tmp_path / "one",
        lambda t: t.update({n: (v * 3.0).float() if v.dim() > 1 else v.float() for n, v in base.items()}),
    )
    checked = check(path)
    assert "is far from the base" in found(checked, "warning")["models.experts.two"]
    assert "one 0." in found(checked, "note")["models.experts"]


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    path = project(tmp_path)
    reweigh(tmp_path / "one", lambda t: t["model.layers.1.mlp.up_proj.weight"].view(-1)[5].fill_(torch.nan))
    reweigh(tmp_path / "two", lambda t: t["model.norm.weight"][3].fill_(torch.inf))
    errors = found(check(path), "error")
    assert "NaN or infinity in model.layers.1.mlp.up_proj.weight of" in errors["models.experts.one"]
    assert "NaN or infinity in model.norm.weight of" in errors["models.experts.two"]


def test_one_that_does_not_fit_hides_no_other(tmp_path: Path) -> None:
    path = project(tmp_path, lambda config: config["models"]["experts"].update(three="three", four="two"))
    shutil.copytree(tmp_path / "one", tmp_path / "three")
    edited(tmp_path / "three/config.json", model_type="gpt2")
    reweigh(tmp_path / "one", lambda t: t.pop("model.norm.weight"))
    checked = check(path)
    assert set(found(checked, "error")) == {"models.experts.one", "models.experts.three"}
    assert "model.norm.weight is only in the base" in found(checked, "error")["models.experts.one"]
    assert "has the weights of the expert 'two'" in found(checked, "warning")["models.experts.four"]


@pytest.mark.slow
def test_a_broken_base_is_said_once(tmp_path: Path) -> None:
    path = project(tmp_path)
    (tmp_path / "base/model.safetensors").write_bytes(b"short")
    errors = [each for each in check(path).findings if each.level == "error"]
    assert [each.placed.path for each in errors] == ["models.base"]


def test_a_base_that_transformers_does_not_know(tmp_path: Path) -> None:
    path = project(tmp_path)
    for name in ("base", "one", "two"):
        edited(tmp_path / name / "config.json", model_type="nobodys", architectures=["NobodysForCausalLM"])
    for live in (False, True):
        errors = found(check(path, live=live), "error")
        assert list(errors) == ["models.base"] and "transformers" in errors["models.base"]


@pytest.mark.slow
def test_other_dtypes_are_noted(tmp_path: Path) -> None:
    path = project(tmp_path, lambda config: config["models"].update(dtype="bfloat16"))
    reweigh(tmp_path / "two", lambda t: t.update({name: value.half() for name, value in t.items()}))
    notes = found(check(path), "note")
    assert "its weights are float16, and the base's float32" in notes["models.experts.two"]
    assert "what is scored and exported is bfloat16" in notes["models.dtype"]


def tokenizer(folder: Path, change: Any) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))


@pytest.mark.slow
def test_tokens_that_the_base_lacks(tmp_path: Path) -> None:
    path = project(tmp_path)
    rows = ("model.embed_tokens.weight", "lm_head.weight")
    reweigh(tmp_path / "two", lambda t: t.update({n: torch.cat([t[n], torch.zeros(1, 16)]) for n in rows}))
    tokenizer(tmp_path / "two", lambda data: data["model"]["vocab"].update(extra=42))
    edited(tmp_path / "two/config.json", vocab_size=43)
    warnings = found(check(path), "warning")
    assert "has no place for 1 token ('extra')" in warnings["models.experts.two"]


def test_other_ends_and_other_templates(tmp_path: Path) -> None:
    path = project(tmp_path)
    edited(tmp_path / "one/tokenizer_config.json", eos_token="w3")
    edited(tmp_path / "two/tokenizer_config.json", pad_token="w4")
    (tmp_path / "two/chat_template.jinja").write_text("{{ messages }}")
    checked = check(path)
    assert "eos_token 'w3' (base: '<eos>')" in found(checked, "warning")["models.experts.one"]
    notes = found(checked, "note")
    assert "pad_token 'w4' (base: '<pad>')" in notes["models.experts.two"]
    assert "it has a chat template, and the base has none" in notes["models.experts.two"]
    assert "--tokenizer-from" in notes["models"]


@pytest.mark.parametrize(
    ("licences", "level", "says"),
    [
        pytest.param(("mit", "mit", "mit"), "", "", marks=pytest.mark.slow),
        pytest.param(
            ("mit", "apache-2.0", "mit"),
            "note",
            "(mit: base, two; apache-2.0: one): a merge has to carry",
            marks=pytest.mark.slow,
        ),
        (("llama3.1", "llama3.1", "apache-2.0"), "warning", "whether they may be combined"),
        (("mit", "", "mit"), "warning", "no licence is stated for one "),
        pytest.param(
            ("cc-by-nc-4.0", "cc-by-nc-4.0", "cc-by-nc-4.0"),
            "note",
            "may not be used commercially",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("cc-by-nd-4.0", "cc-by-nd-4.0", "cc-by-nd-4.0"),
            "warning",
            "lets nobody share what is derived",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_licences(tmp_path: Path, licences: tuple[str, ...], level: str, says: str) -> None:
    path = project(tmp_path)
    for name, licence in zip(("base", "one", "two"), licences, strict=True):
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n" if licence else "# no card\n")
    told = [(each.level, each.placed.message) for each in check(path).findings]
    assert all(each == level and says in message for each, message in told) and bool(told) == bool(level)


@pytest.mark.slow
def test_a_name_of_the_hub_is_no_folder(tmp_path: Path) -> None:
    path = project(tmp_path, lambda config: config["models"]["experts"].update(one="Qwen/Qwen2.5-7B", two="tow"))
    errors = found(check(path), "error")
    assert "hf download Qwen/Qwen2.5-7B --local-dir Qwen/Qwen2.5-7B" in errors["models.experts.one"]
    assert "Did you mean 'two'?" in errors["models.experts.two"]
