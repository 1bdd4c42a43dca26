"""What was measured, as Markdown tables: mean ± standard deviation over training seeds, and trends paired by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from experiments.diagnosing.families import LEARNED
from experiments.operating.choosing import spread
from experiments.sizing.cells import Cell, blocks, by_size
from experiments.sizing.measure import WEIGHTS
from experiments.sizing.plan import MERGES, ONE_LAMBDA, SKILLS, TITLES, title, width
from experiments.sizing.trend import LEVEL, Trend, detectable, trend

Value = Callable[[Cell], float]

_WEIGHTS = {
    "cosine": "cosine", "sign_conflict": "sign conflict", "overlap_lift": "overlap / chance",
    "subspace_left": "left subspace overlap / chance", "subspace_right": "right subspace overlap / chance",
    "alignment": "subspace alignment", "stable_rank": "stable rank", "effective_rank": "effective rank",
    "interference_ratio": "singular task interference", "imbalance": "‖τ‖, larger over smaller",
}  # fmt: skip


def matching_table(cells: Sequence[Cell]) -> str:
    """How well sizes are matched: what base and experts can do, and how long the task vectors are."""
    rows: list[tuple[str, Value, float]] = [
        (f"base: {skill}", lambda cell, skill=skill: cell.alone["base"][skill], 100.0) for skill in SKILLS
    ]
    rows += [
        (f"expert {skill}: {skill}", lambda cell, skill=skill: cell.alone[skill][skill], 100.0) for skill in SKILLS
    ]
    rows += [
        (f"‖τ‖/‖θ0‖ of {skill}, %", lambda cell, skill=skill: cell.rows["weights"]["norm_ratio"][skill], 100.0)
        for skill in SKILLS
    ]
    return _table("holdout, %", cells, rows, digits=1)


def weights_table(cells: Sequence[Cell]) -> str:
    """How the task vectors lie, mean of the three pairs."""
    rows: list[tuple[str, Value, float]] = [("‖τ‖/‖θ0‖", lambda cell: cell.norm_ratio(), 1.0)]
    rows += [(_WEIGHTS[key], lambda cell, key=key: cell.of_pairs(key), 1.0) for key in WEIGHTS]
    return _table("mean of the pairs", cells, rows, digits=3)


def merge_table(cells: Sequence[Cell], experts: Sequence[str], worst: bool) -> str:
    """Retention of every arm: the mean over the skills, or the smallest."""

    def value(cell: Cell, arm: str) -> float:
        return cell.worst(experts, arm) if worst else cell.mean(experts, arm)

    rows: list[tuple[str, Value, float]] = [
        (arm, lambda cell, arm=arm: value(cell, arm), 100.0) for arm in TITLES
    ]  # fmt: skip
    return _table(f"{title(experts)}, {'smallest' if worst else 'mean'} retention, %", cells, rows, digits=1)


def skills_table(cells: Sequence[Cell]) -> str:
    """Retention of each skill at the best single λ."""

    def value(cell: Cell, experts: Sequence[str], skill: str) -> float:
        return cell.kept(experts, ONE_LAMBDA)[skill]

    rows: list[tuple[str, Value, float]] = [
        (f"{title(experts)}: {skill}", lambda cell, experts=experts, skill=skill: value(cell, experts, skill), 100.0)
        for experts in MERGES
        for skill in experts
    ]
    return _table("one λ, retention, %", cells, rows, digits=1)


def chosen_table(cells: Sequence[Cell]) -> str:
    """The λ that were chosen, seed by seed."""
    names = _names(cells)
    lines = [f"| λ by seed | {' | '.join(map(_head, names))} |", "|---" * (len(names) + 1) + "|"]
    for experts in MERGES:
        each = [
            ", ".join(cell.chosen(experts, ONE_LAMBDA) for cell in cells if cell.name == name) for name in names
        ]  # fmt: skip
        lines.append(f"| {title(experts)} | {' | '.join(each)} |")
    return "\n".join(lines)


def seeds_table(cells: Sequence[Cell]) -> str:
    """The number that the question is answered by, seed by seed."""
    names = _names(cells)
    found = {(cell.name, cell.seed): cell.primary() for cell in cells}
    lines = [f"| seed | {' | '.join(map(_head, names))} |", "|---" * (len(names) + 1) + "|"]
    for seed in sorted({cell.seed for cell in cells}):
        each = [f"{100 * found[name, seed]:.1f}" if (name, seed) in found else "–" for name in names]
        lines.append(f"| {seed} | {' | '.join(each)} |")
    means = [spread([value for (each, _), value in found.items() if each == name]) for name in names]
    return "\n".join([*lines, f"| mean ± sd | {' | '.join(means)} |"])


def answer(cells: Sequence[Cell]) -> str:
    """The one test that was chosen beforehand, and what it could have found; then without cells that learned little."""
    text = _said(cells)
    little = [cell for cell in cells if cell.learned < LEARNED]
    if little:
        named = ", ".join(f"width {width(cell.name)} on seed {cell.seed}" for cell in little)
        rest = _said([cell for cell in cells if cell.learned >= LEARNED])
        text += (
            f"\n\nThe same without {named}, where an expert is less than {LEARNED:g} better than the base:\n\n{rest}"
        )
    return text


def _said(cells: Sequence[Cell]) -> str:
    made = blocks(cells, Cell.primary)
    if not any(len(block) > 1 for block in made.values()):
        return "No training seed has two sizes yet: nothing to compare."
    found = trend(made)
    own = ", ".join(f"{100 * value:+.1f} on seed {seed}" for seed, value in found.by_seed.items())
    lines = [
        f"- Slope: {100 * found.slope:+.1f} points of retention for twice the width, pooled over the seeds ({own}).",
        f"- Exact test, two-sided: p = {found.p:.2g}; the least that these seeds and sizes can give is "
        f"{found.least:.2g}.",
    ]
    if found.seeds > 1:
        lines.append(
            f"- One seed left out: {100 * found.low_left:+.1f} to {100 * found.high_left:+.1f}. 95 % interval of the "
            f"seeds' mean slope by Student's t: {100 * found.low:+.1f} to {100 * found.high:+.1f}."
        )
    if math.isfinite(found.residual):
        least = detectable([block for block in made.values() if len(block) > 1], found.residual)
        could = f"a slope of {100 * least:.1f} points" if math.isfinite(least) else "no slope, however steep,"
        lines.append(
            f"- With the scatter that there is ({100 * found.residual:.1f} points around seeds and slope), this test "
            f"finds {could} at 5 % in 4 of 5 cases."
        )
    return "\n".join(lines).replace(" -", " −").replace("(-", "(−")


def trend_text(found: Trend, scale: float, digits: int) -> str:
    """``+3.1 (p 0.02)``; the slope alone where no p below 5 % is possible."""
    slope = f"{scale * found.slope:+.{digits}f}"
    return f"{slope} (p {found.p:.2g})" if found.least <= LEVEL else slope


def _table(head: str, cells: Sequence[Cell], rows: Sequence[tuple[str, Value, float]], digits: int) -> str:
    names = _names(cells)
    lines = [f"| {head} | {' | '.join(map(_head, names))} | twice the width |", "|---" * (len(names) + 2) + "|"]
    for said, value, scale in rows:
        found = by_size(cells, value)
        made = blocks(cells, value)
        paired = any(len(block) > 1 for block in made.values())
        row = [spread(found[name], scale, digits) for name in names]
        row.append(trend_text(trend(made), scale, digits) if paired else "–")
        lines.append(f"| {said} | {' | '.join(row).replace('-', '−')} |")
    return "\n".join(lines)


def _names(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.name for cell in cells))


def _head(name: str) -> str:
    return f"width {width(name)}"
