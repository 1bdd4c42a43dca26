"""One size and training seed: what the models can do, how their weights lie, and what every merge keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from experiments.diagnosing.families import Family, Task
from experiments.diagnosing.gaps import Records, retention
from experiments.sizing.plan import ITEMS, MERGES, SKILLS, arms, title
from merging.recipe import Assignment

if TYPE_CHECKING:
    from experiments.diagnosing.bench import Bench
    from merging.recipe import Recipe

Row = dict[str, Any]
Say = Callable[[str], None]

PART = "sizes"
WEIGHTS = ("cosine", "sign_conflict", "overlap_lift", "subspace_left", "subspace_right", "alignment", "stable_rank",
           "effective_rank", "interference_ratio", "imbalance")  # fmt: skip
"""What is kept of a pair's diagnosis."""


def opened(name: str, seed: int) -> Bench:
    """The models of a family and seed, with an evaluator for each skill."""
    from experiments.diagnosing.bench import Bench

    return Bench(name, Family(SKILLS, Task("exact_match", "accuracy", 0.0, {}), (seed,), ITEMS, "skills"), seed)


def measure(records: Records, name: str, seed: int, bench: Callable[[], Bench], say: Say) -> None:
    """Measure what is not known yet of a size and seed.

    Args:
        records: where it is kept: ``models``, ``weights``, and one row for every merge.
        name: of the family.
        seed: of its training.
        bench: opens the models; called where something is to be measured.
        say: told one line a row.
    """
    makers: dict[str, Callable[[], Row]] = {
        "models": lambda: models(bench()),
        "weights": lambda: weights(bench()),
    }
    for experts in MERGES:
        makers[title(experts)] = lambda experts=experts: merge(
            bench(), experts, records.read(PART, name, seed)["models"]
        )
    for key, make in makers.items():
        if key not in records.read(PART, name, seed):
            start = time.process_time()
            row = make()
            row["seconds"] = round(time.process_time() - start, 1)
            records.add(PART, name, seed, key, row)
            say(f"{name} {seed}  {key:30} {row['seconds']:.0f} s")


def models(bench: Bench) -> Row:
    """Accuracy of the base and of every expert alone on every skill.

    Returns:
        search, holdout: {model: {skill: accuracy in [0, 1]}}; parameters: of each.
    """
    recipes = {"base": bench.recipe({})} | {name: bench.recipe({name: 1.0}) for name in SKILLS}
    found: Row = {"parameters": sum(each.numel() for each in bench.model.parameters())}
    for split in ITEMS:
        found[split] = {model: _accuracies(bench, recipe, SKILLS, split) for model, recipe in recipes.items()}
    return found


def weights(bench: Bench) -> Row:
    """The task vectors: how long they are, and how every two of them lie.

    Returns:
        norm_ratio: {expert: ‖τ‖/‖θ0‖}; pairs: {``a + b``: {measure: value}}.
    """
    from experiments.diagnosing.predictors import numbers
    from merging.diagnose import diagnose

    found: Row = {"norm_ratio": {}, "pairs": {}}
    for a, b in combinations(SKILLS, 2):
        diagnosis = diagnose(bench.pair(a, b))
        found["norm_ratio"] |= diagnosis.whole.norm_ratio
        values = numbers(diagnosis) | {"cosine": diagnosis.whole.cosine[a, b]}
        found["pairs"][title((a, b))] = {key: values[key] for key in WEIGHTS}
    return found


def merge(bench: Bench, experts: Sequence[str], alone: Mapping[str, Any]) -> Row:
    """Every arm over some experts: its parameters chosen on search items, and what it has of each skill.

    Args:
        bench: the models.
        experts: what is merged.
        alone: what :func:`models` gives.

    Returns:
        {arm: {chosen: label, search: {skill: accuracy}, holdout: {skill: accuracy}}}, skills being the experts' own.
    """
    found: Row = {}
    for name, choice in arms(experts).items():
        scores = {
            label: _accuracies(bench, assigned(bench, assignment), experts, "search")
            for label, assignment in choice.candidates.items()
        }
        kept = {label: list(retentions(each, alone["search"], experts).values()) for label, each in scores.items()}
        best = choice.best(kept)
        held = _accuracies(bench, assigned(bench, choice.candidates[best]), experts, "holdout")
        found[name] = {"chosen": best, "search": scores[best], "holdout": held}
    return found


def retentions(
    scores: Mapping[str, float], alone: Mapping[str, Mapping[str, float]], experts: Sequence[str]
) -> dict[str, float]:
    """Expert -> (merge − base) / (own expert − base) on its skill.

    Args:
        scores: of the merge, by skill.
        alone: {model: {skill: accuracy}} on the same items.
        experts: whose.
    """
    return {name: retention(scores[name], alone["base"][name], alone[name][name]) for name in experts}


def assigned(bench: Bench, assignment: Assignment) -> Recipe:
    """The same assignment for every group."""
    from merging.methods.registry import canonical_recipe
    from merging.recipe import Recipe

    sources = bench.sources
    return canonical_recipe(Recipe("base", sources.refs, dict.fromkeys(sources.layout.groups, assignment)))


def _accuracies(bench: Bench, recipe: Recipe, skills: Sequence[str], split: Any) -> dict[str, float]:
    return {name: bench.scored(recipe, name, split)[0] for name in skills}
