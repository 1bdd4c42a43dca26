"""``paretomerge plan``."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from search.cli.options import JsonOption, SetOption
from search.ranges import size_text

if TYPE_CHECKING:
    from rich.table import Table

    from merging.sizes import ModelSizes
    from search.config import LoadedConfig
    from search.forecast.plan import Plan
    from search.placement import Machine, Placement, Work

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[MGT]i?B)", re.IGNORECASE)
_DEVICES = re.compile(r"(?P<count>\d+)\s*[x×]\s*(?P<size>.+)", re.IGNORECASE)

_WHERE = {
    "device": "device",
    "host": "main memory",
    "shared": "main memory, shared",
    "files": "its files, mapped",
}


def plan(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="The YAML file of a search; or give --parameters.")
    ] = None,
    set: SetOption = None,
    measure: Annotated[
        bool | None,
        typer.Option(
            "--measure/--no-measure",
            help="Load the models and time a few merges and evaluations; by default, unless another machine is "
            "described.",
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option("--devices", metavar="NxSIZE", help="Of each machine, such as 2x24GB; by default this one's."),
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="SIZE", help="Free main memory, such as 64GB; this machine's.")
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, help="Of the longest request with its answer: one must fit.")
    ] = 2048,
    parameters: Annotated[
        float | None, typer.Option("--parameters", metavar="N", help="Of each model, such as 7e9; without a config.")
    ] = None,
    experts: Annotated[int, typer.Option("--experts", min=1, help="With --parameters: how many.")] = 3,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option("--dtype", help="With --parameters: of the weights.")
    ] = "bfloat16",
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where run directories will lie.")] = Path("runs"),
    json: JsonOption = False,
) -> None:
    """What a search will take: time, memory and disk, each with its range.

    Starts nothing: it times a few merges and evaluations, and writes nothing but what loading models keeps in the
    cache. Exit code 2 where the models do not fit into memory, with what would.
    """
    from search.errors import SearchError
    from search.path_memory import in_memory
    from search.placement import place
    from search.report.console import print_json

    if (config is None) == (parameters is None):
        raise SearchError("expected a config, or --parameters with --experts and --dtype where there is none yet")
    loaded: LoadedConfig | None = None
    if config is not None:
        loaded, sizes, machine, work = _of_config(config, set or [], devices, host, tokens)
    else:
        sizes, machine, work = _of_numbers(parameters or 0.0, experts, dtype, devices, host, tokens)
    held = sizes if loaded is None else in_memory(loaded.config, sizes)
    placement = place(held, machine, work)
    here = devices is None and host is None if measure is None else measure
    planned = _planned(loaded, sizes, placement, here, runs) if loaded is not None and placement.fits else None
    if json:
        memory = facts(held, machine, work, placement)
        print_json({"name": loaded.config.name if loaded else None, "memory": memory, **_plan_facts(planned)})
    else:
        _show(held, machine, work, placement, planned)
    if not placement.fits:
        would = "; or ".join(placement.remedies)
        message = f"this does not fit: {placement.problem}. What would: {would}"
        if not json:
            raise SearchError(message)
        raise typer.Exit(2)


def _planned(loaded: LoadedConfig, sizes: ModelSizes, placement: Placement, measure: bool, runs: Path) -> Plan:
    import sys
    from functools import partial

    from search.forecast.plan import make_plan

    say = partial(print, file=sys.stderr, flush=True)
    return make_plan(loaded, sizes, placement, measure=measure, runs=runs, say=say)


def _plan_facts(planned: Plan | None) -> dict[str, Any]:
    from search.forecast.tables import facts_of

    return {} if planned is None else facts_of(planned)


def facts(sizes: ModelSizes, machine: Machine, work: Work, placement: Placement) -> dict[str, Any]:
    """Everything the command says about memory, as plain data; sizes in bytes."""
    return {
        "machine": asdict(machine),
        "work": asdict(work),
        "parameters": sizes.parameters,
        "widths": None if sizes.widths is None else asdict(sizes.widths),
        "fits": placement.fits,
        **asdict(placement),
    }


def _of_config(
    path: Path, overrides: list[str], devices: str | None, host: str | None, tokens: int
) -> tuple[LoadedConfig, ModelSizes, Machine, Work]:
    from dataclasses import replace

    from merging.sizes import sizes_of
    from search.config import load_config
    from search.placement import Work
    from search.setup import model_paths
    from search.virtual import evolved, made_of

    loaded = load_config(path, overrides)
    config = loaded.config
    base, experts = model_paths(loaded)
    sizes = sizes_of(base, experts, config.models.dtype)
    virtual = dict.fromkeys((*made_of(config), *evolved(config)), sizes.sources["base"])
    sizes = replace(sizes, sources={**sizes.sources, **virtual})
    there = _given(devices) if devices is not None else _found(loaded)
    ray = config.workers.kind == "ray"
    work = Work(
        batch_tokens=config.engine.batch_tokens,
        longest=tokens,
        workers=config.workers.count if ray else 1,
        gpus=(config.workers.gpus or 1.0) if ray else 1.0,
        own_weights=config.engine.kind == "vllm",
        shared=ray,
    )
    return loaded, sizes, _machine(there, host), work


def _of_numbers(
    parameters: float, experts: int, dtype: str, devices: str | None, host: str | None, tokens: int
) -> tuple[ModelSizes, Machine, Work]:
    import torch

    from search.errors import SearchError
    from search.placement import Work, assumed

    if not 1e3 <= parameters <= 1e15:
        raise SearchError(f"--parameters: expected a number of parameters such as 7e9, found {parameters:g}")
    sizes = assumed(int(parameters), experts, getattr(torch, dtype).itemsize)
    return (
        sizes,
        _machine(_given(devices) if devices is not None else (), host),
        Work(longest=tokens, shared=True),
    )


def _found(loaded: LoadedConfig) -> tuple[int, ...]:
    """Free bytes of this machine's devices that the config's workers may take; none where it runs on CPUs."""
    import torch

    from merging.memory import free_on
    from search.errors import SearchError

    wanted = torch.device(loaded.config.engine.device)
    if wanted.type != "cuda":
        return ()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise SearchError(
            f"engine.device is {wanted}, and this machine has none; say what the other has, such as --devices 2x24GB"
        )
    chosen = range(count) if loaded.config.workers.kind == "ray" else [wanted.index or 0]
    return tuple(free_on(torch.device("cuda", number)) for number in chosen)


def _machine(devices: tuple[int, ...], host: str | None) -> Machine:
    from merging.memory import free_memory
    from search.placement import Machine

    return Machine(devices, free_memory() if host is None else _size("--host", host))


def _given(text: str) -> tuple[int, ...]:
    from search.errors import SearchError

    match = _DEVICES.fullmatch(text.strip())
    count = int(match["count"]) if match else 1
    if not 1 <= count <= 1024:
        raise SearchError(f"--devices {text}: expected 1 to 1024 devices of a machine, such as 2x24GB")
    return (_size("--devices", match["size"] if match else text),) * count


def _size(option: str, text: str) -> int:
    from search.errors import SearchError

    match = _SIZE.fullmatch(text.strip())
    if match is None:
        example = "2x24GB" if option == "--devices" else "64GB"
        raise SearchError(f"{option} {text}: expected a number and MB, GB, TB, MiB, GiB or TiB, such as {example}")
    return int(float(match["number"]) * _UNITS[match["unit"].upper()])


# -- for people -------------------------------------------------------------------------------------------------------


def _show(sizes: ModelSizes, machine: Machine, work: Work, placement: Placement, planned: Plan | None = None) -> None:
    from rich.console import Console

    from search.forecast.tables import disk_table, plan_sentences, work_table
    from search.report.terminal import visible

    console = Console()
    if planned is not None and planned.first is not None:
        console.print(work_table(planned.first, "First search"))
        for line in plan_sentences(planned.first):
            console.print(visible(line), markup=False, highlight=False)
    if planned is not None:
        console.print(work_table(planned, "Search" if planned.first is None else "Second search"))
        for line in plan_sentences(planned):
            console.print(visible(line), markup=False, highlight=False)
        console.print(disk_table(planned))
    console.print(_table(placement))
    for line in sentences(sizes, machine, work, placement):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _table(placement: Placement) -> Table:
    from rich.table import Table

    table = Table("what", "where", "size", "for", title="Memory")
    table.columns[2].justify = "right"
    for part in placement.parts:
        table.add_row(
            part.what, _WHERE[part.where], size_text(part.size), "the machine" if part.once else "each worker"
        )
    return table


def sentences(sizes: ModelSizes, machine: Machine, work: Work, placement: Placement) -> list[str]:
    """What the table does not say."""
    lines = [f"{_counted(sizes.parameters)} parameters a model; {size_text(machine.host)} of main memory free."]
    if placement.fits and machine.devices:
        count = len(machine.devices)
        devices = f"{count} device{'s' * (count > 1)} of {size_text(min(machine.devices))}"
        lines.append(
            f"{devices}: {placement.workers} worker{'s' * (placement.workers > 1)}, {placement.gpus:g} of them each."
        )
    if placement.fits:
        left = "" if placement.device_left is None else f"{size_text(placement.device_left)} of the fullest device and "
        lines.append(f"Left: {left}{size_text(placement.host_left)} of main memory.")
    if placement.fits and placement.batch_tokens < placement.asked_tokens:
        lines.append(
            f"Batches of {placement.asked_tokens} tokens do not fit: the engine will halve them to "
            f"{placement.batch_tokens}. engine: {{batch_tokens: {placement.batch_tokens}}} spares it the attempts."
        )
    if any(part.where == "files" for part in placement.parts):
        lines.append(
            "There is no room to keep the sources in memory (a fifth of it is left to the rest): every candidate "
            "reads them from disk, but for the pages that the system has kept."
        )
    if sizes.widths is None:
        lines.append("What running the model takes is not known for this architecture: leave room for it.")
    return lines


def _counted(number: int) -> str:
    return f"{number / 1e9:.3g} billion" if number >= 1e9 else f"{number / 1e6:.3g} million"
