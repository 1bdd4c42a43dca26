"""What a run directory says beside its database: the config as given and as resolved, and where it was run."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from search.config import LoadedConfig, resolved_yaml
from search.errors import SearchError

PACKAGES = (
    "paretomerge", "torch", "transformers", "safetensors", "tokenizers", "numpy", "scipy", "cma", "cmaes", "optuna",
    "moocore",
)  # fmt: skip


def write_run_files(folder: Path, loaded: LoadedConfig) -> None:
    """Write ``config.yaml`` as given, ``resolved.yaml`` and ``environment.json``.

    Raises:
        SearchError: the folder cannot be written.
    """
    environment = {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "cpu": _processor(),
        "devices": _devices(),
    }
    files = {
        "config.yaml": loaded.source.text,
        "resolved.yaml": resolved_yaml(loaded.config),
        "environment.json": json.dumps(environment, indent=2) + "\n",
    }
    try:
        for name, text in files.items():
            if (folder / name).is_symlink():  # in a folder that somebody prepared: what it leads to is not the run's
                (folder / name).unlink()
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SearchError(f"{folder}: the run directory cannot be written: {error.strerror}") from error


def _processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not on Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _devices() -> list[str]:
    """The GPUs that this process may use; none where torch was not loaded, since then none is used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
