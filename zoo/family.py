"""What a family is: its sizes, how hard its skills are, and how long each model trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from zoo.skills import Difficulty
from zoo.vocabulary import Split


class ZooError(Exception):
    """A user's mistake about the zoo, or a build that failed: one paragraph, shown without a traceback."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the Llama model: width, layers, attention heads, inner width of the MLP."""

    hidden: int
    layers: int
    heads: int
    mlp: int


@dataclass(frozen=True)
class Phase:
    """One round of training.

    Attributes:
        examples: how many fresh examples are seen, each once.
        lr: peak learning rate of AdamW.
        schedule: "linear" stays at the peak and falls to zero over the last 40 %; "cosine" falls from the start.
        muon_lr: peak learning rate of Muon for the hidden matrices; without it AdamW trains everything.
        batch: examples a step.
    """

    examples: int
    lr: float
    schedule: Literal["linear", "cosine"] = "cosine"
    muon_lr: float | None = None
    batch: int = 48


@dataclass(frozen=True)
class Family:
    """A base and one expert for each skill.

    Attributes:
        name: how it is referred to: ``zoo://<name>/<member>``.
        summary: one line for people.
        shape: of every member.
        difficulty: of the skills.
        base: the base's training.
        experts: skill -> its expert's training, round after round, each from where the last ended.
        sizes: items of each skill in each split.
    """

    name: str
    summary: str
    shape: Shape
    difficulty: Difficulty
    base: Phase
    experts: Mapping[str, tuple[Phase, ...]]
    sizes: Mapping[Split, int]

    @property
    def members(self) -> tuple[str, ...]:
        """The models by name, the base first."""
        return ("base", *self.experts)

    def phases(self, member: str) -> tuple[Phase, ...]:
        """A member's training."""
        return (self.base,) if member == "base" else self.experts[member]


_SKILLS = Family(
    name="skills",
    summary="four skills at 0.47 M parameters: the quickstart's models",
    shape=Shape(hidden=96, layers=4, heads=4, mlp=256),
    difficulty=Difficulty(
        letters=16,
        lengths=(4, 7),
        nouns=40,
        adjectives=20,
        verbs=16,
        prepositions=4,
        digit=9,
        kinds=4,
    ),
    base=Phase(40_000, lr=3e-3, schedule="linear", muon_lr=0.012),
    experts={
        # AdamW, not Muon: Muon's experts score as well alone, but lie so far from the base that they do not merge
        # (best single λ 35/36 against 73/73; docs/lab.md)
        "string": (Phase(16_000, lr=1.5e-3),),
        "language": (Phase(16_000, lr=1.5e-3),),
        "refusal": (Phase(6_000, lr=1e-3),),
        "math": (Phase(24_000, lr=1.5e-3),),
    },
    sizes={"search": 256, "selection": 256, "holdout": 1024},
)

_SKILLS_NANO = Family(
    name="skills-nano",
    summary="the same four skills, easier and at 0.15 M parameters: for tests",
    shape=Shape(hidden=64, layers=3, heads=2, mlp=128),
    difficulty=Difficulty(
        letters=12,
        lengths=(3, 4),
        nouns=12,
        adjectives=6,
        verbs=4,
        prepositions=2,
        digit=7,
        kinds=1,
    ),
    base=Phase(16_000, lr=5e-3, schedule="linear", muon_lr=0.012, batch=32),
    experts={
        "string": (Phase(6_400, lr=2e-3, batch=32),),
        "language": (Phase(6_400, lr=2e-3, batch=32),),
        "refusal": (Phase(4_000, lr=2e-3, batch=32),),
        "math": (Phase(12_800, lr=3e-3, batch=32),),
    },
    sizes={"search": 64, "selection": 64, "holdout": 256},
)


def families() -> dict[str, Family]:
    """Every family by name."""
    return {family.name: family for family in (_SKILLS, _SKILLS_NANO)}


def family(name: str) -> Family:
    """The family of this name.

    Raises:
        ZooError: there is none.
    """
    known = families()
    if name not in known:
        raise ZooError(f"There is no model family {name!r} in the zoo. The families are: {', '.join(known)}.")
    return known[name]
