"""``paretomerge doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.cli.options import JsonOption, RunArgument

if TYPE_CHECKING:
    from search.doctor import Examination
    from search.store.salvage import Salvage


def doctor(
    run: RunArgument,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Bring back what can be read of a damaged database.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Verify all that a run has stored; with --salvage, bring back what can be read of a damaged one.

    Exit codes: 0 intact or salvaged, 2 damaged.
    """
    from search.doctor import examine, folders_of, mend
    from search.report.console import print_json

    reports: list[dict[str, Any]] = []
    for folder in folders_of(run):
        mended = mend(folder) if salvage else None
        found = examine(folder)
        reports.append(_report(found, mended))
        if not json:
            _print(found, mended)
    if json:
        print_json(reports)
    if any(not each["intact"] for each in reports):
        raise typer.Exit(2)


def _report(found: Examination, mended: Salvage | None) -> dict[str, Any]:
    brought = None
    if mended is not None:
        brought = {
            "events": mended.events,
            "events_lost": mended.lost.events_lost,
            "candidates_lost": mended.lost.candidates_lost,
            "detail": mended.lost.detail,
            "damaged_file": str(mended.kept_at),
        }
    problems = {"intact": not found.problems, "problems": found.problems}
    return {"run": str(found.folder), **problems, **found.facts, "salvaged": brought}


def _print(found: Examination, mended: Salvage | None) -> None:
    facts = found.facts
    print(f"{found.folder}: {'damaged' if found.problems else 'intact'}")
    for problem in found.problems[:20]:
        print(f"  damaged: {problem}")
    if len(found.problems) > 20:
        print(f"  and {len(found.problems) - 20} more")
    if mended is not None:
        print(f"  salvaged: {mended.events} events; {mended.lost.detail}")
    if "events" in facts:
        print(f"  database: format {facts['format']}, {facts['journal']} journal, {facts['bytes'] / 1e6:.1f} MB")
        print(f"  events: {facts['events']}")
        print(f"  candidates: {_counted(facts['candidates'])}")
        print(f"  scores: {_counted(facts['scores'])}, and {facts['item_scores']} arrays of item scores")
    if facts.get("interrupted_transactions"):
        print("  the last transaction was interrupted, by a power cut for instance; it is done again")
    print(f"  lock: {'nobody is writing' if facts['holder'] is None else facts['holder']}")
    if facts.get("fence") is not None:
        print(f"  fence: {facts['fence']}, the times that it was opened for writing")
    print(f"  disk: {facts['disk_free'] / 1e9:.1f} GB free")
    missing = [name for name, there in facts["files"].items() if not there]
    print(f"  files: {'all there' if not missing else 'not there: ' + ', '.join(missing)}")
    for name in facts["damaged"]:
        print(f"  put aside: {name}")
    if found.problems:
        print(f"`paretomerge doctor {found.folder} --salvage` brings back what can be read")


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"
