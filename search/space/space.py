"""The space that a search moves in: from a genome to a recipe and back.

One recipe per effect: :meth:`Space.decode` writes an assignment for every group, whatever the granularity, spelled as
:mod:`merging.methods` spells it, with coefficients rounded to 12 significant digits, before interpolation and after it.
A coefficient per expert and equal knots are thus the same recipe, with the same hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from merging.recipe import Assignment, Group, Recipe, SourceRef, Value
from search.optimizers.contract import Genome
from search.space.encoding import NO_EFFECT, canonical, nearest
from search.space.methods import PLANNED, MethodChoice, searched
from search.space.plan import Plan
from search.space.reading import ByGroup, Reader, difference
from search.space.scales import Bounds, Interval, SpaceError, density_steps
from search.space.spelling import Speller
from search.space.tracks import Granularity, unknown

_CANONICAL = 8192


class Space:
    """What may vary, over one model's groups.

    Args:
        base: alias of the base model.
        sources: every model by alias, the base included.
        experts: aliases of the experts, in the order that methods see them.
        groups: all groups of the model.
        granularity: how finely a track follows the depth.
        kinds: kind sets; every kind that the model has must be in exactly one. Of no effect at the granularities
            ``model``, ``lines`` and ``tensor``.
        coefficient: bounds of every coefficient; of α and of β at granularity ``lines``.
        shared: all experts have one set of coefficients.
        methods: any that are registered; a gene per run of depths chooses where there are several.
        method_blocks: how many runs of depths, per stack, choose their method and their densities separately.
        density: bounds of the densities, in steps of 1/64. There is a gene for every run and expert if some method has
            a density that its own parameters do not set.
        shared_density: one density gene for every run, for all experts.
        normalize: methods with a ``normalize`` that is off by default (task arithmetic and its like) have it on: they
            divide by the sum of the coefficients.
        dtype: of the merged weights; None keeps the base's.
        tensors: canonical name of every tensor -> its group. Needed at granularity ``tensor``.
        calibration: fingerprint of the calibration data, which stands in every assignment of a method that needs any.

    Where all coefficients of a group are 0, :meth:`decode` writes plain task arithmetic of nothing, which is the base.
    A method that divides by the sum of the coefficients (linear, slerp, normalised task arithmetic) means nothing where
    they sum to 0: there it writes plain task arithmetic with the same coefficients.

    Genes without effect on a point (the density under a method that has none, the parameters of a method that is not
    chosen, the coefficients where the method takes none) do not reach the recipe: see :meth:`canonical`.

    Attributes:
        genes: one for every number of a genome: those of its values, then those of its categories.
        box: the shape of its genomes.

    Raises:
        SpaceError: arguments that contradict each other or the model.
    """

    def __init__(
        self,
        *,
        base: str,
        sources: Mapping[str, SourceRef],
        experts: Sequence[str],
        groups: Sequence[Group],
        granularity: Granularity,
        kinds: Sequence[Sequence[str]],
        coefficient: Bounds,
        shared: bool = False,
        methods: Sequence[str | MethodChoice] = ("task_arithmetic",),
        method_blocks: int = 1,
        density: Bounds = Bounds(0.1, 1.0),  # noqa: B008 (frozen)
        shared_density: bool = False,
        normalize: bool = False,
        dtype: str | None = None,
        tensors: Mapping[str, Group] | None = None,
        calibration: str = PLANNED,
    ) -> None:
        self.base = base
        self.sources = dict(sources)
        self.experts = tuple(experts)
        self.groups = tuple(sorted(set(groups), key=lambda group: group.order))
        self.granularity = granularity
        self.coefficient = coefficient
        self.shared = shared
        self.normalize = normalize
        self.dtype = dtype
        _check_models(base, self.sources, self.experts, self.groups)
        choices = [MethodChoice(each) if isinstance(each, str) else each for each in methods]
        self.methods = tuple(each.name for each in choices)
        if not choices or len(set(self.methods)) < len(choices) or method_blocks < 1:
            raise SpaceError(
                f"expected one or more different methods and method_blocks >= 1, found {list(self.methods)} and "
                f"{method_blocks}"
            )
        used = tuple(searched(each, len(self.experts), normalize, calibration) for each in choices)
        self._apart = granularity == "tensor"
        whole = tuple((group, "") for group in self.groups)
        units = _by_tensor(tensors, self.groups) if tensors is not None else whole
        self._reader = Reader(self.sources, self.experts, *zip(*units, strict=True))
        if self._apart and tensors is None:
            raise SpaceError("granularity tensor needs the names of the model's tensors, found none")
        self._units = units if self._apart else whole
        dense = any(each.density != "none" for each in used)
        self._plan = Plan(
            experts=self.experts,
            groups=[group for group, _ in self._units],
            tensors=[tensor for _, tensor in self._units],
            granularity=granularity,
            kinds=kinds,
            coefficient=coefficient,
            shared=shared,
            methods=used,
            blocks=method_blocks,
            density=density_steps(density.low, density.high) if dense else None,
            shared_density=shared_density,
        )
        self._speller = Speller(self.experts)
        self._own_reader = (
            self._reader if self._apart else Reader(self.sources, self.experts, *zip(*whole, strict=True))
        )
        self.genes = self._plan.genes
        self.box = self._plan.box
        if not self.genes:
            raise SpaceError(
                f"expected something that varies, found nothing: {self.methods[0]} takes no coefficients and all its "
                "parameters are fixed; give bounds to one of them, or a second method"
            )
        self._canonical = lru_cache(maxsize=_CANONICAL)(lambda genome: canonical(self._plan, self._speller, genome))

    def decode(self, genome: Genome) -> Recipe:
        """The recipe at a point.

        Raises:
            SpaceError: the genome is not in :attr:`box`, or a method refuses these numbers.
        """
        self._check(genome)
        point = self._plan.point(genome)
        known: dict[tuple[int, tuple[float, ...]], Assignment] = {}
        assignments: list[Assignment] = []
        for run, row in zip(self._plan.run_of.tolist(), point.rows, strict=True):
            found = known.get((run, row))
            if found is None:
                settled = point.settled[point.choices[run]]
                found = known[run, row] = self._speller.assignment(settled, row, point.densities[run])
            assignments.append(found)
        if self._apart:
            return self._by_group(assignments)
        return Recipe(self.base, self.sources, dict(zip(self.groups, assignments, strict=True)), {}, self.dtype)

    def encode(self, recipe: Recipe) -> Genome:
        """The canonical point at which a recipe lies: ``decode(encode(recipe))`` has its hash.

        Raises:
            SpaceError: the recipe is not in this space.
        """
        genome = nearest(self._plan, self._speller, self._own_reader.read(recipe))
        again = self.decode(genome)
        if again.hash != recipe.hash:
            raise SpaceError(f"the recipe is not a point of this space: {difference(recipe, again)}")
        return genome

    def canonical(self, genome: Genome) -> Genome:
        """One genome for all that differ only in genes without effect: those are at 0.5, or at their first choice, and
        stepped ones (densities, integers) in the middle of their step. Its recipe is the same; it is its own canonical
        genome.

        Raises:
            SpaceError: the genome is not in :attr:`box`.
        """
        self._check(genome)
        found: Genome = self._canonical(genome)
        return found

    def uniform(self, coefficients: Mapping[str, float], method: str | None = None) -> Genome:
        """The same coefficients everywhere: the base ({}), an expert alone ({expert: 1}), the mean, a λ grid. All other
        genes are at 0.5 and their first choice.

        Args:
            coefficients: by expert; 0 for those that are not named.
            method: one of :attr:`methods`; the first if None.

        Raises:
            SpaceError: an unknown expert or method, a coefficient outside the bounds, or different ones for experts
                that share theirs.
        """
        for name in coefficients:
            if name not in self.experts:
                raise SpaceError(unknown("expert", name, self.experts))
        if method is not None and method not in self.methods:
            raise SpaceError(unknown("method", method, self.methods))
        wanted = [float(coefficients.get(expert, 0.0)) for expert in self.experts]
        if self.shared and len(set(wanted)) > 1:
            raise SpaceError(f"all experts share their coefficients in this space, found {dict(coefficients)}")
        choice = 0 if method is None else self.methods.index(method)
        values = [
            self._gene(each) for coefficient in wanted[: len(self._plan.owners)] for each in self._track(coefficient)
        ]
        values += [NO_EFFECT] * (self.box.continuous - len(values))
        categories = [0] * len(self.box.categories)
        categories[: self._plan.method_genes] = [choice] * self._plan.method_genes
        return Genome(tuple(values), tuple(categories))

    def center(self) -> Genome:
        """Where a search starts that knows nothing: the average merge by the first method, all else at the middle."""
        first = self._plan.methods[0]
        low, high = self.coefficient.low, self.coefficient.high
        average = 1.0 if first.averages_agreement else 1.0 / len(self.experts)
        rise = [min(max(0.0, low), high)] if self._plan.line else []
        per_track = [min(max(average, low), high)] * (self._plan.width - len(rise)) + rise
        values = [self._gene(each) for _ in self._plan.owners for each in per_track]
        values += [NO_EFFECT] * (self.box.continuous - len(values))
        return Genome(tuple(values), (0,) * len(self.box.categories))

    def named(self, genome: Genome) -> dict[str, Value]:
        """What every gene of a genome stands for: gene name -> coefficient, density, method, or value of a parameter.

        Raises:
            SpaceError: the genome is not in :attr:`box`.
        """
        self._check(genome)
        plan = self._plan
        numbers: list[Value] = [*plan.coefficient_values(genome.values[: plan.coefficients]).reshape(-1).tolist()]
        if plan.density is not None:
            ends = plan.coefficients, plan.coefficients + plan.densities
            numbers += [plan.density.value(each) for each in genome.values[slice(*ends)]]
        parameters = plan.parameters(genome)
        numbers += [parameters[each.method][each.name] for each in plan.numbers]
        categorical = self.genes[self.box.continuous :]
        chosen = [gene.choices[at] for gene, at in zip(categorical, genome.categories, strict=True)]
        return dict(zip((gene.name for gene in self.genes), [*numbers, *chosen], strict=True))

    def table(self, recipe: Recipe) -> dict[str, dict[Group, float]]:
        """Coefficients by expert and group, for heatmaps; groups whose method takes none are absent, single tensors are
        averaged. Any recipe with these sources will do, also from another space.

        Raises:
            SpaceError: other sources or groups.
        """
        return self._reader.by_group(self._reader.read(recipe).coefficients)

    def densities(self, recipe: Recipe) -> dict[str, dict[Group, float]]:
        """Kept fractions by expert and group, as :meth:`table`; groups without one are absent."""
        return self._reader.by_group(self._reader.read(recipe).densities)

    def by_group(self, recipe: Recipe) -> ByGroup:
        """:meth:`table`, :meth:`densities` and :meth:`chosen_methods` of one recipe, read once."""
        reading = self._reader.read(recipe)
        return ByGroup(
            self._reader.by_group(reading.coefficients),
            self._reader.by_group(reading.densities),
            self._reader.methods(reading),
        )

    def chosen_methods(self, recipe: Recipe) -> dict[Group, str]:
        """The method of every group, the most frequent one of its tensors; as :meth:`table`."""
        return self._reader.methods(self._reader.read(recipe))

    def _check(self, genome: Genome) -> None:
        if genome not in self.box:
            raise SpaceError(
                f"expected a genome with {self.box.continuous} values in [0, 1] and choices below "
                f"{self.box.categories}, found {len(genome.values)} values and choices {genome.categories}"
            )

    def _track(self, coefficient: float) -> list[float]:
        """[genes of one expert] the same coefficient everywhere."""
        if self._plan.line:
            return [coefficient, 0.0] if self._plan.width else []
        return [coefficient] * self._plan.width

    def _gene(self, coefficient: float) -> float:
        """A gene's value in [0, 1] for a coefficient."""
        low, high = self.coefficient.low, self.coefficient.high
        try:
            return Interval(low, high).gene(coefficient)
        except SpaceError as error:
            raise SpaceError(
                f"expected coefficients in [{low:g}, {high:g}], found {coefficient:g}; widen the bounds of the space"
            ) from error

    def _by_group(self, assignments: Sequence[Assignment]) -> Recipe:
        """One recipe per effect, also tensor by tensor: a group has the assignment of most of its tensors (of the first
        of them, where several are as frequent), the others are set apart."""
        of: dict[Group, Counter[Assignment]] = {}
        for (group, _), assignment in zip(self._units, assignments, strict=True):
            of.setdefault(group, Counter())[assignment] += 1
        groups = {group: counts.most_common(1)[0][0] for group, counts in of.items()}
        apart = {
            tensor: assignment
            for (group, tensor), assignment in zip(self._units, assignments, strict=True)
            if assignment != groups[group]
        }
        return Recipe(self.base, self.sources, groups, apart, self.dtype)


def _by_tensor(tensors: Mapping[str, Group], groups: Sequence[Group]) -> tuple[tuple[Group, str], ...]:
    if set(tensors.values()) != set(groups):
        other = sorted(str(each) for each in set(tensors.values()) ^ set(groups))
        raise SpaceError(f"expected tensors of exactly the model's groups, found a difference in {other[:3]}")
    return tuple(sorted(((group, name) for name, group in tensors.items()), key=lambda each: (each[0].order, each[1])))


def _check_models(
    base: str, sources: Mapping[str, SourceRef], experts: tuple[str, ...], groups: Sequence[Group]
) -> None:
    absent = [alias for alias in (base, *experts) if alias not in sources]
    if absent:
        raise SpaceError(unknown("source", absent[0], tuple(sources)))
    if not experts or len(set(experts)) < len(experts) or base in experts:
        raise SpaceError(f"expected one or more different experts beside the base {base!r}, found {list(experts)}")
    if not groups:
        raise SpaceError("expected the groups of a model, found none")
