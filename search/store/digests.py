"""Digests that bind a run's log together: of an event with all before it, and of an evaluator's item scores.

An event's row holds the digest of the row before and its own, so that a row can be checked by itself, and the order of
rows by two neighbours. It also names the digests of the item scores that were written with it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import NamedTuple

from merging.bounded import parse_json

SIZE = 16
"""Bytes of a digest (BLAKE2b): against damage, not against somebody who rewrites the whole chain."""
GENESIS = bytes(SIZE)
"""What the first event has for the digest before it."""

_NO_SUCH_ROW = (AttributeError, TypeError, struct.error)
"""Of a damaged row not even the types of its columns are certain."""


class EventRow(NamedTuple):
    """A row of the events table.

    Attributes:
        seq: from 1, without gaps.
        at: unix time.
        kind: of :data:`search.events.EVENTS`.
        candidate: that it is about, if any.
        payload: JSON.
        items: JSON, evaluator -> hexadecimal digest of the item scores that were written with it; "" without any.
        previous: [16] digest of the row before.
        digest: [16] of all the above.
    """

    seq: int
    at: float
    kind: str
    candidate: int | None
    payload: str
    items: str
    previous: bytes
    digest: bytes

    @property
    def intact(self) -> bool:
        """Whether the row is as it was written."""
        try:
            return chained(*self[:7]).digest == self.digest
        except _NO_SUCH_ROW:
            return False

    @property
    def item_digests(self) -> dict[str, bytes]:
        """evaluator -> [16] digest of its item scores.

        Raises:
            TypeError, ValueError: the row was not written by this program.
        """
        named = dict(parse_json(self.items)) if self.items else {}
        return {evaluator: bytes.fromhex(digest) for evaluator, digest in named.items()}

    def __str__(self) -> str:
        of = "" if self.candidate is None else f" of candidate {self.candidate}"
        return f"event {self.seq} ({self.kind}{of})"


def chained(
    seq: int, at: float, kind: str, candidate: int | None, payload: str, items: str, previous: bytes
) -> EventRow:
    """The row with its digest."""
    of = b"" if candidate is None else str(candidate).encode()
    digest = _digest(struct.pack("<qd", seq, at), previous, kind.encode(), of, payload.encode(), items.encode())
    return EventRow(seq, at, kind, candidate, payload, items, previous, digest)


class ItemRow(NamedTuple):
    """A row of the item_scores table.

    Attributes:
        candidate: whose.
        split: of which items.
        evaluator: that scored them.
        item_set: hash of their ids.
        metrics: JSON list of names.
        scores: [metrics, items] float64, little-endian.
        weights: [metrics, items] float64, little-endian.
        statuses: [items] uint8, positions in :data:`evaluators.contract.Status`.
        digest: [16] of all the above.
    """

    candidate: int
    split: str
    evaluator: str
    item_set: str
    metrics: str
    scores: bytes
    weights: bytes
    statuses: bytes
    digest: bytes

    @property
    def intact(self) -> bool:
        """Whether the row is as it was written."""
        try:
            return sealed(*self[:8]).digest == self.digest
        except _NO_SUCH_ROW:
            return False

    def __str__(self) -> str:
        return f"item scores of candidate {self.candidate} ({self.split}, {self.evaluator})"


def sealed(
    candidate: int,
    split: str,
    evaluator: str,
    item_set: str,
    metrics: str,
    scores: bytes,
    weights: bytes,
    statuses: bytes,
) -> ItemRow:
    """The row with its digest."""
    texts = (str(candidate), split, evaluator, item_set, metrics)
    digest = _digest(*(each.encode() for each in texts), scores, weights, statuses)
    return ItemRow(candidate, split, evaluator, item_set, metrics, scores, weights, statuses, digest)


def items_text(digests: Mapping[str, bytes]) -> str:
    """For :attr:`EventRow.items`."""
    if not digests:
        return ""
    return json.dumps({each: digests[each].hex() for each in sorted(digests)}, separators=(",", ":"))


def set_hash(ids: str) -> str:
    """Hash of an item set.

    Args:
        ids: JSON list.
    """
    return hashlib.sha256(ids.encode()).hexdigest()


def _digest(*parts: bytes) -> bytes:
    lengths = struct.pack(f"<{len(parts)}q", *map(len, parts))  # so that no two different rows are the same bytes
    return hashlib.blake2b(lengths + b"".join(parts), digest_size=SIZE).digest()
