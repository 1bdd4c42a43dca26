"""Projections that one tensor holds together: query, key and value, gate and up. How its outputs are shared out.

Which module does that is in its name; how (one after the other, or head by head) follows from the config. Where the two
leave a doubt, the tensor stays whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

# Along each axis one position, or those from one to before another.
Index = tuple[int | tuple[int, int], ...]

_HIDDEN = ("hidden_size", "n_embd", "d_model", "embed_dim", "hidden_dim", "model_dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "multi_query_group_num")
_HEAD_SIZE = ("head_dim", "attention_head_dim", "kv_channels", "d_kv")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")

_QKV = frozenset(
    {"qkv", "qkv_proj", "qkv_linear", "Wqkv", "wqkv", "query_key_value", "c_attn", "in_proj_weight", "att_proj"}
)
_GATE_UP = frozenset({"gate_up_proj", "gate_and_up_proj", "w12", "Wi", "weights_in", "input_linear"})
_TWO = frozenset({"to_kv", "in_proj_kv"})

# Model types whose fused projection has one block per head, query, key and value inside it.
_BY_HEAD = frozenset(
    {"gpt_neox", "gpt_neox_japanese", "bloom", "persimmon", "fuyu", "falcon", "RefinedWeb", "RefinedWebModel",
     "gpt_bigcode", "minimax", "deberta"}
)  # fmt: skip

# One block for every group of heads that share key and value.
_BY_GROUP = frozenset({"internlm2"})

# Of query_key_value: those that put query, key and value one after the other.
_ONE_AFTER_THE_OTHER = frozenset({"chatglm"})

_FALCON = frozenset({"falcon", "RefinedWeb", "RefinedWebModel"})

# Gate and up in turn, element by element.
_IN_TURN = frozenset({"gpt_oss"})


class Arrangement(NamedTuple):
    """How the outputs of a fused tensor are shared out.

    Attributes:
        shape: that the axis of outputs is seen in.
        parts: indices into that shape, one for each projection.
    """

    shape: tuple[int, ...]
    parts: tuple[Index, ...]


@dataclass(frozen=True)
class Level:
    """A config or a part of it (``text_config``, ``vision_config``, …), in one spelling; 0 is unknown.

    Attributes:
        type: ``model_type``.
        hidden: width of the stream.
        heads, kv_heads: of attention.
        head_size: of one head.
        experts: in a mixture.
        values: all of it.
    """

    type: str
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    experts: int
    values: Mapping[str, Any]

    @staticmethod
    def all(config: Mapping[str, Any]) -> tuple[Level, ...]:
        """The config and its parts that are configs of models."""
        return tuple(map(Level._of, _configs(config)))

    @staticmethod
    def _of(config: Mapping[str, Any]) -> Level:
        attention = config.get("attn_config")
        merged = {**config, **attention} if isinstance(attention, Mapping) else config
        hidden, heads = _first(merged, _HIDDEN), _first(merged, _HEADS)
        size = _first(merged, _HEAD_SIZE) or (hidden // heads if heads else 0)
        kind = str(config.get("model_type", ""))
        shared = _first(merged, _KV_HEADS)
        if kind in _FALCON:
            shared = (
                (shared or heads) if config.get("new_decoder_architecture") else 1 if _multi_query(config) else heads
            )
        elif kind == "gpt_bigcode":
            shared = 1 if config.get("multi_query", True) else heads
        return Level(kind, hidden, heads, shared or heads, size, _experts(config), merged)


def arrangement(words: tuple[str, ...], outputs: int, inputs: int, levels: tuple[Level, ...]) -> Arrangement | None:
    """How a linear weight is made up of several.

    Args:
        words: of its name, without ``weight``.
        outputs, inputs: its axes.
        levels: of the config.

    Returns:
        None for what is one projection, and where that cannot be told.
    """
    leaf = words[-1]
    types = {level.type for level in levels}
    if leaf in _QKV or (leaf == "in_proj" and "deberta" in types):
        return _qkv(leaf, outputs, inputs, levels)
    if leaf == "in_proj_qkv":
        return _linear_attention(outputs, inputs, levels)
    if leaf in _TWO or (leaf == "kv_proj" and "jetmoe" in types):
        return _equal(outputs, 2)
    if _is_gate_up(words, outputs, types):
        return _in_turn(outputs) if types & _IN_TURN else _equal(outputs, 2)
    return None


def _is_gate_up(words: tuple[str, ...], outputs: int, types: set[str]) -> bool:
    leaf = words[-1]
    if leaf == "input_linear":  # a word of Granite's; its speech encoders call an ordinary layer so
        return any(word in {"shared_mlp", "block_sparse_moe", "mlp", "experts"} for word in words[:-1])
    if leaf == "fc1":
        return "experts" in words and bool(types & {"aria", "aria_text"})
    if leaf == "dense_h_to_4h":
        return "chatglm" in types
    return leaf in _GATE_UP


def _qkv(leaf: str, outputs: int, inputs: int, levels: tuple[Level, ...]) -> Arrangement | None:
    fitting = [level for level in levels if level.heads and level.hidden in {0, inputs}]
    found = {_of_level(leaf, outputs, level) for level in fitting} - {None}
    if len(found) == 1:
        return found.pop()
    if found or leaf == "query_key_value" or any(level.type in _BY_HEAD | _BY_GROUP for level in fitting):
        return None
    if leaf == "c_attn" and outputs == 2 * inputs:  # cross-attention: key and value
        return _equal(outputs, 2)
    # Towers that say nothing of shared keys have as many of them as of queries.
    return _equal(outputs, 3) if outputs == 3 * inputs or leaf in {"qkv", "in_proj_weight"} else None


def _of_level(leaf: str, outputs: int, level: Level) -> Arrangement | None:
    heads, shared, size = level.heads, level.kv_heads, level.head_size
    if outputs != (heads + 2 * shared) * size or not size or heads % shared:
        return None
    if level.type == "codegen":
        return _codegen(outputs)
    grouped = level.type in _BY_GROUP or bool(level.values.get("new_decoder_architecture"))
    if level.type in _FALCON and shared == 1 and not grouped:
        return _after_each_other(heads * size, size, size)
    if level.type == "gpt_bigcode" and shared == 1:
        return _after_each_other(heads * size, size, size)
    if level.type in _BY_HEAD and not grouped:
        return _middle(heads, 3, size)
    if grouped:
        per_group = heads // shared
        last = (((0, shared), per_group + number) for number in range(2))
        return Arrangement((shared, per_group + 2, size), (((0, shared), (0, per_group)), *last))
    if leaf == "query_key_value" and level.type not in _ONE_AFTER_THE_OTHER:
        return None
    return _after_each_other(heads * size, shared * size, shared * size)


def _linear_attention(outputs: int, inputs: int, levels: tuple[Level, ...]) -> Arrangement | None:
    """Qwen 3.5's gated delta net: keys and queries have heads of their own number and size."""
    for level in levels:
        keys, values = (
            int(level.values.get(f"linear_num_{kind}_heads") or 0)
            * int(level.values.get(f"linear_{kind}_head_dim") or 0)
            for kind in ("key", "value")
        )
        if keys and values and level.hidden == inputs and outputs == 2 * keys + values:
            return _after_each_other(keys, keys, values)
    return None


def _after_each_other(*sizes: int) -> Arrangement:
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    parts = tuple(((end - size, end),) for end, size in zip(ends, sizes, strict=True))
    return Arrangement((ends[-1],), parts)


def _equal(outputs: int, count: int) -> Arrangement | None:
    return _after_each_other(*(outputs // count,) * count) if outputs and outputs % count == 0 else None


def _middle(*shape: int) -> Arrangement:
    """Parts along the second axis."""
    return Arrangement(shape, tuple(((0, shape[0]), part) for part in range(shape[1])))


def _in_turn(outputs: int) -> Arrangement | None:
    return _middle(outputs // 2, 2) if outputs % 2 == 0 else None


def _codegen(outputs: int) -> Arrangement | None:
    """Laid out for four devices: on each, query, value and key of its heads."""
    return _middle(4, 3, outputs // 12) if outputs % 12 == 0 else None


def _configs(config: Mapping[str, Any], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    yield config
    for name, part in config.items():
        model = name.endswith("config") or name in {"encoder", "decoder", "text", "vision", "audio"}
        if isinstance(part, Mapping) and model and name not in {"attn_config", "quantization_config"} and depth < 3:
            yield from _configs(part, depth + 1)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    for name in names:
        found = config.get(name)
        if isinstance(found, int) and not isinstance(found, bool) and found > 0:
            return found
    return 0


def _experts(config: Mapping[str, Any]) -> int:
    inner = config.get("ffn_config")
    return _first(config, _EXPERTS) or (_first(inner, _EXPERTS) if isinstance(inner, Mapping) else 0)


def _multi_query(config: Mapping[str, Any]) -> bool:
    return bool(config.get("multi_query", True))
