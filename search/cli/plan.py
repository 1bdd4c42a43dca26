"""``paretomerge plan``."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from search.cli.options import JsonOption, SetOption

if TYPE_CHECKING:
    from rich.table import Table

    from merging.sizes import ModelSizes
    from search.config import LoadedConfig
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
    json: JsonOption = False,
) -> None:
    """Where base, experts and live model will lie, and what is left. Reads headers only, and starts nothing.

    Exit code 2 where it does not fit, with what would.
    """
    from search.errors import SearchError
    from search.placement import place
    from search.report.console import print_json

    if (config is None) == (parameters is None):
        raise SearchError("expected a config, or --parameters with --experts and --dtype where there is none yet")
    if config is not None:
        name, sizes, machine, work = _of_config(config, set or [], devices, host, tokens)
    else:
        name, sizes, machine, work = _of_numbers(parameters or 0.0, experts, dtype, devices, host, tokens)
    placement = place(sizes, machine, work)
    if json:
        print_json({"name": name, "memory": facts(sizes, machine, work, placement)})
    else:
        _show(sizes, machine, work, placement)
    if not placement.fits:
        would = "; or ".join(placement.remedies)
        message = f"this does not fit: {placement.problem}. What would: {would}"
        if not json:
            raise SearchError(message)
        raise typer.Exit(2)


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
) -> tuple[str | None, ModelSizes, Machine, Work]:
    from dataclasses import replace

    from merging.sizes import sizes_of
    from search.config import load_config
    from search.placement import Work
    from search.setup import model_paths

    loaded = load_config(path, overrides)
    config = loaded.config
    base, experts = model_paths(loaded)
    sizes = sizes_of(base, experts, config.models.dtype)
    virtual = dict.fromkeys(config.models.virtual, sizes.sources["base"])
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
    return config.name, sizes, _machine(there, host), work


def _of_numbers(
    parameters: float, experts: int, dtype: str, devices: str | None, host: str | None, tokens: int
) -> tuple[str | None, ModelSizes, Machine, Work]:
    import torch

    from search.errors import SearchError
    from search.placement import Work, assumed

    if not 1e3 <= parameters <= 1e15:
        raise SearchError(f"--parameters: expected a number of parameters such as 7e9, found {parameters:g}")
    sizes = assumed(int(parameters), experts, getattr(torch, dtype).itemsize)
    return (
        None,
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


def _show(sizes: ModelSizes, machine: Machine, work: Work, placement: Placement) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table(placement))
    for line in sentences(sizes, machine, work, placement):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _table(placement: Placement) -> Table:
    from rich.table import Table

    table = Table("what", "where", "size", "for", title="Memory")
    table.columns[2].justify = "right"
    for part in placement.parts:
        table.add_row(part.what, _WHERE[part.where], _shown(part.size), "the machine" if part.once else "each worker")
    return table


def sentences(sizes: ModelSizes, machine: Machine, work: Work, placement: Placement) -> list[str]:
    """What the table does not say."""
    lines = [f"{_counted(sizes.parameters)} parameters a model; {_shown(machine.host)} of main memory free."]
    if placement.fits and machine.devices:
        count = len(machine.devices)
        devices = f"{count} device{'s' * (count > 1)} of {_shown(min(machine.devices))}"
        lines.append(
            f"{devices}: {placement.workers} worker{'s' * (placement.workers > 1)}, {placement.gpus:g} of them each."
        )
    if placement.fits:
        left = "" if placement.device_left is None else f"{_shown(placement.device_left)} of the fullest device and "
        lines.append(f"Left: {left}{_shown(placement.host_left)} of main memory.")
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


def _shown(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if abs(size) >= 1e8 else f"{size / 1e6:.1f} MB"
