"""Arguments of a call, as inputs: tensors by name, one row each, nothing padded, nothing that tells the answer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from evaluators.calibration.inputs import Input, without_padding
from evaluators.contract import EvaluatorError

# Parts of names of arguments that tell the answer.
_TELLS = ("label", "target", "future_values", "start_positions", "end_positions")
# What a model makes itself of the rest, and what only continues an earlier call.
_MADE = frozenset({"cache_position", "position_ids", "decoder_position_ids", "logits_to_keep"})


def named(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Positional arguments of a module's ``forward`` by their names, after those that are named already."""
    names = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return {**kwargs, **dict(zip(names, args, strict=False))}


def rows(module: nn.Module, given: Mapping[str, Any]) -> list[Input]:
    """The rows of a call's batch, as inputs of the module. Decoder's inputs are left out: see :mod:`.writing`.

    Args:
        module: whose ``forward`` takes them.
        given: arguments by name, of the module or of a part of it.

    Raises:
        EvaluatorError: some tensor has another number of rows, so that rows cannot be told apart.
    """
    tensors = {name: value for name, value in given.items() if _is_input(module, name, value)}
    if not tensors:
        return []
    main = str(getattr(module, "main_input_name", ""))
    count = len(tensors[main] if main in tensors else next(iter(tensors.values())))
    for name, value in tensors.items():
        if len(value) != count:
            raise EvaluatorError(
                f"{type(module).__name__} was called with {count} inputs at once and {name} of shape "
                f"{list(value.shape)}, which cannot be told apart input by input; let the evaluator ask about one "
                "input a call, or name a data file to calibrate on"
            )
    return [without_padding({name: value[row : row + 1] for name, value in tensors.items()}) for row in range(count)]


def cached(given: Mapping[str, Any]) -> int:
    """How many tokens a call goes on from, its arguments being ``given``."""
    cache = given.get("past_key_values")
    if cache is None:
        return 0
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 1


def encodes_and_decodes(module: nn.Module) -> bool:
    """Whether a model has an encoder, and a decoder that reads a text of its own."""
    return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))


def _is_input(module: nn.Module, name: str, value: Any) -> bool:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return False
    if name in _MADE or name.startswith("decoder_") or any(part in name for part in _TELLS):
        return False
    parameters = inspect.signature(module.forward).parameters
    return name in parameters or any(each.kind == each.VAR_KEYWORD for each in parameters.values())
