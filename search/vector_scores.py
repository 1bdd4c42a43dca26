"""What a task vector keeps of its fine-tune's skill: base, base with vector, fine-tune, on the same items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.contract import ItemScores, Split
from merging.vectors.manifest import Manifest, Score
from search.config import LoadedConfig
from search.errors import SearchError

if TYPE_CHECKING:
    from merging.checkpoint import Checkpoint
    from search.statistics.paired import Paired

VECTOR, EXPERT = "vector", "expert"


@dataclass(frozen=True)
class VectorScores:
    """Scores of up to three models on one split.

    Attributes:
        split: whose items.
        scores: of ``base``, ``vector`` and ``expert``; an exact vector's are the expert's.
        losses: metric -> vector minus expert on the same items; empty where the fine-tune was not scored.
        directions: metric -> ``maximize`` or ``minimize``.
    """

    split: Split
    scores: tuple[Score, ...]
    losses: Mapping[str, Paired]
    directions: Mapping[str, str]

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "split": self.split,
            "scores": [each.as_data() for each in self.scores],
            "losses": {
                name: {"difference": each.difference, "low": each.low, "high": each.high, "p": each.p, "items": each.n}
                for name, each in self.losses.items()
            },
        }


def score_vector(
    loaded: LoadedConfig,
    vector: Path,
    split: Split,
    *,
    base: Path | None = None,
    expert: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> VectorScores:
    """Score a vector over its base with a config's evaluators, in one live model.

    Args:
        loaded: whose evaluators, engine and dtype to use.
        vector: folder of the vector.
        split: which items.
        base: folder of its base; the config's if None.
        expert: folder of the fine-tune; if None, the config's expert of the same content, if there is one. Not needed
            for an exact vector.
        say: told one line for every step that takes long.

    Raises:
        SearchError, MergingError, EvaluatorError: a model, the data or the config is wrong.
    """
    import torch

    from evaluators import open_engine
    from merging import Checkpoint, Materializer, Sources, load_model
    from merging.vectors.equip import alone
    from search.setup import build_evaluators, prepare_evaluators
    from search.workers.inline import InlineWorker

    manifest = Manifest.read(vector)
    base = base or loaded.resolve(loaded.config.models.base)
    settings = loaded.config.engine
    if settings.kind == "vllm":
        raise SearchError(
            "vectors are scored in a live model, which the engine vllm does not give; add --set engine.kind=hf"
        )
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if expert is None and not manifest.is_exact:
        expert = fine_tune_of(manifest, loaded, Checkpoint.open(base))
    sources = Sources.load(base, {VECTOR: vector} | ({} if expert is None else {EXPERT: expert}))
    if expert is not None and sources.refs[EXPERT].content != manifest.expert.content:
        raise SearchError(
            f"expected the fine-tune that the vector was made from ({manifest.expert.content[:19]}…) at {expert}, "
            f"found {sources.refs[EXPERT].content[:19]}…; name that one, or leave --expert out"
        )
    evaluators = build_evaluators(loaded)
    model = load_model(base, dtype=loaded.config.models.dtype, device=settings.device)
    materializer = Materializer(sources, model)
    engine = open_engine(model, base, kind=settings.kind, batch_tokens=settings.batch_tokens, device=settings.device)
    prepare_evaluators(loaded, evaluators, engine)
    worker = InlineWorker(materializer, engine, evaluators)
    metrics = {f"{name}.{each.name}": each for name, evaluator in evaluators.items() for each in evaluator.metrics}
    found: list[Score] = []
    items: dict[str, dict[str, ItemScores]] = {}
    for of in ("base", VECTOR, *([EXPERT] if EXPERT in sources.refs else [])):
        say(
            f"scoring {'the base' if of == 'base' else 'the base with the vector' if of == VECTOR else 'the fine-tune'}"
        )
        evaluation = worker.evaluate(alone(sources, of, loaded.config.models.dtype), split)
        items[of] = dict(evaluation.scores)
        found += _scores(of, evaluation, metrics, split)
    losses = {}
    if EXPERT in items:
        losses = {
            name: _loss(items, name, metrics[name]) for name in metrics if name in {each.metric for each in found}
        }
    elif manifest.is_exact and sources.refs[VECTOR].content == manifest.expert.content:
        found += [Score(EXPERT, *_rest(each)) for each in found if each.of == VECTOR]
    return VectorScores(split, tuple(found), losses, {name: each.direction for name, each in metrics.items()})


def _rest(score: Score) -> tuple[Any, ...]:
    return (score.metric, score.value, score.low, score.high, score.items, score.split)


def fine_tune_of(manifest: Manifest, loaded: LoadedConfig, base: Checkpoint) -> Path | None:
    """The config's expert that a vector was made from: a model or an adapter. Those of another size are not hashed.

    Args:
        manifest: of the vector.
        loaded: whose experts are looked at.
        base: of the vector.

    Raises:
        MergingError: an expert is damaged, or an adapter of another base.
    """
    from merging.opening import is_vector, open_model

    for reference in loaded.config.models.experts.values():
        path = loaded.resolve(reference)
        if is_vector(path):
            continue
        opened = open_model(path, base)
        size = sum(info.numel * info.dtype.itemsize for info in opened.tensors.values())
        if size == manifest.expert.bytes and opened.content == manifest.expert.content:
            return path
    return None


def _scores(of: str, evaluation: Any, metrics: Mapping[str, Any], split: Split) -> list[Score]:
    from search.evaluate import counted
    from search.statistics import interval_of_score

    found = []
    for name, value in evaluation.values.items():
        evaluator, _, metric = name.partition(".")
        count = counted(evaluation.scores[evaluator], metric)
        limits = interval_of_score(value, evaluation.errors[name], count, (metrics[name].low, metrics[name].high))
        found.append(Score(of, name, float(value), float(limits.low), float(limits.high), count, split))
    return found


def _loss(items: Mapping[str, Mapping[str, ItemScores]], name: str, metric: Any) -> Paired:
    from search.statistics.paired import paired_scores

    evaluator, _, own = name.partition(".")
    bounds = (metric.low, metric.high)
    return paired_scores(items[VECTOR][evaluator], items[EXPERT][evaluator], own, bounds=bounds)
