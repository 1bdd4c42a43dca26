"""``paretomerge export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from search.cli.options import (
    AtLeastOption,
    ConfidenceOption,
    JsonOption,
    MaximizeOption,
    MixOption,
    RunArgument,
)

if TYPE_CHECKING:
    from merging.lora.collect import Rest
    from merging.lora.write import Written
    from search.choice import Wish
    from search.export import Exported, ExportOptions, Work
    from search.push import Push, Pushed
    from search.rescoring import Rescored
    from search.results import Results

ParentOption = Annotated[
    list[str] | None,
    typer.Option("--parent", metavar="ALIAS=OWNER/NAME", help="Where the Hub has a parent, for the card; repeatable."),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--tokenizer-from",
        metavar="ALIAS",
        help="Whose tokenizer, chat template and generation settings: base or an expert. By default the base's, unless "
        "it has no chat template and the experts agree on one.",
    ),
]
LoraOption = Annotated[
    str | None,
    typer.Option(
        "--lora",
        metavar="RANK",
        help="Write a PEFT adapter instead of a model: the difference to the base, as products of this rank, or "
        "auto:0.02 for the ranks that keep each matrix within 2 %. Its error is printed and in its card.",
    ),
]
LoraRestOption = Annotated[
    Literal["save", "all", "leave"] | None,
    typer.Option(
        "--lora-rest",
        help="With --lora: norms and biases are saved whole (save, the default); with all, embeddings that are tied to "
        "their head too; with leave, nothing is.",
    ),
]


def export(
    run: RunArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The new model folder; RUN/export/candidate-ID if left out."),
    ] = None,
    candidate: Annotated[
        int | None, typer.Option("--candidate", metavar="ID", help="Which candidate; the run's choice if left out.")
    ] = None,
    knee: Annotated[bool, typer.Option("--knee", help="The run's choice: its knee. The default.")] = False,
    mix: MixOption = None,
    at_least: AtLeastOption = None,
    maximize: MaximizeOption = None,
    confidence: ConfidenceOption = 0.9,
    tokenizer_from: TokenizerOption = None,
    parent: ParentOption = None,
    lora: LoraOption = None,
    lora_rest: LoraRestOption = None,
    rescore: Annotated[
        bool,
        typer.Option("--rescore", help="Also load it with transformers, and compare its score on every stored item."),
    ] = False,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Upload the folder to the Hugging Face Hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: make the repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="With --push: to this branch.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a candidate as a Hugging Face model folder, the same bits that were scored, with a model card.

    Weights, config, tokenizer, recipe.yaml, mergekit.yaml where there is an equivalent, README.md (the model card) and
    front.png. The weights are read back and compared before the folder appears. With --lora, a PEFT adapter of it. The
    token for --push is that of `hf auth login` or HF_TOKEN.
    """
    from search.choice import Wish
    from search.errors import SearchError
    from search.export import ExportOptions
    from search.results import Results

    wished = mix is not None or maximize is not None or bool(at_least)
    if (candidate is not None) + knee + wished > 1:
        raise SearchError(
            "expected one of --candidate ID, --knee, or a wish (--mix, --at-least, --maximize), found several; "
            "`paretomerge status RUN` lists the front"
        )
    if push is None and (private or revision is not None):
        raise SearchError("--private and --revision are for --push OWNER/NAME; add it, or leave them out")
    check_lora(lora, lora_rest)
    if lora is not None and rescore:
        raise SearchError("--rescore compares bits, and an adapter of a rank has others; leave one of the two out")
    target = _target(push, private, revision)
    results = Results.load(run)
    wish = Wish.parse(mix, at_least or [], maximize, confidence) if wished else None
    id, rule = _picked(results, candidate, wish)
    options = ExportOptions(tokenizer_from, parse_parents(parent), push, rule)
    if lora is not None:
        _adapter(results, id, out or run / "export" / f"candidate-{id}-lora", (lora, lora_rest), options, target, json)
        return
    done = _write(results, id, out or run / "export" / f"candidate-{id}", options, again=target is not None)
    again = _rescored(results, done) if rescore else None
    pushed = None if target is None else target.send(done.folder, f"{results.name}, candidate {id}, by paretomerge")
    _tell(results, done, again, pushed, json)


def parse_parents(given: list[str] | None) -> dict[str, str]:
    """alias -> id, of ``--parent``.

    Raises:
        SearchError: not of that form.
    """
    from search.errors import SearchError

    found = {}
    for each in given or []:
        alias, sign, id = each.partition("=")
        if not sign or not alias or not id:
            raise SearchError(f"--parent {each}: expected ALIAS=OWNER/NAME, such as math=my-name/my-math-model")
        found[alias.strip()] = id.strip()
    return found


def check_lora(lora: str | None, rest: Rest | None) -> None:
    """Find wrong options before anything is read.

    Raises:
        SearchError: --lora-rest without --lora.
        MergingError: no such rank.
    """
    from search.errors import SearchError

    if rest is not None and lora is None:
        raise SearchError("--lora-rest is for --lora RANK; add it, or leave it out")
    if lora is not None:
        from merging.lora.compress import Rank

        Rank.parse(lora)


def write_lora_folder(
    work: Work, out: Path, rank: str, options: ExportOptions, rest: Rest | None, *, again: bool = False
) -> Written:
    """Write a merge as an adapter, with a bar on a terminal; ``again`` keeps one that a push has left."""
    from search.adapter_export import write_lora, write_or_check
    from search.vector_work import progress

    write = write_or_check if again else write_lora
    with progress("writing the adapter") as on_tensor:
        return write(work, out, rank, options, rest=rest or "save", on_tensor=on_tensor)


def tell_lora(work: Work, written: Written, json: bool, pushed: Pushed | None = None) -> None:
    """Say what an adapter holds and loses."""
    from search.adapter_export import facts, said
    from search.report.console import print_json
    from search.report.terminal import visible

    if json:
        print_json(facts(written, work) | {"pushed": pushed and pushed.as_data()})
        return
    for note in written.notes:
        typer.echo(visible(f"note: {note}"), err=True)
    what = "the merge" if work.candidate is None else f"candidate {work.candidate}"
    print(visible(f"wrote {what} as an adapter of its base: {written.folder}"))
    for line in said(written):
        print(line)
    if pushed is not None:
        print(visible(f"pushed to {pushed.url} ({pushed.revision}, commit {pushed.commit[:12]})"))


def _adapter(
    results: Results,
    id: int,
    out: Path,
    lora: tuple[str, Rest | None],
    options: ExportOptions,
    target: Push | None,
    json: bool,
) -> None:
    """A candidate as an adapter."""
    from search.export import work_of

    work = work_of(results, id)
    written = write_lora_folder(work, out, lora[0], options, lora[1], again=target is not None)
    sent = None
    if target is not None:
        sent = target.send(written.folder, f"{results.name}, candidate {id}, as an adapter, by paretomerge")
    tell_lora(work, written, json, sent)


def _target(push: str | None, private: bool, revision: str | None) -> Push | None:
    """Where to push, found wrong before anything is merged."""
    if push is None:
        return None
    from search.push import Push

    return Push(push, private=private, revision=revision)


def _picked(results: Results, candidate: int | None, wish: Wish | None) -> tuple[int, str]:
    """The candidate, and how it was picked."""
    from search.choice import choose
    from search.judge import CHOICE_RULE

    if wish is not None:
        return choose(results, wish), f"chosen for {wish.rule()}"
    if candidate is not None and candidate != results.chosen:
        return candidate, "picked by its number"
    id = results.knee()
    if results.chosen is None:
        return id, "the knee of the front as it stood, on search scores, before the run was finished"
    return id, f"the run's choice ({CHOICE_RULE})"


def _write(results: Results, id: int, out: Path, options: ExportOptions, again: bool) -> Exported:
    """Write the export; one that a push left here is checked and taken as it is."""
    from search.export import check_export, export_candidate, holds

    if again and holds(out, results.recipe(id)):
        return check_export(results, id, out, options)
    return export_candidate(results, id, out, options)


def _rescored(results: Results, done: Exported) -> Rescored:
    """The export, loaded and scored again.

    Raises:
        SearchError: a weight or a score is not the candidate's.
    """
    from search.errors import SearchError
    from search.rescoring import rescore

    if done.candidate is None:
        raise RuntimeError("an export of a run has a candidate")
    found = rescore(results, done.candidate, done.folder)
    if not found.same:
        wrong = "; ".join(
            f"{each.unequal} of {each.items} scores of {each.evaluator} on {each.split}"
            for each in found.scores
            if each.unequal
        )
        raise SearchError(
            f"{done.folder}: loaded with transformers, {len(found.different)} of {found.tensors} tensors and "
            f"{wrong or 'no score'} differ from the candidate's. Its recipe gives the weights that are in the folder: "
            "other versions, another device or another tokenizer (--tokenizer-from base) than in the search may be why"
        )
    return found


def _tell(results: Results, done: Exported, again: Rescored | None, pushed: Pushed | None, json: bool) -> None:
    from search.card.writing import CARD
    from search.report.console import print_json
    from search.report.terminal import visible

    if json:
        more = {"rescored": again and sum(each.items for each in again.scores), "pushed": pushed and pushed.as_data()}
        print_json(done.as_data() | more)
        return
    for warning in done.warnings:
        typer.echo(visible(f"warning: {warning}"), err=True)
    if results.chosen is None:
        typer.echo("warning: the run is not finished; what it chooses may be another candidate", err=True)
    print(visible(f"exported candidate {done.candidate} of {results.folder} to {done.folder}"))
    print(f"read back: all {done.tensors} tensors are the candidate's bits")
    print(visible(f"model card: {done.folder / CARD}"))
    if again is not None:
        items = sum(each.items for each in again.scores)
        print(f"rescored: loaded with transformers, all {again.tensors} tensors and {items} item scores are the same")
    if pushed is not None:
        print(visible(f"pushed to {pushed.url} ({pushed.revision}, commit {pushed.commit[:12]})"))
