"""``paretomerge plan``, as people meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from search.cli import run_command

CONFIG = Path(__file__).parents[2] / "configs" / "nano.yaml"


def planned(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert run_command(["plan", *arguments, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def memory(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    return planned(capsys, *arguments, code=code)["memory"]  # type: ignore[no-any-return]


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
    whole = planned(capsys, str(CONFIG), "--no-measure")
    assert whole["name"] == "nano" and whole["time"] is None
    assert whole["search"]["candidates"] == {"low": 40.0, "middle": 40.0, "high": 40.0}
    assert [each["name"] for each in whole["search"]["stages"]] == [
        "baselines", "per-expert", "full", "selection", "holdout",
    ]  # fmt: skip
    assert whole["search"]["rungs"] == [{"string": 40, "language": 40}, {"string": 24, "language": 24}]
    assert whole["disk"]["enough"] and whole["disk"]["read_each"]["high"] == 0.0
    found = whole["memory"]
    stored = (nano_zoo / "base" / "model.safetensors").stat().st_size
    live = next(part for part in found["parts"] if part["what"] == "live model")
    assert found["fits"] and live["where"] == "host" and 0.9 * stored < live["size"] <= stored
    assert {part["what"] for part in found["parts"]} >= {"base", "expert string", "expert language"}
    assert found["workers"] == 1 and found["gpus"] == 0.0


def test_a_config_s_workers_are_planned(capsys: pytest.CaptureFixture[str], nano_zoo: Path) -> None:
    more = ["--set", "workers.kind=ray", "--set", "workers.count=3"]
    found = memory(capsys, str(CONFIG), *more, "--host", "64GB")  # another machine: nothing is measured
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


def test_a_measured_plan_has_a_range_for_everything_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], nano_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = planned(capsys, str(CONFIG), "--set", "search.control=true")
    assert list(tmp_path.iterdir()) == []
    times = found["time"]
    for figure in (times["seconds"], times["start"], times["merge"], times["busy"], *times["propose"].values()):
        assert 0.0 <= figure["low"] <= figure["middle"] <= figure["high"]
    stages = found["search"]["stages"]
    assert [each["name"] for each in stages][-1] == "control"
    whole = sum(each["seconds"]["middle"] for each in stages) + times["start"]["middle"]
    assert times["seconds"]["middle"] == pytest.approx(whole)
    measured = times["measured"]
    assert set(measured["scored"]) == {"string", "language"} and len(measured["merges"]) >= 3
    assert set(measured["scored"]["string"]) <= {"40", "24"} and "40" in measured["scored"]["string"]
    assert times["merge"]["low"] < times["merge"]["middle"] < times["merge"]["high"]
    assert "measured here" in found["sources"]["time"]


def test_a_plan_for_people_fits_80_columns(
    capsys: pytest.CaptureFixture[str], nano_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(["plan", str(CONFIG), "--no-measure"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for says in ("per-expert", "holdout", "rungs of 40, 64", "run directory", "live model", "9 of them, once"):
        assert says in " ".join(shown.split())
    assert "…" not in shown  # nothing is cut off


def test_a_merge_that_cannot_be_scored_is_said(
    capsys: pytest.CaptureFixture[str], nano_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from search.workers.evaluation import CandidateFailed
    from search.workers.inline import InlineWorker

    def fail(*_: Any, **__: Any) -> None:
        raise CandidateFailed("model.layers.0: not finite", {})

    monkeypatch.setattr(InlineWorker, "evaluate", fail)
    assert run_command(["plan", str(CONFIG)]) == 2
    message = capsys.readouterr().err
    assert "not finite" in message and "--no-measure" in message and "Traceback" not in message
