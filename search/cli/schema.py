"""``paretomerge schema``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def schema(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it there; to standard output if left out.")
    ] = None,
    plug_ins: Annotated[
        bool, typer.Option("--plug-ins", help="Also what installed packages bring; runs their code.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Make it anew, instead of taking the copy that is installed.")
    ] = False,
) -> None:
    """Print the JSON schema of a search's config, for editors.

    A config whose first line is `# yaml-language-server: $schema=FILE` is then completed and checked as it is written,
    in VS Code (the YAML extension), Neovim, Emacs and others. Draft 2020-12.
    """
    from search.config_schema import committed, config_schema, schema_text

    if plug_ins or fresh:
        text = schema_text(config_schema(plug_ins=plug_ins))
    else:  # the tests hold it to be current
        text = committed().read_text(encoding="utf-8")
    if out is None:
        print(text, end="")
        return
    from search.writing import write_whole

    write_whole(out, text, "the schema")
    print(f"schema: {out}")
