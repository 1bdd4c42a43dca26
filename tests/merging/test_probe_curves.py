"""λ curves, barriers and redundancy against what can be worked out on paper."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from families import Family
from torch import Tensor, nn

from merging.diagnose.curves import Barrier, LambdaCurve, Redundancy, lambda_curve, loss_barrier, redundancy
from merging.materialize import Materializer, load_model
from merging.recipe import MergingError
from merging.sources import Sources

Families = Callable[..., Family]


@pytest.fixture(scope="module")
def live(families: Families) -> Materializer:
    family = families("llama")
    sources = Sources.load(family.base, {"a": family.a, "b": family.b})
    return Materializer(sources, load_model(family.base), compile="never")


def flat(live: Materializer, alias: str) -> Tensor:
    """Every weight of a model, float64."""
    return torch.cat([live.sources.tensor(alias, name).reshape(-1).double() for name in live.tensors])


def now(live: Materializer) -> Tensor:
    return torch.cat([tensor.reshape(-1).double() for tensor in live.tensors.values()])


def test_a_linear_score_has_a_straight_curve(live: Materializer) -> None:
    base, a, b = (flat(live, alias) for alias in ("base", "a", "b"))
    direction = torch.randn(len(base), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    told: list[tuple[int, int, str]] = []

    def score(model: nn.Module) -> float:
        assert model is live.model
        return float(direction @ now(live))

    curve = lambda_curve(live, score, lambdas=(1.5, -0.5, 0.25), on_point=lambda *each: told.append(each))
    assert curve.lambdas == (-0.5, 0.25, 1.5) and curve.aliases == ("a", "b")
    expected = [float(direction @ (base + value * (a + b - 2 * base))) for value in curve.lambdas]
    assert curve.scores == pytest.approx(expected, abs=1e-4)
    assert curve.best == curve.lambdas[expected.index(max(expected))]
    assert [each[:2] for each in told] == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(now(live), base), "the model is not left as the base"
    one = lambda_curve(live, score, ["b"], lambdas=(1.0,))
    assert one.scores == pytest.approx([float(direction @ b)], abs=1e-4)


def test_barriers_of_a_concave_and_a_convex_loss(live: Materializer) -> None:
    a, b, base = flat(live, "a"), flat(live, "b"), flat(live, "base")
    apart = float((a - b).square().sum())
    # −‖θ‖² lies above its chord by α(1 − α)‖θa − θb‖², most at the middle; ‖θ‖² lies below it everywhere.
    above = loss_barrier(live, lambda _: -float(now(live).square().sum()), "a", "b", points=5)
    assert above.alphas == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert above.height == pytest.approx(apart / 4, rel=1e-4) and above.at == 0.5
    assert above.excess == pytest.approx([apart * x * (1 - x) for x in above.alphas], rel=1e-4, abs=1e-9)
    below = loss_barrier(live, lambda _: float(now(live).square().sum()), "a", "b", points=3)
    assert below.height == 0.0 and min(below.excess) < 0.0
    from_base = loss_barrier(live, lambda _: float((now(live) - base).norm()), "base", "b", points=3)
    whole = float((b - base).norm())
    assert from_base.losses == pytest.approx([0.0, whole / 2, whole], rel=1e-5, abs=1e-9)
    assert torch.equal(now(live), base)


def test_dropping_keeps_what_is_expected(live: Materializer) -> None:
    base, a = flat(live, "base"), flat(live, "a")
    tau = a - base

    def projection(_: nn.Module) -> float:
        return float((now(live) - base) @ tau / (tau @ tau))

    def magnitude(drop: float) -> float:
        """What the largest of every tensor hold of ‖τ‖²."""
        kept = 0.0
        for name in live.tensors:
            own = (live.sources.tensor("a", name).double() - live.sources.tensor("base", name).double()).reshape(-1)
            kept += float(own.square().sort(descending=True).values[: round((1 - drop) * len(own))].sum())
        return kept / float(tau @ tau)

    found = redundancy(live, projection, "a", drops=(0.5, 0.9), seeds=3)
    assert (found.base, found.own) == pytest.approx((0.0, 1.0), abs=1e-6)
    assert [len(row) for row in found.scores["dare"]] == [3, 3] and [len(row) for row in found.scores["magnitude"]] == [
        1,
        1,
    ]
    # Kept with probability 1 − p: the projection's mean is 1 with the rest rescaled and 1 − p without; of n
    # independent elements its standard deviation is about √(3p/((1 − p)n)), the normal's fourth moment being 3.
    for drop, dare, alone in zip((0.5, 0.9), found.scores["dare"], found.scores["drop"], strict=True):
        deviation = math.sqrt(3 * drop / (1 - drop) / len(tau))
        assert all(abs(each - 1.0) < 6 * deviation for each in dare)
        assert len(set(dare)) == 3, "the seeds draw the same mask"
        # The same masks, without the factor 1/(1 − p).
        assert [each * (1 - drop) for each in dare] == pytest.approx(list(alone), rel=1e-4)
    assert found.means("magnitude") == pytest.approx([magnitude(0.5), magnitude(0.9)], rel=1e-4)
    assert found.gains("drop") == pytest.approx(found.ratios("drop"), abs=1e-5)


def test_what_is_tolerated_ends_at_the_first_drop_that_fails() -> None:
    rows = ((0.99,), (0.985,), (0.90,), (0.995,))
    found = Redundancy("a", 0.5, 1.0, (0.1, 0.3, 0.5, 0.7), {"dare": rows})
    assert found.tolerated() == 0.3, "a lucky drop beyond the first that fails counts"
    assert found.tolerated(of="gain") == 0.1, "against what was learned, 0.985 is (0.985 − 0.5)/0.5 = 0.97"
    assert found.spreads("dare") == (0.0,) * 4
    below = Redundancy("a", -3.0, -2.0, (0.1,), {"dare": ((-2.0, -2.0),)})
    assert math.isnan(below.ratios("dare")[0]) and below.tolerated() == 0.0
    assert below.gains("dare") == (1.0,) and below.tolerated(of="gain") == 0.1


def test_what_is_not_finite_is_a_finding(live: Materializer) -> None:
    asked = []

    def loss(_: nn.Module) -> float:
        asked.append(1)
        return math.inf if len(asked) == 2 else 1.0

    barrier = loss_barrier(live, loss, "a", "b", points=3)
    assert math.isnan(barrier.losses[1]) and barrier.height == math.inf and barrier.at == 0.5
    assert json.loads(json.dumps(barrier.as_data(), allow_nan=False))["barrier"] is None
    ends = Barrier("a", "b", (0.0, 0.5, 1.0), (math.nan, 1.0, 1.0))
    assert math.isnan(ends.height)
    broken = Redundancy("a", 0.0, 1.0, (0.5, 0.9), {"drop": ((0.9, 0.7), (math.nan, 0.5))})
    assert broken.spreads("drop") == pytest.approx((0.2 / math.sqrt(2.0), math.nan), nan_ok=True)
    assert math.isnan(broken.means("drop")[1]) and broken.tolerated("drop") == 0.0
    # Weights beyond float32 are never asked.
    huge = lambda_curve(live, lambda _: pytest.fail("asked"), lambdas=(1e42,))
    assert math.isnan(huge.scores[0]) and huge.best is None


def test_they_survive_json(live: Materializer) -> None:
    curve = LambdaCurve(("a", "odd | name"), (0.5, 1.0), (0.25, 0.75))
    barrier = Barrier("a", "b", (0.0, 0.5, 1.0), (1.0, 3.0, 2.0))
    dropped = Redundancy("a", 0.1, 0.9, (0.5,), {"dare": ((0.8, 0.7),), "magnitude": ((0.9,),)})
    for one in (curve, barrier, dropped):
        assert type(one).from_data(json.loads(json.dumps(one.as_data(), allow_nan=False))) == one


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda live: lambda_curve(live, lambda _: 0.0, ["nobody"]), "nobody"),
        (lambda live: lambda_curve(live, lambda _: 0.0, lambdas=()), "at least one λ"),
        (lambda live: lambda_curve(live, lambda _: "good"), "to be a number, found 'good'"),
        (lambda live: lambda_curve(live, lambda _: True), "to be a number, found True"),
        (lambda live: loss_barrier(live, lambda _: 0.0, "a", "a"), "twice"),
        (lambda live: loss_barrier(live, lambda _: 0.0, "a", "b", points=2), "at least 3 points"),
        (lambda live: loss_barrier(live, lambda _: 0.0, "a", "c"), "found a, c"),
        (lambda live: redundancy(live, lambda _: 0.0, "a", drops=(1.0,)), "up to 1"),
        (lambda live: redundancy(live, lambda _: 0.0, "a", seeds=0), "0"),
        (lambda live: redundancy(live, lambda _: 0.0, "base"), "found base"),
        (lambda live: redundancy(live, lambda _: 0.0, "a", variants=("half",)), "half"),
    ],
)
def test_mistakes_are_explained(live: Materializer, wrong: Callable[[Materializer], object], says: str) -> None:
    with pytest.raises(MergingError, match=says):
        wrong(live)
    assert torch.equal(now(live), flat(live, "base"))


def test_a_live_model_in_another_dtype(families: Families) -> None:
    family = families("llama")
    sources = Sources.load(family.base, {"a": family.a})
    live = Materializer(sources, load_model(family.base, dtype="bfloat16"), compile="never")
    wanted = torch.cat([sources.tensor("a", name).bfloat16().reshape(-1) for name in live.tensors])
    kept: list[Tensor] = []
    lambda_curve(live, lambda _: kept.append(now(live)) or 0.0, lambdas=(1.0,))
    assert torch.equal(kept[0], wanted.double())
