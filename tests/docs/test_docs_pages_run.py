"""Every page does what it shows: its files pass ``check``, its commands run in order and print what it says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from docs_pages import ROOT, Page, pages
from docs_transcripts import Shell, play

RUN = [
    page for page in pages("README.md", "docs/guide/*.md") if any(block.language == "console" for block in page.blocks)
]


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory, nano_zoo: Path):
    """``played(page)``: the folder in which a page was done, from its beginning or from where another one ended."""
    done: dict[str, Path] = {}

    def folder_of(page: Page) -> Path:
        if page.name not in done:
            for program in page.needs:
                if shutil.which(program) is None:
                    pytest.skip(f"{program} is not installed")
            folder = tmp_path_factory.mktemp(page.path.stem)
            if page.after is not None:
                shutil.copytree(folder_of(page.after), folder, dirs_exist_ok=True, symlinks=True)
            play(page, Shell(folder))
            done[page.name] = folder
        return done[page.name]

    return folder_of


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.path.stem)
def test_a_page_does_what_it_shows(page, played):
    before = (ROOT / page.name).read_bytes()
    played(page)
    assert (ROOT / page.name).read_bytes() == before


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.path.stem)
def test_every_config_of_a_page_passes_check(page, played):
    folder = played(page)
    shell = Shell(folder)
    for block in page.blocks:
        if block.language == "yaml" and block.file is not None and "\nobjectives:" in block.text:
            from docs_transcripts import Command

            shell.write(block)
            output = shell.run(Command(f"paretomerge check {block.file}", "", block.line))
            assert shell.last == 0, f"{page.name}:{block.line}: {block.file}\n{output}"


def test_the_guide_has_pages_that_run():
    assert len(RUN) >= 8
