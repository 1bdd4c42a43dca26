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
) -> None:
    """Print the JSON schema of a search's config, for editors.

    A config whose first line is `# yaml-language-server: $schema=FILE` is then completed and checked as it is written,
    in VS Code (the YAML extension), Neovim, Emacs and others. Draft 2020-12.
    """
    from search.config_schema import config_schema, schema_text

    text = schema_text(config_schema(plug_ins=plug_ins))
    if out is None:
        print(text, end="")
        return
    from search.writing import write_whole

    write_whole(out, text)
    print(f"schema: {out}")
