"""The diagonal Fisher information, against gradients that are written out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_models import inputs_of, materializer, one_expert
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedModel

from merging.calibration import CollectedCalibration, Samples
from merging.calibration.fisher import _seeded, collect_fisher, log_likelihood
from merging.calibration.store import Store
from merging.checkpoint import SINGLE
from merging.materialize import load_model
from merging.recipe import Assignment, MergingError
from merging.sources import Sources

TINY = {"vocab_size": 5, "n_embd": 4, "n_layer": 1, "n_head": 2, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0}


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Sources]:
    return cache(lambda name: one_expert(name, tmp_path_factory.mktemp(name)))


def tiny(cls: type[PreTrainedModel], folder: Path, **options: Any) -> Sources:
    """A model with weights that make its answers far from uniform."""
    torch.manual_seed(3)
    model: Any = cls(GPT2Config(**TINY, **options))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "a")
    return Sources.load(folder / "base", {"a": folder / "a"})


def collected(
    sources: Sources, samples: list[dict[str, Tensor]], cache: Path, memory: int | None = None
) -> tuple[dict[str, Tensor], float]:
    """Of source a, by stored tensor; and the norm."""
    content = sources.refs["a"].content
    calibration = CollectedCalibration({content: Samples.of(samples)}, cache)
    made = materializer(sources)
    before = made.digest()
    assignment = Assignment.of("fisher", {"a": {}}, calibration=calibration.fingerprint)
    calibration.collect(made, [assignment], memory=memory)
    assert made.digest() == before and not any(each.requires_grad for each in made.model.parameters())
    return {name: calibration.fisher(content, name) for name in sources.tensors}, calibration.fisher_norm(content)


def gradients(scalar: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """By name, tied ones once."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(scalar, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(each) if gradient is None else gradient
        for (name, each), gradient in zip(named.items(), found, strict=True)
    }


def differentiable(path: Path) -> Any:
    model: Any = load_model(path, torch.float64).requires_grad_(True)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model


def enumerated(model: Any, samples: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """E (∂ log p)² and E (∂ log p)⁴ over every combination of labels, a mean over samples."""
    squares: dict[str, Tensor] = {}
    fourths: dict[str, Tensor] = {}
    for sample in samples:
        logits = model(**sample).logits
        logs = logits.reshape(-1, logits.shape[-1]).log_softmax(-1)
        for labels in itertools.product(range(logs.shape[1]), repeat=logs.shape[0]):
            total = sum(logs[position, label] for position, label in enumerate(labels))
            weight = float(total.detach().exp()) / len(samples)
            for name, gradient in gradients(total, model).items():
                squares[name] = squares.get(name, torch.zeros(())) + weight * gradient**2
                fourths[name] = fourths.get(name, torch.zeros(())) + weight * gradient**4
    return squares, fourths


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "options", "prompts"),
    [
        (GPT2ForSequenceClassification, {"num_labels": 3}, [[1, 4, 2], [3]]),
        (GPT2LMHeadModel, {}, [[1, 4], [3]]),
    ],
)
def test_sampled_labels_estimate_the_sum_over_all(
    tmp_path: Path, cls: type[PreTrainedModel], options: dict[str, Any], prompts: list[list[int]]
) -> None:
    """Repeated samples draw anew; the error is what their variance says."""
    sources = tiny(cls, tmp_path, **options)
    model = differentiable(sources.checkpoints["a"].path)
    samples = [{"input_ids": torch.tensor([prompt])} for prompt in prompts]
    squares, fourths = enumerated(model, samples)
    draws = 50
    found, norm = collected(sources, samples * draws, tmp_path / "cache")
    assert norm == pytest.approx(sum(float(each.double().square().sum()) for each in found.values()) ** 0.5, rel=1e-6)
    scores = []
    for name, exact in squares.items():
        error = found[name].double() - exact
        spread = ((fourths[name] - exact**2).clamp(min=0.0) / (draws * len(samples))).sqrt()
        sure = exact < 1e-12
        assert bool((found[name][sure] < 1e-9).all()), name
        scores.append((error / spread.clamp(min=1e-12))[~sure])
    z = torch.cat([each.flatten() for each in scores])
    assert len(z) > 100
    assert float(z.abs().max()) < 6.0 and float(z.square().mean()) < 3.0
    # Were it the square of a sum over samples, or of labels from anywhere else, means would be far off.
    total = sum(float(each.sum()) for each in squares.values())
    assert sum(float(each.sum()) for each in found.values()) == pytest.approx(total, rel=0.35)


def test_a_single_number_is_a_gaussian_and_exact(tmp_path: Path) -> None:
    sources = tiny(GPT2ForSequenceClassification, tmp_path, num_labels=1)
    model = differentiable(sources.checkpoints["a"].path)
    samples = [{"input_ids": torch.tensor([prompt])} for prompt in ([1, 4, 2], [3], [2, 2])]
    expected: dict[str, Tensor] = {}
    for sample in samples:
        for name, gradient in gradients(model(**sample).logits.sum(), model).items():
            expected[name] = expected.get(name, torch.zeros(())) + gradient**2 / 3
    found, _ = collected(sources, samples, tmp_path / "cache")
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        torch.testing.assert_close(found[name].double(), each, rtol=1e-6, atol=1e-12)


def test_a_certain_answer_tells_nothing(tmp_path: Path) -> None:
    """Where one label has all the probability, the gradient of its logarithm is 0."""
    sources = tiny(GPT2ForSequenceClassification, tmp_path, num_labels=2)
    made = materializer(sources)
    logits = made.model(input_ids=torch.tensor([[1, 4, 2]])).logits
    sure = logits.detach() + torch.tensor([[0.0, 5000.0]])
    generator = torch.Generator().manual_seed(0)
    scalar = log_likelihood(sure.requires_grad_(True), None, generator, "a")
    assert float(scalar.detach()) == 0.0
    (gradient,) = torch.autograd.grad(scalar, sure)
    assert not gradient.any()


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_other_kinds_of_labels(problem: str) -> None:
    """Independent yes or no for each label; a Gaussian for each number: the information in the logits is known."""
    logits = torch.tensor([[0.3, -1.2, 2.0]], dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros(1, 3, dtype=torch.float64)
    for _ in range(1000):
        (gradient,) = torch.autograd.grad(log_likelihood(logits * 1.0, problem, generator, "a"), logits)
        total += gradient**2 / 1000
    p = logits.detach().sigmoid()
    expected = p * (1 - p) if problem == "multi_label_classification" else torch.ones_like(p)
    torch.testing.assert_close(total, expected, rtol=0.2, atol=0.0)


@pytest.mark.parametrize(
    "name",
    [
        "mixtral",
        "nomic-bert",
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ("gpt-neox", "t5", "whisper", "llava", "resnet", "reward")
        ),
    ],
)
def test_every_stored_tensor_has_the_squares_of_its_own_gradients(
    load: Callable[[str], Sources], tmp_path: Path, name: str
) -> None:
    """The model's class says what is stored where: squares are saved as if they were its weights."""
    sources, samples = load(name), inputs_of(name)
    found, _ = collected(sources, samples, tmp_path / "cache")
    model = differentiable(sources.checkpoints["a"].path)
    problem = model.config.problem_type
    squares: dict[str, Tensor] = {}
    for seed, sample in _seeded(Samples.of(samples)):
        wide = {key: value.double() if value.is_floating_point() else value for key, value in sample.items()}
        scalar = log_likelihood(model(**wide), problem, torch.Generator().manual_seed(seed), "a")
        for each, gradient in gradients(scalar, model).items():
            squares[each] = squares.get(each, torch.zeros(())) + gradient**2 / len(samples)
    with torch.no_grad():
        for each, parameter in model.named_parameters():
            parameter.copy_(squares[each])
    model.save_pretrained(tmp_path / "squares")
    expected = load_file(tmp_path / "squares" / SINGLE)
    parameters = {each for each in sources.tensors if "running" not in each}
    assert parameters <= expected.keys() and sum(float(found[each].sum()) for each in parameters) > 0
    for each in parameters:
        torch.testing.assert_close(found[each].double(), expected[each].double(), rtol=1e-5, atol=1e-12)
    assert all(not found[each].any() for each in sources.tensors.keys() - parameters)


def test_several_passes_and_any_order_give_the_same_bits(load: Callable[[str], Sources], tmp_path: Path) -> None:
    sources, samples = load("llama"), inputs_of("llama")
    one, norm = collected(sources, samples, tmp_path / "one")
    calibration = CollectedCalibration({sources.refs["a"].content: Samples.of(samples)}, tmp_path)
    assignment = Assignment.of("fisher", {"a": {}}, calibration=calibration.fingerprint)
    plans = [calibration.plan(materializer(sources), [assignment], memory=each) for each in (None, 100_000)]
    assert plans[0].passes == 1 and 2 < plans[1].passes < 10
    assert plans[1].bytes_in_memory <= 100_000 < plans[0].bytes_in_memory
    assert plans[0].bytes_on_disk == 4 * sum(info.numel for info in sources.tensors.values())
    for memory, given in ((100_000, samples), (None, samples[::-1])):
        other, same = collected(sources, given, tmp_path / f"{memory}", memory)
        assert same == pytest.approx(norm, rel=1e-12)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("memory", [None, 1])
def test_one_stored_tensor_in_several_parameters_is_collected_at_once(tmp_path: Path, memory: int | None) -> None:
    """Query and key are stored fused, with a bias of their own between them in the model."""

    class Attention(nn.Module):
        def __init__(self, fused: Tensor) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(3, 4), nn.Linear(3, 4)
            self.query.weight, self.key.weight = nn.Parameter(fused[:4]), nn.Parameter(fused[4:])

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.query(x) + 2.0 * self.key(x)
            return logits

    torch.manual_seed(0)
    fused = torch.randn(8, 3)
    model = Attention(fused).requires_grad_(False)
    tensors = {"qk": fused, "q.bias": model.query.bias, "k.bias": model.key.bias}
    store = Store(tmp_path)
    writer = store.begin()
    samples = Samples.of([{"x": torch.randn(1, 3, generator=torch.Generator().manual_seed(each))} for each in range(5)])
    collect_fisher(model, tensors, samples, "a", writer, memory or 1 << 30)
    entry = store.commit(writer, "key")
    query, key = entry.read(entry.names["qk"]["file"], "qk").split(4)
    assert query.any() and torch.allclose(key, 4.0 * query)


def test_a_model_without_a_distribution_is_refused() -> None:
    class Embeddings:
        """What a model for features returns."""

    with pytest.raises(MergingError, match=r"needs a model with logits, .* Embeddings of a has none"):
        log_likelihood(Embeddings(), None, torch.Generator(), "a")


def test_answers_that_overflow_are_named() -> None:
    with pytest.raises(MergingError, match="the logits of a are NaN on some calibration samples"):
        log_likelihood(torch.tensor([[0.0, float("nan")]]), None, torch.Generator(), "a")
