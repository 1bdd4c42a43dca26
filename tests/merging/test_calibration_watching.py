"""How uses of weights are seen: operations of every kind, shared inputs that part ways, and leaving a pass early."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from merging.calibration.grams import collect_grams, read_gram
from merging.calibration.linears import LiveWeights
from merging.calibration.samples import Samples
from merging.calibration.store import Store
from merging.calibration.survey import survey
from merging.layout import Layout


class Bench(nn.Module):
    """Weights of one shape or another, and whatever is done with them."""

    def __init__(self, do: Callable[[dict[str, Tensor], Tensor], Any], **shapes: tuple[int, ...]):
        super().__init__()
        self.do = do
        generator = torch.Generator().manual_seed(2)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator).double()))
        self.calls = 0

    def forward(self, x: Tensor) -> None:
        self.calls += 1
        self.do(dict(self.named_parameters()), x)


def collect(model: Bench, inputs: list[Tensor], folder: Path, memory: int = 1 << 40) -> dict[str, Any]:
    """name -> Gram, of every weight of a model that stores them as they are."""
    tensors = {name: each.data for name, each in model.named_parameters()}
    shapes = {name: tuple(each.shape) for name, each in tensors.items()}
    sources: Any = SimpleNamespace(
        layout=Layout.of(shapes),
        tensors={name: SimpleNamespace(shape=shape) for name, shape in shapes.items()},
        config={},
    )
    live: Any = SimpleNamespace(model=model, sources=sources, weights=LiveWeights(tensors))
    samples = Samples.of([{"x": each} for each in inputs])
    found = survey(model, sources, live.weights, samples, "it")
    model.calls = 0
    store = Store(folder)
    writer = store.begin()
    try:
        collect_grams(live, found, samples, "it", writer, memory)
        return {name: read_gram(writer, name) for name in tensors}
    finally:
        store.abandon(writer)


X = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(1)).double()
ROWS = X[0]

ONE = {"w": (6, 4)}
ACROSS = {"w": (4, 6)}

OPERATIONS: dict[str, tuple[dict[str, tuple[int, ...]], Callable[[Tensor, Tensor], Any], Tensor, int]] = {
    "linear": (ONE, lambda w, x: nn.functional.linear(x, w), ROWS, 1),
    "linear with bias": (ONE, lambda w, x: nn.functional.linear(x, w, w.new_zeros(6)), ROWS, 1),
    "matmul": (ACROSS, lambda w, x: x @ w, ROWS, 0),
    "matmul of a transpose": (ONE, lambda w, x: x @ w.mT, ROWS, 1),
    "from the left": (ONE, lambda w, x: w @ x[0].T, ROWS, 1),
    "addmm": (ACROSS, lambda w, x: torch.addmm(w.new_zeros(6), x[0], w), ROWS, 0),
    "einsum": (ONE, lambda w, x: torch.einsum("bti,oi->bto", x, w), ROWS, 1),
    "einsum across": (ACROSS, lambda w, x: torch.einsum("bti,io->bto", x, w), ROWS, 0),
    "a vector": (ONE, lambda w, x: w @ x[0, 0], ROWS[:1], 1),
    "expanded over a batch": (
        ACROSS,
        lambda w, x: torch.bmm(x.expand(3, 5, 4), w.expand(3, 4, 6)),
        ROWS.repeat(3, 1),
        0,
    ),
    "in another dtype": (ONE, lambda w, x: nn.functional.linear(x.float(), w.float()), ROWS, 1),
    "twice": (ONE, lambda w, x: (x @ w.mT, x[:, :2] @ w.mT), torch.cat([ROWS, ROWS[:2]]), 1),
    "in two halves of its outputs": (ONE, lambda w, x: (x @ w[:3].mT, x @ w[3:].mT), ROWS, 1),
    "under a strange loop": (ONE, lambda w, x: [row @ w.mT for row in x[0]], ROWS, 1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_way_to_multiply(tmp_path: Path, name: str) -> None:
    shapes, do, rows, axis = OPERATIONS[name]
    gram = collect(Bench(lambda weights, x: do(weights["w"], x), **shapes), [X], tmp_path)["w"]
    assert gram.axis == axis and gram.rows == (len(rows),)
    torch.testing.assert_close(gram.matrix * len(rows), rows.T @ rows, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "do",
    [
        lambda w, x: x * w[:1, :4],
        lambda w, x: nn.functional.embedding(torch.tensor([1, 2]), w),
        lambda w, x: (nn.functional.embedding(torch.tensor([1, 2]), w), x @ w.mT),
        lambda w, x: x[..., :2] @ w[:, :2].mT,
    ],
    ids=["a product by elements", "an embedding", "a tied head", "a part of its inputs"],
)
def test_what_is_no_linear_weight(tmp_path: Path, do: Callable[[Tensor, Tensor], Any]) -> None:
    def both(weights: dict[str, Tensor], x: Tensor) -> None:
        do(weights["w"], x)
        x @ weights["other"].mT

    found = collect(Bench(both, w=(6, 4), other=(3, 4)), [X], tmp_path)
    assert found["w"] is None and found["other"] is not None


@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        ({"stride": 2, "padding": 1}, (3,)),
        ({"dilation": 2}, (2,)),
        ({"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}, (2, 3)),
        ({"padding": "same"}, (3, 3)),
        ({"stride": 2}, (2, 2, 2)),
    ],
)
def test_convolutions(tmp_path: Path, options: dict[str, Any], kernel: tuple[int, ...]) -> None:
    """The patches are what the convolution itself answers to kernels that pick one element each."""
    convolution = getattr(nn.functional, f"conv{len(kernel)}d")
    x = torch.randn(1, 2, *(7, 6, 5)[: len(kernel)], generator=torch.Generator().manual_seed(4)).double()
    width = 2 * torch.Size(kernel).numel()
    model = Bench(lambda weights, inputs: convolution(inputs, weights["w"], **options), w=(5, 2, *kernel))
    gram = collect(model, [x, x + 1], tmp_path)["w"]
    picks = torch.eye(width).double().view(width, 2, *kernel)
    rows = torch.cat([convolution(each, picks, **options).movedim(1, -1).reshape(-1, width) for each in (x, x + 1)])
    assert gram.rows == (len(rows),) and gram.axis == 1
    torch.testing.assert_close(gram.matrix * len(rows), rows.T @ rows)


def test_grouped_convolutions_are_left_out(tmp_path: Path) -> None:
    def do(weights: dict[str, Tensor], x: Tensor) -> None:
        nn.functional.conv1d(x, weights["w"], groups=5)
        x @ weights["other"].mT

    found = collect(Bench(do, w=(10, 1, 2), other=(3, 4)), [X], tmp_path)
    assert found["w"] is None and found["other"] is not None


def test_stacks_one_by_one(tmp_path: Path) -> None:
    """One product for each weight of a stack, or one for all; one that nothing reaches has no rows."""

    def do(weights: dict[str, Tensor], x: Tensor) -> None:
        x[0, :2] @ weights["up"][0]
        x[0, 2:] @ weights["up"][2]
        torch.bmm(x[0, :3, None], weights["all"])

    found = collect(Bench(do, up=(3, 4, 6), all=(3, 4, 4)), [X], tmp_path)
    parts = [ROWS[:2], ROWS[:0], ROWS[2:]]
    assert found["up"].rows == (2, 0, 3) and found["up"].axis == 0
    torch.testing.assert_close(found["up"].matrix * 5, torch.stack([part.T @ part for part in parts]))
    assert found["all"].rows == (1, 1, 1) and found["all"].axis == 0
    torch.testing.assert_close(found["all"].matrix * 3, torch.stack([row[:, None] * row for row in ROWS[:3]]))


def test_inputs_that_are_shared_only_by_some_samples_are_told_apart(tmp_path: Path) -> None:
    """The first sample is looked at; another then shows that the two weights differ."""

    def do(weights: dict[str, Tensor], x: Tensor) -> None:
        x @ weights["blocks.0.q"].mT
        other = x if x.shape[1] == 1 else 2 * x
        other @ weights["blocks.0.k"].mT

    def model() -> Bench:
        bench = Bench(do)
        block = nn.ParameterDict({"q": torch.randn(3, 4).double(), "k": torch.randn(3, 4).double()})
        bench.blocks = nn.ModuleList([block])
        return bench

    always = collect(model(), [X[:, :1]], tmp_path)
    assert always["blocks.0.q"].inputs == always["blocks.0.k"].inputs
    found = collect(model(), [X[:, :1], X], tmp_path)
    q, k = found["blocks.0.q"], found["blocks.0.k"]
    assert q.inputs != k.inputs and q.rows == k.rows == (6,)
    torch.testing.assert_close(q.matrix * 6, ROWS.T @ ROWS + ROWS[:1].T @ ROWS[:1])
    torch.testing.assert_close(k.matrix * 6, 4 * ROWS.T @ ROWS + ROWS[:1].T @ ROWS[:1])


def test_a_change_in_place_makes_other_inputs(tmp_path: Path) -> None:
    def do(weights: dict[str, Tensor], x: Tensor) -> None:
        x = x.clone()
        x @ weights["blocks.0.q"].mT
        x.mul_(3.0)
        x @ weights["blocks.0.k"].mT

    bench = Bench(do)
    bench.blocks = nn.ModuleList([nn.ParameterDict({"q": torch.ones(3, 4).double(), "k": torch.ones(3, 4).double()})])
    found = collect(bench, [X], tmp_path)
    torch.testing.assert_close(found["blocks.0.q"].matrix * 5, ROWS.T @ ROWS)
    torch.testing.assert_close(found["blocks.0.k"].matrix * 5, 9 * ROWS.T @ ROWS)


def test_a_pass_is_left_behind_its_last_weight_but_not_before(tmp_path: Path) -> None:
    """One weight is used again at the end: a pass for it goes through; the others stop."""
    reached: list[str] = []

    def do(weights: dict[str, Tensor], x: Tensor) -> None:
        for name in ("first", "second", "third", "first"):
            x @ weights[name].mT
            reached.append(name)

    model = Bench(do, first=(4, 4), second=(4, 4), third=(4, 4))
    found = collect(model, [X], tmp_path, memory=1)
    assert model.calls == 3
    tail = reached[-(4 + 2 + 4) :]
    assert tail == ["first", "second", "third", "first", "first", "second", "first", "second", "third", "first"]
    assert found["first"].rows == (10,) and found["second"].rows == (5,)


def test_samples_are_run_together_only_where_that_changes_nothing(tmp_path: Path) -> None:
    """What sees something else than the inputs, once per pass, would count by passes."""

    def plain(weights: dict[str, Tensor], x: Tensor) -> None:
        x @ weights["w"].mT

    def with_distances(weights: dict[str, Tensor], x: Tensor) -> None:
        plain(weights, x)
        torch.ones(2, 4).double() @ weights["other"].mT

    def single(weights: dict[str, Tensor], x: Tensor) -> None:
        if len(x) > 1:
            raise ValueError("one at a time")
        plain(weights, x)

    inputs = [X, X + 1, X + 2]
    for do, shapes, calls in (
        (plain, {"w": (6, 4)}, 1),
        (with_distances, {"w": (6, 4), "other": (3, 4)}, 3),
        (single, {"w": (6, 4)}, 3),
    ):
        model = Bench(do, **shapes)
        found = collect(model, inputs, tmp_path)
        assert model.calls == calls and found["w"].rows == (15,)
        torch.testing.assert_close(found["w"].matrix * 15, sum(each[0].T @ each[0] for each in inputs))
        assert "other" not in found or found["other"].rows == (6,)


def test_many_rows_and_wide_inputs_are_exact(tmp_path: Path) -> None:
    """Buffers fill in the middle of an input; a matrix is more than one panel wide."""
    x = torch.randn(1, 700, 1100, generator=torch.Generator().manual_seed(5)).double()
    found = collect(Bench(lambda weights, inputs: inputs @ weights["w"].mT, w=(1, 1100)), [x, 2 * x[:, :400]], tmp_path)
    rows = torch.cat([x[0], 2 * x[0, :400]])
    assert found["w"].rows == (1100,)
    torch.testing.assert_close(found["w"].matrix * 1100, rows.T @ rows, rtol=1e-10, atol=1e-9)
    assert torch.equal(found["w"].matrix, found["w"].matrix.T)


def test_what_a_killed_writer_left_is_swept_and_a_living_one_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    living = store.begin()
    dead = store.root / ".partial-dead"
    dead.mkdir()
    (dead / "0000.safetensors").write_bytes(b"half")
    dead.with_suffix(".lock").touch()
    other = Store(tmp_path).begin()
    assert not dead.exists() and not dead.with_suffix(".lock").exists()
    assert living.folder.is_dir() and other.folder.is_dir()
    store.abandon(living)
    store.abandon(other)
    assert not list(store.root.iterdir())
