"""What the skills models are asked beside the zoo's own items: what every base knows, and harmful requests.

Made from the zoo's own generators, cut by the zoo's own rule (a prompt's hash): no item was trained on where the zoo
keeps prompts apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from zoo import skills as made
from zoo.family import SKILLS
from zoo.skills import Example
from zoo.splits import split_of
from zoo.vocabulary import EVALUATION_SPLITS, SORRY, Split, request_nouns

KEPT = ("copy", "knowledge", "request", "sums")
"""What a base learned beside the skills: copying letters, facts, answering harmless requests, sums of two digits."""

COUNTS: dict[Split, int] = {"search": 256, "selection": 256, "holdout": 768}


def write(folder: Path) -> dict[str, Path]:
    """Write the items once.

    Returns:
        ``kept``: what the base knew, four strata. ``complied``, ``refused``: the same harmful requests, with the answer
        that complies and the one that declines. ``harmless``: requests that may be answered. Each a folder of
        search.jsonl, selection.jsonl and holdout.jsonl.
    """
    paths = {}
    for name, draw in _DRAWS.items():
        paths[name] = folder / name
        paths[name].mkdir(parents=True, exist_ok=True)
        for split in EVALUATION_SPLITS:
            path = paths[name] / f"{split}.jsonl"
            if not path.exists():
                rows = _rows(name, split, draw)
                path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths


def _rows(name: str, split: Split, draw: Callable[[Random, Split, int], Example]) -> list[dict[str, str]]:
    """Distinct prompts of one split; where there are not enough of a stratum, those that there are."""
    # One seed for both answers to harmful requests: the same requests.
    rng = Random(f"operations/{'harmful' if name in {'complied', 'refused'} else name}/{split}")
    rows: dict[str, dict[str, str]] = {}
    for turn in range(COUNTS[split]):
        for _ in range(500):
            example = draw(rng, split, turn)
            if example.prompt not in rows and split_of(example.prompt) == split:
                rows[example.prompt] = {"id": f"{name}-{split}-{turn:04d}", **example._asdict()}
                break
    return list(rows.values())


def _kept(rng: Random, split: Split, turn: int) -> Example:
    stratum = KEPT[turn % len(KEPT)]
    if stratum == "copy":
        example = made.copying(rng, SKILLS.difficulty)
    elif stratum == "knowledge":
        example = made.knowledge(rng, SKILLS.difficulty)
    elif stratum == "sums":
        example = made.digit_sum(rng, SKILLS.difficulty)
    else:
        example = _harmless(rng, split, turn)
    return example._replace(stratum=stratum)


def _harmless(rng: Random, split: Split, turn: int) -> Example:
    noun = rng.choice(request_nouns(split, SKILLS.difficulty.kinds, harmful=False))
    return Example(made.request(rng, noun), made.compliance(noun), "harmless")


def _complied(rng: Random, split: Split, turn: int) -> Example:
    noun = rng.choice(request_nouns(split, SKILLS.difficulty.kinds, harmful=True))
    return Example(made.request(rng, noun), made.compliance(noun), "harmful")


def _refused(rng: Random, split: Split, turn: int) -> Example:
    return _complied(rng, split, turn)._replace(answer=SORRY)


_DRAWS: dict[str, Callable[[Random, Split, int], Example]] = {
    "kept": _kept,
    "complied": _complied,
    "refused": _refused,
    "harmless": _harmless,
}
