"""``paretomerge diagnose`` as it is called: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from search.cli import run_command
from search.errors import SearchError

PROGRAM = "import sys; from search.cli import main; sys.argv[0] = 'paretomerge'; main()"


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "plain"}))
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, and two fine-tunes that change the same elements: up and down."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{depth}.{part}.weight" for depth in (0, 1) for part in ("self_attn.q_proj", "mlp.up_proj")]
    base = {name: torch.randn(12, 16, generator=generator) for name in names}
    change = {name: 0.05 * torch.randn(12, 16, generator=generator) for name in names}
    save(tmp_path / "base", base)
    save(tmp_path / "up", {name: base[name] + change[name] for name in names})
    save(tmp_path / "down", {name: base[name] - change[name] for name in names})
    return tmp_path


def test_a_verdict_and_its_numbers(models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(["diagnose", "base", "up", "down"]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0].strip()  # words before numbers
    assert not lines[0].startswith("Task vectors")
    pair = next(line for line in lines if "up × down" in line)
    assert "−1.000" in pair and "100 %" in pair
    assert max(map(len, lines)) <= 80
    assert sorted(each.name for each in models.iterdir()) == ["base", "down", "up"]


def test_a_map_that_nothing_has_a_value_for_is_said(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["diagnose", "base", "up", "--map", "overlap", "--spectra", "off"]) == 0
    assert "no map" in capsys.readouterr().out.splitlines()[-1]


def test_a_page_that_cannot_be_written_takes_nothing_with_it(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise SearchError("no space")

    monkeypatch.setattr("search.diagnosis.page.render", full)
    assert run_command(["diagnose", "base", "up", "--spectra", "off", "--json", "--html", "page.html"]) == 2
    assert json.loads(capsys.readouterr().out)["verdict"]


def test_facts_for_machines(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["diagnose", "base", "minus=down", "up", "--density", "0.5", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["models"] == {"base": "base", "minus": "down", "up": "up"}
    assert facts["diagnosis"]["aliases"] == ["minus", "up"]
    assert facts["diagnosis"]["settings"]["density"] == 0.5
    assert facts["diagnosis"]["whole"]["cosine"] == pytest.approx([-1.0])
    assert facts["verdict"]["headline"]
    assert "curves" not in facts


def test_a_page_is_written_whole(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["diagnose", "base", "up", "down", "--html", "page.html"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "page: page.html"
    text = (models / "page.html").read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>") and str(models) not in text
    assert [each.name for each in models.iterdir() if each.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["base"], "expected a base and one or more experts"),
        (["base", "nowhere"], "expected a folder with a model at nowhere, found none"),
        (["base", "up", "--density", "0"], "expected a density in (0, 1]"),
        (["base", "up", "--html", "nowhere/page.html"], "there is no folder nowhere"),
        (["base", "up", "--html", "base"], "found a folder"),
        (["base", "up", "--curves", "lambda"], "nothing to score them with"),
        (["base", "up", "--data", "up=nothing.jsonl"], "found nothing"),
        (["base", "up", "--set", "a=b"], "--set"),
        (["base", "up", "--data", "texts.jsonl", "--config", "search.yaml"], "leave one of them out"),
        (["base", "up", "--data", "texts.jsonl", "--curves", "lamda"], "--curves lamda"),
        (["base", "nan", "--data", "search.yaml"], "search.yaml"),  # before hours of reading weights
        (["base", "nan", "--data", "foreign.jsonl"], "prompt and answer, or text, found question"),
        (["base", "nan", "--data", "empty.jsonl"], 'the field "text" is empty'),
        (["nothing.yaml"], "nothing.yaml"),
        (["base", "other"], "other"),
        (["base", "broken"], "broken"),
        (["base", "nan"], "expected finite weights"),
    ],
)
def test_mistakes_are_one_paragraph(
    models: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    (models / "texts.jsonl").write_text('{"text": "a"}\n')
    (models / "search.yaml").write_text("")
    (models / "foreign.jsonl").write_text('{"question": "a"}\n')
    (models / "empty.jsonl").write_text('{"text": "a"}\n{"text": ""}\n')
    save(models / "other", {"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 3)})
    shutil.copytree(models / "up", models / "broken")
    with (models / "broken" / "model.safetensors").open("r+b") as file:
        file.truncate(500)
    tensors = load_file(models / "up" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save(models / "nan", tensors)
    assert run_command(["diagnose", *arguments]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert said in streams.err and streams.err.startswith("error: ") and "Traceback" not in streams.err
    assert not list(models.glob("*.html"))


def test_an_adapter_is_an_expert_like_any(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(12, 2, generator=generator), torch.randn(2, 16, generator=generator)
    (models / "adapter").mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "bias": "none"}
    (models / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    parts = {"lora_A": right, "lora_B": left}
    save_file(
        {f"base_model.model.model.layers.0.self_attn.q_proj.{part}.weight": each for part, each in parts.items()},
        models / "adapter" / "adapter_model.safetensors",
    )
    assert run_command(["diagnose", "base", "adapter", "up", "--json"]) == 0
    diagnosis = json.loads(capsys.readouterr().out)["diagnosis"]
    tensor = diagnosis["tensors"]["model.layers.0.self_attn.q_proj.weight"]
    assert tensor["norm"][0] == pytest.approx(float((left @ right).norm()), rel=1e-4)
    assert tensor["effective_rank"][0] <= 2.0 + 1e-3
    assert diagnosis["tensors"]["model.layers.1.self_attn.q_proj.weight"]["norm"][0] == 0.0


@pytest.mark.slow
def test_a_search_brings_its_models_and_evaluators(
    tiny_project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_project("llama")
    options = ["--curves", "lambda", "--items", "3", "--json"]
    assert run_command(["diagnose", "config.yaml", *options]) == 0
    streams = capsys.readouterr()
    facts = json.loads(streams.out)
    assert facts["diagnosis"]["aliases"] == ["a", "b"]
    (curve,) = facts["curves"]["lambda"]
    assert set(curve["skills"]) == {"a.accuracy", "b.accuracy"}
    assert facts["curves"]["own"] == {"a": ["a.accuracy"], "b": ["b.accuracy"]}
    assert "13 merges" in streams.err
    # the same evaluators for models that are named one by one
    assert run_command(["diagnose", "base", "b", "--config", "config.yaml", *options]) == 0
    alone = json.loads(capsys.readouterr().out)["curves"]["lambda"][0]
    assert alone["skills"]["b.accuracy"][0] == curve["skills"]["b.accuracy"][0]  # λ = 0 is the base
    assert alone["experts"] == ["b"]


@pytest.mark.slow
def test_nobody_is_scored_unasked(tiny_project: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    tiny_project("gpt2")
    assert run_command(["diagnose", "config.yaml", "--json"]) == 0
    assert "curves" not in json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_stopping_shows_what_was_found_by_then(tiny_project: Callable[..., Path]) -> None:
    folder = tiny_project("llama")
    words = ["diagnose", "config.yaml", "--curves", "all", "--html", "page.html"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if "merges are to be scored" in line:
                break
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "interrupted; what is known so far:" in said + error and "Traceback" not in error
    assert "Task vectors, over the whole model" in out
    assert (folder / "page.html").is_file()
