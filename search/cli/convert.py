"""``paretomerge convert``: pickled weights as safetensors."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from search.cli.options import JsonOption


def convert(
    source: Annotated[Path, typer.Argument(help="A model folder with pytorch_model.bin.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The new model folder; may not hold anything yet.", show_default=False)],
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read the pickles, by torch's weights-only loader.")
    ] = False,
    max_shard_size: Annotated[str, typer.Option(help="Largest weight file, such as 500MB or 2GB.")] = "2GB",
    json: JsonOption = False,
) -> None:
    """Write pickled weights (.bin) as safetensors, with config and tokenizer, and compare every bit.

    A pickle can run code when it is loaded. Searches and merges therefore read safetensors only, and this reads pickles
    by the loader that builds tensors and nothing else; it refuses a file that holds more.
    """
    from merging.unpickle import convert_pickles
    from search.cli.merge import parse_size
    from search.errors import SearchError
    from search.report.console import print_json
    from search.report.terminal import visible

    size = parse_size(max_shard_size)
    if not allow_pickle:
        raise SearchError(
            f"{source}: pickled weights are read only where you say so, since a pickle can run code when it is loaded. "
            "They are read by torch's weights-only loader, which builds tensors and runs none: add --allow-pickle"
        )
    done = convert_pickles(source, out, max_shard_size=size, say=partial(typer.echo, err=True))
    if json:
        print_json({
            "folder": str(done.folder), "files": list(done.files), "tensors": done.tensors, "bytes": done.bytes,
            "tied": list(done.tied),
        })  # fmt: skip
        return
    left = f" ({', '.join(done.tied)} is the embedding, and left out)" if done.tied else ""
    typer.echo(
        visible(f"wrote {done.tensors} tensors, {done.bytes / 1e9:.3g} GB, every bit compared{left}: {done.folder}")
    )
