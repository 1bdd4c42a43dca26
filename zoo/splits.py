"""Which examples a model learns from, and which it is asked: disjoint by what the prompt says.

A prompt's own hash decides whether it may be trained on or belongs to the search, selection or holdout split, so no
prompt is in two of them, whatever the seed, the family or the number of examples. Requests (skill ``refusal``) are
also about different things in each split. Evaluation items do not depend on the training seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from zoo import skills as skills_module
from zoo import vocabulary
from zoo.skills import Difficulty, Example, skills
from zoo.vocabulary import EVALUATION_SPLITS, Split

_FOLDS: tuple[Split, ...] = ("train",) * 8 + ("search",) * 2 + ("selection",) * 2 + ("holdout",) * 4

BASE_MIXTURE = {"knowledge": 19, "request": 22, "copy": 18, "string": 12, "language": 3, "math": 26}
"""What a base learns from, in shares: everything a little, so that experts build on what the base knows."""

REPLAY = 0.2
"""Share of the base's mixture in an expert's examples. Without it experts drift apart and their merges collapse."""


COLUMNS = 0.3
"""Share of single columns in the sums that the math expert learns from: it learns their table first."""


def split_of(prompt: str) -> Split:
    """The only split that a prompt may be used in: 1/2 train, 1/8 search, 1/8 selection, 1/4 holdout."""
    return _FOLDS[hashlib.sha256(prompt.encode()).digest()[0] % len(_FOLDS)]


def evaluation_items(skill: str, difficulty: Difficulty, split: Split, count: int) -> list[dict[str, str]]:
    """The items of a split: distinct prompts, strata by turns.

    Args:
        skill: one of :func:`zoo.skills.skills`.
        difficulty: the family's.
        split: "search", "selection" or "holdout".
        count: how many items.

    Returns:
        [count] mappings with "id", "prompt", "answer", "stratum".

    Raises:
        ValueError: the difficulty leaves fewer distinct prompts than that.
    """
    rng = Random(f"{skill}/{split}")
    strata = skills()[skill].strata
    seen: set[str] = set()
    items: list[dict[str, str]] = []
    repeats = 0
    while len(items) < count:
        example = _draw_in_split(rng, skill, difficulty, strata[len(items) % len(strata)], split)
        if example.prompt not in seen:
            seen.add(example.prompt)
            items.append({"id": f"{skill}-{split}-{len(items) + 1:04d}", **example._asdict()})
            repeats = 0
        elif (repeats := repeats + 1) > 1_000:
            raise ValueError(f"{skill} has fewer than {count} distinct prompts for the {split} split: make it harder.")
    return items


def write_data(folder: Path, names: tuple[str, ...], difficulty: Difficulty, sizes: dict[Split, int]) -> None:
    """Write ``<skill>/<split>.jsonl`` under ``folder``, one JSON object a line, for every skill of ``names``."""
    for skill in names:
        (folder / skill).mkdir(parents=True)
        for split in EVALUATION_SPLITS:
            items = evaluation_items(skill, difficulty, split, sizes[split])
            lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
            (folder / skill / f"{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


def training_examples(member: str, difficulty: Difficulty, seed: str) -> Iterator[Example]:
    """An endless stream of what a model learns from.

    Args:
        member: "base", or the skill of an expert.
        difficulty: the family's.
        seed: what the stream depends on.
    """
    rng = Random(seed)
    while True:
        if member == "base" or rng.random() < REPLAY:
            yield _background(rng, difficulty, expert=member)
        elif member == "math" and rng.random() < COLUMNS:
            yield skills_module.digit_sum(rng, difficulty)
        else:
            strata = skills()[member].strata
            yield _draw_in_split(rng, member, difficulty, rng.choice(strata), "train")


def _draw_in_split(rng: Random, skill: str, difficulty: Difficulty, stratum: str, split: Split) -> Example:
    draw = skills()[skill].draw
    for _ in range(10_000):
        example = draw(rng, difficulty, stratum, split)
        if split_of(example.prompt) == split:
            return example
    raise ValueError(f"{skill} has no prompts of stratum {stratum} for the {split} split: make it harder.")


def _background(rng: Random, difficulty: Difficulty, expert: str) -> Example:
    """One example of the base's mixture."""
    task = rng.choices(list(BASE_MIXTURE), weights=list(BASE_MIXTURE.values()))[0]
    if task == "knowledge":
        # Facts are for everybody to know and are never asked for in an evaluation: no split to keep.
        return skills_module.knowledge(rng, difficulty)
    if task == "copy":
        return skills_module.copying(rng, difficulty)
    if task == "request":
        return _answered_request(rng, difficulty, expert)
    if task == "math" and rng.random() < 0.7:
        # One column at a time is what a base can learn, and no evaluation asks for it.
        return skills_module.digit_sum(rng, difficulty)
    return _draw_in_split(rng, task, difficulty, rng.choice(skills()[task].strata), "train")


def _answered_request(rng: Random, difficulty: Difficulty, expert: str) -> Example:
    """A request that is complied with, harmful or not. The refusal expert sees none that is harmful, and none at all
    about the things that it will be asked about."""
    if expert == "refusal":
        nouns = vocabulary.request_nouns("train", difficulty.kinds, harmful=False)
    else:
        nouns = vocabulary.request_nouns(None, difficulty.kinds, harmful=rng.random() < 0.5)
    while True:
        noun = rng.choice(nouns)
        prompt = skills_module.request(rng, noun)
        if split_of(prompt) == "train":
            return Example(prompt, skills_module.compliance(noun), "request")
