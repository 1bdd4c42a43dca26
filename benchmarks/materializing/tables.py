"""The figures of the materialising benchmark as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print everything that was measured."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=130)
    _header(result, console)
    for count, run in result["candidates"].items():
        console.print(_candidates(count, run))
    console.print(_once(result))
    if result["compiling"]:
        console.print(_compiling(result["compiling"]))
    console.print(_memory(result["memory"]))
    console.print(_disk(result["disk"]))
    if "mergekit import" in result["disk"]:
        console.print(_against(result))


def _header(result: Mapping[str, Any], console: Console) -> None:
    family, machine = result["family"], ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    before, after = (" ".join(f"{each:.2f}" for each in result[f"load {when}"]) for when in ("before", "after"))
    console.print(f"{result['command']}\n{machine}; one thread; load average before {before}, after {after}")
    console.print(
        f"family: Llama, {family['title']} parameters in bfloat16 ({family['bytes'] / 1e9:.2f} GB a model); device "
        f"{result['device']}; kernels compiled: {result['compile']}"
    )


def _candidates(count: str, run: Mapping[str, Any]) -> Table:
    table = _table(
        f"Candidates from {count} experts, all coefficients and densities new",
        ["best ms", "median ms", "wall ms", "GB moved", "copy GB/s", "fraction of copy", "(median)", "1 block"],
    )
    for title, row in run["cases"].items():
        layer = "" if row["layer"] is None else f"1/{1 / row['layer']:.1f}"
        table.add_row(
            title,
            f"{1e3 * row['best']:.1f}",
            f"{1e3 * row['median']:.1f}",
            f"{1e3 * row['wall']:.1f}",
            f"{row['bytes'] / 1e9:.2f}",
            f"{row['bandwidth'] / 1e9:.1f}",
            f"{row['fraction']:.3f}",
            f"{row['median fraction']:.3f}",
            layer,
        )
    table.caption = f"1 block: a candidate that changes one of {run['blocks']} blocks, in full ones"
    return table


def _once(result: Mapping[str, Any]) -> Table:
    counts = list(result["candidates"])
    table = _table("Paid once, seconds", [f"{each} experts" for each in counts])
    runs = result["candidates"].values()
    for name in next(iter(runs))["once"]:
        table.add_row(name, *(f"{run['once'][name]['busy']:.2f}" for run in runs))
    table.add_section()
    for title in next(iter(runs))["cases"]:
        table.add_row(f"{title}: statistics, kernels", *(f"{run['cases'][title]['first']:.2f}" for run in runs))
    table.caption = "statistics: for the whole grid of densities; kernels: cold where that number of experts is new"
    return table


def _compiling(found: Mapping[str, Mapping[str, float]]) -> Table:
    table = _table("Kernels of a method with 2 experts, seconds by the clock", ["cold", "warm"])
    for title, seconds in found["cold"].items():
        table.add_row(title, f"{seconds:.1f}", f"{found['warm'][title]:.1f}")
    table.caption = "cold: built; warm: found in inductor's folder, in a new process"
    return table


def _memory(found: Mapping[str, Mapping[str, float]]) -> Table:
    columns = ["models GB", "imports GB", "loaded GB", "peak GB", "peak / models", "without imports", "own at the end"]
    if any("device" in each for each in found.values()):
        columns.append("on the device GB")
    table = _table("Peak memory of a search's process", columns)
    for count, row in found.items():
        cells = [f"{row[name] / 1e9:.2f}" for name in ("models", "imported", "loaded", "peak")]
        cells.append(f"{row['peak'] / row['models']:.2f}")
        cells.append(f"{(row['peak'] - row['imported']) / row['models']:.2f}")
        cells.append(f"{row['anonymous'] / row['models']:.2f}")
        table.add_row(f"{count} experts", *cells, *([f"{row['device'] / 1e9:.2f}"] if "device" in row else []))
    table.caption = (
        "models: base, experts and live model; imports: Python with torch, before a model is opened; own: memory that "
        "is no page of a file, which the system could drop, in models"
    )
    return table


def _disk(found: Mapping[str, Any]) -> Table:
    columns = ["CPU s", "wall s", "peak GB", *(f"its {each}" for each in ("CPU s", "wall s", "peak GB"))]
    columns += ["CPU ratio", "wall", "peak", "differ"]
    table = _table("From disk to disk, the same config: paretomerge merge, and mergekit (its)", columns)
    for row in found["rows"]:
        ours, theirs = row["ours"], row.get("mergekit")
        cells = [f"{ours['cpu']:.1f}", f"{ours['wall']:.1f}", f"{ours['peak'] / 1e9:.2f}"]
        if theirs:
            cells += [f"{theirs['cpu']:.1f}", f"{theirs['wall']:.1f}", f"{theirs['peak'] / 1e9:.2f}"]
            cells += [f"{theirs[name] / ours[name]:.2f}" for name in ("cpu", "wall", "peak")]
            cells.append(f"{100 * row['differing']:.1f} %")
        table.add_row(f"{row['method']}, {row['experts']} experts", *cells)
    imports = f"imports alone take {found['our import']['cpu']:.1f} s here"
    if "mergekit import" in found:
        imports += f", {found['mergekit import']['cpu']:.1f} s there"
    table.caption = f"ratios: mergekit / paretomerge; differ: share of the elements that are not the same; {imports}"
    return table


def _against(result: Mapping[str, Any]) -> Table:
    count, run = next(iter(result["candidates"].items()))
    table = _table(
        f"mergekit and one candidate in place, {count} experts, CPU time",
        ["in place s", "mergekit s", "its import s", "in memory s", "ratio", "without import", "in memory"],
    )
    imported = result["disk"]["mergekit import"]["cpu"]
    for row in result["disk"]["rows"]:
        # Its conventions where they are measured apart, and ours.
        for title in (row["method"], f"{row['method']} (mergekit)"):
            if title not in run["cases"] or "in memory" not in row:
                continue
            disk, memory, best = row["mergekit"]["cpu"], row["in memory"]["cpu"], run["cases"][title]["best"]
            seconds = (f"{best:.3f}", f"{disk:.2f}", f"{imported:.2f}", f"{memory:.2f}")
            table.add_row(title, *seconds, *(f"{each / best:.0f}×" for each in (disk, disk - imported, memory)))
    table.caption = "mergekit: from disk to disk; in memory: its graph on mapped files, copied into parameters"
    return table


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table
