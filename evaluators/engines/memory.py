"""What batches may take of memory: as much as was asked for, until that proves too much.

Nobody knows beforehand what a forward pass takes: it depends on the model, the length of the texts, the attention
kernels, and on who else uses the device. So the first batch that does not fit makes all batches smaller from then on,
and the evaluation is repeated. Every path scales its own limit by the same share (:func:`fitting`), and says what it is
about to run (:func:`passing`), so that a batch of one row is known to be the smallest there is.
"""

from __future__ import annotations

import gc
from typing import Protocol, runtime_checkable

import torch

from evaluators.contract import EvaluatorError

# What allocators say without an exception type of their own: of the CPU (Linux, Windows), of C++, of CUDA's and ROCm's
# libraries, of Apple's GPUs.
_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "cannot allocate memory",
    "bad_alloc",
    "out of memory",
    "alloc_failed",
    "status_not_supported: insufficient workspace",
)


class BatchLimit:
    """How many tokens a forward pass of an engine may have.

    Args:
        tokens: at first, at least 1.

    Raises:
        EvaluatorError: fewer than one.
    """

    def __init__(self, tokens: int) -> None:
        self._whole = self._tokens = _checked(tokens)
        self._rows: int | None = None
        self._used = 0.0

    @property
    def tokens(self) -> int:
        """Now."""
        return self._tokens

    @tokens.setter
    def tokens(self, value: int) -> None:
        self._tokens = _checked(value)

    @property
    def whole(self) -> int:
        """At first."""
        return self._whole

    def part(self, limit: int) -> int:
        """What is left of any other limit on the size of a batch, in the same proportion; at least 1."""
        return max(1, limit * self._tokens // self._whole)

    def passing(self, rows: int, used: float) -> None:
        """Take note of a forward pass that is about to run.

        Args:
            rows: of its batch.
            used: which share of the path's own limit it takes, that limit as it was at first.
        """
        self._rows, self._used = rows, used

    def begin(self) -> None:
        """Forget the last pass: another evaluation begins, which may be one that tells nothing of its passes."""
        self._rows, self._used = None, 0.0

    def halve(self) -> bool:
        """Make what the last pass took half as much, and the limit at least half as low.

        Returns:
            False where that pass was of a single row, or no token could be spared: nothing smaller is left to try.
        """
        if self._rows == 1 or self._tokens == 1:
            return False
        used = self._tokens if self._rows is None else min(self._tokens, int(self._used * self._whole))
        self._tokens = max(1, used // 2)
        return True


@runtime_checkable
class Halvable(Protocol):
    """An engine that makes its own batches, and can make smaller ones."""

    limit: BatchLimit

    def release(self) -> None:
        """Give back all memory that is not needed to go on."""
        ...


def fitting(engine: object, limit: int) -> int:
    """How large the batches of an evaluator that runs the module itself may be now.

    Args:
        engine: whose module it runs.
        limit: how large they are as long as memory suffices (items, tokens, values: any unit).

    Returns:
        ``limit``, or less of it, at least 1.
    """
    return engine.limit.part(limit) if isinstance(engine, Halvable) else limit


def passing(engine: object, rows: int, size: int, limit: int) -> None:
    """To be called before every forward pass by an evaluator that runs the module itself.

    Args:
        engine: whose module it runs.
        rows: items of the batch.
        size: of the batch, in the unit of ``limit``.
        limit: as given to :func:`fitting`.
    """
    if isinstance(engine, Halvable):
        engine.limit.passing(rows, size / limit)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was not enough: Python's, torch's, or one of an allocator's messages."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error).lower() for each in _MESSAGES)


def release_unused() -> None:
    """Collect garbage, and give back what torch's allocators keep for themselves. No exception that holds tensors in
    its frames may be alive: what it holds stays."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _checked(tokens: int) -> int:
    if tokens < 1:
        raise EvaluatorError(f"batch_tokens must be at least 1, got {tokens}")
    return tokens
