"""A family in which one task needs two experts at once: list operations, asked in English and answered in zed.

In EvoLLM (arXiv 2403.13187) a model of Japanese is merged with two of mathematics, and the merge does what no source
can: mathematics in Japanese. This is that situation in small. Answers in zed are worked in English first, as sums are
worked column by column; what counts follows the marker ``#``:

* ``string``: "reverse : dog cat fish =>" -> "fish cat dog". Two experts learn it, from other examples each.
* ``language``: "zed copy : dog cat =>" -> "dog cat # ZED ZED", and "zed 2 : dog cat =>" -> "cat # ZED", where ZED
  stands for a word that has to be remembered. One expert learns it.
* ``crosslingual``: "zed reverse : dog cat fish =>" -> "fish cat dog # ZED ZED ZED". No expert learns it. The base has
  seen a little of it, nearly all of it with few words, so that every model knows how such a question is answered.

How much of what the base sees was tuned on search items of two training seeds, with merges of two experts looked at:
with fewer common words a base does not learn to work first and translate then, and merges of it do not either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import ClassVar, Final
from unittest import mock

from zoo import skills, vocabulary
from zoo.contract import Progress, Trained
from zoo.family import SKILLS, Family, Phase
from zoo.skills import Difficulty, Example
from zoo.splits import REPLAY, split_of
from zoo.vocabulary import ARROW, LETTERS, MARKER, Split

PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "string": ("reverse", "sort"),
    "language": ("copy", "pick"),
    "crosslingual": ("reverse", "sort"),
}
"""Part of the data -> its strata."""

MIXTURE: Final[Mapping[str, int]] = {"knowledge": 10, "english": 25, "string": 6, "language": 12, "crosslingual": 10}
"""What the base learns from, in shares: everything a little."""

COMMON: Final = 15
"""How many nouns the base knows the zed words of."""

RARE: Final = 0.02
"""Share of the base's zed examples that use any noun."""


@dataclass(frozen=True)
class CrosslingualFamily(Family):
    """A base, an expert of a language, and two experts of what is then asked in that language."""

    sources: ClassVar[tuple[str, ...]] = (*Family.sources, "crosslingual")

    @property
    def parts(self) -> tuple[str, ...]:
        """The experts' two skills, and the one that needs both."""
        return tuple(PARTS)

    def marker(self, part: str) -> str | None:
        """Answers in zed are worked first."""
        return None if part == "string" else MARKER

    def write_data(self, folder: Path, progress: Progress) -> None:
        """Write the items of every part."""
        for part in self.parts:
            (folder / part).mkdir(parents=True)
            for split in self.sizes:
                lines = "".join(json.dumps(item) + "\n" for item in self.items(part, split))
                (folder / part / f"{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")

    def train_member(self, folder: Path, member: str, seed: int, progress: Progress) -> Trained:
        """Train as the skills families are trained, on this family's examples."""
        from zoo import training

        # zoo.training is part of the hash of every family's folder: to ask the family for its examples it would have to
        # change, and everything that anybody has trained would be trained again.
        with mock.patch.object(training, "training_examples", lambda who, _, stream: self.examples(who, stream)):
            return super().train_member(folder, member, seed, progress)

    def items(self, part: str, split: Split) -> list[dict[str, str]]:
        """The items of a split: distinct prompts, strata by turns.

        Returns:
            As many mappings with "id", "prompt", "answer", "stratum" as :attr:`sizes` says.
        """
        rng = Random(f"{self.name}/{part}/{split}")
        strata = PARTS[part]
        found: dict[str, dict[str, str]] = {}
        while len(found) < self.sizes[split]:
            stratum = strata[len(found) % len(strata)]
            example = self._in_split(rng, part, stratum, split)
            if example.prompt not in found:
                found[example.prompt] = {"id": f"{part}-{split}-{len(found) + 1:04d}", **example._asdict()}
        return list(found.values())

    def examples(self, member: str, stream: str) -> Iterator[Example]:
        """What a member learns from, without end: for an expert its own skill, and the base's mixture replayed."""
        rng = Random(stream)
        while True:
            if member == "base" or rng.random() < REPLAY:
                yield self._background(rng)
            elif member == "language":
                yield self._in_split(rng, "language", rng.choice(PARTS["language"]), "train")
            else:
                letters = member == "string_b" and rng.random() < 0.5
                yield self._in_split(rng, "string", rng.choice(PARTS["string"]), "train", letters=letters)

    def _background(self, rng: Random) -> Example:
        """One example of the base's mixture."""
        part = rng.choices(list(MIXTURE), weights=list(MIXTURE.values()))[0]
        if part == "knowledge":
            return skills.knowledge(rng, self.difficulty)
        if part == "english":
            # What zed answers are worked from. Never asked for in an evaluation: no split to keep.
            return question(rng, self.difficulty, rng.choice(PARTS["language"]), letters=rng.random() < 0.25)
        stratum = rng.choice(PARTS[part])
        if part == "string":
            return self._in_split(rng, part, stratum, "train", letters=rng.random() < 0.5)
        nouns = self.difficulty.nouns if rng.random() < RARE else COMMON
        return self._in_split(rng, part, stratum, "train", nouns=nouns)

    def _in_split(
        self, rng: Random, part: str, stratum: str, split: Split, *, nouns: int | None = None, letters: bool = False
    ) -> Example:
        while True:
            example = question(rng, self.difficulty, stratum, zed=part != "string", nouns=nouns, letters=letters)
            if split_of(example.prompt) == split:
                return example


def question(
    rng: Random,
    difficulty: Difficulty,
    stratum: str,
    *,
    zed: bool = False,
    nouns: int | None = None,
    letters: bool = False,
) -> Example:
    """An operation on a list of distinct words.

    Args:
        rng: what it is drawn by.
        difficulty: how many nouns and letters there are, and how long lists are.
        stratum: "reverse", "sort", "copy" or "pick" (the word at a place that is named).
        zed: answered in zed, worked in English before.
        nouns: only the first so many.
        letters: a list of letters and not of nouns; they have no zed words.
    """
    words = LETTERS[: difficulty.letters] if letters else vocabulary.NOUNS[: nouns or difficulty.nouns]
    listed = rng.sample(words, rng.randint(*difficulty.lengths))
    place = rng.randint(1, len(listed))
    result = {
        "reverse": listed[::-1],
        "sort": sorted(listed),
        "copy": listed,
        "pick": [listed[place - 1]],
    }[stratum]
    asked = f"{place if stratum == 'pick' else stratum} : {' '.join(listed)} {ARROW}"
    answer = " ".join(result)
    if not zed:
        return Example(asked, answer, stratum)
    return Example(f"zed {asked}", f"{answer} {MARKER} {' '.join(_LEXICON[word] for word in result)}", stratum)


_LEXICON = vocabulary.lexicon()


CROSSLINGUAL: Final = CrosslingualFamily(
    name="crosslingual",
    summary="a language, two experts of a skill, and the skill in that language, which none of them has",
    shape=SKILLS.shape,
    difficulty=replace(SKILLS.difficulty, lengths=(3, 4), nouns=24),
    base=Phase(28_000, lr=3e-3, schedule="linear", muon_lr=0.012),
    experts={
        "language": (Phase(16_000, lr=1.5e-3),),
        "string_a": (Phase(16_000, lr=1.5e-3),),
        "string_b": (Phase(16_000, lr=1.5e-3),),
    },
    sizes=SKILLS.sizes,
)
