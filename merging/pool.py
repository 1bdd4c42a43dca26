"""The sources of one assignment as a method sees them, and what is remembered about them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from merging.calibration.contract import Calibration
    from merging.composed import Factors

# Of statistics that depend on continuous parameters: a search asks for ever new values, a few per tensor and candidate.
RECENT = 1 << 14


# Bytes to whose multiples tensors are put in an arena: a cache line.
ALIGNMENT = 64


class Pool:
    """Tensors of the base and of some sources in order. Lazy: a tensor is read when it is asked for.

    Attributes:
        aliases: the sources, in order.
        names: canonical names of the tensors that are merged, sorted.
        calibration: what was collected on inputs of the sources, for methods that need it, or None.
        searching: other parameters will be asked for soon: statistics that are cheaper together are computed together.
        config: ``config.json`` of the base; empty where there is none.
    """

    def __init__(
        self,
        base: str,
        aliases: tuple[str, ...],
        names: tuple[str, ...],
        read: Callable[[str, str], Tensor],
        dtype: torch.dtype | None = None,
        content: Callable[[str], str] = str,
        config: Mapping[str, Any] | None = None,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        factors: Callable[[str, str], Factors | None] | None = None,
        composes: Callable[[str, str], bool] | None = None,
    ):
        self.aliases = aliases
        self.names = names
        self.calibration: Calibration | None = None
        self.searching = False
        self.config: Mapping[str, Any] = config or {}
        self._shapes = shapes
        self._factors = factors if dtype is None else None  # a task vector that is rounded is no product any more
        self._composes = composes
        self._base = base
        self._read = read
        self._dtype = dtype
        self._content = content
        self._memory: dict[Any, Any] = {}
        self._recent: OrderedDict[Any, Any] = OrderedDict()

    def base(self, name: str) -> Tensor:
        """The base's tensor, rounded to the pool's dtype if it has one; read-only."""
        return self._get(self._base, name)

    def source(self, name: str, number: int) -> Tensor:
        """One tensor of one source; read-only."""
        return self._get(self.aliases[number], name)

    def sources(self, name: str) -> tuple[Tensor, ...]:
        """[sources] one tensor of every source; read-only."""
        return tuple(self._get(alias, name) for alias in self.aliases)

    def composes(self, name: str) -> bool:
        """Whether some source of a tensor is made anew whenever it is asked for, as those are that are kept in factors:
        whoever needs one tensor after the other lets go of each first."""
        made = self._composes
        return made is not None and any(made(alias, name) for alias in self.aliases)

    def factors(self, name: str) -> tuple[Factors | None, ...]:
        """[sources] the task vector of every source as a product of thin matrices, of rank 0 where it has none; None
        where it is not known so, or sources are rounded."""
        read = self._factors
        return tuple(None if read is None else read(alias, name) for alias in self.aliases)

    def all_factors(self, name: str) -> tuple[Factors, ...] | None:
        """As :meth:`factors`; None unless there is a source, and every one has them."""
        found = self.factors(name)
        known = tuple(each for each in found if each is not None)
        return known if known and len(known) == len(found) else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, which is not read for it where the pool was told."""
        return tuple(self.base(name).shape) if self._shapes is None else self._shapes[name]

    def content(self, number: int) -> str:
        """Hash of a source's content: what random masks are keyed by, so that they do not depend on aliases."""
        return self._content(self.aliases[number])

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """``compute()``, the first time; afterwards what it returned. For statistics, also those of the whole model."""
        if key not in self._memory:
            self._memory[key] = compute()
        return self._memory[key]

    def lately(self, key: Any, compute: Callable[[], Any]) -> Any:
        """As :meth:`once`, but the values that were not asked for lately are forgotten."""
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key]
        found = self._recent[key] = compute()
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        return found

    def forget(self, name: str) -> None:
        """Drop what is remembered about one tensor: for whoever goes through a model once."""
        for memory in (self._memory, self._recent):
            for key in [key for key in memory if isinstance(key, tuple) and name in key]:
                del memory[key]

    def _get(self, alias: str, name: str) -> Tensor:
        tensor = self._read(alias, name)
        return tensor if self._dtype is None else tensor.to(self._dtype)


def dot(a: Tensor, b: Tensor, chunk: int = 1 << 16) -> float:
    """⟨a, b⟩ over all elements in float64.

    The sum is a fixed tree of elementwise additions, so it is the same for every number of threads, vector width and
    memory alignment; library reductions are not.
    """
    a, b = a.reshape(-1), b.reshape(-1)
    return math.fsum(
        tree_sum(a[start:stop].to(torch.float64) * b[start:stop].to(torch.float64))
        for start, stop in pieces(a.numel(), chunk)
    )


def tree_sum(terms: Tensor) -> float:
    """Σ of a 1-D float64 tensor by a fixed tree of additions. Overwrites the tensor."""
    length = terms.numel()
    while length > 1:
        half = length // 2
        terms[:half].add_(terms[length - half : length])
        length -= half
    return float(terms[0]) if terms.numel() else 0.0


def pieces(numel: int, chunk: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive pieces of at most ``chunk`` elements."""
    for start in range(0, numel, chunk):
        yield start, min(start + chunk, numel)
