"""YAML of people and of strangers as plain data, of a size that what it is made into has as well.

PyYAML's safe loader makes no objects, but an alias costs nothing to write and everything to walk through: nine lines
of ten aliases each are 10⁹ values to whoever copies, validates or prints them. Here a text may name only as much as it
could have written out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from merging.bounded import printable

MOST_REPEATED = 1_000_000
"""Values that aliases may add to those that are written out."""

DEEPEST = 100
"""Collections inside of each other; a recipe whose virtual experts are made from virtual experts has some ten."""

_LONGEST_NUMBER = 400
_INTEGERS = 2**64


class PlainYamlError(yaml.MarkedYAMLError):
    """YAML that is not read: not valid, or larger, deeper or stranger than any config. Has a position where it can."""

    @property
    def reason(self) -> str:
        """What is wrong, in one line."""
        parts = [each for each in (self.context, self.problem) if each]
        return printable(", ".join(" ".join(str(each).split()) for each in parts))

    def __str__(self) -> str:
        mark = self.problem_mark or self.context_mark
        return self.reason if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {self.reason}"


def compose(text: str) -> Any:
    """The tree of nodes of a text with one document, with the position of each; None for an empty one.

    Raises:
        PlainYamlError: it is no YAML, nested too deeply, an alias is inside of what it stands for, or all aliases
            together stand for more than :data:`MOST_REPEATED` values.
    """
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except PlainYamlError:
        raise
    except yaml.MarkedYAMLError as error:
        raise PlainYamlError(error.context, error.context_mark, error.problem, error.problem_mark) from error
    except (yaml.YAMLError, ValueError) as error:  # signs that YAML forbids have no mark
        raise PlainYamlError(problem=" ".join(str(error).split())) from error
    except RecursionError:
        raise PlainYamlError(problem="it is nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()
    if node is not None:
        written: set[int] = set()
        _check_size(node, _expanded(node, {}, written), len(written))
    return node


def construct(node: Any) -> Any:
    """Plain data of a tree of :func:`compose`.

    Raises:
        PlainYamlError: a tag that asks for anything else, a value that is none (a date in month 13), a number that
            nobody means.
    """
    loader = _Loader("")
    try:
        return None if node is None else loader.construct_document(node)
    except PlainYamlError:
        raise
    except yaml.MarkedYAMLError as error:
        raise PlainYamlError(error.context, error.context_mark, error.problem, error.problem_mark) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise PlainYamlError(problem=str(error), problem_mark=node.start_mark) from error
    except RecursionError:
        raise PlainYamlError(problem="it is nested too deeply", problem_mark=node.start_mark) from None
    finally:
        loader.dispose()


def load(text: str) -> Any:
    """Plain data of a text, in which no key stands twice.

    Raises:
        PlainYamlError: as :func:`compose` and :func:`construct`, or a key stands twice.
    """
    node = compose(text)
    for name, first, second in repeated_keys(node):
        raise PlainYamlError(
            problem=f"the key {name!r} stands there twice, first in line {first.line + 1}", problem_mark=second
        )
    return construct(node)


def repeated_keys(node: Any) -> list[tuple[str, Any, Any]]:
    """(key, mark of the first, mark of the other) of every key that a mapping has twice."""
    found: list[tuple[str, Any, Any]] = []
    seen: set[int] = set()
    left = [] if node is None else [node]
    while left:
        node = left.pop()
        if id(node) in seen:  # an alias points at a node seen before
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys: dict[str, Any] = {}
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in keys:
                        found.append((key.value, keys[key.value], key.start_mark))
                    keys.setdefault(key.value, key.start_mark)
        left.extend(_children(node))
    return sorted(found, key=lambda each: each[2].index)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with bounds on depth, for which it needs quadratic time, and on numbers."""

    def fetch_flow_collection_start(self, token_class: Any) -> None:
        self._check_depth(self.flow_level)
        super().fetch_flow_collection_start(token_class)

    def add_indent(self, column: int) -> bool:
        self._check_depth(len(self.indents))
        return bool(super().add_indent(column))

    def _check_depth(self, depth: int) -> None:
        if depth > DEEPEST:
            raise PlainYamlError(problem="it is nested too deeply", problem_mark=self.get_mark())

    def construct_yaml_int(self, node: Any) -> int:
        self._check_length(node)
        number: int = super().construct_yaml_int(node)
        if abs(number) >= _INTEGERS:
            raise PlainYamlError(
                problem=f"expected a whole number of at most 64 bits, found one of {number.bit_length()}",
                problem_mark=node.start_mark,
            )
        return number

    def construct_yaml_float(self, node: Any) -> float:
        self._check_length(node)
        return float(super().construct_yaml_float(node))

    @staticmethod
    def _check_length(node: Any) -> None:
        if len(node.value) > _LONGEST_NUMBER:
            raise PlainYamlError(
                problem=f"expected a number, found one of {len(node.value)} characters", problem_mark=node.start_mark
            )


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _expanded(node: Any, sizes: dict[int, int | None], written: set[int]) -> int:
    """Values that a node stands for, aliases written out. No deeper than the composer went, so the stack suffices."""
    known = sizes.get(id(node), 0)
    if known is None:
        raise PlainYamlError(problem="an alias stands inside of what it stands for", problem_mark=node.start_mark)
    if known:
        return known
    written.add(id(node))
    sizes[id(node)] = None
    total = 1 + sum(_expanded(each, sizes, written) for each in _children(node))
    sizes[id(node)] = total
    return total


def _check_size(node: Any, expanded: int, written: int) -> None:
    if expanded - written > MOST_REPEATED:
        raise PlainYamlError(
            problem=f"its aliases stand for {float(expanded):.1g} values, and {written} are written out; write out "
            "what is meant",
            problem_mark=node.start_mark,
        )


def dump(data: Any) -> str:
    """Plain data as YAML for people, in the order of its keys; a list of fractions, such as scales, stands in one line.

    :func:`load` reads it back, equal.
    """
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    def represent_list(self, data: Iterable[Any]) -> yaml.SequenceNode:
        values = list(data)
        flow = bool(values) and all(isinstance(each, float) for each in values)
        node: yaml.SequenceNode = self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flow)
        return node


_Dumper.add_representer(list, _Dumper.represent_list)
