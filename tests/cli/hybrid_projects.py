"""Small hybrids over models that this project did not make, and what is looked at of their runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.cli import run_command
from search.results import Results
from search.store import Store

COMMAND = [sys.executable, "-c", "from search.cli import main; main()", "run", "config.yaml", "--display", "plain"]
RUN = ["run", "config.yaml", "--display", "none"]


def hybrid(folder: Path, **sections: Any) -> None:
    """Write the config of a hybrid into a project of ``tiny_project``. What its first search chooses is a merge: the
    constraints, on how well the texts of both experts are predicted, leave every model out that it is made of."""
    for path in folder.glob("data/*/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        texts = [{"id": each["id"], "text": f"{each['prompt']} {each['answer']}"} for each in rows]
        path.write_text("".join(json.dumps(each) + "\n" for each in texts))
    bound = {"at_most": 2.2, "confidence": 0.5}
    config: dict[str, Any] = {
        "name": "tiny",
        "models": {"base": "base", "experts": {"a": "a", "b": "b"}, "dtype": "bfloat16"},
        "evaluators": {each: {"type": "perplexity", "data": f"data/{each}"} for each in ("a", "b")},
        "objectives": ["a.bits_per_byte", "b.bits_per_byte"],
        "constraints": {"a": bound, "b": bound},
        "first": {
            "name": "evolved",
            "space": {"granularity": "model", "coefficient": [0.1, 0.9]},
            "search": {"optimizer": "cma", "budget": {"candidates": 14}, "finalists": 2},
        },
        "space": {"granularity": "model", "experts": ["evolved", "a"]},
        "search": {"optimizer": "sms_emoa", "budget": {"candidates": 15}, "finalists": 2},
        "engine": {"threads": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config | sections, sort_keys=False))


def facts(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    """What a command prints as JSON."""
    capsys.readouterr()
    assert run_command(list(command)) == 0
    return json.loads(capsys.readouterr().out)


def scores(folder: Path) -> list[tuple[str, dict[str, bytes]]]:
    """Recipe hash and item scores of every candidate."""
    store = Store.open(folder, read_only=True)
    try:
        return [(each.recipe_hash, _items(store, each.id)) for each in store.candidates()]
    finally:
        store.close()


def _items(store: Store, id: int) -> dict[str, bytes]:
    found = store.item_scores(id, "search")
    return {name: items.values["bits_per_byte"].tobytes() for name, items in found.items()}


def labelled(results: Results, label: str) -> int:
    """The candidate of a baseline."""
    return next(each.id for each in results.candidates if each.label == label)


def interrupted(*options: str, at: str) -> None:
    """Start the run, and kill it at the line that begins so."""
    process = subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        said = next((line for line in process.stdout if line.startswith(at)), None)
        assert said is not None, f"it ended before it said {at}"
    finally:
        process.kill()
        process.communicate()


def project_maker(tiny_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``project(**sections)``: a hybrid in a fresh folder, with a cache of its own."""

    def make(**sections: Any) -> Path:
        folder = tiny_project("llama")
        monkeypatch.setenv("PARETOMERGE_CACHE", str(folder / "cache"))
        hybrid(folder, **sections)
        return folder

    return make
