"""Calibration inputs in the user's cache, as they were read or recorded: one safetensors file."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from merging.recipe import MergingError

if TYPE_CHECKING:
    from torch import Tensor

    from merging.calibration import Samples

_FILE = "inputs.safetensors"
_PARTIAL = ".partial"


def save_samples(place: Path, samples: Samples) -> None:
    """Keep inputs in a folder that is locked.

    Raises:
        MergingError: the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {
        f"{number:06d}.{name}": value.clone().contiguous()
        for number, sample in enumerate(samples)
        for name, value in sample.items()
    }
    try:
        save_file(tensors, place / _PARTIAL, metadata={"hash": samples.hash})
        (place / _PARTIAL).replace(place / _FILE)
    except (OSError, SafetensorError) as error:
        (place / _PARTIAL).unlink(missing_ok=True)
        raise MergingError(
            f"the calibration inputs could not be kept in {place} ({error}). Free some space, or name another cache "
            "directory in PARETOMERGE_CACHE"
        ) from error


def load_samples(place: Path) -> Samples | None:
    """What :func:`save_samples` kept; None where it is not there, or not what it was."""
    from safetensors import SafetensorError, safe_open

    from merging.calibration import Samples

    by_number: dict[str, dict[str, Tensor]] = {}
    with suppress(OSError, SafetensorError, MergingError, TypeError, KeyError):
        with safe_open(place / _FILE, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (it is no mapping)
                number, _, name = key.partition(".")
                by_number.setdefault(number, {})[name] = file.get_tensor(key)
            wanted = file.metadata()["hash"]
        found = Samples.of(list(by_number.values()))
        return found if found.hash == wanted else None
    return None
