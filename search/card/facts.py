"""What a model card is written from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from merging.companions import Companions
from merging.recipe import Recipe
from merging.verification import Verified
from search.card.parents import Parent, licences
from search.results import Results


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card may say.

    Attributes:
        title: of the model.
        folder: the export, where it is being written.
        recipe: what it holds, its models named as strangers may read it.
        parents: the models, the base first.
        companions: whose tokenizer and settings it has.
        verified: what reading the weights back has found.
        results: the run that found it; None for a single merge.
        candidate: its number in the run.
        rule: how it was picked, in words.
        repository: ``owner/name`` that it is to be pushed to, None where it stays.
        picture: file name of the picture of the front, None where there is none.
        repeat: commands that make it again, one a line.
        versions: package -> version that wrote it.
        mergekit: the equivalent config of mergekit, its models named like the recipe's; None where there is none.
    """

    title: str
    folder: Path
    recipe: Recipe
    parents: tuple[Parent, ...]
    companions: Companions
    verified: Verified
    results: Results | None = None
    candidate: int | None = None
    rule: str = ""
    repository: str | None = None
    picture: str | None = None
    repeat: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    mergekit: str | None = None

    @property
    def methods(self) -> list[str]:
        """Names of the merge methods, sorted."""
        return sorted({each.method for each in (*self.recipe.groups.values(), *self.recipe.tensors.values())})

    @property
    def license(self) -> str | None:
        """That of all parents; None where they differ or one states none."""
        found = licences(self.parents)
        return next(iter(found)) or None if len(found) == 1 else None

    @property
    def scored(self) -> int | None:
        """The candidate whose scores it has: itself, or the one that it repeats."""
        if self.results is None or self.candidate is None:
            return None
        of = self.results.candidate(self.candidate).duplicate_of
        return self.candidate if of is None else of

    @property
    def scored_otherwise(self) -> bool:
        """Whether the candidates were scored with other special tokens or generation settings: the base's."""
        given = self.companions.alias != self.companions.base
        return given and self.companions.special_differ and self.results is not None

    def warnings(self) -> list[str]:
        """What the person who exports should know, one sentence each."""
        found = licences(self.parents)
        said = list(self.companions.notes)
        if self.scored_otherwise:
            said.append(
                "the candidates were scored with the base's tokenizer and generation settings, which end answers at "
                "other tokens: score the export again (`paretomerge evaluate`) before you rely on the scores."
            )
        if len(found) > 1 or "" in found:
            stated = [f"{', '.join(aliases)}: {name or 'not stated'}" for name, aliases in found.items()]
            differ = f"the parents' licences differ ({'; '.join(stated)})"
            why = differ if len(found) > 1 else "no parent states a licence"
            said.append(
                f"{why}, so the card names none. Find out what they ask for, and write `license:` into README.md "
                "yourself before you share the model."
            )
        unnamed = [each.alias for each in self.parents if each.hub_id is None and each.made_by is None]
        if self.repository is not None and unnamed:
            said.append(
                f"{', '.join(unnamed)}: not known to be on the Hub, so base_model does not name them; "
                "--parent ALIAS=OWNER/NAME says where they are."
            )
        return said
