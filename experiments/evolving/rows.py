"""One run of a config, and what its holdout says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from search.config import LoadedConfig, load_config
from search.errors import NothingFeasible
from search.results import Results
from search.run import Run

CHOSEN = "chosen"
"""The arm that the search found."""


@dataclass(frozen=True)
class Row:
    """A run that is finished.

    Attributes:
        config: its name.
        training, seed: of the models, and of the search.
        held: arm -> metric -> share on the holdout, 0..1. Arms are the chosen candidate and the baselines.
        selected: arm -> mean over the metrics on the selection split, by which baselines are picked.
        p: baseline -> Holm-adjusted one-sided p-value of "the chosen candidate is no better".
        optimism: mean over the metrics of the chosen candidate's search score minus its holdout score.
        candidates, items: how many were scored in the search.
        notes: what the chosen candidate is: coefficients, or its path.
    """

    config: str
    training: int
    seed: int
    held: dict[str, dict[str, float]]
    selected: dict[str, float]
    p: dict[str, float]
    optimism: float
    candidates: int
    items: int
    notes: str = field(default="")

    def mean(self, arm: str) -> float:
        """Mean over the metrics, on the holdout."""
        return fmean(self.held[arm].values())

    @property
    def experts(self) -> list[str]:
        """The arms that are experts alone."""
        return [arm for arm in self.held if arm.startswith("expert ")]

    @property
    def best_expert(self) -> str:
        """The expert alone that is best on the selection split."""
        return max(self.experts, key=self.selected.__getitem__)

    @property
    def best_baseline(self) -> str:
        """The baseline that is best on the selection split, experts alone among them."""
        return max((arm for arm in self.held if arm != CHOSEN), key=self.selected.__getitem__)

    @property
    def line(self) -> str:
        """For people who wait."""
        each = ", ".join(f"{100 * value:.1f}" for value in self.held[CHOSEN].values())
        return (
            f"{self.config} training {self.training} search {self.seed}: "
            f"chosen {100 * self.mean(CHOSEN):.1f} ({each}), {self.best_baseline} "
            f"{100 * self.mean(self.best_baseline):.1f}; {self.candidates} candidates, {self.items} items; {self.notes}"
        )


def measure(config: Path, folder: Path, training: int, seed: int, changes: Sequence[str] = ()) -> Row:
    """Run a config to its end, or take up where it was, and read the holdout.

    Args:
        config: whose models are of the zoo.
        folder: of the run.
        training: seed of the models.
        seed: of the search.
        changes: further ``key=value``.
    """
    loaded = seeded(config, training, seed, changes)
    try:
        Run(loaded, folder).execute()
    except NothingFeasible as error:
        raise SystemExit(f"{config.name}, training seed {training}, search seed {seed}: {error}") from error
    return read(folder, config.name.removesuffix("_mini.yaml"), training, seed)


def seeded(config: Path, training: int, seed: int, changes: Sequence[str] = ()) -> LoadedConfig:
    """The config with the models of a training seed and a seed of the search, in both stages where it has two."""
    plain = load_config(config, changes)
    models = plain.config.models
    sets = [f"models.base={at(models.base, training)}", f"search.seed={seed}"]
    sets += [f"models.experts.{name}={at(path, training)}" for name, path in models.experts.items()]
    if plain.config.first is not None:
        sets.append(f"first.search.seed={seed}")
    return load_config(config, [*changes, *sets])


def at(reference: str, seed: int) -> str:
    """``zoo://family/member`` of a training seed."""
    head, _, member = reference.removeprefix("zoo://").partition("/")
    return f"zoo://{head.partition('@')[0]}@{seed}/{member}"


def read(folder: Path, config: str, training: int, seed: int) -> Row:
    """A finished run's row."""
    results = Results.load(folder)
    claims = results.claims
    if claims is None:
        raise SystemExit(f"{folder} is not finished: it has no chosen candidate with holdout scores")
    arms = {CHOSEN: claims.chosen} | {arm(each.label): each.candidate for each in results.baselines}
    metrics = results.objectives.names
    held, selected = {}, {}
    for name, id in arms.items():
        if id in results.scores["holdout"]:
            held[name] = {metric: results.values(id, "holdout")[metric] for metric in metrics}
            selected[name] = fmean(results.values(id, "selection")[metric] for metric in metrics)
    p = {arm(name): each.p_scalar for each in claims.comparisons for name in each.baseline.label.split(" = ")}
    searched = results.values(claims.chosen, "search")
    optimism = fmean(searched[metric] - held[CHOSEN][metric] for metric in metrics)
    return Row(
        config, training, seed, held, selected, p, optimism,
        len(results.candidates), results.items, _told(results, claims.chosen),
    )  # fmt: skip


def arm(label: str) -> str:
    """A baseline's name without what differs from run to run: which λ was the best one."""
    return label.partition(" (")[0]


def _told(results: Results, id: int) -> str:
    """What a candidate is made of, in a line."""
    recipe = results.recipe(id)
    if recipe.layers is not None:
        hops = [f"{alias}{layer}" for block in recipe.layers for alias, layer in block.items()]
        scales = recipe.scales or (1.0,) * len(hops)
        return " ".join(hop if scale == 1.0 else f"{hop}·{scale:.2f}" for hop, scale in zip(hops, scales, strict=True))
    table = results.stages[results.candidate(id).stage].space.table(recipe)
    return ", ".join(f"{alias} {fmean(each.values()):.2f}" for alias, each in table.items() if each)
