"""What `check` says of a data-flow space over real, small models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checking import check, edited, found, project


def flow(**keys: Any) -> Any:
    """Changes a config's space to a data-flow one, its optimizer to the given one."""
    optimizer = keys.pop("optimizer", "sms_emoa")

    def change(config: dict[str, Any]) -> None:
        config["space"] = {"data_flow": keys}
        config["search"]["optimizer"] = optimizer

    return change


def test_a_good_one_has_its_stages_told(tmp_path: Path) -> None:
    checked = check(project(tmp_path, flow(repetitions=2)))
    assert not checked.errors and not found(checked, "warning")
    assert checked.plan is not None
    known, full = checked.plan.stages
    assert [label for label, _ in known.fixed] == ["base", "expert one", "expert two", "one|two stacked halves"]
    assert (full.space.box.continuous, len(full.space.box.categories)) == (8, 6)


@pytest.mark.parametrize(
    ("keys", "level", "place", "text"),
    [
        ({"depth": 1, "ends": "free"}, "note", "space.data_flow.depth", "finds shallower models only"),
        ({"indicators": "choice", "optimizer": "cma"}, "note", "space.data_flow.indicators", "for whole numbers"),
        ({"optimizer": {"name": "cma", "start": "middle"}}, "warning", "search.optimizer", "half of all slots"),
        ({"optimizer": "random", "indicators": "threshold"}, "warning", "space.data_flow.indicators", "evenly"),
        ({"optimizer": "gp"}, "warning", "search.optimizer", "10 choices beside 12 numbers"),
        ({"scale_per": "pair", "repetitions": 60}, "note", "search.budget.candidates", "fewer repetitions"),
    ],
)
def test_what_may_not_be_meant_is_said(tmp_path: Path, keys: dict[str, Any], level: str, place: str, text: str) -> None:
    checked = check(project(tmp_path, flow(**keys)))
    assert not checked.errors
    assert text in found(checked, level)[place]


def test_scales_that_no_export_could_hold_are_an_error_and_paths_without_them_are_not(tmp_path: Path) -> None:
    """Norms behind the sublayers (OLMo 2) do not survive a fold of scales."""
    path = project(tmp_path, flow(repetitions=2))
    for name in ("base", "one", "two"):
        as_olmo2(tmp_path / name)
    checked = check(path)
    assert checked.errors == 1
    assert "scales: off" in found(checked, "error")["space.data_flow.scales"]
    path = project(tmp_path / "off", flow(repetitions=2, scales="off"))
    for name in ("base", "one", "two"):
        as_olmo2(tmp_path / "off" / name)
    assert not check(path).errors


def as_olmo2(folder: Path) -> None:
    """The model as one of another architecture, of the same shapes but for its norms."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import Olmo2Config

    old = json.loads((folder / "config.json").read_text())
    keys = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "eos_token_id", "pad_token_id",
    )  # fmt: skip
    Olmo2Config(**{key: old[key] for key in keys}).save_pretrained(folder)
    edited(folder / "config.json", architectures=["Olmo2ForCausalLM"])
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors[name.replace("input_layernorm", "post_feedforward_layernorm")] = tensor.contiguous()
    width = old["hidden_size"]
    for layer in range(old["num_hidden_layers"]):
        for norm in ("q_norm", "k_norm"):
            tensors[f"model.layers.{layer}.self_attn.{norm}.weight"] = torch.ones(width)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
