"""Names of a live model, which adapters speak of, in the tensors that its base has on disk.

Most models keep their names; transformers renames those of some on loading, fuses experts into one parameter, and
leaves the prefix of a headless model out. Where a name is not found on disk, the base is built without weights and its
loading rules are followed (:mod:`merging.conversion`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from merging.checkpoint import Checkpoint
from merging.compatibility import is_tied, optional_heads
from merging.conversion import Shape, Strided, place, row_major


@dataclass(frozen=True)
class Place:
    """Where elements of a live tensor are in the base's tensors.

    Attributes:
        name: of the base's tensor on disk.
        live: shape of the live tensor.
        view: how the tensor on disk lies in the live one; None where it is the whole of it, in the same shape.
        piece: how the live tensor lies in the one on disk, where the loader splits that; else None.
    """

    name: str
    live: Shape
    view: Strided | None = None
    piece: Strided | None = None


class Names:
    """Finds live tensors in a base.

    Args:
        base: a model folder.
    """

    def __init__(self, base: Checkpoint):
        self._base = base
        self._shapes = {name: info.shape for name, info in base.tensors.items()}

    def find(self, name: str) -> tuple[Place, ...]:
        """Where a live parameter or buffer is on disk; several places where it is several tensors, or one that is
        stored twice. Empty where the base has no such tensor.

        Args:
            name: in the model that an adapter was trained on: of this class, or of one with or without a head.

        Raises:
            MergingError: the base's class cannot be built, or loads its weights in a way that cannot be followed.
        """
        found = self._stored(name) or self._live(name)
        if not found:
            for other in self._variants(name):
                found = self._stored(other) or self._live(other)
                if found:
                    break
        return tuple(self._twice(found))

    def parameters(self, module: str) -> list[tuple[str, Shape]]:
        """(name, shape) of the parameters that a live module has itself, in its own order; empty for no module."""
        for each in (module, *self._variants(module)):
            held = self._module(each)
            if held is not None:
                return [(f"{each}.{own}", tuple(one.shape)) for own, one in held.named_parameters(recurse=False)]
        return []

    def tied(self, stored: str) -> frozenset[str]:
        """All live names of the parameter that a tensor on disk is, where there are several; else none."""
        live = {name for name, places in self._places.items() if stored in {each.name for each in places}}
        found = [names for names in self._parameters.values() if live & set(names)]
        return frozenset(found[0]) if found and len(found[0]) > 1 else frozenset()

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """(name, module) of the live model, on the meta device: shapes and no weights."""
        yield from self._model.named_modules()

    def places(self, name: str) -> tuple[Place, ...]:
        """As :meth:`find`, of a name of the base's own live model."""
        return tuple(self._places.get(name, ()))

    def live_names(self, parameter: nn.Parameter) -> tuple[str, ...]:
        """All names of a parameter of the live model: several where it is tied."""
        return tuple(self._parameters.get(id(parameter), ()))

    def is_in_attention(self, module: str) -> bool:
        """Whether a live module is, or belongs to, one of torch's own attention layers, which call no layers."""
        parent = module.rpartition(".")[0]
        return any(isinstance(self._module(each), nn.MultiheadAttention) for each in (module, parent) if each)

    @property
    def class_of(self) -> tuple[str, str]:
        """(name of the live model's class, module of Python that has it)."""
        return type(self._model).__name__, type(self._model).__module__

    def is_turned(self, module: str) -> bool:
        """Whether a live module says that its experts are stored [experts, in, out]."""
        return any(
            bool(getattr(self._module(each), "is_transposed", False)) for each in (module, *self._variants(module))
        )

    def _stored(self, name: str) -> tuple[Place, ...]:
        return (Place(name, self._shapes[name]),) if name in self._shapes else ()

    def _live(self, name: str) -> tuple[Place, ...]:
        shape = self._state.get(name)
        if shape is None:
            return ()
        found = self._places.get(name) or self._places.get(self._twins.get(name, ""))
        return tuple(found or ())

    def _variants(self, name: str) -> Iterator[str]:
        """The name in a model with a head where it was that of one without, and the other way round."""
        prefix = getattr(self._model, "base_model_prefix", "")
        if prefix:
            yield name.removeprefix(f"{prefix}.") if name.startswith(f"{prefix}.") else f"{prefix}.{name}"

    def _twice(self, places: tuple[Place, ...]) -> Iterator[Place]:
        """A head that is stored, but tied, changes with its embedding."""
        yield from places
        held = {each.name for each in places}
        for each in places:
            for head, embedding in self._heads.items():
                other = {head: embedding, embedding: head}.get(each.name)
                if other is not None and other not in held and self._ties[head]:
                    yield Place(other, each.live, each.view, each.piece)

    @cached_property
    def _heads(self) -> Mapping[str, str]:
        """Heads that are stored -> the embedding that they could be tied to."""
        return {head: embedding for head, embedding in optional_heads(self._base).items() if head in self._shapes}

    @cached_property
    def _ties(self) -> Mapping[str, bool]:
        return {head: is_tied(self._base, head, embedding) for head, embedding in self._heads.items()}

    @cached_property
    def _model(self) -> nn.Module:
        from merging.skeleton import load_skeleton

        return load_skeleton(self._base.home)

    @cached_property
    def _state(self) -> Mapping[str, Shape]:
        return {name: tuple(each.shape) for name, each in self._model.state_dict().items()}

    @cached_property
    def _twins(self) -> Mapping[str, str]:
        """Live name of a tied parameter -> the name of the same parameter that is found on disk."""
        found: dict[str, str] = {}
        for names in self._parameters.values():
            placed = [name for name in names if name in self._places]
            if placed:
                found |= {name: placed[0] for name in names if name not in self._places}
        return found

    @cached_property
    def _parameters(self) -> Mapping[int, list[str]]:
        """All live names of each parameter."""
        found: dict[int, list[str]] = {}
        for name, each in self._model.named_parameters(remove_duplicate=False):
            found.setdefault(id(each), []).append(name)
        return found

    @cached_property
    def _places(self) -> Mapping[str, list[Place]]:
        """Live name -> its places."""
        known = place(self._model, self._shapes)
        found: dict[str, list[Place]] = {}
        for name, view in known.views.items():
            live = self._state[view.within]
            whole = live == self._shapes[name] and view.strides == row_major(live) and not view.offset
            found.setdefault(view.within, []).append(Place(name, live, None if whole else view))
        for live_name, piece in known.pieces.items():
            found.setdefault(live_name, []).append(Place(piece.within, self._state[live_name], piece=piece))
        return found

    def _module(self, name: str) -> Any:
        try:
            return self._model.get_submodule(name)
        except AttributeError:
            return None
