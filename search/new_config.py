"""A config out of a preset and what a user names: models, data, a budget. What nobody says is guessed, and said."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from search.data_guess import first_records, guess
from search.errors import SearchError
from search.model_kind import ModelKind, model_kind
from search.positions import did_you_mean
from search.presets import PRESETS, Kind, Preset, fill
from search.references import is_reference, resolve

METRICS = {
    "exact_match": "accuracy", "choice": "acc", "perplexity": "bits_per_byte", "drift": "kl", "length": "new_tokens",
    "throughput": "tokens_per_second", "wer": "wer_capped", "classification": "accuracy", "similarity": "spearman",
    "reward_pairs": "accuracy", "refusal": "benign_ok",
}  # fmt: skip
"""Evaluator -> the metric that an objective takes where the user names none."""

OF_THE_HUB = "hf://datasets/"
"""What a data set of the Hugging Face Hub is named by, as its own libraries do."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PLAIN = re.compile(r"[A-Za-z0-9_./~-][A-Za-z0-9_./~@+-]*")
_BUDGET = re.compile(r"(?:(?P<candidates>\d+))?(?:,?(?P<hours>\d+(?:\.\d+)?)h)?")


class Asked(NamedTuple):
    """An evaluator as a user names it.

    Attributes:
        name: of the evaluator; that of an expert, where it scores the expert's skill.
        type: of the evaluator; "" to find one that fits the data.
        data: a file, a folder, ``zoo://…``, ``hf://datasets/NAME``; for ``lm_eval`` tasks, with commas in between.
    """

    name: str
    type: str
    data: str


@dataclass
class Wishes:
    """All that ``init`` is told.

    Attributes:
        preset: its name.
        base, experts: as the user wrote them.
        evaluators: in order.
        candidates, hours: the budget; None for the preset's, and for no limit.
        device: where the live model is; "" to look whether there is a GPU.
        tasks: a folder with tasks of lm-eval that are the user's own; "" for none.
        out: the file to write.
    """

    preset: str
    base: str
    experts: dict[str, str]
    evaluators: list[Asked]
    out: Path
    candidates: int | None = None
    hours: float | None = None
    device: str = ""
    tasks: str = ""


@dataclass
class Draft:
    """A config, not written yet.

    Attributes:
        text: the file, without the line that points editors to the schema.
        found: what was found and guessed, a line each, for the user to check.
        facts: the same for machines.
    """

    text: str
    found: list[str]
    facts: dict[str, Any] = field(default_factory=dict)


def draft(wishes: Wishes) -> Draft:
    """Look at models and data, and fill in the preset.

    Raises:
        SearchError, EvaluatorError, ZooError: a model or data that are not there, names that cannot be used, or a
            preset for other models.
    """
    if wishes.preset not in PRESETS:
        fill(wishes.preset, {})  # says which there are
    preset = PRESETS[wishes.preset]
    _check_names(wishes)
    base = model_kind(folder_of(wishes.base))
    found = [f"base: {base.words}"]
    if base.kind not in preset.kinds:
        fitting = [each.name for each in PRESETS.values() if base.kind in each.kinds]
        raise SearchError(
            f"{wishes.base}: found {base.words}; the preset {preset.name} is for {' or '.join(preset.kinds)}. Presets "
            f"that fit: {', '.join(fitting)}"
        )
    for alias, expert in wishes.experts.items():
        found += _found(alias, base, folder_of(expert))
    sections: dict[str, dict[str, Any]] = {}
    for asked in wishes.evaluators:
        sections[asked.name], line = _section(asked, preset, base.kind, wishes)
        found.append(f"{asked.name}: {line}")
    safety = [name for name, section in sections.items() if section["type"] == "refusal"]
    if preset.safety and (not safety or len(safety) == len(sections)):
        raise SearchError(
            "the preset safety needs an evaluator of type refusal, whose data say of each prompt whether it is harmful "
            f"or benign, and one of a skill; found {_listed(sections)}. Name them: --evaluator NAME=DATA --evaluator "
            "safety=refusal:DATA"
        )
    device = wishes.device or ("cuda" if _has_gpu() else "cpu")
    found.append(f"device: {device}{'' if wishes.device else ', by what this machine has'}")
    objectives = {
        name: _metric(section, wishes.out.parent)
        for name, section in sections.items()
        if not (preset.safety and name in safety)
    }
    values = {
        "name": _scalar(_run_name(wishes.out)),
        "file": wishes.out.name,
        "base": _scalar(_path(wishes.base, wishes.out.parent)),
        "experts": _block({alias: _path(each, wishes.out.parent) for alias, each in wishes.experts.items()}, 4),
        "names": ", ".join(map(_scalar, wishes.experts)),
        "evaluators": _block(sections, 2),
        "objectives": "\n".join(f"  - {name}.{metric}" for name, metric in objectives.items()),
        "budget": _budget(wishes, preset),
        "methods": _methods(len(wishes.experts)),
        "device": _scalar(device),
        "safety": safety[0] if safety else "",
    }
    facts = {
        "preset": preset.name, "base": base._asdict(), "experts": dict(wishes.experts), "evaluators": sections,
        "objectives": [f"{name}.{metric}" for name, metric in objectives.items()], "device": device,
    }  # fmt: skip
    return Draft(fill(preset.name, values), found, facts)


def parse_evaluator(text: str) -> Asked:
    """``NAME=DATA``, or ``NAME=TYPE:DATA``.

    Raises:
        SearchError: neither.
    """
    from evaluators.registry import names

    name, sign, rest = text.partition("=")
    kind, colon, data = rest.partition(":")
    if not sign or not rest:
        raise SearchError(
            f"--evaluator {text}: expected NAME=DATA or NAME=TYPE:DATA, such as math=data/math or chat=lm_eval:my_task"
        )
    if colon and not data.startswith("//") and re.fullmatch(r"[a-z_0-9]+", kind):
        if kind not in names():
            raise SearchError(
                f"--evaluator {text}: there is no evaluator {kind!r}; there are {', '.join(names())}."
                f"{did_you_mean(kind, names())}"
            )
        if kind == "python" or not data:
            raise SearchError(
                f"--evaluator {text}: {kind} needs more than its data; write the config with another evaluator, and "
                f"change it there: `paretomerge explain {kind}` has an example"
            )
        return Asked(name, kind, data)
    return Asked(name, "", rest)


def parse_budget(text: str) -> tuple[int | None, float | None]:
    """``400``, ``8h`` or ``400,8h``: candidates and hours.

    Raises:
        SearchError: something else.
    """
    match = _BUDGET.fullmatch(text.replace(" ", ""))
    if match is None or not text.strip():
        raise SearchError(f"--budget {text}: expected candidates, hours, or both: 400, 8h, 400,8h")
    candidates = None if match["candidates"] is None else int(match["candidates"])
    hours = None if match["hours"] is None else float(match["hours"])
    if candidates == 0 or hours == 0.0:
        raise SearchError(f"--budget {text}: expected more than 0")
    return candidates, hours


def parse_expert(text: str) -> tuple[str, str]:
    """``NAME=PATH``; a path alone is named after its folder.

    Raises:
        SearchError: no name or no path.
    """
    name, sign, path = text.partition("=")
    if not sign:
        path, name = text, re.sub(r"[^A-Za-z0-9_-]+", "-", Path(text).name).strip("-_")
    if not path or not _NAME.fullmatch(name):
        raise SearchError(
            f"--expert {text}: expected NAME=PATH, such as math=models/math; a name has letters, digits, - and _"
        )
    return name, path


# -- models and data --------------------------------------------------------------------------------------------------


def _check_names(wishes: Wishes) -> None:
    if not wishes.experts:
        raise SearchError("expected at least one expert, found none; name it: --expert NAME=PATH")
    if "base" in wishes.experts:
        raise SearchError("--expert base=…: that is the name of the base model; give the expert another")
    if not wishes.evaluators:
        raise SearchError("expected at least one evaluator, found none; name it: --evaluator NAME=DATA")
    names = [each.name for each in wishes.evaluators]
    for name in names:
        if not _NAME.fullmatch(name):
            raise SearchError(f"--evaluator {name}=…: a name has letters, digits, - and _, and no more than 64 of them")
        if names.count(name) > 1:
            raise SearchError(f"--evaluator {name}=…: two evaluators of this name; give one of them another")


def folder_of(reference: str) -> Path:
    """Where a model or data lie that a user names: a path from here, a ``zoo://`` or a ``vector://`` reference."""
    return resolve(reference) or Path(reference).expanduser()


def _found(alias: str, base: ModelKind, folder: Path) -> list[str]:
    if (folder / "vector.json").is_file():
        return [f"{alias}: a task vector; `check` says whether it is of this base"]
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        return [f"{alias}: a PEFT adapter; `check` says whether it is of this base"]
    return _difference(alias, base, model_kind(folder))


def _difference(alias: str, base: ModelKind, expert: ModelKind) -> list[str]:
    if base[1:] == expert[1:]:
        return []
    return [f"{alias}: {expert.words}, which differs from the base; `check` says whether they merge"]


def _section(asked: Asked, preset: Preset, kind: Kind, wishes: Wishes) -> tuple[dict[str, Any], str]:
    """An evaluator's section, and what was found."""
    folder = wishes.out.parent
    if asked.type == "lm_eval" or (not asked.type and preset.evaluator == "lm_eval" and not _is_data(asked.data)):
        tasks = [each.strip() for each in asked.data.split(",") if each.strip()]
        section: dict[str, Any] = {"type": "lm_eval", "tasks": tasks[0] if len(tasks) == 1 else tasks}
        if wishes.tasks:
            section["include_path"] = _path(wishes.tasks, folder)
        return section, f"lm_eval, {len(tasks)} task{'s' * (len(tasks) != 1)}"
    likely = asked.type or (preset.evaluator if _for_one(preset) else "")
    if asked.data.startswith(OF_THE_HUB):
        likely = likely or preset.evaluator
        unseen = f"{likely}, on a data set of the Hub, which was not looked at: its fields may need names"
        return {"type": likely, "data": {"dataset": asked.data.removeprefix(OF_THE_HUB)}}, unseen
    records = first_records(asked.data, Path())
    made = guess(records, kind, likely) or (None if asked.type else guess(records, kind))
    fields = ", ".join(map(str, records[0]))
    if made is None and not asked.type:
        raise SearchError(
            f"{asked.data}: no evaluator is known to fit records with the fields {fields}, for {kind} models. Name "
            f"one: --evaluator {asked.name}=TYPE:{asked.data} (`paretomerge ls evaluators`)"
        )
    path = _path(asked.data, folder)
    data: Any = {"file": path} if folder_of(asked.data).is_file() else path
    if made is None:
        return {"type": asked.type, "data": data}, f"{asked.type}; its options must say which of {fields} it reads"
    return {"type": made.type, "data": data, **made.options}, made.why


def _for_one(preset: Preset) -> bool:
    return len(preset.kinds) == 1 and preset.evaluator != "exact_match"


def _is_data(data: str) -> bool:
    import zoo

    return zoo.is_reference(data) or _local(data)


def _local(data: str) -> bool:
    return Path(data).expanduser().exists()


def _metric(section: Mapping[str, Any], folder: Path) -> str:
    """What the objective takes of an evaluator; of lm-eval's tasks, the first metric that they have."""
    if section["type"] != "lm_eval":
        return METRICS.get(section["type"], "score")
    from evaluators.contract import EvaluatorError
    from evaluators.registry import build

    try:
        options = {key: value for key, value in section.items() if key != "type"}
        return build("lm_eval", options, folder=folder).metrics[0].name
    except EvaluatorError as error:
        raise SearchError(f"{section['tasks']}: {error}") from error


def _has_gpu() -> bool:
    return Path("/dev/nvidia0").exists() or (
        "CUDA_VISIBLE_DEVICES" in os.environ and bool(os.environ["CUDA_VISIBLE_DEVICES"])
    )


# -- YAML -------------------------------------------------------------------------------------------------------------


def _path(reference: str, folder: Path) -> str:
    """A path as the config has it: relative ones start at the config's folder."""
    path = Path(reference).expanduser()
    if is_reference(reference) or path.is_absolute() or reference.startswith("~"):
        return reference
    return os.path.relpath(path, folder) if folder.resolve() != Path.cwd() else reference


def _budget(wishes: Wishes, preset: Preset) -> str:
    # with hours alone the clock decides: so many candidates that they do not
    alone = wishes.hours is not None and wishes.candidates is None
    parts = [f"candidates: {wishes.candidates or (100_000 if alone else preset.candidates)}"]
    if wishes.hours is not None:
        parts.append(f"hours: {wishes.hours:g}")
    if preset.name == "many_layers":
        parts.append("plateau: {candidates: 300, gain: 0.001}")
    return f"{{{', '.join(parts)}}}"


def _methods(experts: int) -> str:
    """Those that take so many experts."""
    return "task_arithmetic, ties, dare_ties" if experts > 1 else "task_arithmetic"


def _run_name(out: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", out.stem).strip("-_")[:64]
    return name or "my-search"


def _block(values: Mapping[str, Any], indent: int) -> str:
    return "\n".join(f"{' ' * indent}{_scalar(name)}: {_flow(each)}" for name, each in values.items())


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_scalar(name)}: {_flow(each)}' for name, each in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(_flow(each) for each in value)}]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    """A value as YAML, quoted wherever it could be read as anything but itself. JSON's strings are YAML's."""
    import yaml

    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) or is_reference(value)
        if plain and ": " not in value and " #" not in value:
            try:
                if yaml.safe_load(value) == value:
                    return value
            except yaml.YAMLError:
                pass
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def _listed(sections: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{name} ({section['type']})" for name, section in sections.items())
