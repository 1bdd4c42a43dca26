"""RegMean against what it is defined by: least squares on the experts' outputs, each on its own inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from regression_problems import NAME, assignment, known, merge, moments, pool_of, problem, regression, run
from torch import Tensor

from merging import least_squares
from merging.calibration.contract import Gram
from merging.calibration.given import GivenCalibration, gram_of
from merging.kernel import Task, merge_tensor
from merging.least_squares import Moments, Pair
from merging.methods import canonical, get
from merging.methods.contract import Values
from merging.methods.regression import RegMeanPlus
from merging.pool import Pool
from merging.recipe import MergingError


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    tokens=st.lists(st.sampled_from([0, 1, 4, 9, 30]), min_size=2, max_size=4).filter(any),
    data=st.data(),
    alpha=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    ridge=st.sampled_from([1e-6, 1e-3, 1.0]),
)
def test_it_is_the_least_squares_solution(
    seed: int, tokens: list[int], data: st.DataObject, alpha: float, ridge: float
) -> None:
    """Of everything stacked, for any coefficients, rank-deficient or not, whichever way it is computed."""
    coefficient = st.floats(0.05, 3.0) | st.just(1.0)
    coefficients = data.draw(st.lists(coefficient, min_size=len(tokens), max_size=len(tokens)))
    weights, inputs = problem(seed, tokens)
    shares = [each / sum(coefficients) for each in coefficients]
    wanted = regression(weights, inputs, shares, alpha, ridge)
    found = merge(weights, known(inputs), coefficients, alpha=alpha, ridge=ridge)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=3e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    tokens=st.tuples(st.sampled_from([0, 1, 5, 40]), st.sampled_from([1, 5, 40])),
    share=st.floats(1e-4, 1 - 1e-4),
    alpha=st.sampled_from([0.5, 0.9, 1.0]),
    ridge=st.sampled_from([1e-8, 1e-6, 1e-2]),
)
def test_the_diagonalised_form_is_the_direct_solve(
    seed: int, tokens: tuple[int, int], share: float, alpha: float, ridge: float
) -> None:
    """The basis is found once and serves every share; both are (Σ s·W·A)·(Σ s·A)⁻¹ in float64."""
    weights, inputs = problem(seed, tokens, 7, 20)
    grams = [None if not len(each) else gram_of(each, "x").matrix for each in inputs]
    unit = sum(float(each.trace()) / 20 for each in grams if each is not None) / 2
    found = Moments(grams.__getitem__, alpha, ridge, unit)
    pair = Pair.of(found, weights[0])
    assert bool((pair.second >= 0).all()) and bool((pair.second <= 1).all())
    coordinates = pair.coordinates(weights)
    a, b = (found.matrix(number, weights[0]) for number in range(2))
    for shares in ((share, 1 - share), (1 - share, share)):
        fast = pair.slim().solved(weights, coordinates, shares)
        direct = least_squares.solved(
            weights[0],
            least_squares.moved(weights, found),
            shares,
            least_squares.factor(found, shares, weights[0]),
        )
        left = shares[0] * weights[0].double() @ a + shares[1] * weights[1].double() @ b
        wanted = torch.linalg.solve(shares[0] * a + shares[1] * b, left, left=False)
        torch.testing.assert_close(direct, wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(fast, direct, rtol=0, atol=2e-5)


@pytest.mark.parametrize("coefficients", [[1.0, 1.0], [0.7, 0.2], [1.0, 1.0, 1.0], [0.5, 0.2, 0.4]])
def test_equal_moments_give_the_mean(coefficients: list[float]) -> None:
    """Identity inputs among them, and none at all."""
    weights, inputs = problem(3, [40] * len(coefficients))
    mean = sum(c * weight.double() for c, weight in zip(coefficients, weights, strict=False)) / sum(coefficients)
    assert isinstance(mean, Tensor)
    for matrix in (gram_of(inputs[0], "x").matrix, torch.eye(9, dtype=torch.float64), torch.zeros(9, 9).double()):
        for alpha in (0.0, 0.9, 1.0):
            found = merge(weights, [Gram(matrix, (40,), "x", 1)] * len(weights), coefficients, alpha=alpha)
            torch.testing.assert_close(found, mean, rtol=0, atol=1e-6)
            assert not torch.equal(found, weights[0].double())


@pytest.mark.parametrize("coefficients", [[1.0, 1.0], [0.9, 0.05], [1.0, 1.0, 1.0], [0.5, 0.05, 2.0]])
def test_inputs_in_disjoint_subspaces_keep_every_experts_outputs(coefficients: list[float]) -> None:
    """Whatever the coefficients; and what no input reaches keeps the mean."""
    count, width = len(coefficients), 12
    weights, _ = problem(5, [1] * count, 8, width)
    random = torch.Generator().manual_seed(8)
    basis, _ = torch.linalg.qr(torch.randn(width, width, generator=random, dtype=torch.float64))
    inputs = [torch.randn(50, 3, generator=random).double() @ basis[:, 3 * t : 3 * t + 3].T for t in range(count)]
    found = merge(weights, moments(inputs), coefficients, alpha=1.0)
    for weight, x in zip(weights, inputs, strict=True):
        torch.testing.assert_close(x @ found.T, x @ weight.double().T, rtol=0, atol=2e-4)
        assert float((x @ (weights[0] + weights[1]).double().T / 2 - x @ weight.double().T).abs().max()) > 0.05
    mean = sum(c * weight.double() for c, weight in zip(coefficients, weights, strict=True)) / sum(coefficients)
    assert float(((found - mean) @ basis[:, 3 * count :]).abs().amax(dim=1).sum() if 3 * count < width else 0.0) < 1e-5


def test_no_correlations_is_the_weighted_mean_of_every_column() -> None:
    """α = 0, with a dead input and no ridge."""
    weights, inputs = problem(9, [30, 30, 30])
    for each in inputs:
        each[:, 4] = 0.0
    inputs[0][:, 5] = 0.0
    coefficients = (0.5, 1.0, 2.0)
    found = merge(weights, moments(inputs), coefficients, alpha=0.0, ridge=0.0)
    squares = [c * each.double().square().mean(0) for c, each in zip(coefficients, inputs, strict=True)]
    for column in range(9):
        own = [float(each[column]) for each in squares]
        own = list(coefficients) if sum(own) == 0.0 else own
        wanted = sum(w[:, column].double() * s for w, s in zip(weights, own, strict=True)) / sum(own)
        torch.testing.assert_close(found[:, column], wanted, rtol=0, atol=1e-6)


def test_one_input_decides_its_own_direction_only() -> None:
    weights, inputs = problem(2, [1, 1])
    found = merge(weights, [gram_of(inputs[0], "x"), None], alpha=1.0)
    mean = (weights[0].double() + weights[1].double()) / 2
    x = inputs[0][0].double() / inputs[0][0].double().norm()
    wanted = mean + torch.outer((weights[0].double() - mean) @ x, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_stack_is_merged_matrix_by_matrix_and_experts_without_tokens_are_the_mean() -> None:
    """As a mixture stores its experts; one that a single token reached is between the mean and the others."""
    random = torch.Generator().manual_seed(4)
    weights = [torch.randn(3, 6, 9, generator=random) for _ in range(2)]
    inputs = [torch.randn(3, 20, 9, generator=random) for _ in range(2)]
    for each in inputs:
        each[1] = 0.0
        each[2, 1:] = 0.0
    for coefficients in ([1.0, 1.0], [0.8, 0.3]):
        found = merge(weights, moments(inputs), coefficients)
        for index in range(3):
            alone = [gram_of(each[index], "x") for each in inputs]
            wanted = merge([each[index] for each in weights], alone, coefficients)
            assert torch.equal(found[index], wanted)
        shares = [each / sum(coefficients) for each in coefficients]
        mean = shares[0] * weights[0].double() + shares[1] * weights[1].double()
        torch.testing.assert_close(found[1], mean[1], rtol=0, atol=1e-6)


def test_moments_that_vanish_stay_finite_and_go_to_the_mean() -> None:
    """What a layer's tokens are divided by may be much more than reached this expert."""
    weights, inputs = problem(6, [12, 12])
    mean = (weights[0].double() + weights[1].double()) / 2
    for factor in (1e-200, 1e-320, 1e-330):
        grams = [each._replace(matrix=each.matrix * factor) for each in moments(inputs)]
        found = merge(weights, grams)
        assert torch.isfinite(found).all() and torch.isfinite(merge(weights, grams, [1.0, 3.0])).all()
    torch.testing.assert_close(found, mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("coefficients", [[1.0, 1.0], [0.8, 0.3], [0.1, 0.2, 0.3]])
def test_layouts(coefficients: list[float]) -> None:
    """[in, out] of GPT-2, convolutions and stacks of either are the same merge of other shapes."""
    count = len(coefficients)
    weights, inputs = problem(11, [30] * count, 5, 12)
    wanted = merge(weights, moments(inputs), coefficients)
    grams = [gram_of(each, "x", axis=0) for each in inputs]
    turned = merge([each.T.contiguous() for each in weights], grams, coefficients)
    assert torch.equal(turned.T, wanted)
    convolved = merge([each.view(5, 3, 2, 2) for each in weights], moments(inputs), coefficients)
    assert torch.equal(convolved.view(5, 12), wanted)
    stacked = merge(
        [torch.stack([each.T, each.T]) for each in weights],
        [gram_of(torch.stack([each, each]), "x", axis=0) for each in inputs],
        coefficients,
    )
    assert torch.equal(stacked[0].T, wanted) and torch.equal(stacked[1].T, wanted)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_is_no_linear_weight_is_the_mean(count: int) -> None:
    weights, _ = problem(1, [1] * count)
    coefficients = [0.5, 1.5, 1.0][:count]
    mean = sum(c * weight.double() for c, weight in zip(coefficients, weights, strict=False)) / sum(coefficients)
    assert isinstance(mean, Tensor)
    base = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(merge(weights, [None] * count, coefficients), mean, rtol=1e-12, atol=1e-12)
    scaled = merge(weights, [None] * count, coefficients, base=base, scale=0.3)
    torch.testing.assert_close(scaled, base + 0.3 * (mean - base), rtol=1e-12, atol=1e-12)


def test_scale_is_a_line_through_the_base_and_nothing_is_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A searched scale costs one pass."""
    weights, inputs = problem(1, [40, 40, 40])
    base = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    pool = pool_of(base, weights, moments(inputs))
    calls = []
    solved = least_squares.solved

    def counted(*given: Any) -> Tensor:
        calls.append(given)
        return solved(*given)

    reads = []

    def gram(*given: Any) -> Gram | None:
        reads.append(given)
        return GivenCalibration.gram(calibration, *given)

    calibration = pool.calibration
    assert isinstance(calibration, GivenCalibration)
    monkeypatch.setattr(calibration, "gram", gram)
    monkeypatch.setattr(least_squares, "solved", counted)
    merged = run(pool, canonical(assignment([1, 1, 1])))
    known = len(reads)
    for scale in (0.5, 0.0, -1.0, 1.7):
        found = run(pool, canonical(assignment([1, 1, 1], scale=scale)))
        torch.testing.assert_close(found, base.double() + scale * (merged - base.double()), rtol=0, atol=1e-12)
    assert len(calls) == 1 and len(reads) == known
    run(pool, canonical(assignment([1, 1, 0.5])))
    assert len(calls) == 2


def test_a_coefficient_of_zero_leaves_its_source_out() -> None:
    weights, inputs = problem(1, [40, 40, 40])
    grams = moments(inputs)
    found = merge(weights, grams, [0.4, 0.0, 0.9])
    assert torch.equal(found, merge([weights[0], weights[2]], [grams[0], grams[2]], [0.4, 0.9]))
    assert torch.equal(merge(weights, grams, [0.0, 2.0, 0.0]), weights[1].double())
    assert [alias for alias, _ in canonical(assignment([0.4, 0.0, 0.9])).sources] == ["a", "c"]
    for method in ("regmean", "regmean_plus"):
        with pytest.raises(MergingError, match=rf"{method} weights its sources.*sum to 0"):
            canonical(assignment([0.0, 0.0], method))
        with pytest.raises(MergingError, match="coefficient"):
            canonical(assignment([1.0, -0.5], method))


@pytest.mark.parametrize("coefficients", [[2.0, 2.0], [3.0, 1.0], [1.0, 2.0, 5.0]])
def test_only_the_ratio_of_the_coefficients_acts(coefficients: list[float]) -> None:
    one, other = (canonical(assignment([each * factor for each in coefficients])) for factor in (1.0, 0.25))
    assert one == other == canonical(one)
    assert sum(float(dict(values)["coefficient"]) for _, values in one.sources) == pytest.approx(1.0, abs=1e-15)


def test_without_a_ridge_inputs_must_span_everything() -> None:
    weights, inputs = problem(1, [5, 5])
    for coefficients in ([1.0, 1.0], [0.7, 0.4]):
        with pytest.raises(MergingError, match="do not span its 9 dimensions, and a ridge of 0 does not decide"):
            merge(weights, moments([inputs[0], inputs[0]]), coefficients, alpha=1.0, ridge=0.0)
        found = merge(weights, moments(inputs), coefficients, alpha=1.0, ridge=0.0)  # together they do
        wanted = regression(weights, inputs, [each / sum(coefficients) for each in coefficients], 1.0, 0.0)
        np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("coefficients", [[1.0, 1.0], [0.7, 0.4], [0.7, 0.4, 0.2]])
def test_the_number_of_threads_changes_no_bit(coefficients: list[float]) -> None:
    """At a size at which torch and its linear algebra share their work, so ill-conditioned that it would show."""
    weights, inputs = problem(1, [60] * len(coefficients), 256, 300)
    grams, found = moments(inputs), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(merge(weights, grams, coefficients, dtype=torch.float32, alpha=1.0, ridge=1e-10))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def bytes_held(held: object, seen: set[int]) -> int:
    if isinstance(held, Tensor):
        place = held.untyped_storage().data_ptr()
        new = place not in seen
        seen.add(place)
        return held.untyped_storage().nbytes() * new
    if isinstance(held, dict):
        return sum(bytes_held(each, seen) for each in held.values())
    return sum(bytes_held(each, seen) for each in held) if isinstance(held, tuple | list) else 0


@pytest.mark.parametrize(("count", "copies"), [(2, 2 * 4), (3, 4 + 2 * 8)])
def test_what_a_search_remembers_does_not_grow(count: int, copies: int) -> None:
    """Coefficients as genes: ever new ones hold what the docs say, not a copy of the weights for each."""
    width, out = 30, 50
    weights, inputs = problem(1, [60] * count, out, width)
    pool = pool_of(torch.zeros(out, width), weights, moments(inputs))
    pool.searching = True
    seen = set()
    for step in range(12):
        spelled = canonical(assignment([1.0 + step, 2.0, 0.5][:count]))
        found = run(pool, spelled)
        alone = run(pool_of(torch.zeros(out, width), weights, moments(inputs)), spelled)
        assert torch.equal(found, alone)  # who exports the winner remembers nothing
        known: set[int] = set()
        seen.add(bytes_held(pool._memory, known) + bytes_held(dict(pool._recent), known))
    assert len(seen) <= 2 and max(seen) <= copies * out * width + 3 * 8 * width * width + 8 * width
    pool.forget(NAME)
    assert bytes_held(pool._memory, set()) <= 3 * 8 * width * width + 8 * width


def test_layers_with_the_same_inputs_are_factored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Query, key and value; the output's inputs between them do not push them out."""
    count = {"factor": 0, "pair": 0}
    factor, pair = least_squares.factor, Pair.of

    def counted(what: str, function: Any) -> Any:
        def call(*given: Any) -> Any:
            count[what] += 1
            return function(*given)

        return call

    monkeypatch.setattr(least_squares, "factor", counted("factor", factor))
    monkeypatch.setattr(Pair, "of", counted("pair", pair))
    names = {"k": "x", "o": "y", "q": "x", "v": "x"}
    weights, inputs = problem(1, [40, 40])
    _, others = problem(2, [40, 40])
    tables = {
        alias: {name: gram_of((inputs if of == "x" else others)[at], of) for name, of in names.items()}
        for at, alias in enumerate("ab")
    }
    pool = Pool("base", ("a", "b"), tuple(names), lambda alias, _: weights["ab".find(alias)])
    pool.calibration = GivenCalibration(tables, fingerprint="sha256:here")
    for coefficients in ([1.0, 1.0], [1.0, 2.0], [1.0, 3.0]):
        spelled = canonical(assignment(coefficients))
        for name in names:
            merge_tensor(name, Task(get("regmean"), Values.of(spelled), pool), torch.empty(6, 9))
    assert count == {"factor": 2, "pair": 2}


def test_inputs_that_do_not_fit_are_refused() -> None:
    weights, inputs = problem(1, [40, 40])
    with pytest.raises(MergingError, match=r"\[6, 6\] along axis 1 for layer.weight, .* \[6, 9\]: .* another model"):
        merge(weights, [gram_of(each[:, :6], "x") for each in inputs])
    with pytest.raises(MergingError, match=r"inputs \[3, 9, 9\] along axis 1 for layer.weight"):
        merge(weights, [gram_of(torch.stack([each] * 3), "x") for each in inputs])
    square = [each[:, :6].contiguous() for each in weights]
    with pytest.raises(MergingError, match=r"inputs of layer\.weight differ from source to source"):
        merge(square, [gram_of(each[:, :6], "x", axis=axis) for axis, each in enumerate(inputs)])
    with pytest.raises(MergingError, match="not finite"):
        merge(weights, [gram_of(each * math.nan, "x") for each in inputs])
    pool = pool_of(weights[0], weights, moments(inputs))
    pool.calibration = None
    with pytest.raises(MergingError, match="regmean needs calibration data, found none"):
        run(pool, canonical(assignment([1.0, 1.0])))


def test_regmean_plus_is_regmean_on_the_inputs_of_its_own_assignment() -> None:
    """By content and with every parameter, the scales among them: they change the layers below."""
    weights, inputs = problem(1, [40, 40])
    _, lower = problem(2, [40, 40])
    spelled = canonical(assignment([1.0, 3.0], "regmean_plus", scale=0.5, delta_scale=0.9))
    tables = {alias: {NAME: gram_of(lower[at], "x")} for at, alias in enumerate("ab")}
    base = torch.zeros(6, 9)
    pool = pool_of(base, weights, moments(inputs))
    pool.calibration = GivenCalibration(sequential={spelled: tables}, fingerprint="sha256:here")
    found = run(pool, spelled)
    plain = assignment([1.0, 3.0], scale=0.5, delta_scale=0.9)
    assert torch.equal(found, run(pool_of(base, weights, moments(lower)), canonical(plain)))
    assert not torch.equal(found, run(pool_of(base, weights, moments(inputs)), canonical(plain)))
    with pytest.raises(MergingError, match="no inputs were collected"):
        run(pool, canonical(assignment([1.0, 3.0], "regmean_plus", scale=0.6, delta_scale=0.9)))
    assert RegMeanPlus.fixed == {"coefficient", "alpha", "ridge", "scale", "delta_scale"}
