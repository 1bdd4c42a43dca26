"""What a run is made of changes between two starts, with the same size and the same time stamp: refused, by content."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import Launcher
from searches import COMMAND, Searches, Snapshot
from striking import KILLED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Change = Callable[[bytes], bytes]


def last_weight(content: bytes) -> bytes:
    """The last weight is another one: its sign bit is flipped."""
    return content[:-1] + bytes([content[-1] ^ 0x80])


def swapped(one: bytes, other: bytes) -> Change:
    """Two texts of one length change places; both must be there."""

    def change(content: bytes) -> bytes:
        assert len(one) == len(other)
        assert one in content
        assert other in content
        hole = b"\0" * len(one)
        return content.replace(one, hole).replace(other, one).replace(hole, other)

    return change


def replaced(one: bytes, other: bytes) -> Change:
    """One text becomes another of its length; it must be there."""

    def change(content: bytes) -> bytes:
        assert len(one) == len(other)
        assert one in content
        return content.replace(one, other, 1)

    return change


def answers(content: bytes) -> bytes:
    """Many items expect another's answer: those with answers of one length pass them on."""
    key = b'"answer": "'
    head, *rest = content.split(key)
    parts = [each.partition(b'"') for each in rest]
    place = {index: index for index in range(len(parts))}
    for length in {len(answer) for answer, *_ in parts}:
        same = [index for index, (answer, *_) in enumerate(parts) if len(answer) == length]
        place |= dict(zip(same, [*same[1:], same[0]], strict=True))
    changed = [parts[place[index]][0] + quote + tail for index, (_, quote, tail) in enumerate(parts)]
    assert sum(one != other for one, other in zip(changed, rest, strict=True)) > len(rest) / 2
    return head + b"".join(key + each for each in changed)


CHANGES: dict[str, tuple[str, Change, str]] = {
    "an expert's weights": ("family/string/model.safetensors", last_weight, "model 'string'"),
    "the base's weights": ("family/base/model.safetensors", last_weight, "model 'base'"),
    "items of the search": ("family/data/string/search.jsonl", answers, "evaluator 'string'"),
    "items of the holdout": ("family/data/language/holdout.jsonl", answers, "evaluator 'language'"),
    "the plug-in's source": ("counted.py", replaced(b"Exact match, counted", b"Exact match. counted"), "evaluator"),
    "the base's config": ("family/base/config.json", replaced(b"e-06", b"e-05"), "the engine"),
    "the base's tokenizer": ("family/base/tokenizer.json", swapped(b'"a": ', b'"b": '), "the engine"),
}


@pytest.fixture(scope="module")
def begun(launcher: Launcher, nano_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Searches:
    """A run on a copy of the family, killed in its middle."""
    folder = tmp_path_factory.mktemp("changing")
    for part in ("base", "string", "language", "data/string", "data/language"):
        shutil.copytree(nano_zoo / part, folder / "family" / part)
    searches = Searches.make(folder, candidates=14, zoo="family")
    run = launcher.start(*COMMAND, folder=folder, faults=[("kill_at_statement", {"number": 20})])
    assert run.wait() == KILLED, run.output
    shutil.copytree(searches.run("faulty"), folder / "as it was")
    return searches


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_refused_and_named(what: str, begun: Searches, launcher: Launcher) -> None:
    name, change, named = CHANGES[what]
    path = begun.folder / name
    status, content = path.stat(), path.read_bytes()
    before = Snapshot.of(begun.run("faulty"))
    changed = change(content)
    assert len(changed) == len(content)
    try:
        path.write_bytes(changed)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
        run = launcher.start(*COMMAND, folder=begun.folder)
        assert run.wait() == 2, run.output
        assert "since this run was started, these have changed" in run.output
        assert named in run.output.partition("have changed")[2]
        assert Snapshot.of(begun.run("faulty")) == before
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        shutil.rmtree(begun.run("faulty"))
        shutil.copytree(begun.folder / "as it was", begun.run("faulty"))


def test_what_is_restored_goes_on(begun: Searches, launcher: Launcher) -> None:
    run = launcher.start(*COMMAND, folder=begun.folder)
    assert run.wait() == 0, run.output
    # and what is touched, but is the same, is the same
    for path in (begun.folder / "family").rglob("*.*"):
        os.utime(path)
    run = launcher.start(*COMMAND, "--set", "search.budget.candidates=15", folder=begun.folder)
    assert run.wait() == 0, run.output
    assert len(Snapshot.of(begun.run("faulty")).concluded) == 15
