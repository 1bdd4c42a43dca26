"""How long an evaluation may take, and how often a candidate may take its process down with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SHORTEST = 600.0
"""Seconds that ``auto`` always waits: a machine that is busy with something else is no fault of the candidate's."""
TIMES_THE_LONGEST = 20.0


@dataclass
class Patience:
    """What a candidate is granted.

    Attributes:
        timeout: seconds for one task; ``auto`` is 20 times the longest one so far, 10 minutes at least, and without end
            before there was any; None is without end.
        attempts: starts of one task that may end with the process; None where its end is no sign against the candidate
            (workers of their own die alone).
        longest: seconds that a task has taken so far.
    """

    timeout: float | Literal["auto"] | None = None
    attempts: int | None = None
    longest: float = 0.0

    def observe(self, seconds: float) -> None:
        """A task has taken so long, and ended well."""
        self.longest = max(self.longest, seconds)

    def limit(self, size: float = 1.0) -> float | None:
        """Seconds for the next task.

        Args:
            size: so many times what the tasks so far were at most.
        """
        if self.timeout != "auto":
            return self.timeout
        return max(SHORTEST, TIMES_THE_LONGEST * self.longest * size) if self.longest else None

    def is_over(self, starts: int) -> bool:
        """Whether a task that was begun so often, and never ended, is not begun again."""
        return self.attempts is not None and starts >= self.attempts
