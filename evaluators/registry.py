"""Names of evaluators, and what they lead to. Nothing is imported before it is asked for.

A name is one of the built-in ones, an entry point of the group ``paretomerge.evaluators`` in an installed package, or a
file: ``path/to/file.py:ClassName``. The class declares its options as a pydantic model, ``Options``, and is built with
an instance of it.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from evaluators.contract import Evaluator, EvaluatorError

GROUP = "paretomerge.evaluators"

_LOG = logging.getLogger("paretomerge")

BUILT_IN = {
    "exact_match": "evaluators.exact_match:ExactMatch",
    "choice": "evaluators.choice:Choice",
    "perplexity": "evaluators.perplexity:Perplexity",
    "drift": "evaluators.drift:Drift",
    "length": "evaluators.length:Length",
    "throughput": "evaluators.length:Throughput",
    "python": "evaluators.python_function:PythonFunction",
    "wer": "evaluators.wer.evaluator:WordErrorRate",
    "classification": "evaluators.classification:Classification",
    "reward_pairs": "evaluators.reward_pairs:RewardPairs",
    "similarity": "evaluators.similarity:Similarity",
    "refusal": "evaluators.refusal:Refusal",
    "lm_eval": "evaluators.lm_eval_tasks:LmEval",
}


def names() -> list[str]:
    """All evaluators that can be named: built in, then those of installed packages."""
    return [*BUILT_IN, *sorted(_installed())]


def options_model(name: str, *, folder: Path | None = None) -> type[BaseModel]:
    """The pydantic model of an evaluator's options, for a config to validate and for its schema.

    Args:
        name: a registered name, or ``file.py:ClassName``.
        folder: where a relative file is looked for; the current folder if None.

    Raises:
        EvaluatorError: no such evaluator, or one without options.
    """
    options: type[BaseModel] = _load(name, folder).Options
    return options


def build(name: str, options: Mapping[str, Any] | BaseModel, *, folder: Path | None = None) -> Evaluator:
    """An evaluator, with its data read and checked.

    Args:
        name: as in :func:`options_model`.
        options: as a mapping, which is validated, or as an instance of the evaluator's own model.
        folder: as in :func:`options_model`.

    Raises:
        EvaluatorError: no such evaluator, options it does not take, or data it cannot use.
    """
    kind = _load(name, folder)
    if not isinstance(options, kind.Options):
        if isinstance(options, BaseModel):
            options = options.model_dump()
        try:
            options = kind.Options.model_validate(dict(options))
        except ValidationError as error:
            raise EvaluatorError(f"options of {name}: {_problems(error)}") from error
    evaluator: Evaluator = kind(options)
    return evaluator


def source_hash(name: str, *, folder: Path | None = None) -> str:
    """sha256 of the file that defines an evaluator: part of the identity of a run that uses a plug-in."""
    file = getattr(sys.modules[_load(name, folder).__module__], "__file__", None)
    if file is None:
        raise EvaluatorError(
            f'the evaluator "{name}" has no source file, so a run with it could not be told from another'
        )
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _load(name: str, folder: Path | None) -> Any:
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        found = object_in_file((folder or Path()) / path, attribute)
    elif name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found = getattr(importlib.import_module(module), attribute)
    else:
        found = _from_package(name)
    options = getattr(found, "Options", None)
    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        raise EvaluatorError(
            f'the evaluator "{name}" declares no options: expected a class with an attribute Options, a pydantic '
            f"model, found {found!r}"
        )
    return found


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in BUILT_IN}


def _from_package(name: str) -> Any:
    points = _installed()
    if name not in points:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there is: {', '.join(names())};"
        raise EvaluatorError(
            f'no evaluator is called "{name}"; {hint} one of your own is named by its file, path/to/file.py:ClassName'
        )
    _announce(points[name].value)
    try:
        return points[name].load()
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything, and must not end the run
        raise EvaluatorError(
            f'the evaluator "{name}" ({points[name].value}) cannot be imported: {type(error).__name__}: {error}'
        ) from error


@cache
def _announce(entry_point: str) -> None:
    _LOG.warning("note: the code of a plug-in is run: %s, of an installed package", entry_point)


def object_in_file(path: Path, attribute: str) -> Any:
    """What a user's Python file defines under a name. The file as it is now is run once a process.

    Raises:
        EvaluatorError: no such file, one that cannot be imported, or no such name in it.
    """
    if not path.is_file():
        raise EvaluatorError(f"expected a Python file that defines {attribute} at {path}, and there is none")
    path = path.resolve()
    source = path.read_bytes()
    digest = hashlib.sha256(str(path).encode() + b"\0" + source).hexdigest()
    module_name = f"paretomerge_plugin_{digest[:16]}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise EvaluatorError(f"{path} cannot be imported as a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        _LOG.warning(
            "note: the code of a plug-in is run: %s (sha256:%s…)", path, hashlib.sha256(source).hexdigest()[:12]
        )
        try:
            # Not by its loader: a compiled file of the same second and size would be taken for this one.
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
        except (Exception, SystemExit) as error:  # a stranger's module may raise anything, and must not end the run
            del sys.modules[module_name]
            raise EvaluatorError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise EvaluatorError(f"{path} defines no {attribute}{hint}")
    return getattr(module, attribute)


def _problems(error: ValidationError) -> str:
    found = []
    for problem in error.errors():
        # "data table" and its like say which alternative was taken, and are no keys
        place = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("data "))
        message = problem["msg"].removeprefix("Value error, ")
        found.append(f"{place}: {message}" if place else message)
    return "; ".join(found)
