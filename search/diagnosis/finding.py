"""What a diagnosis came to: numbers, curves, the verdict, and what to say beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merging.diagnose.results import Diagnosis
    from merging.diagnose.verdicts import Verdict
    from search.diagnosis.paths import Paths
    from search.diagnosis.probing import Curves

FORMAT = "paretomerge-diagnose/1"
"""Of the command's JSON; the diagnosis within has a version of its own."""


@dataclass(frozen=True)
class Finding:
    """A diagnosis with its verdict, ready to be shown.

    Attributes:
        diagnosis: the numbers that need no data.
        verdict: in words.
        references: alias -> how the model was named, the base's among them.
        curves: what data said; None where none were asked for.
        left_out: sentences on what was not looked at.
        paths: of a config that lays paths through layers; None where weights are merged alone.
        version: of this program.
    """

    diagnosis: Diagnosis
    verdict: Verdict
    references: dict[str, str] = field(default_factory=dict)
    curves: Curves | None = None
    left_out: tuple[str, ...] = ()
    paths: Paths | None = None
    version: str = ""

    @property
    def suggests(self) -> bool:
        """Whether a space for merged weights is worth suggesting."""
        return bool(self.diagnosis.pairs) and (self.paths is None or bool(self.paths.merging))

    def as_data(self) -> dict[str, Any]:
        """Plain data: ``format``, ``models``, ``verdict``, ``diagnosis``; ``curves`` and ``paths`` where there are."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "models": self.references,
            "verdict": self.verdict.as_data(),
            "diagnosis": self.diagnosis.as_data(),
        }
        if self.curves is not None:
            data["curves"] = self.curves.as_data()
        if self.paths is not None:
            data["paths"] = self.paths.as_data()
        return data


def suggested_space(verdict: Verdict) -> str:
    """What the verdict suggests as a config's ``space``, in YAML."""
    suggested = verdict.suggested
    low, high = suggested.coefficient
    lines = ["space:", f"  methods: [{suggested.method}]", f"  coefficient: [{low:g}, {high:g}]"]
    return "\n".join([*lines, *(["  granularity: {blocks: auto}"] if suggested.borders else [])])


def shown_reference(reference: str) -> str:
    """A model's reference as a page that is sent to others may show it: of a path, the folder's name alone."""
    if "://" in reference:
        return reference
    return Path(reference).name or reference
