"""lm-eval's tasks, loaded once: their documents, and errors that say what is missing."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.contract import EvaluatorError
from evaluators.lm_eval_tasks.code_of_tasks import check_code
from evaluators.lm_eval_tasks.containment import contained
from evaluators.lm_eval_tasks.options import LmEvalOptions, as_tuple
from evaluators.tables import Row, kind_of

_LOG = logging.getLogger("paretomerge")


@dataclass(frozen=True)
class LoadedTask:
    """One of lm-eval's tasks.

    Attributes:
        name: lm-eval's.
        task: lm-eval's object (``lm_eval.api.task.Task``).
        docs: what it asks about, in its own order: lm-eval's ``doc_id`` is the index.
    """

    name: str
    task: Any
    docs: list[dict[str, Any]]

    def identity(self) -> object:
        """What the prompts and verdicts of this task depend on apart from its documents, as JSON: its configuration,
        the source files of the functions that it names, and the worked examples that it draws from."""
        config = self.task.dump_config()
        for place in ("dataset_kwargs", "metadata", "custom_dataset"):  # where the data lie is no part of what they are
            config.pop(place, None)
        shots = self.task.config.num_fewshot or 0
        pool = list(getattr(getattr(self.task, "sampler", None), "df", ())) if shots else []
        # Examples are drawn one document after another, so that all documents decide what stands before each.
        return [self.name, config, sorted(_sources(self.task)), digest([pool, self.docs] if shots else [])]


class TaskLoader:
    """Finds and loads tasks: those of ``include_path`` first, lm-eval's own (seconds to index) only when needed.

    Args:
        options: the evaluator's.
    """

    def __init__(self, options: LmEvalOptions) -> None:
        self._options = options
        self._own: Any = None
        self._manager: Any = None

    def load(self, names: str | Sequence[str]) -> list[LoadedTask]:
        """Tasks by name; a group or a tag is all its tasks.

        Raises:
            EvaluatorError: no such task, a data set that cannot be had, or a task that needs what is not offered here.
        """
        found: dict[str, Any] = {}
        with contained():
            for name in as_tuple(names if isinstance(names, str) else tuple(names)):
                self._index(name)
                found |= self._built(name, name)
            return [self._ready(name, task) for name, task in found.items()]

    def load_with(self, name: str, tables: Mapping[str, list[Row]], split: str, examples: str | None) -> LoadedTask:
        """One task over other records than its own.

        Args:
            name: the task's.
            tables: split -> records.
            split: the one that is asked about.
            examples: the one that worked examples come from, None where there is none to spare.

        Raises:
            EvaluatorError: as :meth:`load`, or it is a group, or records do not fit into one table.
        """
        from lm_eval.tasks._yaml_loader import load_yaml

        with contained():
            self._index(name)
            entry = self._manager.task_index[name]
            config = load_yaml(entry.yaml_path) if entry.yaml_path is not None else {}
            if not isinstance(config.get("task"), str) or "group" in config:
                raise EvaluatorError(f'lm-eval\'s "{name}" is no single task, so that `data` cannot take its place')
            changed = {
                "dataset_path": "records", "dataset_name": None, "dataset_kwargs": None,
                "custom_dataset": _dataset_maker({each: _dataset(rows) for each, rows in tables.items()}),
                "training_split": None, "validation_split": None, "test_split": split, "fewshot_split": examples,
            }  # fmt: skip
            shots = self._options.num_fewshot
            if examples is None and (config.get("num_fewshot") if shots is None else shots):
                given = config.get("fewshot_config")
                if not (isinstance(given, dict) and given.get("samples")):
                    raise EvaluatorError(
                        f'the lm-eval task "{name}" shows worked examples, and of one table that is cut into splits '
                        "none can be spared; give one file a split (they come from the search's), or num_fewshot: 0"
                    )
            built = self._built(name, {**config, **changed})
            return self._ready(name, built[name])

    def _index(self, name: str) -> None:
        """Make the manager that knows a name the present one."""
        from lm_eval.tasks import TaskManager

        path = self._options.include_path
        if path is not None and not path.is_dir():
            raise EvaluatorError(f"include_path: expected a folder with YAML files of tasks at {path}, found none")
        if path is not None:
            if self._own is None:
                check_code(path)
                self._own = TaskManager(include_path=str(path), include_defaults=False)
            self._manager = self._own
            if name in self._own.task_index:
                if not _has_members(self._own, name):
                    self._manager = TaskManager(include_path=str(path))
                return
        self._manager = _all_of_lm_evals()
        if name not in self._manager.task_index:
            known = [*(self._own.all_tasks if self._own is not None else ()), *self._manager.all_tasks]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else "."
            broken = "".join(f" ({problem})" for problem in _unreadable(path))
            raise EvaluatorError(
                f'lm-eval has no task, group or tag "{name}"{hint} One of your own is a YAML file in the folder that '
                f"include_path names{broken}"
            )

    def _built(self, name: str, spec: str | Mapping[str, Any]) -> dict[str, Any]:
        entry = self._manager.task_index.get(name)
        config = (entry.cfg or {}) if entry is not None and isinstance(spec, str) else {}
        source = config.get("dataset_path")
        if isinstance(config.get("task"), str) and not {"dataset_path", "custom_dataset", "class"} & set(config):
            raise EvaluatorError(
                f'the lm-eval task "{name}" names no data set (dataset_path in its YAML); give it records with `data`'
            )
        try:
            return dict(self._manager.load([spec])["tasks"])
        except Exception as error:  # data sets, templates and the code of tasks raise whatever they like
            lines = [line for line in str(error).strip().splitlines() if line.strip()]
            reason = f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no message'}"
            data = f' (data set "{source}")' if source else ""
            raise EvaluatorError(
                f'the lm-eval task "{name}"{data} cannot be loaded: {reason}. A data set from the Hub has to be loaded '
                "once while the network is there; of a task of your own, check the YAML; or give records with `data`"
            ) from error

    def _ready(self, name: str, task: Any) -> LoadedTask:
        """A task with this evaluator's settings, as lm-eval's own ``simple_evaluate`` makes them."""
        if getattr(task, "UNSAFE_CODE", False):
            raise EvaluatorError(f'the lm-eval task "{name}" runs the code that a model writes, which is not done here')
        if getattr(task, "MULTIMODAL", False):
            raise EvaluatorError(f'the lm-eval task "{name}" shows images or sounds, and only texts are asked here')
        shots, own = self._options.num_fewshot, task.get_config("num_fewshot")
        if (shots is not None and own != 0) or own is None:
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=self._options.fewshot_seed)
        if self._options.generation_kwargs and task.OUTPUT_TYPE == "generate_until":
            task.set_config(key="generation_kwargs", value=dict(self._options.generation_kwargs), update=True)
        docs = [dict(doc) for doc in task.eval_docs]
        if not docs:
            raise EvaluatorError(f'the lm-eval task "{name}" has no documents')
        return LoadedTask(name, task, docs)


@cache
def _all_of_lm_evals() -> Any:
    """The index of lm-eval's own tasks: seconds, so once in a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _has_members(manager: Any, name: str) -> bool:
    """Whether everything that a group names is known to a manager; True for what is no group."""
    members = (manager.task_index[name].cfg or {}).get("task")
    if not isinstance(members, list):
        return True
    names = [each if isinstance(each, str) else each.get("task", each.get("group")) for each in members]
    return all(each in manager.task_index for each in names)


def digest(value: object) -> str:
    """sha256 of anything that configurations and documents are made of."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: object) -> object:
    """Values that JSON lacks, in a form that is the same in every process."""
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, date | time | timedelta | Decimal):
        return str(value)
    return getattr(value, "__qualname__", type(value).__qualname__)  # its code is hashed with the files of the task


def _dataset_maker(splits: Mapping[str, Any]) -> Callable[..., Mapping[str, Any]]:
    def custom_dataset(**_: Any) -> Mapping[str, Any]:
        return splits

    return custom_dataset


def _dataset(rows: Sequence[Row]) -> Any:
    """Records as the ``datasets`` library has them, in memory: nothing is written to its cache."""
    from datasets import Dataset

    kinds: dict[str, tuple[str, Row]] = {}
    for row in rows:
        for field, value in row.record.items():
            if value is None:
                continue
            kind, first = kinds.setdefault(field, (kind_of(value), row))
            if kind != kind_of(value):
                raise row.error(
                    f'the field "{field}" is {kind_of(value)}, and {kind} at {first.place}; lm-eval reads records as '
                    "one table: write it the same way everywhere"
                )
    try:
        return Dataset.from_list([dict(row.record) for row in rows])
    except Exception as error:  # pyarrow has its own exceptions for values that do not fit together
        raise EvaluatorError(
            f"the records at {rows[0].place} and after make no table: {error}; give every field one kind of value"
        ) from error


def _sources(task: Any) -> Iterator[str]:
    """sha256 of the files that hold a task's own code."""
    from lm_eval.api.task import ConfigurableTask

    parts = [vars(task.config), vars(task.config.fewshot_config) if task.config.fewshot_config else {}]
    functions: list[Any] = [value for part in parts for value in part.values() if callable(value)]
    for metric in task.config.metric_list or ():
        functions += [value for value in metric.values() if callable(value)]
    if type(task) is not ConfigurableTask:
        functions.append(type(task))
    for function in functions:
        if getattr(function, "__module__", "") != __name__:
            file = inspect.getsourcefile(inspect.unwrap(function))
            yield hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else repr(function)


def _unreadable(path: Path | None) -> Iterator[str]:
    """What is wrong with YAML files that lm-eval has passed over in silence."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for file in sorted(path.glob("**/*.yaml")) if path is not None else ():
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:  # YAML, missing includes, whatever a file can be
            yield f"{file} cannot be read: {' '.join(str(error).split())}"
