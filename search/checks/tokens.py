"""The tokens of the models: vocabularies, special tokens, chat templates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merging.bounded import printable, read_json, read_text
from merging.sources import BASE, Sources
from search.checks.models import Models, place_of
from search.checks.subject import Subject

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_LARGEST_TEMPLATE = 1_000_000


def check_tokens(subject: Subject, models: Models) -> None:
    """Say where models do not read and write text alike. The run asks all of them through the base's tokenizer."""
    if models.sources is not None:
        _tell_notes(subject, models.sources)
    settings = {alias: settings_of(folder) for alias, folder in models.folders.items()}
    own = settings.pop(BASE, None)
    if own is None:
        return
    for alias, theirs in settings.items():
        if not theirs:
            continue  # an expert without tokenizer files uses the base's
        _compare_special(subject, alias, own, theirs)
        _compare_templates(subject, alias, own, theirs)


def settings_of(folder: Path) -> dict[str, Any]:
    """What a model's folder says of its special tokens, chat template and the end of an answer; empty where it says
    nothing.

    Returns:
        "bos_token" and its like as text, "chat_template" as a hash of it, "eos_token_id" as a sorted list.
    """
    found: dict[str, Any] = {}
    config, generation = _json(folder / "tokenizer_config.json"), _json(folder / "generation_config.json")
    listed = _json(folder / "special_tokens_map.json") | config
    for key in _SPECIAL:
        token = listed.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[key] = token
    template = config.get("chat_template")
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            template = read_text(file, _LARGEST_TEMPLATE, regular=True)
        except (OSError, UnicodeDecodeError):
            template = None
    if template:
        found["chat_template"] = hashlib.sha256(str(template).encode()).hexdigest()
    ends = generation.get("eos_token_id")
    if ends is not None:
        found["eos_token_id"] = sorted(map(str, ends if isinstance(ends, list) else [ends]))
    return found


def _tell_notes(subject: Subject, sources: Sources) -> None:
    """What aligning the vocabularies found, at the model that it speaks of."""
    for note in sources.notes:
        about = [alias for alias, each in sources.checkpoints.items() if str(each.path) in note]
        place = place_of(max(about, key=lambda alias: len(str(sources.checkpoints[alias].path)), default=BASE))
        if "has no place for" in note:
            subject.findings.warn(place, note)
        else:
            subject.findings.note(place, note)


def _compare_special(subject: Subject, alias: str, own: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    unlike = [key for key in (*_SPECIAL, "eos_token_id") if key in own and key in theirs and own[key] != theirs[key]]
    if unlike:
        listed = ", ".join(f"{key} {_shown(theirs[key])} (base: {_shown(own[key])})" for key in unlike)
        said = (
            f"its special tokens differ from the base's: {listed}. Models are asked with the base's tokenizer: an "
            "answer of this expert may not end where it was taught to"
        )
        if any(key.startswith("eos") for key in unlike):
            subject.findings.warn(place_of(alias), said)
        else:
            subject.findings.note(place_of(alias), said.partition(": an answer")[0])


def _compare_templates(subject: Subject, alias: str, own: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    here, there = own.get("chat_template"), theirs.get("chat_template")
    if here == there or there is None:
        return
    if here is None:
        said = "it has a chat template, and the base has none: evaluators ask without one"
    else:
        said = "its chat template is not the base's, with which evaluators ask"
    subject.findings.note(
        place_of(alias), f"{said}. If it was trained on conversations, put its template into the base's folder"
    )


def _shown(value: Any) -> str:
    return printable(", ".join(value) if isinstance(value, list) else repr(value), 40)


def _json(file: Path) -> dict[str, Any]:
    """A JSON object of a model's folder; empty where there is none that can be read: who needs it says so."""
    try:
        data = read_json(file)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
