"""lm-eval's tasks behind the contract of :mod:`evaluators.contract`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PrivateAttr

from evaluators.base import ItemEvaluator, Verdict
from evaluators.contract import SPLITS, Engine, EvaluatorError, Metric, Split
from evaluators.items import Item, Parsed, Table, read_splits, split_tables
from evaluators.lm_eval_tasks.asking import Ask, Encoder, answer, is_usable
from evaluators.lm_eval_tasks.columns import Column, columns_of
from evaluators.lm_eval_tasks.containment import contained
from evaluators.lm_eval_tasks.judging import Judge
from evaluators.lm_eval_tasks.loading import LoadedTask, TaskLoader, digest
from evaluators.lm_eval_tasks.options import LmEvalOptions, as_tuple
from evaluators.lm_eval_tasks.rendering import chat_template, instances_of
from evaluators.tables import Row

_LOG = logging.getLogger("paretomerge")


@dataclass(frozen=True)
class Document:
    """What is kept of an item: a document of a task.

    Attributes:
        task: index of the task.
        doc_id: lm-eval's: the index of the document in its task.
    """

    task: int
    doc_id: int


@dataclass(frozen=True)
class Prepared:
    """A document's requests: lm-eval's instances, in the order of their ``idx``, and the same in tokens."""

    instances: tuple[Any, ...]
    asks: tuple[Ask, ...]


class _Documents(Table):
    """Documents of tasks as a table of records."""

    _rows: list[Row] = PrivateAttr(default_factory=list)

    def read(self) -> list[Row]:
        """One a document."""
        return self._rows


class LmEval(ItemEvaluator[LmEvalOptions, Document, Prepared]):
    """Any task of lm-eval that asks texts of a language model.

    An item is one document of one task. Metrics have lm-eval's names: ``acc``; ``acc@filter`` where a task has several
    filters; ``task.acc`` where there are several tasks, unless ``pool`` is set. Perplexities come as their logarithm
    (``log_word_perplexity``); metrics that are no mean over items are refused. Aggregates over all documents of a task
    are lm-eval's own numbers. An item is "failed" where the model's logits are not finite, where it finds all tokens of
    all choices equally likely, or where the task's own code cannot judge its answer.

    Args:
        options: see :class:`LmEvalOptions`.

    Raises:
        EvaluatorError: no such task, a data set that cannot be had, metrics that cannot be reported.
    """

    kind: ClassVar[str] = "lm_eval"
    version: ClassVar[int] = 1
    asks_text = True
    Options: ClassVar[type[LmEvalOptions]] = LmEvalOptions

    def __init__(self, options: LmEvalOptions) -> None:
        _require()
        self._tasks, self._places = _load(options)
        self._columns = _columns(options, self._tasks)
        metrics = {column.metric.name: column.metric for own in self._columns for column in own}
        self._metrics = tuple(metrics.values())
        self._silent = [
            dict.fromkeys(set(metrics) - {column.metric.name for column in own}, 0.0) for own in self._columns
        ]
        self._weights: dict[str, dict[str, float]] = {}
        self._blamed: set[str] = set()
        super().__init__(options)
        with contained():
            self._judges = [Judge(loaded) for loaded in self._tasks]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """lm-eval's metrics that are means over items, of all tasks."""
        return self._metrics

    def read(self) -> dict[Split, list[Item[Document]]]:
        """The documents of all tasks, cut into splits by content unless the splits are different tasks."""
        if all(place is None for place in self._places):
            rows = [row for index in range(len(self._tasks)) for row in self._rows(index)]
            table = _table(", ".join(loaded.name for loaded in self._tasks), self.options.shares, rows)
            return read_splits(table, self.parse, limit=self.options.limit)
        tables: dict[Split, Path | Table] = {}
        for split in SPLITS:
            own = [index for index, place in enumerate(self._places) if place == split]
            rows = [row for index in own for row in self._rows(index, once=True)]
            tables[split] = _table(", ".join(self._tasks[index].name for index in own), self.options.shares, rows)
        return read_splits(tables, self.parse, limit=self.options.limit)

    def parse(self, row: Row) -> Parsed[Document]:
        """A document as an item, named by its task (and split, where these differ) and its ``doc_id``."""
        document = Document(row.record["task"], row.record["doc_id"])
        name, doc = self._tasks[document.task].name, row.record["doc"]
        several = len({loaded.name for loaded in self._tasks}) > 1
        own = doc.get("stratum")
        label = name if several else (own if isinstance(own, str) else "")
        place = self._places[document.task]
        split = f"{place}/" if place is not None and not several else ""
        content = [name if several and place is None else "", doc]
        cluster = digest(doc) if several else ""
        return Parsed(document, digest(content), label, cluster, f"{split}{name}/{document.doc_id}")

    def identity(self) -> object:
        """The options that matter, lm-eval's version, and each task's configuration, code and worked examples."""
        from importlib.metadata import version

        options = self.options.model_dump(mode="json", exclude={"data", "limit", "include_path", "shares", "tasks"})
        with contained():
            return [version("lm_eval"), options, [digest(loaded.identity()) for loaded in self._tasks]]

    def weights(self, item: Item[Document]) -> Mapping[str, float]:
        """Bytes or words of the document, for metrics that count them; 0 for other tasks' metrics."""
        return self._weights.get(item.id) or self._silent[item.value.task]

    def prepare_items(self, engine: Engine, items: Sequence[Item[Document]]) -> dict[str, Prepared]:
        """Write every prompt, once, and turn it into tokens."""
        names = {item.value: item for item in items}
        encoder = Encoder(engine, self.options.seed)
        prepared: dict[str, Prepared] = {}
        self._weights = {}
        with contained():
            template = chat_template(engine) if self.options.chat else None
            for index, loaded in enumerate(self._tasks):
                for doc_id, instances in enumerate(instances_of(loaded, self.options, template)):
                    item = names.get(Document(index, doc_id))
                    if item is None:
                        continue
                    asks = tuple(encoder.ask(instance, item.place) for instance in instances)
                    prepared[item.id] = Prepared(tuple(instances), asks)
                    self._weights[item.id] = self._own_weights(item, asks)
        if encoder.cut:
            _LOG.warning(
                "note: %s: %d prompts are longer than the model; they are cut on the left, as lm-eval does",
                self._tasks[0].name, encoder.cut,
            )  # fmt: skip
        return prepared

    def score_items(self, engine: Engine, items: Sequence[tuple[Item[Document], Prepared]]) -> list[Verdict]:
        """Ask everything at once, then let each task judge its documents."""
        asks = [ask for _, prepared in items for ask in prepared.asks]
        answers = iter(answer(engine, asks))
        responses = [[next(answers) for _ in prepared.asks] for _, prepared in items]
        verdicts: list[Verdict] = [Verdict(status="failed", weights=self.weights(item)) for item, _ in items]
        for index, judge in enumerate(self._judges):
            own = [
                place
                for place, (item, _) in enumerate(items)
                if item.value.task == index and is_usable(items[place][1].asks, responses[place])
            ]
            if not own:
                continue
            with contained():
                results = judge(
                    [items[place][0].value.doc_id for place in own],
                    [items[place][1].instances for place in own],
                    [responses[place] for place in own],
                    self._blame,
                )
                for place, result in zip(own, results, strict=True):
                    verdicts[place] = self._verdict(items[place][0], result)
        return verdicts

    def _verdict(self, item: Item[Document], results: Mapping[str, Mapping[str, Any]] | None) -> Verdict:
        own = self.weights(item)
        if results is None:
            return Verdict(status="failed", weights=own)
        values: dict[str, float] = {}
        weights = dict(own)
        for column in self._columns[item.value.task]:
            share = column.share(results[column.filter], item.place)
            if share is None:
                return Verdict(status="failed", weights=own)
            values[column.metric.name], weights[column.metric.name] = share
        return Verdict(values, "ok", weights)

    def _own_weights(self, item: Item[Document], asks: Sequence[Ask]) -> dict[str, float]:
        """What an item counts for whatever the answer: asked of the task with an answer that is none of a model's."""
        weights = dict(self._silent[item.value.task])
        if any(ask.kind == "generate_until" for ask in asks):
            return weights
        made_up = [-1.0 if ask.kind == "loglikelihood_rolling" else (-1.0, False) for ask in asks]
        try:
            results = self._judges[item.value.task].process(item.value.doc_id, made_up)
        except Exception as error:
            raise EvaluatorError(
                f"{item.place}: the task cannot judge it ({type(error).__name__}: {error}); correct the document or "
                "the task"
            ) from error
        for column in self._columns[item.value.task]:
            share = column.share(results, item.place)
            if share is not None:
                weights[column.metric.name] = share.weight
        return weights

    def _rows(self, index: int, *, once: bool = False) -> list[Row]:
        loaded = self._tasks[index]
        seen: set[str] = set()
        rows = []
        for doc_id, doc in enumerate(loaded.docs):
            if once and (content := digest(doc)) in seen:
                continue
            if once:
                seen.add(content)
            rows.append(Row({"task": index, "doc_id": doc_id, "doc": doc}, f"{loaded.name}: document {doc_id}"))
        if len(rows) < len(loaded.docs):
            repeated = len(loaded.docs) - len(rows)
            _LOG.warning("note: %s: %d documents occur more than once; each is counted once", loaded.name, repeated)
        return rows

    def _blame(self, name: str, error: Exception) -> None:
        """Say once a task that its code could not judge an answer."""
        if name not in self._blamed:
            self._blamed.add(name)
            _LOG.warning(
                "note: the code of the lm-eval task %s could not judge an answer (%s: %s); such items count as failed",
                name, type(error).__name__, error,
            )  # fmt: skip


def _require() -> None:
    try:
        with contained():
            import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise EvaluatorError(
            f"the evaluator lm_eval needs the package lm-eval ({error}); install it: pip install lm-eval"
        ) from error


def _load(options: LmEvalOptions) -> tuple[list[LoadedTask], list[Split | None]]:
    """Every task, and the split that it is; None for all of them."""
    loader = TaskLoader(options)
    if isinstance(options.tasks, dict):
        pairs = [(loaded, split) for split in SPLITS for loaded in loader.load(options.tasks[split])]
        return [loaded for loaded, _ in pairs], [split for _, split in pairs]
    if options.data is None:
        tasks = loader.load(options.tasks)
        return tasks, [None] * len(tasks)
    name = as_tuple(options.tasks)[0]
    if isinstance(options.data, Table):
        return [loader.load_with(name, {"test": options.data.read()}, "test", None)], [None]
    tables = {str(split): table.read() for split, table in split_tables(options.data).items()}
    return [loader.load_with(name, tables, split, SPLITS[0]) for split in SPLITS], list(SPLITS)


def _columns(options: LmEvalOptions, tasks: Sequence[LoadedTask]) -> list[list[Column]]:
    """The metrics of every task. Splits that are different tasks report what all of them have."""
    by_split = isinstance(options.tasks, dict)
    several = len(tasks) > 1 and not (options.pool or by_split or options.data is not None)
    found = [
        columns_of(loaded.task, loaded.name, f"{loaded.name}." if several else "", options.metrics, options.bounds)
        for loaded in tasks
    ]
    unknown = set(options.bounds) - {column.source for own in found for column in own}
    if unknown:
        raise EvaluatorError(f'bounds: no metric is called "{sorted(unknown)[0]}" among those that are reported')
    if several:
        return found
    first = {column.metric.name: column.metric for own in found for column in own}
    for loaded, own in zip(tasks, found, strict=True):
        for column in own:
            if column.metric != first[column.metric.name]:
                raise EvaluatorError(
                    f'the metric "{column.metric.name}" of the lm-eval task "{loaded.name}" is not what it is in '
                    f'"{tasks[0].name}" (direction or bounds), so that they cannot be one; leave out pool'
                )
    if by_split:
        common = set.intersection(*({column.metric.name for column in own} for own in found))
        if not common:
            raise EvaluatorError("the tasks of the three splits have no metric in common")
        return [[column for column in own if column.metric.name in common] for own in found]
    return found


def _table(label: str, shares: dict[Split, float], rows: list[Row]) -> Table:
    table = _Documents(dataset=label, shares=shares)
    table._rows = rows
    return table
