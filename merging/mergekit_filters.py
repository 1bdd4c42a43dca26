"""Values of tensors in mergekit's short forms: one value, gradients over the blocks, filters by parts of names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from merging.mergekit_values import evaluate
from merging.recipe import MergingError, Value

_ANY = "*"  # stands for a number in what is common to several names
_DEFAULTS = 4  # values that are tried as the one without a filter
_DISTINCT = 64  # values or gradients among which filters by module are looked for
_WORK = 4_000_000  # comparisons of a filter with a name, of which reading a config takes as many again


class Stated(NamedTuple):
    """The value of one tensor.

    Attributes:
        value: exact.
        position: on a gradient, as :func:`merging.mergekit_values.evaluate` takes it.
        depth: its block; None outside the blocks.
    """

    value: Value
    position: float
    depth: int | None


def compact(stated: Mapping[str, Stated]) -> Any:
    """A value for a mergekit YAML that evaluates to exactly these values, as short as is easily found.

    Args:
        stated: tensor name, as mergekit matches filters against it -> its value. Not empty.

    Raises:
        MergingError: so many tensors have values of their own that reading the config would take minutes.
    """
    values = {each.value for each in stated.values()}
    if len(values) == 1:
        return values.pop()
    for attempt in (_by_kind, _by_module, _by_block, _by_name):
        rules = attempt(stated)
        if rules is not None and len(rules) * len(stated) <= _WORK and _says(rules, stated):
            return rules
    raise MergingError(f"a mergekit config would need filters for each of {len(stated)} tensors, too many to be read")


def _says(rules: Any, stated: Mapping[str, Stated]) -> bool:
    return all(evaluate(rules, name, each.position) == each.value for name, each in stated.items())


def _by_name(stated: Mapping[str, Stated]) -> Any:
    names = sorted(stated, key=lambda name: (-len(name), name))  # a name that is part of another comes after it
    return [{"filter": name, "value": stated[name].value} for name in names]


def _by_kind(stated: Mapping[str, Stated]) -> Any:
    """Gradients over the blocks, told apart by the words that stand in the name after the block's number."""
    return _by_class(stated, lambda name: ".".join(_ANY if word.isdecimal() else word for word in name.split(".")))


def _by_module(stated: Mapping[str, Stated]) -> Any:
    """The same, told apart by all that stands there: the experts of a mixture have numbers of their own."""
    return _by_class(stated, lambda name: name)


def _by_class(stated: Mapping[str, Stated], kind: Callable[[str], str]) -> Any:
    classes: dict[str, dict[str, Stated]] = {}
    for name, each in stated.items():
        classes.setdefault(kind(name if each.depth is None else _inner(name)), {})[name] = each
    depths = sorted({each.depth for each in stated.values() if each.depth is not None})
    shown: dict[str, Any] = {}
    for inner, members in classes.items():
        shown[inner] = _gradient(members, depths)
    if len({repr(value) for value in shown.values()}) == 1:
        return next(iter(shown.values()))
    examples = {inner: next(iter(members)) for inner, members in classes.items()}
    return _filters(shown, examples, {inner: len(members) for inner, members in classes.items()})


def _inner(name: str) -> str:
    """What stands after the outermost number."""
    tokens = name.split(".")
    at = next(index for index, token in enumerate(tokens) if index and token.isdecimal())
    return ".".join(tokens[at + 1 :])


def _gradient(members: Mapping[str, Stated], depths: list[int]) -> Any:
    """One value for a class of tensors: a knot at every block, where its members differ."""
    if len({each.value for each in members.values()}) == 1:
        return next(iter(members.values())).value
    found = {each.depth: each.value for each in members.values()}
    nearest = sorted(depth for depth in found if depth is not None)
    return [found[min(nearest, key=lambda depth: abs(depth - at))] for at in range(depths[0], depths[-1] + 1)]


def _filters(shown: Mapping[str, Any], examples: Mapping[str, str], weights: Mapping[str, int]) -> Any:
    """Filters, and last one of the more common values without any: the choice that takes the fewest.

    Args:
        shown: class -> its value.
        examples: class -> the name of one of its tensors; all match the same filters.
        weights: class -> number of its tensors.
    """
    counts: Counter[str] = Counter()
    for inner, value in shown.items():
        counts[repr(value)] += weights[inner]
    if len(counts) > _DISTINCT:
        return None
    shortest: dict[frozenset[str], str] = {}
    for part in sorted({part for each in shown for part in _parts(each)}, key=lambda part: (len(part), part)):
        shortest.setdefault(frozenset(inner for inner, name in examples.items() if part in name), part)
    matching = {part: set(inners) for inners, part in shortest.items()}
    found = (_rules(shown, matching, default) for default, _ in counts.most_common(_DEFAULTS))
    return min((rules for rules in found if rules is not None), key=len, default=None)


def _rules(shown: Mapping[str, Any], matching: Mapping[str, set[str]], default: str) -> list[dict[str, Any]] | None:
    """The filters that match most first, each of one value alone; None where some class cannot be told apart.

    Args:
        shown: class -> its value.
        matching: filter -> the classes that it matches.
        default: the value, in text, that needs no filter.
    """
    rules = []
    uncovered = set(shown)
    while any(repr(shown[inner]) != default for inner in uncovered):
        best, matched = "", set[str]()
        for part, inners in matching.items():
            found = inners & uncovered
            kinds = {repr(shown[inner]) for inner in found}
            if len(kinds) == 1 and default not in kinds and (len(found), -len(part)) > (len(matched), -len(best)):
                best, matched = part, found
        if not matched:
            return None
        rules.append({"filter": best, "value": shown[next(iter(matched))]})
        uncovered -= matched
    return [*rules, {"value": next(value for value in shown.values() if repr(value) == default)}]


def _parts(name: str) -> Iterator[str]:
    """Runs of whole words of a name, the name itself among them; no single numbers, nothing that stands for any."""
    words = name.split(".")
    for start in range(len(words)):
        for stop in range(start + 1, len(words) + 1):
            part = ".".join(words[start:stop])
            if not part.isdecimal() and _ANY not in part:
                yield part


def _by_block(stated: Mapping[str, Stated]) -> Any:
    """A filter for every block, or for a module of it, where gradients would not give the exact values."""
    default = Counter(repr(each.value) for each in stated.values()).most_common(1)[0][0]
    blocks: dict[str, dict[str, Stated]] = {}
    for name, each in stated.items():
        blocks.setdefault(name if each.depth is None else name.removesuffix(_inner(name)), {})[name] = each
    rules: list[dict[str, Any]] = []
    for prefix, members in blocks.items():
        if len({repr(each.value) for each in members.values()}) == 1:
            rules.append({"filter": prefix, "value": next(iter(members.values())).value})
            continue
        modules: dict[str, dict[str, Stated]] = {}
        for name, each in members.items():
            modules.setdefault(prefix + name.removeprefix(prefix).split(".")[0] + ".", {})[name] = each
        for start, tensors in modules.items():
            if len({repr(each.value) for each in tensors.values()}) == 1:
                rules.append({"filter": start, "value": next(iter(tensors.values())).value})
            else:
                rules += [{"filter": name, "value": each.value} for name, each in tensors.items()]
    kept = [rule for rule in rules if repr(rule["value"]) != default]
    return [*kept, {"value": next(each.value for each in stated.values() if repr(each.value) == default)}]
