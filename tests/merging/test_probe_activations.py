"""Disentanglement and activation checks: closed forms, planted collapse, planted infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from families import Family, save
from torch import Tensor, nn
from transformers import GPT2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from merging.diagnose.activations import blocks_of, cka, watch_blocks
from merging.diagnose.probes import Disentanglement, check_activations, disentanglement
from merging.materialize import Materializer, load_model
from merging.recipe import MergingError
from merging.sources import Sources

Families = Callable[..., Family]
TOKENS = torch.arange(24).reshape(3, 8)


@pytest.fixture(scope="module")
def live(families: Families) -> Materializer:
    family = families("llama")
    sources = Sources.load(family.base, {"a": family.a, "b": family.b})
    return Materializer(sources, load_model(family.base), compile="never")


def run(model: nn.Module) -> None:
    model(input_ids=TOKENS)


def logits(model: nn.Module) -> Tensor:
    return model(input_ids=TOKENS).logits


def weights(live: Materializer, name: str) -> Callable[[nn.Module], Tensor]:
    """Outputs that are the weights themselves, so that distances are known; handed out without a copy."""
    return lambda _: live.tensors[name]


def test_the_relative_distance_is_that_of_the_other_task_vectors(live: Materializer) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    base, a, b = (live.sources.tensor(alias, name).double() for alias in ("base", "a", "b"))
    outputs = {"a": weights(live, name), "b": weights(live, name)}
    found = disentanglement(live, outputs, lambdas=(0.5, 1.0), distance="relative")
    for place, value in enumerate(found.lambdas):
        for alias, own, other in (("a", a, b), ("b", b, a)):
            alone = base + value * (own - base)
            expected = float((value * (other - base)).norm() / alone.norm())
            assert found.errors[alias][place] == pytest.approx(expected, rel=1e-5)
    assert found.means[0] == pytest.approx((found.errors["a"][0] + found.errors["b"][0]) / 2)
    assert torch.equal(live.tensors[name].double(), base)
    assert Disentanglement.from_data(json.loads(json.dumps(found.as_data()))) == found


def test_experts_of_different_layers_do_not_disturb_what_reads_one(families: Families, tmp_path: object) -> None:
    # Expert a changed the head alone, expert b the first block alone.
    family, folder = families("llama"), tmp_path
    model = AutoModelForCausalLM.from_pretrained(family.base)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    for alias, part in (("a", "lm_head"), ("b", "layers.0.mlp.up_proj")):
        model.load_state_dict(start)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if part in name:
                    parameter.add_(torch.randn_like(parameter))
        save(model, folder / alias, "50GB")  # type: ignore[operator]
    sources = Sources.load(family.base, {alias: folder / alias for alias in ("a", "b")})  # type: ignore[operator]
    live = Materializer(sources, load_model(family.base), compile="never")
    hidden = lambda model: model.model(input_ids=TOKENS).last_hidden_state  # noqa: E731
    found = disentanglement(live, {"a": logits, "b": hidden}, lambdas=(1.0,), distance="relative")
    assert found.errors["b"] == (0.0,), "the head does not touch what comes before it"
    assert found.errors["a"][0] > 0.1, "the logits hang on the first block too"
    classes = disentanglement(live, {"a": logits, "b": hidden}, lambdas=(1.0,))
    assert classes.errors["b"] == (0.0,) and 0.0 < classes.errors["a"][0] <= 1.0


def test_distances_of_rows() -> None:
    from merging.diagnose.probes import _distance

    one, other = torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert _distance("disagreement", one.double(), other.double(), "a") == 0.5
    p, q = 1 / (1 + math.e), math.e / (1 + math.e)
    assert _distance("total_variation", one.double(), other.double(), "a") == pytest.approx((q - p) / 2)
    assert math.isnan(_distance("relative", one.double() * math.inf, other.double(), "a"))


def test_variances_and_cka_are_those_of_the_blocks(live: Materializer) -> None:
    found = check_activations(live, run, rows=10_000)
    assert [each.name for each in found.blocks] == [f"model.layers.{n}" for n in range(3)]
    assert found.rows == TOKENS.numel() and found.finite and found.coefficients == {"a": 0.5, "b": 0.5}
    # The same by hand, from hidden states of the models as transformers loads them.
    given = {}
    for alias, path in (("base", live.sources.path), *((x, live.sources.checkpoints[x].path) for x in ("a", "b"))):
        model = load_model(path)
        with torch.no_grad(), watch_blocks(model, 0) as _:
            given[alias] = model(input_ids=TOKENS, output_hidden_states=True).hidden_states[1].double().reshape(24, -1)
    block = found.blocks[0]
    for alias, hidden in given.items():
        assert block.variances[alias] == pytest.approx(float(hidden.var(0, correction=0).sum()), rel=1e-4)
    x, y = (given[alias] - given[alias].mean(0) for alias in ("a", "b"))
    expected = float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))
    assert block.similarity["a", "b"] == pytest.approx(expected, rel=1e-4)
    ratio = block.variances["merged"] / ((block.variances["a"] + block.variances["b"]) / 2)
    assert block.variance_ratio == pytest.approx(ratio)
    json.dumps(found.as_data(), allow_nan=False)
    assert not any(module._forward_hooks for module in live.model.modules()), "a hook was left behind"


def test_a_merge_that_is_the_expert_differs_in_nothing(live: Materializer) -> None:
    found = check_activations(live, run, {"a": 1.0}, rows=8)
    for each in found.blocks:
        assert each.variance_ratio == 1.0 and each.similarity["a", "merged"] == pytest.approx(1.0)
        assert each.similarity["base", "a"] < 1.0


def test_opposite_experts_cancel_and_the_block_collapses(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Without residual weights to speak of, the last block's output is what two large opposite changes write: their
    # average writes nothing.
    folder = tmp_path_factory.mktemp("opposite")
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=24, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    save(model, folder / "base", "50GB")
    change = 5.0 * torch.randn_like(start["transformer.h.1.mlp.c_proj.weight"])
    for alias, sign in (("a", 1.0), ("b", -1.0)):
        model.load_state_dict(start)
        with torch.no_grad():
            model.transformer.h[1].mlp.c_proj.weight.add_(sign * change)
        save(model, folder / alias, "50GB")
    sources = Sources.load(folder / "base", {"a": folder / "a", "b": folder / "b"})
    live = Materializer(sources, load_model(folder / "base"), compile="never")
    found = check_activations(live, run)
    assert found.blocks[0].variance_ratio == pytest.approx(1.0, rel=1e-5), "the first block is the same in all"
    assert found.collapsed == ("transformer.h.1",)


def test_infinity_inside_is_seen(live: Materializer) -> None:
    found = check_activations(live, run, {"a": 1e17})
    assert not found.finite and math.isnan(found.blocks[-1].variances["merged"])
    assert found.as_data()["blocks"][-1]["variance_ratio"] is None


def test_batches_add_up(live: Materializer) -> None:
    whole = check_activations(live, run, rows=5)
    parts = check_activations(live, lambda model: [model(input_ids=row[None]) for row in TOKENS], rows=5)
    for one, other in zip(whole.blocks, parts.blocks, strict=True):
        assert one.variances == pytest.approx(dict(other.variances), rel=1e-4)
        assert one.similarity == pytest.approx(dict(other.similarity), rel=1e-3)


def test_cka_of_turned_and_of_unrelated_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    x -= x.mean(0)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    y = 3.0 * x @ turn
    assert cka(x @ x.T, y @ y.T) == pytest.approx(1.0)
    z = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    z -= z.mean(0)
    z -= x @ torch.linalg.lstsq(x, z).solution  # nothing of x in it
    assert cka(x @ x.T, z @ z.T) == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(cka(torch.zeros(3, 3), torch.ones(3, 3)))


def test_mistakes_in_probes_are_explained(live: Materializer) -> None:
    with pytest.raises(MergingError, match="at least 2 different experts"):
        disentanglement(live, {"a": logits})
    with pytest.raises(MergingError, match="found one in the outputs"):
        disentanglement(live, dict.fromkeys("ab", lambda model: logits(model)[..., :1]))
    lengths = iter(range(2, 40))
    with pytest.raises(MergingError, match="the same outputs for 'a' every time"):
        disentanglement(live, dict.fromkeys("ab", lambda model: logits(model)[0, : next(lengths)]))
    with pytest.raises(MergingError, match="as a tensor"):
        disentanglement(live, dict.fromkeys("ab", lambda model: 3.0))
    with pytest.raises(MergingError, match="none of them was called"):
        check_activations(live, lambda model: None)
    with pytest.raises(MergingError, match="found others from"):
        check_activations(live, lambda model: model(input_ids=TOKENS[:, : next(lengths) % 7 + 1]))
    with pytest.raises(MergingError, match="numbered blocks"):
        blocks_of(nn.Linear(2, 2))
    with pytest.raises(MergingError, match="found nobody"):
        check_activations(live, run, {"nobody": 1.0})
