"""What must hold of merge methods whatever the numbers: identities, symmetries, equivariance, declarations."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from comparison import DTYPES, backend, contents_of
from torch import Tensor

from merging.methods import get
from merging.recipe import MergingError

METHODS = sorted(reference.METHODS)
PIPELINE = ("ties", "dare_linear", "dare_ties", "della_linear", "della", "breadcrumbs", "breadcrumbs_ties")
ELECTING = ("ties", "dare_ties", "della", "breadcrumbs_ties")
PAIRS = ("slerp", "nuslerp")
SINGLES = ("arcee_fusion", "nearswap", "passthrough")
WITH_CONVENTION = (*PIPELINE, "sce", "model_stock")
SPOKEN = [(method, "paper") for method in METHODS] + [(method, "mergekit") for method in WITH_CONVENTION]


def random(seed: int, *shape: int, size: float = 0.05, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)


def experts(count: int, *shape: int) -> tuple[Tensor, list[Tensor]]:
    base = random(0, *shape)
    return base, [base + random(1 + i, *shape, size=0.02) for i in range(count)]


def of(method: str, count: int, **values: Any) -> list[dict[str, Any]]:
    """[count] parameters of sources: a coefficient where the method takes one, and ``values``."""
    own = {} if method in reference.NO_COEFFICIENT else {"coefficient": 1.0}
    return [{**own, **values} for _ in range(count)]


def number_of_sources(method: str) -> int:
    return 1 if method in SINGLES else 2 if method in PAIRS else 3


def shared_of(method: str, **values: Any) -> dict[str, Any]:
    return {**({"t": 0.01} if method == "nearswap" else {}), **values}


def keep_all(method: str, count: int) -> list[dict[str, Any]]:
    """Parameters under which nothing is dropped."""
    own = {"density": 1.0} if "density" in reference.PER_SOURCE.get(method, {}) else {}
    own |= {"epsilon": 0.0} if method.startswith("della") else {}
    own |= {"gamma": 0.0} if method.startswith("breadcrumbs") else {}
    return of(method, count, **own)


# Identity.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("method", "convention"), SPOKEN)
def test_experts_that_are_the_base_give_the_base(method: str, dtype: torch.dtype, convention: str) -> None:
    shared = shared_of(method, **({"convention": convention} if method in WITH_CONVENTION else {}))
    if "on" in reference.SHARED[method]:
        shared["on"] = "task_vectors"
    for shape in ((), (1,), (23,), (6, 7)):
        base, count = random(3, *shape, dtype=dtype), number_of_sources(method)
        merged = backend(method, base, [base.clone() for _ in range(count)], of(method, count), shared)
        torch.testing.assert_close(merged, base, rtol=torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("method", "shared"),
    [
        ("linear", {}),
        ("slerp", {}),
        ("slerp", {"on": "task_vectors"}),
        ("nuslerp", {}),
        ("nuslerp", {"on": "task_vectors"}),
        ("multislerp", {}),
        ("multislerp", {"on": "task_vectors"}),
        ("karcher", {}),
        ("task_arithmetic", {"normalize": True}),
        *((method, {"normalize": True}) for method in PIPELINE),
        *((method, {"normalize": True, "convention": "mergekit"}) for method in PIPELINE),
        ("magmax", {}),
        ("sce", {}),
        ("sce", {"convention": "mergekit"}),
        ("model_stock", {}),
        ("model_stock", {"convention": "mergekit"}),
        ("ram", {}),
    ],
    ids=str,
)
def test_copies_of_one_expert_give_that_expert(method: str, shared: dict[str, Any], dtype: torch.dtype) -> None:
    count = number_of_sources(method)
    base, expert = random(5, 6, 11, dtype=dtype), random(6, 6, 11, dtype=dtype)
    merged = backend(method, base, [expert] * count, keep_all(method, count), shared, contents=contents_of(1) * count)
    # μ · ‖·‖ and three thirds lose a little; one rounding of the dtype covers it.
    torch.testing.assert_close(merged, expert, rtol=torch.finfo(dtype).eps, atol=1e-9)


@pytest.mark.parametrize("method", PIPELINE)
@pytest.mark.parametrize("convention", ["paper", "mergekit"])
def test_one_source_of_which_everything_is_kept_is_task_arithmetic(method: str, convention: str) -> None:
    base, (expert,) = experts(1, 9, 13)
    own = [{**keep_all(method, 1)[0], "coefficient": 0.3}]
    for scale in (1.0, -0.7):
        merged = backend(method, base, [expert], own, {"scale": scale, "normalize": False, "convention": convention})
        plain = backend("task_arithmetic", base, [expert], [{"coefficient": 0.3}], {"scale": scale})
        assert torch.equal(merged, plain)


@pytest.mark.parametrize("method", [each for each in PIPELINE if each not in ELECTING])
@pytest.mark.parametrize("normalize", [False, True])
def test_without_drops_the_linear_flavours_are_task_arithmetic(method: str, normalize: bool) -> None:
    base, sources = experts(3, 9, 13)
    own = [{**values, "coefficient": c} for values, c in zip(keep_all(method, 3), (0.5, -0.25, 1.5), strict=True)]
    merged = backend(method, base, sources, own, {"normalize": normalize})
    plain = backend(
        "task_arithmetic",
        base,
        sources,
        [{"coefficient": each["coefficient"]} for each in own],
        {"normalize": normalize},
    )
    torch.testing.assert_close(merged, plain, rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("method", PIPELINE)
def test_no_sources_no_density_and_no_coefficient_give_the_base(method: str) -> None:
    base, sources = experts(2, 50)
    assert torch.equal(backend(method, base, [], [], {}), base)
    if not method.startswith("della"):  # its window leaves the largest elements a chance at density 0
        nothing = of(method, 2, density=0.0)
        assert torch.equal(backend(method, base, sources, nothing, {"normalize": False}), base)
    off = [{"coefficient": 0.0}] * 2
    assert torch.equal(backend(method, base, sources, off, {"normalize": False}), base)


# Symmetry and equivariance.


@pytest.mark.parametrize("method", [each for each in METHODS if each not in SINGLES])
def test_the_order_of_experts_does_not_matter(method: str) -> None:
    """Each source keeps its parameters and its content; only the order and the aliases change."""
    count = number_of_sources(method)
    base, sources = experts(count, 12, 17)
    own = of(method, count)
    for values, c in zip(own, (0.6, 1.1, 0.8), strict=False):
        if "coefficient" in values:
            values["coefficient"] = c
    turn = [count - 1, *range(count - 1)]
    hashes = contents_of(count)
    one = backend(method, base, sources, own, shared_of(method), contents=hashes)
    other = backend(
        method,
        base,
        [sources[i] for i in turn],
        [own[i] for i in turn],
        shared_of(method),
        contents=[hashes[i] for i in turn],
    )
    torch.testing.assert_close(one, other, rtol=3e-7, atol=1e-9)


@pytest.mark.parametrize(("method", "convention"), [each for each in SPOKEN if each[0] not in ("arcee_fusion", "pcb")])
def test_models_twice_as_large_merge_to_one_twice_as_large(method: str, convention: str) -> None:
    """Exactly, for powers of two. Not so for methods with exponentials in them; absolute thresholds scale along."""
    count = number_of_sources(method)
    base, sources = experts(count, 12, 17)
    shared = shared_of(method, **({"convention": convention} if method in WITH_CONVENTION else {}))
    larger = dict(shared)
    for name, value in (("t", 0.01), ("epsilon", 1e-3)):
        if name in shared or name in reference.SHARED[method]:
            shared[name], larger[name] = value, 4 * value
    one = backend(method, base, sources, of(method, count), shared)
    other = backend(method, 4 * base, [4 * source for source in sources], of(method, count), larger)
    torch.testing.assert_close(4 * one, other, rtol=2e-7, atol=0.0)


@pytest.mark.parametrize("method", METHODS)
def test_delta_scale_stretches_what_the_method_adds(method: str) -> None:
    """LiNeS and ExPO: θ0 + δ·(θ − θ0), for any method."""
    count = number_of_sources(method)
    base, sources = experts(count, 8, 9)
    whole = backend(method, base, sources, of(method, count), shared_of(method))
    for amount in (0.5, 1.7, -1.0, 1.0):
        part = backend(method, base, sources, of(method, count), shared_of(method, delta_scale=amount))
        torch.testing.assert_close(part, base + amount * (whole - base), rtol=1e-6, atol=1e-8)
    nothing = backend(method, base, sources, of(method, count), shared_of(method, delta_scale=0.0))
    assert torch.equal(nothing, base)


def test_expo_goes_beyond_the_expert() -> None:
    base, (expert,) = experts(1, 300)
    further = backend("task_arithmetic", base, [expert], [{"coefficient": 1.0}], {"delta_scale": 1.3})
    exact = expert.double() + 0.3 * (expert.double() - base.double())
    torch.testing.assert_close(further, exact.float(), rtol=1e-7, atol=0.0)


def test_lines_gives_early_layers_less() -> None:
    """A linear schedule over layers acts on each layer's own delta and nothing else."""
    base, (a, b) = experts(2, 64)
    plain = backend("ties", base, [a, b], of("ties", 2), {})
    for layer in range(4):
        part = backend("ties", base, [a, b], of("ties", 2), {"delta_scale": 0.25 + 0.75 * layer / 3})
        torch.testing.assert_close(part - base, (0.25 + 0.75 * layer / 3) * (plain - base), rtol=0.0, atol=2e-8)


@pytest.mark.parametrize("method", ["task_arithmetic", *PIPELINE])
def test_negation_mirrors_at_the_base(method: str) -> None:
    """θ0 − τ is the mirror image of θ0 + τ; a source mirrored at the base, with coefficient −1, gives θ0 + τ again."""
    base, (expert,) = experts(1, 200)
    base, expert = (base * 1024).round() / 1024, (expert * 1024).round() / 1024
    learnt = backend(method, base, [expert], [{"coefficient": 1.0}], {"normalize": False})
    forgot = backend(method, base, [expert], [{"coefficient": -1.0}], {"normalize": False})
    torch.testing.assert_close(learnt + forgot, 2 * base, rtol=0.0, atol=1e-7)
    mirrored = backend(method, base, [2 * base - expert], [{"coefficient": -1.0}], {"normalize": False})
    torch.testing.assert_close(mirrored, learnt, rtol=0.0, atol=1e-8)


# Declarations and refusals.


def test_every_method_has_these_parameters_and_defaults() -> None:
    """The definitions' names, in the package and in the reference."""
    for method in METHODS:
        declared = {(each.name, each.per_source): each.default for each in get(method).parameters}
        wanted = {(name, False): value for name, value in reference.SHARED[method].items()}
        wanted |= {(name, True): value for name, value in reference.PER_SOURCE.get(method, {}).items()}
        if method not in reference.NO_COEFFICIENT:
            wanted.setdefault(("coefficient", True), None)
        if method == "nearswap":
            wanted["t", False] = None
        declared.pop(("delta_scale", False), None)
        assert declared == wanted, method


@pytest.mark.parametrize(
    ("method", "own", "shared"),
    [
        ("della", [{"coefficient": 1.0, "density": 0.9, "epsilon": 0.15}], {"convention": "mergekit"}),
        ("della_linear", [{"coefficient": 1.0, "density": 0.05, "epsilon": 0.07}], {"convention": "mergekit"}),
        ("dare_linear", [{"coefficient": 1.0}, {"coefficient": -1.0}], {"normalize": True}),
        ("breadcrumbs", [{"coefficient": 1.0}, {"coefficient": -1.0}], {"normalize": True}),
        ("karcher", [{"coefficient": 1.0}, {"coefficient": -1.0}], {}),
        ("multislerp", [{"coefficient": 1.0}, {"coefficient": -1.0}], {}),
        ("model_stock", [{}], {}),
        ("nearswap", [{}], {}),
        ("ties", [{"coefficient": 1.0}], {"trim": "model", "convention": "mergekit"}),
    ],
)
def test_what_the_definitions_refuse(method: str, own: list[dict[str, Any]], shared: dict[str, Any]) -> None:
    base, sources = experts(len(own), 20)
    with pytest.raises(MergingError):
        backend(method, base, sources, own, shared)
