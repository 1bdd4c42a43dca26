"""The backend and the reference side by side, and what rounding may put between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import reference
import torch
from reference_pipeline import Merged
from torch import Tensor

from merging.kernel import Task, merge_tensor
from merging.methods import canonical, get
from merging.methods.contract import Values
from merging.pool import Pool
from merging.recipe import Assignment

ALIASES = "abcdefgh"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Parameters = Mapping[str, Any]


def contents_of(count: int) -> list[str]:
    """[count] content hashes of different sources."""
    return [f"sha256:{index:064x}" for index in range(count)]


def assignment_of(method: str, per_source: Sequence[Parameters], shared: Parameters) -> Assignment:
    """Sources called a, b, c, … in this order."""
    return Assignment.of(method, {ALIASES[i]: values for i, values in enumerate(per_source)}, **shared)


def backend_model(
    method: str,
    base: Mapping[str, Tensor],
    sources: Sequence[Mapping[str, Tensor]],
    per_source: Sequence[Parameters],
    shared: Parameters,
    *,
    contents: Sequence[str] = (),
    out: torch.dtype | None = None,
    chunk: int | None = None,
    pools: dict[tuple[str, ...], Pool] | None = None,
) -> dict[str, Tensor]:
    """name -> tensor, merged by the kernel of live models and exports.

    Args:
        out: the base's dtype if not given.
        chunk: as the kernel's.
        pools: aliases -> a pool of the same tensors that earlier calls used, with what it remembers of them.
    """
    spelled = canonical(assignment_of(method, per_source, shared))
    models = {"base": base, **dict(zip(ALIASES, sources, strict=False))}
    before = {(alias, name): tensor.clone() for alias, model in models.items() for name, tensor in model.items()}
    hashes = dict(zip(ALIASES, contents or contents_of(len(sources)), strict=False))
    aliases = tuple(alias for alias, _ in spelled.sources)
    pool = (pools or {}).get(aliases)
    if pool is None:
        names = tuple(sorted(base))
        pool = Pool("base", aliases, names, lambda alias, name: models[alias][name], None, hashes.__getitem__)
        if pools is not None:
            pools[aliases] = pool
    task = Task(get(spelled.method), Values.of(spelled), pool)
    merged = {name: torch.full_like(tensor, torch.nan, dtype=out or tensor.dtype) for name, tensor in base.items()}
    for name, tensor in merged.items():
        merge_tensor(name, task, tensor, chunk=chunk)
    for (alias, name), tensor in before.items():
        assert torch.equal(models[alias][name], tensor), f"{method} wrote into {alias}"
    return merged


def backend(
    method: str,
    base: Tensor,
    sources: Sequence[Tensor],
    per_source: Sequence[Parameters],
    shared: Parameters | None = None,
    *,
    name: str = "x",
    contents: Sequence[str] = (),
    out: torch.dtype | None = None,
    chunk: int | None = None,
    pools: dict[tuple[str, ...], Pool] | None = None,
) -> Tensor:
    """One merged tensor; see :func:`backend_model`."""
    models = [{name: source} for source in sources]
    merged = backend_model(
        method, {name: base}, models, per_source, shared or {}, contents=contents, out=out, chunk=chunk, pools=pools
    )
    return merged[name]


def expected(
    method: str,
    base: Tensor,
    sources: Sequence[Tensor],
    per_source: Sequence[Parameters],
    shared: Parameters | None = None,
    *,
    name: str = "x",
    contents: Sequence[str] = (),
) -> Merged:
    """What the reference makes of the same tensors."""
    contents = contents or contents_of(len(sources))
    arrays = [exact(source) for source in sources]
    return reference.compute(method, exact(base), arrays, per_source, shared or {}, name=name, contents=contents)


def exact(tensor: Tensor) -> Any:
    """The tensor's values in float64."""
    return tensor.to(torch.float64).numpy()


def differing(merged: Tensor, wanted: Merged, loose: float = 0.0) -> Any:
    """Mask of the judged elements that are further from the reference than rounding explains.

    That is one rounding to the output's dtype, and what accumulating may lose of the terms: in float32 for 16-bit
    outputs, in float64 for wider ones.

    Args:
        merged: by the backend.
        wanted: by the reference.
        loose: further error allowed, relative to the terms.
    """
    info = torch.finfo(merged.dtype)
    size = np.maximum(np.abs(wanted.value), info.smallest_normal)
    spacing = np.exp2(np.floor(np.log2(size))) * info.eps * (1 + 1e-9)
    accumulated = max(loose, 2.0**-21 if merged.dtype.itemsize == 2 else 2.0**-40)
    bound = 0.5 * spacing + accumulated * wanted.magnitude
    with np.errstate(invalid="ignore"):
        far = ~(np.abs(exact(merged) - wanted.value) <= bound)  # also what is not a number
    return far & ~wanted.doubtful
