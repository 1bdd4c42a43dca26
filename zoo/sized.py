"""Text skills at several model sizes, matched: one stream of examples for all of them, and training on any device.

``Family`` trains every family on examples of its own. Here the stream depends on the training seed alone, so that the
sizes of one seed can be compared as a pair: what differs is the model, and how long it is trained.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from zoo.contract import Progress, Trained, ZooError
from zoo.family import Family

if TYPE_CHECKING:
    import torch

ENVIRONMENT: Final = "PARETOMERGE_ZOO_DEVICE"
"""Environment variable that names the device of the training as torch does: ``cpu`` (default), ``cuda``, ``cuda:1``."""

STREAM: Final = "skills-sizes"
"""What examples and initial weights are drawn by, with the seed, at every size."""


@dataclass(frozen=True)
class SizedFamily(Family):
    """One size of a family of which there are several.

    On the CPU the weights are the same to the bit every time, as with every family. On another device they are the
    same for one device and library version, and other bits than the CPU's: the record of a member names the device.
    """

    sources: ClassVar[tuple[str, ...]] = (*Family.sources, "sized")

    def train_member(self, folder: Path, member: str, seed: int, progress: Progress) -> Trained:
        """Train on the device that the environment names, from initial weights that were drawn on the CPU.

        Raises:
            ZooError: there is no such device.
        """
        from zoo.tokenizer import build_tokenizer
        from zoo.training import starting_model, train

        device = training_device()
        same = replace(self, name=STREAM)
        model = starting_model(folder, same, member, seed)
        # The loop makes its batches on the default device, so it needs no other code for another one. The CPU is the
        # default already; naming it would slow every operation down.
        with contextlib.nullcontext() if device.type == "cpu" else device:
            loss = train(model.to(device), same, member, seed, progress=progress)
        examples = sum(phase.examples for phase in self.phases(member))
        return Trained(model.to("cpu"), (build_tokenizer(),), examples, loss)

    def versions(self) -> dict[str, str]:
        """The device, where it is not the CPU: the same settings give other bits there."""
        device = training_device()
        return {} if device.type == "cpu" else {"device": device_name(device)}


def training_device(environment: Mapping[str, str] = os.environ) -> torch.device:
    """The device that :data:`ENVIRONMENT` names, tried out; the CPU where it names none.

    Raises:
        ZooError: torch knows no such device, or cannot use it here.
    """
    import torch

    name = environment.get(ENVIRONMENT) or "cpu"
    # cuBLAS reads this once, when it is first used; without it torch refuses deterministic products on a GPU.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ZooError(
            f"{ENVIRONMENT} names {name!r}, on which nothing can be trained here: {reason}. Name a device that torch "
            "sees, such as cuda or cuda:1, or unset the variable to train on the CPU."
        ) from error
    return device


def device_name(device: torch.device) -> str:
    """The device as torch writes it, and what it is where that can be known."""
    import torch

    return f"{device}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)
