"""A live model over two experts and its pool, small enough that a fresh one can be made to compare with."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evaluators.contract import Items, ItemScores, Metric, Request, Split, weighted_mean
from evaluators.engines.hf import HFEngine
from merging import Materializer, Sources, load_model
from merging.recipe import Assignment, Recipe
from search.workers.contract import Done, Task
from search.workers.evaluation import Evaluation
from search.workers.inline import InlinePool, InlineWorker

SIZE = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 32,
}  # fmt: skip
REQUESTS = [Request([1, *range(2, 4 + index)], [5 + index, 7]) for index in range(8)]


class Likelihood:
    """The mean log-likelihood of a few texts; ``trouble`` is called before each."""

    metrics = (Metric("total", "maximize", -1000.0, 0.0),)
    fingerprint = "likelihood"

    def __init__(self) -> None:
        self.trouble: Callable[[Any], None] = lambda engine: None

    def prepare(self, engine: Any) -> None:
        pass

    def items(self, split: Split) -> Items:
        ids = tuple(f"{split}-{index}" for index in range(len(REQUESTS)))
        return Items(ids, ("",) * len(ids), ids)

    def score(self, engine: Any, ids: Sequence[str]) -> ItemScores:
        found = []
        for id in ids:
            self.trouble(engine)
            found.append(engine.loglikelihood([REQUESTS[int(id.split("-")[1])]])[0].total)
        values = np.array(found)
        return ItemScores(tuple(ids), {"total": values}, {"total": np.ones(len(ids))}, ("ok",) * len(ids))

    def aggregate(self, scores: ItemScores) -> dict[str, float]:
        return {"total": weighted_mean(scores, "total")}


class Bench:
    """A live model over two experts, its pool, and what each recipe is worth in a model that never held another."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.evaluator = Likelihood()
        self.materializer = Materializer(sources, load_model(sources.path))
        self.engine = HFEngine(self.materializer.model, tokenizer())
        self.worker = InlineWorker(self.materializer, self.engine, {"text": self.evaluator})
        self.pool = InlinePool(self.worker)

    def recipe(self, a: float, b: float) -> Recipe:
        rule = Assignment.of("task_arithmetic", {"a": {"coefficient": a}, "b": {"coefficient": b}})
        return Recipe("base", self.sources.refs, dict.fromkeys(self.sources.layout.groups, rule))

    def score(self, recipe: Recipe, timeout: float | None = None, candidate: int = 3) -> Done:
        handler, alarm = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0]
        self.pool.submit(Task(candidate, recipe, "search", timeout=timeout))
        (done,) = self.pool.wait()
        left = signal.getitimer(signal.ITIMER_REAL)[0]  # pytest-timeout has an alarm of its own
        assert signal.getsignal(signal.SIGALRM) is handler and left <= alarm and (left > 0.0) == (alarm > 0.0)
        return done

    def is_fresh(self, recipe: Recipe) -> None:
        """Scores, weights and module are those of a process in which nothing ever went wrong."""
        other = Bench(self.sources)
        expected, found = other.score(recipe).result, self.score(recipe).result
        assert isinstance(expected, Evaluation) and isinstance(found, Evaluation)
        np.testing.assert_array_equal(found.scores["text"].values["total"], expected.scores["text"].values["total"])
        assert self.materializer.digest() == other.materializer.digest()
        for mine, fresh in zip(self.materializer.model.modules(), other.materializer.model.modules(), strict=True):
            assert mine.training == fresh.training
            assert not mine._forward_hooks and not mine._forward_pre_hooks
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<unk>": 0, **{f"w{index}": index for index in range(1, 40)}}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<unk>")), unk_token="<unk>")


def make_sources(folder: Path) -> Sources:
    """A base and two experts, random ones."""
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**SIZE))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8.0 if parameter.ndim == 2 else 1.0)
        model.save_pretrained(folder / name)
    return Sources.load(folder / "base", {name: folder / name for name in ("a", "b")})


def raised(error: Exception) -> None:
    """Raise it, as an expression."""
    raise error
