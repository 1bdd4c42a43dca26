"""Tensor names -> groups (depth × module kind), read from the structure of the names; no list of architectures.

Blocks are numbered: ``model.layers.0.…``, ``transformer.h.0.…``, ``encoder.block.0.…``. The outermost number that
counts from 0 without gaps, over things that hold several matrices each, is the depth; numbers further inside (the
experts of a mixture, the sublayers of T5) are not. Module kinds come from the words in the rest of the name, and from
the shape where those say nothing.

Where a model has several stacks of blocks, each is called after the module that it alone hangs in, and all that hangs
there belongs to it: ``vision_tower/attention.3``, and its patch embedding ``vision_tower/embedding``. Two stacks in one
tower are ``visual.blocks/attention.3`` and ``visual.mergers/mlp.0``, and what is beside them ``visual/embedding``. What
hangs in none of them (a projector, a head) has no stack. So the language part of a LLaVA is merged alone by giving its
other groups ``task_arithmetic`` without sources, which is the base.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile

from merging.recipe import Group, MergingError

Shape = tuple[int, ...]

_NORM = re.compile(r"norm|(^|_)ln(_|\d|$)")
_ATTENTION = re.compile(
    r"attn|attention|mixer|mamba|ssm|^(q|k|v|o|qkv)_proj$|^(query|key|value|query_key_value|wq|wk|wv|wo)$"
)
_MLP = re.compile(
    r"mlp|ffn|feed_?forward|moe|expert|densereludense|^fc\d?$|^(gate|up|down|gate_up)_proj$|^intermediate$"
    r"|^dense_(h_to_4h|4h_to_h)$|^output$"
)
_HEAD = re.compile(r"^(lm_head|embed_out|head|output|score|classifier|cls|predictions|decoder|projection)$|_head$")
_INSIDE_HEAD = re.compile(r"^(head|cls|predictions|classifier)$|_head$")
_EMBEDDING = re.compile(r"embed|^(wte|wpe|shared)$")
_BUFFER = re.compile(r"^(inv_freq|masked_bias|position_ids|num_batches_tracked|cos_cached|sin_cached)$")


@dataclass(frozen=True)
class Layout:
    """Which group each tensor belongs to. Build with :meth:`of`."""

    _groups: Mapping[str, Group]
    _depths: Mapping[str, int]

    @staticmethod
    def of(shapes: Mapping[str, Shape]) -> Layout:
        """Read the layout of a model.

        Args:
            shapes: canonical (on-disk) tensor name -> shape.
        """
        stacks = _stacks(shapes)
        homes = _homes(list(stacks))
        titles = {prefix: ".".join(home) for prefix, home in homes.items()}
        root = _common([prefix.split(".") for prefix in stacks])
        vocabulary = _embedding_shapes(shapes, stacks)
        groups = {}
        for name, shape in shapes.items():
            prefix, depth, inner = _place(name, stacks)
            if prefix is None:
                groups[name] = Group(_outer_kind(inner, shape, vocabulary), None, _stack_around(inner, root, homes))
            else:
                groups[name] = Group(_inner_kind(inner, shape), depth, titles[prefix])
        return Layout(groups, {titles[prefix]: depth for prefix, depth in stacks.items()})

    def group(self, name: str) -> Group:
        """The group of a tensor.

        Raises:
            MergingError: no such tensor.
        """
        try:
            return self._groups[name]
        except KeyError:
            raise MergingError(f"the layout knows no tensor {name!r}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """All tensor names, sorted."""
        return tuple(sorted(self._groups))

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups that hold a tensor: by stack, depth (what lies outside the blocks first), kind."""
        return tuple(sorted(set(self._groups.values()), key=lambda group: group.order))

    @property
    def stacks(self) -> tuple[str, ...]:
        """Names of the stacks of blocks: ("",) where there is one, () where there is none."""
        return tuple(sorted(self._depths))

    def depth(self, stack: str = "") -> int:
        """How many blocks a stack has; 0 for a stack that is not there."""
        return self._depths.get(stack, 0)

    def of_group(self, group: Group) -> tuple[str, ...]:
        """The names of a group's tensors, sorted."""
        return tuple(sorted(name for name, each in self._groups.items() if each == group))


def block_of(name: str) -> str:
    """The numbered module that holds a tensor, the outermost one; the tensor's own name where none does."""
    prefix, number, _ = _split(name)
    return name if prefix is None else f"{prefix}.{number}"


def is_buffer(name: str, shape: Shape) -> bool:
    """True for constants that old checkpoints store as if they were weights: causal masks, rotary frequencies.

    They are copied from the base and never merged: newer model classes compute them and hold no such parameter.
    """
    leaf = name.rsplit(".", 1)[-1]
    causal_mask = leaf == "bias" and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return causal_mask or _BUFFER.match(leaf) is not None


def tied_heads(shapes: Mapping[str, Shape], layout: Layout) -> dict[str, str]:
    """Heads that could be tied: head tensor -> the one embedding of its shape. Empty where that is ambiguous."""
    embeddings = [name for name in layout.names if layout.group(name).kind == "embedding" and len(shapes[name]) == 2]
    tied = {}
    for name in layout.names:
        if layout.group(name).kind == "head":
            matches = [embedding for embedding in embeddings if shapes[embedding] == shapes[name]]
            if len(matches) == 1:
                tied[name] = matches[0]
    return tied


def _split(name: str) -> tuple[str | None, int, list[str]]:
    """(what stands before the outermost number, the number, the words after it); (None, 0, all words) without one."""
    tokens = name.split(".")
    for position, token in enumerate(tokens):
        if token.isdecimal() and position:
            return ".".join(tokens[:position]), int(token), tokens[position + 1 :]
    return None, 0, tokens


def _stacks(shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Prefix of every stack of blocks -> number of blocks."""
    indices: dict[str, set[int]] = {}
    matrices: dict[str, int] = {}
    for name, shape in shapes.items():
        prefix, index, _ = _split(name)
        if prefix is not None:
            indices.setdefault(prefix, set()).add(index)
            matrices[prefix] = matrices.get(prefix, 0) + (len(shape) >= 2)
    # A plain Sequential of layers numbers single matrices, and skips its activations: it is not a stack of blocks.
    return {
        prefix: len(found)
        for prefix, found in indices.items()
        if found == set(range(len(found))) and matrices[prefix] >= 2 * len(found)
    }


def _place(name: str, stacks: Mapping[str, int]) -> tuple[str | None, int | None, list[str]]:
    prefix, index, inner = _split(name)
    return (prefix, index, inner) if prefix in stacks else (None, None, name.split("."))


def _common(paths: list[list[str]]) -> list[str]:
    """The words with which all paths begin."""
    return [each[0] for each in takewhile(lambda each: len(set(each)) == 1, zip(*paths, strict=False))]


def _homes(prefixes: list[str]) -> dict[str, list[str]]:
    """Stack -> the outermost module that holds it and no other stack, as words from the module that holds all stacks;
    no words where there is one stack."""
    paths = {prefix: prefix.split(".") for prefix in prefixes}
    if len(prefixes) < 2:
        return {prefix: [] for prefix in prefixes}
    root = len(_common(list(paths.values())))
    homes = {}
    for prefix, own in paths.items():
        others = [each for other, each in paths.items() if other != prefix]
        alone = (depth for depth in range(root + 1, len(own)) if all(each[:depth] != own[:depth] for each in others))
        homes[prefix] = own[root : next(alone, len(own))]
    return homes


def _stack_around(words: list[str], root: list[str], homes: Mapping[str, list[str]]) -> str:
    """Of a tensor outside the blocks: the home that it hangs in, or the module in which it hangs with several homes; ""
    where that holds all stacks or none."""
    if words[: len(root)] != root:
        return ""
    shared: list[str] = []
    for home in homes.values():
        with_this = _common([words[len(root) :], home])
        shared = with_this if len(with_this) > len(shared) else shared
    return ".".join(shared)


def _matches(pattern: re.Pattern[str], words: Iterable[str]) -> bool:
    return any(pattern.search(word.lower()) for word in words)


def _is_norm(words: list[str], shape: Shape) -> bool:
    # The module that holds the tensor decides: post_attention_layernorm is a norm, attention.output.LayerNorm too.
    return len(shape) <= 1 and _matches(_NORM, words[-2:])


def _inner_kind(words: list[str], shape: Shape) -> str:
    if _is_norm(words, shape):
        return "norm"
    # The outermost word that says something decides: attention.output.dense belongs to attention.
    for word in words:
        if _matches(_ATTENTION, [word]):
            return "attention"
        if _matches(_MLP, [word]):
            return "mlp"
    return "other"


def _outer_kind(words: list[str], shape: Shape, vocabulary: set[Shape]) -> str:
    if _is_norm(words, shape):
        return "norm"
    modules = words[:-1] if words[-1] in {"weight", "bias"} else words
    if _matches(_HEAD, modules[-1:]) and not _matches(_EMBEDDING, modules[:-1]):
        return "head"
    if _matches(_EMBEDDING, modules):
        return "embedding"
    return "head" if shape in vocabulary or _matches(_INSIDE_HEAD, modules) else "other"


def _embedding_shapes(shapes: Mapping[str, Shape], stacks: Mapping[str, int]) -> set[Shape]:
    return {
        shape
        for name, shape in shapes.items()
        if len(shape) == 2 and _place(name, stacks)[0] is None and _matches(_EMBEDDING, name.split("."))
    }
