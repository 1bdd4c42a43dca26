"""Landscapes item by item: what a worker would score, for recipes, without models.

Two of them. :class:`SyntheticItems` knows the true utilities of every merge: losses are quadratic in the coefficients,
with interference between experts; item i of a skill is answered rightly with the probability of a one-parameter
logistic model (Rasch, 1960), difficulties are common to all candidates, and near candidates answer alike.
:class:`RecordedItems` replays a recorded table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from scipy import special

from benchmarks.searching.table import Table
from evaluators.contract import Items, ItemScores, Metric, Split, Status, weighted_mean
from merging.recipe import Group, Recipe
from search import pareto

Array = npt.NDArray[np.float64]
Kind = Literal["normal", "plateau", "shuffled", "constant"]

SLOPE = 1.7
"""Discrimination of every item, in logits per standard deviation of difficulty."""
FEATURES = 24
CAP = 0.45
"""On a plateau nothing is better than this."""


class ItemLandscape(Protocol):
    """Verdicts on items, and the truth behind them."""

    @property
    def skills(self) -> tuple[str, ...]:
        """One evaluator, objective and expert each."""
        ...

    @property
    def groups(self) -> tuple[Group, ...]:
        """Of the model that is merged."""
        ...

    @property
    def best(self) -> float:
        """Hypervolume of the best front there is, beyond the origin, or a bound above it."""
        ...

    def ids(self, skill: str, split: Split) -> tuple[str, ...]:
        """Items of a split."""
        ...

    def truth(self, recipe: Recipe) -> Array:
        """[skills] true accuracies."""
        ...

    def verdicts(self, recipe: Recipe, skill: str, split: Split) -> Array:
        """[items of the split] 0 or 1, always the same for the same recipe."""
        ...


class Interference:
    """True losses of merges: loss_k = A Σ_g w_kg (1 − c_kg/o_kg)² + B Σ_g v_kg Σ_{j≠k} c_jg², accuracy exp(−loss_k).

    c_kg is expert k's coefficient in group g, o_kg its best value, w_kg how much of skill k sits in group g, v_kg how
    much others disturb it there. w and v are smooth over depth and differ between skills, so that coefficients per
    depth are worth something. Both parts are separable and quadratic: minimisers of weighted sums, which make the front
    of these convex losses, are in closed form.

    Args:
        experts: how many.
        groups: of the model, in order.
        seed: of the problem.
        methods: names -> a loss that comes with the method, for every skill.
    """

    BASE_LOSS = 1.9
    DISTURBANCE = 0.8

    def __init__(
        self, experts: int, groups: Sequence[Group], seed: int, methods: Mapping[str, float] | None = None
    ) -> None:
        random = np.random.default_rng([seed, experts, len(groups)])
        depths = max((group.depth or 0) for group in groups) + 1
        depth = np.asarray([(group.depth or 0) / depths for group in groups])
        kinds = sorted({group.kind for group in groups})
        self._methods = dict(methods or {})

        def waves() -> Array:
            found = np.empty((experts, len(groups)))
            for expert in range(experts):
                for kind in kinds:
                    phase, height = random.uniform(0, 2 * np.pi, 2), random.normal(size=2)
                    here = np.asarray([group.kind == kind for group in groups])
                    found[expert, here] = sum(
                        height[k] * np.sin(2 * np.pi * (k + 0.5) * depth[here] + phase[k]) for k in range(2)
                    )
            return found

        self._weights = special.softmax(1.2 * waves(), axis=1)
        self._disturbed = special.softmax(1.2 * waves(), axis=1)
        self._optimum = np.clip(1.0 + 0.15 * waves(), 0.6, 1.4)

    def accuracies(self, coefficients: Array, method: str = "task_arithmetic") -> Array:
        """[skills] true accuracies of coefficients [experts, groups]."""
        own = (self._weights * (1.0 - coefficients / self._optimum) ** 2).sum(axis=1)
        squares = coefficients**2
        others = (self._disturbed * (squares.sum(axis=0) - squares)).sum(axis=1)
        losses = self.BASE_LOSS * own + self.DISTURBANCE * others + self._methods.get(method, 0.0)
        return np.asarray(np.exp(-losses))

    def front(self, low: float, high: float, points: int = 1000) -> Array:
        """[points, skills] accuracies of the exact front with coefficients in [low, high]."""
        experts = len(self._weights)
        if experts == 2:
            first = np.linspace(0.0, 1.0, points)
            shares = np.stack([first, 1.0 - first], axis=1)
        else:
            shares = np.concatenate([np.eye(experts), np.random.default_rng(0).dirichlet(np.ones(experts), points)])
        found = []
        for share in shares:
            disturbed = share[:, None] * self._disturbed
            pull = share[:, None] * self.BASE_LOSS * self._weights / self._optimum
            hold = pull / self._optimum + self.DISTURBANCE * (disturbed.sum(axis=0) - disturbed)
            best = np.divide(pull, hold, out=np.zeros_like(pull), where=hold > 0.0)
            found.append(self.accuracies(np.clip(best, low, high)))
        return np.asarray(found)


@dataclass(frozen=True)
class SyntheticItems:
    """See the module docstring.

    Attributes:
        problem: true accuracies.
        skills: names.
        groups: of the model.
        sizes: items of each skill, per split.
        seed: of difficulties and of what is peculiar to an item.
        bounds: of the coefficients, for the exact front.
        kind: "normal"; "plateau": accuracies are capped at ``CAP``, so that a whole region is exactly equal;
            "shuffled": every candidate answers by chance alone, with probability 1/2; "constant": every candidate
            answers the same items.
    """

    problem: Interference
    skills: tuple[str, ...]
    groups: tuple[Group, ...]
    sizes: Mapping[Split, int]
    seed: int
    bounds: tuple[float, float] = (0.0, 1.5)
    kind: Kind = "normal"

    @cached_property
    def best(self) -> float:
        if self.kind in ("shuffled", "constant"):
            return float(0.5 ** len(self.skills))
        front = self.problem.front(*self.bounds)
        return pareto.hypervolume(
            np.minimum(front, CAP) if self.kind == "plateau" else front, (0.0,) * len(self.skills)
        )

    def ids(self, skill: str, split: Split) -> tuple[str, ...]:
        return tuple(f"{split}-{number}" for number in range(self.sizes[split]))

    def truth(self, recipe: Recipe) -> Array:
        if self.kind in ("shuffled", "constant"):
            return np.full(len(self.skills), 0.5)
        accuracies = self.problem.accuracies(coefficients(recipe, self.skills, self.groups), main_method(recipe))
        return np.minimum(accuracies, CAP) if self.kind == "plateau" else accuracies

    def verdicts(self, recipe: Recipe, skill: str, split: Split) -> Array:
        index = self.skills.index(skill)
        difficulty, taste = _population(self.seed, index, split, self.sizes[split])
        if self.kind == "constant":
            return np.asarray(np.argsort(np.argsort(difficulty)) < len(difficulty) / 2, dtype=np.float64)
        if self.kind == "shuffled":
            digest = hashlib.sha256(f"{recipe.hash}/{skill}/{split}/{self.seed}".encode()).digest()
            return np.asarray(np.random.default_rng(list(digest)).random(len(difficulty)) < 0.5, dtype=np.float64)
        ability = ability_of(float(self.truth(recipe)[index]))
        luck = taste @ self._features(recipe)  # standard normal over items, alike for near candidates
        return np.asarray(special.ndtr(luck) < special.expit(SLOPE * (ability - difficulty)), dtype=np.float64)

    def _features(self, recipe: Recipe) -> Array:
        """[features] of unit length: random Fourier features (Rahimi & Recht, 2007) of the coefficients."""
        point = coefficients(recipe, self.skills, self.groups).ravel()
        frequency, phase = _waves(self.seed, len(point))
        shift = 2.0 * np.pi * (int.from_bytes(main_method(recipe).encode(), "big") % 997) / 997
        waves = np.cos(frequency @ point + phase + shift)
        return np.asarray(waves / np.linalg.norm(waves))


@lru_cache(maxsize=32)
def _population(seed: int, skill: int, split: Split, size: int) -> tuple[Array, Array]:
    """Difficulties [size] and tastes [size, features] of a split's items."""
    random = np.random.default_rng([seed, 31, skill, ("search", "selection", "holdout").index(split)])
    return random.normal(size=size), random.normal(size=(size, FEATURES))


@lru_cache(maxsize=8)
def _waves(seed: int, size: int) -> tuple[Array, Array]:
    """Frequencies [features, size] and phases [features]; half of the range in every coefficient is a length scale."""
    random = np.random.default_rng([seed, 32])
    frequency = random.normal(size=(FEATURES, size)) / (0.5 * np.sqrt(size))
    return frequency, random.uniform(0.0, 2.0 * np.pi, FEATURES)


@dataclass(frozen=True)
class RecordedItems:
    """A recorded table behind recipes: the search split is the table's, selection and holdout are halves of its
    holdout. Coefficients are read from the recipe, one per gene of the table; a preset of TIES or DARE-TIES with
    another density counts as the recorded one.

    Attributes:
        table: the recorded merges.
        seed: of the items' order and dithers.
    """

    table: Table
    seed: int

    @property
    def skills(self) -> tuple[str, ...]:
        return tuple(self.table.items)

    @property
    def groups(self) -> tuple[Group, ...]:
        return (Group("attention", 0), Group("mlp", 0))

    @cached_property
    def best(self) -> float:
        rows = [self._truth_rows(skill) for skill in self.skills]
        return pareto.hypervolume(np.stack(rows, axis=1), (0.0,) * len(self.skills))

    def ids(self, skill: str, split: Split) -> tuple[str, ...]:
        columns, _ = self._split(skill, split)
        return tuple(f"{split}-{column}" for column in columns.tolist())

    def truth(self, recipe: Recipe) -> Array:
        genome_values, method = self._point(recipe)
        rows, weights = self.table.lattice.corners(genome_values[None])
        methods = len(self.table.lattice.methods)
        return np.asarray(
            [(self._truth_rows(skill)[rows[0] * methods + method] * weights[0]).sum() for skill in self.skills]
        )

    def verdicts(self, recipe: Recipe, skill: str, split: Split) -> Array:
        columns, dither = self._split(skill, split)
        values, method = self._point(recipe)
        steps = np.minimum(
            np.floor(values * (len(self.table.lattice.levels) - 1) + dither), len(self.table.lattice.levels) - 1
        ).astype(np.int64)
        rows = np.ravel_multi_index((*steps.T, np.full(len(steps), method)), self.table.lattice.shape)
        return self.table.verdicts[skill][rows, columns].astype(np.float64)

    def _truth_rows(self, skill: str) -> Array:
        columns, _ = self._split(skill, "holdout")
        return np.asarray(self.table.verdicts[skill][:, columns].mean(axis=1))

    def _split(self, skill: str, split: Split) -> tuple[npt.NDArray[np.int64], Array]:
        """Columns of the table, and a dither [items, genes] for each."""
        items = self.table.items[skill]
        first, all_ = len(items.search), len(items)
        random = np.random.default_rng([self.seed, 41, self.skills.index(skill)])
        dither = random.random((all_, len(self.table.lattice.genes)))
        rest = first + random.permutation(all_ - first)
        half = len(rest) // 2
        columns = {"search": np.arange(first), "selection": rest[:half], "holdout": rest[half:]}[split]
        return columns, dither[columns]

    def _point(self, recipe: Recipe) -> tuple[Array, int]:
        """[genes] in [0, 1], and the method's index."""
        found = coefficients(recipe, self.skills, self.groups)
        lattice = self.table.lattice
        values = []
        for gene in lattice.genes:
            expert, _, kind = gene.partition("/")
            row = found[self.skills.index(expert)]
            values.append(row.mean() if not kind else row[0 if kind.startswith("attention") else 1])
        low, high = lattice.levels[0], lattice.levels[-1]
        method = main_method(recipe)
        index = lattice.methods.index(method) if method in lattice.methods else 0
        return np.clip((np.asarray(values) - low) / (high - low), 0.0, 1.0), index


def coefficients(recipe: Recipe, experts: Sequence[str], groups: Sequence[Group]) -> Array:
    """[experts, groups] coefficients of a recipe; 0 where an expert takes no part."""
    found = np.zeros((len(experts), len(groups)))
    for column, group in enumerate(groups):
        for alias, parameters in recipe.groups[group].sources:
            if alias in experts:
                found[experts.index(alias), column] = float(dict(parameters).get("coefficient", 1.0))
    return found


def main_method(recipe: Recipe) -> str:
    """The method of most groups; the first by name among equals."""
    methods = [assignment.method for assignment in recipe.groups.values()]
    return max(sorted(set(methods)), key=methods.count)


_ABILITIES = np.linspace(-12.0, 12.0, 4801)
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
_SHARES = special.expit(SLOPE * (_ABILITIES[:, None] - _NODES)) @ (_WEIGHTS / _WEIGHTS.sum())


def ability_of(accuracy: float) -> float:
    """The ability whose expected share of right answers, over standard normal difficulties, is this accuracy."""
    return float(np.interp(accuracy, _SHARES, _ABILITIES))


class SimulatedEvaluator:
    """An evaluator whose items are a landscape's. It has no engine: :class:`Worker` reads verdicts itself."""

    metrics = (Metric("accuracy", "maximize", 0.0, 1.0),)

    def __init__(self, landscape: ItemLandscape, skill: str) -> None:
        self.fingerprint = f"simulated/{skill}"
        self._items: dict[Split, Items] = {}
        splits: tuple[Split, ...] = ("search", "selection", "holdout")
        for split in splits:
            ids = landscape.ids(skill, split)
            hashes = tuple(hashlib.sha256(f"{skill}/{id}".encode()).hexdigest() for id in ids)
            self._items[split] = Items(ids, ("",) * len(ids), hashes)

    def prepare(self, engine: object) -> None:
        """Nothing to do."""

    def items(self, split: Split) -> Items:
        return self._items[split]

    def score(self, engine: object, ids: Sequence[str]) -> ItemScores:
        """Not for a simulation.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a simulated evaluator has no model; its worker has the verdicts")

    def aggregate(self, scores: ItemScores) -> dict[str, float]:
        return {"accuracy": weighted_mean(scores, "accuracy")}


def item_scores(ids: Sequence[str], verdicts: Array) -> ItemScores:
    """0/1 verdicts as an evaluator's scores."""
    ok: Status = "ok"
    return ItemScores(tuple(ids), {"accuracy": verdicts}, {"accuracy": np.ones(len(ids))}, (ok,) * len(ids))
