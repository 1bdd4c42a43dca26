"""Workers of Ray lay paths as this process does: a search over layers, one of whose workers dies, and its scores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from search.config import load_config
from search.results import Results
from search.setup import set_up
from search.store import Store
from search.workers.inline import InlineWorker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

COMMAND = [sys.executable, "-c", "from search.cli import main; main()", "run", "config.yaml", "--display", "none"]
WEIGHTS = "space: {granularity: {knots: 2}, kinds: [[attention], [mlp], [norm, embedding, head]]}"


def test_a_search_for_paths(trapped: Path) -> None:
    config = trapped / "config.yaml"
    text = config.read_text()
    assert WEIGHTS in text
    config.write_text(text.replace(WEIGHTS, "space: {data_flow: {models: [string, language], depth: 8}}"))
    (trapped / "traps/die-1.once").touch()
    subprocess.run([*COMMAND, "--workers", "2", "--name", "paths"], cwd=trapped, check=True, timeout=1500)
    results = Results.load(trapped / "runs/paths")
    assert results.state == "finished"
    setup = set_up(load_config(config), 1)
    worker = InlineWorker(setup.materializer, setup.engine, setup.evaluators)
    store = Store.open(results.folder, read_only=True)
    scored = [each.id for each in store.candidates() if each.state == "complete"]
    deepest = sorted(scored, key=lambda id: len(results.recipe(id).layers or ()))[-3:]
    assert len(results.recipe(deepest[-1]).layers or ()) > 3
    for id in (*deepest, 0):
        scores = store.item_scores(id, "search")
        found = worker.evaluate(results.recipe(id), "search", {name: each.ids for name, each in scores.items()}).scores
        for name, each in scores.items():
            assert all((found[name].values[metric] == values).all() for metric, values in each.values.items())
    store.close()
