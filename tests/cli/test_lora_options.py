"""``merge`` and ``export`` with ``--lora``, and merges of adapters, as people meet them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from search.cli import run_command

sys.path.insert(0, str(Path(__file__).parents[1] / "merging"))
from adapter_folders import LAYER, ROOT, factors, write_adapter_folder, write_base

sys.path.insert(0, str(Path(__file__).parents[1] / "search"))
from fake_hub import TOKEN, FakeHub

from merging.checkpoint import Checkpoint
from merging.lora.source import open_adapter

Project = Callable[..., Path]
Q0 = f"{LAYER.format(0)}.weight"

CONFIG = """\
base: {base}
experts: {{one: {one}, two: {two}}}
method: {method}
vectors: 0.5*one + 2*two
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, two adapters of rank 2, and ``merge.yaml``, in the working directory."""
    write_base(tmp_path / "base")
    for number, alias in enumerate(("one", "two"), start=1):
        a, b = factors(number)
        stem = ROOT + LAYER.format(0)
        write_adapter_folder(tmp_path / alias, {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "merge.yaml").write_text(CONFIG.format(base="base", one="one", two="two", method="task_arithmetic"))
    return tmp_path


def facts(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    capsys.readouterr()
    assert run_command([*command, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    assert run_command(list(command)) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and "Traceback" not in error
    return error


def test_adapters_are_merged_into_a_model_and_into_an_adapter(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two are the same model; the adapter has the ranks of both in its one."""
    facts(capsys, "merge", "merge.yaml", "model")
    found = facts(capsys, "merge", "merge.yaml", "adapter", "--lora", "4")
    assert found["rank"] == 4 and found["error"] < 1e-6 and found["products"] == 1 and found["left_out"] == []
    base, model = Checkpoint.open("base"), Checkpoint.open("model")
    adapter = open_adapter(Path("adapter"), base)
    for name in base.tensors:
        assert torch.allclose(model.read(name), adapter.read(name), atol=1e-5), name
    (a, b), (c, d) = factors(1), factors(2)
    assert torch.allclose(model.read(Q0) - base.read(Q0), 2.0 * (0.5 * b @ a + 2.0 * d @ c), atol=1e-4)
    assert {each.name for each in Path("adapter").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "recipe.yaml",
    }


def test_what_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error first, and a note where it is large; an adapter that is handed on holds no path."""
    (folder / "merge.yaml").write_text(CONFIG.format(base="base", one="one", two="two", method="ties"))
    assert run_command(["merge", "merge.yaml", "adapter", "--lora", "1", "--shareable"]) == 0
    said = capsys.readouterr()
    assert "wrote the merge as an adapter of its base: adapter" in said.out
    assert "relative error of the whole difference: " in said.out and "1 products of rank 1" not in said.out
    assert "note: the adapter keeps" in said.err
    for each in Path("adapter").iterdir():
        assert str(folder).encode() not in each.read_bytes(), each
    assert max(map(len, said.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("--lora", "zero"), "expected a rank such as 16"),
        (("--lora", "2", "--tokenizer-from", "base"), "an adapter is used with its base's tokenizer"),
        (("--lora-rest", "all"), "--lora-rest is for --lora"),
    ],
)
def test_what_is_asked_wrongly(
    folder: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...], said: str
) -> None:
    assert said in " ".join(refused(capsys, "merge", "merge.yaml", "adapter", *command).split())
    assert not Path("adapter").exists()


def test_an_adapter_of_other_modules_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = factors(1)
    stem = ROOT + "model.layers.5.self_attn.q_proj"
    write_adapter_folder(folder / "other", {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b})
    (folder / "merge.yaml").write_text(CONFIG.format(base="base", one="one", two="other", method="ties"))
    assert "the base does not have: model.layers.5" in refused(capsys, "merge", "merge.yaml", "model")
    assert not Path("model").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
def test_a_candidate_as_an_adapter(
    tiny_project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's choice, at a rank that leaves something out: the error is that of what is read back. It can be pushed,
    and a push that broke off goes on."""
    folder = tiny_project(candidates=14)
    assert run_command(["run", "config.yaml", "--display", "none"]) == 0
    model = facts(capsys, "export", "runs/tiny")
    found = facts(capsys, "export", "runs/tiny", "--lora", "auto:0.3", "--lora-rest", "all")
    assert found["candidate"] == model["candidate"] and found["recipe_hash"] == model["recipe_hash"]
    base, merged = Checkpoint.open(folder / "base"), Checkpoint.open(model["folder"])
    adapter = open_adapter(Path(found["folder"]), base)
    lost = sum(float((adapter.read(name) - merged.read(name)).double().square().sum()) for name in base.tensors)
    whole = sum(float((base.read(name) - merged.read(name)).double().square().sum()) for name in base.tensors)
    assert (lost / whole) ** 0.5 == pytest.approx(found["error"], rel=1e-3)
    assert 0.0 < found["error"] <= 0.3 + 1e-6
    card = (Path(found["folder"]) / "README.md").read_text(encoding="utf-8")
    assert f"candidate {found['candidate']}" in card and str(folder) not in card
    error = refused(capsys, "export", "runs/tiny", "--lora", "4", "--rescore", "--out", "again")
    assert "--rescore compares bits" in error and not Path("again").exists()
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push = ["export", "runs/tiny", "--out", "mine", "--push", "me/adapter", "--parent", "base=me/Base", "--lora"]
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        hub.failures["PUT /lfs/"] = "drop"
        assert run_command([*push, "4"]) == 2
        assert "the connection broke off" in capsys.readouterr().err
        hub.failures.clear()
        assert "found other weights in it" in refused(capsys, *push, "3")
        assert facts(capsys, *push, "4")["pushed"]["url"]
        there = hub.repositories["me/adapter"].branches["main"]
        assert there == {file.name: file.read_bytes() for file in Path("mine").iterdir()}
        assert b"- me/Base\nbase_model_relation: adapter" in there["README.md"]
    assert not [each for each in Path().iterdir() if each.name.startswith(".mine")]
