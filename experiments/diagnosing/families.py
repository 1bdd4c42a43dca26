"""The zoo's families whose expert pairs are merged: which members, what each was trained for, how that is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Task:
    """What one expert was trained for.

    Attributes:
        kind: type of the evaluator.
        metric: of it.
        worst: the metric's value that counts as 0; its best counts as 1. Larger than 0 where less is better.
        options: of the evaluator, beside its data.
    """

    kind: str
    metric: str
    worst: float
    options: Mapping[str, str | int]

    def utility(self, value: float) -> float:
        """The metric as something of which more is better, 1 the best."""
        return self.worst - value if self.worst else value


@dataclass(frozen=True)
class Family:
    """Experts of one base.

    Attributes:
        experts: members whose data have the same name.
        task: how each is scored.
        seeds: of training, all that are compared.
        items: split -> how many items are scored at most.
        kind: of models; families of one kind and another size are told apart by it.
    """

    experts: tuple[str, ...]
    task: Task
    seeds: tuple[int, ...]
    items: Mapping[str, int]
    kind: str

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every two experts, in order."""
        return list(combinations(self.experts, 2))


_EXACT = Task("exact_match", "accuracy", 0.0, {})
_SKILLS = ("string", "language", "math", "refusal")

FAMILIES = {
    "skills": Family(_SKILLS, _EXACT, (0, 1, 2), {"search": 256, "selection": 256, "holdout": 1024}, "skills"),
    "skills-nano": Family(_SKILLS, _EXACT, (0,), {"search": 64, "selection": 64, "holdout": 256}, "skills"),
    "digits": Family(
        ("rotated", "inverted", "noisy"),
        Task("classification", "accuracy", 0.0, {"image_field": "image"}),
        (0, 1, 2),
        {"search": 326, "selection": 216, "holdout": 344},
        "digits",
    ),
    "speech": Family(
        ("general_real", "general_syn", "specific_syn", "specific_real"),
        Task("wer", "wer_capped", 1.0, {"normalizer": "none", "max_new_tokens": 11, "batch_size": 64}),
        (0, 1, 2),
        {"search": 100, "selection": 60, "holdout": 160},
        "speech",
    ),
    "reward": Family(
        ("style", "arithmetic"),
        Task("reward_pairs", "accuracy", 0.0, {}),
        (0,),
        {"search": 240, "selection": 240, "holdout": 240},
        "reward",
    ),
}
"""speech-nano is left out: with 20 utterances of holdout its retention is mostly noise."""

LAMBDAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4)
"""λ of both task vectors. 0.5 is the average of the two experts."""

LEARNED = 0.1
"""A pair counts if each expert beats the base by this much on its own task: retention divides by that."""
