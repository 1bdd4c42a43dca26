"""The tokens of a model, read from its tokenizer files, and tokenizer files for the tokens of several models."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from merging.bounded import copy_within, read_json
from merging.recipe import MergingError

# The files that make a tokenizer, by pattern. Never code: remote code is not run, and not passed on.
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
    "chat_template.*",
)

# Those that hold nothing but tokens in a form which tokenizer.json replaces.
_REPLACED: tuple[str, ...] = ("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model")
_REPLACED += ("spiece.model", "sentencepiece.bpe.model", "tekken.json")

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model.

    Attributes:
        folder: where its tokenizer files are.
        ids: token -> id, its row in the embedding. No two models of a merge need the same.
    """

    folder: Path
    ids: Mapping[str, int]

    @cached_property
    def content(self) -> str:
        """``sha256:…`` of the tokens and their ids."""
        text = json.dumps(sorted(self.ids.items()), separators=(",", ":"), ensure_ascii=False)
        return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def end(self) -> int:
        """One more than the largest id."""
        return max(self.ids.values(), default=-1) + 1


@dataclass(frozen=True)
class United:
    """The tokens of several models as one tokenizer.

    Attributes:
        ids: token -> id; the first model's tokens have the ids that they had.
        definition: content of its ``tokenizer.json``.
        unreachable: tokens that it never makes out of text, since no rule for it could be carried over.
    """

    ids: Mapping[str, int]
    definition: Mapping[str, Any]
    unreachable: tuple[str, ...]


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Read the tokens of a model folder; None where it holds no tokenizer.

    ``tokenizer.json`` counts, then ``vocab.json`` and ``vocab.txt``; tokens that were added later are looked for
    everywhere. Tokenizers in other files are loaded with transformers.

    Raises:
        MergingError: the files are there but cannot be read.
    """
    names = [name for name in ("tokenizer.json", "vocab.json", "vocab.txt") if (folder / name).is_file()]
    others = (file for pattern in TOKENIZER_FILES[:-1] for file in folder.glob(pattern) if file.suffix != ".py")
    if not names and not any(others):
        return None
    try:
        ids = _listed(folder, names[0]) if names else {}
        if not ids:
            ids = _loaded(folder).get_vocab()
        return Vocabulary(folder, _with_added(folder, ids) if names else ids)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MergingError(
            f"expected tokenizer files in {folder}, found some that cannot be read ({type(error).__name__}: {error}); "
            "save the tokenizer again with save_pretrained"
        ) from error


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer files of a model folder as they are."""
    _copy(source, folder, ())


def write_united(united: United, source: Path, folder: Path) -> None:
    """Write the files of a united tokenizer.

    Args:
        united: its tokens.
        source: folder of the model that gives the settings and the chat template.
        folder: where to write.
    """
    _copy(source, folder, _REPLACED)
    _write_json(folder / "tokenizer.json", united.definition)
    config = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if not config:
        config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if "added_tokens_decoder" in config:  # an older way to say what tokenizer.json says; readers believe it
        config["added_tokens_decoder"] = {
            str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
            for entry in united.definition["added_tokens"]
        }
    _write_json(folder / "tokenizer_config.json", config)


def unite(first: Vocabulary, others: Sequence[Vocabulary]) -> United:
    """One tokenizer with the tokens of all: the first one's, and what it lacks appended in order.

    Tokens that were added to a model (chat markers and the like) are added here, with the same settings. Pieces of a
    model's own vocabulary are added to this one's, with the merge rules or the scores that lead to them.

    Raises:
        MergingError: the first model's tokenizer is of no known kind, or cannot be extended.
    """
    ids = dict(first.ids)
    origins: dict[str, _Definition] = {}
    definitions: list[_Definition] = []
    for other in others:
        if other.ids.keys() <= ids.keys():
            continue
        definition = _Definition.read(other.folder)
        definitions.append(definition)
        for token, _ in sorted(other.ids.items(), key=lambda item: (item[1], item[0])):
            if token not in ids:
                ids[token] = first.end + len(origins)
                origins[token] = definition
    builder = _Builder(first, ids)
    for token, definition in origins.items():
        builder.adopt(token, definition)
    builder.adopt_merges(definitions)
    return builder.build()


@dataclass(frozen=True)
class _Definition:
    """What a ``tokenizer.json`` says.

    Attributes:
        data: its content.
        pieces: tokens of its model -> score, 0 in kinds without scores.
        added: token that was added -> its entry.
    """

    data: dict[str, Any]
    pieces: Mapping[str, float]
    added: Mapping[str, Mapping[str, Any]]

    @staticmethod
    def read(folder: Path) -> _Definition:
        """Of a model folder, made by transformers where there is no such file."""
        try:
            if (folder / "tokenizer.json").is_file():
                data = _json(folder / "tokenizer.json")
            else:
                data = dict(json.loads(_loaded(folder).backend_tokenizer.to_str()))
            added = {entry["content"]: entry for entry in data.get("added_tokens") or []}
            return _Definition(data, _pieces(data["model"]), added)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise MergingError(
                f"expected a tokenizer in {folder} that has or can be given a tokenizer.json, found another kind "
                f"({error}); use the base's tokenizer, or make one yourself and give its folder"
            ) from error

    def merges(self) -> list[tuple[str, str]]:
        """Merge rules, the strongest first; [] in kinds without them."""
        return [_pair(merge) for merge in self.data["model"].get("merges") or []]

    @property
    def kind(self) -> str:
        """BPE, WordPiece, WordLevel or Unigram."""
        model = self.data["model"]
        if "type" in model:
            return str(model["type"])
        if "merges" in model:  # files of before the type was written
            return "BPE"
        return "Unigram" if isinstance(model["vocab"], list) else "WordPiece"


class _Builder:
    """Extends the ``tokenizer.json`` of the first model."""

    def __init__(self, first: Vocabulary, ids: Mapping[str, int]):
        definition = _Definition.read(first.folder)
        self._folder = first.folder
        self._ids = ids
        self._data = copy.deepcopy(definition.data)
        self._model = self._data["model"]
        self._kind = definition.kind
        self._merges = definition.merges()
        self._added: dict[str, Mapping[str, Any]] = dict(definition.added)
        self._pieces: dict[str, float] = {}  # new ones of the model -> score
        for token in first.ids:
            if token not in definition.pieces and token not in self._added:
                self._add(token, {})

    def adopt(self, token: str, definition: _Definition) -> None:
        """Take over a token of another tokenizer."""
        if token in definition.added or token not in definition.pieces:
            self._add(token, definition.added.get(token, {}))
        else:
            self._pieces[token] = definition.pieces[token]

    def adopt_merges(self, definitions: Iterable[_Definition]) -> None:
        """Append the others' merge rules that make new pieces out of known ones: weaker than all that were there."""
        held = set(self._merges)
        for definition in definitions:
            for pair in definition.merges():
                if pair not in held and self._join(pair) in self._pieces and all(part in self._ids for part in pair):
                    held.add(pair)
                    self._merges.append(pair)

    def build(self) -> United:
        """The result, checked by loading it."""
        self._data["added_tokens"] = sorted(self._added.values(), key=lambda entry: int(entry["id"]))
        lost: list[str] = []
        if self._pieces and self._kind == "Unigram":
            self._extend_scores()
        elif self._pieces:
            # The loader counts added tokens on from the model's; those that the model has too keep their ids.
            known = [token for token in (*self._added, *self._pieces) if token not in self._model["vocab"]]
            self._model["vocab"] |= {token: self._ids[token] for token in known}
        if self._pieces and self._kind == "BPE":
            self._model["merges"] = [list(pair) for pair in self._merges]
            made = {self._join(pair) for pair in self._merges}
            lost = [token for token in self._pieces if token not in made and len(token) > 1]
        self._check()
        return United(self._ids, self._data, tuple(lost))

    def _join(self, pair: tuple[str, str]) -> str:
        return pair[0] + pair[1].removeprefix(self._model.get("continuing_subword_prefix") or "")

    def _add(self, token: str, entry: Mapping[str, Any]) -> None:
        flags = {flag: bool(entry.get(flag, False)) for flag in _FLAGS}
        self._added[token] = {"id": self._ids[token], "content": token, **flags}

    def _extend_scores(self) -> None:
        """A unigram vocabulary is a list in the order of ids: what stands between, stands there too."""
        vocabulary = self._model["vocab"]
        lowest = min((float(score) for _, score in vocabulary), default=0.0)
        by_id = {self._ids[token]: token for token in (*self._added, *self._pieces)}
        for number in range(len(vocabulary), max(self._ids.values()) + 1):
            token = by_id.get(number, f"<unused_{number}>")
            vocabulary.append([token, min(self._pieces.get(token, lowest), 0.0)])

    def _check(self) -> None:
        from tokenizers import Tokenizer

        try:
            made = Tokenizer.from_str(json.dumps(self._data)).get_vocab(with_added_tokens=True)
        except Exception as error:  # the library raises bare exceptions
            raise MergingError(self._refusal(str(error))) from error
        wrong = [token for token, number in self._ids.items() if made.get(token) != number]
        if wrong:
            raise MergingError(self._refusal(f"{len(wrong)} tokens would change their ids, first {wrong[0]!r}"))

    def _refusal(self, why: str) -> str:
        return (
            f"the tokens of the other models cannot be added to the tokenizer of {self._folder} ({why}); use the "
            "base's tokenizer, or make one yourself and give its folder"
        )


def _listed(folder: Path, name: str) -> dict[str, int]:
    """Token -> id from one file; empty where it has another form than the usual."""
    if name == "vocab.txt":
        lines = (folder / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return {token: number for number, token in enumerate(lines)}
    data = _json(folder / name)
    if name == "vocab.json":
        return data if all(type(number) is int for number in data.values()) else {}
    ids = {token: number for number, token in enumerate(_pieces(data["model"]))}
    if isinstance(data["model"]["vocab"], dict):
        ids = dict(data["model"]["vocab"])
    return ids | {entry["content"]: int(entry["id"]) for entry in data.get("added_tokens") or []}


def _with_added(folder: Path, ids: dict[str, int]) -> dict[str, int]:
    added: dict[str, int] = {}
    if (folder / "added_tokens.json").is_file():
        added |= {token: int(number) for token, number in _json(folder / "added_tokens.json").items()}
    if (folder / "tokenizer_config.json").is_file():
        listed = _json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
        added |= {entry["content"]: int(number) for number, entry in listed.items()}
    return added | ids


def _loaded(folder: Path) -> Any:
    """The tokenizer as transformers loads it: nothing from the network, no remote code."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizer classes raise whatever they raise
        raise ValueError(f"transformers cannot load it: {error}") from error


def _pieces(model: Mapping[str, Any]) -> dict[str, float]:
    """Pieces of a tokenizer's model -> score; 0 in kinds without scores."""
    if isinstance(model["vocab"], list):
        return {str(token): float(score) for token, score in model["vocab"]}
    return dict.fromkeys(model["vocab"], 0.0)


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _copy(source: Path, folder: Path, without: tuple[str, ...]) -> None:
    for pattern in TOKENIZER_FILES:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and file.suffix != ".py" and file.name not in without:
                copy_within(file, source, folder / file.name)


def _json(file: Path) -> dict[str, Any]:
    data = read_json(file)
    if not isinstance(data, dict):
        raise ValueError(f"{file.name} holds no JSON object")
    return data


def _write_json(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
