"""The preset of paths through layers: what ``init`` writes is searched to the end."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from search.cli import run_command
from search.config import load_config

NANO = "zoo://skills-nano"


@pytest.mark.slow
def test_the_data_flow_preset_is_searched_to_the_end(
    tmp_path: Path, nano_zoo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    given = ["--base", f"{NANO}/base", "--device", "cpu", "--budget", "12"]
    for name in ("string", "language"):
        given += ["--expert", f"{name}={NANO}/{name}", "--evaluator", f"{name}={NANO}/data/{name}"]
    assert run_command(["init", "data_flow", *given]) == 0
    flow = load_config(Path("my_search.yaml")).config.space.data_flow
    assert flow is not None and flow.models == ["string", "language"]  # all of them, the first is model A
    assert run_command(["check", "my_search.yaml"]) == 0
    assert run_command(["run", "my_search.yaml", "--display", "none"]) == 0
    capsys.readouterr()
    assert run_command(["status", "runs/my_search", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["state"] == "finished" and sum(told["candidates"].values()) == 12 and told["chosen"]["holdout"]
