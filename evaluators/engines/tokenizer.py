"""What an engine must know of a tokenizer: where it is, which ids end an answer, whether texts have one spelling."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from pathlib import Path
from typing import Any

from torch import nn

from evaluators.contract import EvaluatorError

_TEMPLATE_SECONDS = 20.0

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model folder. Nothing is downloaded, and no code from the folder runs.

    Args:
        path: a folder in the Hugging Face layout.

    Raises:
        EvaluatorError: no folder, no tokenizer in it, or one that cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise EvaluatorError(f"expected a model folder with a tokenizer at {folder}, and there is no such folder")
    if not has_tokenizer(folder):
        raise EvaluatorError(
            f"the folder {folder} holds no tokenizer (none of {', '.join(_FILES)}); copy the tokenizer files of the "
            "base model into it, or name the folder that has them"
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise bare Exceptions for damaged files
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        raise EvaluatorError(
            f"the tokenizer in {folder} cannot be read ({reason}); check that its files are complete; tokenizers that "
            "need code of their own are not loaded"
        ) from error
    _check_chat_template(tokenizer, folder)
    return tokenizer


def _check_chat_template(tokenizer: Any, folder: Path) -> None:
    """Render a message with a stranger's program, which transformers runs in a sandbox but without an end.

    Raises:
        EvaluatorError: it needs longer than any template does.
    """
    if not getattr(tokenizer, "chat_template", None) or threading.current_thread() is not threading.main_thread():
        return

    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, _TEMPLATE_SECONDS)
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    except _TooLong:
        raise EvaluatorError(
            f"the chat template of the tokenizer in {folder} takes more than {_TEMPLATE_SECONDS:g} s for one message, "
            "so that it is damaged or made to hang; restore it, or remove it"
        ) from None
    except Exception:  # not every template takes a lone message; what is really asked is refused when it is asked
        return
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, before)


class _TooLong(BaseException):
    """Of a template: no Exception, so that the template cannot catch it."""


def has_tokenizer(folder: Path) -> bool:
    """Whether a model folder holds a tokenizer's files."""
    return any((folder / name).is_file() for name in _FILES)


def end_tokens(model: nn.Module, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end an answer, the tokenizer's own first: its end of text, and all that the generation settings name."""
    found: list[int] = []
    settings = getattr(model, "generation_config", None)
    for value in (tokenizer.eos_token_id, getattr(settings, "eos_token_id", None)):
        for token in value if isinstance(value, list | tuple) else [value]:
            if token is not None and int(token) not in found:
                found.append(int(token))
    return tuple(found)


def has_one_spelling(tokenizer: Any) -> bool:
    """Whether a text, white space and special tokens apart, is provably one token sequence, and the other way round.

    Proved for word-level vocabularies that are split at white space and joined with spaces: each word is one entry, so
    decoding loses nothing but the width of the spaces. Everything with sub-words has several spellings a text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    description = json.loads(backend.to_str())
    if description["model"].get("type") != "WordLevel" or description.get("decoder") is not None:
        return False
    if (description.get("pre_tokenizer") or {}).get("type") not in ("Whitespace", "WhitespaceSplit"):
        return False
    special = set(tokenizer.all_special_ids)
    words = [word for word, token in tokenizer.get_vocab().items() if token not in special]
    return all(word and not any(letter.isspace() for letter in word) for word in words)


def tokenizer_hash(tokenizer: Any) -> str:
    """Eight bytes, in hexadecimal, of what turns text into ids: equal for equal tokenizers, wherever they lie."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        description = json.loads(backend.to_str())
        for passing in ("truncation", "padding"):  # settings of the last call, not of the tokenizer
            description.pop(passing, None)
    else:
        description = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    description["special"] = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def chat_template_hash(tokenizer: Any) -> str:
    """``,chat=<hash>`` of a tokenizer's chat template, "" where there is none: prompts depend on it."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return ""
    return f",chat={hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]}"
