"""Where an adapter can hold a change of a live model: layers for products, modules that are saved whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from merging.composed import Factors
from merging.conversion import Shape
from merging.lora.differences import Difference
from merging.lora.naming import Names, Place

# layer: a matrix [out, in], or a convolution; turned: a Conv1D's [in, out]; embedding: [tokens, width]; stack: the
# matrices of experts; bias: of a layer; part: belongs to a module that can be saved as a whole; bare: none of these.
Kind = Literal["layer", "turned", "embedding", "stack", "bias", "part", "bare", "tied"]


@dataclass(frozen=True)
class Slot:
    """One live parameter.

    Attributes:
        module: its module in the live model.
        leaf: its name there.
        kind: see :data:`Kind`.
        shape: of the live tensor.
        places: where it is on disk.
        twins: other live names of it, where it is tied.
        turned: of a stack: stored [experts, in, out].
    """

    module: str
    leaf: str
    kind: Kind
    shape: Shape
    places: tuple[Place, ...]
    twins: tuple[str, ...] = ()
    turned: bool = False

    @property
    def name(self) -> str:
        """Of the live parameter."""
        return f"{self.module}.{self.leaf}" if self.module else self.leaf


def slots(names: Names) -> Iterator[Slot]:
    """All live parameters that are on disk, each once; a tied one is of kind "tied"."""
    seen: set[int] = set()
    for module, held in names.modules():
        for leaf, parameter in held.named_parameters(recurse=False):
            own = f"{module}.{leaf}" if module else leaf
            if id(parameter) in seen or not (places := names.places(own)):
                continue
            seen.add(id(parameter))
            twins = tuple(name for name in names.live_names(parameter) if name != own)
            shape = tuple(parameter.shape)
            kind: Kind = "tied" if twins else _kind(held, leaf, shape, names, module)
            yield Slot(module, leaf, kind, shape, places, twins, bool(getattr(held, "is_transposed", False)))


def _kind(module: nn.Module, leaf: str, shape: Shape, names: Names, name: str) -> Kind:
    from transformers.pytorch_utils import Conv1D

    layer = isinstance(module, nn.Linear | Conv1D) or (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1
    )
    if names.is_in_attention(name):  # torch's own, whose output layer is never called
        return "bare"
    if leaf == "weight" and layer:
        return "turned" if isinstance(module, Conv1D) else "layer"
    if leaf == "bias" and layer:
        return "bias"
    if leaf == "weight" and isinstance(module, nn.Embedding):
        return "embedding"
    if _is_stack(name, shape):
        return "stack"
    wrapped = any(_is_stack(name, tuple(each.shape)) for each in module.parameters(recurse=False))
    return "part" if name and not wrapped and not list(module.children()) else "bare"


def _is_stack(module: str, shape: Shape) -> bool:
    """Whether a bare parameter holds the matrices of experts: PEFT then wraps its module, and cannot save it whole."""
    return len(shape) == 3 and shape[0] > 1 and "experts" in module.split(".")


def live_terms(slot: Slot, difference: Difference) -> tuple[Factors, ...] | None:
    """The task vector of a live matrix as a sum of products, where it lies on disk as it is."""
    place = slot.places[0]
    if len(slot.shape) < 2 or place.view is not None or place.piece is not None:
        return None
    return difference.terms(place.name)


def live_difference(slot: Slot, difference: Difference, shapes: Mapping[str, Shape]) -> Tensor:
    """The task vector of a live tensor, float32, put together from those of the tensors on disk."""
    return _gathered(slot, difference.dense, shapes)


def live_tensor(slot: Slot, difference: Difference, shapes: Mapping[str, Shape]) -> Tensor:
    """The changed live tensor itself, float32."""

    def read(name: str) -> Tensor:
        own = difference.base.read(name).to(torch.float64)
        return (own + difference.dense(name)).to(torch.float32) if name in difference.names else own.to(torch.float32)

    return _gathered(slot, read, shapes)


def _gathered(slot: Slot, read: Callable[[str], Tensor], shapes: Mapping[str, Shape]) -> Tensor:
    out = torch.zeros(slot.shape)
    for place in slot.places:
        found = read(place.name)
        if place.piece is not None:
            return found.contiguous().as_strided(slot.shape, place.piece.strides, place.piece.offset).clone()
        if place.view is None:
            return found
        out.as_strided(shapes[place.name], place.view.strides, place.view.offset).copy_(found)
    return out
