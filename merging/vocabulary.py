"""The vocabularies of the models of a merge: where their tensors have tokens, and how to match them by token string."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from merging.alignment import NONE, Alignment, Rows
from merging.checkpoint import Checkpoint
from merging.layout import Layout
from merging.recipe import MergingError
from merging.tokens import United, Vocabulary, read_vocabulary, unite

# Embeddings of other things than tokens, which may have as many rows by chance.
_NOT_TOKENS = re.compile(r"(^|_)pos|wpe|(^|_)type|segment|^patch")


@dataclass(frozen=True)
class Axes:
    """Which tensors of a model have an axis of tokens.

    Attributes:
        rows: length of that axis, the model's ``vocab_size``; 0 where it has none.
        axes: canonical name -> the axis.
    """

    rows: int
    axes: Mapping[str, int]

    @staticmethod
    def of(checkpoint: Checkpoint) -> Axes:
        """Found by structure: embeddings and heads, outside the blocks, with as many rows as the config says tokens.

        Where the config says nothing that fits, the one embedding counts, if there is one.
        """
        layout = Layout.of({name: info.shape for name, info in checkpoint.tensors.items()})
        found: dict[int, dict[str, int]] = {}
        for name, info in checkpoint.tensors.items():
            group, words = layout.group(name), name.split(".")
            if group.depth is not None or not info.shape or not info.dtype.is_floating_point:
                continue
            if group.kind in {"embedding", "head"} and not any(_NOT_TOKENS.search(word.lower()) for word in words):
                found.setdefault(info.shape[0], {})[name] = 0
            elif len(info.shape) == 2 and info.shape[0] == 1:  # a bias of the logits that is stored as one row
                found.setdefault(info.shape[1], {})[name] = 1
        for rows in _stated(checkpoint):
            if _has_matrix(checkpoint, found.get(rows, {})):
                return Axes(rows, found[rows])
        lengths = {
            length for length, axes in found.items() if any(_is_table(layout, checkpoint, name) for name in axes)
        }
        return Axes(rows := lengths.pop(), found[rows]) if len(lengths) == 1 else Axes(0, {})


def align(
    choice: str | Path, base: str, checkpoints: Mapping[str, Checkpoint], axes: Mapping[str, Axes]
) -> Alignment | None:
    """Compare the vocabularies of all models, and match their rows by token.

    Args:
        choice: ``base``, ``union``, or a folder with tokenizer files.
        base: alias of the base.
        checkpoints: alias -> model.
        axes: alias -> where it has tokens.

    Returns:
        None where all models number the same tokens in the same way, or have no tokens.

    Raises:
        MergingError: they differ and tokenizer files are missing or unreadable.
    """
    rows = {alias: each.rows for alias, each in axes.items()}
    if not rows[base]:
        return None
    known, unread = _read_all(checkpoints)
    path = None if choice in ("base", "union") else Path(choice)
    same_rows = len(set(rows.values())) == 1
    assumed = [alias for alias in rows if known[alias] is None]
    if base in assumed:
        first = next((each for each in known.values() if each is not None), None)
        agree = all(each is None or first is None or each.ids == first.ids for each in known.values())
        if same_rows and agree and path is None:
            return None
        raise MergingError(_without_tokenizer(base, checkpoints, rows, unread))
    own = known[base]
    if own is None:  # cannot be: the base is not among the assumed
        return None
    for alias in assumed:
        if rows[alias] != rows[base]:
            raise MergingError(_without_tokenizer(alias, checkpoints, rows, unread))
    vocabularies = {alias: known[alias] or own for alias in rows}
    return _Plan(base, checkpoints, rows, vocabularies, assumed).align(choice, path, axes[base].axes)


class _Plan:
    """The models and their tokens, on the way to an alignment."""

    def __init__(
        self,
        base: str,
        checkpoints: Mapping[str, Checkpoint],
        rows: Mapping[str, int],
        vocabularies: Mapping[str, Vocabulary],
        assumed: list[str],
    ):
        self._base = base
        self._checkpoints = checkpoints
        self._rows = rows
        self._vocabularies = vocabularies
        self._assumed = assumed

    def align(self, choice: str | Path, path: Path | None, axes: Mapping[str, int]) -> Alignment | None:
        """See :func:`align`."""
        own, base_rows = self._vocabularies[self._base], self._rows[self._base]
        target, united = self._target(choice, path)
        rows = base_rows
        if path is not None:
            kept = all(target.get(token) == number for token, number in own.ids.items() if number < base_rows)
            end = max(target.values(), default=-1) + 1
            # A smaller vocabulary that was asked for is made smaller; one that only leaves the padding out is not.
            rows = max(base_rows, end) if kept else end
        elif choice == "union":
            held = {token for alias in self._rows for token in self._present(alias)}
            rows = max(base_rows, 1 + max(number for token, number in target.items() if token in held))
        named = "base" if rows == base_rows and united is None else "union"
        if path is not None:
            named = f"path:{Vocabulary(path, target).content}"
        indices = {alias: self._index(alias, target, rows) for alias in self._rows}
        if rows == base_rows and all(index is None for index in indices.values()):
            return None
        wanted = {token for token, number in target.items() if number < rows}
        notes = (*self._notes(named, wanted, rows), *_united_notes(united))
        moved = {number: target.get(token) for token, number in own.ids.items() if target.get(token) != number}
        return Alignment(named, rows, axes, indices, self._base, target, united, notes, base_rows, moved)

    def _present(self, alias: str) -> dict[str, int]:
        """The tokens that a model has rows for."""
        ids, rows = self._vocabularies[alias].ids, self._rows[alias]
        return {token: number for token, number in ids.items() if number < rows}

    def _target(self, choice: str | Path, path: Path | None) -> tuple[Mapping[str, int], United | None]:
        own = self._vocabularies[self._base]
        if path is not None:
            given = read_vocabulary(path) if path.is_dir() else None
            if given is None:
                raise MergingError(
                    f"expected a tokenizer of 'base', 'union' or a folder with tokenizer files, found {str(choice)!r}"
                )
            return given.ids, None
        if choice == "base":
            return own.ids, None
        others = [
            replace(each, ids=self._present(alias)) for alias, each in self._vocabularies.items() if alias != self._base
        ]
        if all(each.ids.keys() <= own.ids.keys() for each in others):
            return own.ids, None
        united = unite(own, others)
        return united.ids, united

    def _index(self, alias: str, target: Mapping[str, int], rows: int) -> Rows | None:
        """Row of the merged model -> row of this one, or -1; None where they are the same."""
        ids, own_rows = self._vocabularies[alias].ids, self._rows[alias]
        if ids == target and own_rows == rows:
            return None
        index = np.full(rows, NONE, dtype=np.int64)
        if alias == self._base:
            index[: min(rows, own_rows)] = np.arange(min(rows, own_rows))
            for number in target.values():
                if number < rows:
                    index[number] = NONE
        # Where several tokens share a row, the first of them gives it: the order is that of the tokens themselves.
        for token, number in sorted(target.items(), reverse=True):
            found = ids.get(token, own_rows)
            if number < rows and found < own_rows:
                index[number] = found
        return index

    def _notes(self, named: str, wanted: set[str], rows: int) -> Iterator[str]:
        chosen = {"base": "the base's vocabulary", "union": "the united vocabulary"}.get(named, "the chosen vocabulary")
        held: set[str] = set()
        for alias, vocabulary in self._vocabularies.items():
            place, present = self._checkpoints[alias].path, self._present(alias).keys()
            held |= present
            if alias in self._assumed:
                yield f"{place} has no tokenizer files that can be read: its tokens are taken to be the base's."
            if without := vocabulary.ids.keys() - present:
                yield f"{place} has no rows for {_some(without)} of its own tokenizer."
            if dropped := present - wanted:
                hint = "; tokenizer 'union' would keep them" if named == "base" else ""
                yield f"{chosen} has no place for {_some(dropped)} of {place}: the rows are left out{hint}."
            if alias != self._base and (lacking := wanted - present):
                yield f"{place} lacks {_some(lacking)}: there it counts as the base."
            if (padding := self._rows[alias] - max(vocabulary.end, rows)) > 0:
                yield f"{place} has {padding} rows of padding after the {rows} that are kept: they are left out."
        if invented := wanted - held:
            yield f"no model has {_some(invented)} of {chosen}: there the rows are the mean of the base's."


def _united_notes(united: United | None) -> Iterator[str]:
    if united is not None and united.unreachable:
        yield (
            f"the united tokenizer never makes {_some(united.unreachable)} out of text, since no merge rule of the "
            "models leads there."
        )


def _stated(checkpoint: Checkpoint) -> Iterator[int]:
    """Numbers of tokens that the config states, then those that its class has by default."""
    config = checkpoint.config
    levels = [config, *(value for value in config.values() if isinstance(value, dict))]
    stated = [level["vocab_size"] for level in levels if type(level.get("vocab_size")) is int]
    yield from stated
    if stated:
        return
    from transformers import AutoConfig  # only the architecture's class knows its default

    try:
        loaded = AutoConfig.from_pretrained(checkpoint.home, local_files_only=True, trust_remote_code=False)
        yield int(loaded.get_text_config().vocab_size)
    except Exception:  # an architecture that this transformers does not know, or without text
        return


def _has_matrix(checkpoint: Checkpoint, axes: Mapping[str, int]) -> bool:
    return any(axis == 0 and len(checkpoint.tensors[name].shape) == 2 for name, axis in axes.items())


def _is_table(layout: Layout, checkpoint: Checkpoint, name: str) -> bool:
    return layout.group(name).kind == "embedding" and len(checkpoint.tensors[name].shape) == 2


def _read_all(checkpoints: Mapping[str, Checkpoint]) -> tuple[dict[str, Vocabulary | None], dict[str, str]]:
    """(alias -> tokens, None where there is no tokenizer; alias -> why its files could not be read)."""
    known: dict[str, Vocabulary | None] = {}
    unread: dict[str, str] = {}
    for alias, checkpoint in checkpoints.items():
        try:
            known[alias] = read_vocabulary(checkpoint.companions)
        except MergingError as error:
            known[alias], unread[alias] = None, str(error)
    return known, unread


def _without_tokenizer(
    alias: str, checkpoints: Mapping[str, Checkpoint], rows: Mapping[str, int], unread: Mapping[str, str]
) -> str:
    if alias in unread:
        return f"the models have different vocabularies, and {unread[alias]}"
    sizes = ", ".join(f"{rows[each]} rows in {checkpoint.path}" for each, checkpoint in checkpoints.items())
    return (
        f"the models have different vocabularies ({sizes}), which can be matched only by their tokens; expected "
        f"tokenizer files in {checkpoints[alias].path}, found none: put those that the model was trained with there"
    )


def _some(tokens: Collection[str]) -> str:
    listed = sorted(tokens)
    shown = ", ".join(repr(token) for token in listed[:5]) + (" …" if len(listed) > 5 else "")
    return f"{len(listed)} token{'s' if len(listed) > 1 else ''} ({shown})"
