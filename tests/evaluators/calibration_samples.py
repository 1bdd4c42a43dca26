"""An evaluator that asks whatever it is told to, and what tests of calibration inputs look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from evaluator_samples import lines
from pydantic import BaseModel
from sequence_models import widened
from transformers import T5Config, T5ForConditionalGeneration

from evaluators.calibration import Input, record_inputs
from evaluators.contract import Engine, Items, ItemScores, Metric, Split


def tokens(inputs: Sequence[Input]) -> list[list[int]]:
    """The texts among inputs, checked for their form."""
    found = []
    for one in inputs:
        assert set(one) == {"input_ids"}
        ids = one["input_ids"]
        assert ids.dtype == torch.int64 and ids.ndim == 2 and len(ids) == 1 and ids.device.type == "cpu"
        found.append(ids[0].tolist())
    assert len({tuple(each) for each in found}) == len(found)
    return found


def write_splits(folder: Path, items: dict[str, list[dict[str, Any]]]) -> Path:
    folder.mkdir(exist_ok=True)
    for split, own in items.items():
        (folder / f"{split}.jsonl").write_text(lines(own), encoding="utf-8")
    return folder


class Bare:
    """An evaluator that is nothing but the protocol; ``ask`` is what it does."""

    metrics = (Metric("nothing", "maximize", 0.0, 1.0),)
    fingerprint = "bare/1"
    Options: ClassVar[type[BaseModel]] = BaseModel

    def __init__(self, ask: Any) -> None:
        self.ask = ask

    def prepare(self, engine: Engine) -> None:
        self.engine = engine  # some ask the engine that they were prepared with

    def items(self, split: Split) -> Items:
        ids = (f"{split}-1", f"{split}-2")
        return Items(ids, ("", ""), ids)

    def score(self, engine: Engine, ids: Sequence[str]) -> ItemScores:
        self.ask(engine, self.engine)
        return ItemScores(tuple(ids), {}, {}, tuple("ok" for _ in ids))

    def aggregate(self, scores: ItemScores) -> dict[str, float]:
        return {}


def recorded(ask: Any, engine: Engine) -> list[Input]:
    return record_inputs(Bare(ask), engine, ("search-1",))


@contextmanager
def untouched(module: torch.nn.Module) -> Iterator[None]:
    before = {name: set(vars(part)) for name, part in module.named_modules()}
    yield
    assert {name: set(vars(part)) for name, part in module.named_modules()} == before
    for part in module.modules():
        assert not part._forward_pre_hooks and not part._forward_hooks


def small_t5(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    size = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = T5Config(**size, decoder_start_token_id=0, pad_token_id=0, eos_token_id=3)
    return widened(T5ForConditionalGeneration(config))


def greedy_after(model: torch.nn.Module, one: Input, begun: int) -> bool:
    """Whether what a decoder reads is, from ``begun`` on, what the model itself finds the likeliest."""
    with torch.no_grad():
        likeliest = model(**one).logits[0].argmax(-1).tolist()
    read = one["decoder_input_ids"][0].tolist()
    return bool(read[begun:] == likeliest[begun - 1 : len(read) - 1])
