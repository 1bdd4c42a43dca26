"""Greedy soup: which models enter, in which order, and what their mean is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from families import save
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from merging.materialize import Materializer, load_model
from merging.methods import canonical_recipe
from merging.recipe import Assignment, Group, MergingError, Recipe, SourceRef
from merging.soup import greedy_soup
from merging.sources import Sources

GROUPS = (Group("mlp", 0), Group("embedding"))


def template(*aliases: str) -> Recipe:
    refs = {alias: SourceRef(alias, f"sha256:{alias}") for alias in ("base", *aliases)}
    return Recipe(
        "base",
        refs,
        dict.fromkeys(GROUPS, Assignment.of("ties", {"a": {"coefficient": 1.0}})),
        tensors={"x": Assignment.of("linear", {"a": {"coefficient": 1.0}})},
        dtype="bfloat16",
        source_dtype="float32",
    )


def members(recipe: Recipe) -> frozenset[str]:
    return frozenset(alias for alias, _ in recipe.groups[GROUPS[0]].sources)


def table(scores: Mapping[str, float], asked: list[frozenset[str]] | None = None) -> Callable[[Recipe], float]:
    """Scores by the letters of the members."""

    def score(recipe: Recipe) -> float:
        if asked is not None:
            asked.append(members(recipe))
        return scores["".join(sorted(members(recipe)))]

    return score


def test_a_model_enters_where_the_mean_does_not_fall() -> None:
    asked: list[frozenset[str]] = []
    scores = {"a": 0.6, "b": 0.8, "c": 0.7, "bc": 0.79, "ab": 0.8}
    soup = greedy_soup(template("a", "b", "c"), table(scores, asked))
    # The best first; c lowers it and stays out, a leaves it where it is and enters.
    assert [set(each) for each in asked] == [{"a"}, {"b"}, {"c"}, {"b", "c"}, {"a", "b"}]
    assert soup.members == ("b", "a") and soup.score == 0.8
    assert [(each.members, each.score, each.kept) for each in soup.tastings] == [
        (("a",), 0.6, False),
        (("b",), 0.8, True),
        (("c",), 0.7, False),
        (("b", "c"), 0.79, False),
        (("b", "a"), 0.8, True),
    ]
    assert soup.recipe == soup.tastings[-1].recipe


def test_the_soup_is_a_canonical_uniform_mean_over_the_template() -> None:
    start = template("a", "b")
    soup = greedy_soup(start, lambda recipe: float(len(members(recipe))))
    mean = {alias: {"coefficient": 1.0} for alias in ("a", "b")}
    assert soup.recipe.groups == dict.fromkeys(GROUPS, Assignment.of("linear", mean, normalize=True))
    assert soup.recipe.tensors == {}  # exceptions of the template are replaced too
    assert (soup.recipe.dtype, soup.recipe.source_dtype, soup.recipe.base) == ("bfloat16", "float32", "base")
    assert canonical_recipe(soup.recipe) == soup.recipe


def test_equal_scores_keep_the_given_order() -> None:
    soup = greedy_soup(template("a", "b", "c"), lambda recipe: 1.0, aliases=("c", "a", "b"))
    assert soup.members == ("c", "a", "b")
    alone = greedy_soup(template("a", "b", "c"), lambda recipe: -float(len(members(recipe))), aliases=("c", "a"))
    assert alone.members == ("c",)


def test_the_base_may_be_in_the_soup() -> None:
    assert set(greedy_soup(template("a"), lambda recipe: 0.0, aliases=("a", "base")).members) == {"a", "base"}


@given(
    vectors=st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=1, max_size=6),
    target=st.lists(st.floats(-1, 1), min_size=3, max_size=3),
)
@settings(deadline=None, max_examples=60, derandomize=True)
def test_it_is_recipe_1_of_the_paper(vectors: list[list[float]], target: list[float]) -> None:
    """Against a plain reading of the algorithm, with scores that are those of real means."""
    points = {alias: np.array(vector) for alias, vector in zip("abcdef", vectors, strict=False)}

    def worth(chosen: frozenset[str]) -> float:
        return -float(np.linalg.norm(np.mean([points[alias] for alias in sorted(chosen)], axis=0) - target))

    ranked = sorted(points, key=lambda alias: worth(frozenset(alias)), reverse=True)
    ingredients: frozenset[str] = frozenset()
    for alias in ranked:
        if not ingredients or worth(ingredients | {alias}) >= worth(ingredients):
            ingredients |= {alias}
    soup = greedy_soup(template(*points), lambda recipe: worth(members(recipe)))
    assert frozenset(soup.members) == ingredients
    assert soup.score == worth(ingredients) >= max(worth(frozenset(alias)) for alias in points)
    assert len(soup.tastings) == 2 * len(points) - 1


@pytest.mark.parametrize("found", [math.nan, math.inf, None, "0.5", True])
def test_a_score_must_be_a_number(found: object) -> None:
    with pytest.raises(MergingError, match="expected the score of a soup of a to be a finite number"):
        greedy_soup(template("a"), lambda recipe: found)  # type: ignore[arg-type, return-value]


def test_numpy_scores_are_numbers() -> None:
    assert greedy_soup(template("a"), lambda recipe: np.float32(0.5)).score == 0.5  # type: ignore[arg-type, return-value]


def test_the_models_must_be_there_once() -> None:
    with pytest.raises(MergingError, match="at least one model besides the base"):
        greedy_soup(template(), lambda recipe: 0.0)
    for aliases in (("a", "z"), ("a", "a")):
        with pytest.raises(MergingError, match="different models of base, a, b, found"):
            greedy_soup(template("a", "b"), lambda recipe: 0.0, aliases=aliases)


def test_noise_around_a_good_model_is_averaged_away(tmp_path: Path) -> None:
    """Planted: three noisy copies of the target and one of something else; live models are scored."""
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=31, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config)
    save(model, tmp_path / "base", "50GB")
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    goal = {key: value + 0.05 * torch.randn_like(value) for key, value in start.items()}
    for alias, centre in {"a": goal, "b": goal, "c": goal, "odd": start}.items():
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.copy_(centre[key] + 0.02 * torch.randn_like(parameter))
        save(model, tmp_path / alias, "50GB")
    sources = Sources.load(tmp_path / "base", {alias: tmp_path / alias for alias in ("a", "odd", "b", "c")})
    live = load_model(tmp_path / "base")
    engine = Materializer(sources, live)

    def score(recipe: Recipe) -> float:
        engine.apply(recipe)
        parts = [(value - goal[key]).square().sum() for key, value in live.named_parameters()]
        return -float(torch.stack(parts).sum())

    soup = greedy_soup(sources, score)
    assert set(soup.members) == {"a", "b", "c"}
    best = max(each.score for each in soup.tastings if len(each.members) == 1)
    assert soup.score == pytest.approx(best / 3, rel=0.1)  # the variance of a mean of three
