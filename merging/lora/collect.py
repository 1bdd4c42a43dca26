"""What an adapter can hold of a difference: products, whole modules and biases, by the names that PEFT gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from merging.composed import Factors
from merging.conversion import Shape
from merging.lora.adapter import PREFIX
from merging.lora.compress import Product, Rank, compress, recompress, relative
from merging.lora.differences import Difference
from merging.lora.naming import Names
from merging.lora.slots import Slot, live_difference, live_tensor, live_terms, slots

OnTensor = Callable[[int, int, str], None]
"""Told of (number, of how many, live name) before each tensor."""

Rest = Literal["save", "all", "leave"]
"""What becomes of what is no product: norms and biases are saved whole (``modules_to_save``, ``bias: all``); with "all"
embeddings that are tied to their head too, which are large; with "leave" nothing is."""


@dataclass(frozen=True)
class Lost:
    """How well one tensor's change is kept.

    Attributes:
        rank: of its product, the largest of a stack; 0 where it is saved whole or left out.
        error: ‖Δ − Δ̂‖/‖Δ‖ of what is written.
        square: ‖Δ‖².
        how: ``product``, ``whole`` or ``left out``.
    """

    rank: int
    error: float
    square: float
    how: str


@dataclass
class Parts:
    """What an adapter holds, on the way to its folder.

    Attributes:
        tensors: name in the file -> tensor.
        ranks: module, or bare parameter, -> rank of its product.
        stacks: bare parameters among them.
        saved: modules that are saved whole.
        biases: whether any bias is saved.
        tied: whether an embedding is saved together with its head.
        turned: whether any product is of a Conv1D.
        lost: live name -> how well it is kept.
        stored: names on disk of what is kept.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    stacks: list[str] = field(default_factory=list)
    saved: dict[str, None] = field(default_factory=dict)
    biases: bool = False
    tied: bool = False
    turned: bool = False
    lost: dict[str, Lost] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)


class Collector:
    """Goes through the live parameters of the base once, and keeps what differs.

    Args:
        difference: what is to be held.
        rank: of all products, or the error that each may have.
        rest: see :data:`Rest`.
        dtype: of the products.
        names: of the base's live model.
    """

    def __init__(self, difference: Difference, rank: Rank, rest: Rest, dtype: torch.dtype, names: Names):
        self._difference = difference
        self._rank = rank
        self._rest = rest
        self._dtype = dtype
        self._names = names
        self._shapes: dict[str, Shape] = {name: each.shape for name, each in difference.base.tensors.items()}
        self._held = Parts()

    def collect(self, on_tensor: OnTensor | None) -> Parts:
        """What an adapter holds."""
        every = list(slots(self._names))
        may_differ = set(self._difference.names)
        by_module: dict[str, list[Slot]] = {}
        for number, slot in enumerate(every):
            if on_tensor is not None:
                on_tensor(number, len(every), slot.name)
            by_module.setdefault(slot.module, []).append(slot)
            stored = [place.name for place in slot.places if place.name in may_differ]
            if any(self._difference.terms(name) != () for name in stored):
                self._take(slot)
        self._nest(every)
        for module, own in by_module.items():
            self._save(module, own)
        return self._held

    def _take(self, slot: Slot) -> None:
        if slot.kind == "stack":
            self._stack(slot)
        elif slot.kind in {"layer", "turned", "embedding"}:
            self._product(slot)
        else:
            self._plain(slot)

    def _product(self, slot: Slot) -> None:
        terms = live_terms(slot, self._difference)
        turned = slot.kind in {"turned", "embedding"}  # A and B are those of [out, in]
        if terms is None:
            dense = live_difference(slot, self._difference, self._shapes).reshape(slot.shape[0], -1)
            made = compress(dense.T if turned else dense, self._rank, self._dtype)
        elif terms:
            made = recompress(
                [Factors(each.right.T, each.left.T) for each in terms] if turned else terms, self._rank, self._dtype
            )
        else:
            return
        if not made.rank:
            return
        made = self._padded(made)
        self._note(slot, made.rank, made.lost, made.square, "product")
        self._held.ranks[slot.module] = made.rank
        self._held.turned |= slot.kind == "turned"
        stem = f"{PREFIX}{slot.module}."
        kernel = slot.shape[2:] if slot.kind == "layer" else ()
        if slot.kind == "embedding":
            self._held.tensors |= {f"{stem}lora_embedding_A": made.right, f"{stem}lora_embedding_B": made.left}
            return
        inputs = (slot.shape[1], *kernel) if kernel else (made.right.shape[1],)
        self._held.tensors[f"{stem}lora_A.weight"] = made.right.reshape(-1, *inputs)
        self._held.tensors[f"{stem}lora_B.weight"] = made.left.reshape(*made.left.shape, *(1 for _ in kernel))

    def _stack(self, slot: Slot) -> None:
        """A product for each expert, all of one rank, in PEFT's order: A [experts·r, in], B [out, r·experts]."""
        dense = live_difference(slot, self._difference, self._shapes)
        made = [compress(each.T if slot.turned else each, self._rank, self._dtype) for each in dense]
        most = max(each.rank for each in made)
        if not most:
            return
        padded = [_pad(each, self._rank.most or most) for each in made]
        self._note(slot, padded[0].rank, sum(each.lost for each in made), sum(each.square for each in made), "product")
        self._held.ranks[slot.name] = padded[0].rank
        self._held.stacks.append(slot.name)
        right = torch.cat([each.right for each in padded])
        left = torch.stack([each.left for each in padded], dim=-1).flatten(1)
        self._held.tensors |= {f"{PREFIX}{slot.name}.A": right, f"{PREFIX}{slot.name}.B": left}

    def _nest(self, every: list[Slot]) -> None:
        """The names that PEFT gives to bare parameters: one wrapper around the other, the first innermost."""
        stacks = self._held.stacks
        for name in stacks:
            module = name.rpartition(".")[0]
            own = [slot.name for slot in every if slot.module == module and slot.name in stacks]
            stem = f"{PREFIX}{module}" + ".base_layer" * (len(own) - 1 - own.index(name))
            for part in "AB":
                self._held.tensors[f"{stem}.lora_{part}.weight"] = self._held.tensors.pop(f"{PREFIX}{name}.{part}")

    def _plain(self, slot: Slot) -> None:
        square = float(live_difference(slot, self._difference, self._shapes).double().square().sum())
        if not square:
            return
        kept = self._rest != "leave" and slot.kind in {"bias", "part"}
        kept = kept or (self._rest == "all" and slot.kind == "tied" and len(slot.twins) == 1)
        self._note(slot, 0, 0.0 if kept else square, square, "whole" if kept else "left out")

    def _save(self, module: str, own: list[Slot]) -> None:
        """Biases of layers, and modules as a whole."""
        changed = [slot for slot in own if slot.name in self._held.lost and self._held.lost[slot.name].how == "whole"]
        if not changed:
            return
        if changed[0].kind == "bias":
            self._held.biases = True
            layer = ".base_layer" if module in self._held.ranks else ""
            self._held.tensors[f"{PREFIX}{module}{layer}.bias"] = self._tensor(changed[0])
            return
        for slot in own:
            self._held.tied |= slot.kind == "tied"
            for name in (slot.name, *slot.twins):
                self._held.saved[name.rpartition(".")[0]] = None
                self._held.tensors[f"{PREFIX}{name}"] = self._tensor(slot)

    def _tensor(self, slot: Slot) -> Tensor:
        return live_tensor(slot, self._difference, self._shapes).contiguous()

    def _padded(self, made: Product) -> Product:
        """All of one rank, where that was asked for: readers such as vLLM know no other adapters."""
        return made if self._rank.most is None else _pad(made, self._rank.most)

    def _note(self, slot: Slot, rank: int, lost: float, square: float, how: str) -> None:
        if how != "left out":
            self._held.stored |= {place.name for place in slot.places if place.name in self._difference.names}
        self._held.lost[slot.name] = Lost(rank, relative(lost, square), square, how)


def _pad(made: Product, rank: int) -> Product:
    more = rank - made.rank
    if more <= 0:
        return made
    left = torch.cat([made.left, made.left.new_zeros(made.left.shape[0], more)], 1)
    right = torch.cat([made.right, made.right.new_zeros(more, made.right.shape[1])])
    return made._replace(left=left, right=right)
