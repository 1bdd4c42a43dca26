"""The evaluators of a config: data there, splits disjoint, enough items, and models that can be asked so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

from evaluators.contract import SPLITS, Engine, Evaluator, Metric, Split
from evaluators.items import Pooled, Table
from merging.sources import BASE
from search.checks.models import Models
from search.checks.subject import Subject
from search.config import LoadedConfig
from search.objectives import clusters_of
from search.positions import Location
from search.setup import build_evaluator
from search.splits import leaks
from search.statistics import detectable_difference

DISCORDANCE = 0.2
"""Share of items on which two merges are taken to differ, where nothing was measured yet."""

TOO_FEW = 0.2
"""Share of a metric's range: items that tell no smaller difference than this leave the choice to chance."""

LIVE_BYTES = 10**9
"""Weights up to which the live model is loaded for a check; evaluators are then prepared as in the run."""


def check_evaluators(subject: Subject) -> dict[str, Evaluator]:
    """Build all evaluators, each by itself, and compare their items. Returns those that could be built."""
    found: dict[str, Evaluator] = {}
    for name in subject.config.evaluators:
        if subject.sound("evaluators", name):
            with subject.findings.at("evaluators", name):
                found[name] = build_evaluator(subject.loaded, name)
    for leak in leaks(found):
        subject.findings.error(data_of(subject, leak.evaluator), str(leak))
    for name, evaluator in found.items():
        _check_ids(subject, name, evaluator)
        _warn_of_public_tests(subject, name)
    return found


def check_power(subject: Subject, evaluators: Mapping[str, Evaluator]) -> None:
    """Warn of metrics that matter and have too few items to tell one merge from another."""
    named = {each.metric for each in subject.config.objectives}
    for name, evaluator in evaluators.items():
        for metric in evaluator.metrics:
            if f"{name}.{metric.name}" in named and math.isfinite(metric.high - metric.low):
                short = [split for split in SPLITS if not _tells(evaluator, metric, split)]
                if short:
                    _warn_of_few(subject, name, evaluator, metric, short)


def fit_models(subject: Subject, models: Models, evaluators: Mapping[str, Evaluator], device: str, live: bool) -> None:
    """Whether the base can be asked what each evaluator asks.

    Args:
        subject: the config.
        models: its base and experts.
        evaluators: built.
        device: for the live model.
        live: load the base with its weights, as the run will; otherwise what needs weights is left out, and said.
    """
    if BASE not in models.checkpoints:
        return
    engine: Engine | None = None
    with subject.findings.at("models", BASE):
        engine = _live(subject, models, device) if live else _weightless(subject.loaded, models.folders[BASE])
    if engine is None:
        return
    untried = []
    for name, evaluator in evaluators.items():
        with subject.findings.at("evaluators", name):
            try:
                evaluator.prepare(engine)
            except _NeedsWeights:
                untried.append(name)
            except (NotImplementedError, RuntimeError) as error:
                if live or "meta" not in str(error):  # what torch says of tensors without content
                    raise
                untried.append(name)
    if untried:
        named = ", ".join(untried)
        subject.findings.note(
            ("evaluators",),
            f"{named}: what needs a live model was not tried; `paretomerge check --live` loads it",
            at_key=True,
        )


def data_of(subject: Subject, evaluator: str) -> Location:
    """Where an evaluator's data are named."""
    options = subject.config.evaluators.get(evaluator, {})
    return ("evaluators", evaluator, "data") if "data" in options else ("evaluators", evaluator)


# -- items ------------------------------------------------------------------------------------------------------------


def _check_ids(subject: Subject, name: str, evaluator: Evaluator) -> None:
    """Ids are what item scores are kept by: each may stand for one item only."""
    seen: dict[str, tuple[Split, str]] = {}
    for split in SPLITS:
        items = evaluator.items(split)
        for id, content in zip(items.ids, items.hashes, strict=True):
            where, other = seen.setdefault(id, (split, content))
            if (where, other) != (split, content):
                subject.findings.error(
                    data_of(subject, name),
                    f"the id {id!r} is an item of the {where} split and another of the {split} split; ids are unique "
                    "over all splits: rename one",
                )
                return


def _tells(evaluator: Evaluator, metric: Metric, split: Split) -> bool:
    found = _resolves(evaluator, metric, split)
    return not math.isnan(found) and found <= TOO_FEW


def _resolves(evaluator: Evaluator, metric: Metric, split: Split) -> float:
    """Smallest difference that is found four times out of five, as a share of the metric's range."""
    return detectable_difference(independent(evaluator, metric, split), discordance=DISCORDANCE)


def independent(evaluator: Evaluator, metric: Metric, split: Split) -> int:
    """Items of a split that say something of a metric and are independent of each other: clusters where there are
    any."""
    items = evaluator.items(split)
    weights = items.weights.get(metric.name, (1.0,) * len(items))
    counted = [id for id, weight in zip(items.ids, weights, strict=True) if weight > 0.0]
    clusters = clusters_of(evaluator, split) or {}
    return len({clusters.get(id, id) for id in counted})


def _warn_of_few(subject: Subject, name: str, evaluator: Evaluator, metric: Metric, short: list[Split]) -> None:
    numbers = ", ".join(f"{independent(evaluator, metric, split)} {split}" for split in short)
    found = [_resolves(evaluator, metric, split) for split in short]
    least = "no difference would"
    if not any(map(math.isnan, found)):
        least = f"only a difference of {max(found) * (metric.high - metric.low):.2g} or more would"
    subject.findings.warn(
        data_of(subject, name),
        f"{numbers} items are few for {metric.name}: of two merges that differ on a fifth of them, {least} be found "
        "reliably; `paretomerge power` says what how many would tell",
    )


def _warn_of_public_tests(subject: Subject, name: str) -> None:
    """A search over a published test split makes its numbers incomparable with anybody else's."""
    kind, given = str(subject.config.evaluators[name]["type"]), subject.config.evaluators[name]
    table: Table | None = None
    with subject.findings.at("evaluators", name):
        options = subject.loaded.evaluator_options(name)[1]
        table = _searched(options.get("data"))
    if table is not None and table.dataset is not None and not Path(table.dataset).is_dir() and "test" in table.split:
        subject.findings.warn(
            data_of(subject, name),
            f"the search will see items of {table.dataset}'s public {table.split!r} split; its scores on them cannot "
            "be compared with published ones. Search on train or validation data, and keep the test split for the "
            "holdout",
        )
    elif kind == "lm_eval" and given.get("data") is None and not isinstance(given.get("tasks"), dict):
        subject.findings.warn(
            ("evaluators", name, "tasks"),
            "the documents that lm-eval scores these tasks on are cut into search, selection and holdout: the search "
            "will see part of a public benchmark, and scores cannot be compared with published ones. Name other tasks "
            "for the search (tasks: {search: …, selection: …, holdout: …}) to keep the benchmark for the holdout",
        )


def _searched(data: Pooled | None) -> Table | None:
    """The table that the search's items come from, where it is one; of several sources the first one."""
    if isinstance(data, list):
        tables = [_searched(each) for each in data]
        return next((each for each in tables if each is not None), None)
    if isinstance(data, Table):
        return data
    if isinstance(data, dict):
        found = data.get("search")
        return found if isinstance(found, Table) else None
    return None


# -- engines ----------------------------------------------------------------------------------------------------------


class _NeedsWeights(Exception):
    """Something was asked of a model whose weights were not loaded."""


class _Weightless:
    """An engine over a model without weights: it knows tokens, templates and settings, and answers nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def forward(self) -> AbstractContextManager[Any]:
        self._refuse()

    def generate(self, *_: object, **__: object) -> NoReturn:
        self._refuse()

    def loglikelihood(self, *_: object) -> NoReturn:
        self._refuse()

    def weights_changed(self) -> None:
        """Nothing depends on them."""

    def _refuse(self) -> NoReturn:
        raise _NeedsWeights


def _weightless(loaded: LoadedConfig, base: Path) -> Engine:
    """
    Raises:
        MergingError, EvaluatorError: transformers knows no such model, or its tokenizer is missing or bad.
    """
    from evaluators import open_engine
    from merging.skeleton import load_skeleton

    model = load_skeleton(base, dtype=loaded.config.models.dtype)
    engine: Any = _Weightless(open_engine(model, base, kind="hf", device="cpu"))
    return engine  # type: ignore[no-any-return]


def _live(subject: Subject, models: Models, device: str) -> Engine:
    """
    Raises:
        MergingError, EvaluatorError: as :func:`_weightless`; or the model's parameters are not those of its files, or
            there are no paths through its layers where some are searched.
    """
    from evaluators import open_engine
    from merging import Materializer, load_model
    from merging.dataflow import PathMaterializer

    settings, base = subject.config.engine, models.folders[BASE]
    model = load_model(base, dtype=subject.config.models.dtype, device=device)
    tensors = None
    if models.sources is not None:
        kind = Materializer if subject.config.space.data_flow is None else PathMaterializer
        tensors = kind(models.sources, model, home="mmap").tensors
    return open_engine(model, base, kind="hf", batch_tokens=settings.batch_tokens, device=device, tensors=tensors)
