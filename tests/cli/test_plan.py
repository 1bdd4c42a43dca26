"""``paretomerge plan``, as people meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search.cli import run_command

CONFIG = Path(__file__).parents[2] / "configs" / "nano.yaml"


def memory(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert run_command(["plan", *arguments, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found["memory"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("parameters", "devices", "workers", "gpus"),
    [("7e9", "2x24GB", 2, 1.0), ("7e9", "1x80GB", 1, 1.0), ("14e9", "2x24GB", 1, 2.0), ("14e9", "1x80GB", 1, 1.0)],
)
def test_models_that_are_not_at_hand(
    capsys: pytest.CaptureFixture[str], parameters: str, devices: str, workers: int, gpus: float
) -> None:
    found = memory(capsys, "--parameters", parameters, "--experts", "3", "--devices", devices, "--host", "256GB")
    assert found["fits"] and found["workers"] == workers and found["gpus"] == gpus
    size = int(2 * float(parameters))
    for what in ("live model", "base", "expert 1", "expert 2", "expert 3"):
        assert [part["size"] for part in found["parts"] if part["what"] == what] == [size]


def test_what_does_not_fit_ends_with_2_and_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--parameters", "14e9", "--devices", "1x24GB", "--host", "256GB"]
    assert run_command(["plan", *arguments]) == 2
    shown = capsys.readouterr()
    assert "live model" in shown.out
    assert shown.err.startswith("error: this does not fit") and "gpus: 2" in shown.err and shown.err.count("\n") == 1
    found = memory(capsys, *arguments, code=2)
    assert not found["fits"] and found["problem"] and found["remedies"]


def test_a_config_is_planned_from_headers_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, nano_zoo: Path
) -> None:
    from merging.checkpoint import Checkpoint

    def refuse(*_: Any) -> None:
        raise AssertionError("a weight was read")

    for method in ("read", "reader"):
        monkeypatch.setattr(Checkpoint, method, refuse)
    found = memory(capsys, str(CONFIG))
    stored = (nano_zoo / "base" / "model.safetensors").stat().st_size
    live = next(part for part in found["parts"] if part["what"] == "live model")
    assert found["fits"] and live["where"] == "host" and 0.9 * stored < live["size"] <= stored
    assert {part["what"] for part in found["parts"]} >= {"base", "expert string", "expert language"}
    assert found["workers"] == 1 and found["gpus"] == 0.0


def test_a_config_s_workers_are_planned(capsys: pytest.CaptureFixture[str], nano_zoo: Path) -> None:
    more = ["--set", "workers.kind=ray", "--set", "workers.count=3"]
    found = memory(capsys, str(CONFIG), *more, "--host", "64GB")
    assert found["workers"] == 3
    assert all(part["once"] for part in found["parts"] if part["what"].startswith(("base", "expert")))
    crowd = memory(capsys, str(CONFIG), *more, "--host", "2GB", code=2)
    assert any("count: 1" in each for each in crowd["remedies"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "expected a config, or --parameters"),
        ([str(CONFIG), "--parameters", "7e9"], "expected a config, or --parameters"),
        (["--parameters", "nan"], "such as 7e9"),
        (["--parameters", "-3"], "such as 7e9"),
        (["--parameters", "7e9", "--devices", "2x24"], "such as 2x24GB"),
        (["--parameters", "7e9", "--devices", "0x24GB"], "1 to 1024 devices"),
        (["--parameters", "7e9", "--devices", "99999x24GB"], "1 to 1024 devices"),
        (["--parameters", "7e9", "--host", "plenty"], "such as 64GB"),
    ],
)
def test_mistakes_are_one_paragraph(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert run_command(["plan", *arguments]) == 2
    message = capsys.readouterr().err
    assert says in message and message.startswith("error: ") and "Traceback" not in message


def test_sizes_are_read_as_people_write_them(capsys: pytest.CaptureFixture[str]) -> None:
    found = memory(capsys, "--parameters", "1e9", "--devices", "2 × 24 GiB", "--host", "0.5TB")
    assert found["machine"] == {"devices": [24 * 2**30] * 2, "host": 500 * 10**9}
