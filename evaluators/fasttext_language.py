"""In which language a text is, by a fastText model: the judge of EvoLLM's published protocol.

Akiba et al. 2025 count an answer on MGSM-JA where it is right and fastText's ``lid.176.ftz`` finds Japanese likelier
than one half, over the whole answer with its line ends taken out. The library is an optional dependency, and the model
is a file that the user names: it has a licence of its own.
"""

from __future__ import annotations

import hashlib
import importlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from evaluators.contract import EvaluatorError

MODEL_URL: Final = "https://dl.fbaipublicfiles.com/fasttext/supervised-models/lid.176.ftz"
"""Where the published model is: 0.9 MB, CC BY-SA 3.0."""

_MAGIC: Final = 793712314
_ARGUMENTS: Final = 8 + 12 * 4 + 8
"""Bytes before the dictionary: magic number, version, what the model was trained with."""

_LABEL: Final = "__label__"
_ALL: Final = -1


class FasttextOptions(BaseModel):
    """A language as a fastText model tells it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str = Field(pattern="^[A-Za-z_-]{2,20}$", description="the language, as the model's labels have it: ja")
    fasttext: Path = Field(
        description=f"file of the model: lid.176.ftz from {MODEL_URL} (CC BY-SA 3.0), or any supervised fastText model "
        "whose labels are languages"
    )
    above: float = Field(0.5, ge=0.0, lt=1.0, description="the probability that the language must exceed")


def _form(value: object) -> str | None:
    """Which of the forms of ``language`` is meant, so that errors speak of that one alone."""
    if isinstance(value, str):
        return "language code"
    return "language model" if isinstance(value, Mapping | FasttextOptions) else None


Language = Annotated[
    Annotated[str, Tag("language code")] | Annotated[FasttextOptions, Tag("language model")],
    Discriminator(
        _form,
        custom_error_type="language",
        custom_error_message="expected a code such as ja, or {code: ja, fasttext: lid.176.ftz}",
    ),
]
"""How an option names a language: by its code, or with a model that tells it."""


class FasttextGate:
    """Whether texts are in one language: the model's probability of it is above a bound.

    Args:
        options: language, model and bound.

    Raises:
        EvaluatorError: the library is not installed, the file is missing or no such model, or has no such label.

    The model is asked by the library's own binding: what wraps it differs between builds, and the oldest of them does
    not work with NumPy 2.
    """

    def __init__(self, options: FasttextOptions) -> None:
        self.options = options
        self._model = _load(options.fasttext)
        self._digest = hashlib.sha256(options.fasttext.read_bytes()).hexdigest()
        try:
            labels = {label for _, label in self._model.f.predict("a\n", _ALL, 0.0, "strict")}
        except (ValueError, RuntimeError) as error:  # a model of word vectors has no labels
            raise EvaluatorError(_unreadable(options.fasttext, str(error))) from error
        if _LABEL + options.code not in labels:
            codes = sorted(label.removeprefix(_LABEL) for label in labels)
            raise EvaluatorError(
                f"language: {options.fasttext} has no label {_LABEL}{options.code}; it tells "
                f"{', '.join(codes[:40])}{' and more' if len(codes) > 40 else ''}"
            )

    @property
    def identity(self) -> str:
        """What a verdict depends on: language, bound, and the model's content."""
        return f"{self.options.code}/fasttext {self._digest[:16]} > {self.options.above!r}"

    def probability(self, text: str) -> float:
        """The model's probability of the language, in [0, 1]; of a text with nothing in it, that of an empty line."""
        line = text.replace("\n", "") + "\n"  # one line, as the protocol makes it; the library needs its end
        found = self._model.f.predict(line, _ALL, 0.0, "strict")
        return next((float(p) for p, label in found if label == _LABEL + self.options.code), 0.0)

    def __call__(self, text: str) -> bool:
        """Whether ``text`` is in this language."""
        return self.probability(text) > self.options.above


def _load(path: Path) -> Any:
    try:
        library = importlib.import_module("fasttext.FastText")
    except ImportError as error:
        raise EvaluatorError(
            "language: a fastText model is asked for, and the library is not installed; pip install "
            '"paretomerge[fasttext]", or tell the language by its script instead (language: ja)'
        ) from error
    if not path.is_file():
        raise EvaluatorError(
            f"language: expected a fastText model at {path}, and there is no file; download lid.176.ftz (0.9 MB, CC "
            f"BY-SA 3.0) from {MODEL_URL} to there, or tell the language by its script instead (language: ja)"
        )
    try:
        content = path.read_bytes()
        end = _end_of_model(content)
    except (OSError, struct.error, ValueError, IndexError, OverflowError) as error:
        raise EvaluatorError(_unreadable(path, f"{error}, or it ends too early")) from error
    if end != len(content):
        raise EvaluatorError(_unreadable(path, f"it has {len(content)} bytes where its own sizes ask for {end}"))
    # not load_model, which prints a warning about its past in some builds
    return library._FastText(model_path=str(path))


def _unreadable(path: Path, why: str) -> str:
    return f"language: {path} is no fastText model that can be read ({why}); download it again from {MODEL_URL}"


def _end_of_model(content: bytes) -> int:
    """Where a model in fastText's format (versions 11 and 12) ends, by the sizes that it states.

    The library takes a file that was cut off for a model: it crashes, or reads zeros and says other probabilities.

    Raises:
        ValueError, struct.error, IndexError: it is no such file, or ends before its sizes are told.
    """
    magic, version = struct.unpack_from("<ii", content, 0)
    if magic != _MAGIC or not 11 <= version <= 12:
        raise ValueError("it does not begin as one")
    entries, pruned = struct.unpack_from("<i16xq", content, _ARGUMENTS)
    at = _ARGUMENTS + 28
    for _ in range(entries):
        at = content.index(b"\0", at) + 1 + 9  # a word, its count and kind
    at += 8 * max(pruned, 0)
    quantized = bool(content[at])
    at = _end_of_matrix(content, at + 1, quantized)
    return _end_of_matrix(content, at + 1, quantized and bool(content[at]))


def _end_of_matrix(content: bytes, at: int, quantized: bool) -> int:
    if not quantized:
        rows, columns = struct.unpack_from("<qq", content, at)
        return int(at + 16 + 4 * rows * columns)
    with_norms, rows, _, codes = struct.unpack_from("<?qqi", content, at)
    at = _end_of_quantizer(content, at + 21 + codes)
    return _end_of_quantizer(content, at + rows) if with_norms else at


def _end_of_quantizer(content: bytes, at: int) -> int:
    (dimension,) = struct.unpack_from("<i", content, at)
    return int(at + 16 + 4 * 256 * dimension)
