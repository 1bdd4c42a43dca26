"""Genomes as parameters of one study: points of every stage as points of the last one's space, by the names of genes.

Genes without effect on a candidate (a density under a method that has none) are left out, as Optuna leaves out the
parameters of a branch that was not taken. A candidate that is no point of the last stage's space, such as a preset with
a method that the search does not have, has no parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from merging.recipe import Value
from search.optimizers.contract import Genome
from search.space import AnySpace, SpaceError
from search.space.encoding import NO_EFFECT
from search.space.genes import Gene
from search.stages import Stage, translate

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MOST_PARAMETERS = 100
"""A study's parameters are compared pair by pair for every trial: more make the page wait for minutes."""
_OF_SLOTS = ("include", "scale", "shift")
"""Roles of the genes of a space of paths."""
MOST_CELLS = 75_000
"""Parameters of all trials together: each takes some 300 bytes on its way to the browser."""


class Parameters:
    """What a study shows of genomes.

    Args:
        stages: of the run.
        candidates: how many there are, or will be.
        everything: every gene, however many there are.

    Attributes:
        thinned: how the genes were brought together; "" where every gene is shown. Of layers that a path may have the
            share is shown.
        distributions: name -> what Optuna knows of it.
    """

    def __init__(self, stages: Sequence[Stage], candidates: int, *, everything: bool = False) -> None:
        self._stages = list(stages)
        self._space = stages[-1].space
        genes = self._space.genes
        most = max(1, min(MOST_PARAMETERS, MOST_CELLS // max(1, candidates)))
        self._names = {gene.name: gene.name for gene in genes}
        self.thinned = ""
        if not everything:
            for group, words in ((_track, "over the depth"), (_expert, "over the whole model")):
                if len(set(self._names.values())) <= most:
                    break
                self._names = {gene.name: group(gene) for gene in genes}
                self.thinned = f"{len(genes)} genes as their means {words}"
        self._coarser = {stage.index for stage in self._stages if _is_coarser(stage.space, self._space)}
        self._shown = dict.fromkeys(self._names.values())
        often = Counter(self._names.values())
        self._shares = {self._names[each.name] for each in genes if each.role == "include"} - {
            name for name, times in often.items() if times == 1
        }
        self.distributions = self._distributions(genes)

    def __len__(self) -> int:
        return len(self._shown)

    def of(self, stage: int, genome: Genome) -> dict[str, Any]:
        """Name -> value of a candidate's genes; empty where it is no point of the last stage's space, or of any: a log
        may say anything."""
        if not 0 <= stage < len(self._stages):
            return {}
        try:
            named = self._coarse(stage, genome) if stage in self._coarser else self._named(stage, genome)
        except SpaceError:
            return {}
        found: dict[str, list[Value]] = {}
        for name, value in named.items():
            found.setdefault(self._names[name], []).append(value)
        return {
            name: _joined([float(each) for each in values] if name in self._shares else values)
            for name, values in found.items()
        }

    def _named(self, stage: int, genome: Genome) -> dict[str, Value]:
        """Every gene of the last stage's space that has an effect, by way of the recipe."""
        own = self._stages[stage].space
        point = genome if own is self._space else translate(genome, own, self._space)
        return {} if point is None else _effective(self._space, point)

    def _coarse(self, stage: int, genome: Genome) -> dict[str, Value]:
        """The same for a stage with one coefficient for each expert: it stands at every depth."""
        own = self._stages[stage].space
        named = _effective(own, genome)
        whole = {gene.expert: gene.name for gene in own.genes if gene.role == "coefficient"}
        found = {}
        for gene in self._space.genes:
            name = whole[gene.expert] if gene.role == "coefficient" else gene.name
            if name in named:
                found[gene.name] = named[name]
        return found

    def _distributions(self, genes: Sequence[Gene]) -> dict[str, BaseDistribution]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        found: dict[str, BaseDistribution] = {}
        for gene in genes:
            name = self._names[gene.name]
            if name in self._shares:
                found[name] = FloatDistribution(0.0, 1.0)
            elif gene.bounds is None:
                found[name] = CategoricalDistribution(gene.choices)
            else:
                low, high = sorted(gene.bounds)
                before = found.get(name)
                found[name] = FloatDistribution(
                    min(low, getattr(before, "low", low)), max(high, getattr(before, "high", high))
                )
        return found


def _effective(space: AnySpace, genome: Genome) -> dict[str, Value]:
    """Gene -> value, of those without which the candidate would be another one. One that stands exactly where genes of
    no effect are put may be taken for one that has some: no harm."""
    canonical = space.canonical(genome)
    values = [now != NO_EFFECT or now == given for now, given in zip(canonical.values, genome.values, strict=True)]
    same = [now == given for now, given in zip(canonical.categories, genome.categories, strict=True)]
    if space.is_path:  # its hops in the earliest slots, of which every one is included or not
        genome, same = canonical, [True] * len(same)
    named = space.named(genome)
    return {name: value for (name, value), works in zip(named.items(), [*values, *same], strict=True) if works}


def _is_coarser(own: AnySpace, last: AnySpace) -> bool:
    """Whether a space has one coefficient where the last one has several, and is else the same."""
    if own.is_path or last.is_path:
        return False
    if own is last or own.granularity != "model" or last.granularity == "lines" or own.coefficient != last.coefficient:
        return False
    rest = [[each for each in space.genes if each.role != "coefficient"] for space in (own, last)]
    owners = [{each.expert for each in space.genes if each.role == "coefficient"} for space in (own, last)]
    return rest[0] == rest[1] and owners[0] == owners[1]


def _track(gene: Gene) -> str:
    """All depths of one kind set and expert; of a space of paths, all layers of one model in one repetition."""
    if gene.role in _OF_SLOTS:
        repetition = "" if gene.position is None else f"r{gene.position} "
        return f"{gene.role}[{repetition}{gene.expert}]"
    return gene.name.partition("@")[0]


def _expert(gene: Gene) -> str:
    """Everything of one expert."""
    if gene.role == "coefficient":
        return gene.expert or "coefficient"
    if gene.role == "density":
        return f"density.{gene.expert}" if gene.expert else "density"
    if gene.role in _OF_SLOTS:
        return f"{gene.role}[{gene.expert}]"
    return _track(gene)


def _joined(values: Sequence[Value]) -> Value:
    """The mean of numbers, the most frequent of choices."""
    numbers = [each for each in values if isinstance(each, int | float) and not isinstance(each, bool)]
    if len(numbers) == len(values):
        return float(f"{sum(numbers) / len(numbers):.9g}")
    return Counter(values).most_common(1)[0][0]
