"""A time limit on work in this process: an alarm that raises, and a watchdog for work that no alarm reaches."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# An exception that the work swallows is raised again after so many seconds.
_AGAIN = 5.0

# An alarm that comes while a context is entered or left waits for that to be done, at most so often, so many seconds.
_POLITE = frozenset({"__enter__", "__exit__", "__del__"})
_PATIENCE = 20
_PAUSE = 0.05
_FRAMES = 6

# The watchdog waits longer than the alarm by so many seconds, or by this share of the limit where that is more: a call
# into compiled code may return late, and what is raised then is the milder end.
GRACE = 30.0
_GRACE_SHARE = 0.25


class TimeIsUp(BaseException):
    """Raised inside the work. No ``Exception``: an evaluator that treats those as a wrong answer must not catch it."""


@contextmanager
def time_limit(seconds: float | None, on_hang: Callable[[], None] | None = None) -> Iterator[None]:
    """Raise :class:`TimeIsUp` in the block once it has taken ``seconds``.

    In the main thread only: elsewhere, and where the platform has no alarm, only the watchdog watches. A process has
    one alarm: where another one is set and would come first, it is left alone; else it is put back afterwards.

    Args:
        seconds: wall; None for no limit.
        on_hang: called by another thread if the block has not ended :func:`grace` seconds after that, because it
            is in compiled code that does not return to Python. What it raises is lost; it is meant to end the process.
    """
    if seconds is None or not math.isfinite(seconds):
        yield
        return
    over = threading.Event()
    if on_hang is not None:
        watchdog = threading.Thread(
            target=_watch, args=(over, seconds + grace(seconds), on_hang), name="time-limit", daemon=True
        )
        watchdog.start()
    try:
        with _alarm(seconds):
            yield
    finally:
        over.set()


def grace(seconds: float) -> float:
    """How long after a limit the watchdog still waits."""
    return max(GRACE, _GRACE_SHARE * seconds)


def _watch(over: threading.Event, seconds: float, on_hang: Callable[[], None]) -> None:
    if not over.wait(min(seconds, threading.TIMEOUT_MAX)):
        on_hang()


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    others, others_interval = signal.getitimer(signal.ITIMER_REAL)
    if 0.0 < others < seconds:
        yield
        return
    start = time.monotonic()
    armed = True
    waited = 0

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal waited
        if not armed:
            return
        if waited < _PATIENCE and _is_between(frame):
            waited += 1
            signal.setitimer(signal.ITIMER_REAL, _PAUSE, _AGAIN)
            return
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
            yield
        finally:
            armed = False  # from here on a late alarm raises nothing
            signal.setitimer(signal.ITIMER_REAL, 0.0)
    except TimeIsUp:
        armed = False  # it may have come between the end of the block and the line that says so
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        raise
    finally:
        signal.signal(signal.SIGALRM, before)
        if others > 0.0:
            left = max(others - (time.monotonic() - start), _PAUSE)
            signal.setitimer(signal.ITIMER_REAL, left, others_interval)


def _is_between(frame: FrameType | None) -> bool:
    """Whether a context is being entered or left: what it holds would neither be held nor given back."""
    for _ in range(_FRAMES):
        if frame is None:
            return False
        if frame.f_code.co_name in _POLITE:
            return True
        frame = frame.f_back
    return False
