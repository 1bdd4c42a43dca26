"""Put what the commands of a page print today into the page: python tests/docs/refresh.py docs/guide/mix.md …

Outputs that already say it, by their wildcards, stay; what a page leaves out altogether stays left out. Read the
difference before you commit it: this script cannot tell an improvement from a mistake.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from docs_pages import Page
from docs_transcripts import Shell, commands, matches, play


def refresh(page: Page, shell: Shell) -> list[str]:
    """Run a page and rewrite it; returns what happened to each command that changed."""
    lines, notes, moved = page.text.split("\n"), [], 0
    for block in page.blocks:
        if block.file is not None:
            shell.write(block)
        if block.language != "console":
            continue
        for command in commands(block):
            output = "\n".join(line.rstrip() for line in shell.run(command).strip("\n").split("\n"))
            print(f"{page.name}:{command.at}: $ {command.line}  -> {shell.last}", file=sys.stderr)
            if not command.expected or matches(command.expected, output, exactly=True):
                if not command.expected and shell.last:
                    notes.append(f"{page.name}:{command.at}: ended with {shell.last}:\n{output}")
                continue
            if "…" in command.expected and matches(command.expected, output):
                notes.append(f"{page.name}:{command.at}: numbers differ, to be mended by hand; it printed\n{output}")
                continue
            begin = command.at - 1 + moved + command.length
            old = command.expected.count("\n") + 1
            lines[begin : begin + old] = output.split("\n")
            moved += output.count("\n") + 1 - old
            notes.append(f"{page.name}:{command.at}: $ {command.line}: rewritten, {shell.last}")
    page.path.write_text("\n".join(lines), encoding="utf-8")
    return notes


def main() -> None:
    """Refresh the pages that are named."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        ended: dict[str, Path] = {}  # where the pages ended that others go on with
        for number, name in enumerate(sys.argv[1:]):
            page = Page(Path(name).resolve())
            folder = Path(scratch, f"page{number}")
            if page.after is not None:
                before = ended.setdefault(page.after.name, Path(scratch, page.after.path.stem))
                if not before.exists():
                    before.mkdir()
                    play(page.after, Shell(before))
                shutil.copytree(before, folder, symlinks=True)
            else:
                folder.mkdir()
            for note in refresh(page, Shell(folder)):
                print(note, flush=True)


if __name__ == "__main__":
    main()
