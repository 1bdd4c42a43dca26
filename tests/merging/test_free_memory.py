"""Free memory is what the tightest of machine, container and batch system leaves."""

from __future__ import annotations

from pathlib import Path

from merging.memory import _groups, free_memory

GB = 10**9


def group(folder: Path, limit: str, used: int, cached: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\nother 5\n")


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def test_every_group_around_a_process_counts(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    membership.write_text("0::/slurm/job_1/step_0\n")
    group(root / "slurm/job_1/step_0", "max", 3 * GB, 0, V2)
    group(root / "slurm/job_1", str(8 * GB), 3 * GB, GB, V2)
    group(root / "slurm", str(100 * GB), 50 * GB, 0, V2)
    assert sorted(_groups(membership, root)) == [6 * GB, 50 * GB]


def test_older_groups_are_understood(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    membership.write_text("5:cpu,cpuacct:/elsewhere\n4:memory:/docker/x\n1:name=systemd:/\n")
    group(root / "memory/docker/x", str(4 * GB), 5 * GB, 0, V1)
    group(root / "memory", str(2**63 - 4096), GB, 0, V1)
    assert min(_groups(membership, root)) == 0


def test_what_cannot_be_read_limits_nothing(tmp_path: Path) -> None:
    assert _groups(tmp_path / "none", tmp_path) == []
    (tmp_path / "odd").write_text("nonsense\n::\n0::/nowhere\n")
    assert _groups(tmp_path / "odd", tmp_path) == []


def test_some_memory_is_free_here() -> None:
    total = next(int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines() if line)
    assert 0 < free_memory() <= total
