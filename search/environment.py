"""What a run directory says beside its database: the config as given and as resolved, and where it was run."""

from __future__ import annotations

import json
import os
import platform
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


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
