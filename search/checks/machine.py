"""Devices, workers, trackers and disk: whether this machine has what the config asks of it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from search.checks.subject import Subject
from search.errors import SearchError
from search.forecast.disk import Disk
from search.ranges import size_text

_REACHABLE = 3.0
"""Seconds to wait for the head of a cluster."""

_SPARE = 1.1
"""Beyond what a search is expected to write at most."""


def check_devices(subject: Subject) -> str:
    """The engine's device, its threads, and whether a budget of GPU-hours can be spent. Returns a device that is here:
    the engine's, or else the CPU."""
    usable = _device_here(subject)
    _check_engine(subject)
    return usable


def _device_here(subject: Subject) -> str:
    import torch

    config, findings = subject.config, subject.findings
    location = ("engine", "device")
    try:
        device = torch.device(config.engine.device)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps", "xpu"):
        findings.error(location, f"expected cpu, cuda or cuda:1, found {config.engine.device!r}")
        return "cpu"
    if device.type != "cuda":
        return str(device)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) < count:
        return str(device)
    if config.workers.address is None:  # workers elsewhere may have some
        there = f"this machine has the GPUs 0 to {count - 1}" if count else "torch finds no GPU here"
        findings.error(location, f"{there}; choose another device, such as cpu, or install torch with CUDA")
    return "cpu"


def _check_engine(subject: Subject) -> None:
    config, findings = subject.config, subject.findings
    on_cpu = not config.engine.device.startswith("cuda")
    if config.search.budget.gpu_hours is not None and on_cpu and not config.workers.gpus:
        findings.error(
            ("search", "budget", "gpu_hours"), "expected workers that have a GPU; these have none: use hours"
        )
    if config.engine.kind == "vllm" and importlib.util.find_spec("vllm") is None:
        findings.error(
            ("engine", "kind"), "expected the package vllm, which is not installed; pip install 'paretomerge[vllm]'"
        )
    cores = os.cpu_count() or 1
    if config.engine.threads is not None and config.engine.threads > cores:
        findings.warn(("engine", "threads"), f"this machine has {cores} cores; more threads than cores only wait")


def check_workers(subject: Subject) -> None:
    """Ray, its cluster, and room for the workers."""
    import torch

    settings, findings = subject.config.workers, subject.findings
    if settings.kind != "ray":
        return
    if importlib.util.find_spec("ray") is None:
        findings.error(
            ("workers", "kind"), "expected the package ray, which is not installed; pip install 'paretomerge[ray]'"
        )
        return
    from search.workers.ray import check_address, gpus_of

    with findings.at("workers"):
        gpus = gpus_of(subject.loaded, settings)
        if settings.address is not None:
            with subject.loaded.placing("workers", "address"):
                check_address(settings.address, _REACHABLE)
            return
        count, there = settings.count or 1, torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count * gpus > there + 1e-9:
            raise SearchError(
                f"expected room for {count} workers with {gpus:g} GPUs each, and this machine has {there} GPUs; take "
                "fewer workers, let them share a GPU (gpus: 0.5), or set engine.device: cpu"
            )
        threads = (settings.threads or subject.config.engine.threads or 1) * count
        cores = os.cpu_count() or 1
        if not gpus and threads > cores:
            findings.warn(
                ("workers", "count"),
                f"{count} workers with {threads // count} threads each, and this machine has {cores} cores: they will "
                "wait for each other",
            )


def check_trackers(subject: Subject) -> None:
    """Packages of experiment trackers."""
    from search.trackers import check_installed

    for name in subject.config.trackers:
        with subject.findings.at("trackers", name):
            check_installed(name)


def check_run_directory(subject: Subject, runs: Path) -> None:
    """Whether a database can be kept where the run would lie, and whether a run of that name is there already."""
    from search.filesystems import journal_for
    from search.store import DATABASE

    place = _existing(runs)
    with subject.findings.at():
        if not os.access(place, os.W_OK):
            raise SearchError(f"{place}: expected a folder that can be written, for the run directory")
        journal_for(place)
    if (runs / subject.config.name / DATABASE).exists():
        subject.findings.note(
            ("name",),
            f"there is a run at {runs / subject.config.name}: `paretomerge run` will go on with it, and refuses "
            "if anything but the budget has changed; --name starts another",
        )


def check_disk(subject: Subject, disk: Disk, runs: Path) -> None:
    """Whether what a search writes fits on the disks that it writes to.

    Args:
        subject: the config.
        disk: what it writes, by the same arithmetic as ``paretomerge plan``.
        runs: where run directories lie.
    """
    from merging.calibration.store import default_cache

    run, export, made = disk.run.high, disk.export.high, disk.virtual.high
    budget, free = ("search", "budget", "candidates"), size_text(disk.free)
    if run * _SPARE > disk.free:
        subject.findings.error(
            budget,
            f"the run directory will need up to {size_text(run)} at {runs}, and {size_text(disk.free)} are free there",
        )
    elif (run + export) * _SPARE > disk.free:
        subject.findings.warn(
            budget,
            f"the run needs up to {size_text(run)} and an export {size_text(export)} more; {free} are free at {runs}: "
            "free some space, or export to another disk",
        )
    if made * _SPARE > disk.free_cache:
        hybrid, virtual = subject.config.first is not None, subject.config.models.virtual
        what = "the experts that are made are kept" if hybrid else "virtual experts are kept in float32"
        subject.findings.error(
            ("first", "name") if hybrid and not virtual else ("models", "virtual"),
            f"{what} in {default_cache()}: they need up to {size_text(made)}, and "
            f"{size_text(disk.free_cache)} are free there; PARETOMERGE_CACHE names another folder",
        )


def _existing(place: Path) -> Path:
    """The place, or the nearest folder above it that is there."""
    place = place.absolute()
    while not place.is_dir():
        place = place.parent
    return place
