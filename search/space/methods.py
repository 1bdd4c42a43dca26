"""The methods that a space chooses from: what of each is fixed, what is a gene, and how it treats its sources.

Everything is read from what the method declares, so a plug-in's method is searched like a built-in one.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from merging.methods import CALIBRATION, DELTA_SCALE, Method, Parameter, canonical, get, source_hash
from merging.recipe import Assignment, MergingError, Value
from search.space.scales import Interval, Scale, SpaceError, Steps, density_steps

COEFFICIENT = "coefficient"
DENSITY = "density"
NORMALIZE = "normalize"

Given = Value | Sequence[Value]

DROP_ZEROS = frozenset(
    {"task_arithmetic", "linear", "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs",
     "breadcrumbs_ties"}
)  # fmt: skip
"""Their canonical assignment is the complete one without the sources of coefficient 0."""

PLANNED = "calibration data that are not read yet"
"""Stands for the fingerprint of calibration data where nothing is made, only checked."""

_MOST_COMBINATIONS = 256


@dataclass(frozen=True)
class MethodChoice:
    """A method that may be chosen.

    Attributes:
        name: registered, installed or ``path/to/file.py:ClassName``.
        parameters: a scalar fixes a parameter; [low, high] makes one that is a number a gene, a list of words or of
            yes/no values makes one of those a categorical gene. What is not named keeps the method's default.
    """

    name: str
    parameters: Mapping[str, Given] = field(default_factory=dict)


@dataclass(frozen=True)
class ParameterGene:
    """A searched parameter; one value for all sources where it is per source.

    Attributes:
        name: of the parameter.
        per_source: it stands with every source, not with the assignment.
        scale: of a number; None for a categorical one.
        options: of a categorical one; empty for a number.
    """

    name: str
    per_source: bool
    scale: Scale | None = None
    options: tuple[Value, ...] = ()


@dataclass(frozen=True)
class SearchedMethod:
    """A method as a space uses it.

    Attributes:
        name: of the method.
        coefficients: its sources have coefficients, which the space's genes give.
        density: how it takes the space's densities: one for each source, one for all, or not at all.
        shared, per_source: fixed parameters, defaults written out.
        genes: searched parameters.
        averages_weights: it merges weights, not task vectors onto the base: its coefficients must not sum to 0.
        sums: its ``normalize``, where it is on, divides by the sum of the coefficients.
        drops_zeros: see :data:`DROP_ZEROS`.
        plain_spelling: its canonical assignment can be written down at once, which decoding hundreds of groups needs;
            :func:`merging.methods.canonical` spells the others.
        symmetric: the order of its sources does not matter.
    """

    name: str
    coefficients: bool
    density: Literal["none", "per_source", "shared"]
    shared: Mapping[str, Value]
    per_source: Mapping[str, Value]
    genes: tuple[ParameterGene, ...]
    averages_weights: bool
    sums: bool
    drops_zeros: bool
    plain_spelling: bool
    symmetric: bool

    @property
    def averages_agreement(self) -> bool:
        """It divides what agrees by how much agrees, as TIES does: coefficients of 1 are its average merge."""
        return not self.sums and not self.averages_weights and self.shared.get(NORMALIZE) is True

    def divides(self, shared: Mapping[str, Value]) -> bool:
        """Whether it means nothing where the coefficients sum to 0."""
        return self.averages_weights or (self.sums and shared.get(NORMALIZE) is True)


def searched(choice: MethodChoice, experts: int, normalize: bool, calibration: str = PLANNED) -> SearchedMethod:
    """A choice resolved against what its method declares.

    Args:
        choice: what the config says.
        experts: how many there are.
        normalize: methods whose ``normalize`` is off by default have it on.
        calibration: fingerprint of the calibration data, for a method that needs any.

    Raises:
        SpaceError: the first of :func:`problems`.
    """
    for name, message in problems(choice, experts):
        raise SpaceError(f"method {choice.name}, parameter {name}: {message}" if name else message)
    method = get(choice.name)
    fixed: dict[bool, dict[str, Value]] = {False: {}, True: {}}
    genes = []
    density: Literal["none", "per_source", "shared"] = "none"
    if method.needs.calibration:
        fixed[False][CALIBRATION.name] = calibration
    for parameter in _searchable(method).values():
        given = choice.parameters.get(parameter.name)
        if given is None and parameter.name == DENSITY:
            density = "per_source" if parameter.per_source else "shared"
        elif given is None and parameter is DELTA_SCALE:
            continue
        elif given is None and parameter.default is not None:
            on = normalize and parameter.name == NORMALIZE and parameter.default is False
            fixed[parameter.per_source][parameter.name] = True if on else parameter.default
        elif given is not None:
            read = _read(parameter, given, choice.name)
            if isinstance(read, ParameterGene):
                genes.append(read)
            else:
                fixed[parameter.per_source][parameter.name] = read
    normalizing = [each for each in method.parameters if each.name == NORMALIZE]
    found = SearchedMethod(
        name=choice.name,
        coefficients=_takes_coefficients(method),
        density=density,
        shared=fixed[False],
        per_source=fixed[True],
        genes=tuple(genes),
        averages_weights=not method.needs.base,
        sums=any(each.default is False for each in normalizing),
        drops_zeros=choice.name in DROP_ZEROS,
        # Complete is canonical where the method leaves nothing out, and no file's hash has to be added.
        plain_spelling=choice.name in DROP_ZEROS
        or (source_hash(choice.name) is None and type(method).reduce is Method.reduce),
        symmetric=method.symmetric,
    )
    _try_options(found, experts)
    return found


def problems(choice: MethodChoice, experts: int) -> Iterator[tuple[str, str]]:
    """What is wrong with a choice: (parameter, or "" for the method itself; message)."""
    try:
        method = get(choice.name)
    except MergingError as error:
        yield "", str(error)
        return
    needs = method.needs
    if experts < needs.minimum or (needs.maximum is not None and experts > needs.maximum):
        exactly = needs.minimum == needs.maximum
        bound = "exactly" if exactly else "at least" if experts < needs.minimum else "at most"
        number = needs.minimum if experts < needs.minimum else needs.maximum
        count = {1: "one expert", 2: "two experts"}.get(int(number or 0), f"{number} experts")
        yield "", f"{choice.name} merges {bound} {count}, found {experts}; leave it out"
    known = _searchable(method)
    for name, given in choice.parameters.items():
        if name == COEFFICIENT and _takes_coefficients(method):
            yield name, "coefficients are genes already; their bounds are the space's `coefficient`"
        elif name not in known:
            yield name, f"{choice.name} has no parameter {name!r}{_suggestion(name, known)}"
        elif name in method.fixed and isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 1:
            yield name, f"{name} of {choice.name} cannot be searched: what depends on it is computed once; give a value"
        else:
            try:
                _read(known[name], given, choice.name)
            except SpaceError as error:
                yield name, str(error)
    for name, parameter in known.items():
        if parameter.default is None and name != DENSITY and name not in choice.parameters:
            yield "", f"{choice.name} needs {name} ({parameter.doc}); give a value or bounds under its parameters"


def coefficient_bounds(name: str) -> tuple[float, float]:
    """The coefficients that a method accepts from a space's genes; without end where it takes none, or all.

    Raises:
        MergingError: there is no such method.
    """
    method = get(name)
    declared = [each for each in method.parameters if each.name == COEFFICIENT and _takes_coefficients(method)]
    return (declared[0].low, declared[0].high) if declared else (-math.inf, math.inf)


def takes_coefficients(name: str) -> bool:
    """Whether a method's sources have coefficients that a search may vary.

    Raises:
        MergingError: there is no such method.
    """
    return _takes_coefficients(get(name))


def example(method: SearchedMethod, experts: Sequence[str]) -> Assignment:
    """An assignment of a method with what is fixed of it, coefficients of 1 and the defaults of what is searched: what
    it needs beforehand, any of its candidates needs.

    Args:
        method: of a space.
        experts: aliases, in order.
    """
    own = dict(method.per_source) | ({COEFFICIENT: 1.0} if method.coefficients else {})
    shared = dict(method.shared)
    if method.density != "none":
        (own if method.density == "per_source" else shared)[DENSITY] = 1.0
    for gene in method.genes:
        value = gene.options[0] if gene.scale is None else gene.scale.value(0.5)
        (own if gene.per_source else shared)[gene.name] = value
    return canonical(Assignment.of(method.name, dict.fromkeys(experts, own), **shared))


def _suggestion(name: str, known: Mapping[str, Parameter]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(sorted(known))}"


def _takes_coefficients(method: Method) -> bool:
    """Whether its sources have coefficients that a search may vary."""
    declared = any(each.name == COEFFICIENT and each.per_source for each in method.parameters)
    return declared and COEFFICIENT not in method.fixed


def _searchable(method: Method) -> dict[str, Parameter]:
    """Parameters that are fixed or genes; coefficients, which have genes of the space's own, are not among them."""
    declared = (*method.parameters, DELTA_SCALE)
    free = _takes_coefficients(method)
    return {each.name: each for each in declared if not (free and each.name == COEFFICIENT and each.per_source)}


def _read(parameter: Parameter, given: Given, method: str) -> Value | ParameterGene:
    """A fixed value, or a gene.

    Raises:
        SpaceError: of the wrong type, out of range, or neither a scalar nor a list that makes a gene.
    """
    name, per_source = parameter.name, parameter.per_source
    try:
        if not isinstance(given, Sequence) or isinstance(given, str):
            return parameter.check(given, method)
        values = tuple(parameter.check(each, method) for each in given)
    except MergingError as error:
        raise SpaceError(str(error)) from error
    if parameter.type in (bool, str):
        if len(set(values)) < max(len(values), 1):
            raise SpaceError(f"expected one or more different values, found {list(given)}")
        return ParameterGene(name, per_source, options=values) if len(values) > 1 else values[0]
    if len(values) != 2 or not values[0] < values[1]:  # type: ignore[operator]
        raise SpaceError(f"expected a number, or [low, high] with low < high, found {list(given)}")
    low, high = (float(each) for each in values)
    if name == DENSITY:
        return ParameterGene(name, per_source, density_steps(low, high))
    scale: Scale = Steps(int(low), int(high)) if parameter.type is int else Interval(low, high)
    return ParameterGene(name, per_source, scale)


def _try_options(method: SearchedMethod, experts: int) -> None:
    """Raises SpaceError where the method refuses some combination of its options."""
    categorical = [gene for gene in method.genes if gene.options]
    numeric = {gene.name: (gene.per_source, gene.scale.value(0.5)) for gene in method.genes if gene.scale is not None}
    combinations = itertools.islice(itertools.product(*(gene.options for gene in categorical)), _MOST_COMBINATIONS)
    for values in combinations:
        own: dict[str, Value] = dict(method.per_source)
        shared: dict[str, Value] = dict(method.shared)
        chosen = {gene.name: (gene.per_source, value) for gene, value in zip(categorical, values, strict=True)}
        for name, (per_source, value) in (chosen | numeric).items():
            (own if per_source else shared)[name] = value
        if method.coefficients:
            own[COEFFICIENT] = 1.0 / experts
        if method.density != "none":
            (own if method.density == "per_source" else shared)[DENSITY] = 0.5
        try:
            canonical(Assignment.of(method.name, {f"{each}": own for each in range(experts)}, **shared))
        except MergingError as error:
            raise SpaceError(str(error)) from error
