"""An adapter's folder as PEFT saves it: its settings, checked, and its tensors by what they do. PEFT is not needed.

Format: ``adapter_config.json`` and ``adapter_model.safetensors``, as written by peft 0.3 to 0.21 (Hu et al. 2022, arXiv
2106.09685; rank-stabilised scale: Kalajdzievski 2023, arXiv 2312.03732; DoRA: Liu et al. 2024, arXiv 2402.09353).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from merging.bounded import printable
from merging.checkpoint import read_object
from merging.files import PickleFile, SafetensorsFile, TensorInfo, WeightFile
from merging.opening import ADAPTER
from merging.recipe import MergingError

_T = TypeVar("_T")

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

_LARGEST_RANK = 1_000_000
_LONGEST_PATTERN = 500
_MOST_REPEATS = 3
_MOST_PATTERNS = 10_000

PREFIX = "base_model.model."
"""What PEFT writes before the names of the model that it adapted."""

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# What may follow a module's name: (pattern, which part it is). A name of the adapter may stand in between.
_OWN = r"(?:\.(?P<adapter>[^.]+))??"
_PARTS = (
    (re.compile(rf"^(?P<stem>.+?)\.lora_A{_OWN}\.weight$"), "A"),
    (re.compile(rf"^(?P<stem>.+?)\.lora_B{_OWN}\.weight$"), "B"),
    (re.compile(rf"^(?P<stem>.+?)\.lora_B{_OWN}\.bias$"), "bias"),
    (re.compile(rf"^(?P<stem>.+?)\.lora_embedding_A{_OWN}$"), "embedding_A"),
    (re.compile(rf"^(?P<stem>.+?)\.lora_embedding_B{_OWN}$"), "embedding_B"),
    (re.compile(rf"^(?P<stem>.+?)\.lora_magnitude_vector{_OWN}(?:\.weight)?$"), "magnitude"),
    (re.compile(rf"^(?P<stem>.+?)\.token_adapter\.trainable_tokens_delta{_OWN}$"), "tokens"),
)
_SAVED = re.compile(r"^(?P<stem>.+?)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<leaf>.+)$")

# Starts that take part of the base's weight into the adapter: on the base itself the saved adapter is wrong.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

# Settings with which W0 + s·BA is not what the adapter does.
_UNSUPPORTED = {
    "layer_replication": "repeats layers of its base (layer_replication), which a merge's recipe says with `layers`",
    "alora_invocation_tokens": "is active only after certain tokens (aLoRA), which no weights can express",
    "arrow_config": "is a router over several adapters (Arrow), which no weights can express",
    "use_qalora": "is a QALoRA adapter, which adds to a quantised base",
    "use_bdlora": "is block-diagonal (BD-LoRA), whose parts are stored in another way",
    "monteclora_config": "samples its weights anew each time (MonteCLoRA)",
    "kasa_config": "is a KaSA adapter, which cuts small singular values off its base when it is loaded",
}
FOLD = "fold it into its base with peft (merge_and_unload, then save_pretrained), and give that folder"


@dataclass(frozen=True)
class Settings:
    """What ``adapter_config.json`` says, as far as the weights depend on it.

    Attributes:
        rank, alpha: where no pattern says otherwise.
        ranks, alphas: pattern of module names -> rank, alpha; the first that matches counts.
        rslora: the scale is alpha/√rank instead of alpha/rank.
        dora: magnitudes are learnt apart.
        parameters: ends of names of bare parameters that are adapted.
        tokens: end of a module's name -> rows that are trained; "" for the input embedding.
        base: what the base was called when it was trained; "" where that is not said.
        data: the file, for whoever writes it on.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False
    parameters: tuple[str, ...] = ()
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    base: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """Rank of a module, by PEFT's rule: a pattern is the whole name, or its end after a dot."""
        return _matched(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What the product B·A is multiplied by in a module."""
        rank = self.rank_of(module)
        return _matched(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


@lru_cache(maxsize=1 << 14)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def _matched(patterns: Mapping[str, _T], module: str, default: _T) -> _T:
    for pattern, value in patterns.items():
        if _compiled(pattern).match(module):
            return value
    return default


class Module(NamedTuple):
    """What an adapter does to one module.

    Attributes:
        name: of the module in the live model that it was trained on.
        depth: how many further adapters of the same module's parameters it is wrapped by.
        parts: A, B, bias, embedding_A, embedding_B, magnitude, tokens -> tensor in the file.
    """

    name: str
    depth: int
    parts: Mapping[str, str]


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder. Build with :meth:`open`; only headers are read.

    Attributes:
        path: the folder.
        settings: of its config.
        modules: what is adapted, sorted by name.
        whole: name of a tensor in the live model -> tensor in the file that replaces it.
    """

    path: Path
    settings: Settings
    modules: tuple[Module, ...]
    whole: Mapping[str, str]
    _file: WeightFile

    @staticmethod
    def open(path: Path | str, *, allow_pickle: bool = False) -> Adapter:
        """Read the config and the header of the weights.

        Args:
            path: folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
            allow_pickle: read ``adapter_model.bin`` by torch's weights-only loader where there is nothing better.

        Raises:
            MergingError: no such folder, another kind of adapter, or files that are damaged.
        """
        path = Path(path)
        settings = read_settings(path)
        held = _weights(path, allow_pickle)
        modules, whole = _sorted_out(path, held.tensors)
        return Adapter(path, settings, modules, whole, held)

    def info(self, tensor: str) -> TensorInfo:
        """What the header says of a tensor of the file."""
        return self._file.tensors[tensor]

    def read(self, tensor: str) -> Tensor:
        """A tensor of the file, memory-mapped, as stored."""
        return self._file.read(tensor)

    def read_float(self, tensor: str) -> Tensor:
        """A tensor of the file as float32, on the CPU."""
        return self._file.read(tensor).to(torch.float32)


def read_settings(path: Path) -> Settings:
    """``adapter_config.json`` of a folder, checked.

    Raises:
        MergingError: there is none, it is damaged, or it is no LoRA that is a change of weights.
    """
    file = path / ADAPTER
    data = read_object(file, _no_config(path))
    _check_kind(path, data)
    rank, alpha = _rank(data.get("r", 8), "r", file), _number(data.get("lora_alpha", 8), "lora_alpha", file)
    return Settings(
        rank,
        alpha,
        {key: _rank(each, f"rank_pattern of {key}", file) for key, each in _patterns(data, "rank_pattern", file)},
        {key: _number(each, f"alpha_pattern of {key}", file) for key, each in _patterns(data, "alpha_pattern", file)},
        rslora=bool(data.get("use_rslora")),
        dora=bool(data.get("use_dora")),
        parameters=_parameters(data.get("target_parameters"), file),
        tokens=_tokens(data.get("trainable_token_indices"), file),
        base=str(data.get("base_model_name_or_path") or ""),
        data=data,
    )


def _check_kind(path: Path, data: Mapping[str, Any]) -> None:
    kind = data.get("peft_type")
    if kind != "LORA":
        found = "no peft_type" if kind is None else f"peft_type {printable(str(kind), 40)}"
        raise MergingError(
            f"expected a LoRA adapter (LoRA, rsLoRA or DoRA) in {path}, found {found} in {ADAPTER}; for another kind, "
            f"{FOLD}"
        )
    start = data.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise MergingError(
            f"expected an adapter that is added to its base, found one in {path} that started from parts of the base's "
            f"weights (init_lora_weights {printable(start, 40)!r}), so that it only fits what was left of them. Save "
            "it with save_pretrained(…, path_initial_model_for_weight_conversion=…), which makes a plain LoRA of it, "
            f"or {FOLD}"
        )
    for key, why in _UNSUPPORTED.items():
        if data.get(key):
            raise MergingError(f"expected a LoRA adapter that is a change of weights in {path}: this one {why}; {FOLD}")


def _no_config(path: Path) -> str:
    inner = sorted(each.parent.name for each in path.glob(f"*/{ADAPTER}")) if path.is_dir() else []
    if inner:
        listed = ", ".join(printable(each, 60) for each in inner[:5])
        return (
            f"expected one adapter in {path}, found {len(inner)} in folders of their own ({listed}); give one of these"
        )
    return f"expected {ADAPTER} in the adapter's folder {path}, found none"


def _weights(path: Path, allow_pickle: bool) -> WeightFile:
    if (path / WEIGHTS).is_file():
        return SafetensorsFile(path / WEIGHTS)
    if allow_pickle and (path / PICKLE).is_file():
        return PickleFile(path / PICKLE)
    if (path / PICKLE).is_file():
        raise MergingError(
            f"expected {WEIGHTS} in {path}, found only pickled weights ({PICKLE}), which can run code when they are "
            "loaded. If you trust them, load the adapter with peft and save it again; or allow pickles: they are then "
            "read by torch's weights-only loader"
        )
    raise MergingError(f"expected {WEIGHTS} in {path}, found none; was the download complete?")


def _sorted_out(path: Path, tensors: Mapping[str, TensorInfo]) -> tuple[tuple[Module, ...], dict[str, str]]:
    """(what is adapted, what is replaced)."""
    found: dict[tuple[str, int], dict[str, str]] = {}
    whole: dict[str, str] = {}
    for name in sorted(tensors):
        inner = _WRAPPERS.sub("", name.removeprefix(PREFIX))
        matches = ((pattern.match(inner), part) for pattern, part in _PARTS)
        match, part = next((each for each in matches if each[0] is not None), (None, ""))
        if match is None:
            saved = _SAVED.match(inner)
            if saved is None and re.search(r"(^|\.)lora_", inner):
                raise MergingError(
                    f"expected tensors of LoRA and DoRA in {path}, found {printable(name)}, which is neither; {FOLD}"
                )
            plain = inner if saved is None else f"{saved['stem']}.{saved['leaf']}"
            _put(whole, _plain(plain)[0], name, path)
            continue
        stem, depth = _plain(match["stem"])
        _put(found.setdefault((stem, depth), {}), part, name, path)
    if not found and not whole:
        raise MergingError(f"expected the weights of an adapter in {path}, found no tensor in it; save it again")
    modules = tuple(Module(stem, depth, parts) for (stem, depth), parts in sorted(found.items()))
    for each in modules:
        _check_parts(each, path)
    return modules, whole


def _plain(name: str) -> tuple[str, int]:
    """(the name in the model without adapters, how many wrappers were left out)."""
    words = name.split(".")
    kept = [word for word in words if word not in {"base_layer", "original_module", "token_adapter"}]
    return ".".join(kept), len(words) - len(kept)


def _put(held: dict[str, str], key: str, name: str, path: Path) -> None:
    if key in held:
        raise MergingError(
            f"expected one adapter in {path}, found two tensors for the same place: {printable(held[key])} and "
            f"{printable(name)}; save one adapter with save_pretrained"
        )
    held[key] = name


def _check_parts(module: Module, path: Path) -> None:
    """Both factors are there, or none."""
    for one, other in (("A", "B"), ("embedding_A", "embedding_B")):
        if (one in module.parts) != (other in module.parts):
            there, missing = (one, other) if one in module.parts else (other, one)
            raise MergingError(
                f"expected lora_A and lora_B of {printable(module.name)} in {path}, found lora_{there} without "
                f"lora_{missing}; was the adapter saved or downloaded completely?"
            )
    alone = module.parts.keys() & {"bias", "magnitude"} and not module.parts.keys() & {"A", "embedding_A"}
    if alone:
        raise MergingError(
            f"expected lora_A and lora_B of {printable(module.name)} in {path}, found only "
            f"{', '.join(sorted(module.parts))}; was the adapter saved or downloaded completely?"
        )


def _rank(value: Any, key: str, file: Path) -> int:
    if type(value) is not int or not 0 < value <= _LARGEST_RANK:
        raise MergingError(f"expected a rank of at least 1 as {printable(key)} in {file}, found {_shown(value)}")
    return value


def _number(value: Any, key: str, file: Path) -> float:
    try:
        found = math.nan if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:  # an integer of hundreds of digits
        found = math.inf
    if not math.isfinite(found):
        raise MergingError(f"expected a number as {printable(key)} in {file}, found {_shown(value)}")
    return found


def _patterns(data: Mapping[str, Any], key: str, file: Path) -> list[tuple[str, Any]]:
    """PEFT reads the keys as regular expressions; those that could keep the matcher busy for ever are refused."""
    found = data.get(key) or {}
    if not isinstance(found, dict):
        raise MergingError(f"expected module names and numbers as {key} in {file}, found {_shown(found)}")
    if len(found) > _MOST_PATTERNS:
        raise MergingError(f"expected at most {_MOST_PATTERNS} patterns as {key} in {file}, found {len(found)}")
    for pattern in found:
        try:
            re.compile(pattern)
        except re.error as error:
            raise MergingError(
                f"expected regular expressions in {key} in {file}, found {printable(pattern)!r}: {error}"
            ) from error
        repeats, options = (len(re.findall(each, pattern)) for each in (r"(?<!\\)[*+{]", r"(?<![\\(])\?"))
        nested = re.search(r"\)[*+{]", pattern)
        if len(pattern) > _LONGEST_PATTERN or repeats > _MOST_REPEATS or options > 2 * _MOST_REPEATS or nested:
            raise MergingError(
                f"expected patterns of module names in {key} in {file}, found {printable(pattern)!r}, which repeats "
                "too much to be matched safely; write the module names out"
            )
    return list(found.items())


def _parameters(value: Any, file: Path) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise MergingError(f"expected a list of names as target_parameters in {file}, found {_shown(value)}")
    return tuple(value)


def _tokens(value: Any, file: Path) -> dict[str, tuple[int, ...]]:
    if value is None:
        return {}
    named = value if isinstance(value, dict) else {"": value}
    for rows in named.values():
        plain = isinstance(rows, list) and all(type(each) is int and each >= 0 for each in rows)
        if not plain or len(set(rows)) != len(rows):
            raise MergingError(
                f"expected different token numbers as trainable_token_indices in {file}, found {_shown(value)}"
            )
    return {str(name): tuple(rows) for name, rows in named.items()}


def _shown(value: Any) -> str:
    return printable(repr(value), 80)
