"""Plain data of a stranger's JSON, one checked value after the other; whatever is wrong is one paragraph."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from merging.bounded import printable
from merging.recipe import MergingError

_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,150}", re.ASCII)
# fmt: off
_DTYPES = frozenset({
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16",
    "uint8", "bool", "float8_e4m3fn", "float8_e5m2", "complex64",
})
# fmt: on
_LONGEST_TEXT = 2000
_MOST_DIMENSIONS = 64
_SIZES = 2**63
_LARGEST_NORM = 1e60  # its square, and that of its product with another, is a float too


class Entry:
    """An object in a JSON file. Every method raises MergingError where the value is not what its name says.

    Args:
        data: the object.
        file: where it stands, for messages.
        path: of keys that lead to it.
    """

    def __init__(self, data: Any, file: object, path: str = ""):
        self._file, self._path = file, path
        if not isinstance(data, dict):
            raise MergingError(self._said(path or "the file", "a JSON object", _found(data)))
        self._data: dict[str, Any] = data

    @property
    def where(self) -> str:
        """The file and the path of keys, for messages."""
        return f"{self._file}, {printable(self._path)}" if self._path else str(self._file)

    def refuse(self, key: str, expected: str, found: str) -> NoReturn:
        """Refuse a value."""
        raise MergingError(self._said(self._key(key), expected, printable(found)))

    def text(self, key: str, most: int = _LONGEST_TEXT, *, optional: bool = False) -> str:
        """A short text; "" for null where it is optional."""
        value = self._data.get(key)
        if optional and value is None:
            return ""
        if not isinstance(value, str) or len(value) > most:
            self.refuse(key, f"a text of at most {most} characters", _found(value))
        return value

    def hex(self, key: str) -> str:
        """A SHA-256, hex."""
        value = self.text(key)
        if not _HEX.fullmatch(value):
            self.refuse(key, "64 hexadecimal digits", repr(value))
        return value

    def digest(self, key: str, *, optional: bool = False) -> str:
        """``sha256:`` and a SHA-256, hex; "" for null where it is optional."""
        value = self.text(key, optional=optional)
        if optional and not value:
            return ""
        if not value.startswith("sha256:") or not _HEX.fullmatch(value.removeprefix("sha256:")):
            self.refuse(key, "sha256: and 64 hexadecimal digits", repr(value))
        return value

    def dtype(self, key: str) -> str:
        """The name of a dtype that safetensors can hold."""
        value = self.text(key)
        if value not in _DTYPES or not hasattr(torch, value):
            self.refuse(key, "a dtype such as bfloat16", repr(value))
        return value

    def count(self, key: str) -> int:
        """A whole number from 0 on."""
        value = self._data.get(key)
        if type(value) is not int or not 0 <= value < _SIZES:
            self.refuse(key, "a whole number", _found(value))
        return value

    def number(self, key: str, *, signed: bool = False) -> float:
        """A finite number, from 0 on unless it is signed."""
        value: Any = self._data.get(key)
        plain = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        if not plain or (value < 0 and not signed):
            self.refuse(key, "a finite number" + ("" if signed else ", not negative"), _found(value))
        return float(value)

    def norm(self, key: str) -> float:
        """A length or a relative error: a number that can be squared, from 0 on."""
        value = self.number(key)
        if value > _LARGEST_NORM:
            self.refuse(key, f"at most {_LARGEST_NORM:g}", f"{value:g}")
        return value

    def shape(self, key: str) -> tuple[int, ...]:
        """Sizes of a tensor that memory could hold."""
        value: Any = self._data.get(key)
        plain = isinstance(value, list) and all(type(each) is int and 0 <= each < _SIZES for each in value)
        if not plain or len(value) > _MOST_DIMENSIONS or math.prod(value) >= _SIZES:
            self.refuse(key, "the sizes of a tensor", _found(value))
        return tuple(value)

    def scalars(self, key: str) -> dict[str, Any]:
        """Name -> number, text or truth value."""
        found = self.plain(key)
        for name, value in found.items():
            if type(value) not in (int, float, str, bool) or value in (math.inf, -math.inf) or value != value:
                self.refuse(key, "plain values", f"{name}: {_found(value)}")
        return found

    def plain(self, key: str) -> dict[str, Any]:
        """An object, of whatever JSON can say."""
        value = self._data.get(key)
        if not isinstance(value, dict):
            self.refuse(key, "a JSON object", _found(value))
        return value

    def entry(self, key: str) -> Entry:
        """An object, to be looked at further."""
        return Entry(self._data.get(key), self._file, self._key(key))

    def optional(self, key: str) -> Entry | None:
        """As :meth:`entry`; None for null."""
        return None if self._data.get(key) is None else self.entry(key)

    def entries(self, key: str) -> Mapping[str, Entry]:
        """An object of objects."""
        return {name: Entry(each, self._file, f"{self._key(key)}.{name}") for name, each in self.plain(key).items()}

    def listed(self, key: str) -> list[Entry]:
        """A list of objects."""
        value = self._data.get(key)
        if not isinstance(value, list):
            self.refuse(key, "a list", _found(value))
        return [Entry(each, self._file, f"{self._key(key)}[{at}]") for at, each in enumerate(value)]

    def _key(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _said(self, key: str, expected: str, found: str) -> str:
        return (
            f"{self._file}: expected {printable(key)} to be {expected}, found {found}; the vector is damaged, or not "
            "made by paretomerge: get it again"
        )


def check_file_name(name: str, where: str) -> None:
    """Refuse what is no plain name of a file in the vector's own folder.

    Raises:
        MergingError: it is a path, hidden, or code.
    """
    if not _FILE_NAME.fullmatch(name) or name.endswith((".py", ".bin", ".pt", ".pth", ".pkl", ".so")):
        raise MergingError(
            f"expected plain names of data files in {where}, found {printable(repr(name))}; a vector may not point "
            "outside of its folder, nor bring code. Nothing was taken from it"
        )


def _found(value: Any) -> str:
    return "nothing" if value is None else printable(repr(value), 80)
