"""The test class that every merge method must pass, third parties' included.

Inherit it in a test file and name the method::

    from merging.conformance import MethodConformance

    class TestMine(MethodConformance):
        method = "mine"
        assignment = Assignment.of("mine", {"a": {"coefficient": 0.4}, "b": {"coefficient": 0.6}})
        identity = True  # identical sources, equal to the base, give that model back

Needs pytest. The method is run by the backend's own kernel, on seeded tensors held in memory. The tests that compile
are marked ``slow``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from merging.calibration.contract import Calibration
from merging.compiled import available
from merging.kernel import Task, accumulation_dtype, merge_tensor
from merging.methods.contract import CALIBRATION, Context, Elementwise, Inputs, Method, Values
from merging.methods.registry import SOURCE, canonical, get, source_hash
from merging.pool import Pool
from merging.recipe import Assignment, MergingError

Weights = dict[str, dict[str, Tensor]]
Shapes = Mapping[str, tuple[int, ...]]

SHAPES: Shapes = {"vector": (37,), "matrix": (19, 23), "stack": (3, 5, 7), "scalar": ()}

# More than one piece as the kernel cuts by itself, and large enough to be compiled.
LARGE: Shapes = {"large": (211, 163)}


class MethodConformance:
    """What the backend relies on. Override the class attributes.

    Attributes:
        method: its name: registered, or ``path/to/file.py:ClassName``.
        assignment: a typical one over sources called a, b, c, …; nothing in it may be left to a default on purpose.
        identity: whether sources that all equal the base give the base back.
        calibration: for methods that need data; its fingerprint is the assignment's. The contents of the sources are
            their aliases here, so :class:`merging.calibration.given.GivenCalibration` holds what a test makes up.
    """

    method: ClassVar[str]
    assignment: ClassVar[Assignment]
    identity: ClassVar[bool] = True
    calibration: ClassVar[Calibration | None] = None

    @property
    def subject(self) -> Method:
        """The method."""
        return get(self.method)

    def weights(
        self, dtype: torch.dtype = torch.float32, *, same: bool = False, shapes: Shapes = SHAPES, seed: int = 20240229
    ) -> Weights:
        """alias -> name -> tensor: a seeded base, and sources a little away from it (or equal to it)."""
        generator = torch.Generator().manual_seed(seed)
        base = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
        result = {"base": {name: tensor.to(dtype) for name, tensor in base.items()}}
        for alias, _ in self.assignment.sources:
            result[alias] = {
                name: (t + (0.0 if same else 0.01) * torch.randn(t.shape, generator=generator)).to(dtype)
                for name, t in base.items()
            }
        return result

    def pool(self, assignment: Assignment, weights: Weights) -> Pool:
        """What the method sees of the weights, for a canonical assignment."""
        aliases = tuple(alias for alias, _ in assignment.sources)
        pool = Pool("base", aliases, tuple(sorted(weights["base"])), lambda alias, name: weights[alias][name])
        pool.calibration = self.calibration
        return pool

    def run(
        self,
        assignment: Assignment,
        weights: Weights,
        name: str,
        out: torch.dtype | Tensor,
        chunk: int | None = None,
        compiled: bool = False,
    ) -> Tensor:
        """One merged tensor, through the kernel of live models and exports."""
        spelled = canonical(assignment)
        shape = weights["base"][name].shape
        result = torch.full(shape, math.nan, dtype=out) if isinstance(out, torch.dtype) else out
        task = Task(get(spelled.method), Values.of(spelled), self.pool(spelled, weights))
        merge_tensor(name, task, result, chunk=chunk, compiled=compiled)
        return result

    def scaled(self, factor: float) -> Assignment:
        """The assignment with a ``delta_scale``."""
        parameters = dict(self.assignment.parameters) | {"delta_scale": factor}
        return Assignment(self.method, self.assignment.sources, tuple(sorted(parameters.items())))

    @pytest.mark.parametrize("name", sorted(SHAPES))
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
    def test_it_writes_every_element_and_changes_no_source(self, name: str, dtype: torch.dtype) -> None:
        """All of the output is finite, and the inputs are as they were."""
        weights = self.weights(dtype)
        before = {alias: tensors[name].clone() for alias, tensors in weights.items()}
        assert torch.isfinite(self.run(self.assignment, weights, name, dtype)).all()
        for alias, tensor in before.items():
            assert torch.equal(weights[alias][name], tensor), f"{self.method} wrote into source {alias}"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_the_result_does_not_depend_on_the_chunks(self, dtype: torch.dtype) -> None:
        """However a tensor is cut, the bits are the same."""
        weights = self.weights(dtype)
        for name, shape in SHAPES.items():
            whole = self.run(self.assignment, weights, name, dtype)
            for chunk in (1, 7, 23) if math.prod(shape) < 64 else (10, 64, 101):
                cut = self.run(self.assignment, weights, name, dtype, chunk)
                assert torch.equal(whole, cut), f"{name} cut into pieces of {chunk} differs"
        large = self.weights(dtype, shapes=LARGE)
        whole = self.run(self.assignment, large, "large", dtype, 1 << 30)
        for cut in (self.run(self.assignment, large, "large", dtype, chunk) for chunk in (12345, None)):
            assert torch.equal(whole, cut)

    def test_pieces_may_start_anywhere(self) -> None:
        """At any element, or row, with pieces of any size: the kernel's own cuts are regular."""
        spelled, weights = canonical(self.assignment), self.weights(torch.bfloat16)
        values, pool = Values.of(spelled), self.pool(spelled, weights)
        if self.subject.scope in {"matrix", "model"}:
            pytest.skip("the method sees whole tensors")
        for name, shape in SHAPES.items():
            base, sources = pool.base(name).reshape(-1), [each.reshape(-1) for each in pool.sources(name)]
            unit = 1
            if self.subject.scope == "row":
                unit = math.prod(shape[1:]) if len(shape) > 1 else base.numel()
            borders = sorted({0, base.numel(), *(unit * at for at in (1, 2, 3, 11, 12) if unit * at < base.numel())})
            cut = [
                self._piece(pool, name, values, base, sources, start, stop, unit) for start, stop in pairwise(borders)
            ]
            whole = self._piece(pool, name, values, base, sources, 0, base.numel(), unit)
            assert torch.equal(torch.cat(cut), whole), name

    def _piece(
        self,
        pool: Pool,
        name: str,
        values: Values,
        base: Tensor,
        sources: list[Tensor],
        start: int,
        stop: int,
        unit: int,
    ) -> Tensor:
        subject, dtype = self.subject, accumulation_dtype(base.dtype)
        if isinstance(subject, Elementwise):
            elements = subject.prepare(pool, name, values)
            chosen = [sources[number] for number in elements.sources]
            origin = base if elements.base or not chosen else chosen[0]
            inputs = Inputs(
                origin[start:stop],
                tuple(each[start:stop] for each in chosen),
                torch.tensor(elements.numbers, dtype=dtype),
                torch.tensor(elements.integers, dtype=torch.int32),
                torch.arange(start, stop).to(torch.int32),
                tuple(field.reshape(-1)[start:stop] for field in elements.fields),
            )
            return elements.kernel(inputs, *elements.options)
        shape = ((stop - start) // unit, unit) if subject.scope == "row" else (stop - start,)
        statistics = subject.prepare(pool, name, values)
        context = Context(
            name,
            SHAPES[name],
            start,
            base[start:stop].view(shape) if subject.reads_base(values) else None,
            tuple(each[start:stop].view(shape) for each in sources),
            statistics,
        )
        out = torch.full(shape, math.nan, dtype=dtype)
        subject.apply(context, values, out)
        return out.view(-1)

    @pytest.mark.slow
    def test_compiled_is_eager_bit_for_bit(self) -> None:
        """An elementwise kernel, and the scaling around it, gives the same bits through torch.compile."""
        if not isinstance(self.subject, Elementwise):
            pytest.skip("the method is not elementwise: it is never compiled")
        if not available("cpu"):
            pytest.skip("there is no compiler here")
        weights, assignment = self.weights(torch.bfloat16, shapes=LARGE), self.scaled(0.7)
        eager = self.run(assignment, weights, "large", torch.bfloat16)
        assert torch.equal(eager, self.run(assignment, weights, "large", torch.bfloat16, compiled=True))

    def test_sources_of_different_dtypes_mix(self) -> None:
        """A narrow source is merged as the numbers that it holds."""
        kinds = (torch.bfloat16, torch.float32, torch.float16)
        weights = self.weights()
        mixed = {
            alias: {name: tensor.to(kinds[number % 3]) for name, tensor in tensors.items()}
            for number, (alias, tensors) in enumerate(weights.items())
        }
        wide = {
            alias: {name: each.to(torch.float32) for name, each in tensors.items()} for alias, tensors in mixed.items()
        }
        for name in SHAPES:
            one, other = (self.run(self.assignment, each, name, torch.float32) for each in (mixed, wide))
            assert torch.equal(one, other), name

    def test_it_writes_into_views(self) -> None:
        """A live layout may hold a tensor transposed, or a part of a larger one."""
        weights = self.weights()
        for name, shape in SHAPES.items():
            whole = self.run(self.assignment, weights, name, torch.float32)
            turned = torch.full(shape[::-1], math.nan).permute(tuple(reversed(range(len(shape)))))
            apart = torch.full((*shape, 2), math.nan)[..., 0]
            for out in (turned, apart):
                self.run(self.assignment, weights, name, out)
                assert torch.equal(out, whole), name

    def test_delta_scale_moves_the_result_along_its_difference_to_the_base(self) -> None:
        """0 is the base, 1 changes nothing, 2 doubles the difference."""
        weights = self.weights()
        for name in SHAPES:
            base = weights["base"][name].to(torch.float64)
            merged = self.run(self.assignment, weights, name, torch.float64)
            assert torch.equal(self.run(self.scaled(0.0), weights, name, torch.float64), base)
            assert torch.equal(self.run(self.scaled(1.0), weights, name, torch.float64), merged)
            assert torch.equal(self.run(self.scaled(2.0), weights, name, torch.float64), (merged - base) * 2 + base)
        assert canonical(self.scaled(1.0)) == canonical(self.assignment)
        assert canonical(self.scaled(2.0)) != canonical(self.assignment)

    def test_the_base_acts_only_where_the_method_says_so(self) -> None:
        """Whoever does not read the base may be merged without one."""
        spelled = canonical(self.assignment)
        if self.subject.reads_base(Values.of(spelled)):
            pytest.skip("the method reads the base")
        weights, others = self.weights(), self.weights(seed=7)
        for name in SHAPES:
            one = self.run(spelled, weights, name, torch.float32)
            assert torch.equal(one, self.run(spelled, weights | {"base": others["base"]}, name, torch.float32))

    def test_it_repeats_itself(self) -> None:
        """The same call gives the same bits."""
        weights = self.weights()
        for name in SHAPES:
            first, second = (self.run(self.assignment, weights, name, torch.float32) for _ in range(2))
            assert torch.equal(first, second)

    def test_sources_that_equal_the_base_give_the_base(self) -> None:
        """Nothing to merge, nothing changed, but for the accumulation's rounding."""
        if not self.identity:
            pytest.skip("the method does not claim it")
        weights = self.weights(same=True)
        for name in SHAPES:
            merged = self.run(self.assignment, weights, name, torch.float32)
            torch.testing.assert_close(merged, weights["base"][name], rtol=1e-6, atol=0.0)

    def test_order_does_not_matter_where_that_is_claimed(self) -> None:
        """A symmetric method gives the same bits for its sources in any order."""
        if not self.subject.symmetric:
            pytest.skip("the method is not symmetric")
        turned = Assignment(self.method, self.assignment.sources[::-1], self.assignment.parameters)
        weights = self.weights()
        for name in SHAPES:
            one, other = (self.run(each, weights, name, torch.float32) for each in (self.assignment, turned))
            assert torch.equal(one, other)

    def test_canonical_is_idempotent_and_keeps_the_result(self) -> None:
        """Spelling an assignment canonically twice is spelling it once, and no result changes by it."""
        once = canonical(self.assignment)
        assert canonical(once) == once
        weights = self.weights()
        for name in SHAPES:
            one, other = (self.run(each, weights, name, torch.float32) for each in (self.assignment, once))
            assert torch.equal(one, other)

    def test_canonical_leaves_nothing_to_defaults(self) -> None:
        """Every declared parameter is written out."""
        spelled = canonical(self.assignment)
        shared = {each.name for each in self.subject.parameters if not each.per_source}
        shared |= {CALIBRATION.name} if self.subject.needs.calibration else set()
        shared |= {SOURCE} if source_hash(self.method) else set()  # of a plug-in
        own = {each.name for each in self.subject.parameters if each.per_source}
        assert {name for name, _ in spelled.parameters} == shared
        assert all({name for name, _ in values} == own for _, values in spelled.sources)

    def test_unknown_parameters_are_refused_by_name(self) -> None:
        """A typo is an error, for the method and for a source."""
        shared = Assignment(self.method, self.assignment.sources, (*self.assignment.parameters, ("nonsens", 1.0)))
        (alias, values), *others = self.assignment.sources
        own = Assignment(self.method, ((alias, (*values, ("nonsens", 1.0))), *others), self.assignment.parameters)
        for wrong in (shared, own):
            with pytest.raises(MergingError, match="no parameter 'nonsens'"):
                self.subject.canonical(wrong)

    def test_parameters_out_of_range_are_refused(self) -> None:
        """NaN, infinity and what lies outside a declared range never reach the arithmetic."""
        for parameter in self.subject.parameters:
            if parameter.type not in {float, int}:
                continue
            for bad in (math.nan, math.inf, -math.inf, parameter.low - 1, parameter.high + 1):
                with pytest.raises(MergingError, match=parameter.name):
                    parameter.check(bad, self.method)

    def test_the_wrong_number_of_sources_is_refused(self) -> None:
        """Too few and too many."""
        needs = self.subject.needs
        values = self.assignment.sources[0][1]
        counts = [needs.minimum - 1] if needs.minimum else []
        counts += [needs.maximum + 1] if needs.maximum is not None else []
        for count in counts:
            sources = tuple((f"s{index}", values) for index in range(count))
            with pytest.raises(MergingError, match="source"):
                self.subject.canonical(Assignment(self.method, sources, self.assignment.parameters))

    def test_it_is_documented(self) -> None:
        """A formula, a source, and a line for each parameter."""
        subject = self.subject
        assert subject.name == self.method
        assert subject.formula and subject.paper and type(subject).__doc__
        assert all(parameter.doc for parameter in subject.parameters)
