"""Adapters that are written: peft loads them, and they keep what they say."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from adapter_models import MODELS, save_base
from peft import PeftModel

from merging.checkpoint import Checkpoint
from merging.lora.compress import Rank
from merging.lora.differences import OfModel
from merging.lora.source import open_adapter
from merging.lora.write import Written, write_adapter


def fine_tune(name: str, base: Path, folder: Path, rank: int, rest: float = 0.0) -> Path:
    """A model whose matrices are a product of this rank away from the base's, and the rest a random bit."""
    kind, _ = MODELS[name]
    model = kind.from_pretrained(base)
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2 and parameter.shape[0] > 1:
                flat = parameter.shape[0], parameter[0].numel()
                if parameter.ndim == 3:
                    e, o, i = parameter.shape
                    parameter.add_(0.1 * torch.randn(e, o, rank) @ torch.randn(e, rank, i))
                else:
                    parameter.add_(
                        (0.1 * torch.randn(flat[0], rank) @ torch.randn(rank, flat[1])).reshape(parameter.shape)
                    )
            else:
                parameter.add_(rest * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def merged_by_peft(name: str, base: Path, adapter: Path, folder: Path) -> Checkpoint:
    kind, _ = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about what peft asks it
        model = PeftModel.from_pretrained(kind.from_pretrained(base), adapter)
    model.merge_and_unload().save_pretrained(folder)
    return Checkpoint.open(folder)


def write(base: Path, expert: Path, out: Path, rank: Rank, **options: object) -> Written:
    origin = Checkpoint.open(base)
    return write_adapter(OfModel(origin, Checkpoint.open(expert)), out, rank, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*MODELS])
def test_peft_loads_what_is_written(name: str, tmp_path: Path) -> None:
    """A difference of rank 2, norms and biases: kept to rounding, by our reader and by peft."""
    base = save_base(name, tmp_path / "base")
    expert = fine_tune(name, base, tmp_path / "expert", 2, rest=0.05)
    written = write(base, expert, tmp_path / "adapter", Rank(most=2))
    wanted, ours = Checkpoint.open(expert), open_adapter(tmp_path / "adapter", Checkpoint.open(base))
    peft = merged_by_peft(name, base, tmp_path / "adapter", tmp_path / "merged")
    print(written.notes, written.error, written.counted("whole")[:4])
    left = written.counted("left out")
    for tensor in wanted.tensors:
        assert torch.allclose(ours.read(tensor), peft.read(tensor), atol=1e-6), tensor
        if not any(tensor.endswith(each.split(".", 1)[-1]) for each in left):
            assert torch.allclose(ours.read(tensor), wanted.read(tensor), atol=2e-6), tensor
