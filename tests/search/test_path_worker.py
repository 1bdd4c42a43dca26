"""The worker and its engine over a model whose depth changes from candidate to candidate: every candidate is asked as
its export would be, also after one that broke off in the middle of a hop."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluators import open_engine, registry
from evaluators.contract import Engine, Request
from evaluators.engines import prefix
from evaluators.engines.hf import HFEngine
from evaluators.exact_match import ExactMatch
from merging import Sources, load_model
from merging.dataflow import PathMaterializer
from merging.export import export
from merging.recipe import Assignment, Group, Recipe
from search.workers.evaluation import CandidateFailed
from search.workers.inline import InlineWorker

Hops = Sequence[tuple[str, int]]

DEEP: Hops = [("string", 0), ("language", 1), ("language", 1), ("language", 1), ("string", 1), ("base", 0)]
SCALES = (1.2, 0.7, 1.0, 1.3, 0.9, 0.8)
SHALLOW: Hops = [("language", 1)]


@pytest.fixture(autouse=True)
def small_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings of a few tokens are worth it: these models have few positions."""
    monkeypatch.setattr(prefix, "_SHORTEST", 2)
    monkeypatch.setattr(prefix, "_COST", 2)


@pytest.fixture
def opened(nano_zoo: Path) -> tuple[Sources, PathMaterializer, HFEngine]:
    base = nano_zoo / "base"
    sources = Sources.load(base, {"string": nano_zoo / "string", "language": nano_zoo / "language"})
    paths = PathMaterializer(sources, load_model(base))
    engine = open_engine(paths.model, base)
    assert isinstance(engine, HFEngine)
    return sources, paths, engine


def path_recipe(sources: Sources, hops: Hops, scales: Sequence[float] | None = None) -> Recipe:
    groups = {}
    for group in sources.layout.groups:
        if group.depth is None:
            groups[group] = Assignment.of("passthrough", {"string": {}})
        for number, (alias, layer) in enumerate(hops):
            if layer == group.depth:
                groups[Group(group.kind, number)] = Assignment.of("passthrough", {alias: {}})
    layers = tuple({alias: layer} for alias, layer in hops)
    return Recipe("base", sources.refs, groups, layers=layers, scales=None if scales is None else tuple(scales))


def evaluator(folder: Path, engine: Engine) -> ExactMatch:
    found = registry.build("exact_match", {"data": str(folder / "data" / "string")}, folder=folder)
    assert isinstance(found, ExactMatch)
    found.prepare(engine)
    return found


def answers(engine: HFEngine) -> tuple[Any, list[float]]:
    """Texts, and log-likelihoods: with common beginnings, with branches, in batches of unequal length."""
    start = [3, 5, 8, 4, 9]
    prompts = [[*start, *[7 + number] * (1 + number % 3)] for number in range(6)]
    requests = [Request(prompt, [4, 6]) for prompt in prompts] + [Request(prompt, [5]) for prompt in prompts]
    texts = [(each.tokens, each.ended) for each in engine.generate(prompts, max_new_tokens=6)]
    return texts, [each.total for each in engine.loglikelihood(requests)]


def test_it_is_asked_as_its_export_is(opened: Any, nano_zoo: Path, tmp_path: Path) -> None:
    sources, paths, engine = opened
    for number, (hops, scales) in enumerate([(DEEP, SCALES), (SHALLOW, None), (DEEP, None), (DEEP, SCALES)]):
        recipe = path_recipe(sources, hops, scales)
        paths.apply(recipe)
        engine.weights_changed()
        texts, likelihoods = answers(engine)
        out = export(recipe, sources, tmp_path / str(number))
        exported = open_engine(load_model(out), nano_zoo / "base")
        assert isinstance(exported, HFEngine)
        expected, wanted = answers(exported)
        assert texts == expected
        assert likelihoods == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_the_engine_keeps_no_module_that_the_model_let_go(opened: Any) -> None:
    sources, paths, engine = opened
    hop = weakref.ref(paths.model.get_submodule("model.layers.0"))
    paths.forget()
    paths.apply(path_recipe(sources, SHALLOW))
    gc.collect()
    assert hop() is None
    engine.recover()
    assert answers(engine)[0]


class BrokenOff(Exception):
    """Not one that a worker expects."""


@pytest.mark.parametrize("error", [RuntimeError, BrokenOff])
def test_nothing_is_left_of_a_candidate_that_broke_off_inside_a_hop(
    opened: Any, nano_zoo: Path, error: type[Exception]
) -> None:
    sources, paths, engine = opened
    scorer = evaluator(nano_zoo, engine)
    ids = scorer.items("search").ids[:12]
    worker = InlineWorker(paths, engine, {"string": scorer})
    recipes = [path_recipe(sources, DEEP, SCALES), path_recipe(sources, SHALLOW), path_recipe(sources, DEEP)]
    wanted = [worker.evaluate(each, "search", {"string": ids}).scores for each in recipes]
    digests = []
    for each in recipes:
        paths.apply(each)
        digests.append(paths.digest())

    worker._evaluators["string"] = Vandal(scorer, error)  # type: ignore[assignment]
    with pytest.raises(CandidateFailed if error is RuntimeError else error):
        worker.evaluate(recipes[0], "search", {"string": ids})
    if error is not RuntimeError:
        worker.recover()  # as the pool does, when the time is up
    worker._evaluators["string"] = scorer
    for recipe, scores, digest in zip(recipes, wanted, digests, strict=True):
        found = worker.evaluate(recipe, "search", {"string": ids}).scores
        assert all(
            (found[name].values[metric] == scores[name].values[metric]).all()
            for name in scores
            for metric in scores[name].values
        )
        assert paths.digest() == digest


class Vandal:
    """An evaluator that leaves the model in disorder: hooks, training mode, weights, a hop in mid-work."""

    def __init__(self, scorer: ExactMatch, error: type[Exception]) -> None:
        self._scorer = scorer
        self._error = error

    def score(self, engine: HFEngine, ids: Sequence[str]) -> Any:
        blocks: Any = engine.model.get_submodule("model.layers")
        engine.model.train()
        with torch.no_grad():
            blocks[1].mlp.up_proj.weight.zero_()
        blocks[2].register_forward_hook(lambda module, args, output: output * 0)
        blocks[3].self_attn.o_proj.register_forward_pre_hook(self._stop)
        return self._scorer.score(engine, ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def _stop(self, module: Any, args: Any) -> None:
        raise self._error("in the middle of a hop")
