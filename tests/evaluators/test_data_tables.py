"""Data files of every format, and one table cut into three splits."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evaluators.contract import SPLITS, EvaluatorError
from evaluators.items import Item, Parsed, Table, read_splits
from evaluators.tables import Row, read_rows

RECORDS = [
    {"prompt": f"how many, {n}?", "answer": f'"{n}"\nand more', "id": f"i{n}", "stratum": str(n % 2)} for n in range(9)
]


def parse(row: Row) -> Parsed[str]:
    return Parsed(row.text("prompt"), [row.text("prompt"), row.text("answer")])


def write_jsonl(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")


def write_json(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text(json.dumps(records), encoding="utf-8")


def write_separated(path: Path, records: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(records)


def write_parquet(path: Path, records: list[dict[str, str]]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(records), path)


WRITERS: dict[str, Callable[[Path, list[dict[str, str]]], None]] = {
    "jsonl": write_jsonl,
    "json": write_json,
    "csv": write_separated,
    "tsv": write_separated,
    "parquet": write_parquet,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_format_does_not_matter(tmp_path: Path, suffix: str) -> None:
    write_jsonl(tmp_path / "plain.jsonl", RECORDS)
    WRITERS[suffix](tmp_path / f"other.{suffix}", RECORDS)
    plain = read_splits(Table(file=tmp_path / "plain.jsonl"), parse)
    other = read_splits(Table(file=tmp_path / f"other.{suffix}"), parse)

    def seen(items: list[Item[str]]) -> list[tuple[str, str, str]]:
        return [(item.id, item.hash, item.stratum) for item in items]

    assert {split: seen(plain[split]) for split in SPLITS} == {split: seen(other[split]) for split in SPLITS}


def test_a_folder_may_mix_formats(tmp_path: Path) -> None:
    write_separated(tmp_path / "search.csv", RECORDS[:3])
    write_json(tmp_path / "selection.json", RECORDS[3:6])
    write_parquet(tmp_path / "holdout.parquet", RECORDS[6:])
    splits = read_splits(tmp_path, parse)
    assert {split: sorted(item.id for item in items) for split, items in splits.items()} == {
        "search": ["i0", "i1", "i2"],
        "selection": ["i3", "i4", "i5"],
        "holdout": ["i6", "i7", "i8"],
    }


def test_several_sources_are_one_set_of_items(tmp_path: Path) -> None:
    for name, records in (("one", RECORDS[:6]), ("two", RECORDS[6:])):
        (tmp_path / name).mkdir()
        for place, split in enumerate(SPLITS):
            write_jsonl(tmp_path / name / f"{split}.jsonl", records[place::3])
    (tmp_path / "three").mkdir()
    for split in SPLITS:
        write_jsonl(tmp_path / "three" / f"{split}.jsonl", RECORDS[:1])
    pooled = read_splits([tmp_path / "one", tmp_path / "two"], parse)
    alone = [read_splits(tmp_path / name, parse) for name in ("one", "two")]
    for split in SPLITS:
        assert {item.id for item in pooled[split]} == {item.id for part in alone for item in part[split]}
        assert len(pooled[split]) == sum(len(part[split]) for part in alone)
    with pytest.raises(EvaluatorError, match="the same item as"):
        read_splits([tmp_path / "one", tmp_path / "three"], parse)
    assert read_splits([tmp_path / "two"], parse) == alone[1]


@pytest.fixture(scope="module")
def table_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables") / "table.jsonl"


@given(
    clusters=st.lists(st.integers(0, 30), min_size=40, max_size=90),
    drop=st.integers(0, 39),
    order=st.randoms(use_true_random=False),
)
def test_a_cut_depends_on_content_alone(table_file: Path, clusters: list[int], drop: int, order: object) -> None:
    """Neither other items nor the order of the file move an item, and no cluster is torn apart."""
    records = [{"prompt": f"p{n}", "answer": "a", "cluster": f"c{each}"} for n, each in enumerate(clusters)]
    shares = {"search": 0.4, "selection": 0.3, "holdout": 0.3}

    def cut(some: list[dict[str, str]]) -> dict[str, str]:
        write_jsonl(table_file, some)
        try:
            splits = read_splits(Table(file=table_file, shares=shares), parse)
        except EvaluatorError as error:
            assert "empty" in str(error)
            return {}
        return {item.value: split for split in SPLITS for item in splits[split]}

    whole = cut(records)
    of_cluster: dict[str, set[str]] = {}
    for record in records:
        if whole:
            of_cluster.setdefault(record["cluster"], set()).add(whole[record["prompt"]])
    assert all(len(splits) == 1 for splits in of_cluster.values())
    fewer = [*records[:drop], *records[drop + 1 :]]
    order.shuffle(fewer)  # type: ignore[attr-defined]
    for prompt, split in cut(fewer).items():
        assert not whole or whole[prompt] == split


def test_shares_are_kept_on_average(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"p{n}", "answer": "a"} for n in range(4000)])
    splits = read_splits(
        Table(file=tmp_path / "a.jsonl", shares={"search": 0.5, "selection": 0.2, "holdout": 0.3}), parse
    )
    for split, share in {"search": 0.5, "selection": 0.2, "holdout": 0.3}.items():
        assert abs(len(splits[split]) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_duplicates_of_one_table_count_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = [{"prompt": f"p{n % 20}", "answer": "a"} for n in range(24)]
    write_jsonl(tmp_path / "a.jsonl", bare)
    with caplog.at_level(logging.WARNING, "paretomerge"):
        splits = read_splits(Table(file=tmp_path / "a.jsonl"), parse)
    assert sum(len(items) for items in splits.values()) == 20
    assert "4 items occur more than once" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"prompt,answer\nx,y\nx\n", r"a\.csv:3: the header has 2 columns, and this line has fewer"),
        ("a.csv", b"prompt,answer\nx,y,z\n", r"a\.csv:2: the header has 2 columns, and this line has more"),
        ("a.csv", b"prompt,answer\nx,\xff\n", r"a\.csv:2: not UTF-8"),
        ("a.csv", b'prompt,answer\n"x,y\n', r"a\.csv:\d: not a table"),
        ("a.csv", b"prompt,answer\nx,\n", r'a\.csv:2: the field "answer" is empty'),
        ("a.json", b'{"prompt": "x"}', "expected a list of objects, found an object"),
        ("a.json", b"[1]", r"a\.json: entry 1: expected a JSON object, found a number"),
        ("a.json", b"[{]", r"a\.json: not JSON"),
        ("a.parquet", b"no parquet", r"a\.parquet: cannot be read as Parquet"),
        ("a.jsonl", b'{"prompt": "x"}\n', r'a\.jsonl:1: the field "answer" is missing'),
        ("a.jsonl", b'{"prompt": "x", "answer": "\xff"}\n', r"a\.jsonl:1: not UTF-8"),
    ],
)
def test_bad_tables_are_named_by_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EvaluatorError, match=message):
        read_splits(Table(file=tmp_path / name), parse)


def test_one_file_is_no_folder(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", RECORDS)
    with pytest.raises(EvaluatorError, match=r"is one file, and three splits are needed; .*\{file: a.jsonl\}"):
        read_splits(tmp_path / "a.jsonl", parse)


def test_two_files_of_a_split(tmp_path: Path) -> None:
    for name in ("search.jsonl", "search.csv", "selection.jsonl", "holdout.jsonl"):
        (WRITERS[name.partition(".")[2]])(tmp_path / name, RECORDS)
    with pytest.raises(EvaluatorError, match="the split search has two files"):
        read_splits(tmp_path, parse)


@pytest.mark.parametrize(
    "options",
    [{}, {"file": "a", "dataset": "b"}, {"file": "a", "config": "c"}, {"file": "a", "shares": {"search": 1.0}}],
)
def test_bad_table_options(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Table(**options)  # type: ignore[arg-type]


def test_a_data_set_of_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    datasets.Dataset.from_list(RECORDS).save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"test": datasets.Dataset.from_list(RECORDS)}).save_to_disk(str(tmp_path / "several"))
    write_jsonl(tmp_path / "plain.jsonl", RECORDS)
    plain = read_splits(Table(file=tmp_path / "plain.jsonl"), parse)
    for name in ("saved", "several"):
        found = read_splits(Table(dataset=str(tmp_path / name)), parse)
        assert [item.hash for item in found["holdout"]] == [item.hash for item in plain["holdout"]]
    with pytest.raises(EvaluatorError, match=r'the data set "no/such-data \[test\]" cannot be had'):
        read_splits(Table(dataset="no/such-data"), parse)


def test_media_are_found_beside_the_table_and_known_by_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "sounds" / name).write_bytes(b"same" if name != "c" else b"other")
    write_jsonl(tmp_path / "t.jsonl", [{"audio": f"sounds/{name}"} for name in "abcd"])
    rows = read_rows(tmp_path / "t.jsonl")
    a, b, c = (row.media("audio") for row in rows[:3])
    assert a.sha256 == b.sha256 != c.sha256
    assert a.read() == b"same"
    with pytest.raises(EvaluatorError, match=r"t\.jsonl:4: .*there is none"):
        rows[3].media("audio")
    held = Row({"audio": {"bytes": b"same", "path": "x.wav"}}, "row 1").media("audio")
    assert (held.sha256, held.read(), held.name) == (a.sha256, b"same", "x.wav")


@pytest.mark.parametrize(
    ("value", "textual", "message"),
    [(True, False, "must be a number, found true or false"), ("3", False, "found a text"), ("x", True, 'found "x"')],
)
def test_numbers_are_numbers(value: object, textual: bool, message: str) -> None:
    with pytest.raises(EvaluatorError, match=message):
        Row({"n": value}, "here", textual=textual).number("n")


def test_numbers_of_tables_without_types() -> None:
    assert Row({"n": "3"}, "here", textual=True).integer("n") == 3
    with pytest.raises(EvaluatorError, match=r"must be a whole number, found 3\.5"):
        Row({"n": 3.5}, "here").integer("n")
    with pytest.raises(EvaluatorError, match="finite"):
        Row({"n": float("inf")}, "here").number("n")
