"""The reader of transcripts itself: what counts as the same output, and that a page that lies is found out."""

from __future__ import annotations

from pathlib import Path

import pytest
from docs_pages import Block, Page, command_words
from docs_transcripts import Command, Shell, commands, matches, plain_words, play


def page(tmp_path: Path, text: str) -> Page:
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    return Page(path)


@pytest.fixture(autouse=True)
def _anywhere(monkeypatch, tmp_path):
    monkeypatch.setattr("docs_pages.ROOT", tmp_path)


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("a table", "a  table\n", True),
        ("chosen (34)  0.883 [0.838, 0.917]", "chosen (7) 0.9 [-0.1, 1,000.5]", True),
        ("chosen (34)", "chosen (x)", False),
        ("good\n…\nthe end", "good\nanything\nat all\nthe end", True),
        ("good\n…\nthe end", "good\nthe end", True),
        ("good\n…", "bad\nthe end", False),
        ("one line", "one line\nand another", False),
        ("────────\n a  b", "──────────────\n a  b", True),
        ("a (b) [c] *", "a (b) [c] *", True),
        ("a.b", "axb", False),
    ],
)
def test_an_output_is_compared_by_its_words(expected, output, same):
    assert matches(expected, output) is same


def test_numbers_count_where_they_are_asked_for():
    assert matches("p = 0.12", "p = 0.34")
    assert not matches("p = 0.12", "p = 0.34", exactly=True)
    assert matches("p = 0.12 …", "p = 0.12 and more", exactly=True)


def test_commands_and_their_output_are_told_apart():
    block = Block(
        "console", "$ paretomerge check \\\n>   my.yaml   # a remark\ngood\n$ echo $?\n0\n$ watch it\nx\n^C\n", 10
    )
    assert commands(block) == [
        Command("paretomerge check my.yaml", "good", 10, length=2),
        Command("echo $?", "0", 13),
        Command("watch it", "x", 15, interrupted=True),
    ]
    with pytest.raises(ValueError, match="line 3"):
        commands(Block("console", "good\n$ ls\n", 3))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("paretomerge run a.yaml --set 'space={granularity: model}'", ["space={granularity: model}"]),
        ('paretomerge run a.yaml --set "x=$HOME"', None),
        ("paretomerge ls methods | head", None),
        ("A=1 paretomerge ls methods", None),
        ("python x.py", None),
    ],
)
def test_a_shell_is_used_where_one_is_needed(line, words):
    found = plain_words(line)
    assert (found if found is None else found[-1:]) == words


def test_calls_of_the_program_are_found_in_shell():
    assert list(command_words("paretomerge check my.yaml  # every error")) == [["check", "my.yaml"]]
    assert list(command_words('ln -s "$(paretomerge zoo path zoo://a/b)" c')) == [["zoo", "path", "zoo://a/b"]]
    assert list(command_words("A=1 paretomerge a && paretomerge b | head -3")) == [["a"], ["b"]]
    assert list(command_words("paretomerge_plugin x")) == []


@pytest.mark.parametrize(
    ("text", "lie"),
    [
        ("```console\n$ echo good\nbad\n```\n", "the page says\nbad\nand it printed\ngood"),
        ("```console\n$ false\n```\n", r"ended with 1"),
        ("```console\n$ (exit 3)\n$ echo $?\n2\n```\n", "the page says 2, and it is 3"),
    ],
)
def test_a_page_that_lies_is_found_out(tmp_path, text, lie):
    with pytest.raises(AssertionError, match=lie):
        play(page(tmp_path, text), Shell(tmp_path))


def test_a_page_that_tells_the_truth_is_played_in_order(tmp_path):
    text = (
        "1. in a list\n\n   ```text\n   # file: sub/a.txt\n   hello\n   ```\n\n```console\n"
        "$ tail -n 1 sub/a.txt\nhello\n"
        "$ (exit 3)\n$ echo $?\n3\n$ python -c 'import os; print(os.environ[\"COLUMNS\"])'\n80\n```\n\n"
        "```sh\nfalse\n```\n"
    )
    play(page(tmp_path, text), Shell(tmp_path))
    assert (tmp_path / "sub/a.txt").read_text() == "# file: sub/a.txt\nhello\n"


def test_ctrl_c_is_pressed_once_the_text_is_there(tmp_path):
    ends = "import signal, sys, time; signal.signal(2, lambda *_: sys.exit(0)); print(1, flush=True); time.sleep(60)"
    text = f"```console\n$ python -c '{ends}'\n1\n^C\n```\n"
    play(page(tmp_path, text), Shell(tmp_path))


def test_anchors_are_githubs(tmp_path):
    text = "# What `a_b` costs: a look\n## Data\n## Data\n```sh\n# no heading\n```\n## [x](y), z\n"
    assert page(tmp_path, text).anchors == {"what-a_b-costs-a-look", "data", "data-1", "x-z"}


def test_links_in_code_are_none(tmp_path):
    text = 'see [a](b.md#c), ![p](p.png "t") and `[x](y)`\n```\n[n](n.md)\n```\n<img src="q.png">'
    assert [target for target, _ in page(tmp_path, text).links] == ["b.md#c", "p.png", "q.png"]
