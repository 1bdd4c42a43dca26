"""A stranger's text in a card is what it was, and nothing else."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from search.card.markdown import code, fenced, plain, table

RENDER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
HOSTILE = st.text(st.sampled_from("\\`*_[]()#+-!|~$<>&@:/.=0123 \n\tabw\u202e\x1b"), min_size=1, max_size=40)


def shown(markdown: str) -> tuple[set[str], str]:
    """(the tags that rendering makes, the text that a reader sees)."""
    page = RENDER.render(markdown)
    return set(re.findall(r"</?([a-z0-9]+)", page)), html.unescape(re.sub(r"<[^>]*>", "", page)).strip()


def one_line(text: str) -> str:
    from search.report.terminal import visible

    return " ".join(visible(text).split())


@settings(max_examples=120, deadline=None)
@given(HOSTILE)
def test_text_makes_no_markup(text: str) -> None:
    tags, read = shown(plain(text))
    assert tags <= {"p"}
    assert " ".join(read.split()) == one_line(text)


@settings(max_examples=80, deadline=None)
@given(st.lists(HOSTILE, min_size=2, max_size=2))
def test_a_cell_stays_a_cell(cells: list[str]) -> None:
    page = RENDER.render(table(["a", "b"], [[plain(each) for each in cells]]))
    assert set(re.findall(r"</?([a-z0-9]+)", page)) == {"table", "thead", "tbody", "tr", "th", "td"}
    read = [html.unescape(each) for each in re.findall(r"<td>(.*?)</td>", page, re.DOTALL)]
    assert [" ".join(each.split()) for each in read] == [one_line(each) for each in cells]


@settings(max_examples=80, deadline=None)
@given(HOSTILE)
def test_code_ends_where_it_ends(text: str) -> None:
    if not one_line(text):
        return
    tags, read = shown(f"x {code(text)} y")
    assert tags == {"p", "code"} and read == f"x {one_line(text)} y"
    block, read = shown(fenced(text + "\nlast", "yaml"))
    assert block == {"pre", "code"} and read.endswith("last")


@pytest.mark.parametrize(
    "text",
    ["https://evil.example/x", "www.evil.example", "@everyone", "<img src=x onerror=alert(1)>", "[a](javascript:b)",
     "![x](//e)", "# heading", "1. one", "---", "| a |", "a\n\n# b", "&lt;b&gt;", "$x$", "<!-- x"],
)  # fmt: skip
def test_what_renderers_make_something_of(text: str) -> None:
    tags, read = shown(plain(text))
    assert tags <= {"p"} and read == one_line(text)
    assert "://" not in plain(text) and "www." not in plain(text) and "@" not in plain(text)  # GitHub links these


def test_long_text_is_cut() -> None:
    assert len(plain("a" * 1000)) == 300 and plain("a" * 1000).endswith("…")
    assert fenced("\n".join("abc"), "", most_lines=2) == "```\na\nb\n```\n\n… and 1 lines more."
