"""The residual writers of a model, by the names of its checkpoint: found on a small random model of its config.

What a model computes for a path with scales is compared with what it computes with the scales folded away, on a model
of two blocks or a few more, one of each kind. Where the two differ there is no folding, and the reason is said: a norm
behind instead of before a sublayer, a norm with a weight that is counted from 1 between a sublayer and the stream, an
input that is added to the stream at every block, a stream that is read without a norm.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from merging.conversion import Placement, place
from merging.dataflow.probing import CLOSE, BlockWriters, Probe, deviation
from merging.layout import block_of
from merging.recipe import MergingError
from merging.restack import blocks_of, blocks_prefix, restacked_config, with_layer_types
from merging.sources import Sources

_VOCABULARY = 64  # of the model that is tried
_WIDTH = 128  # of the sublayers of the model that is tried
_INNER = re.compile(r"intermediate_size$|^(n_inner|ffn_dim|d_ff|ffn_hidden_size)$")
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_TRIED = (2.0, 0.25, 0.5, 8.0)  # scales, in turn: powers of 2, with a product of 2

Shape = tuple[int, ...]


def residual_writers(sources: Sources) -> frozenset[str]:
    """Canonical names of the tensors whose multiples are multiples of what their block adds to the residual stream:
    ``o_proj`` and ``down_proj`` with their biases in a Llama.

    Args:
        sources: models of one stack of blocks, as they are (not restacked). No weights are read: the config, and the
            shapes of the tensors.

    Raises:
        MergingError: an architecture whose blocks do not survive a fold of scales; says what fails. Or several stacks.
    """
    return frozenset().union(*find_writers(sources))


def find_writers(sources: Sources) -> tuple[frozenset[str], ...]:
    """[blocks of the base] what :func:`residual_writers` finds in each.

    Args, Raises:
        As :func:`residual_writers`.
    """
    inner: Sources = getattr(sources, "inner", sources)
    prefix = blocks_prefix(inner)
    shapes = tuple(
        tuple(
            (name.removeprefix(f"{prefix}{number}."), inner.tensors[name].shape)
            for name in names
            if name in inner.tensors
        )
        for number, names in enumerate(blocks_of(inner, prefix))
    )
    config = json.dumps(with_layer_types(inner.config), sort_keys=True)
    try:
        return _find(config, prefix, shapes)
    except MergingError as error:
        raise MergingError(
            f"scales of hops cannot be folded into the weights of {inner.path}: {error}. Use scales of 1 (in a search "
            "`data_flow: {scales: off}`), or models with a norm before each sublayer, such as Llama, Mistral or Qwen"
        ) from error


class _Tiny(NamedTuple):
    """A small model of a config.

    Attributes:
        probe: it.
        places: of the tensors of its blocks.
        prefix: what stands before the number of a block, in names on disk.
    """

    probe: Probe
    places: Placement
    prefix: str


@lru_cache(maxsize=16)
def _find(config: str, prefix: str, shapes: tuple[tuple[tuple[str, Shape], ...], ...]) -> tuple[frozenset[str], ...]:
    settings = json.loads(config)
    depth = len(shapes)
    # Blocks of one kind have the same shapes, and make the same config of a model of one block.
    kinds = [
        json.dumps([restacked_config(settings, depth, [at]), own], sort_keys=True) for at, own in enumerate(shapes)
    ]
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    origins = firsts if len(firsts) > 1 else firsts * 2
    tiny = _tiny(settings, prefix, [shapes[origin] for origin in origins], origins, depth)
    found = {kinds[origin]: tiny.probe.writers(number) for number, origin in enumerate(firsts)}
    _check_fold(tiny.probe, [found[kinds[origin]] for origin in origins])
    named = {kinds[origin]: _on_disk(tiny, number, found[kinds[origin]]) for number, origin in enumerate(firsts)}
    return tuple(frozenset(f"{prefix}{at}.{rest}" for rest in named[kind]) for at, kind in enumerate(kinds))


def _tiny(
    settings: Mapping[str, Any],
    prefix: str,
    shapes: list[tuple[tuple[str, Shape], ...]],
    origins: list[int],
    depth: int,
) -> _Tiny:
    """A model of these blocks of the config; of few tokens and narrow sublayers where its class permits that."""
    config = {key: each for key, each in settings.items() if key != "quantization_config"}
    config = restacked_config(config, depth, origins)
    stored = {f"{prefix}{at}.{rest}": shape for at, own in enumerate(shapes) for rest, shape in own}
    whole = _built(config, "meta")
    places = place(whole, stored)
    homes = _homes(places, stored, prefix, len(shapes))
    few = _of_few_tokens(config)
    errors: list[MergingError] = []
    for tried in (_narrow(few), few, config):
        try:
            model = _built(tried, "cpu")
            if dict(model.named_parameters()).keys() != dict(whole.named_parameters()).keys():
                raise MergingError("a model of this config has other parameters where its sublayers are narrower")
            probe = Probe(model, homes, _vocabulary(tried))
            probe.run()
        except MergingError as error:
            errors.append(error)
        else:
            return _Tiny(probe, places, prefix)
    raise errors[-1]


def _built(config: Mapping[str, Any], device: str) -> torch.nn.Module:
    from merging.skeleton import load_random

    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng([]):
        torch.manual_seed(0)
        Path(folder, "config.json").write_text(json.dumps(config), encoding="utf-8")
        return load_random(folder, torch.float32, device)


def _narrow(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with sublayers of few units: what adds to the stream is the same, and most of a block's weights are
    theirs, in a mixture of experts nearly all."""
    found = copy.deepcopy(dict(config))
    for part in (found, *(each for each in found.values() if isinstance(each, dict))):
        for key, value in part.items():
            if _INNER.search(key) and isinstance(value, int):
                part[key] = min(value, _WIDTH)
    return found


def _of_few_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    few = copy.deepcopy(dict(config))
    for part in (few, *(each for each in few.values() if isinstance(each, dict))):
        if isinstance(part.get("vocab_size"), int):
            part["vocab_size"] = min(part["vocab_size"], _VOCABULARY)
        part.update(dict.fromkeys(_TOKEN_IDS & part.keys()))
    return few


def _vocabulary(config: Mapping[str, Any]) -> int:
    parts = (config, *(each for each in config.values() if isinstance(each, dict)))
    return min((part["vocab_size"] for part in parts if isinstance(part.get("vocab_size"), int)), default=_VOCABULARY)


def _homes(places: Placement, stored: Iterable[str], prefix: str, count: int) -> list[str]:
    """The live modules of the blocks, in order."""
    homes = []
    for number in range(count):
        own = {name for name in stored if name.startswith(f"{prefix}{number}.")}
        live = {places.views[name].within for name in own if name in places.views}
        live |= {piece for piece, where in places.pieces.items() if where.within in own}
        found = {block_of(each) for each in live}
        if len(found) != 1:
            raise MergingError(
                f"the tensors of block {number} are in {len(found)} numbered modules of the live model, expected one"
            )
        homes.append(found.pop())
    return homes


def _check_fold(probe: Probe, writers: list[BlockWriters]) -> None:
    """Compare a path of these blocks, with scales, with what its folding computes."""
    scales = [_TRIED[number % len(_TRIED)] for number in range(len(writers))]
    explicit = probe.run(scales=scales)
    factor = 1.0
    factors: dict[str, float] = {}
    for home, scale, each in zip(probe.blocks, scales, writers, strict=True):
        factor /= scale
        factors |= dict.fromkeys((f"{home}.{name}" for name in each.parameters), factor)
    with probe.multiplied(factors):
        folded = probe.run()
    product = 1.0
    for number, (scale, each) in enumerate(zip(scales, writers, strict=True)):
        product *= scale
        off = deviation(folded.blocks[number] * product, explicit.blocks[number])
        if off > CLOSE:
            raise MergingError(_why(each, off))
    off = deviation(folded.result, explicit.result)
    if off > CLOSE:
        raise MergingError(f"what follows the blocks sees a factor on the hidden state (its output is {off:.1%} off)")


def _why(writers: BlockWriters, off: float) -> str:
    if writers.stuck:
        return (
            f"what {writers.stuck[0]} adds to the residual stream is not multiplied where its weights are (with the "
            f"scales folded, the block is {off:.1%} off), as with some norms behind a sublayer"
        )
    named = ", ".join(sorted(writers.modules)) or "no module"
    return (
        f"with {named} divided by the scales, a block computes something else ({off:.1%} off); it reads the residual "
        "stream without a norm that takes factors away, or keeps part of it otherwise"
    )


def _on_disk(tiny: _Tiny, number: int, writers: BlockWriters) -> frozenset[str]:
    """The tensors on disk, named as after the block's number, that are a block's writers."""
    home = tiny.probe.blocks[number]
    live = {f"{home}.{name}" for name in writers.parameters}
    own = f"{tiny.prefix}{number}."
    names = {name for name, where in tiny.places.views.items() if where.within in live}
    lost = live - {tiny.places.views[name].within for name in names}
    parts: dict[str, set[str]] = {}
    for piece, where in tiny.places.pieces.items():
        parts.setdefault(where.within, set()).add(piece)
    for whole, pieces in parts.items():
        if pieces <= live:
            names.add(whole)
            lost -= pieces
    if lost:
        raise MergingError(f"{sorted(lost)[0]} is stored together with other weights, or not at all")
    return frozenset(name.removeprefix(own) for name in names)
