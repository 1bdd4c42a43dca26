"""``README.md`` of an adapter that was written: front matter that the Hub reads, and what a person should know."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from merging.bounded import printable
from merging.lora.compress import Rank, relative
from merging.vectors.cards import error_words, size_words

if TYPE_CHECKING:
    from merging.lora.collect import Lost

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
_MARKUP = re.compile(r"([\\`*_\[\]<>|~$&@])")


@dataclass(frozen=True)
class About:
    """Where an adapter comes from.

    Attributes:
        title: heading of the card.
        base_name: what the adapter calls its base: an id of the Hub or a folder; PEFT loads it from there.
        shown_base: what the card calls it; ``base_name`` where that is an id of the Hub, its last part otherwise.
        licence: of the adapter; "" where none is stated.
        made_of: names of the models that it was made from.
        by: how, such as "by ties".
        recipe: text of the recipe of a merge.
        tags: further ones.
    """

    title: str = "Adapter"
    base_name: str = ""
    shown_base: str = ""
    licence: str = ""
    made_of: tuple[str, ...] = ()
    by: str = ""
    recipe: str = ""
    tags: tuple[str, ...] = ()

    @property
    def hub_id(self) -> str | None:
        """The base's id on the Hub, where it has one."""
        name = self.shown_base or self.base_name
        return name if _HUB_ID.fullmatch(name) and ".." not in name else None

    @property
    def base(self) -> str:
        """The base's name for a reader: never a folder of this machine."""
        return self.hub_id or re.split(r"[/\\]", (self.shown_base or self.base_name).rstrip("/\\"))[-1] or "its base"


def card(
    about: About,
    rank: Rank,
    largest: int,
    error: float,
    tensors: Mapping[str, Lost],
    sizes: tuple[int, int],
    notes: Sequence[str],
) -> str:
    """The text of the card. What is not known is left out; nothing is guessed.

    Args:
        about: where it comes from.
        rank: as it was asked for.
        largest: rank of its products, at most.
        error: ‖Δ − Δ̂‖/‖Δ‖ of the whole.
        tensors: how well each is kept.
        sizes: bytes of the adapter and of the base.
        notes: what its user should know.
    """
    front: dict[str, object] = {}
    if about.hub_id is not None:
        front |= {"base_model": [about.hub_id], "base_model_relation": "adapter"}
    front["library_name"] = "peft"
    if _LICENCE.fullmatch(about.licence):
        front["license"] = about.licence
    front["tags"] = ["lora", "paretomerge", *about.tags]
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    paragraphs = [f"# {_plain(about.title)}", _lead(about, rank, largest, error, sizes), *_kept(tensors)]
    paragraphs += [_load(about), *map(_plain, notes)]
    if about.recipe:
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", about.recipe)), default=0))
        paragraphs += ["## Recipe", f"{fence}yaml\n{about.recipe.rstrip()}\n{fence}"]
    return f"---\n{head}---\n\n" + "\n\n".join(paragraphs) + "\n"


def _lead(about: About, rank: Rank, largest: int, error: float, sizes: tuple[int, int]) -> str:
    of = f" of {' and '.join(map(_plain, about.made_of))}" if about.made_of else ""
    by = f", {_plain(about.by)}" if about.by else ""
    what = (
        f"rank {largest}" if rank.most is not None else f"ranks up to {largest}, an error of {rank.error:g} per matrix"
    )
    return (
        f"A LoRA adapter for {_plain(about.base)}: the difference to it{of}{by}, as products of {what}. The relative "
        f"error ‖Δ − Δ̂‖/‖Δ‖ over all weights is {error_words(error)}; the adapter has "
        f"{size_words(sizes[0])}, {sizes[0] / max(sizes[1], 1):.1%} of its base's {size_words(sizes[1])}. "
        "Made with paretomerge."
    )


def _kept(tensors: Mapping[str, Lost]) -> list[str]:
    """A table: kind of module -> how it is kept, and how well."""
    kinds: dict[tuple[str, str], list[Lost]] = defaultdict(list)
    for name, each in tensors.items():
        module, _, leaf = name.rpartition(".")
        kinds[(f"{module.rpartition('.')[2]}.{leaf}".lstrip("."), each.how)].append(each)
    whole = sum(each.square for each in tensors.values())
    rows = []
    for (kind, how), held in kinds.items():
        square = sum(each.square for each in held)
        lost = sum(each.error**2 * each.square for each in held)
        share = square / whole if whole else 0.0
        ranks = {each.rank for each in held if each.rank}
        said = (str(min(ranks)) if len(ranks) == 1 else f"{min(ranks)}–{max(ranks)}") if ranks else "–"
        rows.append(
            (lost, [_plain(kind), str(len(held)), how, said, f"{share:.1%}", error_words(relative(lost, square))])
        )
    rows.sort(key=lambda row: -row[0])
    cells = [
        ["tensors", "how many", "kept as", "rank", "share of ‖Δ‖²", "error"],
        ["---"] * 6,
        *(row[1] for row in rows),
    ]
    return ["\n".join("| " + " | ".join(line) + " |" for line in cells)]


def _load(about: About) -> str:
    base = about.hub_id or "path/to/the/base"
    return (
        "```python\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM  # or the base's own class\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(model, "path/to/this/folder")\n```'
    )


def _plain(text: str) -> str:
    """A stranger's text on one line, as it is: no markup comes of it."""
    line = _MARKUP.sub(r"\\\1", " ".join(printable(text, 500).split()))
    return line.replace("://", "&#58;//").replace("www.", "www&#46;")
