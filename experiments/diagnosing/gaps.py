"""What a pair loses by being merged: the best λ for both, chosen on search data, and retention on the holdout.

Retention of an expert is (merge − base) / (expert − base) on its own task. The gap of a pair is 1 − the mean of its two
retentions, at the λ that has the largest mean retention on search and selection items.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.diagnosing.families import LAMBDAS, Family

if TYPE_CHECKING:
    from experiments.diagnosing.bench import Bench

Row = dict[str, Any]


class Records:
    """What was measured of every pair, one JSON file for a family and seed: what was stopped goes on where it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, part: str, family: str, seed: int) -> dict[str, Row]:
        """Pair (``a+b``) -> what is known of it."""
        path = self._path(part, family, seed)
        found: dict[str, Row] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return found

    def add(self, part: str, family: str, seed: int, pair: str, row: Mapping[str, Any]) -> None:
        """Keep one, whole or not at all."""
        path = self._path(part, family, seed)
        beside = path.with_name(path.name + ".partial")
        known = self.read(part, family, seed) | {pair: dict(row)}
        beside.write_text(json.dumps(known, indent=1), encoding="utf-8")
        beside.replace(path)

    def _path(self, part: str, family: str, seed: int) -> Path:
        return self.folder / f"{part}-{family}-{seed}.json"


def title(a: str, b: str) -> str:
    """The name of a pair."""
    return f"{a}+{b}"


def measure(
    records: Records, name: str, family: Family, seed: int, bench: Callable[[], Bench], say: Callable[[str], None]
) -> None:
    """Measure the pairs of one family and seed that are not known yet.

    Args:
        records: where they are kept.
        name, family, seed: which.
        bench: opens the models; called where something is to be measured.
        say: told one line a pair.
    """
    known = records.read("gaps", name, seed)
    for a, b in family.pairs:
        if title(a, b) not in known:
            start = time.process_time()
            row = gap(bench(), a, b) | {"seconds": round(time.process_time() - start, 2)}
            records.add("gaps", name, seed, title(a, b), row)
            say(f"{name} {seed}  {title(a, b):28} λ {row['lambda']:g}  gap {row['gap']}  {row['seconds']:.0f} s")


def gap(bench: Bench, a: str, b: str) -> Row:
    """λ curve on search and selection items, and what the best λ keeps on the holdout.

    Returns:
        base, own: {expert: utility on the holdout} of the base, and of the expert alone; chosen_base, chosen_own: the
        same on search and selection items; curve: {λ: [utility of a, of b]} there; lambda: the best; held: {expert:
        utility on the holdout} at it; held_mean, held_one: the same at λ = 0.5 and 1; gap: 1 − mean retention on the
        holdout; cross: {expert: utility of the other expert on its task}.
    """
    from experiments.diagnosing.bench import CHOSEN_ON

    pair = (a, b)
    chosen_base = {each: bench.utility({}, each, *CHOSEN_ON) for each in pair}
    chosen_own = {each: bench.utility({each: 1.0}, each, *CHOSEN_ON) for each in pair}
    curve = {value: [bench.utility({a: value, b: value}, each, *CHOSEN_ON) for each in pair] for value in LAMBDAS}

    def kept(value: float) -> float:
        parts = zip(pair, curve[value], strict=True)
        return sum(retention(now, chosen_base[each], chosen_own[each]) for each, now in parts) / 2

    best = max(LAMBDAS, key=kept)
    base = {each: bench.utility({}, each, "holdout") for each in pair}
    own = {each: bench.utility({each: 1.0}, each, "holdout") for each in pair}
    cross = {each: bench.utility({other: 1.0}, each, "holdout") for each, other in ((a, b), (b, a))}
    held, held_mean, held_one = (
        {each: bench.utility({a: value, b: value}, each, "holdout") for each in pair} for value in (best, 0.5, 1.0)
    )
    left = [retention(held[each], base[each], own[each]) for each in pair]
    return {
        "base": base, "own": own, "chosen_base": chosen_base, "chosen_own": chosen_own, "cross": cross,
        "curve": {f"{value:g}": found for value, found in curve.items()}, "lambda": best,
        "held": held, "held_mean": held_mean, "held_one": held_one, "gap": 1.0 - sum(left) / 2,
    }  # fmt: skip


def retention(value: float, base: float, own: float) -> float:
    """(merge − base) / (expert − base); 0 where the expert learned nothing, which is sorted out afterwards."""
    return (value - base) / (own - base) if abs(own - base) > 1e-9 else 0.0
