"""The way back: the point at which a recipe lies, and the one point of all that give the same recipe."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from merging.methods import DELTA_SCALE
from merging.recipe import Assignment, Value
from search.optimizers.contract import Genome
from search.space.methods import NORMALIZE, SearchedMethod
from search.space.plan import Plan
from search.space.reading import Reading
from search.space.scales import Array, Bounds, Interval, SpaceError
from search.space.spelling import NEGLIGIBLE, PLAIN, PLAIN_PARAMETERS, SLERP_DEFAULT, Settled, Speller

NO_EFFECT = 0.5
"""Where a gene in [0, 1] stands that has no effect; a categorical one stands at its first choice."""


def nearest(plan: Plan, speller: Speller, reading: Reading) -> Genome:
    """The genome that shows in a recipe. Whether the recipe is that point's, its hash says.

    Raises:
        SpaceError: numbers out of bounds, or methods that the space does not have.
    """
    values = [NO_EFFECT] * plan.box.continuous
    categories = [0] * len(plan.box.categories)
    rows = [tuple(row) for row in reading.coefficients.tolist()]
    ambiguous = [_may_stand_in(each, row) for each, row in zip(reading.assignments, rows, strict=True)]
    shown = _shown(plan, reading, ambiguous)
    for run, method in shown.items():
        _read_parameters(plan, run, method, reading.assignments[_first(plan, run, ambiguous)], values, categories)
    known = {(plan.scope(run), method) for run, method in shown.items()}
    choices = tuple(
        shown[run] if run in shown else _behind(plan, speller, reading, run, known, values, categories)
        for run in range(len(plan.runs))
    )
    categories[: plan.method_genes] = choices[: plan.method_genes]
    _read_coefficients(plan, reading, choices, values)
    for run, method in shown.items():
        _read_densities(plan, run, plan.methods[method], reading, ambiguous, values)
    return Genome(tuple(values), tuple(categories))


def canonical(plan: Plan, speller: Speller, genome: Genome) -> Genome:
    """The genome with the same recipe whose genes of no effect are at :data:`NO_EFFECT` or their first choice, its
    stepped genes at the middle of their step."""
    point = plan.point(genome)
    values = list(genome.values)
    categories = list(genome.categories)
    seen: dict[int, list[int]] = {}
    for unit, run in enumerate(plan.run_of.tolist()):
        if not point.settled[run].is_plain(point.rows[unit]):
            seen.setdefault(run, []).append(unit)
    _settle_methods(plan, point.rows, seen, categories)
    for gene, witness in enumerate(point.projection.witnesses):
        for owner in range(len(plan.owners)):
            if witness is None:
                values[owner * plan.width + gene] = NO_EFFECT
    for run in range(len(plan.runs)):
        used = _dense(
            plan.methods[point.choices[run]], [point.rows[unit] for unit in seen.get(run, ())], len(plan.experts)
        )
        _settle_densities(plan, run, used, values)
    chosen = {(plan.scope(run), point.choices[run]): (run, units[0]) for run, units in seen.items()}
    written = {
        (scope, method): speller.assignment(point.settled[run], point.rows[unit], point.densities[run])
        for (scope, method), (run, unit) in chosen.items()
        if plan.methods[method].genes
    }
    _settle_parameters(plan, written, values, categories)
    return Genome(tuple(values), tuple(categories))


def _may_stand_in(assignment: Assignment, row: Sequence[float]) -> bool:
    """Whether an assignment may be what is written for methods that mean nothing with these coefficients."""
    plain = assignment.method == PLAIN and assignment.parameters == PLAIN_PARAMETERS
    return plain and (not any(row) or abs(sum(row)) < NEGLIGIBLE)


def _shown(plan: Plan, reading: Reading, ambiguous: Sequence[bool]) -> dict[int, int]:
    """Run -> index of the method that its units show, where any does."""
    names = [each.name for each in plan.methods]
    found: dict[int, int] = {}
    for run, each in enumerate(plan.runs):
        methods = {reading.assignments[unit].method for unit in each.members if not ambiguous[unit]}
        if len(methods) > 1 or not methods <= set(names):
            raise SpaceError(
                f"expected one method out of {', '.join(names)} per run of depths, found {', '.join(sorted(methods))} "
                f"in run {run}"
            )
        if methods:
            found[run] = names.index(methods.pop())
    return found


def _first(plan: Plan, run: int, ambiguous: Sequence[bool]) -> int:
    return next(unit for unit in plan.runs[run].members if not ambiguous[unit])


def _behind(
    plan: Plan,
    speller: Speller,
    reading: Reading,
    run: int,
    known: set[tuple[int, int]],
    values: list[float],
    categories: list[int],
) -> int:
    """The first method for which this run's plain task arithmetic is what would be written; its ``normalize`` is turned
    on where that takes it and nothing else shows it.

    Args:
        known: scopes and methods whose parameters have been read.
        values, categories: of the genome; written to.
    """
    units, scope = plan.runs[run].members, plan.scope(run)
    rows = {tuple(reading.coefficients[unit].tolist()) for unit in units}
    for index, method in enumerate(plan.methods):
        for attempt in _attempts(plan, scope, index, (scope, index) in known, categories):
            genome = Genome(tuple(values), tuple(attempt))
            settled = Settled.of(method, plan.parameters(genome)[scope][index])
            if method.coefficients and all(
                settled.is_plain(row)
                or speller.assignment(settled, row, (1.0,) * len(plan.experts)) == speller.plain(row)
                for row in rows
            ):
                categories[:] = attempt
                return index
    raise SpaceError(
        f"expected one method out of {', '.join(each.name for each in plan.methods)} per run of depths, found plain "
        f"task arithmetic with coefficients that sum to 0 in run {run}, which none of them is"
    )


def _attempts(plan: Plan, scope: int, index: int, known: bool, categories: Sequence[int]) -> list[list[int]]:
    """The categories as they are, and with the method's ``normalize`` on where that is free."""
    found = [list(categories)]
    for gene in plan.methods[index].genes:
        if gene.name == NORMALIZE and True in gene.options and not known:
            on = list(categories)
            on[plan.option_gene(scope, index, NORMALIZE)] = gene.options.index(True)
            found.append(on)
    return found


def _read_parameters(
    plan: Plan, run: int, method: int, assignment: Assignment, values: list[float], categories: list[int]
) -> None:
    found, scope = _parameters_of(assignment), plan.scope(run)
    for gene in plan.methods[method].genes:
        value = found.get(gene.name, _left_out(gene.name))
        # What cannot be meant stays as it is: a method may have spelled it in a way of its own, as the hash will tell.
        if value in gene.options:
            categories[plan.option_gene(scope, method, gene.name)] = gene.options.index(value)
        elif gene.scale is not None and not isinstance(value, str | bool):
            with contextlib.suppress(SpaceError):
                values[plan.number_gene(scope, method, gene.name)] = gene.scale.gene(float(value))


def _left_out(name: str) -> Value:
    """What a canonical assignment leaves out where it is the default."""
    left_out: dict[str, Value] = {DELTA_SCALE.name: 1.0, SLERP_DEFAULT[0]: SLERP_DEFAULT[1]}
    return left_out.get(name, 0.0)


def _parameters_of(assignment: Assignment) -> Mapping[str, Value]:
    """Shared parameters, and those of the first source."""
    own = dict(assignment.sources[0][1]) if assignment.sources else {}
    return {**own, **dict(assignment.parameters)}


def _read_coefficients(plan: Plan, reading: Reading, choices: tuple[int, ...], values: list[float]) -> None:
    witnesses = plan.projection(choices).witnesses if plan.width else ()
    read: dict[int, Array] = {}
    for unit in {each for each in witnesses if each is not None}:
        coefficients = reading.coefficients[unit]
        if np.isnan(coefficients).any():
            raise SpaceError("expected a coefficient for every expert where the method takes them, found none")
        read[unit] = plan.mixing.read(coefficients)
    for owner, bounds in enumerate(plan.mixing.bounds):
        for gene, witness in enumerate(witnesses):
            if witness is None:
                continue
            value = float(read[witness][owner])
            if plan.line and gene == 1 and witnesses[0] is not None:
                value -= float(read[witnesses[0]][owner])
            values[owner * plan.width + gene] = _gene(plan, owner, value, bounds)


def _gene(plan: Plan, owner: int, value: float, bounds: Bounds) -> float:
    try:
        return Interval(bounds.low, bounds.high).gene(value)
    except SpaceError as error:
        what = f"the variable {plan.owners[owner]}" if plan.mixing.of_variables else "coefficients"
        raise SpaceError(
            f"expected {what} in [{bounds.low:g}, {bounds.high:g}], found {value:g}; widen the bounds of the space"
        ) from error


def _read_densities(
    plan: Plan, run: int, method: SearchedMethod, reading: Reading, ambiguous: Sequence[bool], values: list[float]
) -> None:
    if plan.density is None or method.density == "none":
        return
    units = [unit for unit in plan.runs[run].members if not ambiguous[unit]]
    shown = reading.densities[units]
    experts = range(len(plan.experts)) if method.density == "per_source" else (0,)
    for expert in experts:
        # One density for all sources shows with every source that there is.
        column = shown[:, expert] if method.density == "per_source" else shown.reshape(-1)
        known = column[~np.isnan(column)]
        if len(known):
            values[plan.density_gene(run, expert)] = plan.density.gene(float(known[0]))


def _settle_methods(
    plan: Plan, rows: Sequence[tuple[float, ...]], seen: Mapping[int, Sequence[int]], categories: list[int]
) -> None:
    for run in range(plan.method_genes):
        if run not in seen and not any(itertools.chain.from_iterable(rows[unit] for unit in plan.runs[run].members)):
            categories[run] = next(index for index, each in enumerate(plan.methods) if each.coefficients)


def _dense(method: SearchedMethod, rows: Sequence[tuple[float, ...]], experts: int) -> set[int]:
    """The experts whose densities show in some row."""
    if method.density == "none" or not rows:
        return set()
    if method.density == "shared":
        return {0}
    if not method.drops_zeros or not method.coefficients:
        return set(range(experts))
    return {expert for expert in range(experts) if any(row[expert] for row in rows)}


def _settle_densities(plan: Plan, run: int, used: set[int], values: list[float]) -> None:
    if plan.density is None:
        return
    for gene in {plan.density_gene(run, expert) for expert in range(len(plan.experts))}:
        shows = any(plan.density_gene(run, expert) == gene for expert in used)
        values[gene] = plan.density.settled(values[gene]) if shows else NO_EFFECT


def _settle_parameters(
    plan: Plan, written: Mapping[tuple[int, int], Assignment], values: list[float], categories: list[int]
) -> None:
    for number in plan.numbers:
        at = plan.number_gene(number.scope, number.method, number.name)
        shows = (number.scope, number.method) in written
        values[at] = number.scale.settled(values[at]) if shows else NO_EFFECT
    for option in plan.options:
        at = plan.option_gene(option.scope, option.method, option.name)
        if (option.scope, option.method) not in written:
            categories[at] = 0
            continue
        value = _parameters_of(written[option.scope, option.method]).get(option.name, _left_out(option.name))
        # A method may leave out what has no effect (row_wise of a flattened tensor): one choice stands for all.
        if value in option.choices:
            categories[at] = option.choices.index(value)
