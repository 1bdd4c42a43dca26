"""What a diagnosis asks a live model: the evaluators of a config, or how well it predicts texts that are given.

Both come as a :class:`Scorer`: named skills in [0, 1], higher is better, and a loss, lower is better. The skills that
speak for an expert are those that a config or the command line gives it, else all.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from search.errors import SearchError

if TYPE_CHECKING:
    from evaluators.contract import Engine, Evaluator, Request
    from evaluators.tables import Row
    from search.config import LoadedConfig
    from search.objectives import Objectives, Target

WINDOW = 2048
"""Tokens of a document that are read at once, at most."""


class Scorer(Protocol):
    """Asks the live model."""

    @property
    def says(self) -> str:
        """What a score is, in a sentence."""
        ...

    @property
    def loss_says(self) -> str:
        """What a loss is, in a few words: the label of an axis."""
        ...

    @property
    def skills(self) -> tuple[str, ...]:
        """Names of all skills."""
        ...

    def of(self, aliases: Sequence[str]) -> tuple[str, ...]:
        """The skills that speak for these experts; all skills where none is any expert's own."""
        ...

    def ask(self, skills: Sequence[str]) -> dict[str, float]:
        """Score the weights that the live model has now: skill -> [0, 1], nan where it gave no finite answer."""
        ...

    def loss(self, scores: Mapping[str, float]) -> float:
        """The loss of a model with these scores."""
        ...


class ConfigScorer:
    """The objectives of a config, on some items of its search split; each on its bounds, turned so that 1 is best."""

    def __init__(self, loaded: LoadedConfig, engine: Engine, items: int | None = None) -> None:
        """Args:
        loaded: whose evaluators.
        engine: over the live model.
        items: of every evaluator, at most; all of them if None.

        Raises:
            SearchError, EvaluatorError: the evaluators' data cannot be used.
        """
        from search.objectives import Objectives
        from search.setup import build_evaluators, prepare_evaluators

        self._engine = engine
        self._evaluators: dict[str, Evaluator] = build_evaluators(loaded)
        self._objectives: Objectives = Objectives.of(loaded, self._evaluators)
        prepare_evaluators(loaded, self._evaluators, engine)
        self._items = {name: each.items("search").ids[:items] for name, each in self._evaluators.items()}

    @property
    def says(self) -> str:
        """See :class:`Scorer`."""
        counts = ", ".join(f"{name} {len(ids)}" for name, ids in self._items.items() if name in self._used)
        return f"The config's objectives on its search split ({counts} items), each on its bounds: 1 is best."

    @property
    def loss_says(self) -> str:
        """See :class:`Scorer`."""
        return "1 − score"

    @property
    def skills(self) -> tuple[str, ...]:
        """See :class:`Scorer`."""
        return self._objectives.names

    @property
    def _used(self) -> set[str]:
        return {each.name.partition(".")[0] for each in self._objectives.targets}

    def of(self, aliases: Sequence[str]) -> tuple[str, ...]:
        """See :class:`Scorer`."""
        own = tuple(each.name for each in self._objectives.targets if each.expert in aliases)
        return own or self.skills

    def ask(self, skills: Sequence[str]) -> dict[str, float]:
        """See :class:`Scorer`."""
        from search.workers.inline import score_model

        targets: list[Target] = [each for each in self._objectives.targets if each.name in skills]
        needed = {each.name.partition(".")[0] for each in targets}
        self._engine.weights_changed()
        evaluators = {name: each for name, each in self._evaluators.items() if name in needed}
        values = score_model(self._engine, evaluators, "search", self._items).values
        return {each.name: each.utility(values[each.name]) if _finite(values, each) else math.nan for each in targets}

    def loss(self, scores: Mapping[str, float]) -> float:
        """See :class:`Scorer`."""
        return 1.0 - sum(scores.values()) / len(scores)


class Text(NamedTuple):
    """A text in tokens.

    Attributes:
        requests: that score it once.
        size: UTF-8 bytes that are scored.
    """

    requests: list[Request]
    size: int


class TextScorer:
    """How well the live model predicts texts: a score is 2 to the power of −bits per byte, which is the probability of
    a byte by the geometric mean; a loss is bits per byte.

    A record has ``text``, which is a document, or ``prompt`` and ``answer``, of which the answer alone is scored.
    """

    def __init__(self, files: Mapping[str | None, Path], engine: Engine, items: int | None = None) -> None:
        """Args:
        files: expert -> its file; None -> a file that is everybody's. JSON Lines, JSON, CSV, TSV or Parquet.
        engine: over the live model.
        items: of every file, at most: a fixed sample; all of them if None.

        Raises:
            SearchError: the model writes no text.
            EvaluatorError: a file cannot be read, or what it holds.
        """
        if not engine.writes_text:
            raise SearchError(
                f"--data: how well texts are predicted can be asked of models that write text, and "
                f"{type(engine.model).__name__} does not; give --config with evaluators for it"
            )
        self._engine = engine
        skills = {_skill(alias, path, files): (alias, path) for alias, path in files.items()}
        self._owners = {skill: alias for skill, (alias, _) in skills.items()}
        self._texts = {skill: _texts_of(path, engine, items) for skill, (_, path) in skills.items()}

    @property
    def says(self) -> str:
        """See :class:`Scorer`."""
        counts = ", ".join(f"{skill} {len(texts)}" for skill, texts in self._texts.items())
        return f"How well texts are predicted ({counts}): a score is 2 to the power of −bits per byte; 1 is best."

    @property
    def loss_says(self) -> str:
        """See :class:`Scorer`."""
        return "bits per byte"

    @property
    def skills(self) -> tuple[str, ...]:
        """See :class:`Scorer`."""
        return tuple(self._texts)

    def of(self, aliases: Sequence[str]) -> tuple[str, ...]:
        """See :class:`Scorer`."""
        own = tuple(skill for skill, owner in self._owners.items() if owner in aliases)
        return own or self.skills

    def ask(self, skills: Sequence[str]) -> dict[str, float]:
        """See :class:`Scorer`."""
        self._engine.weights_changed()
        found = {}
        for skill in skills:
            texts = self._texts[skill]
            answers = self._engine.loglikelihood([each for text in texts for each in text.requests])
            total = math.fsum(each.total for each in answers) if all(map(_is_finite, answers)) else math.nan
            found[skill] = math.exp(total / sum(text.size for text in texts))
        return found

    def loss(self, scores: Mapping[str, float]) -> float:
        """See :class:`Scorer`."""
        if any(each == 0.0 for each in scores.values()):
            return math.inf
        return sum(-math.log2(each) for each in scores.values()) / len(scores)


def score_of(scores: Mapping[str, float]) -> float:
    """One number of several skills: their mean."""
    return sum(scores.values()) / len(scores)


def parse_data(given: Sequence[str], aliases: Sequence[str]) -> dict[str | None, Path]:
    """What ``--data`` names: ``FILE`` for all experts, or ``NAME=FILE`` for each of them.

    Raises:
        SearchError: no such file or expert, or several files for one.
    """
    from search.positions import did_you_mean

    found: dict[str | None, Path] = {}
    for each in given:
        alias, sign, file = each.partition("=")
        owner: str | None = alias if sign and not Path(each).exists() else None
        path = _data_path(file if owner is not None else each)
        if owner is not None and owner not in aliases:
            raise SearchError(
                f"--data {each}: there is no expert {owner!r}; there are: {', '.join(aliases)}."
                f"{did_you_mean(owner, aliases)}"
            )
        if owner in found:
            raise SearchError(
                f"--data {each}: {'all experts have' if owner is None else f'{owner} has'} a file already"
            )
        found[owner] = path
    return found


def _data_path(text: str) -> Path:
    import zoo

    path = zoo.resolve(text) if zoo.is_reference(text) else Path(text).expanduser()
    if not path.is_file():
        what = "a folder" if path.is_dir() else "nothing"
        raise SearchError(
            f"--data {text}: expected a file of texts (JSON Lines with text, or prompt and answer), found {what}"
        )
    return path


def _skill(alias: str | None, path: Path, files: Mapping[str | None, Path]) -> str:
    """An expert's name, or that of everybody's file, with its ending where an expert has the name already."""
    if alias is not None:
        return alias
    return path.stem if path.stem not in files else path.name if path.name not in files else f"{path.name} (all)"


def check_texts(path: Path, items: int | None) -> None:
    """Whether a file holds texts, as far as can be told before there is a model.

    Args:
        path: as of :class:`TextScorer`.
        items: as there.

    Raises:
        EvaluatorError: it cannot be read, or what it holds.
    """
    rows = _rows_of(path, items)
    fields = _fields(rows[0])
    for row in rows:
        for field in fields:
            row.texts(field) if field == "answer" else row.text(field)


def _texts_of(path: Path, engine: Engine, items: int | None) -> list[Text]:
    """The texts of a file, in tokens: a fixed sample of them, whatever their order."""
    rows = _rows_of(path, items)
    make = _document if _fields(rows[0]) == ("text",) else _answer
    return [make(row, engine) for row in rows]


def _rows_of(path: Path, items: int | None) -> list[Row]:
    from evaluators.contract import EvaluatorError
    from evaluators.tables import read_rows

    rows = read_rows(path)
    if not rows:
        raise EvaluatorError(f"{path}: expected texts, found an empty file")
    if items is not None and len(rows) > items:
        rows = sorted(rows, key=_drawn)[:items]
    return list(rows)


def _drawn(row: Row) -> str:
    return hashlib.sha256(json.dumps(row.record, sort_keys=True, default=repr).encode(errors="replace")).hexdigest()


def _fields(row: Row) -> tuple[str, ...]:
    """What a file's records have: its first one says."""
    if "text" in row.record:
        return ("text",)
    if "prompt" in row.record and "answer" in row.record:
        return ("prompt", "answer")
    found = ", ".join(sorted(map(str, row.record))) or "nothing"
    raise row.error(f"expected the fields prompt and answer, or text, found {found}; rename them")


def _document(row: Row, engine: Engine) -> Text:
    from evaluators.documents import first_token, windows

    text = row.text("text")
    tokens = engine.encode(text, special=False)
    _check_known(row, tokens, engine)
    limit = max(2, min(WINDOW, engine.max_length or WINDOW))
    return Text(windows(tokens, first_token(engine), limit), len(text.encode()))


def _answer(row: Row, engine: Engine) -> Text:
    from evaluators.prompts import PromptOptions, Prompts

    answer = row.texts("answer")[0]
    request = Prompts(PromptOptions()).encode_with(engine, {"prompt": row.text("prompt")}, " " + answer)
    _check_known(row, request.continuation, engine)
    length = len(request.context) + len(request.continuation)
    if not request.context or (engine.max_length is not None and length > engine.max_length):
        what = "has no tokens" if not request.context else f"and its answer are {length} tokens, too many for the model"
        raise row.error(f"the prompt {what}; change or remove this record")
    return Text([request], len(answer.encode()))


def _check_known(row: Row, tokens: Sequence[int], engine: Engine) -> None:
    if not tokens or (engine.unknown is not None and engine.unknown in tokens):
        raise row.error(
            "the text holds what the tokenizer has no token for, so that no model could predict it; remove it"
        )


def _finite(values: Mapping[str, float], target: Target) -> bool:
    return math.isfinite(values[target.name])


def _is_finite(answer: object) -> bool:
    return math.isfinite(answer.total)  # type: ignore[attr-defined]
