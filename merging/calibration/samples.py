"""Unlabelled inputs of one source: what they are checked for, what identifies them, how they are batched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from merging.recipe import MergingError

Sample = Mapping[str, Tensor]

# Masks of padding, and which of the other tensors they speak of.
_MASKS = {"attention_mask": "", "decoder_attention_mask": "decoder_"}


class Samples:
    """Inputs of a model, each the keyword arguments of its forward for one input. Build with :meth:`of`.

    Their order is that of their contents, whatever the order they were given in.
    """

    def __init__(self, ordered: Sequence[tuple[str, Sample]]):
        self._ordered = tuple(ordered)

    @staticmethod
    def of(samples: Sequence[Sample]) -> Samples:
        """Check inputs, strip their padding, and put them in order.

        Where a 2-D ``attention_mask`` says that tokens at the ends are padding, these are cut from every tensor that
        runs along it, and a mask that is then all ones is left out. ``decoder_attention_mask`` does so for tensors
        named ``decoder_…``.

        Args:
            samples: keyword argument -> tensor, with batch dimension 1; tensors without one (the patches of all images
                of an input) are allowed beside others that have it.

        Raises:
            MergingError: no samples, an empty one, something else than tensors, several inputs in one, NaN or infinity.
        """
        if not samples:
            raise MergingError("expected calibration samples, found none; give at least one input per expert")
        checked = [_stripped(_checked(sample, number), number) for number, sample in enumerate(samples)]
        return Samples(sorted(((_hash(sample), sample) for sample in checked), key=lambda pair: pair[0]))

    def __len__(self) -> int:
        return len(self._ordered)

    def __iter__(self) -> Iterator[Sample]:
        """One sample after the other, in order."""
        return (sample for _, sample in self._ordered)

    def hashed(self) -> Iterator[tuple[str, Sample]]:
        """As :meth:`__iter__`, each with the hash of its content in hex."""
        return iter(self._ordered)

    @cached_property
    def hash(self) -> str:
        """``sha256:…`` of all samples, duplicates counted; the same for any order."""
        return "sha256:" + hashlib.sha256("\n".join(digest for digest, _ in self._ordered).encode()).hexdigest()

    def batches(self, size: int) -> Iterator[Sample]:
        """Samples of equal names, dtypes and shapes together, at most ``size`` at once: none needs padding or a mask.

        Args:
            size: samples of a batch.
        """
        ordered = sorted((sample for _, sample in self._ordered), key=_signature)  # stable: contents in order
        for _, group in groupby(ordered, key=_signature):
            alike = list(group)
            step = size if all(each.ndim and each.shape[0] == 1 for each in alike[0].values()) else 1
            for start in range(0, len(alike), step):
                part = alike[start : start + step]
                yield (
                    part[0] if len(part) == 1 else {name: torch.cat([each[name] for each in part]) for name in part[0]}
                )

    @property
    def repeats_shapes(self) -> bool:
        """Whether there are samples that :meth:`batches` could put together."""
        return len({_signature(sample) for sample in self}) < len(self)

    def kinds(self) -> Iterator[Sample]:
        """One sample of each set of keyword arguments, the shortest of it."""
        smallest: dict[tuple[str, ...], Sample] = {}
        for sample in self:
            names = tuple(sorted(sample))
            if names not in smallest or _size(sample) < _size(smallest[names]):
                smallest[names] = sample
        return iter(smallest.values())


def _size(sample: Sample) -> int:
    return sum(each.numel() for each in sample.values())


def _signature(sample: Sample) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    return tuple((name, str(sample[name].dtype), tuple(sample[name].shape)) for name in sorted(sample))


def _hash(sample: Sample) -> str:
    digest = hashlib.sha256(repr(_signature(sample)).encode())
    for name in sorted(sample):
        digest.update(sample[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checked(sample: Sample, number: int) -> dict[str, Tensor]:
    where = f"calibration sample {number}"
    if not isinstance(sample, Mapping) or not sample:
        raise MergingError(f"expected {where} to be keyword arguments of the model's forward, found {sample!r}")
    for name, value in sample.items():
        if not isinstance(value, Tensor):
            raise MergingError(f"expected tensors in {where}, found {name} of type {type(value).__name__}")
        if not value.numel():
            raise MergingError(f"{where} is empty: {name} has shape {list(value.shape)}; leave such inputs out")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise MergingError(f"expected finite numbers in {where}, found NaN or infinity in {name}")
    if not any(value.ndim and value.shape[0] == 1 for value in sample.values()):
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in sample.items())
        raise MergingError(
            f"expected {where} to be one input, with batch dimension 1, found {shapes}; give the inputs of a batch one "
            "by one"
        )
    return {name: value.detach().cpu() for name, value in sample.items()}


def _stripped(sample: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    for mask_name, prefix in _MASKS.items():
        mask = sample.get(mask_name)
        if mask is None or mask.ndim != 2:
            continue
        kept = mask[0].nonzero().flatten()
        if not kept.numel():
            raise MergingError(f"calibration sample {number} is all padding by its {mask_name}; leave such inputs out")
        along = [
            name
            for name, value in sample.items()
            if 2 <= value.ndim <= 3 and value.shape[:2] == mask.shape and name.startswith("decoder_") == bool(prefix)
        ]
        if along == [mask_name]:
            continue  # it speaks of something else than positions (Whisper's frames), which the model wants whole
        start, stop = int(kept[0]), int(kept[-1]) + 1
        sample |= {name: sample[name][:, start:stop].contiguous() for name in along}
        if bool((sample[mask_name] == 1).all()):
            del sample[mask_name]
    return sample
