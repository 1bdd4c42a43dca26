"""What the documentation points at is there: links, anchors, pictures, files of the code, words of the vocabulary."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_pages import ROOT, Page, pages

PAGES = pages()
# A path in inline code that begins with one of the repository's folders names a file of it.
REPOSITORY = re.compile(
    r"(?:search|merging|evaluators|zoo|tests|configs|benchmarks|experiments|docs)(?:/[\w.*-]+)+/?|[\w-]+\.(?:md|toml)"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Page):
    missing = []
    for target, line in page.links:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.path.parent / path).resolve() if path else page.path
        if not found.exists():
            missing.append(f"{page.name}:{line}: {target}: there is no such file")
        elif anchor and anchor not in Page(found).anchors:
            missing.append(f"{page.name}:{line}: {target}: there is no such heading")
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_code_that_a_page_names_exist(page: Page):
    missing = []
    for code, line in page.inline:
        for name in code.split():
            name = name.rstrip(",;:").partition("::")[0]
            if REPOSITORY.fullmatch(name) and not [*ROOT.glob(name.rstrip("/")), *ROOT.glob(f"docs/**/{name}")]:
                missing.append(f"{page.name}:{line}: {name}")
    allowed = {"configs/evollm_*.yaml"}
    assert not [one for one in missing if one.rpartition(": ")[2] not in allowed], "\n".join(missing)


def test_every_page_can_be_found_from_the_index():
    index = Page(ROOT / "docs" / "README.md")
    linked = {
        (index.path.parent / target.partition("#")[0]).resolve() for target, _ in index.links if ":" not in target
    }
    forgotten = [page.name for page in pages("docs/**/*.md") if page.path not in linked and page.path != index.path]
    assert not forgotten


def test_pictures_are_small_and_have_a_text():
    for page in PAGES:
        for match in re.finditer(r"!\[(?P<text>[^\]]*)\]\((?P<path>[^)\s]+)", page.prose):
            assert match["text"], f"{page.name}: {match['path']} says nothing to those who cannot see it"
        for match in re.finditer(r"<img [^>]*>", page.prose):
            assert re.search(r'alt="[^"]{20,}"', match[0]), f"{page.name}: {match[0]}"
    for picture in (ROOT / "docs" / "images").iterdir():
        assert picture.stat().st_size < 300_000, picture.name


def test_no_page_names_a_place_of_its_makers():
    """Paths of the machine where a page was written are nobody else's."""
    for page in PAGES:
        for line, text in enumerate(page.text.split("\n"), 1):
            assert not re.search(r"(?<![\w.])/(?:root|work|home/\w+|tmp/runs)\b", text), f"{page.name}:{line}: {text}"


def test_every_module_that_the_architecture_page_lists_is_there_and_none_is_forgotten():
    text = Page(ROOT / "docs" / "architecture.md").text
    for package in ("search", "merging", "evaluators", "zoo"):
        for folder in (ROOT / package).iterdir():
            if folder.is_dir() and (folder / "__init__.py").exists():
                assert f"{package}/{folder.name}" in text, (
                    f"docs/architecture.md says nothing of {package}/{folder.name}"
                )


def test_the_vocabulary_is_the_same_everywhere():
    """Synonyms that the project does not use for its own words."""
    wrong = re.compile(
        r"\bPareto[- ](?:set|frontier)\b|\bfrontier\b|\bgenerations?\b (?:of|per) candidates|\btask-vector\b", re.I
    )
    for page in PAGES:
        found = wrong.search(page.prose)
        assert found is None, f"{page.name}:{page.prose.count(chr(10), 0, found.start()) + 1}: {found[0]}"


def test_pages_that_the_code_names_are_there():
    """Messages, docstrings, configs and scripts send people to pages."""
    missing = []
    for folder in ("search", "merging", "evaluators", "zoo", "configs", "benchmarks", "experiments"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix not in (".py", ".yaml", ".json", ".md"):
                continue
            named = re.findall(r"\bdocs/[\w/]+\.md", path.read_text(encoding="utf-8"))
            missing += [f"{path.relative_to(ROOT)}: {name}" for name in named if not (ROOT / name).exists()]
    assert not missing, "\n".join(missing)


def test_pages_are_found():
    assert len(PAGES) > 20
    assert all(isinstance(page.path, Path) for page in PAGES)
