"""Live models that accelerate placed. Only CPUs here: what needs a second device is left to machines that have one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from merging import live
from merging.materialize import Materializer, load_model
from merging.recipe import Assignment, MergingError, Recipe

pytest.importorskip("accelerate")

BLOCKS = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"} | {
    f"model.layers.{number}": "cpu" for number in range(3)
}


def hooked(model: nn.Module) -> nn.Module:
    """As accelerate leaves a model on several devices: every module's forward is wrapped, and moves its inputs."""
    from accelerate import dispatch_model

    return dispatch_model(model, BLOCKS, force_hooks=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_spread_model_takes_the_same_bits_and_gives_the_same_logits(
    families: Callable[..., Any], uniform: Callable[..., Recipe], dtype: torch.dtype
) -> None:
    own = {alias: {"coefficient": 0.8} for alias in ("a", "b")}
    ids = torch.arange(10).view(1, -1)
    outcomes = []
    for spread in (False, True):
        sources = families("llama", dtype).load()
        model = hooked(load_model(sources.path, device_map=BLOCKS)) if spread else load_model(sources.path)
        materializer = Materializer(sources, model)
        materializer.apply(uniform(sources, Assignment.of("ties", own)))
        materializer.apply(uniform(sources, Assignment.of("task_arithmetic", own)))
        with torch.no_grad():
            outcomes.append((materializer.digest(), model(input_ids=ids).logits))
    assert outcomes[0][0] == outcomes[1][0] and torch.equal(outcomes[0][1], outcomes[1][1])


def test_a_model_is_placed_without_gradients_and_in_evaluation_mode(families: Callable[..., Any]) -> None:
    model = load_model(families("qwen2").base, device_map="auto")
    assert not model.training and not any(each.requires_grad for each in model.parameters())
    assert {each.device.type for each in model.parameters()} == {"cuda" if torch.cuda.is_available() else "cpu"}


@pytest.mark.parametrize(
    ("places", "fits"),
    [
        ({"a": 0, "b": 1}, True),
        ({"a": "cuda:0", "b": torch.device("cuda:1")}, True),
        ({"": "cpu"}, True),
        ({"a": 0, "b": "cpu"}, False),
        ({"a": 0, "b": "disk"}, False),
        ({"a": "cpu", "b": "disk"}, False),
        ({"a": 0, "b": torch.device("cpu")}, False),
    ],
)
def test_what_would_be_moved_to_and_fro_is_refused(
    families: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, places: dict[str, Any], fits: bool
) -> None:
    path = families("llama").base
    placed = load_model(path)
    placed.hf_device_map = places
    monkeypatch.setattr(live, "_load", lambda *_: placed)
    if fits:
        assert load_model(path, device_map="auto") is placed
        return
    with pytest.raises(MergingError, match=r"would lie on (cpu|disk).*workers\.gpus"):
        load_model(path, device_map="auto")


def test_weights_that_lie_nowhere_are_refused(families: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    path = families("llama").base
    placed = load_model(path)
    placed.lm_head.to("meta")
    monkeypatch.setattr(live, "_load", lambda *_: placed)
    with pytest.raises(MergingError, match=r"do not hold all of it: part of it would lie on nowhere"):
        load_model(path, device_map="auto")


def test_without_accelerate_is_said_what_to_install(
    families: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MergingError, match="pip install accelerate"):
        load_model(families("llama").base, device_map="auto")
