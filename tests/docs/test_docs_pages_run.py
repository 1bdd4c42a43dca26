"""Every page does what it shows: its files pass ``check``, its commands run in order and print what it says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from docs_pages import ROOT, Page, pages
from docs_transcripts import Command, Shell, commands, play

RUN = [
    page for page in pages("README.md", "docs/guide/*.md") if any(block.language == "console" for block in page.blocks)
]


def searches(page: Page) -> list[str]:
    """The configs of searches among the files of a page."""
    return [str(block.file) for block in page.blocks if block.file is not None and "\nobjectives:" in block.text]


def shown(page: Page) -> list[Command]:
    """Every command that a page runs."""
    return [command for block in page.blocks if block.language == "console" for command in commands(block)]


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory, nano_zoo: Path):
    """``played(page)``: the folder in which a page was done, from its beginning or from where another one ended."""
    done: dict[str, Path | AssertionError] = {}

    def folder_of(page: Page) -> Path:
        if page.name not in done:
            for program in page.needs:
                if shutil.which(program) is None:
                    pytest.skip(f"{program} is not installed")
            folder = tmp_path_factory.mktemp(page.path.stem)
            if page.after is not None:
                shutil.copytree(folder_of(page.after), folder, dirs_exist_ok=True, symlinks=True)
            done[page.name] = folder
            try:
                play(page, Shell(folder))
            except AssertionError as error:
                done[page.name] = error
        found = done[page.name]
        if isinstance(found, AssertionError):  # of a page that others go on with: not done over for each of them
            pytest.fail(str(found), pytrace=False)
        return found

    return folder_of


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.path.stem)
def test_a_page_does_what_it_shows(page, played):
    folder = played(page)
    said = {command.line for command in shown(page)}
    shell = Shell(folder)
    for config in searches(page):  # a page need not show the check of each of its configs, but it must pass
        if not any(line.startswith(f"paretomerge check {config}") for line in said):
            output = shell.run(Command(f"paretomerge check {config}", "", 0))
            assert shell.last == 0, f"{page.name}: {config}\n{output}"


def test_the_guide_has_pages_that_run():
    assert len(RUN) >= 8
    assert sum(len(searches(page)) for page in RUN) >= 8
    assert sum(len(shown(page)) for page in RUN) >= 60


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.path.stem)
def test_most_commands_of_a_page_have_their_output_compared(page):
    told = [command for command in shown(page) if command.expected.replace("…", "").strip()]
    assert len(told) >= min(3, len(shown(page)) - 1), page.name


def test_pages_say_which_they_go_on_with():
    followed = {page.after.name for page in RUN if page.after is not None}
    assert followed <= {page.name for page in RUN}
    assert all(page.after is None for page in RUN if page.name in followed)  # one step, so that a page starts soon
    assert (ROOT / "docs" / "guide" / "first_search.md").exists()
