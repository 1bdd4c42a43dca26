"""Adapters of the family's base, and the models that they are folded into.

Factors are normal numbers, scaled so that ‖τ‖/‖θ0‖ is about 1 %, as of fine-tunes; the singular values of an adapter
fall off by a factor of ten over its rank.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path

import torch
from family import WEIGHTS
from safetensors.torch import save_file
from torch import Tensor

KINDS = ("adapters", "folded")

_RELATIVE = 1e-2
_STD = 0.02


def adapters(base: Path, count: int, rank: int) -> dict[str, dict[str, Path]]:
    """Kind -> alias -> folder; what is not there is made beside the base.

    Args:
        base: folder of the base.
        count: adapters.
        rank: of each.
    """
    found: dict[str, dict[str, Path]] = {kind: {} for kind in KINDS}
    for number in range(count):
        adapter, folded = (base.parent / f"{kind}-r{rank}-{number}" for kind in KINDS)
        if not adapter.is_dir():
            _write(adapter, _adapter(base, rank, number), "adapter_model.safetensors", _config(base, rank))
        if not folded.is_dir():
            _write(folded, _folded(adapter, base), WEIGHTS, json.loads((base / "config.json").read_text()))
        found["adapters"][f"expert{number}"], found["folded"][f"expert{number}"] = adapter, folded
    return found


def _adapter(base: Path, rank: int, number: int) -> dict[str, Tensor]:
    from merging.checkpoint import Checkpoint

    tensors = {}
    fall = torch.logspace(0, -1, rank)
    for place, (name, info) in enumerate(Checkpoint.open(base).tensors.items()):
        if not name.endswith("_proj.weight"):
            continue
        generator = torch.Generator().manual_seed(1000 * number + place)
        rows, columns = info.shape
        size = _RELATIVE * _STD / math.sqrt(float(fall.square().sum()))
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) * fall * size
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
    return tensors


def _config(base: Path, rank: int) -> dict[str, object]:
    targets = [f"{each}_proj" for each in ("q", "k", "v", "o", "gate", "up", "down")]
    return {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets, "bias": "none",
        "base_model_name_or_path": base.name, "task_type": "CAUSAL_LM",
    }  # fmt: skip


def _folded(adapter: Path, base: Path) -> dict[str, Tensor]:
    from merging.checkpoint import Checkpoint
    from merging.opening import open_model

    model = open_model(adapter, Checkpoint.open(base))
    return {name: model.read(name).to(torch.float32).clone() for name in model.tensors}


def _write(folder: Path, tensors: dict[str, Tensor], file: str, config: dict[str, object]) -> None:
    """Beside its place and then renamed."""
    print(f"making {folder} …", flush=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        save_file(tensors, partial / file, metadata={"format": "pt"})
        name = "adapter_config.json" if file.startswith("adapter") else "config.json"
        (partial / name).write_text(json.dumps(config, indent=2), encoding="utf-8")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
