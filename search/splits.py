"""What the search sees must not judge it: no item may lie in two splits of a run, whatever evaluators hold it."""

from __future__ import annotations

from collections.abc import Mapping

from evaluators.contract import SPLITS, Evaluator, Split
from search.errors import SearchError


def check_disjoint(evaluators: Mapping[str, Evaluator]) -> None:
    """Refuse a run in which an item of one split is also in another one.

    Within one evaluator its own data reader has checked this; two evaluators may still share a file. The same item in
    the same split of two evaluators is no leak.

    Args:
        evaluators: by name.

    Raises:
        SearchError: names both places.
    """
    seen: dict[str, tuple[str, Split, str]] = {}
    for name, evaluator in evaluators.items():
        for split in SPLITS:
            items = evaluator.items(split)
            for id, content in zip(items.ids, items.hashes, strict=True):
                other, where, twin = seen.setdefault(content, (name, split, id))
                if where != split:
                    raise SearchError(
                        f"item {id!r} of evaluator {name!r} is in its {split} split, and the same item ({twin!r}) is "
                        f"in the {where} split of evaluator {other!r}. What the search, the selection and the holdout "
                        "see must be different items: remove it from one of the two."
                    )
