"""Models of which everything is known, diagnosed: what a page or a terminal must show can be said beforehand."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from merging.diagnose import Diagnosis, Settings, diagnose
from merging.opening import open_models
from merging.sources import Sources
from search.diagnosis.finding import Finding

DEPTHS = 3
SHAPE = (16, 24)
ATTENTION, MLP = "self_attn.q_proj.weight", "mlp.up_proj.weight"


@dataclass(frozen=True)
class Reason:
    """As of a verdict."""

    text: str
    effect: str = "neutral"


@dataclass(frozen=True)
class Suggested:
    """As of a verdict."""

    method: str = "task_arithmetic"
    coefficient: tuple[float, float] = (0.0, 1.2)
    borders: tuple[tuple[str, tuple[int, ...]], ...] = (("", (0, 2)),)


@dataclass(frozen=True)
class Verdict:
    """As of :mod:`merging.diagnose.verdicts`, with words of the test's own."""

    headline: str = "They can merge."
    reasons: tuple[Reason, ...] = (Reason("little conflict, but for one layer"),)
    advice: tuple[str, ...] = ("give attention in layer 1 a block of its own",)
    suggested: Suggested = Suggested()
    data: dict[str, Any] = field(default_factory=lambda: {"headline": "They can merge."})

    def as_data(self) -> dict[str, Any]:
        return self.data


def name_of(depth: int, module: str) -> str:
    return f"model.layers.{depth}.{module}"


def save(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "plain"}))
    save_file(tensors, folder / "model.safetensors")
    return folder


def planted(folder: Path, depths: int = DEPTHS) -> tuple[Path, dict[str, Path]]:
    """A base and two fine-tunes: the same change in the embedding, opposite ones in the attention of layer 1, and
    changes in halves of their own elsewhere."""
    generator = torch.Generator().manual_seed(0)
    names = [name_of(depth, module) for depth in range(depths) for module in (ATTENTION, MLP)]
    base = {name: torch.randn(SHAPE, generator=generator) for name in names}
    base["model.embed_tokens.weight"] = torch.randn(30, SHAPE[1], generator=generator)
    experts: dict[str, dict[str, Tensor]] = {"one": {}, "two": {}}
    for name, tensor in base.items():
        change = 0.1 * torch.randn(tensor.shape, generator=generator)
        left = torch.zeros_like(change)
        left[:, : SHAPE[1] // 2] = 1.0
        parts = {"one": change * left, "two": change * (1.0 - left)}
        if "embed" in name:
            parts = {"one": change, "two": change}
        elif name == name_of(1, ATTENTION):
            parts = {"one": change, "two": -change}
        for alias in experts:
            experts[alias][name] = tensor + parts[alias]
    folders = {alias: save(folder / alias, tensors) for alias, tensors in experts.items()}
    return save(folder / "base", base), folders


def diagnosed(folder: Path, depths: int = DEPTHS, **settings: Any) -> Diagnosis:
    base, experts = planted(folder, depths)
    return diagnose(Sources.opened(open_models(base, experts)), Settings(**settings))


def finding_of(diagnosis: Diagnosis, **more: Any) -> Finding:
    references = {alias: f"models/{alias}" for alias in ("base", *diagnosis.aliases)}
    return Finding(diagnosis, more.pop("verdict", Verdict()), references, version="1.2.3", **more)
