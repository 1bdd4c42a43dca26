"""Licences of the models that a merge is made of, as their cards state them. What holds for the merge is for people to
find out; here is only said where they should look."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import zoo
from search.checks.models import Models, place_of
from search.checks.subject import Subject

PERMISSIVE = frozenset((
    "afl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0",
    "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "isc", "mit",
    "ms-pl", "ncsa", "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
))  # fmt: skip
"""Identifiers of the Hub's list that ask for little more than to be named: a work may carry several of them."""


def check_licences(subject: Subject, models: Models) -> None:
    """Warn of licences that are not stated, forbid what is planned, or differ from each other."""
    stated = {
        alias: licence_of(subject, alias, folder)
        for alias, folder in models.folders.items()
        if alias in models.checkpoints
    }
    unknown = [alias for alias, licence in stated.items() if licence == ""]
    if unknown:
        subject.findings.warn(
            ("models",),
            f"no licence is stated for {', '.join(unknown)} (no `license` in README.md or config.json): find out under "
            "which terms a merge of them may be used and shared",
            at_key=True,
        )
    known = {alias: licence for alias, licence in stated.items() if licence}
    for alias, licence in known.items():
        _check_terms(subject, alias, licence)
    _compare(subject, known)


def licence_of(subject: Subject, alias: str, folder: Path) -> str | None:
    """As a model's card states it, in lower case; "" where it is silent, None for models that the zoo trained here."""
    from search.card.parents import Parent, read_metadata

    given = subject.config.models
    if zoo.is_reference(given.base if alias == "base" else given.experts[alias]):
        return None
    return Parent(alias, alias, "", metadata=read_metadata(folder)).license or ""


def _check_terms(subject: Subject, alias: str, licence: str) -> None:
    words = licence.replace("_", "-").split("-")
    if "nd" in words:
        subject.findings.warn(
            place_of(alias), f"its licence is {licence}, which lets nobody share what is derived from it: a merge is"
        )
    if "nc" in words:
        subject.findings.note(
            place_of(alias), f"its licence is {licence}: a merge of it may not be used commercially either"
        )


def _compare(subject: Subject, known: Mapping[str, str]) -> None:
    by_licence: dict[str, list[str]] = {}
    for alias, licence in known.items():
        by_licence.setdefault(licence, []).append(alias)
    if len(by_licence) < 2:
        return
    listed = "; ".join(f"{licence}: {', '.join(aliases)}" for licence, aliases in by_licence.items())
    if set(by_licence) <= PERMISSIVE:
        subject.findings.note(
            ("models",), f"licences differ ({listed}): a merge has to carry all of their notices", at_key=True
        )
    else:
        subject.findings.warn(
            ("models",),
            f"licences differ ({listed}): whether they may be combined, and what then holds for a merge, has to be "
            "found out; the model card of an export leaves its licence out",
            at_key=True,
        )
