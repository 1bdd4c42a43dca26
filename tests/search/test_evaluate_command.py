"""``evaluate``: intervals that say what few items can show, of the items that a metric says something of."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from evaluators.contract import ItemScores
from search.cli import run_command
from search.evaluate import counted

ROOT = Path(__file__).resolve().parents[2]


def test_items_that_say_nothing_of_a_metric_do_not_count() -> None:
    values = {"rate": np.zeros(4), "all": np.ones(4)}
    weights = {"rate": np.array([1.0, 0.0, 1.0, 1.0]), "all": np.ones(4)}
    scores = ItemScores(("a", "b", "c", "d"), values, weights, ("ok", "ok", "unscored", "failed"))
    assert (counted(scores, "rate"), counted(scores, "all")) == (2, 3)
    plain = ItemScores(("a", "b", "c", "d"), values, weights)
    assert (counted(plain, "rate"), counted(plain, "all")) == (3, 4)


@pytest.mark.slow
def test_a_model_is_scored_with_wilsons_interval_and_the_exact_rule_of_three(
    nano_zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["evaluate", "zoo://skills-nano/string", "--config", str(ROOT / "configs/nano.yaml")]
    assert run_command([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    n = found["items"]["string"]
    share = found["values"]["string.accuracy"]
    z = 1.959963984540054
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    if 0.0 < share < 1.0:
        assert found["intervals"]["string.accuracy"] == pytest.approx([middle - half, middle + half])
    assert found["values"]["language.accuracy"] == 0.0  # another expert's skill: nothing of it is there
    low, high = found["intervals"]["language.accuracy"]
    assert low == 0.0 and 0.04 < high < 0.08  # which 64 items do not prove
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(command) == 0
    text = capsys.readouterr().out
    assert "95 % interval" in text and "±" not in text and max(map(len, text.splitlines())) <= 80
