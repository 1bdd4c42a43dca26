"""How much memory can still be taken."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_CGROUPS = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes of main memory that can be taken without swapping, and without passing what a container or a batch system
    allows this process; a guess of half of the machine's where the system does not tell."""
    return min([_machine(), *_groups(Path("/proc/self/cgroup"), _CGROUPS)])


def free_on(device: torch.device) -> int:
    """Bytes of a device's memory that this process can still take.

    A process that shares its device takes its share at most
    (:func:`torch.cuda.set_per_process_memory_fraction`).
    """
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(device)
    # What torch has reserved and does not use is free to this process, and to no other.
    held = torch.cuda.memory_reserved(device)
    unused = held - torch.cuda.memory_allocated(device)
    return max(0, min(int(free), int(share * total) - held) + unused)


def _machine() -> int:
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _groups(membership: Path, root: Path) -> list[int]:
    """What each control group around this process leaves it; nothing where there is no limit.

    Args:
        membership: lines of number, controllers and path, as ``/proc/self/cgroup`` has them.
        root: where the groups are mounted.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    left = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            mount, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = Path(path.lstrip("/"))
        left += [each for part in (own, *own.parents) if (each := _left(mount / part, *names)) is not None]
    return left


def _left(group: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    try:
        most = int((group / limit).read_text(encoding="ascii"))
        used = int((group / usage).read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, most - used + int(statistics.get(reclaimable, 0)))
    except (OSError, ValueError):
        return None  # no such group, or "max"
