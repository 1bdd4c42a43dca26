"""A diagnosis of models that may merge: one pass over their weights, in the memory of one tensor of each.

:meth:`merging.sources.Sources.opened` reads headers alone, and what is not finite is refused here as well: weights are
then read once.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from merging.checkpoint import Checkpoint, check_finite
from merging.diagnose.elements import count_elements
from merging.diagnose.measures import Tally
from merging.diagnose.results import Diagnosis, Settings
from merging.diagnose.spectra import SAMPLED, Product, Spectrum, alignments, compare, decompose, sampled
from merging.masks import seed32
from merging.matrices import Part, matrices
from merging.pool import Pool
from merging.recipe import Group, MergingError
from merging.scan import PLAUSIBLE
from merging.sources import Sources

# Called with how many tensors are done, how many there are, and the name of the next one; "" at the end.
OnTensor = Callable[[int, int, str], None]


def diagnose(
    sources: Sources,
    settings: Settings | None = None,
    on_tensor: OnTensor | None = None,
    *,
    contents: bool = True,
    device: torch.device | str = "cpu",
) -> Diagnosis:
    """Measure what predicts whether these models merge, of every tensor, group, kind, depth and the whole model.

    Args:
        sources: a base and one expert or more.
        settings: how; None: the usual way.
        on_tensor: is told of the progress; what it raises ends the diagnosis.
        contents: hash the models on the way.
        device: that decomposes matrices; the rest is done where the weights are.

    Raises:
        MergingError: there is no expert, a weight is not finite, a file was changed since it was opened, or there is no
            such device.
    """
    settings = settings or Settings()
    began = time.monotonic()
    place = _device(device)
    walk = Walk(sources, settings.density, settings.seed, hashing=contents)
    names = tuple(sources.tensors)
    decomposed = frozenset(names) if settings.spectra == "all" else sampled(names) if settings.spectra != "off" else ()
    whole, tensors = Tally(len(walk.aliases)), {}
    kinds: dict[str, Tally] = {}
    depths: dict[tuple[str, int], Tally] = {}
    groups: dict[Group, Tally] = {}
    estimated = 0
    with walk.threads() as threads:
        for number, name in enumerate(names):
            if on_tensor is not None:
                on_tensor(number, len(names), name)
            with sources.borrowed(name):
                tally = walk.count(name, threads)
                if name in decomposed:
                    estimated += _decompose(walk, name, tally, settings, place)
                walk.pool.forget(name)
            tensors[name] = tally.measures(walk.aliases)
            group = sources.layout.group(name)
            whole.join(tally)
            _join(groups, group, tally)
            _join(kinds, _kind(group), tally)
            if group.depth is not None:
                _join(depths, (group.stack, group.depth), tally)
        hashes = walk.contents(threads) if contents else {}
    if on_tensor is not None:
        on_tensor(len(names), len(names), "")
    measured = whole.measures(walk.aliases)
    return Diagnosis(
        aliases=walk.aliases,
        references={alias: str(sources.checkpoints[alias].path) for alias in (sources.base, *walk.aliases)},
        contents=hashes,
        settings=settings,
        whole=measured,
        kinds={kind: kinds[kind].measures(walk.aliases) for kind in sorted(kinds)},
        depths={place: depths[place].measures(walk.aliases) for place in sorted(depths)},
        groups={group: groups[group].measures(walk.aliases) for group in sorted(groups, key=lambda each: each.order)},
        tensors=tensors,
        places={name: sources.layout.group(name) for name in names},
        notes=(*sources.notes, *_notes(sources, measured.norm_ratio, measured.changed, settings, estimated)),
        seconds=time.monotonic() - began,
    )


class Walk:
    """A pass over the weights of some models, tensor by tensor, within ``sources.borrowed(name)`` each.

    Attributes:
        aliases: of the experts, in order.
        pool: the base and the experts.
    """

    def __init__(self, sources: Sources, density: float, seed: int, hashing: bool = False):
        """Begin.

        Args:
            sources: the models.
            density, seed: see :class:`merging.diagnose.results.Settings`.
            hashing: hash them on the way, for :meth:`contents`.

        Raises:
            MergingError: there is no expert.
        """
        self.sources = sources
        self.aliases = tuple(alias for alias in sources.checkpoints if alias != sources.base)
        if not self.aliases:
            raise MergingError(
                f"expected a base and one fine-tune of it or more, found {sources.path} alone; name the models that "
                "are to be merged"
            )
        shapes = {name: info.shape for name, info in sources.tensors.items()}
        self.pool = Pool(
            sources.base, self.aliases, tuple(shapes), sources.tensor, config=sources.config, shapes=shapes
        )
        self._density, self._seed, self._hashing = density, seed, hashing
        self._digests: dict[tuple[str, str], str] = {}

    @contextmanager
    def threads(self) -> Iterator[Executor]:
        """As many as torch would use; what waits for its turn is dropped when the pass is interrupted."""
        pool = ThreadPoolExecutor(torch.get_num_threads())
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)

    def count(self, name: str, threads: Executor | None = None) -> Tally:
        """What is counted element by element in a tensor.

        Raises:
            MergingError: a weight is not finite.
        """
        everyone = (self.sources.base, *self.aliases)
        tensors = [self.sources.tensor(alias, name) for alias in everyone]
        abreast = map if threads is None else threads.map
        if self._hashing:
            for alias, digest in zip(everyone, abreast(_digest, tensors), strict=True):
                self._digests[alias, name] = digest
        tally = Tally(len(self.aliases))
        # Equal elements are told apart by what the tensor holds, so that equal experts keep the same ones.
        seeds = [seed32(self._seed, str(each), "", "diagnosis") for each in abreast(_checksum, tensors[1:])]
        count_elements(tally, self.pool, name, seeds, self._density, threads)
        if not np.isfinite(tally.inner).all():
            for alias, tensor in zip(everyone, tensors, strict=True):
                check_finite(self.sources.checkpoints[alias], name, tensor)
            raise MergingError(
                f"the weights of {name} are so large that their squares overflow; are these models sound?"
            )
        return tally

    def contents(self, threads: Executor) -> dict[str, str]:
        """Alias -> content hash, of what was read on the way; only what takes no part in a merge is read for it."""
        everyone = (self.sources.base, *self.aliases)
        return dict(zip(everyone, threads.map(self._content, everyone), strict=True))

    def _content(self, alias: str) -> str:
        checkpoint = self.sources.checkpoints[alias]
        as_stored = type(checkpoint).content is Checkpoint.content and self.sources.tokenizer is None
        if "content" in vars(checkpoint) or not as_stored:
            return checkpoint.content
        lines = []
        for name, info in checkpoint.tensors.items():  # the scheme of merging.checkpoint.content_hash
            digest = self._digests.get((alias, name)) or _digest(checkpoint.read(name))
            line = [name, str(info.dtype).removeprefix("torch."), list(info.shape), digest]
            lines.append(json.dumps(line, separators=(",", ":")))
        return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


_Key = TypeVar("_Key")

# A change of a matrix: a product of factors, or what makes the difference whenever it is asked for.
_Delta = Product | Callable[[], Tensor]


def _decompose(walk: Walk, name: str, tally: Tally, settings: Settings, device: torch.device) -> int:
    """Add the spectra of a tensor's matrices to its tally.

    Returns:
        Of how many something was estimated.
    """
    estimated = 0
    for part in matrices(walk.pool, name):
        m, n = part.take(walk.pool.base(name)).shape
        exact = min(m, n) <= settings.exact_rank
        dtype = torch.float64 if exact else torch.float32
        deltas = [_delta(walk, name, number, part, tally, device, dtype) for number in range(len(walk.aliases))]
        spectra: list[Spectrum] = []
        for delta in deltas:
            matrix = delta if isinstance(delta, Product) else delta()
            spectra.append(decompose(matrix, settings.rank_k, settings.exact_rank, settings.seed))
        compare(tally, spectra, m * n, min(m, n))
        estimated += sum(each.estimated for each in spectra)
        factored = [delta for delta in deltas if isinstance(delta, Product)]
        if len(deltas) > 1 and len(factored) == len(deltas):
            tally.alignment.add(alignments(factored), m * n)
        elif len(deltas) > 1 and exact:
            tally.alignment.add(alignments([_made(delta) for delta in deltas]), m * n)
    return estimated


def _delta(
    walk: Walk, name: str, number: int, part: Part, tally: Tally, device: torch.device, dtype: torch.dtype
) -> _Delta:
    """One expert's change of one matrix [m, n]; by its factors where they are known."""
    if not tally.changed[number]:
        m, n = part.take(walk.pool.base(name)).shape
        nothing = torch.zeros(m, 0, dtype=torch.float64, device=device)
        return Product(nothing, nothing.new_zeros(0, n))
    factors = None if part.count else walk.sources.factors(walk.aliases[number], name)
    if factors is not None:
        left, right = (each.to(device, torch.float64) for each in (factors.left, factors.right))
        return Product(part.take(right), left.mT) if part.turned else Product(part.take(left), right)

    def difference() -> Tensor:
        base, expert = part.take(walk.pool.base(name)), part.take(walk.pool.source(name, number))
        return expert.to(device, dtype) - base.to(device, dtype)

    return difference


def _made(delta: _Delta) -> Callable[[], Tensor]:
    return delta.dense if isinstance(delta, Product) else delta


def _join(tallies: dict[_Key, Tally], key: _Key, tally: Tally) -> None:
    """Add a tensor to a scope."""
    tallies.setdefault(key, Tally(len(tally.changed))).join(tally)


def _kind(group: Group) -> str:
    return f"{group.stack}/{group.kind}" if group.stack else group.kind


def _device(name: torch.device | str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise MergingError(
            f"expected a device with float64 to decompose matrices on, such as cpu or cuda, found {str(name)!r} "
            f"({str(error).splitlines()[0]})"
        ) from error
    return device


def _bytes(tensor: Tensor) -> memoryview:
    data: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(_bytes(tensor))


def _notes(
    sources: Sources, ratios: Mapping[str, float], changed: Mapping[str, float], settings: Settings, estimated: int
) -> list[str]:
    notes = [
        f"{sources.checkpoints[alias].path} is far from the base: ‖τ‖/‖θ0‖ = {ratio:.2f}, where fine-tunes are under "
        f"about 0.1 and unrelated models near 1.4; is {sources.path} the base that it was trained from?"
        for alias, ratio in ratios.items()
        if ratio > PLAUSIBLE and alias not in sources.distance  # or the sources say it themselves
    ]
    notes += [
        f"{alias} has the base's weights in every tensor that is merged: there is nothing to merge"
        for alias, share in changed.items()
        if share == 0.0
    ]
    if settings.spectra == "sampled":
        notes.append(
            f"singular values were computed of up to {SAMPLED} of the tensors whose names differ only in numbers; "
            "ranks and subspaces of larger scopes are means over these"
        )
    if estimated:
        notes.append(
            f"{estimated} task vectors of matrices with more than {settings.exact_rank} rows and columns were not "
            "decomposed exactly: their effective and energy ranks are estimates, and they have no alignment"
        )
    return notes
