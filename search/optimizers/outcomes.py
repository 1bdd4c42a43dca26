"""What optimizers read from an outcome, and where their random numbers come from: shared by all of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from search.optimizers.contract import Genome, OptimizerError, Outcome, Settings

Array = npt.NDArray[np.float64]


def utilities(outcome: Outcome, objectives: int) -> Array | None:
    """Utilities of an outcome as an array.

    Args:
        outcome: of any state.
        objectives: how many utilities it should have.

    Returns:
        [objectives] finite; None when there are none to compare: it failed, or a number in it is not finite.

    Raises:
        OptimizerError: another number of utilities than objectives.
    """
    if outcome.state == "failed" or not outcome.utilities:
        return None
    if len(outcome.utilities) != objectives:
        raise OptimizerError(
            f"expected {objectives} utilities, as many as the run has objectives, found {len(outcome.utilities)}: "
            f"{outcome.utilities}"
        )
    values = np.asarray(outcome.utilities, dtype=np.float64)
    return values if np.isfinite(values).all() else None


def violation(outcome: Outcome) -> float:
    """Total constraint violation, >= 0; 0 is feasible. A constraint that is NaN is broken without end."""
    total = float(sum(max(0.0, each) if each == each else np.inf for each in outcome.violations))
    return total if total == total else np.inf


def generator(seed: int, *path: int) -> np.random.Generator:
    """A generator of one's own, decided by a seed and a path of integers (a trial's id, a restart's number)."""
    return np.random.default_rng([abs(part) * 2 + (part < 0) for part in (seed, *path)])


def first_choices(settings: Settings, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """[m] choices of a point drawn before anything was learnt: each the center's with the probability that the settings
    say, any other one alike; uniform where they say nothing."""
    counts = np.asarray(settings.box.categories, dtype=np.int64)
    if settings.sure is None or settings.center is None:
        return random.integers(0, counts)
    moved = (random.random(len(counts)) >= settings.sure) & (counts > 1)
    shift = 1 + random.integers(0, np.maximum(1, counts - 1))
    own = np.asarray(settings.center.categories, dtype=np.int64)
    return np.where(moved, (own + shift) % np.maximum(1, counts), own)


def genome(values: Array, categories: npt.NDArray[np.int64]) -> Genome:
    """A genome of plain Python numbers, values [n] clipped to [0, 1]."""
    return Genome(tuple(np.clip(values, 0.0, 1.0).tolist()), tuple(int(choice) for choice in categories))
