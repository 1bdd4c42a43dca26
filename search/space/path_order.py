"""The order of slots that may move by a few places: random keys (Bean, "Genetic algorithms and random keys", 1994).

A slot's key is its index plus what its gene moves it by, at most ``shift``; slots are taken in the order of their keys.
So a slot can come after one that stands up to 2·shift - 1 places behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search.space.scales import SpaceError


def shifted(slots: Sequence[int], genes: Mapping[int, float], shift: int) -> list[int]:
    """Slots in the order of their keys; of equal ones, the earlier slot first.

    Args:
        slots: indices, ascending.
        genes: slot -> gene in [0, 1]; 0.5, and no gene, is its own place.
        shift: places that a gene of 0 or 1 moves it by.
    """
    return sorted(slots, key=lambda slot: (slot + shift * (2.0 * genes.get(slot, 0.5) - 1.0), slot))


def shift_gene(places: float, shift: int) -> float:
    """The gene that moves a slot by so many places, -shift to shift."""
    return 0.5 + places / (2.0 * shift)


def matched(hops: Sequence[tuple[str, int]], slots: Sequence[tuple[int, tuple[str, int]]], shift: int) -> list[int]:
    """The slots of a path, each the earliest that can be brought into its order.

    Taking the earliest is never a mistake: what may come later depends on the furthest slot so far alone.

    Args:
        hops: (model, layer) in the path's order.
        slots: (index, (model, layer)) of what is free, in ascending order.
        shift: places that slots may be moved by.

    Raises:
        SpaceError: no slots in such an order.
    """
    of: dict[tuple[str, int], list[int]] = {}
    for index, each in slots:
        of.setdefault(each, []).append(index)
    back = 2 * shift - 1 if shift else -1
    furthest = -1
    found: list[int] = []
    for number, hop in enumerate(hops):
        left = of.get(hop, [])
        slot = next((index for index in left if index >= furthest - back), None)
        if slot is None:
            raise SpaceError(
                f"hop {number} of the path, layer {hop[1]} of {hop[0]}, has no slot left that could stand there; more "
                "repetitions, or a shift, give further ones"
            )
        left.remove(slot)
        furthest = max(furthest, slot)
        found.append(slot)
    return found


def keys_of(order: Sequence[int]) -> dict[int, float]:
    """Slot -> a key that brings it into its place in this order, as near to its index as it can be for all of them.

    Slots that pass no other keep their index. Among those that do, a key is midway between the furthest slot before and
    the nearest one behind (which is nearest for the one that moves most), and rises by less than half a place in all.
    """
    keys: dict[int, float] = {}
    start = 0
    furthest = -1
    for end, slot in enumerate(order):
        furthest = max(furthest, slot)
        if any(later < furthest for later in order[end + 1 :]):
            continue
        run = order[start : end + 1]
        if len(run) == 1:
            keys[slot] = float(slot)
        for place, each in enumerate(run if len(run) > 1 else ()):
            middle = (max(run[: place + 1]) + min(run[place:])) / 2.0
            keys[each] = middle + 0.25 * place / len(run)
        start = end + 1
    return keys
