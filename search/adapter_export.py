"""A merge as a LoRA adapter: its difference to the base, as products of a chosen rank, with a card and the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import SearchError
from search.export import ExportOptions, Work

if TYPE_CHECKING:
    from merging.lora.collect import OnTensor, Rest
    from merging.lora.write import Written


def write_lora(
    work: Work,
    out: Path,
    rank: str,
    options: ExportOptions,
    *,
    rest: Rest = "save",
    on_tensor: OnTensor | None = None,
) -> Written:
    """Write a merge as an adapter; what it was made of is said as in the card of a model.

    Args:
        work: the merge.
        out: the new folder.
        rank: ``16``, or ``auto:0.02``.
        options: as for a model; an adapter has no tokenizer of its own.
        rest: see :data:`merging.lora.collect.Rest`.
        on_tensor: told of each tensor.

    Raises:
        SearchError: an option that adapters do not have.
        MergingError: the merge cannot be an adapter, or the folder not be written.
    """
    from merging.durable import write_text
    from merging.lora.card import About
    from merging.lora.compress import Rank
    from merging.lora.differences import OfMerge
    from merging.lora.write import write_adapter
    from search.card.parents import licences, parents_of, shareable

    if options.tokenizer_from is not None:
        raise SearchError(
            f"--tokenizer-from {options.tokenizer_from}: an adapter is used with its base's tokenizer; leave it out"
        )
    wanted = Rank.parse(rank)
    parents = parents_of(work.recipe, work.references, work.folders, options.hub_ids)
    shared = shareable(work.recipe, work.references, work.folders, options.hub_ids)
    recipe = work.recipe if work.keep_paths else shared
    base, experts = parents[0], [each.name for each in parents[1:] if each.made_by is None]
    stated = licences(parents)
    methods = sorted({each.method for each in (*recipe.groups.values(), *recipe.tensors.values())})
    about = About(
        title=options.repository.partition("/")[2] if options.repository else _title(work, out),
        base_name=base.hub_id or (str(work.folders[work.recipe.base].absolute()) if work.keep_paths else base.name),
        shown_base=base.hub_id or base.name,
        licence=next(iter(stated)) if len(stated) == 1 else "",
        made_of=tuple(experts),
        by=f"merged by {', '.join(methods)}" + (f", {options.rule}" if options.rule else ""),
        recipe=shared.to_yaml(),
        tags=("merge", *methods),
    )
    return write_adapter(
        OfMerge(work.recipe, work.sources, work.calibration),
        out,
        wanted,
        rest=rest,
        about=about,
        on_tensor=on_tensor,
        finish=lambda _, folder: write_text(folder / "recipe.yaml", recipe.to_yaml()),
    )


def write_or_check(
    work: Work, out: Path, rank: str, options: ExportOptions, *, rest: Rest = "save", on_tensor: OnTensor | None = None
) -> Written:
    """As :func:`write_lora`; one that a push left here is written again beside it, compared, and kept as it is.

    Raises:
        SearchError, MergingError: as :func:`write_lora`, or what is here is another adapter, or damaged.
    """
    import tempfile
    from dataclasses import replace

    from merging.lora.adapter import WEIGHTS
    from merging.opening import is_adapter
    from merging.verification import sha256_of
    from search.export import holds

    if not (is_adapter(out) and (out / WEIGHTS).is_file() and holds(out, work.recipe)):
        return write_lora(work, out, rank, options, rest=rest, on_tensor=on_tensor)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.again-", dir=out.parent) as beside:
        again = write_lora(work, Path(beside) / out.name, rank, options, rest=rest, on_tensor=on_tensor)
        if sha256_of(again.folder / WEIGHTS) != sha256_of(out / WEIGHTS):
            raise SearchError(
                f"expected {out} to hold the adapter that is to be pushed, found other weights in it: it was written "
                "with another --lora or --lora-rest, or is damaged; choose another folder, or remove it"
            )
    return replace(again, folder=out)


def said(written: Written) -> list[str]:
    """What a terminal is told of an adapter."""
    from merging.vectors.cards import error_words, size_words
    from search.report.markup import count

    products, whole = (len(written.counted(how)) for how in ("product", "whole"))
    saved = f" and {count(whole, 'tensor')} saved whole" if whole else ""
    return [
        f"relative error of the whole difference: {error_words(written.error)}",
        f"{count(products, 'product')} of rank {written.rank} at most{saved}",
        f"{size_words(written.size)}, {written.size / max(written.full, 1):.1%} of the model's "
        f"{size_words(written.full)}",
    ]


def facts(written: Written, work: Work) -> dict[str, Any]:
    """For JSON."""
    return written.as_data() | {"candidate": work.candidate, "recipe_hash": work.recipe.hash}


def _title(work: Work, out: Path) -> str:
    return work.title or (f"{work.results.name}, candidate {work.candidate}" if work.results is not None else out.name)
