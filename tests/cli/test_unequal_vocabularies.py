"""Searches over experts whose vocabularies differ from the base's by a token or two, as fine-tunes' often do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from search.cli import run_command
from search.results import Results

Project = Callable[..., Path]

SEARCH = """name: tiny
models:
  base: base
  experts: {{a: a, b: b}}
evaluators:
  a: {{type: exact_match, data: data/a, max_new_tokens: 2, extract: {{regex: '.+'}}}}
  b: {{type: exact_match, data: data/b, max_new_tokens: 2, extract: {{regex: '.+'}}}}
objectives: [a.accuracy, b.accuracy]
space: {space}
search:
  optimizer: {optimizer}
  budget: {{candidates: 8}}
  finalists: 3
engine: {{threads: 1}}
"""


def widen(folder: Path, tokens: list[str], padding: int = 0) -> None:
    """As trainers do: tokens of its own, with rows of their own, and rows that no token has."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    with torch.no_grad():
        model.resize_token_embeddings(len(tokenizer) + padding, mean_resizing=False)
        model.get_output_embeddings().weight[-len(tokens) - padding :] = 5.0  # far from what training would give
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rows_of(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])


def searched(space: str, optimizer: str) -> Results:
    Path("config.yaml").write_text(SEARCH.format(space=space, optimizer=optimizer))
    assert run_command(["run", "config.yaml", "--display", "none"]) == 0
    return Results.load(Path("runs/tiny"))


def of(results: Results, label: str) -> dict[str, float]:
    """Scores of a baseline on the search split."""
    [id] = [each.candidate for each in results.baselines if each.label == label]
    return results.values(id, "search")


def check_export(base: Path, out: Path, *options: str) -> Any:
    """A candidate, the chosen one if none is named, as a model with the base's tokens."""
    assert run_command(["export", "runs/tiny", "--out", str(out), *options]) == 0
    assert rows_of(out) == rows_of(base)
    assert AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    model = AutoModelForCausalLM.from_pretrained(out)
    assert (
        model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == rows_of(base)
    )
    return model


@pytest.mark.slow
def test_parameter_space(tiny_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_project()
    widen(folder / "a", ["<extra>"])
    widen(folder / "b", ["<pad2>", "<sep>"], padding=1)
    assert [rows_of(folder / each) for each in ("base", "a", "b")] == [64, 65, 67]
    results = searched("{granularity: model, methods: [task_arithmetic]}", "sms_emoa")
    assert of(results, "expert a")["a.accuracy"] == of(results, "expert b")["b.accuracy"] == 1.0
    said = capsys.readouterr().err
    assert "the base's vocabulary has no place for 1 token ('<extra>')" in said
    assert "2 tokens ('<pad2>', '<sep>')" in said and "1 rows of padding" in said
    check_export(folder / "base", folder / "out")


@pytest.mark.slow
def test_tokens_without_rows(tiny_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """shisa-gamma-7b-v1 names a token that its weights have no row for."""
    folder = tiny_project()
    (folder / "a" / "added_tokens.json").write_text('{"<|extra_idx|>": 120073}')
    results = searched("{granularity: model, methods: [task_arithmetic]}", "sms_emoa")
    assert of(results, "expert a")["a.accuracy"] == 1.0
    assert "a has no rows for 1 token ('<|extra_idx|>') of its own tokenizer" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("first", ["a", "b"])
def test_data_flow(tiny_project: Project, first: str) -> None:
    """Embedding and head are the first model's, its rows of the base's tokens; blocks know nothing of tokens."""
    folder = tiny_project()
    widen(folder / "a", ["<extra>"])
    widen(folder / "b", ["<pad2>", "<sep>"], padding=1)
    other = "b" if first == "a" else "a"
    results = searched(f"{{data_flow: {{models: [{first}, {other}], repetitions: 1}}}}", "cma")
    assert of(results, f"expert {first}")[f"{first}.accuracy"] == 1.0
    path = results.candidates[-1].id
    assert path not in {each.candidate for each in results.baselines}
    model = check_export(folder / "base", folder / "out", "--candidate", str(path))
    expert = AutoModelForCausalLM.from_pretrained(folder / first)
    assert torch.equal(model.get_input_embeddings().weight, expert.get_input_embeddings().weight[:64])
    assert torch.equal(model.get_output_embeddings().weight, expert.get_output_embeddings().weight[:64])


def test_check_says_what_is_left_out(tiny_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_project()
    widen(folder / "a", ["<extra>"])
    assert run_command(["check", "config.yaml"]) == 0
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert "has no place for 1 token ('<extra>')" in said
