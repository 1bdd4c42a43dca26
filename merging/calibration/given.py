"""Calibration that somebody has at hand: for tests, and for statistics that were collected elsewhere."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from merging.calibration.contract import Calibration, Gram
from merging.recipe import Assignment, MergingError

T = TypeVar("T")


class GivenCalibration(Calibration):
    """Statistics in memory. Contents are what :meth:`merging.pool.Pool.content` says of the sources.

    Args:
        grams: content -> tensor name -> its inputs; a tensor that is not there is no linear weight.
        sequential: assignment by content -> the same, of inputs from layers merged so.
        fishers: content -> tensor name -> diagonal Fisher information, of the tensor's shape, ≥ 0.
        inputs: content -> the inputs themselves.
        fingerprint: of the data; by default a hash of the statistics.
    """

    def __init__(
        self,
        grams: Mapping[str, Mapping[str, Gram]] | None = None,
        *,
        sequential: Mapping[Assignment, Mapping[str, Mapping[str, Gram]]] | None = None,
        fishers: Mapping[str, Mapping[str, Tensor]] | None = None,
        inputs: Mapping[str, Sequence[Mapping[str, Tensor]]] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self._grams = grams or {}
        self._sequential = sequential or {}
        self._fishers = fishers or {}
        self._inputs = inputs or {}
        self._fingerprint = fingerprint or self._hash()

    @property
    def fingerprint(self) -> str:
        """As given, or of the statistics."""
        return self._fingerprint

    def gram(self, content: str, name: str) -> Gram | None:
        """See :meth:`Calibration.gram`."""
        return _of(content, self._grams, "Gram matrices").get(name)

    def sequential_gram(self, content: str, name: str, assignment: Assignment) -> Gram | None:
        """See :meth:`Calibration.sequential_gram`."""
        if assignment not in self._sequential:
            raise MergingError(f"no inputs were collected for a merge by {assignment.as_data()}")
        return _of(content, self._sequential[assignment], "Gram matrices").get(name)

    def fisher(self, content: str, name: str) -> Tensor:
        """See :meth:`Calibration.fisher`."""
        return _of(name, _of(content, self._fishers, "the Fisher information"), "the Fisher information").to(
            torch.float32
        )

    def fisher_norm(self, content: str) -> float:
        """See :meth:`Calibration.fisher_norm`."""
        found = _of(content, self._fishers, "the Fisher information")
        return math.sqrt(math.fsum(float(each.double().square().sum()) for each in found.values()))

    def batches(self, content: str) -> Iterable[Mapping[str, Tensor]]:
        """See :meth:`Calibration.batches`."""
        return _of(content, self._inputs, "inputs")

    def _hash(self) -> str:
        digest = hashlib.sha256()

        def add(what: tuple[object, ...], tensor: Tensor) -> None:
            digest.update(repr((*what, tuple(tensor.shape), str(tensor.dtype))).encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())

        for assignment, tables in ((None, self._grams), *self._sequential.items()):
            for content, grams in sorted(tables.items()):
                for name, gram in sorted(grams.items()):
                    add((assignment, content, name, gram.rows, gram.axis), gram.matrix)
        for content, fishers in sorted(self._fishers.items()):
            for name, fisher in sorted(fishers.items()):
                add((content, name), fisher)
        for content, inputs in sorted(self._inputs.items()):
            for number, each in enumerate(inputs):
                for name, tensor in sorted(each.items()):
                    add((content, number, name), tensor)
        return f"sha256:{digest.hexdigest()}"


def gram_of(inputs: Tensor, name: str, *, axis: int = 1, rows: int | None = None) -> Gram:
    """The Gram matrix of inputs that somebody has.

    Args:
        inputs: [tokens, in], or [stack, tokens, in] for a tensor that holds several weights.
        name: of the inputs: see :attr:`Gram.inputs`.
        axis: of the weight that the inputs run along.
        rows: what to divide by; by default the number of tokens.
    """
    wide = inputs.to(torch.float64)
    matrix = wide.mT @ wide / max(1, rows if rows is not None else wide.shape[-2])
    stack = wide.shape[0] if wide.ndim == 3 else 1
    return Gram((matrix + matrix.mT) / 2, (wide.shape[-2],) * stack, name, axis)


def _of(key: str, table: Mapping[str, T], what: str) -> T:
    if key not in table:
        raise MergingError(f"the calibration was given {what} for {', '.join(sorted(table)) or 'nothing'}, not {key}")
    return table[key]
