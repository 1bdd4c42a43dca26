"""Items of an evaluator: hashed by content, cut into splits, in an order whose prefixes are fair samples."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from evaluators.contract import SPLITS, EvaluatorError, Items, Split
from evaluators.tables import SUFFIXES, Row, read_dataset, read_rows

T = TypeVar("T")

# Part of the order's definition: another value is another order, and another subset under a limit.
_ORDER = "paretomerge-order/1"
# Part of how one table is cut into splits.
_CUT = "paretomerge-cut/1"

_LOG = logging.getLogger("paretomerge")


class Table(BaseModel):
    """One table of records: a file, or a data set by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path | None = Field(None, description="JSON Lines, JSON, CSV, TSV or Parquet, by its suffix")
    dataset: str | None = Field(None, description="a data set on the Hugging Face Hub, or a folder of one")
    config: str | None = Field(None, description="the data set's configuration")
    split: str = Field("test", description="the data set's split, as its authors call it")
    revision: str | None = Field(None, description="the data set's revision: name one, and it stays what it is")
    rows: tuple[int, int | None] | None = Field(
        None,
        description="which rows, in the table's own order: [first, end], counted from 0, the end not among them; "
        "negative numbers count from the table's end, and null is the end: [0, 869], [-200, null]",
    )
    shares: dict[Split, float] = Field(
        {"search": 0.4, "selection": 0.2, "holdout": 0.4},
        description="how much of the table each split gets. Where an item goes is decided by its content",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Table:
        if (self.file is None) == (self.dataset is None):
            raise ValueError("name either a file or a dataset")
        if self.file is not None and (self.config is not None or self.revision is not None):
            raise ValueError("config and revision belong to a dataset, not to a file")
        return self

    @field_validator("rows", mode="before")
    @classmethod
    def _are_a_range(cls, value: object) -> object:
        if value is None:
            return value
        first, end = value if isinstance(value, list | tuple) and len(value) == 2 else (None, None)
        if type(first) is not int or not (end is None or type(end) is int):
            raise ValueError(f"rows: expected [first, end], such as [0, 869] or [-200, null], found {value!r}")
        return value

    @field_validator("shares")
    @classmethod
    def _every_split_has_a_share(cls, value: dict[Split, float]) -> dict[Split, float]:
        if set(value) != set(SPLITS) or not all(0.0 < share < 1.0 for share in value.values()):
            raise ValueError(f"shares: expected one number between 0 and 1 for each of {', '.join(SPLITS)}")
        return value

    def read(self) -> list[Row]:
        """The records.

        Raises:
            EvaluatorError: they cannot be read, or there are none in ``rows``.
        """
        if self.file is not None:
            rows = read_rows(self.file)
        else:
            rows = read_dataset(str(self.dataset), self.config, self.split, self.revision)
        return rows if self.rows is None else self._within(rows, *self.rows)

    def _within(self, rows: list[Row], first: int, end: int | None) -> list[Row]:
        """The rows of a range, which must lie in the table whole: a range that is cut short, since the table has
        another size than was thought, would be another sample than the config says."""
        count = len(rows)
        start = first + count if first < 0 else first
        stop = count if end is None else end + count if end < 0 else end
        if not 0 <= start < stop <= count:
            raise EvaluatorError(
                f"{self.label}: rows: [{first}, {'null' if end is None else end}] is no range of rows that are there: "
                f"the table has {count}, from 0 to {count - 1}; correct the range, or leave it out"
            )
        return rows[start:stop]

    @property
    def label(self) -> str:
        """What people call it."""
        return str(self.file or self.dataset)


def _form(value: object) -> str | None:
    """Which of the forms of ``data`` is meant, so that errors speak of that one alone."""
    if isinstance(value, str | Path):
        return "data path"
    if isinstance(value, Mapping):
        return "data splits" if set(value) & set(SPLITS) else "data table"
    return "data table" if isinstance(value, Table) else None


_Path = Annotated[Path, Tag("data path")]
_Table = Annotated[Table, Tag("data table")]
_Source = Annotated[
    _Path | _Table,
    Discriminator(
        _form, custom_error_type="data", custom_error_message="expected a file, or a table {file: …} or {dataset: …}"
    ),
]
Data = Annotated[
    _Path | _Table | Annotated[dict[Split, _Source], Tag("data splits")],
    Discriminator(
        _form,
        custom_error_type="data",
        custom_error_message="expected a folder, one table ({file: …} or {dataset: …}), or one file for each of "
        + ", ".join(SPLITS),
    ),
]


def _form_or_several(value: object) -> str | None:
    return "data list" if isinstance(value, list | tuple) else _form(value)


Pooled = Annotated[
    _Path
    | _Table
    | Annotated[dict[Split, _Source], Tag("data splits")]
    | Annotated[Annotated[list[Data], Field(min_length=1)], Tag("data list")],
    Discriminator(
        _form_or_several,
        custom_error_type="data",
        custom_error_message="expected a folder, one table ({file: …} or {dataset: …}), or one file for each of "
        + ", ".join(SPLITS)
        + "; or a list of such",
    ),
]
"""One source, or several whose items are scored together."""


class DataOptions(BaseModel):
    """Where an evaluator's items come from: the part that the options of all evaluators share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Pooled = Field(
        description="a folder with search, selection and holdout (.jsonl, .json, .csv, .tsv or .parquet); or one file "
        "or table a split; or one table {file: …} or {dataset: …}, which is cut into splits by content; or a list of "
        "such, whose items are scored together"
    )
    limit: dict[Split, int] = Field(
        default_factory=dict,
        description="at most so many items of a split: a fixed, stratified sample; a smaller one is part of a larger",
    )

    @field_validator("limit")
    @classmethod
    def _limits_are_positive(cls, value: dict[Split, int]) -> dict[Split, int]:
        for split, count in value.items():
            if count < 1:
                raise ValueError(f"the limit of {split} must be at least 1, got {count}")
        return value


class Parsed(NamedTuple, Generic[T]):
    """What an evaluator makes of a row.

    Attributes:
        value: what it needs of the item.
        content: JSON; two rows of equal content are one item.
        stratum, cluster, id: None for the row's own fields of these names, "" for none.
    """

    value: T
    content: object
    stratum: str | None = None
    cluster: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Item(Generic[T]):
    """One example.

    Attributes:
        id: given, or the first 16 hexadecimal digits of ``hash``.
        value: what the evaluator made of it.
        stratum: the subgroup, "" where there is none.
        hash: sha256 of the content.
        place: "file:line", for messages.
        cluster: what it shares with items that are not independent of it, "" where there is nothing.
    """

    id: str
    value: T
    stratum: str
    hash: str
    place: str
    cluster: str = ""


def read_splits(
    data: Pooled, parse: Callable[[Row], Parsed[T]], *, limit: Mapping[Split, int] | None = None
) -> dict[Split, list[Item[T]]]:
    """Read, check, cut and order all splits.

    Args:
        data: where the items are; those of several sources are one set of items, with each source's own splits.
        parse: an evaluator's view of a row; raises :class:`EvaluatorError` for one that it cannot use.
        limit: how many items to keep of a split: a prefix of the order, so that smaller limits keep subsets.

    Raises:
        EvaluatorError: anything wrong with a row, an empty split, or an item that occurs twice, in whatever splits:
            the same example in two of them is a leak. Checked before the limit. Of one table that is cut here, exact
            duplicates are left out instead, with a note.
    """
    sources: list[Data] = data if isinstance(data, list) else [data]
    parts = [_read(each, parse) for each in sources]
    splits = {split: [item for part in parts for item in part[split]] for split in SPLITS}
    _check_unique([item for split in SPLITS for item in splits[split]])
    return {split: balanced_order(splits[split])[: (limit or {}).get(split)] for split in SPLITS}


def _read(data: Data, parse: Callable[[Row], Parsed[T]]) -> dict[Split, list[Item[T]]]:
    """The splits of one source, in the order of its files."""
    if isinstance(data, Table):
        return _cut(data, parse)
    tables = split_tables(data)
    splits = {split: [_item(row, parse(row)) for row in tables[split].read()] for split in SPLITS}
    for split in SPLITS:
        if not splits[split]:
            raise EvaluatorError(f"{tables[split].label}: the split {split} is empty; it needs at least one item")
    return splits


def split_tables(data: Path | Mapping[Split, Path | Table]) -> dict[Split, Table]:
    """One table a split: those in a folder, or those that are named one by one.

    Raises:
        EvaluatorError: a split without a file, or with two.
    """
    if isinstance(data, Path):
        return {split: Table(file=path) for split, path in _in_folder(data).items()}
    found: dict[Split, Table] = {}
    for split in SPLITS:
        if split not in data:
            raise EvaluatorError(
                f"data: the split {split} has no file; name one for each of {', '.join(SPLITS)}, since what the search "
                "sees cannot also judge its finalists"
            )
        each = data[split]
        if isinstance(each, Path):
            each = Table(file=each)
        if each.file is not None and not each.file.is_file():
            raise EvaluatorError(f"data: the file of the split {split} is missing: expected {each.file}")
        found[split] = each
    return found


def _in_folder(folder: Path) -> dict[Split, Path]:
    if folder.is_file():
        raise EvaluatorError(
            f"data: {folder} is one file, and three splits are needed; write data: {{file: {folder.name}}} to have it "
            "cut into search, selection and holdout, or name one file a split"
        )
    if not folder.is_dir():
        raise EvaluatorError(
            f"data: expected a folder with {', '.join(f'{split}.jsonl' for split in SPLITS)} at {folder}, and there "
            "is no such folder; name the folder, or one file a split (data: {search: …, selection: …, holdout: …})"
        )
    files: dict[Split, Path] = {}
    for split in SPLITS:
        present = [path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]
        if not present:
            raise EvaluatorError(
                f"data: the file of the split {split} is missing: expected {folder / f'{split}.jsonl'}"
            )
        if len(present) > 1:
            raise EvaluatorError(
                f"data: the split {split} has two files, {present[0]} and {present[1]}; remove one of them"
            )
        files[split] = present[0]
    return files


def _cut(table: Table, parse: Callable[[Row], Parsed[T]]) -> dict[Split, list[Item[T]]]:
    """One table as three splits. Where an item goes depends on nothing but its cluster, or else its content."""
    if table.file is not None and not table.file.is_file():
        raise EvaluatorError(f"data: expected a file at {table.file}, and there is none")
    splits: dict[Split, list[Item[T]]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    repeated = 0
    for row in table.read():
        item = _item(row, parse(row))
        if item.hash in seen:
            repeated += 1
            continue
        seen.add(item.hash)
        splits[_place(item.cluster or item.hash, table.shares)].append(item)
    if repeated:
        _LOG.warning("note: %s: %d items occur more than once; each is counted once", table.label, repeated)
    for split, items in splits.items():
        if not items:
            raise EvaluatorError(
                f"{table.label}: {len(seen)} items, cut by content, leave the split {split} empty; it needs at least "
                "one: add items, or give the split a larger share"
            )
    return splits


def _place(key: str, shares: Mapping[Split, float]) -> Split:
    number = int.from_bytes(hashlib.sha256(f"{_CUT}:{key}".encode()).digest()[:8], "big") / 2.0**64
    place = number * sum(shares.values())
    for split in SPLITS:
        place -= shares[split]
        if place < 0.0:
            return split
    return SPLITS[-1]


def _item(row: Row, parsed: Parsed[T]) -> Item[T]:
    content = hashlib.sha256(json.dumps(parsed.content, sort_keys=True).encode()).hexdigest()
    given = row.label("id") if parsed.id is None else parsed.id
    stratum = row.label("stratum") if parsed.stratum is None else parsed.stratum
    cluster = row.label("cluster") if parsed.cluster is None else parsed.cluster
    return Item(given or content[:16], parsed.value, stratum, content, row.place, cluster)


def _check_unique(items: Iterable[Item[T]]) -> None:
    by_id: dict[str, Item[T]] = {}
    by_hash: dict[str, Item[T]] = {}
    for item in items:
        twin = by_hash.setdefault(item.hash, item)
        if twin is not item:
            raise EvaluatorError(
                f"{item.place}: the same item as {twin.place} (equal in all that counts); remove one of the two: "
                "counted twice it would weigh double, and in two splits it would leak from one into the other"
            )
        namesake = by_id.setdefault(item.id, item)
        if namesake is not item:
            raise EvaluatorError(
                f'{item.place}: the id "{item.id}" is taken by {namesake.place}; ids are unique over all splits: '
                "rename one, or leave the ids out and let the content name the items"
            )


def balanced_order(items: Iterable[Item[T]]) -> list[Item[T]]:
    """A fixed shuffle in which every prefix has the strata in their proportions, to within one item each.

    Depends on the contents alone, not on the order of the file: within a stratum items go by a keyed hash, and strata
    are interleaved as if each were spread evenly over the whole.
    """
    shuffled = sorted(items, key=lambda item: hashlib.sha256(f"{_ORDER}:{item.hash}".encode()).digest())
    sizes = Counter(item.stratum for item in shuffled)
    seen: Counter[str] = Counter()
    places = []
    for rank, item in enumerate(shuffled):
        places.append(((seen[item.stratum] + 0.5) / sizes[item.stratum], rank))
        seen[item.stratum] += 1
    return [item for _, item in sorted(zip(places, shuffled, strict=True), key=lambda pair: pair[0])]


def as_items(items: Sequence[Item[T]]) -> Items:
    """The public record of a split. An item without a cluster is one of its own."""
    clusters = tuple(item.cluster or item.id for item in items) if any(item.cluster for item in items) else ()
    return Items(
        tuple(item.id for item in items),
        tuple(item.stratum for item in items),
        tuple(item.hash for item in items),
        clusters,
    )
