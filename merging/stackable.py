"""Whether a model of rearranged blocks is one that its config can describe."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from merging.conversion import place
from merging.layout import block_of
from merging.recipe import MergingError
from merging.restack import Restacked
from merging.skeleton import load_skeleton
from merging.sources import Sources


def check_stack(sources: Sources) -> None:
    """Refuse blocks in an order that the architecture's config has no words for: where it says how many of the first
    are of one kind (``first_k_dense_replace``), or which by their number alone, a block elsewhere would be built as
    another kind, and its weights not be loaded.

    Args:
        sources: as a merge sees them; any but restacked ones are as they were. What transformers cannot build is not
            looked at.

    Raises:
        MergingError: names a tensor of a block that would not be loaded, or would be missing.
    """
    if not isinstance(sources, Restacked):
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(sources.config), encoding="utf-8")
        try:
            model = load_skeleton(folder, torch.float32)
        except MergingError:
            return
    inside = {
        name: info.shape for name, info in sources.tensors.items() if sources.layout.group(name).depth is not None
    }
    try:
        places = place(model, inside)
    except MergingError as error:
        raise _refusal(sources, str(error)) from error
    held = {where.within for where in places.views.values()} | places.pieces.keys()
    homes = {block_of(name) for name in held}
    missing = [name for name, _ in model.named_parameters() if name not in held and block_of(name) in homes]
    if places.unplaced:
        raise _refusal(sources, f"the model has no place for {places.unplaced[0]}")
    if missing:
        raise _refusal(sources, f"nothing gives the model its {missing[0]}")


def _refusal(sources: Sources, why: str) -> MergingError:
    return MergingError(
        f"the config of {sources.path} cannot describe the blocks in this order: {why}. Keep the blocks "
        "that are of another kind where they are"
    )
