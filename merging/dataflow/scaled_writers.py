"""Weights of their own for the hops of a path with scales: what writes to the residual stream there is multiplied and
rounded as an export multiplies and rounds it, by the same kernel, so that what is run is what is exported, bit for bit.

To multiply what a shared matrix puts out would need no memory, and is another function in 16 bits: rounding the product
of a weight is not rounding the product of an output. All else of a layer stays shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from merging.dataflow.blocks import Spec, joined, shown
from merging.dataflow.folding import multiplied
from merging.dataflow.live_path import Anatomy, LiveHop
from merging.kernel import Resolver, Task, check_finite_result, compiles, merge_tensor
from merging.materialize import CANDIDATES
from merging.recipe import Group, Recipe
from merging.sources import Sources


class OwnWriters(NamedTuple):
    """What one hop has for itself.

    Attributes:
        parameters: name within the layer -> what hangs there.
        tensors: canonical name, without the layer before it -> live tensor.
    """

    parameters: dict[str, nn.Parameter]
    tensors: dict[str, Tensor]


class _Key(NamedTuple):
    """What the values depend on: hops that agree in it share their memory."""

    alias: str
    layer: int
    factor: float


class ScaledWriters:
    """The writers of hops that are multiplied. Their memory is used again by the next path: there is as much of it as
    the path with most of them needed.

    Args:
        sources: the models.
        anatomy: which tensors belong to which layer.
        inside: [layers] the live tensors of each.
        writers: [layers] canonical names (:func:`merging.dataflow.writers.find_writers`).
    """

    def __init__(
        self, sources: Sources, anatomy: Anatomy, inside: Sequence[Sequence[Spec]], writers: Sequence[frozenset[str]]
    ) -> None:
        self._sources = sources
        self._anatomy = anatomy
        self._writers = writers
        self._specs = [
            [spec for spec in specs if any(part.name in own for part in spec.parts)]
            for specs, own in zip(inside, writers, strict=True)
        ]
        self._kinds = [self._kind(layer) for layer in range(len(writers))]
        self._held: dict[_Key, OwnWriters] = {}
        self._spare: dict[object, list[OwnWriters]] = {}

    def of(self, recipe: Recipe, hops: Sequence[LiveHop], factors: Sequence[float]) -> list[OwnWriters | None]:
        """[hops] what each has for itself, filled; None where nothing is multiplied.

        Args:
            recipe: of the path.
            hops: of the path.
            factors: [hops] what each one's writers are multiplied by.

        Raises:
            MergeFailed: a product is not finite in the live dtype. What earlier paths had is lost.
            MergingError: a hop is not copied from a model.
        """
        keys = [
            None if factor == 1.0 else _Key(hop.alias, hop.layer, factor)
            for hop, factor in zip(hops, factors, strict=True)
        ]
        places = {key: number for number, key in enumerate(keys) if key is not None}
        for key in [key for key in self._held if key not in places]:
            self._put_back(key, self._held.pop(key))
        missing = {key: number for key, number in places.items() if key not in self._held}
        self._reserve([key.layer for key in missing])  # all of it, before anything is written
        fresh = {key: self._spare[self._kinds[key.layer]].pop() for key in missing}
        try:
            self._write(recipe, {number: (key, fresh[key]) for key, number in missing.items()})
        except BaseException:
            for key, own in fresh.items():
                self._put_back(key, own)
            raise
        self._held |= fresh
        return [None if key is None else self._held[key] for key in keys]

    def names(self, layer: int) -> frozenset[str]:
        """Canonical names of a layer's writers."""
        return self._writers[layer]

    def doubt(self) -> None:
        """Take nothing for granted of what the memory holds: it is written anew before its next use."""
        for key, own in self._held.items():
            self._put_back(key, own)
        self._held.clear()

    @property
    def bytes(self) -> int:
        """Of all that is held for any path."""
        every = [*self._held.values(), *(own for spare in self._spare.values() for own in spare)]
        memory = [each.untyped_storage() for own in every for each in own.parameters.values()]
        return sum({each.data_ptr(): each.nbytes() for each in memory}.values())

    def _write(self, recipe: Recipe, hops: dict[int, tuple[_Key, OwnWriters]]) -> None:
        """Compute the writers of these hops, by the number of each in its path."""
        resolver = Resolver(self._sources, recipe, searching=True)
        work: dict[str, tuple[str, Task, Tensor]] = {}  # all of it, before anything is written
        for number, (key, own) in hops.items():
            for rest, out in own.tensors.items():
                name, result = self._anatomy.named(rest, key.layer), self._anatomy.named(rest, number)
                group = Group(self._sources.layout.group(name).kind, number, self._anatomy.stack)
                assignment = multiplied(recipe.for_tensor(result, group), key.factor, result)
                work[result] = (name, resolver.task(assignment), out)
        elements = sum(out.numel() for _, _, out in work.values())
        ends = {
            result: merge_tensor(
                name, task, out, compiled=compiles(task, "auto", elements, out.device.type, candidates=CANDIDATES)
            )
            for result, (name, task, out) in work.items()
        }
        if ends:
            check_finite_result(ends, {result: out for result, (_, _, out) in work.items()})

    def _reserve(self, layers: Sequence[int]) -> None:
        """Have spare memory for the writers of these layers."""
        for kind in {self._kinds[layer] for layer in layers}:
            spare = self._spare.setdefault(kind, [])
            same = [layer for layer in layers if self._kinds[layer] == kind]
            spare += [self._made(layer) for layer in same[len(spare) :]]

    def _put_back(self, key: _Key, own: OwnWriters) -> None:
        self._spare.setdefault(self._kinds[key.layer], []).append(own)

    def _made(self, layer: int) -> OwnWriters:
        parameters: dict[str, nn.Parameter] = {}
        tensors: dict[str, Tensor] = {}
        for spec in self._specs[layer]:
            shapes = {part.name: self._sources.tensors[part.name].shape for part in spec.parts}
            if spec.is_stored:
                first = spec.parts[0]
                rest = self._anatomy.rest(first.name, layer)
                if rest not in tensors:
                    tensors[rest] = torch.empty(shapes[first.name], dtype=spec.dtype, device=spec.device)
                data = shown(tensors[rest], first, spec)
            else:
                data, parts = joined(spec, shapes)
                tensors |= {self._anatomy.rest(name, layer): each for name, each in parts.items()}
            parameters[spec.own] = nn.Parameter(data, requires_grad=False)
        return OwnWriters(parameters, tensors)

    def _kind(self, layer: int) -> object:
        """What layers agree in whose writers fit into the same memory."""
        return tuple(
            (
                spec.own,
                spec.shape,
                spec.dtype,
                spec.device,
                tuple(
                    (self._anatomy.rest(part.name, layer), self._sources.tensors[part.name].shape, *part.where[1:])
                    for part in spec.parts
                ),
            )
            for spec in self._specs[layer]
        )
