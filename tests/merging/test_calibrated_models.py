"""RegMean, RegMean++ and Fisher merging in live models: collected, merged, exported; the same bits everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import transformers
from calibration_models import inputs_of, materializer, save_family
from families import Family
from torch import Tensor

from merging.calibration import CollectedCalibration, Samples
from merging.checkpoint import Checkpoint
from merging.export import export
from merging.materialize import Materializer
from merging.methods import canonical_recipe
from merging.recipe import Assignment, Recipe, Value
from merging.sources import Sources


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


class Calibrated:
    """A family of tiny models with everything that the methods ask for."""

    def __init__(self, name: str, folder: Path) -> None:
        self.family: Family = save_family(name, folder)
        self.sources: Sources = self.family.load()
        samples = {
            self.sources.refs[alias].content: Samples.of(inputs_of(name, 4, seed)) for seed, alias in enumerate("ab")
        }
        self.cache = folder / "cache"
        self.calibration = CollectedCalibration(samples, self.cache)
        self.live: Materializer = materializer(self.sources, torch.float32)
        self.live.calibration = self.calibration
        self.calibration.collect(self.live, self.assignments())

    def assignments(self) -> list[Assignment]:
        return [
            self.of("regmean", (1.0, 1.0)),
            self.of("regmean", (0.8, 0.3), alpha=1.0, scale=1.2),
            self.of("regmean_plus", (0.2, 0.8), scale=0.7, delta_scale=0.9),
            self.of("fisher", (1.0, 0.4), scale=0.8),
        ]

    def of(self, method: str, coefficients: Sequence[float], **shared: Value) -> Assignment:
        sources = {alias: {"coefficient": c} for alias, c in zip("ab", coefficients, strict=True)}
        return Assignment.of(method, sources, calibration=self.calibration.fingerprint, **shared)

    def recipe(self, assignment: Assignment) -> Recipe:
        return canonical_recipe(
            Recipe("base", self.sources.refs, dict.fromkeys(self.sources.layout.groups, assignment))
        )

    def merged(self, assignment: Assignment) -> dict[str, Tensor]:
        self.live.apply(self.recipe(assignment))
        return {name: tensor.clone() for name, tensor in self.live.tensors.items()}

    def lost(self, weight: Tensor, name: str) -> float:
        """Σ_t ‖(W − W_t)·X_t‖² on the calibration's inputs."""
        total = 0.0
        for alias in "ab":
            gram = self.calibration.gram(self.sources.refs[alias].content, name)
            assert gram is not None
            difference = (weight - self.sources.tensor(alias, name)).double()
            matrices = difference if gram.matrix.ndim == 3 else difference[None]
            matrices = (matrices.mT if gram.axis == 0 else matrices).flatten(2)
            total += float(((matrices @ gram.matrix) * matrices).sum())
        return total


# Conv1D; experts that are stored one by one, and as one tensor.
FAMILIES = ("gpt2", "mixtral", pytest.param("gpt-oss", marks=pytest.mark.slow))


@pytest.fixture(scope="module", params=FAMILIES)
def calibrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    return Calibrated(request.param, tmp_path_factory.mktemp(request.param))


def test_live_and_exported_are_the_same_bits(calibrated: Calibrated, tmp_path: Path) -> None:
    """In any order, beside methods without data, and from what the cache remembers of the data."""
    remembered = CollectedCalibration.from_cache(calibrated.calibration.fingerprint, calibrated.cache)
    digests = []
    for number, assignment in enumerate(calibrated.assignments()):
        recipe = calibrated.recipe(assignment)
        calibrated.live.apply(recipe)
        digests.append(calibrated.live.digest())
        folder = export(recipe, calibrated.family.load(), tmp_path / str(number), calibration=remembered)
        assert Checkpoint.open(folder).content == digests[-1]
    assert len(set(digests)) == len(digests)
    for assignment, digest in reversed(list(zip(calibrated.assignments(), digests, strict=True))):
        calibrated.live.apply(calibrated.recipe(Assignment.of("linear", {"a": {"coefficient": 1.0}})))
        calibrated.live.apply(calibrated.recipe(assignment))
        assert calibrated.live.digest() == digest


def test_what_is_merged_is_the_best_on_the_inputs(calibrated: Calibrated) -> None:
    """Every linear weight loses less than the mean, and than itself moved a little; every other tensor is the mean."""
    found = calibrated.merged(calibrated.of("regmean", (1.0, 1.0), alpha=1.0))
    linear = 0
    for name, weight in found.items():
        base, a, b = (calibrated.sources.tensor(alias, name) for alias in ("base", "a", "b"))
        mean = (a + b) / 2
        if calibrated.calibration.gram(calibrated.sources.refs["a"].content, name) is None:
            torch.testing.assert_close(weight, mean, rtol=1e-6, atol=1e-7)
            continue
        linear += 1
        lost = calibrated.lost(weight, name)
        assert lost <= calibrated.lost(mean, name) * (1 + 1e-6) + 1e-12, name
        for step in (-0.05, 0.05):
            for direction in (a - b, base - mean):
                assert lost <= calibrated.lost(weight + step * direction, name) * (1 + 1e-4) + 1e-10, name
    assert linear > len(found) // 4


def test_the_layers_below_matter_to_regmean_plus(calibrated: Calibrated) -> None:
    """RegMean++ differs from RegMean in linear weights alone, and in every block: embeddings are merged below all."""
    plain, other = (
        calibrated.merged(calibrated.of(method, (0.2, 0.8), scale=0.7, delta_scale=0.9))
        for method in ("regmean", "regmean_plus")
    )
    content, layout = calibrated.sources.refs["a"].content, calibrated.sources.layout
    changed = {name for name in plain if not torch.equal(plain[name], other[name])}
    assert all(calibrated.calibration.gram(content, name) is not None for name in changed)
    blocks = {(group.stack, group.depth) for group in layout.groups if group.depth is not None}
    assert {(layout.group(name).stack, layout.group(name).depth) for name in changed} >= blocks
