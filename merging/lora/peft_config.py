"""``adapter_config.json`` of an adapter that is written: the names by which PEFT finds its modules again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from merging.lora.compress import Rank
from merging.lora.naming import Names

if TYPE_CHECKING:
    from merging.lora.collect import Parts

# Classes that PEFT has a class of its own for, and that brings no head of its own along.
_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}


def adapter_config(held: Parts, rank: Rank, base_name: str, names: Names, config: Mapping[str, Any]) -> dict[str, Any]:
    """What PEFT needs to know: with it, alpha/rank is 1 everywhere, so that the change is B·A.

    Args:
        held: what the adapter holds.
        rank: as it was asked for.
        base_name: what the base is called.
        names: of the live model.
        config: ``config.json`` of the base.
    """
    layers = [module for module in held.ranks if module not in held.stacks]
    every = [module for module, _ in names.modules() if module]
    usual = rank.most or (Counter(held.ranks.values()).most_common(1)[0][0] if held.ranks else 1)
    own = {_anchored(module, held.ranks): each for module, each in held.ranks.items() if each != usual}
    architecture, library = names.class_of
    task = next((each for end, each in _TASKS.items() if architecture.endswith(end)), None)
    if task == "SEQ_2_SEQ_LM" and not config.get("is_encoder_decoder"):
        task = None
    return {
        "alpha_pattern": own,
        "auto_mapping": {"base_model_class": architecture, "parent_library": library} if task is None else None,
        "base_model_name_or_path": base_name or None,
        "bias": "all" if held.biases else "none",
        "ensure_weight_tying": held.tied,
        "fan_in_fan_out": held.turned,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "modules_to_save": _shortest(held.saved, every, str.endswith) or None,
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": own,
        "revision": None,
        "target_modules": _shortest(layers, every, _is_end),
        "target_parameters": sorted(held.stacks) or None,
        "task_type": task,
        "use_dora": False,
        "use_rslora": False,
    }


def _is_end(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _shortest(wanted: Collection[str], every: Collection[str], matches: Callable[[str, str], bool]) -> list[str]:
    """Last words of the names, where these match no other module; else the names.

    Args:
        wanted: names of modules.
        every: of all modules.
        matches: PEFT's rule, of (name, what is listed).
    """
    ends = {each.rpartition(".")[2] for each in wanted}
    matched = {name for name in every if any(matches(name, end) for end in ends)}
    return sorted(ends) if matched == set(wanted) else sorted(wanted)


def _anchored(module: str, every: Collection[str]) -> str:
    """A pattern for this module alone: PEFT also takes one for the end of a longer name."""
    return f"^{module}" if any(_is_end(other, module) and other != module for other in every) else module
