"""What the shell is told when it completes an argument: names that are cheap to find. Nothing heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

DATABASE = "run.db"
"""As :data:`search.store.DATABASE`, whose module takes longer to import than a person waits for a completion."""

KINDS = ("methods", "evaluators", "optimizers", "presets", "runs", "metrics", "words")
"""What ``ls`` lists."""


def complete_presets(incomplete: str) -> list[tuple[str, str]]:
    """Presets with their summaries."""
    from search.presets import PRESETS

    return [(each.name, each.summary) for each in PRESETS.values() if each.name.startswith(incomplete)]


def complete_kinds(incomplete: str) -> list[str]:
    """What can be listed."""
    return _beginning(KINDS, incomplete)


def complete_names(incomplete: str) -> list[str]:
    """What can be explained by its name: methods, evaluators, …, words; keys of a config from a dot on."""
    from search.naming import key_paths, names

    return _beginning(key_paths() if "." in incomplete else names(), incomplete)


def complete_runs(incomplete: str) -> list[str]:
    """Run directories: folders with a database, in ``runs/`` and below what was typed."""
    typed = Path(incomplete)
    folder = typed if incomplete.endswith(os.sep) else typed.parent
    places = [folder] if incomplete.strip("./") or incomplete.startswith(("/", "./")) else [Path("runs"), Path()]
    found = [
        str(each) if folder != Path() or place != Path() else each.name
        for place in places
        if place.is_dir()
        for each in sorted(place.iterdir())
        if (each / DATABASE).is_file()
    ]
    return _beginning(found, incomplete) or _folders(folder, incomplete)


def complete_configs(incomplete: str) -> list[str]:
    """YAML files, and folders on the way to some."""
    typed = Path(incomplete)
    folder = typed if incomplete.endswith(os.sep) or not incomplete else typed.parent
    if not folder.is_dir():
        return []
    files = [str(each) for each in sorted(folder.iterdir()) if each.suffix in (".yaml", ".yml") and each.is_file()]
    return _beginning(files, incomplete) + _folders(folder, incomplete)


def complete_families(incomplete: str) -> list[str]:
    """Families of the zoo."""
    from zoo import families

    return _beginning(families(), incomplete)


def _folders(folder: Path, incomplete: str) -> list[str]:
    if not folder.is_dir():
        return []
    found = [f"{each}{os.sep}" for each in sorted(folder.iterdir()) if each.is_dir() and not each.name.startswith(".")]
    return _beginning(found, incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted({each for each in names if each.startswith(incomplete)})
