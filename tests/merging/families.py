"""A base and two experts on disk, as the fixtures of this folder make them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from merging.materialize import Sources


@dataclass(frozen=True)
class Family:
    """Folders of a base and two experts."""

    base: Path
    a: Path
    b: Path

    def load(self) -> Sources:
        return Sources.load(self.base, {"a": self.a, "b": self.b})


def save(model: PreTrainedModel, folder: Path, shard: str) -> None:
    model.save_pretrained(folder, max_shard_size=shard)
