"""The machine: what it is, what time a piece of work took, how fast it copies."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Spent(NamedTuple):
    """Seconds that a piece of work took.

    Attributes:
        busy: CPU time of the process, all threads; on a GPU the time between two events around the work.
        wall: by the clock.
    """

    busy: float
    wall: float


def measured(work: Callable[[], object], device: torch.device) -> Spent:
    """Do some work, and say what it took."""
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        wall = time.perf_counter()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        return Spent(begin.elapsed_time(end) / 1000.0, time.perf_counter() - wall)
    busy, wall = time.process_time(), time.perf_counter()
    work()
    return Spent(time.process_time() - busy, time.perf_counter() - wall)


class Copy:
    """Bandwidth of ``Tensor.copy_``, bytes read and bytes written.

    The buffers are filled: untouched memory is one page of zeros, which stays in the cache and doubles the figure.
    """

    def __init__(self, megabytes: int, device: torch.device) -> None:
        self._device = device
        numel = megabytes * 10**6 // 2
        self._source = torch.empty(numel, dtype=torch.bfloat16, device=device).fill_(1.5)
        self._target: Tensor = torch.empty_like(self._source).fill_(0.5)

    def bandwidth(self) -> float:
        """Bytes a second, the better of two copies."""
        spent = min(measured(lambda: self._target.copy_(self._source), self._device).busy for _ in range(2))
        return 4 * self._source.numel() / spent


def description(device: str) -> dict[str, Any]:
    """What a reader of the figures has to know."""
    about: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "memory (GB)": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
    }
    if device.startswith("cuda"):
        about["gpu"] = torch.cuda.get_device_name(device)
    return about


def memory() -> dict[str, int]:
    """Bytes of this process, as Linux counts them: ``VmHWM`` the peak, ``VmRSS`` now, ``RssAnon`` without files."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    rows = dict(line.split(":", 1) for line in text.splitlines())
    return {name: int(rows[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS", "RssAnon")}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
