"""The families that methods are compared on: which config, on which training seed, with which inputs to calibrate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from search.config import LoadedConfig, load_config


@dataclass(frozen=True)
class Family:
    """Models to merge and what is asked of them.

    Attributes:
        config: whose models, evaluators, objectives and space are used.
        limits: split -> items of every evaluator.
        candidates: budget of every search.
        inputs: expert -> evaluator whose search items are its calibration inputs, where the names differ.
        given: expert -> (data, field) of its inputs, where the config has no evaluator of its own for it.
        extra: evaluator -> options, for inputs only: nothing is scored by it.
    """

    config: str
    limits: Mapping[str, int]
    candidates: int
    inputs: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    extra: Mapping[str, Mapping[str, str | int]] = field(default_factory=dict)

    def load(self, root: Path, seed: int, changes: Sequence[str] = (), holdout: int | None = None) -> LoadedConfig:
        """The config for the models of one training seed, with this family's limits and budget.

        Args:
            root: of the repository.
            seed: of training.
            changes: further overrides, as ``--set`` takes them.
            holdout: items of the holdout, instead of the family's own number.

        Raises:
            SearchError: what is wrong with the config.
        """
        path = root / self.config
        plain = load_config(path)
        models = plain.config.models
        counts = {**self.limits, **({} if holdout is None else {"holdout": holdout})}
        limits = ", ".join(f"{split}: {count}" for split, count in counts.items())
        sets = [f"models.base={at_seed(models.base, seed)}"]
        sets += [f"models.experts.{name}={at_seed(where, seed)}" for name, where in models.experts.items()]
        sets += [f"evaluators.{name}.limit={{{limits}}}" for name in plain.config.evaluators]
        sets += [f"search.budget.candidates={self.candidates}", "search.seed=0", "search.optimizer=sms_emoa"]
        return load_config(path, [*sets, *changes])

    def calibration(self, items: int) -> str:
        """``calibration`` of a config, as ``--set`` takes it: the same inputs as the methods alone have.

        Args:
            items: inputs of each expert.
        """
        import zoo

        given = ", ".join(
            f"{name}: {{data: {zoo.resolve(data)}, {field}: {field}}}" for name, (data, field) in self.given.items()
        )
        return f"{{items: {items}, inputs: {{{given}}}}}"

    def asked(self, expert: str) -> str:
        """The evaluator whose items are an expert's inputs."""
        return self.inputs.get(expert, expert)


def at_seed(reference: str, seed: int) -> str:
    """``zoo://family/member`` with a training seed."""
    head, _, member = reference.removeprefix("zoo://").partition("/")
    return f"zoo://{head.partition('@')[0]}@{seed}/{member}"


GENERIC = "generic"
"""An evaluator whose items are of no expert's kind."""

_SPEECH = {"type": "wer", "normalizer": "none", "max_new_tokens": 11, "batch_size": 64}

FAMILIES = {
    "skills": Family(
        "configs/three_skills.yaml", {"search": 128, "selection": 128, "holdout": 1024}, 120,
        extra={GENERIC: {"type": "exact_match", "data": "zoo://skills/data/refusal"}},
    ),
    "skills pair": Family("configs/quickstart.yaml", {"search": 128, "selection": 128, "holdout": 1024}, 120),
    "digits": Family(
        "configs/digits.yaml", {"search": 326, "selection": 216, "holdout": 344}, 150,
        extra={GENERIC: {"type": "classification", "image_field": "image", "data": "zoo://digits/data/plain"}},
    ),
    "speech": Family(
        "configs/wer.yaml",
        {"search": 112, "selection": 80, "holdout": 400},
        80,
        given={name: (f"zoo://speech/data/{name}", "audio") for name in ("specific_syn", "general_syn")},
        extra={
            name: _SPEECH | {"data": f"zoo://speech/data/{name}"} for name in ("specific_syn", "general_syn")
        },
    ),
}  # fmt: skip
