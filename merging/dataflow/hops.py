"""Hops in a live model: copies of a layer's module that share its parameters, hung up one after the other.

A hop differs from its layer in two things. It has the number of its place in the path, by which a key-value cache tells
hops apart, so that a layer that is run three times has three slots. And where the path has scales, what writes to the
residual stream has weights of its own: see :mod:`merging.dataflow.scaled_writers`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from merging.dataflow.blocks import Block, copied, tensor_of
from merging.live import _quiet
from merging.recipe import MergingError
from merging.restack import restacked_config, with_layer_types

# The name of the number in the library, told from others that happen to be equal where only one layer has it.
_NUMBER = "layer_idx"

_PLAIN = (int, float, bool, str, type(None))


class Numbered(NamedTuple):
    """An attribute that holds a layer's number.

    Attributes:
        module: name within the layer; "" for its own.
        attribute: of that module.
    """

    module: str
    attribute: str


class Hop:
    """A copy of a layer's module. Build with :func:`hop_of`.

    Attributes:
        module: what is run.
    """

    def __init__(self, module: nn.Module, numbered: Sequence[Numbered]) -> None:
        self.module = module
        parts = dict(module.named_modules())
        own = [(parts.get(each.module), each.attribute) for each in numbered]
        self._numbered = [(part, attribute) for part, attribute in own if part is not None and attribute in vars(part)]
        self._shared: dict[str, Any] = {}

    def put(self, number: int, own: Mapping[str, nn.Parameter]) -> None:
        """Give it a place in a path.

        Args:
            number: of its place, from 0.
            own: name within the layer -> the parameter that it has for itself; all others are the layer's.
        """
        for module, attribute in self._numbered:
            setattr(module, attribute, number)
        for name in own.keys() - self._shared.keys():
            self._shared[name] = tensor_of(self.module, name)
        for name, shared in self._shared.items():
            parent, _, leaf = name.rpartition(".")
            setattr(self.module.get_submodule(parent), leaf, own.get(name, shared))


def hop_of(block: Block, index: int, numbered: Sequence[Numbered]) -> Hop:
    """The ``index``-th copy of a layer, made where there were not as many before."""
    while len(block.hops) <= index:
        block.hops.append(Hop(copied(block.module), numbered))
    hop: Hop = block.hops[index]
    return hop


def numbers_of(layers: Sequence[nn.Module]) -> tuple[Numbered, ...]:
    """The attributes in which a model's layers hold their own numbers: in all layers that have them, which need not be
    all there are."""
    found: dict[Numbered, list[bool]] = {}
    for number, layer in enumerate(layers):
        for name, part in layer.named_modules():
            for attribute, value in vars(part).items():
                if type(value) is int:
                    found.setdefault(Numbered(name, attribute), []).append(value == number)
    return tuple(each for each, own in found.items() if all(own) and (len(own) > 1 or each.attribute == _NUMBER))


def hang(stack: nn.ModuleList, modules: Sequence[nn.Module]) -> None:
    """Let a model run these modules, in this order."""
    stack._modules.clear()
    stack._modules.update({str(number): module for number, module in enumerate(modules)})


class LiveConfig:
    """The config of a live model, which says how deep it is and of which kind each block.

    Args:
        model: whose config it is.
        config: its ``config.json``.
        depth: layers that it has there.
    """

    def __init__(self, model: nn.Module, config: dict[str, Any], depth: int) -> None:
        self._config: Any = model.config
        self._whole = with_layer_types(config)
        self._depth = depth
        self._changed: set[tuple[str, ...]] = set()

    def of(self, layers: Sequence[int]) -> dict[str, Any]:
        """The ``config.json`` of a path.

        Args:
            layers: [hops] the layer that each is, whosever.
        """
        return restacked_config(self._whole, self._depth, layers)

    def follow(self, layers: Sequence[int]) -> None:
        """Let the live model's config be that of a path."""
        self._set(self._config, self._whole, self.of(layers), ())

    def _set(self, config: Any, whole: Mapping[str, Any], wanted: Mapping[str, Any], within: tuple[str, ...]) -> None:
        """Set what differs from the base's config, and what ever did: there now may be half of an earlier path's, whose
        candidate was broken off."""
        for key, value in wanted.items():
            part, place = getattr(config, key, None), (*within, key)
            if isinstance(value, dict) and part is not None and not isinstance(part, dict):
                self._set(part, whole.get(key, {}), value, place)
            elif value != whole.get(key) or place in self._changed:
                self._changed.add(place)
                setattr(config, key, copy.copy(value))


def check_places(
    model: nn.Module, config: LiveConfig, templates: Sequence[nn.Module], numbered: Sequence[Numbered], where: str
) -> None:
    """Check that a layer at another place is the same layer but for its number: that the class of an exported path
    builds the blocks that are run here. It is asked to, once, without weights.

    Args:
        model: the live one.
        config: its config.
        templates: [layers] its layers.
        numbered: see :func:`numbers_of`.
        where: name of the list of layers.

    Raises:
        MergingError: it builds other ones; names what differs.
    """
    layers = [*reversed(range(len(templates))), *range(len(templates))]
    own: Any = model.config
    build: Any = type(model)
    try:
        with _quiet():
            told = type(own).from_dict(config.of(layers))
            told._attn_implementation = own._attn_implementation
            with torch.device("meta"):
                built = build._from_config(told, dtype=next(model.parameters()).dtype)
        blocks = built.get_submodule(where)
    except Exception as error:  # transformers raises whatever its model classes raise
        raise MergingError(
            f"a {type(model).__name__} of {len(layers)} layers cannot be built ({type(error).__name__}: {error}), so "
            "there are no paths through its layers"
        ) from error
    for number, (layer, block) in enumerate(zip(layers, blocks, strict=True)):
        difference = next(_differences(templates[layer], block, number, numbered), None)
        if difference is not None:
            raise MergingError(
                f"a layer of {type(model).__name__} is not the same at another place: layer {layer} as block {number} "
                f"of a deeper model has {difference}. Paths through the layers of such models cannot be exported, so "
                "they are not searched"
            )


def _differences(layer: nn.Module, block: nn.Module, number: int, numbered: Sequence[Numbered]) -> Iterator[str]:
    own, other = dict(layer.named_modules()), dict(block.named_modules())
    for name in sorted(own.keys() ^ other.keys()):
        yield f"{'no ' if name in own else 'a '}module {name}"
    for name, part in own.items():
        built = other[name]
        if type(part) is not type(built):
            yield f"a {type(built).__name__} instead of a {type(part).__name__} as {name}"
        for attribute, value in vars(part).items():
            expected = number if Numbered(name, attribute) in numbered else value
            found = getattr(built, attribute, None)
            if attribute.startswith("_") or attribute == "training" or not isinstance(value, _PLAIN):
                continue
            if found != expected:
                yield f"{'.'.join(filter(None, (name, attribute)))} {found!r} instead of {expected!r}"
