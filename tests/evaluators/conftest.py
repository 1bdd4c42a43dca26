from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside the tests: importlib mode adds no folder

import pytest
import torch
from evaluator_samples import lines, overfitted, reversal, word_tokenizer

from evaluators.engines.hf import HFEngine


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def learned() -> torch.nn.Module:
    return overfitted()


@pytest.fixture
def engine(learned: torch.nn.Module) -> HFEngine:
    return HFEngine(learned, word_tokenizer())


@pytest.fixture
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three splits of the reversal task; the search split is what ``learned`` half knows."""
    folder = tmp_path_factory.mktemp("reversal")
    for split, items in {
        "search": reversal(48),
        "selection": reversal(12, start=100),
        "holdout": reversal(12, start=200),
    }.items():
        (folder / f"{split}.jsonl").write_text(lines(items), encoding="utf-8")
    return folder
