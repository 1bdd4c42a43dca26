"""``paretomerge vector``: the task-vector store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.cli.completing import complete_configs
from search.cli.export import LoraRestOption, check_lora
from search.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Mapping

    from merging.vectors.manifest import Manifest
    from merging.vectors.store import Store


def complete_vectors(incomplete: str) -> list[str]:
    """Vectors of the default store."""
    from merging.vectors.places import default_store, names_in

    return [name for name in names_in(default_store()) if name.startswith(incomplete)]


app = typer.Typer(
    help="Task vectors: extract, keep, verify, exchange, equip.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A vector of the store, or the folder of one.", autocompletion=complete_vectors
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="In the store; the vector's own name if left out.")
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store", metavar="DIR", help="Another store than the user's own (or the one that PARETOMERGE_VECTORS names)."
    ),
]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="Put it in the place of one of the same name, which is removed.")
]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--budget", metavar="ERROR", help="The smallest codec of each tensor within this relative error, such as 0.02."
    ),
]
CodecOption = Annotated[
    str | None, typer.Option("--codec", metavar="CODEC", help="One codec: bf16, topk, svd, onebit, seeded, …")
]
CodecOptionOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="Of --codec, such as rank=16 or density=0.1; repeatable."),
]
ExactOption = Annotated[bool, typer.Option("--exact", help="Every bit of the fine-tune. The default.")]
LicenceOption = Annotated[
    str | None,
    typer.Option(
        "--licence", "--license", metavar="ID", help="Of the vector, such as apache-2.0; the fine-tune's if left out."
    ),
]


@app.command()
def extract(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base: a model folder, or a zoo:// reference.")],
    expert: Annotated[str, typer.Argument(metavar="EXPERT", help="What was trained from it: a model or an adapter.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What to call it in the store.")],
    budget: BudgetOption = None,
    codec: CodecOption = None,
    option: CodecOptionOption = None,
    exact: ExactOption = False,
    licence: LicenceOption = None,
    store: StoreOption = None,
    replace: ReplaceOption = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also read pickled weights (.bin), by torch's weights-only loader.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Keep what a fine-tune changed of its base as a vector: smaller than the model, and whole again on its base.

    Without --budget or --codec it is exact: base and vector give every bit of the fine-tune. What was written is read
    back before it counts. An adapter's factors are kept as they are.
    """
    from merging.opening import open_model
    from merging.vectors.store import Store
    from search.vector_options import parse_coding
    from search.vector_work import extracted, find_model

    target = Store(store)
    coding = parse_coding(budget, codec, option, exact)
    named = {"base": base, "expert": expert}
    folders = {key: find_model(text) for key, text in named.items()}
    origin = open_model(folders["base"], allow_pickle=allow_pickle)
    tuned = open_model(folders["expert"], origin, allow_pickle=allow_pickle)
    manifest = extracted(target, name, origin, tuned, named, coding, licence, replace=replace)
    _tell_added(target, name, manifest, json, "extracted")


@app.command(name="list")
def list_vectors(store: StoreOption = None, json: JsonOption = False) -> None:
    """The vectors of a store: base, size, what was lost, licence, scores."""
    from merging.vectors.store import Store
    from search.report.console import print_json
    from search.vector_tables import facts, print_list, read_all

    found = Store(store)
    manifests, broken = read_all(found)
    if json:
        print_json(
            {"store": str(found.path), "vectors": [facts(name, each) for name, each in manifests.items()],
             "unreadable": broken}
        )  # fmt: skip
        return
    print_list(found, manifests, broken)


@app.command()
def show(
    name: NameArgument,
    evaluate: Annotated[
        Path | None,
        typer.Option(
            "--evaluate",
            metavar="CONFIG",
            help="Score base, base with vector and fine-tune with this config's evaluators.",
            autocompletion=complete_configs,
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="With --evaluate: search, selection or holdout.")] = "search",
    base: Annotated[
        str | None, typer.Option("--base", metavar="BASE", help="With --evaluate: the base; the config's if left out.")
    ] = None,
    expert: Annotated[
        str | None,
        typer.Option("--expert", metavar="EXPERT", help="With --evaluate: the fine-tune, to tell what was lost."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="With --evaluate: keep the scores with the vector, and on its card.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """What a vector is: size against the full model, relative error, by codec and by kind of module; its scores."""
    from merging.vectors.manifest import Manifest
    from merging.vectors.store import Store
    from search.errors import SearchError
    from search.report.console import print_json
    from search.vector_tables import details, print_details, print_scores
    from search.vector_work import find_vector, scored

    if evaluate is None and (keep or base is not None or expert is not None):
        raise SearchError("--base, --expert and --keep are for --evaluate CONFIG; add it, or leave them out")
    known = Store(store)
    folder = find_vector(name, known)
    found = None
    if evaluate is not None:
        found = scored(folder, evaluate, split, base, expert)
        if keep:
            Store(folder.parent).scored(folder.name, found.scores)
    manifest = Manifest.read(folder)
    if json:
        print_json(details(folder, manifest) | ({} if found is None else {"evaluated": found.as_data()}))
        return
    print_details(folder, manifest, scores=found is None)
    if found is not None:
        print_scores(found)


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]…", help="Which; all if left out.", autocompletion=complete_vectors),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Also put each onto its base, and compare what comes of it."),
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Hash everything that vectors consist of, and compare it with their manifests."""
    from merging.opening import open_model
    from merging.vectors.store import Store
    from search.report.console import print_json
    from search.vector_tables import print_verified
    from search.vector_work import find_model, verified

    known = Store(store)
    origin = None if base is None else open_model(find_model(base))
    found = verified(known, names or known.names(), origin)
    if json:
        print_json(found)
    else:
        print_verified(known, found)
    if any(each["damaged"] is not None for each in found):
        raise typer.Exit(2)


@app.command()
def add(
    source: Annotated[
        str, typer.Argument(metavar="FOLDER", help="A vector's folder, or a PEFT adapter's with --base.")
    ],
    name: NameOption = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="BASE", help="Of an adapter: the model that it was trained for.")
    ] = None,
    licence: LicenceOption = None,
    store: StoreOption = None,
    replace: ReplaceOption = False,
    json: JsonOption = False,
) -> None:
    """Add a vector's folder to the store, or an adapter as a vector; its factors are kept as they are."""
    from merging.vectors.store import Store
    from search.vector_work import added

    target = Store(store)
    stored, manifest = added(target, source, name, base, licence, replace=replace)
    _tell_added(target, stored, manifest, json, "added")


@app.command()
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", autocompletion=complete_vectors)],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Remove vectors from a store."""
    from merging.vectors.store import Store
    from search.report.console import print_json

    known, names = Store(store), list(dict.fromkeys(names))
    for name in names:
        known.folder(name)  # all of them, or none
    for name in names:
        known.remove(name)
    if json:
        print_json({"store": str(known.path), "removed": names})
    else:
        print(f"removed {', '.join(names)}")


@app.command()
def export(
    name: NameArgument,
    destination: Annotated[
        str, typer.Argument(metavar="DEST", help="A new folder, a new .zip or .tar, or hf://OWNER/NAME.")
    ],
    lora: Annotated[
        str | None,
        typer.Option("--lora", metavar="RANK", help="As a PEFT adapter of this rank, or auto:ERROR; needs --base."),
    ] = None,
    lora_rest: LoraRestOption = None,
    base: Annotated[str | None, typer.Option("--base", metavar="BASE", help="With --lora: the vector's base.")] = None,
    private: Annotated[bool, typer.Option("--private", help="With hf://: make the repository private.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write a vector as a folder, as one file, as a PEFT adapter, or to the Hugging Face Hub.

    The token for hf:// is that of `hf auth login` or HF_TOKEN.
    """
    from merging.vectors.store import Store
    from search.report.console import print_json
    from search.report.terminal import visible
    from search.vector_work import exported, exported_lora, find_vector

    check_lora(lora, lora_rest)
    folder = find_vector(name, Store(store))
    if lora is not None:
        facts = exported_lora(folder, destination, lora, base, lora_rest)
    else:
        facts = exported(folder, destination, private=private)
    if json:
        print_json(facts)
        return
    for note in facts.get("notes", []):
        typer.echo(visible(f"note: {note}"), err=True)
    print(visible(str(facts["said"])))


@app.command(name="import")
def import_vector(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A vector's folder, a .zip or .tar, or hf://OWNER/NAME[@REVISION].")
    ],
    name: NameOption = None,
    store: StoreOption = None,
    replace: ReplaceOption = False,
    json: JsonOption = False,
) -> None:
    """Take a vector into the store from a folder, an archive or the Hugging Face Hub; every hash is compared first."""
    from merging.vectors.store import Store
    from search.vector_work import imported

    target = Store(store)
    stored, manifest = imported(target, source, name, replace=replace)
    _tell_added(target, stored, manifest, json, "imported")


@app.command()
def equip(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base: a model folder, or a zoo:// reference.")],
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME…",
            help="Vectors of the store, folders of vectors or adapters.",
            autocompletion=complete_vectors,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The new model folder.")],
    scale: Annotated[
        list[str] | None,
        typer.Option("--scale", metavar="S or NAME=S", help="How much of all vectors, or of one; 1 if left out."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Onto another base than the vectors', with a warning of how far it is.")
    ] = False,
    made_from: Annotated[
        str | None,
        typer.Option("--made-from", metavar="BASE", help="With --force: the vectors' own base, which makes it exact."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Whose vocabulary, where they differ: base, union, or a folder.")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Put vectors onto their base, and write the model: θ = θ0 + Σ s·τ, with card, recipe and verification.

    One exact vector gives the fine-tune back, bit by bit. On another base than the vectors' it is refused.
    """
    from merging.vectors.store import Store
    from search.report.console import print_json
    from search.report.terminal import visible
    from search.vector_work import equipped

    done, notes = equipped(
        Store(store), base, names, out, scale or [], force=force, made_from=made_from, tokenizer=tokenizer
    )
    if json:
        print_json(done.as_data() | {"notes": notes})
        return
    for note in notes:
        typer.echo(visible(f"{'warning' if force else 'note'}: {note}"), err=True)
    print(visible(f"equipped {base} with {', '.join(names)}: {done.folder}"))
    print(f"read back: all {done.tensors} tensors are the recipe's bits")
    print(visible(f"content {done.content}"))


def _tell_added(store: Store, name: str, manifest: Manifest, json: bool, done: str) -> None:
    from search.report.console import print_json
    from search.report.terminal import visible
    from search.vector_tables import facts, summary

    if json:
        said: Mapping[str, object] = facts(name, manifest) | {"folder": str(store.path / name)}
        print_json(said)
        return
    print(visible(f"{done} {name}: {summary(manifest)}"))
    print(visible(f"{store.path / name}, vector id {manifest.id}"))
