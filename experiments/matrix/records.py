"""What was found, one JSON file a cell: an experiment that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One arm on one family and training seed.

    Attributes:
        family, seed, arm: which.
        values: ``evaluator.metric`` -> value on the holdout.
        utilities: [objectives] on the holdout, in [0, 1].
        retention: [objectives] (score − base) / (own expert − base) on the holdout.
        chosen: what was chosen on search data.
        items: scored before the holdout was looked at.
        seconds: CPU seconds before the holdout was looked at.
        ours: whether it is one of the matrix and calibrated methods, or a search with them.
    """

    family: str
    seed: int
    arm: str
    values: Mapping[str, float]
    utilities: tuple[float, ...]
    retention: tuple[float, ...]
    chosen: Mapping[str, Any]
    items: int
    seconds: float
    ours: bool = False

    @property
    def mean(self) -> float:
        """Mean utility over the objectives, in per cent."""
        return 100.0 * sum(self.utilities) / len(self.utilities)

    @property
    def worst(self) -> float:
        """Smallest retention, in per cent."""
        return 100.0 * min(self.retention)


class Records:
    """The outcomes of one experiment, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def settings(self, settings: Mapping[str, Any]) -> None:
        """Say with which settings the folder is filled.

        Raises:
            SystemExit: it was filled with others before.
        """
        path, text = self.folder / "settings.json", json.dumps(settings, indent=1, sort_keys=True)
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise SystemExit(
                f"{self.folder} holds results with other settings (see its settings.json); give another --folder, or "
                "remove it"
            )
        _write(path, text)

    def read(self, family: str, seed: int) -> dict[str, Outcome]:
        """Arm -> what was found of it."""
        path = self._path(family, seed)
        if not path.exists():
            return {}
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {row["arm"]: _outcome(row) for row in rows}

    def add(self, outcome: Outcome) -> None:
        """Keep one; one of the same arm is replaced."""
        known = self.read(outcome.family, outcome.seed) | {outcome.arm: outcome}
        _write(
            self._path(outcome.family, outcome.seed), json.dumps([asdict(each) for each in known.values()], indent=1)
        )

    def all(self, families: Iterable[str], seeds: Iterable[int]) -> list[Outcome]:
        """Every outcome that is there, in the order of families, seeds and arms."""
        seeds = list(seeds)
        return [each for family in families for seed in seeds for each in self.read(family, seed).values()]

    def _path(self, family: str, seed: int) -> Path:
        return self.folder / f"{family.replace(' ', '-')}-{seed}.json"


def _outcome(row: dict[str, Any]) -> Outcome:
    return Outcome(**{**row, "utilities": tuple(row["utilities"]), "retention": tuple(row["retention"])})


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
