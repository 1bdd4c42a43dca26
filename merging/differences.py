"""Where a model is not built like another one, in words: the same difference in every block is told once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from merging.bounded import printable
from merging.checkpoint import Checkpoint, TensorInfo
from merging.recipe import MergingError

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_MOST = 8
_LONGEST = 120

_SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "num_local_experts", "num_experts", "vocab_size", "max_position_embeddings", "d_model", "encoder_layers",
    "decoder_layers", "n_embd", "n_layer", "n_head", "num_labels",
)  # fmt: skip
"""Keys of config.json that say how large a model is: where tensors differ, one of them says why."""


@dataclass(frozen=True)
class Difference:
    """Tensors that differ in the same way, alike but for the numbers in their names.

    Attributes:
        names: of the tensors, sorted.
        base, expert: what each has, such as "[64, 32]"; "" where it has no such tensor.
    """

    names: tuple[str, ...]
    base: str
    expert: str

    def __str__(self) -> str:
        named = printable(_joined(self.names), _LONGEST)
        count = f" ({len(self.names)} tensors)" if len(self.names) > 1 else ""
        verb = "are" if len(self.names) > 1 else "is"
        if not self.base or not self.expert:
            return f"{named}{count} {verb} only in the {'base' if self.base else 'expert'}"
        return f"{named}{count} {verb} {self.base} in the base and {self.expert} in the expert"


def differences(
    base: Checkpoint,
    expert: Checkpoint,
    optional: frozenset[str] = frozenset(),
    vocabulary: Mapping[str, int] | None = None,
) -> list[Difference]:
    """All tensors that only one of two models has, or that have another shape or kind.

    Args:
        base: the base model.
        expert: the model to compare with it.
        optional: names that one of the two may lack (a head that is tied to the embedding, stored constants).
        vocabulary: tensors with an axis of tokens -> that axis, which may differ in length.

    Returns:
        In the order of the first name of each.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for name in sorted(base.tensors.keys() | expert.tensors.keys()):
        ours, theirs = base.tensors.get(name), expert.tensors.get(name)
        if (ours is None or theirs is None) and name in optional:
            continue
        told = _told(ours, theirs, (vocabulary or {}).get(name))
        if told is not None:
            found.setdefault((_NUMBER.sub("*", name), *told), []).append(name)
    return [Difference(tuple(names), one, other) for (_, one, other), names in found.items()]


def check_compatible(
    base: Checkpoint,
    expert: Checkpoint,
    optional: frozenset[str] = frozenset(),
    vocabulary: Mapping[str, int] | None = None,
) -> None:
    """Check that two checkpoints can be merged: one architecture, the same tensor names, kinds and shapes.

    Args:
        base, expert, optional, vocabulary: as in :func:`differences`.

    Raises:
        MergingError: they differ; the same difference in many blocks is named once.
    """
    types = [checkpoint.config.get("model_type") for checkpoint in (base, expert)]
    if types[0] != types[1]:
        raise MergingError(
            f"expected models of one architecture, found model_type {types[0]!r} in {base.path} and {types[1]!r} in "
            f"{expert.path}; only fine-tunes of one base can be merged"
        )
    found = differences(base, expert, optional, vocabulary)
    if found:
        count = sum(len(each.names) for each in found)
        listed = "; ".join(str(each) for each in found[:_MOST])
        left = sum(len(each.names) for each in found[_MOST:])
        more = f"; and {left} tensors more" if left else ""
        sizes = _sizes(base.config, expert.config)
        raise MergingError(
            f"expected {expert.path} to have the tensors and shapes of the base {base.path}, found {count} that "
            f"{'differ' if count > 1 else 'differs'}{f' ({sizes})' if sizes else ''}: {listed}{more}. Only fine-tunes "
            "of one base can be merged"
        )


def _told(ours: TensorInfo | None, theirs: TensorInfo | None, axis: int | None) -> tuple[str, str] | None:
    """What the two have; None where it can be merged."""
    if ours is None or theirs is None:
        return ("" if ours is None else "there"), ("" if theirs is None else "there")
    if _without(ours.shape, axis) != _without(theirs.shape, axis):
        return str(list(ours.shape)), str(list(theirs.shape))
    if ours.dtype.is_floating_point != theirs.dtype.is_floating_point:
        return str(ours.dtype).removeprefix("torch."), str(theirs.dtype).removeprefix("torch.")
    return None


def _without(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return shape if axis is None else shape[:axis] + shape[axis + 1 :]


def _sizes(base: Mapping[str, Any], expert: Mapping[str, Any]) -> str:
    """What the two configs say of sizes, where they say different things."""
    found = [key for key in _SIZES if key in base and key in expert and base[key] != expert[key]]
    shown = [f"{key} {printable(str(base[key]), 20)} and {printable(str(expert[key]), 20)}" for key in found]
    return f"in config.json: {', '.join(shown)}" if shown else ""


def _joined(names: Iterable[str]) -> str:
    """Names that are alike but for their numbers, as one: ``model.layers.0–31.mlp.up_proj.weight``."""
    listed = list(names)
    columns = [sorted(set(map(int, numbers))) for numbers in zip(*map(_NUMBER.findall, listed), strict=True)]
    shown = iter([_ranges(column) for column in columns])
    return _NUMBER.sub(lambda _: next(shown), listed[0])


def _ranges(numbers: list[int]) -> str:
    """``0–3,7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}–{high}" for low, high in parts)
