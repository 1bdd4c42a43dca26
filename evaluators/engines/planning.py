"""Which requests share a row and which rows a forward pass: inputs made ready, a pure function of the requests.

Requests with one context (multiple choice) become one row, a tree of tokens; contexts that begin alike (few-shot) leave
their beginning out, to be read once for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evaluators.contract import Request
from evaluators.engines.batching import batches
from evaluators.engines.logits import right_padded
from evaluators.engines.memory import BatchLimit
from evaluators.engines.prefix import Cluster, clusters

Integers = npt.NDArray[np.int64]

# Keys and values that a batch may read beside its own, in multiples of its tokens.
_READ = 16


@dataclass(frozen=True)
class Tree:
    """What makes a batch's rows trees.

    Attributes:
        segments: [rows, width] 0 for a context's tokens, k for those of its k-th branch, -1 for what fills up.
        positions: [rows, width] of each token in its request.
        beginning: the first tokens of all contexts, which the rows leave out.
        longest: tokens of the longest row, the beginning included.
        branched: requests (places in ``Batch.requests``) that share their row with other branches.
        compared: a few requests of the shortest and of the longest row.
    """

    segments: Tensor
    positions: Tensor
    beginning: tuple[int, ...]
    longest: int
    branched: list[int]
    compared: list[int]


@dataclass(frozen=True)
class Batch:
    """One forward pass.

    Attributes:
        requests: [r] indices of the requests that it answers.
        ids: [rows, width] token ids.
        lengths: [rows] tokens of each row that do not fill it up.
        index: [p] places in the flattened ``ids`` whose logits are wanted.
        places: [n] for each token of each continuation which of the ``p``, ascending.
        targets: [n] that token.
        owners: [n] whose it is, as a place in ``requests``; a request's own come in their order.
        tree: None where each row is one request, plainly.
    """

    requests: Integers
    ids: Tensor
    lengths: list[int]
    index: Tensor
    places: Integers
    targets: Integers
    owners: Integers
    tree: Tree | None = None

    def places_of(self, request: int) -> Integers:
        """Places of one request's tokens, in their order."""
        own: Integers = self.places[self.owners == request]
        return own


@dataclass
class _Group:
    """Requests with one context that are one row.

    Attributes:
        context: all of it.
        branches: what is read of their continuations, each once; none empty.
        requests: (index, branch) each; branch None where nothing is read but the context.
        branched: tokens of all branches.
    """

    context: tuple[int, ...]
    branches: dict[tuple[int, ...], int] = field(default_factory=dict)
    requests: list[tuple[int, int | None]] = field(default_factory=list)
    branched: int = 0

    def add(self, index: int, branch: tuple[int, ...]) -> None:
        if not branch:
            self.requests.append((index, None))
            return
        if branch not in self.branches:
            self.branches[branch] = len(self.branches)
            self.branched += len(branch)
        self.requests.append((index, self.branches[branch]))


class Planner:
    """Makes batches of requests.

    Args:
        limit: of the tokens of a forward pass, padding included; may change between two calls.
        scored_limit: at most so many positions whose logits are wanted a forward pass, fewer where the limit is lower
            than at first.
        worth: attending to so many positions costs what all else costs for one token.
    """

    def __init__(self, limit: BatchLimit, scored_limit: int, worth: int) -> None:
        self._limit = limit
        self._scored_limit = scored_limit
        self._worth = worth

    def passing(self, batch: Batch) -> None:
        """Take note that a batch is about to be read."""
        self._limit.passing(
            len(batch.requests), max(batch.ids.numel() / self._limit.whole, len(batch.index) / self._scored_limit)
        )

    def plain(self, requests: Sequence[Request], indices: Sequence[int]) -> Iterator[Batch]:
        """Each of the requests in a row of its own; continuations are not empty."""
        for batch in batches(
            [len(requests[index].context) + len(requests[index].continuation) - 1 for index in indices],
            tokens=self._limit.tokens,
            scored=[len(requests[index].continuation) for index in indices],
            scored_limit=self._limit.part(self._scored_limit),
        ):
            part = [indices[place] for place in batch]
            # The last token is predicted, never read.
            rows = [[*requests[index].context, *requests[index].continuation[:-1]] for index in part]
            counts = [len(requests[index].continuation) for index in part]
            columns = [
                np.arange(len(row) - count, len(row), dtype=np.int64) for row, count in zip(rows, counts, strict=True)
            ]
            ids = right_padded(rows)
            owners = np.repeat(np.arange(len(part)), counts)
            yield Batch(
                np.array(part),
                ids,
                [len(row) for row in rows],
                torch.from_numpy(np.concatenate(columns) + owners * ids.shape[1]),
                np.arange(len(owners)),
                np.concatenate([np.asarray(requests[index].continuation, dtype=np.int64) for index in part]),
                owners,
            )

    def shared(self, requests: Sequence[Request], *, apart: bool) -> Iterator[Batch]:
        """All requests whose continuations are not empty, as trees where that saves tokens.

        Args:
            requests: log-likelihoods that are asked for.
            apart: whether beginnings may be read apart.
        """
        groups = self._groups(requests)
        contexts = [group.context for group in groups]
        for part in clusters(contexts) if apart else [Cluster(0, list(range(len(groups))))]:
            chosen = [groups[place] for place in part.members]
            for batch in batches(
                [len(group.context) - part.shared + group.branched for group in chosen],
                tokens=self._limit.tokens,
                scored=[1 + group.branched for group in chosen],
                scored_limit=self._limit.part(self._scored_limit),
                rows=max(1, _READ * self._limit.tokens // part.shared) if part.shared else None,
            ):
                rows = [chosen[place] for place in batch]
                if part.shared or any(len(group.requests) > 1 for group in rows):
                    yield _tree_batch(requests, rows, part.shared)
                else:
                    yield from self.plain(requests, [group.requests[0][0] for group in rows])

    def _groups(self, requests: Sequence[Request]) -> list[_Group]:
        """Requests with one context share a row as long as that costs less than reading the context again."""
        filling: dict[tuple[int, ...], _Group] = {}
        result: list[_Group] = []
        for index, (context, continuation) in enumerate(requests):
            if not continuation:
                continue
            key, branch = tuple(context), tuple(continuation[:-1])
            group = filling.get(key)
            if group is None or not self._joins(group, branch):
                group = filling[key] = _Group(key)
                result.append(group)
            group.add(index, branch)
        return result

    def _joins(self, group: _Group, branch: tuple[int, ...]) -> bool:
        """Whether a branch costs less in the row than in one of its own.

        With a context of T tokens, A of other branches and B of its own, a row of its own reads T tokens more, and
        attends to (T + B)² pairs instead of (T + A + B)² − (T + A)² more.
        """
        context = len(group.context)
        if branch in group.branches:
            return True
        if self._limit.tokens < self._limit.whole and context + group.branched + len(branch) > self._limit.tokens:
            return False  # memory did not suffice, and a row cannot be divided
        return 2 * group.branched * len(branch) < context * (self._worth + context)


def _tree_batch(requests: Sequence[Request], groups: Sequence[_Group], shared: int) -> Batch:
    rows: list[list[int]] = []
    segments: list[list[int]] = []
    positions: list[list[int]] = []
    for group in groups:
        after = len(group.context)
        row, segment, position = list(group.context[shared:]), [0] * (after - shared), list(range(shared, after))
        for number, branch in enumerate(group.branches, start=1):
            row += branch
            segment += [number] * len(branch)
            position += range(after, after + len(branch))
        rows.append(row)
        segments.append(segment)
        positions.append(position)
    width = max(map(len, rows))
    for segment, position in zip(segments, positions, strict=True):
        # What fills up a row is at its beginning again: counting on could leave the positions that the model has.
        position += [shared] * (width - len(segment))
        segment += [-1] * (width - len(segment))
    members = [index for group in groups for index, _ in group.requests]
    local = {index: place for place, index in enumerate(members)}
    alone = [local[index] for group in groups if len(group.branches) > 1 for index, _ in group.requests]
    few = {index for group in (groups[0], groups[-1]) for index, _ in group.requests[:2] + group.requests[-2:]}
    tree = Tree(
        torch.tensor(segments),
        torch.tensor(positions),
        groups[0].context[:shared],
        shared + width,
        alone,
        sorted(local[index] for index in few),
    )
    index, places, targets, owners = _wanted(requests, groups, shared, width)
    order = np.argsort(places, kind="stable")
    return Batch(
        np.array(members),
        right_padded(rows),
        [len(row) for row in rows],
        torch.tensor(index),
        np.array(places)[order],
        np.array(targets)[order],
        np.array([local[owner] for owner in owners])[order],
        tree,
    )


def _wanted(
    requests: Sequence[Request], groups: Sequence[_Group], shared: int, width: int
) -> tuple[list[int], list[int], list[int], list[int]]:
    """``Batch.index``, and of each token its place, the token, and its request."""
    index: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for row, group in enumerate(groups):
        first = len(index)
        last = row * width + len(group.context) - shared - 1
        index += range(last, last + 1 + group.branched)
        starts: list[int] = []
        start = first + 1
        for branch in group.branches:
            starts.append(start)
            start += len(branch)
        for request, number in group.requests:
            continuation = requests[request].continuation
            places.append(first)
            if number is not None:
                places += range(starts[number], starts[number] + len(continuation) - 1)
            targets += continuation
            owners += [request] * len(continuation)
    return index, places, targets, owners
