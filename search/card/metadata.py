"""The front matter of a card: what the Hub reads, by huggingface_hub's own classes."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from search.card.facts import CardFacts
from search.card.loading import Loading
from search.card.parents import Parent
from search.report.terminal import visible

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

_LICENSE = re.compile(r"^[a-z0-9][a-z0-9.+-]{0,60}$")


def metadata(facts: CardFacts, loading: Loading) -> ModelCardData:
    """Front matter of the card. What is not known is left out; nothing is guessed.

    ``base_model`` has ids of the Hub only, and ``license`` what all parents state alike. ``model-index`` has the
    candidate's holdout scores, if that holdout was opened for it.
    """
    from huggingface_hub import ModelCardData

    ids = list(dict.fromkeys(each.hub_id for each in facts.parents if each.hub_id is not None))
    results = _eval_results(facts, loading)
    stated = [each for each in facts.parents if each.made_by is None]
    tags = {each.metadata.get("pipeline_tag") for each in stated}
    tag = next(iter(tags)) if len(tags) == 1 else None
    return ModelCardData(
        base_model=ids or None,
        base_model_relation="merge",
        library_name="transformers",
        pipeline_tag=tag if isinstance(tag, str) and _LICENSE.match(tag) else loading.task or None,
        license=facts.license if facts.license and _LICENSE.match(facts.license) else None,
        license_name=_alike(stated, "license_name") if facts.license == "other" else None,
        license_link=_alike(stated, "license_link") if facts.license == "other" else None,
        language=_union(stated, "language"),
        datasets=_union(stated, "datasets"),
        tags=["merge", "paretomerge", *facts.methods],
        model_name=_name(facts) if results else None,
        eval_results=results or None,
    )


def _name(facts: CardFacts) -> str:
    return " ".join(visible(facts.repository.partition("/")[2] if facts.repository else facts.title).split())


def _alike(parents: list[Parent], key: str) -> str | None:
    found = {str(each.metadata.get(key) or "") for each in parents}
    value = next(iter(found)) if len(found) == 1 else ""
    if key.endswith("_link") and not value.startswith("https://"):
        return None  # a file of the parent's own repository is none of this one
    return value or None


def _union(parents: list[Parent], key: str) -> list[str] | None:
    return list(dict.fromkeys(value for each in parents for value in each.listed(key))) or None


def _eval_results(facts: CardFacts, loading: Loading) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    results, id = facts.results, facts.scored
    if results is None or id is None or id not in results.scores["holdout"]:
        return []
    found = []
    for name, (value, _) in sorted(results.scores["holdout"][id].items()):
        if not math.isfinite(value):
            continue
        evaluator, _, metric = name.partition(".")
        limits = results.interval(id, "holdout", name)
        data = _data_set(results.config.evaluators.get(evaluator, {}))
        ends = {"low": round(limits.low, 6), "high": round(limits.high, 6)}
        known = {key: end for key, end in ends.items() if math.isfinite(end)}
        found.append(
            EvalResult(
                task_type=loading.task or "other",
                dataset_type=data.get("dataset", evaluator),
                dataset_name=visible(evaluator),
                dataset_config=data.get("config"),
                dataset_split="holdout",
                metric_type=visible(metric),
                metric_value=round(value, 6),
                metric_name=visible(f"{metric} on holdout"),
                metric_args={"interval_95": known, "items": limits.n} if known else None,
            )
        )
    return found


def _data_set(options: dict[str, Any]) -> dict[str, str]:
    """A data set of the Hub, where the evaluator's options name one: never a path."""
    data = options.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("dataset"), str):
        return {}
    from search.card.parents import is_hub_id

    if not is_hub_id(data["dataset"]):
        return {}
    found = {"dataset": data["dataset"]}
    if isinstance(data.get("config"), str):
        found["config"] = visible(data["config"])
    return found
