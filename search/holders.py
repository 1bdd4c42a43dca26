"""Who holds a run: a record that one process writes and any other can judge."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import psutil

RECORD_BYTES = 1024
"""A record is rewritten in place, at one length: this needs no free block, so a full disk stops no beat."""
_SAME_START = 2.0
"""Seconds: what a process's start may differ by between two readings (the boot time has whole seconds)."""

_taken: set[str] = set()
"""Tokens of this process. One that has begun itself anew (exec) keeps its number and its start, but not these."""

Process = Literal["running", "ended", "out of sight"]


@dataclass(frozen=True)
class Machine:
    """Within what a process number means one process.

    Attributes:
        boot: the kernel's random id of this boot; "" where it has none.
        namespace: of the process numbers (a container has its own); "" where there are none.
    """

    boot: str
    namespace: str


def this_machine() -> Machine:
    """The machine that this process runs on, since its last boot."""
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return Machine(boot or f"{socket.gethostname()} {psutil.boot_time():.0f}", namespace)


@dataclass(frozen=True)
class Holder:
    """A process that holds, or held, a run.

    Attributes:
        token: random; no two takings share one.
        beat: rewritten with the next number as long as it holds.
        released: it has let go.
        flock: it holds the kernel's lock on the record's file as well, on a local file system.
        host, pid, since: for people; ``since`` in the holder's local time.
        boot, namespace: of its :class:`Machine`.
        start: seconds from boot to the start of the process: no change of the clock changes it.
    """

    token: str
    beat: int
    released: bool
    flock: bool
    host: str
    pid: int
    since: str
    boot: str
    namespace: str
    start: float

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}, since {self.since}"

    def process(self) -> Process:
        """Whether its process runs: "out of sight" on another machine, or in another container."""
        if Machine(self.boot, self.namespace) != this_machine():
            return "out of sight"
        if self.pid == os.getpid() and self.token not in _taken:
            return "ended"
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1:
                return "ended"  # while it has threads left, its files are not closed
            start = process.create_time() - psutil.boot_time()
        except psutil.NoSuchProcess:
            return "ended"
        except psutil.AccessDenied:
            return "out of sight"
        return "running" if abs(start - self.start) < _SAME_START else "ended"

    def beaten(self) -> Holder:
        """The same, one beat later."""
        return replace(self, beat=self.beat + 1)

    def to_bytes(self) -> bytes:
        """The record, :data:`RECORD_BYTES` long."""
        return json.dumps(asdict(self)).encode().ljust(RECORD_BYTES - 1) + b"\n"

    @staticmethod
    def from_bytes(record: bytes) -> Holder | None:
        """What a record says; None if it is not one, or holds what would not print as plain text."""
        try:
            read = json.loads(record)
            holder = Holder(**{each.name: read[each.name] for each in fields(Holder)})
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        texts = (holder.token, holder.host, holder.since, holder.boot, holder.namespace)
        numbers = (holder.beat, holder.pid)
        sound = (
            all(isinstance(each, str) and each.isprintable() for each in texts)
            and all(type(each) is int and each >= 0 for each in numbers)
            and type(holder.released) is bool
            and type(holder.flock) is bool
            and type(holder.start) is float
            and math.isfinite(holder.start)
            and 0 < holder.pid < 2**31
        )
        return holder if sound else None


def this_process(token: str, *, flock: bool) -> Holder:
    """The record of the process that calls, at its first beat.

    Args:
        token: random.
        flock: whether it holds the kernel's lock as well.
    """
    machine = this_machine()
    _taken.add(token)
    return Holder(
        token=token,
        beat=0,
        released=False,
        flock=flock,
        host=socket.gethostname()[:255],
        pid=os.getpid(),
        since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        boot=machine.boot,
        namespace=machine.namespace,
        start=float(psutil.Process().create_time() - psutil.boot_time()),
    )
