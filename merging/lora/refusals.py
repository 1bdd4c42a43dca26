"""What is said of adapters that cannot be read over a base: what was expected, what was found, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from merging.bounded import printable
from merging.checkpoint import Checkpoint
from merging.conversion import Shape
from merging.lora.adapter import FOLD, Adapter
from merging.lora.naming import Place

_LISTED = 5
_HEAD = re.compile(r"^(classifier|score|qa_outputs|\w*head)\b")
_TOKENS = re.compile(r"embed|wte|shared|lm_head|output")
_RIGHT_BASE = "give the model that it was trained on as the base"


def lost_modules(adapter: Adapter, base: Checkpoint, lost: Sequence[str]) -> str:
    """It changes what the base does not have."""
    listed = ", ".join(printable(each, 120) for each in lost[:_LISTED])
    more = f" and {len(lost) - _LISTED} more" if len(lost) > _LISTED else ""
    said = adapter.settings.base
    made_for = f" It says that it was trained on {printable(said)}." if said else ""
    advice = f"G{_RIGHT_BASE[1:]}"
    if all(map(_HEAD.match, lost)):
        advice = (
            "A head that the base lacks cannot be merged into it: load the base with such a head "
            "(AutoModelForSequenceClassification or the like), save it with save_pretrained, and give that as the base"
        )
    return (
        f"expected {adapter.path} to be an adapter of the base {base.path}, found {len(lost)} tensors that it changes "
        f"and the base does not have: {listed}{more}.{made_for} {advice}"
    )


def misfit(adapter: Adapter, module: str, a: Shape, b: Shape, place: Place) -> str:
    """Its factors have other sizes than the base's weight."""
    return (
        f"expected lora_A and lora_B of {printable(module)} in {adapter.path} to fit the base's {place.name} "
        f"{list(place.live)}, found {list(a)} and {list(b)}; {_RIGHT_BASE}"
    )


def other_rank(adapter: Adapter, module: str, a: Shape, expected: int | Shape) -> str:
    """Its factors have another rank than its config says, or are not whole."""
    wanted = f"rank {expected}, as its config says," if isinstance(expected, int) else "lora_A and lora_B"
    also = "" if isinstance(expected, int) else f" and {list(expected)}"
    return (
        f"expected {wanted} for {printable(module)} in {adapter.path}, found lora_A {list(a)}{also}; an adapter that "
        "was saved in parts (ZeRO-3, FSDP) must be gathered and saved again"
    )


def other_shape(adapter: Adapter, name: str, found: Shape, expected: Shape) -> str:
    """A replaced tensor has another shape than the base's."""
    tokens = len(found) == len(expected) and found[1:] == expected[1:] and _TOKENS.search(name)
    advice = (
        "its vocabulary was resized: fold it into its base with peft (merge_and_unload, then save_pretrained, with its "
        "tokenizer), and give that folder, whose tokens are then matched"
        if tokens
        else _RIGHT_BASE
    )
    return (
        f"expected {printable(name)} in {adapter.path} in the base's shape {list(expected)}, found {list(found)}; "
        f"{advice}"
    )


def no_magnitude(adapter: Adapter, module: str) -> str:
    """DoRA without its magnitudes."""
    return (
        f"expected a lora_magnitude_vector of {printable(module)} in {adapter.path}, whose config says use_dora, found "
        "none; was the adapter saved or downloaded completely?"
    )


def wrong_tokens(adapter: Adapter, module: str, found: Shape, embedding: Shape) -> str:
    """Trained tokens that are no rows of the base's embedding."""
    return (
        f"expected the trained tokens of {printable(module)} in {adapter.path} to be rows of the base's "
        f"{list(embedding)}, one for each number in trainable_token_indices, found {list(found)}; the adapter is "
        "damaged, or belongs to another base"
    )


def no_parameter(
    adapter: Adapter, base: Checkpoint, module: str, a: Shape, b: Shape, held: Iterable[tuple[str, Shape]], fitting: int
) -> str:
    """Factors of a bare parameter that cannot be told."""
    listed = ", ".join(f"{name} {list(shape)}" for name, shape in held) or "none"
    return (
        f"expected lora_A {list(a)} and lora_B {list(b)} of {printable(module)} in {adapter.path} to fit one parameter "
        f"of that module in the base {base.path}, found {fitting} that they fit, of {listed}; {_RIGHT_BASE}"
    )


def trained_apart(adapter: Adapter, base: Checkpoint, name: str, tied: Iterable[str]) -> str:
    """A replaced head, or embedding, of a base that has one tensor for both."""
    return (
        f"expected {adapter.path} to leave {' and '.join(sorted(tied))} one tensor, as the base {base.path} has them "
        f"(tie_word_embeddings), found that it trained {printable(name)} apart; an untied fine-tune cannot be merged "
        "into a tied base: save the base with tie_word_embeddings=false, and give that"
    )


def scattered(adapter: Adapter, place: Place) -> str:
    """A live tensor whose edit cannot be told for the tensor on disk."""
    return (
        f"expected the live parameter that holds {place.name} to hold it as a block of rows and columns, so that what "
        f"{adapter.path} adds to it can be told, found another order; {FOLD}"
    )
