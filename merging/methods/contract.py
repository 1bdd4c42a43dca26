"""What a merge method is: a pure function on tensors, with declared parameters.

A method is stateless. It sees pieces of tensors (the smallest that its ``scope`` allows), already read, and gives the
merged piece at the accumulation precision; reading, chunking, compiling and the one rounding at the end are the
backend's. There are two ways to write one:

- :class:`Elementwise`: names a pure function of torch operations and the numbers that it needs for a tensor. The
  backend runs it eagerly or compiled, with the same bits. Whatever can be written so should be.
- :class:`Method` itself: :meth:`Method.apply` on pieces that are as whole as ``scope`` says.

:mod:`merging.conformance` holds the test class that every method, also a third party's, must pass.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from merging.calibration.contract import Statistic
from merging.recipe import Assignment, MergingError, Value

if TYPE_CHECKING:
    from torch import Tensor

    from merging.pool import Pool

Scope = Literal["element", "row", "matrix", "model"]


@dataclass(frozen=True)
class Parameter:
    """A declared parameter of a method.

    Attributes:
        name: as recipes write it.
        type: float, int, bool or str.
        doc: one line for people.
        default: the value where a recipe says nothing; None: a recipe must say it.
        low, high: inclusive range of numbers.
        choices: the permitted values of a str.
        per_source: one value per source; otherwise one for the whole assignment.
    """

    name: str
    type: type[float] | type[int] | type[bool] | type[str]
    doc: str
    default: Value | None = None
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    per_source: bool = False

    def check(self, value: object, method: str) -> Value:
        """The value in the parameter's type.

        Raises:
            MergingError: wrong type, not finite, or out of range.
        """
        found = f"{value!r} for {self.name} of method {method}"
        if self.type is bool or self.type is str:
            if not isinstance(value, self.type) or (self.choices and value not in self.choices):
                wanted = f"one of {', '.join(self.choices)}" if self.choices else self.type.__name__
                raise MergingError(f"expected {wanted}, found {found}")
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise MergingError(f"expected {'an integer' if self.type is int else 'a number'}, found {found}")
        if not math.isfinite(value) or not self.low <= value <= self.high:
            raise MergingError(f"expected a finite number in [{self.low:g}, {self.high:g}], found {found}")
        if self.type is int and value != int(value):
            raise MergingError(f"expected an integer, found {found}")
        return int(value) if self.type is int else float(value) + 0.0  # -0.0 becomes 0.0: one spelling


# Understood by every method and applied by the backend to its result; left out of a canonical assignment where it is 1.
DELTA_SCALE = Parameter(
    "delta_scale",
    float,
    "factor on what the method adds to the base: θ0 + delta_scale·(θ − θ0), as LiNeS and ExPO use it",
    default=1.0,
)


# Of methods that need calibration data: which data, since the result depends on it.
CALIBRATION = Parameter("calibration", str, "fingerprint of the calibration data")


@dataclass(frozen=True)
class Needs:
    """What a method cannot do without.

    Attributes:
        base: it reads the base model.
        minimum, maximum: number of sources; maximum None is no limit.
        calibration: it needs inputs to run the models on; its recipes then name :data:`CALIBRATION`.
        statistics: what of :class:`merging.calibration.contract.Calibration` it asks for, so that it is collected
            beforehand.
    """

    base: bool = False
    minimum: int = 1
    maximum: int | None = None
    calibration: bool = False
    statistics: frozenset[Statistic] = frozenset()


@dataclass(frozen=True)
class Values:
    """Checked parameters of one assignment, every default written out.

    Attributes:
        shared: parameter name -> value.
        sources: [sources] parameter name -> value, in the assignment's order.
    """

    shared: Mapping[str, Value]
    sources: tuple[Mapping[str, Value], ...]

    @staticmethod
    def of(assignment: Assignment) -> Values:
        """From an assignment that :meth:`Method.canonical` returned."""
        return Values(dict(assignment.parameters), tuple(dict(values) for _, values in assignment.sources))

    def column(self, name: str) -> tuple[float, ...]:
        """[sources] one numeric per-source parameter."""
        return tuple(float(values[name]) for values in self.sources)


@dataclass(frozen=True)
class Context:
    """What a method sees of one tensor, or of one piece of it.

    Attributes:
        name: canonical tensor name.
        shape: of the whole tensor.
        start: where the piece begins in the flattened tensor.
        base: the base's piece, in its stored dtype; None unless the method reads it.
        sources: [sources] the sources' pieces, in their stored dtypes, in the assignment's order.
        statistics: what :meth:`Method.prepare` returned for the whole tensor.

    Pieces are flat for scope element, [rows, rest] for scope row, of the tensor's shape for matrix and model.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    base: Tensor | None
    sources: tuple[Tensor, ...]
    statistics: Any


@dataclass(frozen=True)
class Elements:
    """An elementwise computation of one tensor, ready for any cut of it.

    Attributes:
        kernel: a module-level function ``kernel(inputs: Inputs, *options) -> Tensor`` of torch operations alone, every
            element of the result from the same element of the inputs, in the dtype of ``inputs.numbers``. Only
            operations that IEEE 754 rounds exactly (no exp, log, tanh): then eager and compiled give the same bits.
        options: its static arguments. Each combination is compiled apart, so few should exist.
        numbers: real numbers that change from tensor to tensor or candidate to candidate.
        integers: the same, for 32-bit signed integers.
        sources: which of the assignment's sources are read, in order.
        base: whether the base is read.
        indexed: whether it needs the elements' indices.
        fields: further tensors with one entry per element of the tensor, flat.
        gain: no element of the result is larger than this times the largest |element| of base and sources. Where that
            bound is far from overflow, nobody has to look at the result; the default promises nothing.
    """

    kernel: Callable[..., Tensor]
    options: tuple[Hashable, ...] = ()
    numbers: tuple[float, ...] = ()
    integers: tuple[int, ...] = ()
    sources: tuple[int, ...] = ()
    base: bool = True
    indexed: bool = False
    fields: tuple[Tensor, ...] = ()
    gain: float = math.inf


class Inputs(NamedTuple):
    """What a kernel of :class:`Elements` is called with. All tensors are flat pieces of one length.

    Attributes:
        base: in its stored dtype; a source where ``Elements.base`` is off.
        sources: those that ``Elements.sources`` lists, in their stored dtypes.
        numbers: [numbers], float32 or float64: the accumulation dtype.
        integers: [integers], int32.
        indices: int32, of the elements in the tensor modulo 2³²; empty where ``Elements.indexed`` is off.
        fields: as ``Elements.fields``.
    """

    base: Tensor
    sources: tuple[Tensor, ...]
    numbers: Tensor
    integers: Tensor
    indices: Tensor
    fields: tuple[Tensor, ...]


class Method(ABC):
    """A merge method. Subclass it, fill in the class attributes and :meth:`apply`, and register the class.

    Class attributes:
        name: as recipes write it.
        scope: the smallest thing that it must see whole.
        needs: see :class:`Needs`.
        parameters: see :class:`Parameter`.
        formula: one line.
        paper: where it is from.
        symmetric: the order of the sources does not matter.
        fixed: names of parameters, :data:`DELTA_SCALE` and coefficients among them, that a search may not vary: with
            other values the method needs what is collected before a search begins.

    Every method also takes :data:`DELTA_SCALE`.
    """

    name: ClassVar[str]
    scope: ClassVar[Scope] = "element"
    needs: ClassVar[Needs] = Needs()
    parameters: ClassVar[tuple[Parameter, ...]] = ()
    formula: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    symmetric: ClassVar[bool] = False
    fixed: ClassVar[frozenset[str]] = frozenset()

    def reads_base(self, values: Values) -> bool:
        """Whether these parameters make the method read the base; those that always do say so in ``needs``."""
        return self.needs.base

    def statistics(self, pool: Pool, name: str) -> Any:
        """What of a tensor depends on the sources alone and not on the parameters (norms, Gram matrices, thresholds).

        Computed once per pool of sources and tensor, then cached. None by default.
        """
        return None

    def prepare(self, pool: Pool, name: str, values: Values) -> Any:
        """What :meth:`apply` needs to know of the whole tensor, or of the whole model: its ``context.statistics``.

        By default :meth:`statistics`; a method whose statistics depend on parameters caches them with ``pool.lately``.
        """
        return pool.once((self.name, name), lambda: self.statistics(pool, name))

    @abstractmethod
    def apply(self, context: Context, values: Values, out: Tensor) -> None:
        """Write the merged piece.

        Args:
            context: what is merged.
            values: checked parameters.
            out: float32 or float64, shaped like the pieces; uninitialised. Compute in its dtype, with separate
                multiplications and additions, so that the result does not depend on how the tensor was cut. The
                backend rounds it once to the model's dtype.
        """

    def canonical(self, assignment: Assignment) -> Assignment:
        """The one spelling of an assignment: defaults written out, what has no effect left out; idempotent.

        Raises:
            MergingError: unknown or missing parameters, values out of range, too few or too many sources.
        """
        self._check_count(len(assignment.sources))
        shared = self._complete(dict(assignment.parameters), per_source=False)
        if shared[DELTA_SCALE.name] == DELTA_SCALE.default:
            del shared[DELTA_SCALE.name]
        sources = {
            alias: self._complete(dict(values), per_source=True, source=alias) for alias, values in assignment.sources
        }
        if len(sources) != len(assignment.sources):
            raise MergingError(f"method {self.name} names a source twice: {[alias for alias, _ in assignment.sources]}")
        if self.symmetric:
            sources = dict(sorted(sources.items()))
        return self.reduce(Assignment.of(self.name, sources, **shared))

    def reduce(self, assignment: Assignment) -> Assignment:
        """Leave out what has no effect. Called by :meth:`canonical` on a complete, checked assignment."""
        return assignment

    def _check_count(self, count: int) -> None:
        needs = self.needs
        if count < needs.minimum or (needs.maximum is not None and count > needs.maximum):
            if needs.maximum == needs.minimum:
                wanted = f"exactly {needs.minimum}"
            else:
                wanted = f"at least {needs.minimum}" if count < needs.minimum else f"at most {needs.maximum}"
            raise MergingError(f"method {self.name} expects {wanted} source{'s'[: wanted[-1] != '1']}, found {count}")

    def _complete(self, given: dict[str, Value], *, per_source: bool, source: str = "") -> dict[str, Value]:
        declared = {parameter.name: parameter for parameter in self.parameters if parameter.per_source == per_source}
        if not per_source:
            declared[DELTA_SCALE.name] = DELTA_SCALE
            if self.needs.calibration:
                declared[CALIBRATION.name] = CALIBRATION
        where = f"source {source!r} of method {self.name}" if source else f"method {self.name}"
        for name in given.keys() - declared.keys():
            raise MergingError(f"{where} has no parameter {name!r}{suggest(name, declared)}")
        complete: dict[str, Value] = {}
        for name, parameter in declared.items():
            value = given.get(name, parameter.default)
            if value is None:
                raise MergingError(f"{where} needs a {name} ({parameter.doc}), found none")
            complete[name] = parameter.check(value, self.name)
        return complete


class Elementwise(Method):
    """A method that can be written as :class:`Elements`.

    Class attributes:
        eager_ns: about how many nanoseconds one core takes for an element and source, eagerly. Decides about compiling.
    """

    scope: ClassVar[Scope] = "element"
    eager_ns: ClassVar[float] = 2.0

    @abstractmethod
    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """The computation for one tensor.

        Args:
            pool: the sources; statistics are cached in it.
            name: canonical tensor name.
            values: checked parameters.
        """

    def apply(self, context: Context, values: Values, out: Tensor) -> None:
        """Not called: the backend runs what :meth:`prepare` returns."""
        raise NotImplementedError(f"{self.name} is elementwise: the backend runs what prepare returns")


def suggest(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """The end of a message about an unknown name: what may have been meant, or what there is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; it knows {', '.join(sorted(known))}" if known else "; it has none"
