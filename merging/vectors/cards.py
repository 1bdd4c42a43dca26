"""``README.md`` of a task vector: front matter that the Hub reads, and what a person should know."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import yaml

from merging.bounded import printable
from merging.vectors.manifest import LICENCE, Manifest

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def card(manifest: Manifest) -> str:
    """The card's text. What is not known is left out."""
    front: dict[str, object] = {}
    if _HUB_ID.fullmatch(manifest.base.name):
        front |= {"base_model": [manifest.base.name], "base_model_relation": "adapter"}
    if manifest.license and LICENCE.fullmatch(manifest.license):
        front["license"] = manifest.license
    front["tags"] = ["task-vector", "paretomerge"]
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n\n".join(_paragraphs(manifest)) + "\n"


def size_words(count: int) -> str:
    """Bytes for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} B"


def error_words(error: float) -> str:
    """A relative error for people; what is lost nowhere is exact."""
    return "exact" if error == 0 else f"{error:.2%}" if error >= 1e-4 else f"{error:.1e}"


def by_codec(manifest: Manifest) -> dict[str, list[int]]:
    """Codec -> [tensors, stored bytes, bytes in the fine-tune], the largest first."""
    found: dict[str, list[int]] = {}
    for each in manifest.tensors.values():
        sums = found.setdefault(each.codec, [0, 0, 0])
        for at, more in enumerate((1, each.bytes, each.full_bytes)):
            sums[at] += more
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def _paragraphs(manifest: Manifest) -> list[str]:
    base, expert = manifest.base, manifest.expert
    kept = "bit by bit" if manifest.is_exact else f"with a relative error of {error_words(manifest.error)}"
    share = manifest.bytes / expert.bytes if expert.bytes else 0.0
    shown = [
        f"# {manifest.name}",
        f"A task vector: what the fine-tune {_code(expert.name)} changed of its base {_code(base.name)}. Put onto that "
        f"base it gives the fine-tune {kept}. It takes {size_words(manifest.bytes)}, {share:.1%} of the full model's "
        f"{size_words(expert.bytes)}; ‖τ‖/‖θ0‖ = {manifest.distance:.3g}.",
        "It fits the base with the content hash below and no other: an equal architecture is not enough.",
        "## Use",
        f"```console\n$ paretomerge vector import THIS_FOLDER\n$ paretomerge vector equip BASE {manifest.name} --out "
        "MODEL\n```",
        "In a config or a recipe it stands where an expert stands: "
        f"`experts: {{{_alias(manifest.name)}: vector://{manifest.name}}}`.",
        "## Models",
        _table(
            ("", "base", "fine-tune"),
            [
                ("name", _code(base.name), _code(expert.name)),
                ("content", _code(base.content), _code(expert.content)),
                ("architecture", _code(base.architecture or base.model_type), _code(expert.architecture)),
                ("dtype", _code(base.dtype), _code(expert.dtype)),
                ("tokenizer", _code(base.tokenizer or "none"), _code(expert.tokenizer or "none")),
                ("licence", _code(base.license or "not stated"), _code(expert.license or "not stated")),
            ],
        ),
        "## Stored as",
        _table(
            ("codec", "tensors", "size", "of the full tensors"),
            [
                (_code(codec), str(count), size_words(size), f"{size / full:.1%}" if full else "")
                for codec, (count, size, full) in by_codec(manifest).items()
            ],
        ),
    ]
    if manifest.scores:
        rows = [
            (_code(each.metric), each.of, f"{each.value:.4g}", f"{each.low:.3g} to {each.high:.3g}", str(each.items),
             _code(each.split))
            for each in manifest.scores
        ]  # fmt: skip
        header = ("metric", "of", "score", "95 % interval", "items", "split")
        shown += ["## Scores", "Measured by its maker, with an evaluator and data of theirs.", _table(header, rows)]
    return [*shown, "## Made by", _made(manifest.provenance), f"Vector id: {_code(manifest.id)}."]


def _made(provenance: Mapping[str, object]) -> str:
    said = [f"- {key}: {_code(str(provenance[key]))}" for key in ("tool", "created", "command") if provenance.get(key)]
    if provenance.get("recipe"):
        said.append("- the fine-tune is a merge; its recipe is in `vector.json`")
    return "\n".join(said) or "Not stated."


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _code(text: str) -> str:
    """A stranger's text in a code span, in a table or out of it."""
    line = printable(" ".join(text.split())).replace("`", "'").replace("|", "¦")
    return f"`{line}`" if line else ""


def _alias(name: str) -> str:
    return re.sub(r"\W", "_", name)
