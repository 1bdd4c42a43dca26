"""What a worker must share with the driver for its scores to belong to the run: the code, the models, the data.

Workers run elsewhere, perhaps under another installation of this package. Each says what it is before it scores
anything, and whatever differs from the driver's is an error that names it: scores of two kinds never stand in one log.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from evaluators import registry
from search.errors import SearchError

if TYPE_CHECKING:
    from search.config import LoadedConfig
    from search.setup import Setup

PACKAGES = ("search", "merging", "evaluators", "zoo")
"""Whose code makes scores, all of this project's."""

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
"""Whose versions scores may depend on."""


@dataclass(frozen=True)
class CodeIdentity:
    """Which code a process runs. Found without importing any library that it names.

    Attributes:
        packages: package of this project -> sha256 of its Python files.
        versions: library, and "python" -> version; "" where it is not installed.
        places: package of this project -> its folder, for people: it may differ.
    """

    packages: Mapping[str, str]
    versions: Mapping[str, str]
    places: Mapping[str, str] = field(default_factory=dict, compare=False)

    @staticmethod
    def here() -> CodeIdentity:
        """That of this process."""
        from merging.code import code_hash

        folders = {name: _folder(name) for name in PACKAGES}
        versions = {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}}
        return CodeIdentity(
            {name: code_hash(folder) for name, folder in folders.items()},
            versions,
            {name: str(folder) for name, folder in folders.items()},
        )

    def differences(self, other: CodeIdentity) -> list[str]:
        """What another process has that differs, in words; nothing where both are alike."""
        found = []
        for name in _differing(self.packages, other.packages):
            theirs, ours = (each.places.get(name, "?") for each in (other, self))
            where = f"it has {theirs}, the driver {ours}" if theirs != ours else f"{ours} may have changed meanwhile"
            found.append(f"its package {name!r} is other code ({where})")
        for name in _differing(self.versions, other.versions):
            theirs, ours = (each.versions.get(name) or "missing" for each in (other, self))
            found.append(f"its {name} is {theirs}, the driver's {ours}")
        return found


@dataclass(frozen=True)
class Identity:
    """What the scores of a process depend on.

    Attributes:
        code: which code it runs.
        sources: alias -> content hash of the model.
        evaluators: name -> fingerprint, and of a plug-in the hash of its source.
        engine: fingerprint of the engine; "" where the process cannot know it (vLLM, which runs in workers only).
        calibration: fingerprint of the calibration data; "" where no method needs any.
    """

    code: CodeIdentity
    sources: Mapping[str, str]
    evaluators: Mapping[str, str]
    engine: str
    calibration: str = ""

    @staticmethod
    def of(loaded: LoadedConfig, setup: Setup) -> Identity:
        """That of this process, everything loaded.

        Args:
            loaded: the run's config.
            setup: made from it.
        """
        return Identity(
            CodeIdentity.here(),
            {alias: ref.content for alias, ref in setup.sources.refs.items()},
            {name: evaluator_identity(loaded, name, each.fingerprint) for name, each in setup.evaluators.items()},
            setup.engine_fingerprint,
            "" if setup.calibration is None else setup.calibration.fingerprint,
        )

    def differences(self, other: Identity) -> list[str]:
        """What another process has that differs, in words; nothing where both are alike."""
        found = self.code.differences(other.code)
        found += [f"its model {name!r} has other weights" for name in _differing(self.sources, other.sources)]
        found += [
            f"its evaluator {name!r} has other data, options or code"
            for name in _differing(self.evaluators, other.evaluators)
        ]
        if self.calibration != other.calibration:
            found.append("its calibration data differ")
        if self.engine and self.engine != other.engine:
            found.append(f"its engine is {other.engine}, the driver's {self.engine}")
        return found


def evaluator_identity(loaded: LoadedConfig, name: str, fingerprint: str) -> str:
    """An evaluator's fingerprint, and of a plug-in its source: a changed one gives other scores."""
    kind = str(loaded.config.evaluators[name]["type"])
    if kind in registry.BUILT_IN:
        return fingerprint
    return f"{fingerprint} {registry.source_hash(kind, folder=loaded.path.parent)}"


def refuse(worker: str, differences: list[str]) -> SearchError:
    """The error for a worker that is not the driver's like.

    Args:
        worker: where it runs, for people.
        differences: at least one.
    """
    return SearchError(
        f"the worker on {worker} does not run what the driver runs, so its scores would not belong to this run: "
        f"{'; '.join(differences)}. Install the same version of paretomerge and its libraries on every node, and let "
        "every node see the same models and data (docs/distributed.md)."
    )


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SearchError(f"the package {package!r} of paretomerge is not installed here")
    return Path(next(iter(spec.submodule_search_locations)))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
