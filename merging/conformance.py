"""The test class that every merge method must pass, third parties' included.

Inherit it in a test file and name the method::

    from merging.conformance import MethodConformance

    class TestMine(MethodConformance):
        method = "mine"
        assignment = Assignment.of("mine", {"a": {"coefficient": 0.4}, "b": {"coefficient": 0.6}})
        identity = True  # identical sources, equal to the base, give that model back

Needs pytest. The method is run by the backend's own kernel, on seeded tensors held in memory.
"""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from merging.kernel import Task, merge_tensor
from merging.methods.contract import Method, Values
from merging.methods.registry import canonical, get
from merging.pool import Pool, Workspace
from merging.recipe import Assignment, MergingError

Weights = dict[str, dict[str, Tensor]]

SHAPES = {"vector": (37,), "matrix": (19, 23), "stack": (3, 5, 7), "scalar": ()}


class MethodConformance:
    """What the backend relies on. Override the class attributes.

    Attributes:
        method: its registered name.
        assignment: a typical one over sources called a, b, c, …; nothing in it may be left to a default on purpose.
        identity: whether sources that all equal the base give the base back.
    """

    method: ClassVar[str]
    assignment: ClassVar[Assignment]
    identity: ClassVar[bool] = True

    @property
    def subject(self) -> Method:
        """The registered method."""
        return get(self.method)

    def weights(self, dtype: torch.dtype = torch.float32, *, same: bool = False) -> Weights:
        """alias -> name -> tensor: a seeded base, and sources a little away from it (or equal to it)."""
        generator = torch.Generator().manual_seed(20240229)
        base = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in SHAPES.items()}
        result = {"base": {name: tensor.to(dtype) for name, tensor in base.items()}}
        for alias, _ in self.assignment.sources:
            result[alias] = {
                name: (t + (0.0 if same else 0.01) * torch.randn(t.shape, generator=generator)).to(dtype)
                for name, t in base.items()
            }
        return result

    def run(
        self, assignment: Assignment, weights: Weights, name: str, out: torch.dtype, chunk: int | None = None
    ) -> Tensor:
        """One merged tensor, through the kernel of live models and exports."""
        spelled = canonical(assignment)
        aliases = tuple(alias for alias, _ in spelled.sources)
        pool = Pool("base", aliases, tuple(sorted(SHAPES)), lambda alias, name: weights[alias][name])
        result = torch.full(SHAPES[name], math.nan, dtype=out)
        merge_tensor(name, Task(get(spelled.method), Values.of(spelled), pool), result, Workspace(), chunk)
        return result

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
        for name in SHAPES:
            whole = self.run(self.assignment, weights, name, dtype)
            for chunk in (1, 7, 23, 64):
                cut = self.run(self.assignment, weights, name, dtype, chunk)
                assert torch.equal(whole, cut), f"{name} cut into pieces of {chunk} differs"

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
        assert self.subject.canonical(once) == once
        weights = self.weights()
        for name in SHAPES:
            one, other = (self.run(each, weights, name, torch.float32) for each in (self.assignment, once))
            assert torch.equal(one, other)

    def test_canonical_leaves_nothing_to_defaults(self) -> None:
        """Every declared parameter is written out."""
        spelled = canonical(self.assignment)
        shared = {each.name for each in self.subject.parameters if not each.per_source}
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
            for bad in (math.nan, math.inf, -math.inf, parameter.low - 1.0, parameter.high + 1.0):
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
