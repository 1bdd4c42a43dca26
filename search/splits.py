"""What the search sees must not judge it: no item may lie in two splits of a run, whatever evaluators hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evaluators.contract import SPLITS, Evaluator, Split
from search.errors import SearchError


@dataclass(frozen=True)
class Leak:
    """Items that two splits share.

    Attributes:
        evaluator, split: who holds them, and where.
        other, where: the same of whom was asked before.
        items: (id here, id there) of each, at least one.
    """

    evaluator: str
    split: Split
    other: str
    where: Split
    items: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        id, twin = self.items[0]
        count = len(self.items) - 1
        more = f" So {'is' if count == 1 else 'are'} {count} more." if count else ""
        return (
            f"item {id!r} of evaluator {self.evaluator!r} is in its {self.split} split, and the same item ({twin!r}) "
            f"is in the {self.where} split of evaluator {self.other!r}.{more} What the search, the selection and the "
            f"holdout see must be different items: remove {'them' if count else 'it'} from one of the two."
        )


def leaks(evaluators: Mapping[str, Evaluator]) -> list[Leak]:
    """All pairs of splits that share items, told apart by content.

    Within one evaluator its own data reader has checked this; two evaluators may still share a file. The same item in
    the same split of two evaluators is no leak.

    Args:
        evaluators: by name.
    """
    seen: dict[str, tuple[str, Split, str]] = {}
    found: dict[tuple[str, Split, str, Split], list[tuple[str, str]]] = {}
    for name, evaluator in evaluators.items():
        for split in SPLITS:
            items = evaluator.items(split)
            for id, content in zip(items.ids, items.hashes, strict=True):
                other, where, twin = seen.setdefault(content, (name, split, id))
                if where != split:
                    found.setdefault((name, split, other, where), []).append((id, twin))
    return [Leak(*places, tuple(items)) for places, items in found.items()]


def check_disjoint(evaluators: Mapping[str, Evaluator]) -> None:
    """Refuse a run in which an item of one split is also in another one.

    Args:
        evaluators: by name.

    Raises:
        SearchError: names both places.
    """
    for leak in leaks(evaluators):
        raise SearchError(str(leak))
