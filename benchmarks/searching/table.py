"""A recorded lattice of real merges: every lattice point's verdict on every item, as bits.

Axes are coefficients (the same levels on each) and, last, the method. Scores are 0 or 1, so a table of 1,875 merges and
1,536 items is 360 kB before compression.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search.optimizers.contract import Box, Genome

Bits = npt.NDArray[np.uint8]
Verdicts = npt.NDArray[np.bool_]
Splits = ("search", "holdout")


class TableError(Exception):
    """A table that cannot be read or recorded: one paragraph, shown without a traceback."""


@dataclass(frozen=True)
class Items:
    """What was asked of each merge about one skill.

    Attributes:
        search: ids of the search split, in the evaluator's order.
        holdout: ids of the holdout split.
        strata: [search + holdout] subgroup of each item.
    """

    search: tuple[str, ...]
    holdout: tuple[str, ...]
    strata: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.search) + len(self.holdout)


@dataclass(frozen=True)
class Lattice:
    """What was varied.

    Attributes:
        genes: names of the coefficients ("string/mlp").
        levels: the values that each takes, ascending and evenly spaced.
        methods: names of the last axis.
    """

    genes: tuple[str, ...]
    levels: tuple[float, ...]
    methods: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """[levels] * genes + [methods]."""
        return (len(self.levels),) * len(self.genes) + (len(self.methods),)

    def __len__(self) -> int:
        return int(np.prod(self.shape))

    @property
    def box(self) -> Box:
        """Coefficients in [0, 1] over the range of the levels, and one category."""
        return Box(len(self.genes), (len(self.methods),))

    def row(self, genome: Genome) -> int:
        """Row of the lattice point nearest to a genome."""
        steps = np.rint(np.asarray(genome.values) * (len(self.levels) - 1)).astype(np.int64)
        return int(np.ravel_multi_index((*steps.tolist(), genome.categories[0]), self.shape))

    def dithered(self, genome: Genome, dither: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """A neighbouring lattice point for each item, as its own dither rounds.

        Args:
            genome: anywhere in the box.
            dither: [items, genes] in [0, 1), uniform and fixed.

        Returns:
            [items] rows. In expectation over the dither, what is read there is the multilinear interpolation.
        """
        position = np.asarray(genome.values) * (len(self.levels) - 1)
        steps = np.minimum(np.floor(position[None] + dither).astype(np.int64), len(self.levels) - 1)
        method = np.full((len(dither), 1), genome.categories[0])
        return np.asarray(np.ravel_multi_index(tuple(np.hstack([steps, method]).T), self.shape))

    def corners(self, values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The lattice points around positions, without their method, and their multilinear weights.

        Args:
            values: [points, genes] in [0, 1].

        Returns:
            Flat indices over the coefficient axes [points, 2^genes], and weights likewise, which sum to 1.
        """
        points, genes = values.shape
        position = values * (len(self.levels) - 1)
        low = np.minimum(np.floor(position).astype(np.int64), len(self.levels) - 2)
        high = position - low
        rows = np.zeros((points, 1), dtype=np.int64)
        weights = np.ones((points, 1))
        for gene in range(genes):
            here = rows * len(self.levels) + low[:, [gene]]
            rows = np.hstack([here, here + 1])
            weights = np.hstack([weights * (1.0 - high[:, [gene]]), weights * high[:, [gene]]])
        return rows, weights

    def genome(self, row: int) -> Genome:
        """The genome of a lattice point."""
        *steps, method = (int(each) for each in np.unravel_index(row, self.shape))
        return Genome(tuple(step / (len(self.levels) - 1) for step in steps), (method,))


@dataclass(frozen=True)
class Table:
    """A lattice and its verdicts.

    Attributes:
        lattice: [rows] merges.
        items: skill -> what was asked.
        verdicts: skill -> bool [rows, items], search items first.
        origin: how it was made (command, models' content hashes, versions).
    """

    lattice: Lattice
    items: dict[str, Items]
    verdicts: dict[str, Verdicts]
    origin: dict[str, Any]

    def truth(self, split: str = "holdout") -> npt.NDArray[np.float64]:
        """[rows, skills] accuracy on a split."""
        return np.stack([self._part(skill, split).mean(axis=1) for skill in self.items], axis=1)

    def part(self, skill: str, split: str) -> Verdicts:
        """[rows, items of the split] verdicts of one skill.

        Raises:
            TableError: no such skill or split.
        """
        if skill not in self.items or split not in Splits:
            raise TableError(f"expected a skill of {', '.join(self.items)} and a split of {', '.join(Splits)}, found "
                             f"{skill!r} and {split!r}")  # fmt: skip
        return self._part(skill, split)

    def _part(self, skill: str, split: str) -> Verdicts:
        border = len(self.items[skill].search)
        return self.verdicts[skill][:, :border] if split == "search" else self.verdicts[skill][:, border:]

    def save(self, path: Path) -> None:
        """Write a compressed .npz: bits item by item, so that neighbouring merges' equal verdicts compress."""
        header = {
            "lattice": asdict(self.lattice),
            "items": {skill: asdict(each) for skill, each in self.items.items()},
            "origin": self.origin,
        }
        arrays: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
        arrays |= {f"bits/{skill}": np.packbits(each.T, axis=1) for skill, each in self.verdicts.items()}
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @staticmethod
    def load(path: Path) -> Table:
        """Read what :meth:`save` wrote; nothing in the file is unpickled.

        Raises:
            TableError: no such file, or not a table.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(file["header"].tobytes())
                lattice = Lattice(**{key: tuple(value) for key, value in header["lattice"].items()})
                items = {
                    skill: Items(**{key: tuple(value) for key, value in each.items()})
                    for skill, each in header["items"].items()
                }
                verdicts = {
                    skill: np.unpackbits(file[f"bits/{skill}"], axis=1, count=len(lattice)).T.astype(np.bool_)
                    for skill in items
                }
        except FileNotFoundError as error:
            raise TableError(f"{path}: no such table; `python benchmarks/search.py record` makes it") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TableError(f"{path}: not a recorded table ({type(error).__name__}: {error})") from error
        return Table(lattice, items, verdicts, header["origin"])
