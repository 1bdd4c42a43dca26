"""Code that the YAML of tasks can have run: functions that it names, and its templates.

lm-eval imports whatever ``!function`` names, any module of the machine or a file anywhere, and renders templates with
all of Python at hand. Here a folder of tasks may bring functions of its own, in files of its own, which are named
before they run; and templates are rendered in a sandbox.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from evaluators.contract import EvaluatorError

_LOG = logging.getLogger("paretomerge")

_FUNCTION = "!function"
_LARGEST = 1_000_000  # bytes of a YAML file, and values that it may stand for with its aliases written out


def check_code(folder: Path) -> None:
    """Check what the YAML of a folder with tasks names, and say which files of code will be run.

    Args:
        folder: of ``include_path``.

    Raises:
        EvaluatorError: a function or an included file that is neither in the folder nor lm-eval's own, or YAML that
            stands for more than any task has.
    """
    home = folder.resolve()
    code: set[Path] = set()
    for file in sorted(folder.glob("**/*.yaml")):
        root = _composed(file)
        if root is None:
            continue
        for node in _nodes(root, file):
            if node.tag == _FUNCTION:
                code |= _code(str(node.value), file, home)
        for name in _included(root):
            target = (file.parent / name).resolve()
            if not _is_allowed(target, home):
                raise EvaluatorError(
                    f"{file}: includes {name}, which lies outside of include_path ({folder}) and is not lm-eval's; put "
                    "it into that folder"
                )
    for path in sorted(code):
        _announce(path, hashlib.sha256(path.read_bytes()).hexdigest())


@contextmanager
def sandboxed() -> Iterator[None]:
    """Within the context, lm-eval renders templates without access to what objects are made of."""
    from lm_eval import utils

    before = utils.env
    utils.env = _sandbox()
    try:
        yield
    finally:
        utils.env = before


@cache
def _sandbox() -> Any:
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    plain = utils.env
    made = SandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    made.filters.update(plain.filters)
    return made


@cache
def _announce(path: Path, digest: str) -> None:
    _LOG.warning("note: the code of a plug-in is run: %s (sha256:%s…)", path, digest[:12])


def _composed(file: Path) -> Any:
    """The tree of a file; None where it is no YAML, which lm-eval passes over as well."""
    try:
        with file.open("rb") as handle:
            content = handle.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise EvaluatorError(f"{file}: expected the YAML of a task, found more than {_LARGEST // 10**6} MB of it")
        return yaml.compose(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return None


def _nodes(root: Any, file: Path) -> Iterator[Any]:
    """Every node, those that aliases repeat as often as they do."""
    left, seen = [root], 0
    while left:
        node = left.pop()
        seen += 1
        if seen > _LARGEST:
            raise EvaluatorError(f"{file}: its aliases stand for more than {_LARGEST} values; write out what is meant")
        yield node
        if isinstance(node, yaml.MappingNode):
            left.extend(each for pair in node.value for each in pair)
        elif isinstance(node, yaml.SequenceNode):
            left.extend(node.value)


def _code(reference: str, file: Path, home: Path) -> set[Path]:
    """The file that holds a function, found as lm-eval finds it; none where it is one of lm-eval's modules."""
    module = reference.rpartition(".")[0]
    found = (file.parent / f"{module.replace('.', '/')}.py").resolve()
    if found.exists() and found.is_relative_to(home):
        return {found}
    if not found.exists() and module.split(".")[0] == "lm_eval":
        return set()
    raise EvaluatorError(
        f"{file}: {_FUNCTION} {reference!r} names a function that is in no Python file of include_path ({home}); code "
        "from elsewhere is not run: put the function into a file beside the YAML"
    )


def _included(root: Any) -> list[str]:
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    values = [value for key, value in pairs if key.value == "include"]
    nodes = [each for value in values for each in (value.value if isinstance(value, yaml.SequenceNode) else [value])]
    return [str(node.value) for node in nodes]


def _is_allowed(path: Path, home: Path) -> bool:
    import lm_eval

    return any(path.is_relative_to(each) for each in (home, Path(str(lm_eval.__file__)).resolve().parent))
