"""A fine-tuned or merged model's difference to its base, written as a LoRA adapter that PEFT loads.

Linear layers, convolutions, embeddings and stacks of experts become products of a chosen rank; norms and biases, which
are no matrices, are saved whole or left out. Whatever is lost is measured on what is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from merging.checkpoint import Checkpoint
from merging.durable import write_text
from merging.lora.adapter import WEIGHTS
from merging.lora.card import About, card
from merging.lora.collect import Collector, Lost, OnTensor, Parts, Rest
from merging.lora.compress import Rank, relative
from merging.lora.differences import Difference, OfModel
from merging.lora.naming import Names
from merging.lora.peft_config import adapter_config
from merging.lora.source import open_adapter
from merging.new_folder import beside, publish
from merging.opening import ADAPTER
from merging.recipe import MergingError

CARD = "README.md"

LARGE = 0.3
"""A relative error above this is worth a note: a tenth of ‖Δ‖² is lost."""

Finish = Callable[["Written", Path], None]
"""Told of the whole folder just before it gets its name: writes what else belongs into it, such as a card."""


@dataclass(frozen=True)
class Written:
    """An adapter that was written and read back.

    Attributes:
        folder: where it is.
        rank: the largest rank of a product.
        error: ‖Δ − Δ̂‖/‖Δ‖ over all tensors that may differ, those that were left out among them.
        tensors: live name -> how well its change is kept; tensors that do not differ are not among them.
        size: bytes of its weights.
        full: bytes of the base's weights.
        notes: what its user should know.
    """

    folder: Path
    rank: int
    error: float
    tensors: Mapping[str, Lost]
    size: int
    full: int
    notes: tuple[str, ...] = ()

    def counted(self, how: str) -> tuple[str, ...]:
        """Names of the tensors that were kept so."""
        return tuple(name for name, each in self.tensors.items() if each.how == how)

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder),
            "rank": self.rank,
            "error": self.error,
            "size": self.size,
            "full_size": self.full,
            "products": len(self.counted("product")),
            "whole": list(self.counted("whole")),
            "left_out": list(self.counted("left out")),
            "tensors": {
                name: {"rank": each.rank, "error": each.error, "how": each.how} for name, each in self.tensors.items()
            },
            "notes": list(self.notes),
        }


def write_adapter(
    difference: Difference,
    out: Path | str,
    rank: Rank,
    *,
    rest: Rest = "save",
    dtype: torch.dtype = torch.float32,
    about: About | None = None,
    on_tensor: OnTensor | None = None,
    finish: Finish | None = None,
) -> Written:
    """Write an adapter and its card. The folder appears whole or not at all; one tensor is in memory at a time, and the
    adapter.

    Args:
        difference: what to write, of a model (:class:`merging.lora.differences.OfModel`) or a merge.
        out: the new folder; may exist if it is empty.
        rank: of all products, or the error that each may have.
        rest: what becomes of changes that are no matrices.
        dtype: of the products.
        about: what the card and the config say of where it comes from.
        on_tensor: told of each tensor.
        finish: called with the result and the folder before that appears in its place.

    Raises:
        MergingError: nothing differs, the base's class cannot be built, the folder is not empty, or the disk is full.
    """
    out, about = Path(out), about or About()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MergingError(f"expected {out} to be a new or empty folder, found content there; choose another folder")
    base, names = difference.base, Names(difference.base)
    held = Collector(difference, rank, rest, dtype, names).collect(on_tensor)
    if not held.tensors:
        only = f"only what it cannot: {', '.join(list(held.lost)[:5])}" if held.lost else "no difference"
        raise MergingError(f"expected a model that differs from {base.path} in what an adapter can hold, found {only}")
    written = Written(
        out,
        max(held.ranks.values(), default=0),
        relative(
            sum(each.error**2 * each.square for each in held.lost.values()),
            sum(each.square for each in held.lost.values()),
        ),
        held.lost,
        sum(each.numel() * each.itemsize for each in held.tensors.values()),
        sum(each.numel * each.dtype.itemsize for each in base.tensors.values()),
        (),
    )
    written = replace(written, notes=_notes(written, rest))
    config = adapter_config(held, rank, about.base_name, names, base.config)

    def fill(folder: Path) -> None:
        save_file(held.tensors, folder / WEIGHTS, metadata={"format": "pt"})
        write_text(folder / ADAPTER, json.dumps(config, indent=2, sort_keys=True) + "\n")
        _read_back(folder, held, base)
        text = card(about, rank, written.rank, written.error, held.lost, (written.size, written.full), written.notes)
        (folder / CARD).write_bytes(text.encode("utf-8", errors="replace"))
        if finish is not None:
            finish(written, folder)

    _write(out, fill)
    return written


def export_adapter(
    base: Checkpoint,
    expert: Checkpoint,
    out: Path | str,
    rank: str,
    *,
    rest: Rest = "save",
    about: About | None = None,
    on_tensor: OnTensor | None = None,
) -> dict[str, Any]:
    """A fine-tune, an adapter or a stored vector as an adapter of a rank; the facts, for JSON.

    Args:
        base: the base.
        expert: the model, opened over that base.
        out: the new folder.
        rank: ``16``, or ``auto:0.02``.
        rest, about, on_tensor: as in :func:`write_adapter`.

    Raises:
        MergingError: as :func:`write_adapter`, no such rank, or models that do not fit each other.
    """
    about = about or About(expert.path.name, str(base.path))
    difference = OfModel(base, expert)
    return write_adapter(difference, out, Rank.parse(rank), rest=rest, about=about, on_tensor=on_tensor).as_data()


def _notes(written: Written, rest: Rest) -> tuple[str, ...]:
    """What the user of an adapter should know."""
    notes = []
    left = written.counted("left out")
    if left:
        why = {
            "save": "bare parameters, or embeddings tied to their head, which only --lora-rest all saves",
            "all": "bare parameters, which an adapter cannot hold",
            "leave": "they are no matrices",
        }
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        notes.append(
            f"the change of {', '.join(left[:5])}{more} is not in the adapter ({why[rest]}); the error counts it"
        )
    if written.error > LARGE:
        notes.append(
            f"the adapter keeps {1 - written.error**2:.0%} of ‖Δ‖²: what full fine-tuning changes is rarely of low "
            "rank; score the adapter before it is used, or take a higher rank"
        )
    if written.size > written.full:
        notes.append("the adapter is larger than the model itself: write the model, or take a lower rank")
    return tuple(notes)


def _write(out: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder beside its place, and give it its name."""
    with beside(out) as partial:
        fill(partial)
        publish(partial, out)


def _read_back(folder: Path, held: Parts, base: Checkpoint) -> None:
    """The folder is read as any adapter is, and changes what it should.

    Raises:
        MergingError: it does not.
    """
    found = open_adapter(folder, base).changes.keys()
    if found != held.stored:
        other = sorted(found ^ held.stored)
        raise MergingError(
            f"expected the adapter that was written to change {len(held.stored)} tensors of {base.path}, found that it "
            f"changes others, such as {other[0]}; nothing was left behind. Write the merge as a model instead"
        )
