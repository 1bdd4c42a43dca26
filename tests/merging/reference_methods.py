"""The reference's sums, arcs and element-wise selections; see :mod:`reference`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from reference_pipeline import Array, Case, Merged, Refused, add, close_vote, descending, mask_of

# Sums.


def linear(case: Case) -> Merged:
    coefficients = case.column("coefficient")
    divisor = sum(coefficients) if case["normalize"] else 1.0
    if abs(divisor) < 1e-8:
        raise Refused("the coefficients sum to 0")
    terms = [c * x / divisor for c, x in zip(coefficients, case.sources, strict=True)]
    return Merged(add(case, terms), case.nowhere(), add(case, [np.abs(term) for term in terms]))


def task_arithmetic(case: Case) -> Merged:
    coefficients = case.column("coefficient")
    divisor = sum(coefficients) if case["normalize"] and coefficients else 1.0
    if abs(divisor) < 1e-8:
        raise Refused("the coefficients sum to 0")
    terms = [float(case["scale"]) * c * d / divisor for c, d in zip(coefficients, case.deltas, strict=True)]
    size = np.abs(case.base) + add(case, [np.abs(term) for term in terms])
    return Merged(case.base + add(case, terms), case.nowhere(), size)


def passthrough(case: Case) -> Merged:
    value = float(case["scale"]) * case.sources[0]
    return Merged(value, case.nowhere(), np.abs(value))


# Arcs.


def ends(case: Case) -> tuple[Array, Sequence[Array]]:
    """Where the vectors start, and the vectors."""
    if case["on"] == "task_vectors":
        return case.base, case.deltas
    return np.zeros(case.base.shape), case.sources


def arc(a: Array, b: Array, t: float, straight: Callable[[float], bool], smallest: float) -> tuple[Array, Array, bool]:
    """Along the arc from a to b by the angle between the raw vectors; its magnitude; whether they are antipodal."""
    norms = max(float(np.linalg.norm(a)), smallest), max(float(np.linalg.norm(b)), smallest)
    cosine = float(np.clip(np.sum((a / norms[0]) * (b / norms[1])), -1.0, 1.0))
    first, second = 1 - t, t
    if not straight(cosine):
        omega = math.acos(cosine)
        first, second = (math.sin(part * omega) / math.sin(omega) for part in (1 - t, t))
    value, size = first * a + second * b, (1 + abs(first)) * np.abs(a) + (1 + abs(second)) * np.abs(b)
    return value, size * (1 + abs(t)), bool(cosine < 0 and 1 - cosine**2 < 1e-10 and a.size > 1)


def position(case: Case) -> float:
    a, b = case.column("coefficient")
    return 0.5 if abs(a + b) < 1e-6 else b / (a + b)


def slerp(case: Case) -> Merged:
    t, (origin, (a, b)) = position(case), ends(case)
    short = min(np.linalg.norm(a), np.linalg.norm(b)) <= 1e-8
    value, size, _ = arc(a, b, t, lambda cosine: bool(short or abs(cosine) > 0.9995), 1e-300)
    return Merged(origin + value, case.nowhere(), np.abs(origin) + size)


def nuslerp(case: Case) -> Merged:
    t, (origin, (a, b)) = position(case), ends(case)

    def straight(cosine: float) -> bool:
        return 1 - cosine * cosine <= 1e-12

    if case["flatten"] or a.ndim < 2:
        value, size, antipodal = arc(a, b, t, straight, 1e-7)
        return Merged(origin + value, case.nowhere() | antipodal, np.abs(origin) + size)
    axis = 0 if case["row_wise"] else -1
    value, size, doubtful = np.empty(a.shape), np.empty(a.shape), case.nowhere()
    turned = [np.moveaxis(each, axis, -1) for each in (a, b, value, size, doubtful)]
    for index in np.ndindex(turned[0].shape[:-1]):
        turned[2][index], turned[3][index], turned[4][index] = arc(
            turned[0][index], turned[1][index], t, straight, 1e-7
        )
    return Merged(origin + value, doubtful, np.abs(origin) + size)


def multislerp(case: Case) -> Merged:
    coefficients, (origin, vectors) = case.column("coefficient"), ends(case)
    if len(vectors) == 1:
        return Merged(case.sources[0].copy(), case.nowhere(), np.abs(case.base) + np.abs(case.sources[0]))
    if case["normalize"]:
        if abs(sum(coefficients)) < 1e-8:
            raise Refused("the coefficients sum to 0")
        coefficients = [c / sum(coefficients) for c in coefficients]
    eps = float(case["eps"])
    norms = [float(np.linalg.norm(vector)) for vector in vectors]
    units = [vector / (norm + eps) for vector, norm in zip(vectors, norms, strict=True)]
    mean = add(case, [c * u for c, u in zip(coefficients, units, strict=True)])
    length = float(np.linalg.norm(mean))
    if length < eps:
        if len(vectors) > 2 and max(norms) > 0:  # nothing but zeros has no direction to lose
            raise Refused("the unit vectors cancel")
        value = add(case, [c * v for c, v in zip(coefficients, vectors, strict=True)])
    else:
        mean = mean / length
        tangent = add(case, [c * (u - np.sum(u * mean) * mean) for c, u in zip(coefficients, units, strict=True)])
        angle = float(np.linalg.norm(tangent)) + eps
        value = mean * math.cos(angle) + tangent * (math.sin(angle) / angle)
        value = value * sum(c * norm for c, norm in zip(coefficients, norms, strict=True))
    size = np.abs(case.base) + np.abs(value)
    loss = sum(abs(c) * norm for c, norm in zip(coefficients, norms, strict=True)) / max(length, eps)
    unclear = length < 1e-5 and max(norms) > 0
    return Merged(origin + value, case.nowhere() | unclear, size + loss * sum(np.abs(u) for u in units))


def karcher(case: Case) -> Merged:
    coefficients, tolerance = case.column("coefficient"), float(case["tol"])
    if abs(sum(coefficients)) < 1e-8:
        raise Refused("the coefficients sum to 0")
    shares = [c / sum(coefficients) for c in coefficients]
    norms = [float(np.linalg.norm(x)) for x in case.sources]
    kept = [t for t, norm in enumerate(norms) if norm > tolerance]
    if not kept:
        return Merged(np.zeros(case.base.shape), case.nowhere(), add(case, [np.abs(x) for x in case.sources]))
    total = sum(shares[t] for t in kept)
    if abs(total) < 1e-8:
        raise Refused("the coefficients of the tensors that are not zero sum to 0")
    units = [case.sources[t] / norms[t] for t in kept]
    weights = [shares[t] / total for t in kept]
    mean = add(case, [w * u for w, u in zip(weights, units, strict=True)])
    length = float(np.linalg.norm(mean))
    mean, unclear = (units[0] if length < tolerance else mean / length), length < 1e-3
    for _ in range(int(case["max_iter"])):
        tangent = np.zeros(case.base.shape)
        for weight, unit in zip(weights, units, strict=True):
            cosine = float(np.clip(np.sum(unit * mean), -1.0, 1.0))
            angle = math.acos(cosine)
            unclear |= cosine < -1 + 1e-6
            if angle >= tolerance:
                tangent += weight * angle / math.sin(angle) * (unit - cosine * mean)
        step = float(np.linalg.norm(tangent))
        if step < tolerance:
            break
        mean = math.cos(step) * mean + math.sin(step) * tangent / step
        mean /= np.linalg.norm(mean)
    scale = sum(share * norm for share, norm in zip(shares, norms, strict=True))
    size = sum(abs(w) for w in weights) * abs(scale) * sum(np.abs(u) for u in units)
    return Merged(mean * scale, case.nowhere() | unclear, size + np.abs(mean * scale))


def model_stock(case: Case) -> Merged:
    n = len(case.sources)
    if n < 2:
        raise Refused("needs two sources")
    rows = case["row_wise"] and case.base.ndim > 1
    shape = (-1, case.base.shape[-1]) if rows else (1, -1)
    deltas = [delta.reshape(shape) for delta in case.deltas]
    cosines = []
    for i in range(n):
        for j in range(i + 1, n):
            norms = np.linalg.norm(deltas[i], axis=1) * np.linalg.norm(deltas[j], axis=1)
            cosines.append(np.clip(np.sum(deltas[i] * deltas[j], axis=1) / np.maximum(norms, 1e-6), -1.0, 1.0))
    cosine = np.mean(cosines, axis=0)
    below = 1 + (n - 1) * cosine
    if case.mergekit:
        t = np.where(np.abs(below) < 1e-6, 0.0, n * cosine / np.where(below == 0, 1.0, below))
    else:
        t = np.where(cosine <= 0, 0.0, np.clip(n * cosine / np.where(below <= 0, 1.0, below), 0.0, 1.0))
    mean = sum(deltas) / n
    value = (t[:, None] * mean).reshape(case.base.shape)
    # Near the pole the factor magnifies what the cosine lost.
    doubtful = np.broadcast_to((np.abs(below) < 1e-3)[:, None] & (np.abs(below) > 0)[:, None], mean.shape)
    size = np.abs(case.base) + np.abs(value) + add(case, [np.abs(d) for d in case.deltas])
    return Merged(case.base + value, doubtful.reshape(case.base.shape) & bool(case.mergekit), size)


# Element-wise selections.


def magmax(case: Case) -> Merged:
    winner = np.argmax(np.abs(np.stack(case.selecting)), axis=0)
    terms = np.stack([c * d for c, d in zip(case.column("coefficient"), case.deltas, strict=True)])
    chosen = float(case["scale"]) * np.take_along_axis(terms, winner[None], axis=0)[0]
    return Merged(case.base + chosen, case.nowhere(), np.abs(case.base) + np.abs(chosen))


def sce(case: Case) -> Merged:
    density, n, count = float(case["density"]), case.base.size, len(case.sources)
    deltas = list(case.deltas)
    if density < 1:
        columns = np.stack(case.selecting).astype(np.float64).reshape(count, -1)
        # N³ times the variance, without a division: equal deltas give exactly 0, and equal spreads are exactly equal.
        variance = np.sum((count * columns - columns.sum(axis=0)) ** 2, axis=0).astype(np.float32)
        kept = int(np.count_nonzero(variance) * density) if case.mergekit else round(density * n)
        chosen = mask_of(descending(variance, case)[:kept], case.base.shape)
        deltas = [np.where(chosen, delta, 0.0) for delta in deltas]
    energy = [float(np.mean(delta**2)) for delta in deltas]
    if sum(energy) < (1e-6 if case.mergekit else 1e-300):
        shares = [1 / count] * count
    else:
        shares = [each / sum(energy) for each in energy]
    sign = np.sign(add(case, deltas))
    if case.mergekit:
        sign = np.where(sign == 0, 1.0, sign)
    agree = [(np.sign(delta) == sign) & (delta != 0) for delta in deltas]
    above = add(case, [share * mask * delta for share, mask, delta in zip(shares, agree, deltas, strict=True)])
    below = add(case, [share * mask for share, mask in zip(shares, agree, strict=True)])
    below = np.maximum(below, 1e-6) if case.mergekit else np.where(below == 0, 1.0, below)
    change = float(case["scale"]) * above / below
    return Merged(case.base + change, close_vote(case, deltas), np.abs(case.base) + np.abs(change))


def consensus_ta(case: Case) -> Merged:
    terms = [c * d for c, d in zip(case.column("coefficient"), case.deltas, strict=True)]
    merged, size = add(case, terms), add(case, [np.abs(term) for term in terms])
    surely, perhaps = np.zeros(case.base.shape), np.zeros(case.base.shape)
    count = np.zeros(case.base.shape)
    for threshold, term in zip(case.column("threshold"), terms, strict=True):
        gap = np.abs(term) - threshold * np.abs(merged - term)
        slack = 1e-6 * (np.abs(term) + threshold * size) * (len(terms) > 1 and threshold > 0)
        count += gap >= 0
        surely += gap >= slack
        perhaps += gap >= -slack
    agreement = int(case["agreement"])
    doubtful = (surely < agreement) & (perhaps >= agreement) & (merged != 0)
    change = float(case["scale"]) * merged * (count >= agreement)
    return Merged(case.base + change, doubtful, np.abs(case.base) + abs(float(case["scale"])) * size)


def pcb(case: Case) -> Merged:
    """The authors' code: clamp |τ| at two order statistics, exp × tanh, clamp below, normalise, weighted mean."""
    n, count = case.base.size, len(case.sources)
    flat = [delta.reshape(-1) for delta in case.deltas]
    low, high = int(n * float(case["clamp"])), int(n * (1 - float(case["clamp"])) - 1)
    everything = sum(flat)
    clamped, shares, doubtful = [], [], np.zeros(n, bool)
    for delta in flat:
        order = np.sort(np.abs(delta))
        size = np.minimum(np.maximum(np.abs(delta), order[low]), order[high])
        score = np.exp(count * unit_range(size) ** 2) * np.tanh(delta * everything)
        cut = int(n * (1 - float(case["density"])))
        clamped.append(np.sign(delta) * size)
        if cut >= n:
            shares.append(np.zeros(n))
            continue
        level = np.sort(score)[cut]
        shares.append(unit_range(np.maximum(score, level)))
        band = np.abs(score - level) <= 4e-6 * (np.abs(score) + np.abs(level))
        if len(np.unique(score[band])) > 1:
            doubtful |= band
    below = sum(shares)
    doubtful |= (below > 0) & (below < 1e-6)
    above = sum(c * s * d for c, s, d in zip(case.column("coefficient"), shares, clamped, strict=True))
    sized = sum(abs(c) * s * np.abs(d) for c, s, d in zip(case.column("coefficient"), shares, clamped, strict=True))
    change = (float(case["scale"]) * above / np.maximum(below, 1e-12)).reshape(case.base.shape)
    size = abs(float(case["scale"])) * sized / np.maximum(below, 1e-12)
    size = (size * (1 + 8 / np.maximum(below, 1e-6))).reshape(case.base.shape)  # shares are differences, by their range
    return Merged(case.base + change, doubtful.reshape(case.base.shape), np.abs(case.base) + size)


def unit_range(values: Array) -> Array:
    width = np.ptp(values)
    return (values - values.min()) / width if width > 0 else np.zeros(values.shape)


def arcee_fusion(case: Case) -> Merged:
    source, delta = case.sources[0].astype(np.float32), case.selecting[0]
    width = source.shape[-1] if source.ndim else 1
    p, q = (softmax(part.reshape(-1, width)) + 1e-8 for part in (source, case.base.astype(np.float32)))
    divergence = np.sum(p * np.log(p / q), axis=1, keepdims=True)
    importance = (np.abs(delta.astype(np.float64)).reshape(-1, width) * divergence).reshape(-1)
    order = np.sort(importance)
    first, middle, third = (order[int(part * (order.size - 1))] for part in (0.25, 0.5, 0.75))
    threshold = middle + float(case["spread"]) * (third - first)
    noise = 1e-6 * np.abs(delta).reshape(-1) * (width > 1)
    doubtful = np.abs(importance - threshold) <= 1e-4 * abs(threshold) + noise + noise.mean()
    value = np.where((importance >= threshold).reshape(case.base.shape), case.deltas[0], 0.0)
    if np.ptp(order) == 0 and np.ptp(delta) == 0:
        doubtful[:] = False  # equal elements have equal importances, whatever the rounding
    size = np.abs(case.base) + np.abs(case.deltas[0])
    return Merged(case.base + value, doubtful.reshape(case.base.shape) & (case.deltas[0] != 0), size)


def softmax(rows: Array) -> Array:
    powers = np.exp(rows.astype(np.float64) - rows.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def nearswap(case: Case) -> Merged:
    weight = np.clip(float(case["t"]) / np.maximum(np.abs(case.deltas[0]), 1e-6), 0.0, 1.0)
    value = weight * case.sources[0] + (1 - weight) * case.base
    return Merged(value, case.nowhere(), np.abs(case.sources[0]) + np.abs(case.base))


def ram(case: Case) -> Merged:
    return overlap(case, lambda moved, count: 1.0)


def ramplus_tl(case: Case) -> Merged:
    def factor(moved: Array, count: Array) -> float:
        shared, alone = np.count_nonzero(moved & (count > 1)), np.count_nonzero(moved & (count == 1))
        below = max(alone, float(case["epsilon"]))
        ratio = shared / below if below > 0 else math.inf
        return 1 + float(case["r"]) * min(max(ratio, 0.0), float(case["alpha"]))

    return overlap(case, factor)


def overlap(case: Case, factor: Callable[[Array, Array], float]) -> Merged:
    epsilon = float(case["epsilon"])
    moved = [np.abs(delta) > np.float32(epsilon) for delta in case.selecting]
    count = np.sum(moved, axis=0)
    change, size = np.zeros(case.base.shape), np.abs(case.base)
    for mask, delta in zip(moved, case.deltas, strict=True):
        term = np.where(count == 1, factor(mask, count), 1 / np.maximum(count, 1)) * np.where(mask, delta, 0.0)
        change, size = change + term, size + np.abs(term)
    return Merged(case.base + change, case.nowhere(), size)
