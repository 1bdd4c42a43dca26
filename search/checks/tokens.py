"""The tokens of the models: vocabularies, special tokens, chat templates."""

from __future__ import annotations

from typing import Any

from merging.bounded import printable
from merging.companions import Settings, choose_companions, read_settings
from merging.sources import BASE, Sources
from search.checks.models import Models, place_of
from search.checks.subject import Subject

_ENDS = ("eos_token", "eos_token_id")


def check_tokens(subject: Subject, models: Models) -> None:
    """Say where models do not read and write text alike. The run asks all of them through the base's tokenizer."""
    if models.sources is not None:
        _tell_notes(subject, models.sources)
        with subject.findings.at("models"):
            companions = choose_companions(models.sources)
            if companions.differences:
                subject.findings.note(
                    ("models",),
                    f"an export will have tokenizer, chat template and generation settings {companions.said}; `export "
                    "--tokenizer-from` takes another model's",
                    at_key=True,
                )
    if BASE not in models.checkpoints:
        return
    own = read_settings(BASE, models.folders[BASE])
    for alias in models.checkpoints:
        theirs = read_settings(alias, models.folders[alias])
        if alias != BASE and theirs.special:  # an expert without tokenizer files uses the base's
            _compare_special(subject, alias, _tokens(own), _tokens(theirs))
            _compare_templates(subject, alias, own.chat_template, theirs.chat_template)


def _tokens(settings: Settings) -> dict[str, Any]:
    """Special tokens by name, and the numbers that end an answer."""
    found = {name: token for name, token in settings.special.items() if name.endswith("_token")}
    ends = (settings.generation or {}).get("eos_token_id", settings.ids.get("eos_token_id"))
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


def _compare_special(subject: Subject, alias: str, own: dict[str, Any], theirs: dict[str, Any]) -> None:
    unlike = [key for key in own if key in theirs and own[key] != theirs[key]]
    if not unlike:
        return
    listed = ", ".join(f"{key} {_shown(theirs[key])} (base: {_shown(own[key])})" for key in unlike)
    said = f"its special tokens differ from the base's: {listed}. Models are asked with the base's tokenizer"
    if set(unlike) & set(_ENDS):
        subject.findings.warn(
            place_of(alias), f"{said}: answers of this expert, and of merges with it, may not end where they should"
        )
    else:
        subject.findings.note(place_of(alias), said)


def _compare_templates(subject: Subject, alias: str, own: str, theirs: str) -> None:
    if own == theirs or not theirs:
        return
    if not own:
        said = "it has a chat template, and the base has none: evaluators ask without one"
    else:
        said = "its chat template is not the base's, with which evaluators ask"
    subject.findings.note(
        place_of(alias), f"{said}. If it was trained on conversations, put its template into the base's folder"
    )


def _shown(value: Any) -> str:
    return printable(", ".join(value) if isinstance(value, list) else repr(value), 40)
