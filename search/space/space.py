"""The space that a search moves in: from a genome to a recipe and back.

One recipe per effect: :meth:`Space.decode` writes an assignment for every group, whatever the granularity, spelled as
:mod:`merging.methods` spells it, with coefficients rounded to 12 significant digits, before interpolation and after it.
A coefficient per expert and equal knots are thus the same recipe, with the same hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import ClassVar, Literal

from merging.recipe import Assignment, Group, Recipe, SourceRef, Value
from search.optimizers.contract import Genome
from search.space.encoding import NO_EFFECT, canonical, nearest
from search.space.methods import PLANNED, MethodChoice, searched
from search.space.mixing import Mixing
from search.space.plan import Plan
from search.space.reading import ByGroup, Reader, difference
from search.space.scales import Bounds, Interval, SpaceError, density_steps
from search.space.spelling import Speller
from search.space.tracks import Borders, Granularity, unknown

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
        mixing: of the experts in ``taking``, where their coefficients are those of an expression: its variables have
            the genes, and ``coefficient`` and ``shared`` mean nothing. See :func:`search.space.mixing.mixed`.
        taking: aliases of the experts that take part; all of them if None.
        methods: any that are registered; a gene per run of depths chooses where there are several.
        method_blocks: how many runs of depths, per stack, choose their method and their densities separately; or the
            borders of such runs.
        method_kinds: every kind set of ``kinds`` chooses its method, densities and searched parameters for itself, in
            every such run; at any granularity.
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

    is_path: ClassVar[Literal[False]] = False
    sure: ClassVar[None] = None

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
        mixing: Mixing | None = None,
        taking: Sequence[str] | None = None,
        methods: Sequence[str | MethodChoice] = ("task_arithmetic",),
        method_blocks: int | Borders = 1,
        method_kinds: bool = False,
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
        self.taking = self.experts if taking is None else tuple(taking)
        if mixing is None:
            mixing = (Mixing.shared if shared else Mixing.own)(self.taking, coefficient)
        self.mixing = mixing
        self.shared = len(mixing.owners) == 1 and not mixing.owners[0]
        self.normalize = normalize
        self.dtype = dtype
        _check_models(base, self.sources, self.experts, self.groups)
        _check_models(base, self.sources, self.taking, self.groups)
        choices = [MethodChoice(each) if isinstance(each, str) else each for each in methods]
        self.methods = tuple(each.name for each in choices)
        if not choices or len(set(self.methods)) < len(choices) or _too_few(method_blocks):
            raise SpaceError(
                f"expected one or more different methods and method_blocks >= 1, found {list(self.methods)} and "
                f"{method_blocks}"
            )
        used = tuple(searched(each, len(self.taking), normalize, calibration) for each in choices)
        without = [each.name for each in used if not each.coefficients]
        if mixing.of_variables and without:
            raise SpaceError(
                f"an expression gives coefficients, and {', '.join(without)} takes none; leave it out of the methods"
            )
        self._apart = granularity == "tensor"
        whole = tuple((group, "") for group in self.groups)
        units = _by_tensor(tensors, self.groups) if tensors is not None else whole
        self._reader = Reader(self.sources, self.experts, *zip(*units, strict=True))
        if self._apart and tensors is None:
            raise SpaceError("granularity tensor needs the names of the model's tensors, found none")
        self._units = units if self._apart else whole
        dense = any(each.density != "none" for each in used)
        self._plan = Plan(
            experts=self.taking,
            groups=[group for group, _ in self._units],
            tensors=[tensor for _, tensor in self._units],
            granularity=granularity,
            kinds=kinds,
            mixing=mixing,
            methods=used,
            blocks=method_blocks,
            apart=method_kinds,
            density=density_steps(density.low, density.high) if dense else None,
            shared_density=shared_density,
        )
        self._speller = Speller(self.taking)
        own = units if self._apart else whole
        self._own_reader = Reader(self.sources, self.taking, *zip(*own, strict=True))
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
                settled = point.settled[run]
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
            coefficients: by expert, or by variable where the space is one of an expression; 0 for those that are not
                named.
            method: one of :attr:`methods`; the first if None.

        Raises:
            SpaceError: an unknown expert or method, a coefficient outside the bounds, or different ones for experts
                that share theirs.
        """
        owners, what = (self.taking, "expert") if not self.mixing.of_variables else (self.mixing.owners, "variable")
        for name in coefficients:
            if name not in owners:
                raise SpaceError(unknown(what, name, owners))
        if method is not None and method not in self.methods:
            raise SpaceError(unknown("method", method, self.methods))
        wanted = [float(coefficients.get(owner, 0.0)) for owner in owners]
        if self.shared and len(set(wanted)) > 1:
            raise SpaceError(f"all experts share their coefficients in this space, found {dict(coefficients)}")
        choice = 0 if method is None else self.methods.index(method)
        values = [
            self._gene(owner, each)
            for owner, number in enumerate(wanted[: len(self._plan.owners)])
            for each in self._track(number)
        ]
        values += [NO_EFFECT] * (self.box.continuous - len(values))
        categories = [0] * len(self.box.categories)
        categories[: self._plan.method_genes] = [choice] * self._plan.method_genes
        return Genome(tuple(values), tuple(categories))

    def center(self) -> Genome:
        """Where a search starts that knows nothing: the average merge by the first method, variables in the middle of
        their bounds, all else at the middle."""
        values = [self._gene(owner, each) for owner in range(len(self._plan.owners)) for each in self._middle(owner)]
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
        numbers += [parameters[each.scope][each.method][each.name] for each in plan.numbers]
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

    def _middle(self, owner: int) -> list[float]:
        """[genes of one owner] where a search starts."""
        bounds, first = self.mixing.bounds[owner], self._plan.methods[0]
        average = 1.0 if first.averages_agreement else 1.0 / len(self.taking)
        start = (bounds.low + bounds.high) / 2.0 if self.mixing.of_variables else average
        rise = [min(max(0.0, bounds.low), bounds.high)] if self._plan.line else []
        return [min(max(start, bounds.low), bounds.high)] * (self._plan.width - len(rise)) + rise

    def _gene(self, owner: int, value: float) -> float:
        """A gene's value in [0, 1] for a coefficient, or a variable."""
        bounds = self.mixing.bounds[owner]
        try:
            return Interval(bounds.low, bounds.high).gene(value)
        except SpaceError as error:
            what = f"the variable {self.mixing.owners[owner]}" if self.mixing.of_variables else "coefficients"
            raise SpaceError(
                f"expected {what} in [{bounds.low:g}, {bounds.high:g}], found {value:g}; widen the bounds of the space"
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


def _too_few(blocks: int | Borders) -> bool:
    return blocks < 1 if isinstance(blocks, int) else not blocks


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
