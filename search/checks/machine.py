"""Devices, workers, trackers and disk: whether this machine has what the config asks of it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evaluators.contract import Split
from search.checks.subject import Subject
from search.errors import SearchError

_REACHABLE = 3.0
"""Seconds to wait for the head of a cluster."""

_EVENT = 3000
"""Bytes of a candidate in the run's log, its genome apart: 3.1 kB in a run of 400 candidates with 30 genes."""

_GENE = 24
"""Bytes of a gene in the log, as text."""

_ITEM = 20
"""Bytes of one item's score of one metric, with what belongs to it: 17 to 20 in runs of this package."""

_REPORT = 6 * 10**6
"""Bytes that a report has at most."""

_SPARE = 1.1

_FINALISTS = 256
_BASELINES = 24
"""Candidates beyond these, at most, are scored on what comes after the search."""


@dataclass(frozen=True)
class Disk:
    """What a search writes, at most, in bytes.

    Attributes:
        run: the run directory, with its report.
        cache: virtual experts, beside what is in the cache already.
        export: one model.
        runs_free, cache_free: bytes that are free where the run directory and the cache lie.
    """

    run: int
    cache: int
    export: int
    runs_free: int
    cache_free: int


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


def check_disk(
    subject: Subject,
    runs: Path,
    *,
    candidates: int,
    genes: int,
    scores: Mapping[Split, int],
    parameters: int,
    live: int,
) -> Disk:
    """Whether what a search writes fits on the disks that it writes to.

    Args:
        subject: the config.
        runs: where run directories lie.
        candidates: of the whole search.
        genes: of its last stage.
        scores: split -> item scores of one candidate, over all metrics.
        parameters: of a model.
        live: bytes of what is exported.
    """
    from merging.calibration.store import default_cache

    final = min(candidates, subject.config.search.finalists or candidates, _FINALISTS) + _BASELINES
    scored = candidates * scores["search"] + final * scores["selection"] + _BASELINES * scores["holdout"]
    run = candidates * (_EVENT + genes * _GENE) + scored * _ITEM + _REPORT
    made = 4 * parameters * len(subject.config.models.virtual)  # float32
    runs_free, cache_free = _free(runs), _free(default_cache())
    found = Disk(run, made, live, runs_free, cache_free)
    budget = ("search", "budget", "candidates")
    if run * _SPARE > runs_free:
        subject.findings.error(
            budget, f"the run directory will need about {_gb(run)} at {runs}, and {_gb(runs_free)} are free there"
        )
    elif (run + live) * _SPARE > runs_free:
        subject.findings.warn(
            budget,
            f"the run needs about {_gb(run)} and an export {_gb(live)} more; {_gb(runs_free)} are free at {runs}: "
            "free some space, or export to another disk",
        )
    if made * _SPARE > cache_free:
        subject.findings.error(
            ("models", "virtual"),
            f"virtual experts are kept in float32 in {default_cache()}: they need up to {_gb(made)}, and "
            f"{_gb(cache_free)} are free there; PARETOMERGE_CACHE names another folder",
        )
    return found


def _free(place: Path) -> int:
    return shutil.disk_usage(_existing(place)).free


def _existing(place: Path) -> Path:
    """The place, or the nearest folder above it that is there."""
    place = place.absolute()
    while not place.is_dir():
        place = place.parent
    return place


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e7 else f"{size / 1e6:.2g} MB"
