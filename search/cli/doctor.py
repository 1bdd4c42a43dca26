"""``paretomerge doctor``: of this machine, or of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.cli.completing import complete_runs
from search.cli.options import JsonOption

if TYPE_CHECKING:
    from search.doctor import Examination
    from search.machine import Finding
    from search.store.salvage import Salvage


def doctor(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run directory, such as runs/quickstart; without one, this machine.",
            autocompletion=complete_runs,
            show_default=False,
        ),
    ] = None,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Bring back what can be read of a damaged database.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Look over this machine, or verify all that a run has stored.

    Without RUN: versions, devices, disk and caches, who owns the names of our packages, the hub, extras. With RUN: is
    all of it intact? --salvage brings back what can be read of a damaged one.

    Exit codes: 0 good, intact or salvaged, 2 broken or damaged.
    """
    from search.errors import SearchError

    if run is not None:
        _look_at_run(run, salvage, json)
        return
    if salvage:
        raise SearchError("--salvage: expected a run directory beside it: paretomerge doctor RUN --salvage")
    _look_at_machine(json)


def _look_at_machine(json: bool) -> None:
    from search.machine import look
    from search.report.console import print_json

    found = look()
    broken = [each for each in found if each.state == "broken"]
    if json:
        rows = [{key: value for key, value in each._asdict().items() if value != {}} for each in found]
        print_json({"good": not broken, "findings": rows})
    else:
        _print_findings(found, broken)
    if broken:
        raise typer.Exit(2)


def _print_findings(found: list[Finding], broken: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from search.report.terminal import visible

    console = Console(highlight=False)
    marks = {"ok": Text(" "), "note": Text("!", "yellow"), "broken": Text("x", "bold red")}
    width = max(len(each.name) for each in found)
    for section in dict.fromkeys(each.section for each in found):
        console.print(Text(f"\n{section}", "bold"))
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(width=width, no_wrap=True)
        table.add_column(overflow="fold")
        for each in found:
            if each.section == section:
                said = visible(f"{each.value}; {each.do}" if each.do and each.state == "ok" else each.value)
                table.add_row(marks[each.state], Text(each.name), Text(said))
                if each.do and each.state != "ok":
                    table.add_row(Text(""), Text(""), Text(visible(f"→ {each.do}"), "dim"))
        console.print(table)
    notes = sum(each.state == "note" for each in found)
    console.print()
    if broken:
        names = ", ".join(each.name for each in broken)
        console.print(Text(f"broken: {names} (marked x above, with what to do)", "bold"))
    else:
        console.print(Text(f"nothing is broken{f'; {notes} to note (marked !)' if notes else ''}"))


def _look_at_run(run: Path, salvage: bool, json: bool) -> None:
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
    if "candidates" in facts:  # of a damaged one as much as could be read
        print(f"  candidates: {_counted(facts['candidates'])}")
    if "item_scores" in facts:
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
