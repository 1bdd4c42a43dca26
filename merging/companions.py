"""What stands beside the weights (tokenizer, chat template, generation settings), and from which parent it comes.

The rule: all of it comes from one model, since a chat template, the tokens that it uses and those that end an answer
belong together. That model is the base; but where the base has no chat template, and all experts that have one agree on
it and on the special tokens, the first of these experts: fine-tunes of a plain base learnt to chat in that form. Only a
model whose tokens have the same numbers as the merged model's can give them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merging.bounded import LARGEST_JSON, copy_within, read_json, read_text
from merging.recipe import MergingError
from merging.sources import Sources
from merging.tokens import copy_tokenizer, read_vocabulary

# What makes a folder usable besides weights and tokenizer. Never code: remote code is not run, and not passed on.
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_FLAGS = ("additional_special_tokens", "add_bos_token", "add_eos_token", "add_prefix_space")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")

# Where somebody's machine left its folders: what the model was loaded from, and the files of its tokenizer.
_PLACES = re.compile(r"^_?name_or_path$|^(tokenizer|vocab|merges|special_tokens_map)_file$|^_src_path$|^cache_dir$")


@dataclass(frozen=True)
class Settings:
    """What one model says of its tokenizer and of how it generates.

    Attributes:
        alias: of the model.
        chat_template: Jinja text, several as JSON, or "".
        special: name -> token, and flags, as far as they are stated.
        generation: ``generation_config.json`` without the version that wrote it; None where there is none.
        ids: numbers of special tokens that ``config.json`` states.
    """

    alias: str
    chat_template: str
    special: Mapping[str, Any]
    generation: Mapping[str, Any] | None
    ids: Mapping[str, Any]


@dataclass(frozen=True)
class Companions:
    """Whose files are written beside the weights.

    Attributes:
        alias: the model that gives them.
        base: alias of the base.
        why: the rule that chose it, as a clause.
        differences: what the models do not agree on, one sentence each; empty where they agree.
        special_differ: whether special tokens or generation settings of the chosen model are others than the base's:
            then it may end its answers elsewhere than the base's would.
    """

    alias: str
    base: str
    why: str
    differences: tuple[str, ...] = ()
    special_differ: bool = False
    settings: Mapping[str, Settings] = field(default_factory=dict, repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What somebody who uses the merged model should know; empty where all models agree."""
        if not self.differences:
            return ()
        return (*self.differences, f"tokenizer, chat template and generation settings: {self.said}.")

    @property
    def said(self) -> str:
        """Whose they are, and why."""
        if not self.differences and self.alias == self.base:
            return "the base's; all models agree"
        return f"those of {self.alias}, {self.why}"


def choose_companions(sources: Sources, wanted: str | None = None) -> Companions:
    """Whose tokenizer, chat template and generation settings the merged model has.

    Args:
        sources: the models; of virtual experts nothing is asked.
        wanted: alias of the model that shall give them; by the rule of this module if None.

    Raises:
        MergingError: there is no such model, or its tokens are numbered otherwise than the merged model's.
    """
    base = sources.base
    settings = {alias: read_settings(alias, each.path) for alias, each in sources.checkpoints.items()}
    differences = tuple(_differences(settings))
    if wanted is not None and wanted not in settings:
        raise MergingError(
            f"expected --tokenizer-from to name one of the models {', '.join(settings)}, found {wanted!r}"
        )
    if wanted is not None and wanted != base:
        _check_same_tokens(sources, wanted)
        return _chosen(wanted, base, "as asked for", differences, settings)
    if wanted == base:
        return _chosen(base, base, "as asked for", differences, settings)
    talking = [each for alias, each in settings.items() if alias != base and each.chat_template]
    if settings[base].chat_template or not talking:
        return _chosen(base, base, "which is the rule", differences, settings)
    first = talking[0]
    agree = all((each.chat_template, each.special) == (first.chat_template, first.special) for each in talking)
    if agree and _has_same_tokens(sources, first.alias):
        why = "since the base has no chat template and the experts that have one agree on it"
        return _chosen(first.alias, base, why, differences, settings)
    why = "which is the rule where the experts' chat templates or special tokens differ"
    if agree:
        why = f"since the tokens of {first.alias} are numbered otherwise"
    return _chosen(base, base, why, differences, settings)


def read_settings(alias: str, folder: Path) -> Settings:
    """Read what a model folder says of its tokenizer; what is missing or unreadable counts as not said."""
    stated = _object(folder / "tokenizer_config.json")
    mapped = _object(folder / "special_tokens_map.json")
    special: dict[str, Any] = {}
    for name in (*_SPECIAL, *_FLAGS):
        value = _token(stated.get(name, mapped.get(name)))
        if value not in (None, []):
            special[name] = value
    generation = _object(folder / "generation_config.json", {"": None})
    kept = {
        name: value for name, value in generation.items() if name not in ("transformers_version", "_from_model_config")
    }
    config = _object(folder / "config.json")
    ids = {name: config[name] for name in _IDS if name in config}
    return Settings(alias, _template(folder, stated), special, None if "" in generation else kept, ids)


def write_companions(folder: Path, sources: Sources, companions: Companions | None = None) -> None:
    """Write tokenizer, chat template, generation settings and processors into an existing folder.

    Args:
        folder: of the merged model; its ``config.json`` is there already.
        sources: the models.
        companions: whose; the base's if None.

    Raises:
        MergingError: a file is not what it should be.
        OSError: one cannot be copied.
    """
    alias = sources.base if companions is None else companions.alias
    if alias == sources.base:
        sources.write_tokenizer(folder)
        generation: Mapping[str, Any] | None = sources.generation_config
    else:
        parent = sources.checkpoints[alias].path
        copy_tokenizer(parent, folder)
        settings = read_settings(alias, parent)
        generation = sources.generation_config if settings.generation is None else settings.generation
        _edit(folder / "config.json", lambda config: config | {k: v for k, v in settings.ids.items() if k in config})
    if generation is not None:
        write_json(folder / "generation_config.json", generation)
    for name in _PROCESSORS:
        if (sources.path / name).is_file():
            copy_within(sources.path / name, sources.path, folder / name)
    for name in (
        *_PROCESSORS,
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ):
        if (folder / name).is_file():
            _edit(folder / name, without_places)


def without_places(data: dict[str, Any]) -> dict[str, Any]:
    """Settings without what says where they lay on somebody's machine."""
    kept = {name: value for name, value in data.items() if not (_PLACES.match(name) and isinstance(value, str | None))}
    return {name: without_places(value) if isinstance(value, dict) else value for name, value in kept.items()}


def _chosen(
    alias: str, base: str, why: str, differences: tuple[str, ...], settings: Mapping[str, Settings]
) -> Companions:
    one, other = settings[alias], settings[base]
    differ = one.special != other.special or _ends(one) != _ends(other)
    return Companions(alias, base, why, differences, differ, settings)


def _check_same_tokens(sources: Sources, alias: str) -> None:
    if not _has_same_tokens(sources, alias):
        raise MergingError(
            f"--tokenizer-from {alias}: its tokens have other numbers than the merged model's, so its tokenizer would "
            f"make nonsense of the merged embeddings. Expected a model with the merged vocabulary, such as the base; "
            "or merge with that vocabulary (`paretomerge merge … --tokenizer FOLDER`)"
        )


def _has_same_tokens(sources: Sources, alias: str) -> bool:
    if sources.tokenizer is None:  # nothing had to be aligned: the numbers agree wherever there are any
        return read_vocabulary(sources.checkpoints[alias].path) is not None
    if sources.tokenizer != "base":
        return False
    own = read_vocabulary(sources.checkpoints[alias].path)
    base = read_vocabulary(sources.path)
    return own is not None and base is not None and own.ids == base.ids


def _differences(settings: Mapping[str, Settings]) -> Iterable[str]:
    """What the models do not agree on, as sentences."""
    # an adapter, or a vector, that has nothing beside its weights has what its base has
    known = [each for each in settings.values() if each.special or each.ids or each.generation is not None]
    templates = {each.alias: each.chat_template for each in known}
    if len(set(templates.values())) > 1:
        yield f"chat templates differ: {_grouped(templates, lambda text: '' if text else 'none')}."
    for name in (*_SPECIAL, *_FLAGS):
        # a model that says nothing of its tokenizer has the base's
        values = {each.alias: each.special.get(name) for each in known if each.special}
        if len({_key(value) for value in values.values()}) > 1:
            yield f"{name} differs: {_grouped(values, _shown)}."
    ends = {each.alias: _ends(each) for each in known}
    if len({_key(value) for value in ends.values()}) > 1:
        yield f"tokens that end an answer differ: {_grouped(ends, _shown)}."
    settled = [each for each in known if each.generation is not None]
    for name in sorted({name for each in settled for name in each.generation or {}} - set(_IDS)):
        values = {each.alias: (each.generation or {}).get(name) for each in settled}
        if len({_key(value) for value in values.values()}) > 1:
            yield f"{name} of the generation settings differs: {_grouped(values, _shown)}."


def _ends(settings: Settings) -> list[int]:
    stated = (settings.generation or {}).get("eos_token_id", settings.ids.get("eos_token_id"))
    values = stated if isinstance(stated, list) else [stated]
    return sorted(value for value in values if isinstance(value, int))


def _grouped(values: Mapping[str, Any], shown: Callable[[Any], str]) -> str:
    """``base: none; a and b: one; c: another``, each value named or numbered."""
    groups: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for alias, value in values.items():
        key = _key(value)
        groups.setdefault(key, []).append(alias)
        texts[key] = shown(value)
    unnamed = [key for key, text in texts.items() if not text]
    for number, key in enumerate(unnamed, start=1):
        texts[key] = "one of its own" if len(unnamed) == 1 else f"template {number}"
    return "; ".join(f"{', '.join(aliases)}: {texts[key]}" for key, aliases in groups.items())


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _shown(value: Any) -> str:
    if value is None:
        return "not stated"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _template(folder: Path, stated: Mapping[str, Any]) -> str:
    """The chat template, wherever it is kept; several of them as JSON."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return read_text(file, LARGEST_JSON, regular=True)
        except (OSError, UnicodeDecodeError):
            return ""
    found = _object(folder / "chat_template.json").get("chat_template", stated.get("chat_template"))
    return found if isinstance(found, str) else "" if found is None else _key(found)


def _token(value: Any) -> Any:
    """A token as its text, however it is written."""
    if isinstance(value, dict):
        return value.get("content")
    if isinstance(value, list):
        return [_token(each) for each in value]
    return value


def _object(file: Path, otherwise: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        data = read_json(file)
    except (OSError, ValueError):
        return otherwise or {}
    return data if isinstance(data, dict) else otherwise or {}


def _edit(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite a JSON file where that changes it; one that is no JSON object stays as it is."""
    data = _object(file, {})
    if data and (changed := change(data)) != data:
        write_json(file, changed)


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Write settings for people to read; half a letter out of somebody's file stays spelled out, as it was there."""
    try:
        content = json.dumps(data, indent=2, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        content = json.dumps(data, indent=2).encode("ascii")
    file.write_bytes(content + b"\n")
