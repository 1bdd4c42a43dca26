"""Records of data files, whatever their format: read strictly, each with the place that messages name."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluators.contract import EvaluatorError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""What can be read; a file with another suffix is read as JSON Lines."""


@dataclass(frozen=True)
class Media:
    """The bytes of an image or a recording: a file, or what a table holds in place.

    Attributes:
        name: for messages.
        sha256: of the bytes, in hexadecimal: the same recording under another name is the same recording.
    """

    name: str
    sha256: str
    _path: Path | None = None
    _bytes: bytes = field(default=b"", repr=False)

    def read(self) -> bytes:
        """The bytes, read anew where they lie in a file.

        Raises:
            EvaluatorError: the file cannot be read, or is not what it was.
        """
        if self._path is None:
            return self._bytes
        content = _file_bytes(self._path)
        if _sha256(content) != self.sha256:
            raise EvaluatorError(
                f"{self._path}: this file has changed since the data were read, so that scores before and after are of "
                "different items; restore it, or start a new run"
            )
        return content


@dataclass(frozen=True)
class Row:
    """One record of a data file.

    Attributes:
        record: field name -> value, as the file has it.
        place: "file:line", for messages.
        folder: where relative paths of media are looked for.
        textual: whether the format knows only texts (CSV), so that numbers are written as such.
    """

    record: Mapping[str, Any]
    place: str
    folder: Path = Path()
    textual: bool = False

    def error(self, message: str) -> EvaluatorError:
        """An error that names this record's place."""
        return EvaluatorError(f"{self.place}: {message}")

    def text(self, name: str) -> str:
        """A field that holds a text with something in it.

        Raises:
            EvaluatorError: it is missing, empty, or no text.
        """
        return self._checked(name, self.value(name), "a text")

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that holds a text or a list of at least one.

        Raises:
            EvaluatorError: as :meth:`text`.
        """
        value = self.value(name)
        values = value if isinstance(value, list | tuple) else [value]
        if not values:
            raise self.error(f'the field "{name}" is an empty list; it needs at least one text')
        return tuple(self._checked(name, each, "a text or a list of texts") for each in values)

    def answers(self, name: str) -> tuple[str, ...]:
        """As :meth:`texts`; a finite number counts as the text that says it, since published data sets keep the
        answers of sums as numbers: 18.0 is "18".

        Raises:
            EvaluatorError: as :meth:`texts`.
        """
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return self.texts(name)
        number = self.number(name)
        return (str(value) if isinstance(value, int) else str(int(number)) if number.is_integer() else repr(number),)

    def optional(self, name: str) -> str:
        """A field that may be missing or null, and is "" then.

        Raises:
            EvaluatorError: it holds something else than a text.
        """
        value = self.record.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.error(f'the field "{name}" must be a text, found {kind_of(value)}; put it in quotes')
        return self._unicode(name, value)

    def label(self, name: str) -> str:
        """A field that names something, and is "" where missing or null: a text, or a whole number as a text, since
        published data sets number their rows.

        Raises:
            EvaluatorError: it holds something else.
        """
        value = self.record.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
            return str(value)
        if value is not None and not isinstance(value, str):
            raise self.error(f'the field "{name}" must be a text or a whole number, found {kind_of(value)}')
        return self.optional(name)

    def number(self, name: str) -> float:
        """A field that holds a finite number.

        Raises:
            EvaluatorError: it is missing, or holds something else.
        """
        value = self.value(name)
        if self.textual and isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise self.error(f'the field "{name}" must be a number, found "{value}"') from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f'the field "{name}" must be a number, found {kind_of(value)}')
        try:
            number = float(value)
        except OverflowError:  # a whole number of hundreds of digits
            number = math.inf
        if not math.isfinite(number):
            found = str(value) if isinstance(value, float) else "one that is too large"
            raise self.error(f'the field "{name}" must be a finite number, found {found}')
        return number

    def integer(self, name: str) -> int:
        """A field that holds a whole number.

        Raises:
            EvaluatorError: it is missing, or holds something else.
        """
        value = self.number(name)
        if not value.is_integer():
            raise self.error(f'the field "{name}" must be a whole number, found {value}')
        return int(value)

    def media(self, name: str) -> Media:
        """A field that names a file, or holds its bytes as the ``datasets`` library gives them undecoded.

        Raises:
            EvaluatorError: it is missing, no path, or nothing can be read there.
        """
        value = self.value(name)
        if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
            content: bytes = value["bytes"]
            return Media(str(value.get("path") or self.place), _sha256(content), None, content)
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            value = value["path"]
        if not isinstance(value, str) or not value:
            raise self.error(f'the field "{name}" must be the path of a file, found {kind_of(value)}')
        try:
            path = self.folder / Path(value).expanduser()
            exists = path.is_file()
        except (OSError, RuntimeError, ValueError):  # too long for a name, nobody's home, a null byte
            path, exists = self.folder / value[:80], False
        if not exists:
            shown = str(path) if str(path).isprintable() else ascii(str(path))
            raise self.error(f'the field "{name}" names the file {shown}, and there is none')
        return Media(str(path), _sha256(_file_bytes(path)), path)

    def value(self, name: str) -> Any:
        """A field as it is.

        Raises:
            EvaluatorError: it is missing.
        """
        if name not in self.record:
            found = ", ".join(sorted(map(str, self.record)))
            raise self.error(
                f'the field "{name}" is missing; this line has {found or "no fields"}. Add it, or name the field that '
                "holds it in the evaluator's options"
            )
        return self.record[name]

    def _checked(self, name: str, value: object, expected: str) -> str:
        if not isinstance(value, str):
            raise self.error(f'the field "{name}" must be {expected}, found {kind_of(value)}; put it in quotes')
        if not value.strip():
            raise self.error(f'the field "{name}" is empty; give it a text')
        return self._unicode(name, value)

    def _unicode(self, name: str, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.error(
                f'the field "{name}" has half a surrogate pair at character {error.start + 1}, which is no text; write '
                "the character itself, or both halves of its escape"
            ) from error
        return text


def read_rows(path: Path) -> list[Row]:
    """The records of a file, in its order. JSON Lines (blank lines skipped), JSON, CSV, TSV or Parquet, by its suffix.

    Raises:
        EvaluatorError: it cannot be read, or a line is not what the format says; names file and line.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    content = _file_bytes(path).removeprefix(b"\xef\xbb\xbf")
    if suffix in (".csv", ".tsv"):
        return list(_separated(path, content, "\t" if suffix == ".tsv" else ","))
    if suffix == ".json":
        return _json(path, content)
    return list(_json_lines(path, content))


def read_dataset(name: str, config: str | None, split: str, revision: str | None) -> list[Row]:
    """The records of a data set that the ``datasets`` library finds: on the Hub, or in a folder that it has written.

    Sounds and images stay encoded (see :class:`Media`).

    Raises:
        EvaluatorError: it cannot be had; names the data set.
    """
    import datasets

    label = name + (f"/{config}" if config else "") + f" [{split}]"
    try:
        if Path(name).is_dir() and (Path(name) / "dataset_dict.json").is_file():
            table = datasets.load_from_disk(name)[split]
        elif Path(name).is_dir() and (Path(name) / "state.json").is_file():
            table = datasets.load_from_disk(name)
        else:
            table = datasets.load_dataset(name, config, split=split, revision=revision)
        for column, feature in table.features.items():
            if isinstance(feature, datasets.Audio | datasets.Image):
                table = table.cast_column(column, type(feature)(decode=False))
        return [Row(record, f"data set {label}, row {index}") for index, record in enumerate(table)]
    except Exception as error:  # the library raises whatever its readers and the network raise
        lines = str(error).strip().splitlines()
        said = lines[0] if lines else "no message"
        do = "check its name, configuration and split, load it once while the network is there, or name a local file"
        if re.search(r"\bscripts?\b", said, re.IGNORECASE):
            do = (
                "it is a program, which the datasets library runs no more: name a copy of it as Parquet or JSON (for "
                "juletxara/mgsm in Japanese: sbintuitions/MGSM_ja), or a local file"
            )
        raise EvaluatorError(f'the data set "{label}" cannot be had ({type(error).__name__}: {said}); {do}') from error


def kind_of(value: object) -> str:
    """What a JSON value is, for people."""
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "a text", "bool": "true or false"}
    return names.get(type(value).__name__, "a number" if isinstance(value, int | float) else type(value).__name__)


def _json_lines(path: Path, content: bytes) -> Iterator[Row]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield Row(_object(_parsed(line, place, "every line holds one JSON object"), place), place, path.parent)


def _json(path: Path, content: bytes) -> list[Row]:
    records = _parsed(content, str(path), "the file holds a list of objects")
    if not isinstance(records, list):
        raise EvaluatorError(f"{path}: expected a list of objects, found {kind_of(records)}")
    rows = []
    for number, record in enumerate(records, start=1):
        place = f"{path}: entry {number}"
        rows.append(Row(_object(record, place), place, path.parent))
    return rows


def _parsed(content: bytes, place: str, expected: str) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise EvaluatorError(
            f"{place}: not UTF-8 (byte {error.start + 1} of the line); save the file in that encoding"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a bare ValueError
        where = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise EvaluatorError(f"{place}: not JSON ({where}); {expected}") from error


def _object(record: object, place: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise EvaluatorError(f"{place}: expected a JSON object, found {kind_of(record)}; every line holds one item")
    return record


def _separated(path: Path, content: bytes, delimiter: str) -> Iterator[Row]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise EvaluatorError(f"{path}:{line}: not UTF-8; save the file in that encoding") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = list(reader.fieldnames or ())
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise EvaluatorError(f'{path}:1: two columns are called "{twice[0]}"; rename one of them')
        for record in reader:
            place = f"{path}:{reader.line_num}"
            if None in record or None in record.values():
                raise EvaluatorError(
                    f"{place}: the header has {len(reader.fieldnames or ())} columns, and this line has "
                    f"{'more' if None in record else 'fewer'}; quote fields that hold the separator"
                )
            yield Row(record, place, path.parent, textual=True)
    except csv.Error as error:
        raise EvaluatorError(f"{path}:{reader.line_num}: not a table with separators ({error})") from error


def _parquet(path: Path) -> list[Row]:
    from pyarrow import ArrowException, parquet

    try:
        records = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise EvaluatorError(f"{path}: cannot be read as Parquet ({error})") from error
    return [Row(record, f"{path}: row {number}", path.parent) for number, record in enumerate(records, start=1)]


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EvaluatorError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
