"""Dominance with constraints, hypervolume, and picking one point of a front.

Everything speaks of *utilities*: larger is better in every objective, whatever the metrics' directions were. moocore
(López-Ibáñez et al.) does the geometry; this module adds feasibility, one objective, empty sets and deterministic ties.

Sources: constrained dominance: Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", IEEE TEC
6(2), 2002, §VI. Hypervolume: Zitzler & Thiele, PPSN 1998. Augmented Tchebycheff: Steuer & Choo, Math. Programming 26,
1983.
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
import numpy.typing as npt

from search.errors import SearchError

Array = npt.NDArray[np.float64]

AUGMENTATION = 0.05
"""Weight of the sum in the augmented Tchebycheff function: it decides between points with an equal worst objective, so
that a weakly dominated one is never preferred."""


class ParetoError(SearchError):
    """Utilities from which no front can be told: one paragraph, shown without a traceback."""


def nondominated(utilities: npt.ArrayLike, violations: npt.ArrayLike | None = None) -> npt.NDArray[np.bool_]:
    """Which points form the front.

    Args:
        utilities: [n, k] finite, larger is better.
        violations: [n] total constraint violation, > 0 where a constraint is broken; None when there are none.

    Returns:
        [n] True for feasible points that no feasible point dominates. Equal points stand or fall together. All False
        when nothing is feasible.

    Raises:
        ParetoError: a NaN or infinite utility, or shapes that do not fit.
    """
    points = _points(utilities)
    front = np.zeros(len(points), dtype=np.bool_)
    feasible = np.flatnonzero(_violations(violations, len(points)) <= 0.0)
    if len(feasible):
        front[feasible] = moocore.is_nondominated(points[feasible], maximise=True, keep_weakly=True)
    return front


def ranks(utilities: npt.ArrayLike, violations: npt.ArrayLike | None = None) -> npt.NDArray[np.int64]:
    """Non-domination ranks, feasibility first.

    Args:
        utilities: [n, k] finite, larger is better.
        violations: [n] as in :func:`nondominated`.

    Returns:
        [n] from 0, the front. Feasible points come first, sorted by dominance; then the infeasible ones by how much
        they violate, equal violations by dominance.
    """
    points = _points(utilities)
    broken = np.maximum(_violations(violations, len(points)), 0.0)
    found = np.zeros(len(points), dtype=np.int64)
    first = 0
    for level in np.unique(broken):
        here = np.flatnonzero(broken == level)
        found[here] = first + np.asarray(moocore.pareto_rank(points[here], maximise=True), dtype=np.int64)
        first = int(found[here].max()) + 1
    return found


def hypervolume(utilities: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Volume that the points dominate beyond a reference point.

    Args:
        utilities: [n, k] finite, larger is better; n = 0 has volume 0.
        reference: [k] the corner that volume is measured from. A point that is not better than it in every objective
            adds nothing.

    Returns:
        Volume >= 0, in the product of the objectives' units.
    """
    points, corner = _points(utilities), _vector(reference)
    if not len(points):
        return 0.0
    _same_width(points, corner)
    return float(moocore.hypervolume(points, ref=corner, maximise=True))


def contributions(utilities: npt.ArrayLike, reference: npt.ArrayLike) -> Array:
    """What the hypervolume would lose without each point.

    Args:
        utilities: [n, k] finite, larger is better.
        reference: [k] as in :func:`hypervolume`.

    Returns:
        [n] >= 0. Dominated points and points that another one equals contribute nothing.
    """
    points, corner = _points(utilities), _vector(reference)
    if not len(points):
        return np.zeros(0)
    _same_width(points, corner)
    if points.shape[1] == 1:  # moocore starts at two objectives
        return _contributions_on_a_line(points[:, 0], float(corner[0]))
    return np.asarray(moocore.hv_contributions(points, ref=corner, maximise=True), dtype=np.float64)


def tchebycheff(
    utilities: npt.ArrayLike, ideal: npt.ArrayLike, nadir: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> Array:
    """Augmented Tchebycheff distance to the ideal point, on utilities scaled so that the nadir is 0 and the ideal 1.

    ``max_j w_j d_j + AUGMENTATION * sum_j w_j d_j`` with ``d_j = (ideal_j - u_j) / (ideal_j - nadir_j)`` and weights
    that sum to k. Unlike a weighted sum it reaches every point of a front, also where the front is not convex.

    Args:
        utilities: [n, k] finite, larger is better. They may lie beyond the ideal or below the nadir.
        ideal: [k] the best of each objective (an expert's own score, say).
        nadir: [k] the level counted as nothing (the base's score, say). Where it equals the ideal, the objective
            cannot be scaled and its plain difference to the ideal is taken.
        weights: [k] >= 0, relative importance; equal if None.

    Returns:
        [n] smaller is better.

    Raises:
        ParetoError: an ideal below the nadir, negative weights or weights that are all zero.
    """
    points, best, worst = _points(utilities), _vector(ideal), _vector(nadir)
    _same_width(points, best)
    _same_width(points, worst)
    if np.any(best < worst):
        raise ParetoError(
            f"expected every objective's ideal to be at least its nadir, found ideal {best.tolist()} and nadir "
            f"{worst.tolist()}; take scales in which 'better' has room above 'nothing gained'"
        )
    distances = (best - points) / np.where(best > worst, best - worst, 1.0) * _weights(weights, points.shape[1])
    return np.asarray(distances.max(axis=1) + AUGMENTATION * distances.sum(axis=1))


def knee(
    utilities: npt.ArrayLike,
    ids: Sequence[int],
    *,
    ideal: npt.ArrayLike | None = None,
    nadir: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
) -> int | None:
    """The point that is closest to the ideal in every objective at once: smallest :func:`tchebycheff` distance.

    Args:
        utilities: [n, k] of the feasible points to choose from.
        ids: [n] their ids; the smallest id wins a tie.
        ideal: [k] scale of each objective, see :func:`tchebycheff`; the best found in the points' front if None.
        nadir: [k] likewise; the worst found in the points' front if None.
        weights: [k] relative importance; equal if None. Another mix of objectives is another knee.

    Returns:
        Its id; None when there are no points.
    """
    points = _points(utilities)
    if not _some(points, ids):
        return None
    best, worst = _scale(points, ideal, nadir)
    return _smallest(tchebycheff(points, best, worst, weights)[:, None], ids)


def max_min(
    utilities: npt.ArrayLike,
    ids: Sequence[int],
    *,
    ideal: npt.ArrayLike | None = None,
    nadir: npt.ArrayLike | None = None,
) -> int | None:
    """The point whose worst scaled objective is best (then its second worst, and so on).

    Args:
        utilities: [n, k] of the feasible points to choose from.
        ids: [n] their ids; the smallest id wins a tie.
        ideal: [k] scale as in :func:`knee`.
        nadir: [k] scale as in :func:`knee`.

    Returns:
        Its id; None when there are no points.
    """
    points = _points(utilities)
    if not _some(points, ids):
        return None
    best, worst = _scale(points, ideal, nadir)
    scaled = (points - worst) / np.where(best > worst, best - worst, 1.0)
    return _smallest(-np.sort(scaled, axis=1), ids)


def _contributions_on_a_line(values: Array, corner: float) -> Array:
    found = np.zeros(len(values))
    order = np.argsort(-values, kind="stable")
    best = int(order[0])
    second = float(values[order[1]]) if len(values) > 1 else corner
    found[best] = max(0.0, float(values[best]) - max(second, corner))
    return found


def _smallest(keys: Array, ids: Sequence[int]) -> int:
    """Id of the lexicographically smallest row of keys [n, j]; the smallest id among equal rows."""
    return min(zip(keys.tolist(), ids, strict=True))[1]


def _scale(points: Array, ideal: npt.ArrayLike | None, nadir: npt.ArrayLike | None) -> tuple[Array, Array]:
    front = points[nondominated(points)]
    best = front.max(axis=0) if ideal is None else _vector(ideal)
    worst = front.min(axis=0) if nadir is None else _vector(nadir)
    _same_width(points, best)
    _same_width(points, worst)
    return best, worst


def _some(points: Array, ids: Sequence[int]) -> bool:
    if len(points) != len(ids):
        raise ParetoError(f"expected one id per point, found {len(points)} points and {len(ids)} ids")
    return len(points) > 0


def _points(utilities: npt.ArrayLike) -> Array:
    points = np.asarray(utilities, dtype=np.float64)
    if points.size == 0:
        return points.reshape(0, points.shape[1] if points.ndim == 2 else 0)
    if points.ndim != 2:
        raise ParetoError(f"expected utilities as [points, objectives], found an array of shape {points.shape}")
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise ParetoError(
            f"expected finite utilities, found {points[row].tolist()} in row {row}; a candidate without a number in "
            "every objective has failed and cannot be compared"
        )
    return points


def _vector(values: npt.ArrayLike) -> Array:
    vector = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise ParetoError(f"expected one finite number per objective, found {vector.tolist()}")
    return vector


def _violations(violations: npt.ArrayLike | None, count: int) -> Array:
    if violations is None:
        return np.zeros(count)
    found = np.asarray(violations, dtype=np.float64)
    if found.shape != (count,) or np.isnan(found).any():
        raise ParetoError(
            f"expected one violation per point ({count}) and no NaN, found shape {found.shape}; sum several constraints"
        )
    return found


def _weights(weights: npt.ArrayLike | None, objectives: int) -> Array:
    if weights is None:
        return np.ones(objectives)
    found = _vector(weights)
    if found.shape != (objectives,) or (found < 0).any() or found.sum() <= 0:
        raise ParetoError(
            f"expected {objectives} weights >= 0 that are not all 0, found {found.tolist()}; one per objective"
        )
    return np.asarray(found * (objectives / found.sum()))


def _same_width(points: Array, vector: Array) -> None:
    if points.shape[1] != len(vector):
        raise ParetoError(
            f"expected as many numbers as objectives ({points.shape[1]}), found {len(vector)}: {vector.tolist()}"
        )
