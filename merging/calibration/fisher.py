"""The diagonal of the Fisher information: F = E_x E_{y ~ p(y|x)} (∂ log p(y|x) / ∂θ)².

Labels are sampled from the model's own distribution, never taken from data (Kunstner et al. 2019, arXiv 1905.12558,
say why), one draw for each sample; gradients are of one sample at a time, since the square of a batch's gradient is
something else. As used for merging by Matena and Raffel 2022, arXiv 2111.09832.

What the distribution is, the output says: a class for each image or text, a token for each position of a language
model, drawn independently given the inputs; a Gaussian of unit variance around a single number (reward models), whose
information is the squared gradient itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from merging.calibration.grams import CalibrationPlan
from merging.calibration.samples import Sample, Samples
from merging.calibration.store import Writer
from merging.calibration.survey import forward
from merging.calibration.watching import plain_products
from merging.pool import pieces
from merging.recipe import MergingError

# Positions whose distributions are held in float64 at once: a vocabulary wide each.
_POSITIONS = 256

# Elements of a gradient that are widened to float64 at once.
_PIECE = 1 << 22

# Bytes of an element while it is collected: a float64 sum, and its gradient in float32.
_BYTES = 12


class _Holder(NamedTuple):
    """Live parameters of one memory, and the stored tensors that lie in it or that it is a piece of."""

    parameters: tuple[nn.Parameter, ...]
    names: tuple[str, ...]


def collect_fisher(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    samples: Samples,
    source: str,
    writer: Writer,
    memory: int,
) -> None:
    """Collect the diagonal of one source, which the live model holds, and write it.

    Sums are in float64, the result is float32. What has no gradient (stored statistics of the inputs, weights that no
    sample reaches) has zeros. Every pass over the samples takes as many tensors as fit memory.

    Args:
        model: live model.
        tensors: canonical name -> live view (:attr:`merging.materialize.Materializer.tensors`).
        samples: inputs.
        source: whose they are, for messages.
        writer: where the tensors go.
        memory: bytes that sums and gradients may take, but for the largest parameter, which is taken in any case.

    Raises:
        MergingError: the model gives no logits, or a gradient is not finite.
    """
    holders = _holders(model, tensors)
    seeds = [seed for seed, _ in _seeded(samples)]
    squared_norm = 0.0
    for part in _parts(holders, memory):
        sums = _sums(model, tensors, part, samples, seeds, source)
        squared_norm += _write(writer, sums, len(samples), source)
    held = {name for holder in holders for name in holder.names}
    rest = {name: torch.zeros(each.shape, dtype=torch.float64) for name, each in tensors.items() if name not in held}
    _write(writer, rest, 1, source)
    writer.facts["norm"] = math.sqrt(squared_norm)


def plan_fisher(model: nn.Module, tensors: Mapping[str, Tensor], memory: int) -> CalibrationPlan:
    """What :func:`collect_fisher` will take, with the same arguments."""
    sizes = [sum(map(_bytes, part)) for part in _parts(_holders(model, tensors), memory)]
    return CalibrationPlan(len(sizes), max(sizes), 4 * sum(each.numel() for each in tensors.values()), {})


def log_likelihood(output: Any, problem: str | None, generator: torch.Generator, source: str) -> Tensor:
    """Σ log p(y|x) of labels that are sampled from the output's own distribution: a scalar to be differentiated.

    Args:
        output: what a model returned for one sample. Its ``logits`` are [1, classes], [1, positions, classes] or
            [1, classes, height, width].
        problem: the config's ``problem_type``: ``regression`` (Gaussians of unit variance), ``multi_label_
            classification`` (independent yes or no), anything else is one class each. A single number is Gaussian.
        generator: on the CPU; the result is that of one sample for one seed.
        source: whose the model is, for messages.

    Raises:
        MergingError: no logits, or some that are not finite.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise MergingError(
            f"Fisher information needs a model with logits, a distribution over labels; {type(output).__name__} of "
            f"{source} has none. Merge such models with a method that needs inputs alone (regmean), or none"
        )
    if logits.ndim > 3:  # segmentation: the classes stand before the places
        logits = logits.movedim(1, -1)
    logits = logits.reshape(-1, logits.shape[-1])
    if bool(logits.isnan().any()):
        raise MergingError(
            f"the logits of {source} are NaN on some calibration samples: the model overflows there. Load it in a "
            "wider dtype, or leave those samples out"
        )
    if problem == "regression" or logits.shape[-1] == 1:
        if logits.numel() == 1:
            return logits.sum()  # the noise has variance 1, so its square is left out of the expectation exactly
        noise = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
        return (logits * noise.to(logits.device, logits.dtype)).sum()
    wide = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    if problem == "multi_label_classification":
        chance = torch.rand(wide.shape, generator=generator, dtype=torch.float64).to(wide.device)
        yes = chance < wide.detach().double().sigmoid()
        return -nn.functional.binary_cross_entropy_with_logits(wide, yes.to(wide.dtype), reduction="sum")
    chance = torch.rand(len(wide), generator=generator, dtype=torch.float64)
    labels = torch.cat(
        [
            _draw(wide.detach()[start : start + _POSITIONS], chance[start : start + _POSITIONS])
            for start in range(0, len(wide), _POSITIONS)
        ]
    )
    return -nn.functional.cross_entropy(wide, labels, reduction="sum")


def _draw(logits: Tensor, chance: Tensor) -> Tensor:
    """One class for each row of logits, by inversion of uniform numbers; never one of probability 0."""
    total = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(total, chance.to(total.device).unsqueeze(-1) * total[:, -1:], right=True).squeeze(-1)


def _seeded(samples: Samples) -> Iterator[tuple[int, Sample]]:
    """Samples with seeds that depend on their contents, and on how many equal ones came before."""
    seen: dict[str, int] = {}
    for digest, sample in samples.hashed():
        seen[digest] = seen.get(digest, 0) + 1
        yield int(hashlib.sha256(f"{digest}/{seen[digest]}".encode()).hexdigest()[:15], 16), sample


def _holders(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[_Holder]:
    """The model's parameters, those of one memory together, with the stored tensors they hold; others are left out.

    Those that share a stored tensor (query, key and value of one that is stored fused) stand side by side, whatever
    stands between them in the model.
    """
    memories: dict[tuple[Any, ...], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.numel():
            key = (*_where(parameter), tuple(parameter.shape), parameter.stride())
            memories.setdefault(key, []).append(parameter)
    by_storage: dict[int, list[tuple[int, int, str]]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            storage, start, stop = _where(tensor)
            by_storage.setdefault(storage, []).append((start, stop, name))
    holders: list[_Holder] = []
    for (storage, start, stop, *_), parameters in memories.items():
        names = tuple(name for first, last, name in by_storage.get(storage, ()) if first < stop and last > start)
        if names:
            holders.append(_Holder(tuple(parameters), names))
    first: dict[str, int] = {}
    for place, holder in enumerate(holders):
        for name in holder.names:
            first.setdefault(name, place)
    return sorted(holders, key=lambda holder: min(first[name] for name in holder.names))


def _where(tensor: Tensor) -> tuple[int, int, int]:
    """Its memory, and the span of it between its first and last element."""
    start = int(tensor.storage_offset())
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.untyped_storage()._cdata, start, start + steps + 1


def _bytes(holder: _Holder) -> int:
    return holder.parameters[0].numel() * _BYTES


def _parts(holders: Sequence[_Holder], memory: int) -> Iterator[list[_Holder]]:
    """Holders that fit memory together; those that share a stored tensor are never parted."""
    part: list[_Holder] = []
    size = 0
    for holder in holders:
        needed = _bytes(holder)
        joined = any(set(holder.names) & set(other.names) for other in part)
        if part and size + needed > memory and not joined:
            yield part
            part, size = [], 0
        part.append(holder)
        size += needed
    if part:
        yield part


def _sums(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    part: Sequence[_Holder],
    samples: Samples,
    seeds: Sequence[int],
    source: str,
) -> dict[str, Tensor]:
    """Σ over samples of the squared gradients, float64, by stored tensor."""
    names = {name for holder in part for name in holder.names}
    sums = {name: torch.zeros(tensors[name].shape, dtype=torch.float64) for name in sorted(names)}
    sums = {name: each.to(_accumulates_on(tensors[name].device)) for name, each in sums.items()}
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    parameters = [parameter for holder in part for parameter in holder.parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad(), plain_products(model):
            for seed, sample in zip(seeds, samples, strict=True):
                generator = torch.Generator().manual_seed(seed)
                log_likelihood(forward(model, sample, source), problem, generator, source).backward()  # type: ignore[no-untyped-call]
                for holder in part:
                    _add(holder, tensors, sums)
                model.zero_grad(set_to_none=True)
    finally:
        for parameter in parameters:
            parameter.grad = None
            parameter.requires_grad_(False)
    return sums


def _accumulates_on(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "mps" else device  # which has no float64


def _add(holder: _Holder, tensors: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    """Add the squares of a gradient to the stored tensors that it is of."""
    gradients = [parameter.grad for parameter in holder.parameters if parameter.grad is not None]
    if not gradients:
        return
    parameter = holder.parameters[0]
    if len(gradients) == 1 and len(holder.names) == 1 and _alike(gradients[0], parameter, tensors[holder.names[0]]):
        _add_squares(gradients[0].view(-1), sums[holder.names[0]].view(-1))
        return
    laid = torch.empty_strided(
        parameter.shape, parameter.stride(), dtype=torch.float64, device=_accumulates_on(parameter.device)
    )
    laid.copy_(gradients[0])
    for gradient in gradients[1:]:
        laid.add_(gradient)
    laid.square_()
    _, start, stop = _where(parameter)
    for name in holder.names:
        tensor = tensors[name]
        _, first, last = _where(tensor)
        if start <= first and last <= stop:
            sums[name].add_(laid.as_strided(tensor.shape, tensor.stride(), first - start))
        else:  # one stored tensor, several live ones
            sums[name].as_strided(parameter.shape, parameter.stride(), start - first).add_(laid)


def _alike(gradient: Tensor, parameter: Tensor, tensor: Tensor) -> bool:
    """Whether all three have their elements in one order."""
    return _where(parameter) == _where(tensor) and all(each.is_contiguous() for each in (gradient, parameter, tensor))


def _add_squares(gradient: Tensor, total: Tensor) -> None:
    """Add the squares, a piece at a time: of an embedding, a copy in float64 is large."""
    for start, stop in pieces(gradient.numel(), _PIECE):
        wide = gradient[start:stop].to(total)
        total[start:stop].addcmul_(wide, wide)


def _write(writer: Writer, sums: Mapping[str, Tensor], samples: int, source: str) -> float:
    """Write means; gives the sum of their squares."""
    if not sums:
        return 0.0
    squared = 0.0
    means = {}
    for name, each in sums.items():
        mean = each.div_(samples).to(torch.float32)
        if not bool(mean.isfinite().all()):
            raise MergingError(
                f"the gradient of {name} in {source} is not finite on some calibration samples: the model overflows "
                "there. Load it in a wider dtype, or leave those samples out"
            )
        squared += float(each.square().sum())
        means[name] = mean
    file = f"{len(writer.files):04}.safetensors"
    writer.write(file, means, {name: {"file": file, "tensor": name} for name in means})
    return squared
