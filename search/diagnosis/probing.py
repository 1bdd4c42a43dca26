"""What data say: curves over merges of a live model, as :mod:`merging.diagnose` draws them, and what each skill scored.

A curve that was broken off leaves those before it: nothing is lost by Ctrl-C but the curve that was being drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from search.diagnosis.scoring import Scorer, score_of
from search.errors import SearchError
from search.positions import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from merging import Materializer
    from merging.diagnose.curves import Barrier, LambdaCurve, Redundancy
    from merging.diagnose.probes import ActivationCheck

CURVES = ("lambda", "barrier", "redundancy", "activations")
"""What can be drawn with data."""

USUAL = ("lambda", "barrier", "redundancy")
"""What is drawn where data are given and nobody says what."""

Told = Callable[[str, int, int, str], None]
"""Told (curve, merges that are scored, merges in all, what was scored last)."""


@dataclass(frozen=True)
class Curves:
    """What data said.

    Attributes:
        says: what a score is.
        loss_says: what a loss is, in a few words.
        lambdas: of all experts together; of the expert alone where there is one.
        skills: [lambda curves] skill -> [λ] its score; nan where a merge gave no usable output.
        barriers: from the base to every expert, and between every two experts.
        redundancies: of every expert.
        activations: of the experts' mean.
        own: expert -> the skills that spoke for it.
        seconds: that all took.
        broken_off: whether curves that were asked for are missing, since the user stopped.
    """

    says: str = ""
    loss_says: str = ""
    lambdas: tuple[LambdaCurve, ...] = ()
    skills: tuple[dict[str, tuple[float, ...]], ...] = ()
    barriers: tuple[Barrier, ...] = ()
    redundancies: tuple[Redundancy, ...] = ()
    activations: ActivationCheck | None = None
    own: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: float = 0.0
    broken_off: bool = False

    def as_data(self) -> dict[str, Any]:
        """Plain data; null where a number is not finite."""
        from merging.diagnose.candidates import plain

        return {
            "score": self.says,
            "loss": self.loss_says,
            "own": {alias: list(skills) for alias, skills in self.own.items()},
            "lambda": [
                {**curve.as_data(), "skills": {name: list(map(plain, values)) for name, values in skills.items()}}
                for curve, skills in zip(self.lambdas, self.skills, strict=True)
            ],
            "barrier": [each.as_data() for each in self.barriers],
            "redundancy": [each.as_data() for each in self.redundancies],
            "activations": None if self.activations is None else self.activations.as_data(),
            "seconds": self.seconds,
            "broken_off": self.broken_off,
        }


def parse_curves(text: str | None) -> tuple[str, ...]:
    """The curves that ``--curves`` names, in the order in which they are drawn.

    Raises:
        SearchError: there is none of that name.
    """
    if text is None:
        return USUAL
    words = [each.strip() for each in text.split(",") if each.strip()]
    if words == ["all"]:
        return CURVES
    for each in words:
        if each not in CURVES:
            raise SearchError(
                f"--curves {text}: expected {', '.join(CURVES)} with commas between them, or all; found "
                f"{each!r}.{did_you_mean(each, (*CURVES, 'all'))}"
            )
    if not words:
        raise SearchError(f"--curves: expected {', '.join(CURVES)} with commas between them, or all; found nothing")
    return tuple(each for each in CURVES if each in words)


def draw(
    materializer: Materializer,
    scorer: Scorer,
    wanted: Sequence[str],
    *,
    points: int = 11,
    seeds: int = 3,
    told: Told = lambda curve, done, total, what: None,
) -> Iterator[Curves]:
    """Draw one curve after the other; after each, all that there is so far.

    Args:
        materializer: with its live model, which is the base again afterwards.
        scorer: asks it.
        wanted: of :data:`CURVES`.
        points: of every loss barrier.
        seeds: of every random drop.
        told: of progress.

    Raises:
        MergingError: the models or the scores do not allow it.
    """
    from merging.diagnose.curves import loss_barrier, redundancy
    from merging.diagnose.probes import check_activations

    base, experts = materializer.sources.base, _experts(materializer)
    found = Curves(scorer.says, scorer.loss_says, own={alias: scorer.of([alias]) for alias in experts})
    start = time.perf_counter()

    def so_far(**more: Any) -> Curves:
        nonlocal found
        found = replace(found, **more, seconds=time.perf_counter() - start)
        return found

    total, before = count_points(wanted, len(experts), points, seeds), 0

    def progress(name: str) -> Callable[[int, int, str], None]:
        def at(done: int, of: int, what: str) -> None:
            nonlocal before
            before += 1
            told(name, before, total, what)

        return at

    if "lambda" in wanted:
        curve, skills = _lambda(materializer, scorer, progress("λ"))
        yield so_far(lambdas=(curve,), skills=(skills,))
    for first, second in (
        [*((base, each) for each in experts), *combinations(experts, 2)] if "barrier" in wanted else []
    ):
        ask = _loss(scorer, scorer.of([each for each in (first, second) if each != base]))
        told_of = progress(f"barrier {first} – {second}")
        drawn = loss_barrier(materializer, ask, first, second, points=points, on_point=told_of)
        yield so_far(barriers=(*found.barriers, drawn))
    for alias in experts if "redundancy" in wanted else ():
        ask = _score(scorer, scorer.of([alias]))
        dropped = redundancy(materializer, ask, alias, seeds=seeds, on_point=progress(f"redundancy {alias}"))
        yield so_far(redundancies=(*found.redundancies, dropped))
    if "activations" in wanted:
        check = check_activations(
            materializer, lambda model: scorer.ask(scorer.skills), on_point=progress("activations")
        )
        yield so_far(activations=check)


def count_points(wanted: Sequence[str], experts: int, points: int = 11, seeds: int = 3) -> int:
    """How many merges are scored for these curves."""
    from merging.diagnose.curves import DROPS, LAMBDAS

    pairs = experts * (experts - 1) // 2
    return (
        ("lambda" in wanted) * (1 + len(LAMBDAS))
        + ("barrier" in wanted) * (experts + pairs) * points
        + ("redundancy" in wanted) * experts * (2 + len(DROPS) * (2 * seeds + 1))
        + ("activations" in wanted) * (experts + 2)
    )


def _experts(materializer: Materializer) -> tuple[str, ...]:
    sources = materializer.sources
    return tuple(alias for alias in sources.checkpoints if alias != sources.base)


def _lambda(
    materializer: Materializer, scorer: Scorer, progress: Callable[[int, int, str], None]
) -> tuple[LambdaCurve, dict[str, tuple[float, ...]]]:
    """The curve, and what each skill scored along it: the scores are of the same merges, asked once."""
    from merging.diagnose.curves import LAMBDAS, lambda_curve

    latest: list[dict[str, float]] = []
    rows: list[dict[str, float]] = []

    def ask(model: nn.Module) -> float:
        latest.append(scorer.ask(scorer.skills))
        return score_of(latest[-1])

    def on_point(done: int, total: int, what: str) -> None:
        # a merge that is not finite is not asked
        rows.append(latest.pop() if latest else {})
        progress(done, total, what)

    curve = lambda_curve(materializer, ask, lambdas=(0.0, *LAMBDAS), on_point=on_point)
    nan = float("nan")
    return curve, {skill: tuple(each.get(skill, nan) for each in rows) for skill in scorer.skills}


def _score(scorer: Scorer, skills: Sequence[str]) -> Callable[[nn.Module], float]:
    return lambda model: score_of(scorer.ask(skills))


def _loss(scorer: Scorer, skills: Sequence[str]) -> Callable[[nn.Module], float]:
    return lambda model: scorer.loss(scorer.ask(skills))
