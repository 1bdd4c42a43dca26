"""Every golden merge of mergekit 0.1.5 through ``paretomerge merge CONFIG OUT``.

float32 agrees within 5e-7. Where a config says bfloat16, mergekit rounds after every operation and we round once: there
ours are held to the correctly rounded exact value, mergekit's numbers are reproduced bit for bit by rounding after
every operation (nothing but rounding lies between the two), and both to the error bound of that chain of roundings.
tests/golden/README.md has the counts.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import NamedTuple

import golden
import numpy as np
import pytest
import torch
from golden import CASES, GOLDEN, Golden, inputs, merged, spacing
from torch import Tensor

from merging.configs import read_config
from merging.recipe import Recipe

BFLOAT16 = [case for case in CASES if case.endswith("bf16")]
RANDOM = [case for case, stochastic in CASES.items() if stochastic]
FLOAT32 = [case for case in CASES if case not in (*BFLOAT16, *RANDOM)]
# What it selects hangs on rounding: a test of its own.
OF_ROUNDING = {"arcee_fusion"}

U = 2.0**-8  # the largest relative error of one rounding to bfloat16

ELEMENTS = 26760

Run = Callable[[str], Golden]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Merges a case, once."""
    known: dict[str, Golden] = {}

    def run(case: str) -> Golden:
        if case not in known:
            known[case] = merged(case, tmp_path_factory.mktemp(case))
        return known[case]

    return run


def test_no_golden_case_is_missing() -> None:
    folders = {path.name for path in GOLDEN.iterdir() if path.is_dir()} - {"inputs"}
    assert folders == CASES.keys() and len(CASES) == 45
    assert (len(FLOAT32), len(BFLOAT16), len(RANDOM)) == (33, 7, 5)
    for case in CASES:
        assert (GOLDEN / case / "config.yml").is_file() and (GOLDEN / case / "out" / "model.safetensors").is_file()
    assert [sum(tensor.numel() for tensor in source.values()) for source in inputs()] == [ELEMENTS] * 4


@pytest.mark.parametrize("case", FLOAT32)
def test_float32_agrees_with_mergekit(case: str, run: Run) -> None:
    found = run(case)
    for name, theirs in found.theirs.items() if case not in OF_ROUNDING else ():
        torch.testing.assert_close(found.ours[name], theirs, rtol=0, atol=5e-7, msg=lambda text, n=name: f"{n}: {text}")
    if case not in {"passthrough_stack"}:
        # The tolerance would see another merge: the result is far from every input.
        distances = [max(float((source[n] - t).abs().max()) for n, t in found.theirs.items()) for source in inputs()]
        assert min(distances) > 1e-4
    config = json.loads((found.folder / "config.json").read_text())
    theirs_config = json.loads((GOLDEN / case / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == theirs_config["num_hidden_layers"]
    assert config["dtype"] == theirs_config["dtype"] == "float32"


def test_the_card_of_a_stack_says_whose_embedding_and_head_it_has(run: Run) -> None:
    card = (run("passthrough_stack").folder / "README.md").read_text()
    assert "final norm and head are ft2's; embedding is base's." in card


def test_arcee_fusion_selects_as_mergekit_does_but_for_rounding(run: Run) -> None:
    """Bit for bit on the kind of processor that mergekit ran on.

    An importance at the threshold is float32's rounding of a softmax and a sum, in which processors differ.
    """
    found = run("arcee_fusion")
    differ = 0
    for name, theirs in found.theirs.items():
        ours, unsure = found.ours[name], torch.from_numpy(np.array(found.exact(name).doubtful))
        apart = (ours - theirs).abs() > 5e-7
        assert bool((~apart | unsure).all()), name
        base, (expert,) = (torch.from_numpy(np.array(each)).float() for each in found.inputs(name))
        chosen = torch.stack([ours - base, ours - expert]).abs().amin(0)
        assert float(chosen.max()) <= 5e-7, name
        differ += int(apart.sum())
    assert differ <= 0.002 * ELEMENTS


@pytest.mark.slow
@pytest.mark.parametrize("case", BFLOAT16)
def test_our_bfloat16_is_the_exact_value_rounded_once(case: str, run: Run) -> None:
    found = run(case)
    doubtful = 0
    for name, ours in found.ours.items():
        value, unsure, magnitude = (torch.from_numpy(np.array(each)) for each in found.exact(name))
        # float32 sums: a value next to a rounding boundary may fall on its other side.
        allowed = 0.5 * spacing(value) * (1 + 1e-9) + 2.0**-21 * magnitude
        assert bool((((ours.double() - value).abs() <= allowed) | unsure).all()), name
        doubtful += int(unsure.sum())
    assert doubtful <= 0.001 * ELEMENTS


def apart(found: Golden) -> tuple[int, int]:
    """(elements that differ from mergekit's, elements that do by more than 1 ulp of the largest input there)."""
    differ = over = 0
    for name, theirs in found.theirs.items():
        base, sources = found.inputs(name)
        largest = torch.from_numpy(np.abs(np.stack([base, *sources])).max(0))
        distance = (found.ours[name].double() - theirs.double()).abs()
        differ += int((distance > 0).sum())
        over += int((distance > spacing(largest)).sum())
    return differ, over


@pytest.mark.parametrize(("case", "differing"), [("linear_bf16", 400), ("slerp_bf16", 0), ("ties_f32_out_bf16", 0)])
def test_one_ulp_where_mergekit_rounds_once(case: str, differing: int, run: Run) -> None:
    differ, over = apart(run(case))
    assert over == 0 and differ <= differing


def test_bfloat16_linear_differs_from_mergekit_in_exact_ties_alone(run: Run) -> None:
    """Where the two disagree, the exact value lies midway between theirs and ours: a coin toss of float32 sums."""
    found = run("linear_bf16")
    differing = 0
    for name, theirs in found.theirs.items():
        value, _, magnitude = (torch.from_numpy(np.array(each)) for each in found.exact(name))
        middle = (found.ours[name].double() + theirs.double()) / 2
        other = found.ours[name] != theirs
        assert bool(((middle - value).abs() <= 2.0**-22 * magnitude)[other].all()), name
        differing += int(other.sum())
    assert 0 < differing < 0.02 * ELEMENTS


@pytest.mark.parametrize(
    ("case", "budget", "differing", "over"),
    [
        # difference, weight, product, sum, factor, product; the base's sum
        ("task_arithmetic_bf16", 6, 5600, 90),
        # difference, three cosines into t, mean of three (3), two products, sum
        ("model_stock_bf16", 8, 9700, 40),
        # unit vectors (2), mean and its norm (4), step and its norm (4), scale (2)
        ("karcher_bf16", 12, 11500, 130),
    ],
)
def test_bfloat16_chains_differ_from_mergekit_within_their_roundings(
    case: str, budget: int, differing: int, over: int, run: Run
) -> None:
    found = run(case)
    for name, theirs in found.theirs.items():
        base, sources = found.inputs(name)
        largest = torch.from_numpy(np.abs(np.stack([base, *sources])).max(0))
        distance = (found.ours[name].double() - theirs.double()).abs()
        assert bool((distance <= budget * U * largest).all()), name
    differ, more = apart(found)
    assert differ <= differing and more <= over  # measured: README of the goldens


def each_tensor(case: str) -> list[tuple[str, Tensor, list[Tensor], Tensor]]:
    """(name, base, experts, mergekit's result) in bfloat16."""
    theirs = golden.tensors(GOLDEN / case / "out")
    loaded = inputs()
    return [
        (name, loaded[0][name].bfloat16(), [source[name].bfloat16() for source in loaded[1:]], theirs[name])
        for name in theirs
    ]


def test_mergekits_bfloat16_task_arithmetic_is_ours_with_more_roundings() -> None:
    for name, base, experts, theirs in each_tensor("task_arithmetic_bf16"):
        deltas = [(x - base) * torch.tensor(c).bfloat16() for x, c in zip(experts, (0.6, 0.4, 0.3), strict=True)]
        assert torch.equal(base + torch.stack(deltas).sum(0) * 0.9, theirs), name


def test_mergekits_bfloat16_model_stock_is_ours_with_more_roundings() -> None:
    for name, base, experts, theirs in each_tensor("model_stock_bf16"):
        deltas = [(x - base).flatten() for x in experts]
        cosines = [
            ((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-6)).clamp(-1, 1)
            for b, a in itertools.combinations(deltas, 2)
        ]
        mean = torch.stack(cosines).mean()
        t = 3 * mean / (1 + 2 * mean)
        assert torch.equal(t * (sum(experts) / 3) + (1 - t) * base, theirs), name


def test_mergekits_bfloat16_ties_is_ours_with_more_roundings_and_other_ties(run: Run) -> None:
    """Its differences are rounded before they are ranked, so that many are equal at the threshold; which of those it
    keeps is unspecified. Elsewhere its numbers are reproduced, and ours follow from the exact differences."""
    found = run("ties_bf16")
    weights = torch.tensor([0.6, 0.4, 0.3], dtype=torch.bfloat16)
    equal_at_threshold = another_selection = differing = 0
    for name, base, experts, theirs in each_tensor("ties_bf16"):
        rounded, unsure = zip(*(rounded_trim(x - base, 0.35) for x in experts), strict=True)
        stacked = torch.stack([delta * c for delta, c in zip(rounded, weights, strict=True)])
        sign = torch.where(stacked.sum(0) >= 0, 1, -1).to(base.dtype)
        agreeing = stacked.sign() == sign
        divisor = (agreeing * weights.view(-1, *[1] * base.dim())).sum(0)
        divisor[divisor == 0] = 1
        stepwise = base + (stacked * agreeing).sum(0) / divisor
        tied = torch.stack(unsure).any(0)
        assert torch.equal(stepwise[~tied], theirs[~tied]), name
        equal_at_threshold += int(tied.sum())

        origin, sources = found.inputs(name)
        exact = [exact_trim(torch.from_numpy(x - origin), 0.35) for x in sources]
        same = torch.stack([a == (b != 0) for a, b in zip(exact, rounded, strict=True)]).all(0) & ~tied
        # The same elements kept, and votes not so close that rounding turns them:
        votes = sum(
            c * torch.from_numpy(x - origin) * k for c, x, k in zip((0.6, 0.4, 0.3), sources, exact, strict=True)
        )
        size = sum(
            c * torch.from_numpy(np.abs(x - origin)) * k
            for c, x, k in zip((0.6, 0.4, 0.3), sources, exact, strict=True)
        )
        clear = same & (votes.abs() >= 4 * U * size)
        largest = torch.from_numpy(np.abs(np.stack([origin, *sources])).max(0))
        distance = (found.ours[name].double() - theirs.double()).abs()
        assert bool((distance <= 10 * U * largest)[clear].all()), name
        another_selection += int((~clear).sum())
        differing += int((distance > 0).sum())
    assert 0 < equal_at_threshold < 0.03 * ELEMENTS
    assert another_selection < 0.04 * ELEMENTS and differing < 0.17 * ELEMENTS


def rounded_trim(delta: Tensor, density: float) -> tuple[Tensor, Tensor]:
    """(the largest by magnitude, else 0; where equals at the threshold were both kept and dropped)."""
    size = delta.abs().float().flatten()
    count = int(density * size.numel())
    order = size.argsort(descending=True, stable=True)
    kept = torch.zeros_like(size)
    kept[order[:count]] = 1
    threshold = size[order[count - 1]]
    ambiguous = (size == threshold) & (int((size >= threshold).sum()) > count)
    return delta * kept.view(delta.shape).to(delta.dtype), ambiguous.view(delta.shape)


def exact_trim(delta: Tensor, density: float) -> Tensor:
    size = delta.float().abs().flatten()
    kept = torch.zeros(size.numel(), dtype=torch.bool)
    kept[size.argsort(descending=True, stable=True)[: int(density * size.numel())]] = True
    return kept.view(delta.shape)


# Random masks: what was kept is found from the numbers alone, of mergekit's result and of ours by the same reading.


class Reading(NamedTuple):
    """What a merged tensor says about the masks behind it.

    Attributes:
        residual: largest distance of an element from the best of all possible choices of kept sources.
        factors: [sources] rescaling factors that fit best.
        kept: [sources, elements] the choice.
    """

    residual: float
    factors: Tensor
    kept: Tensor


WEIGHTS = (0.6, 0.4, 0.3)


def read_masks(delta: Tensor, sources: Tensor, expected: Tensor, elects: bool, normalizes: bool) -> Reading:
    """Which sources were kept at each element, and by what they were rescaled.

    Args:
        delta: [elements] result minus base.
        sources: [sources, elements] differences to the base.
        expected: [sources] factors, nearly.
        elects: only sources of the elected sign count.
        normalizes: their sum is divided by the sum of their weights.
    """
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    shares = torch.ones(3).double() if normalizes else weights
    # Where one source alone was kept, the result is its difference times one number: the most frequent quotient.
    factors = torch.stack(
        [mode(delta / (c * d), near, d) for c, d, near in zip(shares, sources, expected, strict=True)]
    )
    choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(sources))), dtype=torch.float64)
    terms = choices[:, :, None] * (weights * factors)[None, :, None] * sources
    used = choices[:, :, None].expand_as(terms)
    if elects:
        sign = torch.where(terms.sum(1, keepdim=True) >= 0, 1.0, -1.0)
        used = used * (terms.sign() == sign)
    divisor = (used * weights[None, :, None]).sum(1) if normalizes else torch.ones(len(choices), 1).double()
    distance = ((terms * used).sum(1) / torch.where(divisor == 0, 1.0, divisor) - delta).abs()
    best = distance.argmin(0)
    return Reading(float(distance.amin(0).max()), factors, used[best, :, torch.arange(delta.numel())].T)


def mode(quotients: Tensor, near: Tensor, difference: Tensor) -> Tensor:
    """The middle of the densest narrow interval, among the larger differences and within a quarter of what is near."""
    large = difference.abs() >= difference.abs().median()
    found = quotients[large & ((quotients / near - 1).abs() < 0.25)].sort().values
    stops = torch.searchsorted(found, found * (1 + 2e-5), right=True)
    start = int((stops - torch.arange(len(found))).argmax())
    return found[start : int(stops[start])].median()


def differences(found: Golden, name: str, result: Tensor) -> tuple[Tensor, Tensor]:
    """([elements] result − base, [sources, elements] source − base) in float64."""
    base, sources = found.inputs(name)
    return (
        (result.double() - torch.from_numpy(base)).flatten(),
        torch.stack([torch.from_numpy(x - base).flatten() for x in sources]),
    )


def within(count: float, expected: float, variance: float) -> bool:
    return abs(count - expected) <= 5 * math.sqrt(variance) + 1e-9


def probabilities(sources: Tensor, shape: tuple[int, ...], density: float, epsilon: float) -> Tensor:
    """[sources, elements] how likely each is kept; rises with the rank in its row for della."""
    rows = sources.abs().view(len(sources), -1, shape[-1])
    ranks = rows.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True).double() / (shape[-1] - 1)
    return (density - epsilon + 2 * epsilon * ranks).view(len(sources), -1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "density", "epsilon", "rescales"),
    [("dare_linear", 0.3, 0.0, True), ("dare_linear_norescale", 0.5, 0.0, False), ("della_linear", 0.4, 0.15, True)],
)
def test_random_sums_keep_and_rescale_as_mergekit_does(
    case: str, density: float, epsilon: float, rescales: bool, run: Run
) -> None:
    found = run(case)
    for side in (found.ours, found.theirs):
        counts, expected, variance = torch.zeros(3), torch.zeros(3), torch.zeros(3)
        large, small = torch.zeros(2), torch.zeros(2)
        for name, result in side.items():
            if result.numel() < 500:
                continue
            delta, sources = differences(found, name, result)
            chance = probabilities(sources, tuple(result.shape), density, epsilon)
            start = sources.abs().sum(1) / (sources.abs() * chance).sum(1) if rescales else torch.ones(3).double()
            reading = read_masks(delta, sources, start, elects=False, normalizes=False)
            assert reading.residual < 1e-6, name
            ratio = sources.abs().sum(1) / (sources.abs() * reading.kept).sum(1)
            torch.testing.assert_close(
                reading.factors, ratio if rescales else torch.ones(3).double(), rtol=2e-4, atol=0
            )
            counts += reading.kept.sum(1)
            expected += chance.sum(1)
            variance += (chance * (1 - chance)).sum(1)
            upper = chance > density
            for part, total in ((upper, large), (~upper, small)):
                total += torch.tensor([float(reading.kept[part].sum()), float(part.sum())])
        for seen in zip(counts.tolist(), expected.tolist(), variance.tolist(), strict=True):
            assert within(*seen)
        if epsilon:  # large differences are kept more often: on average by the window
            assert large[0] / large[1] - small[0] / small[1] == pytest.approx(epsilon, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "density", "epsilon", "normalizes"), [("dare_ties", 0.3, 0.0, False), ("della", 0.4, 0.15, True)]
)
def test_random_elections_keep_rescale_and_agree_as_mergekit_does(
    case: str, density: float, epsilon: float, normalizes: bool, run: Run
) -> None:
    found = run(case)
    for side in (found.ours, found.theirs):
        untouched = expected = variance = 0.0
        for name, result in side.items():
            if result.numel() < 500:
                continue
            delta, sources = differences(found, name, result)
            chance = probabilities(sources, tuple(result.shape), density, epsilon)
            start = sources.abs().sum(1) / (sources.abs() * chance).sum(1)
            # Every element is the sum of kept sources of one sign, the one with more weight, and of all of those.
            reading = read_masks(delta, sources, start, elects=True, normalizes=normalizes)
            assert reading.residual < 1e-6, name
            # The factor is the L1 ratio of a mask of which the minority is not seen: near its expectation.
            torch.testing.assert_close(reading.factors, start, rtol=0.25, atol=0)
            none = (1 - chance).prod(0)
            untouched += float((delta.abs() < 1e-9).sum())
            expected += float(none.sum())
            variance += float((none * (1 - none)).sum())
        assert within(untouched, expected, variance)


@pytest.mark.parametrize("case", RANDOM)
def test_our_random_masks_are_those_of_the_definition(case: str, run: Run) -> None:
    found = run(case)
    for name, ours in found.ours.items():
        value, unsure, _ = (torch.from_numpy(np.array(each)) for each in found.exact(name))
        assert bool((((ours.double() - value).abs() <= 5e-7) | unsure).all()), name


@pytest.mark.parametrize("case", list(CASES))
def test_import_export_import_is_the_same_recipe(case: str, run: Run) -> None:
    found = run(case)
    path = found.folder / "mergekit.yaml"
    again, _ = read_config(path)
    recipe = Recipe.from_yaml((found.folder / "recipe.yaml").read_text())
    assert again.hash == recipe.hash == found.recipe.hash
    assert recipe == found.recipe
    assert len(path.read_text().splitlines()) < 60
