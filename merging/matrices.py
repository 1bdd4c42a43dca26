"""Which matrices a stored tensor consists of: what maps inputs to outputs, one linear map each.

Read from names, shapes and the base's config; no list of architectures. Fused projections are taken apart
(:mod:`merging.fused`), stacks of experts too; a convolution [out, in, …] is the matrix [out, in·…]. Embeddings, heads
of the vocabulary's size, norms, biases and depthwise convolutions, which map no channel to another, are no matrices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from merging.fused import Index, Level, arrangement
from merging.layout import Layout
from merging.pool import Pool

Shape = tuple[int, ...]

# What is learned and multiplied with nothing, or element by element: names of modules and of bare parameters.
_NO_MAP = re.compile(
    r"bias|embed|position|token|mask|^(wte|wpe|shared|A_log|D|dt|gamma|beta)$|_scale|scale_|lambda|codebook|prototype"
    r"|memory|_table|^time_|^logit",
    re.IGNORECASE,
)
_WEIGHT_NORM = re.compile(r"weight_[gv]$|^original[01]$")  # a direction and a length apart
_EXPERTS = re.compile(r"experts?$|^moe$|block_sparse_moe", re.IGNORECASE)
_INTO_BLOCK = re.compile(r"^(gate|up|gate_up|gate_and_up)_proj$|^(w1|w3|v1|fc1|input_linear)$")
_OUT_OF_BLOCK = re.compile(r"^down_proj$|^(w2|fc2|output_linear)$")

# GPT-2's Conv1D, which stores [in, out]: its modules, and the model types that have it.
_CONV1D = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_CONV1D_TYPES = frozenset(
    {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder", "clvp_encoder"}
)

# Mixtures whose stacks of experts are stored [experts, in, out]: asked where the widths do not tell.
_EXPERTS_TURNED = frozenset(
    {"llama4", "llama4_text", "gpt_oss", "qwen3_vl_moe", "qwen3_vl_moe_text", "aria", "aria_text"}
)


@dataclass(frozen=True)
class Part:
    """One matrix [out, in] within a stored tensor.

    Attributes:
        count: matrices along the tensor's first axis; 0 where it is no stack.
        number: which of them.
        turned: it is stored [in, out].
        outputs: shape that the axis of outputs is seen in.
        index: into that shape.
    """

    count: int = 0
    number: int = 0
    turned: bool = False
    outputs: Shape = ()
    index: Index = ()

    def take(self, tensor: Tensor) -> Tensor:
        """The matrix [out, in]; a view where it lies so that one can be had."""
        found = self._view(tensor)
        return found.reshape(-1, found.shape[-1])

    def put(self, tensor: Tensor, matrix: Tensor) -> None:
        """Write the matrix into its place in a contiguous tensor of the stored shape."""
        place = self._view(tensor)
        place.copy_(matrix.reshape(place.shape))

    def _view(self, tensor: Tensor) -> Tensor:
        if self.count:
            tensor = tensor.reshape(self.count, -1, tensor.shape[-1])[self.number]
        matrix = tensor.reshape(tensor.shape[0], -1)
        matrix = matrix.mT if self.turned else matrix
        if not self.outputs:
            return matrix
        index = tuple(slice(*each) if isinstance(each, tuple) else each for each in self.index)
        return matrix.view(*self.outputs, matrix.shape[1])[index]


def matrices(pool: Pool, name: str) -> tuple[Part, ...]:
    """The matrices of a tensor; none for what is no linear weight. Together they cover it, and no two overlap.

    Args:
        pool: the models.
        name: canonical tensor name.
    """
    found: tuple[Part, ...] = pool.once(("matrices", name), lambda: _matrices(pool, name))
    return found


def _matrices(pool: Pool, name: str) -> tuple[Part, ...]:
    layout: Layout = pool.once(("layout",), lambda: Layout.of({each: pool.shape(each) for each in pool.names}))
    vocabularies: frozenset[Shape] = pool.once(("vocabularies",), lambda: _vocabularies(pool, layout))
    shape, group = pool.shape(name), layout.group(name)
    if shape in vocabularies and group.depth is None:
        return ()
    bias = _sibling(name, "bias")
    width = pool.shape(bias)[-1] if bias in pool.names and pool.shape(bias) else 0
    return parts(name, shape, pool.config, inside=group.depth is not None, kind=group.kind, bias=width)


def parts(
    name: str, shape: Shape, config: Mapping[str, Any], *, inside: bool = True, kind: str = "other", bias: int = 0
) -> tuple[Part, ...]:
    """As :func:`matrices`, of a tensor that is known by this alone.

    Args:
        name, shape: of the tensor.
        config: ``config.json``, or nothing.
        inside: it belongs to a numbered block.
        kind: its module kind (:class:`merging.layout.Layout`).
        bias: length of the bias beside it; 0 where there is none.
    """
    words = _words(name)
    levels = Level.all(config)
    if not _maps(words, shape, levels, inside, kind):
        return ()
    types = {level.type for level in levels}
    count = _count(words, shape, levels)
    axes = shape if not count else shape[1:] if len(shape) > 2 else (shape[0] // count, shape[1])
    turned = _turned(words, axes, levels, types, bool(count), bias)
    inputs, outputs = axes[0], axes[1:]
    if not turned:
        inputs, outputs = _size(axes[1:]), axes[:1]
    found = arrangement(words, _size(outputs), inputs, levels)
    numbers = range(count) if count else range(1)
    if found is None:
        return tuple(Part(count, number, turned) for number in numbers)
    return tuple(Part(count, number, turned, found.shape, index) for number in numbers for index in found.parts)


def _maps(words: tuple[str, ...], shape: Shape, levels: tuple[Level, ...], inside: bool, kind: str) -> bool:
    """Whether a tensor holds linear maps."""
    if len(shape) < 2 or 0 in shape or _WEIGHT_NORM.search(words[-1]):
        return False
    if len(shape) > 2 and shape[0] == 1:  # [1, positions, width]: positions, queries, class tokens
        return False
    if len(shape) > 2 and shape[1] == 1 and inside:  # depthwise
        return False
    convolves = len(shape) > 3 or any("patch" in word or "conv" in word for word in words[-2:])
    if kind == "embedding":
        return convolves and "position" not in words[-1]
    if not inside and any(shape[0] == level.values.get("vocab_size") for level in levels):
        return False
    return not _NO_MAP.search(words[-1]) or (convolves and len(shape) > 2)


def _count(words: tuple[str, ...], shape: Shape, levels: tuple[Level, ...]) -> int:
    """How many matrices are stacked along the first axis; 0 for none."""
    counts = {level.experts for level in levels if level.experts}
    if len(shape) == 3:
        layer = _INTO_BLOCK.search(words[-1]) or _OUT_OF_BLOCK.search(words[-1])
        return shape[0] if any(map(_EXPERTS.search, words)) or (layer and shape[0] in counts) else 0
    if words[-3:-1] == ("experts", "mlp") and words[-1] in {"w1", "v1", "w2"}:  # DBRX: one below the other
        fitting = {count for count in counts if shape[0] % count == 0}
        return fitting.pop() if len(fitting) == 1 and len(shape) == 2 else 0
    return 0


def _turned(
    words: tuple[str, ...], axes: Shape, levels: tuple[Level, ...], types: set[str], stacked: bool, bias: int
) -> bool:
    """Whether the matrix is stored [in, out]."""
    leaf = words[-1]
    if leaf in _CONV1D and len(axes) == 2:
        told = axes[0] != axes[1] and bias in axes
        return bias == axes[1] if told else bool(types & _CONV1D_TYPES)
    if leaf in {"q", "k", "v", "r"} and len(axes) == 3 and "rel_attn" in words:  # XLNet: [in, heads, head size]
        return True
    if not stacked or len(axes) != 2:
        return False
    if "mlp" in words and leaf == "w2":  # DBRX: as its w1, used the other way round
        return True
    into, out_of = (bool(pattern.search(leaf)) for pattern in (_INTO_BLOCK, _OUT_OF_BLOCK))
    widths = {level.hidden for level in levels}
    if (into or out_of) and (axes[0] in widths) != (axes[1] in widths):
        return (axes[0] in widths) == into
    return bool(types & _EXPERTS_TURNED)


def _vocabularies(pool: Pool, layout: Layout) -> frozenset[Shape]:
    """Shapes of the embeddings: a head of such a shape gives tokens."""
    return frozenset(
        pool.shape(name)
        for name in pool.names
        if layout.group(name).kind == "embedding" and layout.group(name).depth is None and len(pool.shape(name)) == 2
    )


def _words(name: str) -> tuple[str, ...]:
    words = name.split(".")
    return tuple(words[:-1] if len(words) > 1 and words[-1] == "weight" else words)


def _sibling(name: str, leaf: str) -> str:
    return f"{name.rpartition('.')[0]}.{leaf}"


def _size(shape: Shape) -> int:
    size = 1
    for each in shape:
        size *= each
    return size
