"""What a space decodes is merged, on a model: a small random Llama and two that went a little way from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merging.methods import registry
from merging.scaling import lines
from search.optimizers.contract import Genome
from search.space import Bounds, Knots, MethodChoice, Space

EXPERTS = ("first", "second")

PARAMETERS = {
    "arcee_fusion": {"spread": [0.5, 2.0]},
    "model_stock": {"row_wise": [True, False]},
    "nearswap": {"t": [0.001, 0.02]},
    "passthrough": {"scale": [0.5, 1.0]},
    "ram": {"epsilon": [1e-6, 1e-2]},
    "ramplus_tl": {"r": [0.0, 0.5]},
    "iso_c": {"scale": [0.5, 1.5]},
    "iso_cts": {"scale": [0.5, 1.5]},
    "tsv_m": {"scale": [0.5, 1.5]},
    "wudi": {"scale": [0.5, 1.5]},
}
"""Of methods without coefficients and densities, of which something must vary."""


class Models:
    """The sources, a live model, and the merged weights of a recipe."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import LlamaConfig
        from transformers.models.auto.modeling_auto import AutoModelForCausalLM

        from merging import Materializer, Sources, load_model

        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=False,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        for alias in ("base", *EXPERTS):
            model.load_state_dict(start)
            if alias != "base":
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(0.02 * torch.randn_like(parameter))
            model.save_pretrained(folder / alias)
        self.sources = Sources.load(folder / "base", {alias: folder / alias for alias in EXPERTS})
        self.live = load_model(folder / "base")
        self._materializer = Materializer(self.sources, self.live)

    def weights(self, recipe: Any) -> dict[str, np.ndarray]:
        self._materializer.apply(recipe)
        return {name: value.detach().numpy().copy() for name, value in self.live.named_parameters()}

    def tensor(self, alias: str, name: str) -> np.ndarray:
        return np.asarray(self.sources.tensor(alias, name))

    def space(self, granularity: Any = "model", experts: tuple[str, ...] = EXPERTS, **more: Any) -> Space:
        layout = self.sources.layout
        return Space(
            base="base",
            sources=self.sources.refs,
            experts=experts,
            groups=layout.groups,
            granularity=granularity,
            kinds=[["attention", "mlp"], ["norm"], ["embedding"], ["head"]],
            coefficient=more.pop("coefficient", Bounds(0.0, 1.5)),
            tensors={name: layout.group(name) for name in layout.names},
            **more,
        )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", sorted(each for each in registry.BUILT_IN if not registry.get(each).needs.calibration))
def test_every_method_of_the_registry_is_searched(name: str, models: Models) -> None:
    experts = EXPERTS[: registry.get(name).needs.maximum or 2]
    found = models.space(Knots(2), experts, methods=[MethodChoice(name, PARAMETERS.get(name, {}))])
    chance = np.random.default_rng(1)
    base = models.weights(models.space().decode(models.space().uniform({})))
    for _ in range(2):
        values = tuple(chance.random(found.box.continuous).tolist())
        genome = Genome(values, tuple(int(chance.integers(each)) for each in found.box.categories))
        recipe = found.decode(genome)
        merged = models.weights(recipe)
        assert all(np.isfinite(value).all() for value in merged.values())
        assert any((merged[each] != base[each]).any() for each in merged)
        again = models.weights(found.decode(found.canonical(genome)))
        assert all((merged[each] == again[each]).all() for each in merged)


def test_a_block_has_what_its_own_method_makes_of_it(models: Models) -> None:
    """Methods and densities by block are, tensor by tensor, those of merges with one method everywhere."""
    methods = ["task_arithmetic", "ties", "dare_ties", "model_stock"]
    found = models.space(methods=methods, method_blocks=3)
    assert [gene.name for gene in found.genes[2:4]] == ["density.first@block0", "density.second@block0"]
    values = (0.6, 0.4, 0.1, 0.9, 0.3, 0.7, 0.8, 0.2)
    for choices in ((0, 1, 2), (3, 2, 1)):
        merged = models.weights(found.decode(Genome(values, choices)))
        for run, choice in enumerate(choices):
            alone = models.weights(found.decode(Genome(values, (choice,) * 3)))
            names = [name for name in merged if f"layers.{run}." in name]
            assert len(names) == 9
            assert all((merged[name] == alone[name]).all() for name in names)
            other = models.weights(found.decode(Genome(values, ((choice + 1) % 4,) * 3)))
            assert all((merged[name] != other[name]).any() for name in names)


def test_lines_are_those_of_merging(models: Models) -> None:
    found = models.space("lines", ("first",), coefficient=Bounds(-1.0, 1.0))
    one = models.space("model", ("first",))
    merged = models.weights(found.decode(Genome((0.6, 0.85))))
    expected = models.weights(lines(one.decode(one.uniform({"first": 1.0})), models.sources.layout, 0.2, 0.7))
    for name, value in merged.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-7)


def test_a_tensors_coefficient_moves_that_tensor(models: Models) -> None:
    found = models.space("tensor")
    values = np.random.default_rng(2).random(found.box.continuous)
    genome = Genome(tuple(values.tolist()))
    merged, coefficients = models.weights(found.decode(genome)), found.named(genome)
    for name, value in merged.items():
        base = models.tensor("base", name).astype(np.float64)
        expected = base + sum(
            float(coefficients[f"{alias}.{name}"]) * (models.tensor(alias, name).astype(np.float64) - base)
            for alias in EXPERTS
        )
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6)
