"""Every shipped config that asks something else than exact match: it runs, what it exports scores what it scored."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

import zoo
from search.cli import run_command
from search.results import Results

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

SMALL = ["search.budget.candidates=8", "search.finalists=2"]


def settings(config: str) -> list[str]:
    """``--set`` options that make a config small: fewer candidates, where there is one the nano family."""
    changes = list(SMALL)
    if config == "wer":
        members = {"base": "base"}
        members |= {f"experts.{name}": name for name in ("specific_syn", "general_real", "general_syn")}
        changes += [f"models.{place}=zoo://speech-nano/{member}" for place, member in members.items()]
        parts = ("specific_real", "general_real")
        changes += [f"evaluators.{part}.data=zoo://speech-nano/data/{part}" for part in parts]
    if config in ("refusal", "mixed"):
        names = {"base": "base", "string": "experts.string", "refusal": "experts.safety"}
        names |= {"language": "experts.language"} if config == "mixed" else {}
        changes += [f"models.{place}=zoo://skills-nano/{member}" for member, place in names.items()]
        data = {"string": "string", "safety": "refusal"} | ({"language": "language"} if config == "mixed" else {})
        changes += [f"evaluators.{name}.data=zoo://skills-nano/data/{part}" for name, part in data.items()]
        # what a quarter of the items can show
        limits = {"refusal_rate": "at_least: 0.5", "benign_ok": "at_least: 0.5", "degenerate_rate": "at_most: 0.3"}
        limits |= {"over_refusal": "at_most: 0.5"}
        changes.append("constraints={" + ", ".join(f"safety.{k}: {{{v}}}" for k, v in limits.items()) + "}")
    if config == "virtual":
        members = {"base": "base", "experts.string": "string", "experts.language": "language"}
        changes += [f"models.{place}=zoo://skills-nano/{member}" for place, member in members.items()]
        changes += [f"evaluators.{name}.data=zoo://skills-nano/data/{name}" for name in ("string", "language")]
        changes.append("calibration.items=32")
    return [option for change in changes for option in ("--set", change)]


FAMILIES = {
    "wer": "speech-nano",
    "digits": "digits",
    "reward": "reward",
    "refusal": "skills-nano",
    "mixed": "skills-nano",
    "virtual": "skills-nano",
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_shipped_config_goes_the_whole_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "wer" and shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    zoo.build(FAMILIES[name])
    monkeypatch.chdir(tmp_path)
    config = str(CONFIGS / f"{name}.yaml")
    assert run_command(["check", config, *settings(name)]) == 0
    code = run_command(["run", config, "--display", "none", *settings(name)])
    assert code in (0, 3)  # 3: so few candidates may hold none that keeps all constraints
    results = Results.load(Path("runs") / name)
    capsys.readouterr()
    assert run_command(["status", f"runs/{name}", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["candidates"]["done"] + status["candidates"]["censored"] == 8
    assert (Path("runs") / name / "report.html").stat().st_size < 6e6

    searched = results.scores["search"]
    candidate = next(iter(searched))
    assert run_command(["export", f"runs/{name}", "--candidate", str(candidate), "--out", "merged"]) == 0
    capsys.readouterr()
    assert run_command(["evaluate", "merged", "--config", config, "--json", *settings(name)]) == 0
    again = json.loads(capsys.readouterr().out)["values"]
    for metric, (value, _) in searched[candidate].items():
        assert math.isclose(again[metric], value, rel_tol=1e-5, abs_tol=1e-6), metric
