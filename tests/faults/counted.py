"""An evaluator that counts its calls in a file outside the run, and makes trouble where it is told to.

The environment says both, so that a run with trouble and one without have the same config and the same plug-in.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from evaluators import Engine, Verdict
from evaluators.exact_match import ExactMatch

CALLS = "FAULTS_CALLS"
"""Names the file that gets a line for every call, before anything is scored."""
TROUBLE = "FAULTS_TROUBLE"
"""What happens on which merges: pairs such as ``memory:3``: on those whose weights' digest is 3, modulo 8."""

KINDS = 8


class Counted(ExactMatch):
    """Exact match, counted."""

    kind = "counted"

    def score_items(self, engine: Engine, items: Sequence[Any]) -> list[Verdict]:
        """One verdict an item, unless there is trouble."""
        if CALLS in os.environ:
            handle = os.open(os.environ[CALLS], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.write(handle, f"{self.fingerprint} {len(items)}\n".encode())
            os.close(handle)
        trouble = dict(pair.split(":") for pair in os.environ.get(TROUBLE, "").split(",") if pair)
        if trouble:
            kind = weights_kind(engine)
            for what, where in trouble.items():
                if where in (str(kind), "any"):
                    return _TROUBLES[what](self, engine, items)
        return super().score_items(engine, items)


def weights_kind(engine: Engine) -> int:
    """A number in [0, 8) that depends on the live weights alone."""
    assert engine.model is not None
    digest = hashlib.sha256()
    for parameter in engine.model.parameters():
        digest.update(parameter.detach().double().sum().numpy().tobytes())
    return digest.digest()[0] % KINDS


def _nan(evaluator: Counted, engine: Engine, items: Sequence[Any]) -> list[Verdict]:
    return [Verdict({"accuracy": float("nan")}) for _ in items]


def _memory(evaluator: Counted, engine: Engine, items: Sequence[Any]) -> NoReturn:
    raise MemoryError("planted")


def _error(evaluator: Counted, engine: Engine, items: Sequence[Any]) -> NoReturn:
    raise RuntimeError("planted")


def _hang(evaluator: Counted, engine: Engine, items: Sequence[Any]) -> NoReturn:
    while True:
        time.sleep(0.05)


def _crash(evaluator: Counted, engine: Engine, items: Sequence[Any]) -> NoReturn:
    os.abort()


_TROUBLES = {"nan": _nan, "memory": _memory, "error": _error, "hang": _hang, "crash": _crash}
