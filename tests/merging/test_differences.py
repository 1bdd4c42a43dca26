"""Models that are not built alike: every difference is told, the same one in many blocks once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from merging.checkpoint import SINGLE, Checkpoint
from merging.differences import Difference, check_compatible, differences
from merging.recipe import MergingError


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Checkpoint:
    folder.mkdir(parents=True)
    save_file(tensors, folder / SINGLE)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    return Checkpoint.open(folder)


def blocks(layers: int, experts: int = 0, width: int = 4) -> dict[str, torch.Tensor]:
    found = {"model.embed_tokens.weight": torch.ones(6, width), "model.norm.weight": torch.ones(width)}
    for layer in range(layers):
        found[f"model.layers.{layer}.self_attn.k_proj.weight"] = torch.ones(2, width)
        found |= {f"model.layers.{layer}.moe.experts.{k}.w1.weight": torch.ones(3, width) for k in range(experts)}
    return found


def test_the_same_difference_in_every_block_is_told_once(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", blocks(4, experts=3), num_key_value_heads=1)
    changed = blocks(4, experts=3)
    for name in changed:
        if "k_proj" in name:
            changed[name] = torch.ones(8, 4)
    found = differences(base, checkpoint(tmp_path / "wide", changed))
    assert [str(each) for each in found] == [
        "model.layers.0–3.self_attn.k_proj.weight (4 tensors) are [2, 4] in the base and [8, 4] in the expert"
    ]
    missing = {name: value for name, value in blocks(4, experts=3).items() if ".experts.1." not in name}
    assert [str(each) for each in differences(base, checkpoint(tmp_path / "few", missing))] == [
        "model.layers.0–3.moe.experts.1.w1.weight (4 tensors) are only in the base"
    ]


def test_models_of_one_base_do_not_differ(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", blocks(2))
    more = {**blocks(2), "lm_head.weight": torch.ones(6, 4)}
    expert = checkpoint(tmp_path / "expert", more)
    assert differences(base, expert, frozenset({"lm_head.weight"})) == []
    check_compatible(base, expert, frozenset({"lm_head.weight"}))
    longer = {**blocks(2), "model.embed_tokens.weight": torch.ones(9, 4)}
    assert differences(base, checkpoint(tmp_path / "tokens", longer), vocabulary={"model.embed_tokens.weight": 0}) == []


def test_a_refusal_says_all_of_it_in_one_paragraph(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", blocks(2), num_hidden_layers=2, hidden_size=4)
    deeper = checkpoint(tmp_path / "deeper", blocks(5), num_hidden_layers=5, hidden_size=4)
    with pytest.raises(MergingError) as caught:
        check_compatible(base, deeper)
    message = str(caught.value)
    assert "found 3 that differ (in config.json: num_hidden_layers 2 and 5): model.layers.2–4." in message
    assert "model.layers.2–4.self_attn.k_proj.weight (3 tensors) are only in the expert" in message
    assert "\n" not in message
    many = blocks(2) | {f"odd{'x' * number}": torch.ones(1) for number in range(40)}
    with pytest.raises(MergingError, match="; and 32 tensors more"):
        check_compatible(base, checkpoint(tmp_path / "many", many))
    with pytest.raises(MergingError, match=r"'llama' in .* and 'gpt2' in"):
        check_compatible(base, checkpoint(tmp_path / "gpt2", blocks(2), model_type="gpt2"))


def test_another_kind_of_number_is_a_difference(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", blocks(1))
    whole = {**blocks(1), "model.norm.weight": torch.ones(4, dtype=torch.int64)}
    assert [str(each) for each in differences(base, checkpoint(tmp_path / "whole", whole))] == [
        "model.norm.weight is float32 in the base and int64 in the expert"
    ]


@settings(deadline=None)
@given(st.sets(st.integers(0, 30), min_size=1))
def test_ranges_name_exactly_the_numbers(numbers: set[int]) -> None:
    text = str(Difference(tuple(f"layers.{each}.weight" for each in sorted(numbers)), "there", ""))
    ranges = text.removeprefix("layers.").partition(".weight")[0]
    told = set()
    for part in ranges.split(","):
        low, _, high = part.partition("–")
        told |= set(range(int(low), int(high or low) + 1))
    assert told == numbers
