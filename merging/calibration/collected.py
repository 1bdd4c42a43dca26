"""Calibration from samples: collects what methods ask for, once, and reads it from disk afterwards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from merging.calibration.collecting import Wanted, collect, plan, silent
from merging.calibration.contract import Calibration, Gram
from merging.calibration.grams import CalibrationPlan, read_gram
from merging.calibration.samples import Samples
from merging.calibration.store import Entry, Store, key_of
from merging.methods.registry import source_hash
from merging.recipe import Assignment, MergingError

if TYPE_CHECKING:
    from merging.materialize import Materializer


class CollectedCalibration(Calibration):
    """Statistics that are collected on samples, and kept on disk by what they depend on."""

    def __init__(self, samples: Mapping[str, Samples], cache: Path | None = None):
        """Take the samples; nothing is run.

        Args:
            samples: content of a source (:attr:`merging.recipe.SourceRef.content`) -> its inputs.
            cache: the cache directory, by default the project's (``PARETOMERGE_CACHE``).
        """
        self._samples = dict(samples)
        self._hashes = {content: each.hash for content, each in self._samples.items()}
        named = "\n".join(f"{content} {digest}" for content, digest in sorted(self._hashes.items()))
        self._fingerprint = f"sha256:{hashlib.sha256(named.encode()).hexdigest()}"
        self.store = Store(cache)
        self._contexts: list[dict[str, str]] = []
        self._entries: dict[Wanted, Entry] = {}

    @staticmethod
    def from_cache(fingerprint: str, cache: Path | None = None, dtype: str | None = None) -> CollectedCalibration:
        """What was collected under a fingerprint, without the samples.

        Args:
            fingerprint: as recipes name it.
            cache: the cache directory, by default the project's.
            dtype: of the live model that the statistics were collected with; by default that which was last used,
                where it has them.

        Raises:
            MergingError: the cache knows nothing of it.
        """
        calibration = CollectedCalibration({}, cache)
        hashes, contexts = calibration.store.recall(fingerprint)
        fitting = [each for each in contexts if dtype is None or each.get("dtype") == dtype]
        if not fitting:
            found = f" in {dtype}; it has {', '.join(each['dtype'] for each in contexts)}" if contexts else ""
            raise MergingError(
                f"the calibration data {fingerprint} are not in the cache {calibration.store.root}{found}. Give the "
                "data that the recipe was made with, or the cache of the machine that made it (PARETOMERGE_CACHE)"
            )
        calibration._hashes, calibration._fingerprint, calibration._contexts = hashes, fingerprint, fitting[::-1]
        return calibration

    @property
    def fingerprint(self) -> str:
        """``sha256:…`` of what each source's samples are."""
        return self._fingerprint

    @property
    def contents(self) -> frozenset[str]:
        """The sources that there are samples of, or were."""
        return frozenset(self._hashes)

    def gram(self, content: str, name: str) -> Gram | None:
        """See :class:`Calibration`; zeros and no rows for a weight that inputs of other sources only reached."""
        return self._gram(Wanted("gram", content), name)

    def sequential_gram(self, content: str, name: str, assignment: Assignment) -> Gram | None:
        """See :class:`Calibration`."""
        return self._gram(Wanted("sequential_gram", content, assignment), name)

    def fisher(self, content: str, name: str) -> Tensor:
        """See :class:`Calibration`."""
        entry = self._there(Wanted("fisher", content))
        about = entry.names.get(name)
        if about is None:
            raise MergingError(f"there is no Fisher information of {name}; it is no weight of the live model")
        return entry.read(about["file"], about["tensor"])

    def fisher_norm(self, content: str) -> float:
        """See :class:`Calibration`."""
        return float(self._there(Wanted("fisher", content)).facts["norm"])

    def batches(self, content: str) -> Iterator[Mapping[str, Tensor]]:
        """See :class:`Calibration`; one sample a batch.

        Raises:
            MergingError: this source has no samples here.
        """
        return iter(self.samples(content))

    def collect(
        self,
        materializer: Materializer,
        assignments: Iterable[Assignment],
        *,
        memory: int | None = None,
        notify: Callable[[str], None] = silent,
    ) -> None:
        """Collect what the assignments' methods need and the cache does not hold.

        The live model runs each source and is left at the base. The materializer's calibration is this one afterwards.

        Args:
            materializer: of a live model over the sources.
            assignments: over the aliases of its sources; what they need is what is collected.
            memory: bytes that Gram matrices may take at once, beside the model; by default half of what is free.
            notify: called with one line per step, and with what somebody should know of the data.

        Raises:
            MergingError: a source without samples, samples that the model refuses, activations that are not finite.
        """
        collect(self, materializer, assignments, memory, notify)

    def plan(
        self, materializer: Materializer, assignments: Iterable[Assignment], *, memory: int | None = None
    ) -> CalibrationPlan:
        """What :meth:`collect` with these arguments takes where nothing is in the cache: one forward pass or two.

        Raises:
            MergingError: as :meth:`collect`.
        """
        return plan(self, materializer, assignments, memory)

    def samples(self, content: str) -> Samples:
        """The samples of a source.

        Raises:
            MergingError: there are none here.
        """
        if not self._samples:
            raise MergingError(
                f"what was collected on the data {self._fingerprint[:19]}… is in the cache, the data themselves are "
                "not, and they are needed again: give the inputs of every model that is merged"
            )
        if content not in self._samples:
            raise MergingError(
                f"there are no calibration samples of the model {content[:19]}…, only of {len(self._samples)} others; "
                "give inputs for every model that is merged"
            )
        return self._samples[content]

    def entry(self, wanted: Wanted) -> Entry | None:
        """What was collected, or is being collected; None where it is not there."""
        if wanted not in self._entries:
            contexts = self._contexts if wanted.content in self._hashes else []
            found = next(filter(None, (self.store.find(self._key(wanted, each)) for each in contexts)), None)
            if found is None:
                return None
            self._entries[wanted] = found
        return self._entries[wanted]

    def key(self, wanted: Wanted) -> str:
        """Under which the store keeps what is collected now."""
        return self._key(wanted, self._contexts[0] if self._contexts else {})

    def _key(self, wanted: Wanted, context: Mapping[str, str]) -> str:
        assignment = wanted.assignment
        context = dict(context)
        base = context.pop("base", "")
        merged = [] if assignment is None else [base, source_hash(assignment.method), _plain(assignment)]
        return key_of(wanted.statistic, wanted.content, self._hashes[wanted.content], context, merged)

    def bind(self, context: Mapping[str, str]) -> None:
        """From now on statistics are those of this live model.

        Args:
            context: what they depend on besides source and samples.
        """
        if self._contexts != [dict(context)]:
            self._contexts = [dict(context)]
            self._entries.clear()
        self.store.remember(self._fingerprint, self._hashes, context)

    def hold(self, wanted: Wanted, entry: Entry | None) -> None:
        """Read it from this entry; None: as if it had not been looked for."""
        if entry is None:
            self._entries.pop(wanted, None)
        else:
            self._entries[wanted] = entry

    def _gram(self, wanted: Wanted, name: str) -> Gram | None:
        gram = read_gram(self._there(wanted), name)
        if gram is not None:
            return gram
        for content in self._hashes:
            other = self.entry(Wanted(wanted.statistic, content, wanted.assignment))
            found = None if other is None else read_gram(other, name)
            if found is not None:
                return Gram(torch.zeros_like(found.matrix), (0,) * len(found.rows), f"none:{name}", found.axis)
        return None

    def _there(self, wanted: Wanted) -> Entry:
        found = self.entry(wanted)
        if found is None:
            what = {
                "gram": "Gram matrices",
                "sequential_gram": "sequential Gram matrices",
                "fisher": "Fisher information",
            }
            raise MergingError(
                f"the {what[wanted.statistic]} of the model {wanted.content[:19]}… were not collected on the data "
                f"{self._fingerprint[:19]}…; collect them before merging, for every model that takes part"
            )
        return found


def _plain(assignment: Assignment) -> list[Any]:
    return [assignment.method, assignment.sources, assignment.parameters]
