"""The families of text skills: their sizes, how hard the skills are, and how long each model trains.

``Family`` and not ``SkillsFamily``: the code of the training is part of the families' hash, so a name that it uses
cannot change without every model being trained again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from zoo.contract import ModelFamily, Progress, Trained
from zoo.skills import Difficulty, skills
from zoo.vocabulary import Split


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
class Family(ModelFamily):
    """A base and one expert for each skill, all small Llama models over one word-level vocabulary.

    Attributes:
        name: how it is referred to: ``zoo://<name>/<member>``.
        summary: one line for people.
        shape: of every member.
        difficulty: of the skills.
        base: the base's training.
        experts: skill -> its expert's training, round after round, each from where the last ended.
        sizes: items of each skill in each split.
    """

    sources: ClassVar[tuple[str, ...]] = ("vocabulary", "skills", "splits", "tokenizer", "muon", "training")
    measure: ClassVar[str] = "items answered right"

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

    @property
    def parts(self) -> tuple[str, ...]:
        """The skills."""
        return tuple(self.experts)

    def cost(self, member: str) -> float:
        """Examples seen."""
        return sum(phase.examples for phase in self.phases(member))

    def marker(self, part: str) -> str | None:
        """What stands before the part of an answer that counts, or None: all of it counts."""
        return skills()[part].marker

    def write_data(self, folder: Path, progress: Progress) -> None:
        """Write the items of every skill."""
        from zoo.splits import write_data

        write_data(folder, self.parts, self.difficulty, dict(self.sizes))

    def train_member(self, folder: Path, member: str, seed: int, progress: Progress) -> Trained:
        """Train a Llama model; texts are made on the way, so that none is seen twice."""
        from zoo.tokenizer import build_tokenizer
        from zoo.training import starting_model, train

        model = starting_model(folder, self, member, seed)
        loss = train(model, self, member, seed, progress=progress)
        return Trained(model, (build_tokenizer(),), sum(phase.examples for phase in self.phases(member)), loss)

    def scores(self, folder: Path, member: str, split: str) -> dict[str, float]:
        """Part of the data -> share of the items that greedy decoding answers right."""
        from zoo.scores import member_scores

        return member_scores(self, folder, member, split)


SKILLS = Family(
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

SKILLS_NANO = Family(
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
