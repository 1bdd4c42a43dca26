"""Sources that lie in memory once for all processes: the same bits, unchangeable, and gone with the last user."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merging import arena, shared
from merging.arena import choose, hold, layout_order
from merging.materialize import Materializer, Sources, load_model
from merging.recipe import Assignment, Recipe

pytestmark = pytest.mark.skipif(not shared.available(), reason="this system has no memory that processes can share so")

CPU = torch.device("cpu")
SIZE = mmap.PAGESIZE * 300 + 17


@pytest.fixture(autouse=True)
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    """Nor do they find what other tests hold, in this process or another: models of tests are all alike."""
    monkeypatch.setattr(shared, "_NAME", f"paretomerge-{uuid.uuid4().hex}-")
    return shared._NAME


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks of these tests are not those of anybody's searches."""
    monkeypatch.setenv("PARETOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def open_handles() -> set[str]:
    found = set()
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            found.add(f"{each.name} {each.readlink()}")
    return found


def fill_with(byte: int) -> Callable[[mmap.mmap], None]:
    def fill(piece: mmap.mmap) -> None:
        piece[:] = bytes([byte]) * len(piece)

    return fill


def test_what_one_made_is_found_as_long_as_somebody_has_it(key: str) -> None:
    assert shared.find(key, SIZE) is None
    made = shared.make(key, SIZE, fill_with(7))
    found = shared.find(key, SIZE)
    assert found is not None and found[:] == b"\7" * SIZE
    made.close()
    again = shared.find(key, SIZE)  # the second user keeps it
    assert again is not None
    found.close()
    again.close()
    assert shared.find(key, SIZE) is None


def test_another_key_or_size_is_another_piece(key: str) -> None:
    with shared.make(key, SIZE, fill_with(1)):
        assert shared.find(key[:-1], SIZE) is None
        assert shared.find(key, SIZE + 1) is None


def test_a_piece_cannot_be_written_by_anybody(key: str) -> None:
    with shared.make(key, SIZE, fill_with(7)) as made:
        made[0] = 1  # a private copy of that page
        with shared.find(key, SIZE) as found:  # type: ignore[union-attr]
            assert found[0] == 7 and made[0] == 1
        path = next(shared._held(key))
        handle = os.open(path, os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                os.pwrite(handle, b"x", 0)
            with pytest.raises(PermissionError):
                os.ftruncate(handle, 0)
            with pytest.raises(PermissionError):
                mmap.mmap(handle, SIZE)
        finally:
            os.close(handle)


def test_what_is_still_being_filled_is_not_found(key: str) -> None:
    seen = []

    def fill(piece: mmap.mmap) -> None:
        seen.append(shared.find(key, SIZE))
        fill_with(2)(piece)

    with shared.make(key, SIZE, fill):
        assert seen == [None]


def test_a_maker_that_fails_leaves_nothing(key: str) -> None:
    def fill(piece: mmap.mmap) -> None:
        raise ValueError("half-way")

    before = open_handles()
    with pytest.raises(ValueError, match="half-way"):
        shared.make(key, SIZE, fill)
    assert shared.find(key, SIZE) is None and not list(shared._held(key))
    assert open_handles() == before


def test_an_unsealed_file_of_the_right_name_is_not_believed(key: str) -> None:
    handle = os.memfd_create(f"{shared._NAME}{key}", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(handle, SIZE)
        assert list(shared._held(key)) and shared.find(key, SIZE) is None
        fcntl.fcntl(handle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        assert shared.find(key, SIZE) is None
    finally:
        os.close(handle)


HOLDER = """
import os, sys, time
from merging import shared
fill = lambda piece: piece.__setitem__(slice(None), b"z" * len(piece))
shared._NAME = sys.argv[3]
piece = shared.find(sys.argv[1], int(sys.argv[2])) or shared.make(sys.argv[1], int(sys.argv[2]), fill)
piece[:]
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(key: str, name: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, key, str(SIZE), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def test_a_piece_outlives_its_maker_and_not_its_last_user_even_when_they_are_killed(
    key: str, holder: subprocess.Popen[str]
) -> None:
    found = shared.find(key, SIZE)
    assert found is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert found[:] == b"z" * SIZE and shared.find(key, SIZE) is not None
    found.close()
    assert shared.find(key, SIZE) is None


def test_two_processes_have_one_copy(key: str, holder: subprocess.Popen[str]) -> None:
    """A page that n processes map counts 1/n in the proportional size of each."""
    found = shared.find(key, SIZE)
    assert found is not None and found[:] == b"z" * SIZE

    def proportional() -> int:
        lines = Path("/proc/self/smaps").read_text().splitlines()
        (begin,) = (
            number for number, line in enumerate(lines) if line.endswith(f"memfd:{shared._NAME}{key} (deleted)")
        )
        return int(next(line for line in lines[begin:] if line.startswith("Pss:")).split()[1]) * 1024

    assert 0.45 * SIZE < proportional() < 0.55 * SIZE
    holder.kill()
    holder.wait()
    assert proportional() > 0.95 * SIZE
    found.close()


@pytest.mark.slow
def test_makers_take_turns_and_one_that_dies_frees_the_turn(cache: Path) -> None:
    script = (
        "import os, sys\nfrom merging import shared\nwith shared.making(): print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "in\n"
    (lock,) = (cache / "shared").iterdir()
    with lock.open("a") as handle:
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        other.kill()
        other.communicate()
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_without_a_cache_to_write_makers_do_without_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PARETOMERGE_CACHE", str(tmp_path / "file"))
    with shared.making(), shared.make(key, SIZE, fill_with(1)):
        assert shared.find(key, SIZE) is not None


def addresses(sources: Sources) -> dict[tuple[str, str], int]:
    return {(alias, name): sources.tensor(alias, name).data_ptr() for alias in sources.refs for name in sources.tensors}


def held_pieces() -> set[str]:
    return {name for name in open_handles() if shared._NAME in name}


def test_shared_sources_hold_what_the_files_do(families: Callable[..., Any]) -> None:
    plain, one, two = (families("llama", torch.bfloat16).load() for _ in range(3))
    assert hold(one, CPU, "shared") == hold(two, CPU, "shared") == "shared"
    for alias in plain.checkpoints:
        for name in plain.tensors:
            assert torch.equal(one.tensor(alias, name), plain.tensor(alias, name)), name
            assert torch.equal(two.tensor(alias, name), plain.tensor(alias, name)), name
        places = [one.tensor(alias, name).data_ptr() for name in layout_order(one)]
        assert places == sorted(places)
    assert len(held_pieces()) == 6  # of each, base, a, b
    one.tensor("a", layout_order(one)[0]).zero_()  # by mistake
    assert torch.equal(two.tensor("a", layout_order(one)[0]), plain.tensor("a", layout_order(one)[0]))


@pytest.mark.slow
def test_candidates_from_shared_sources_are_those_from_private_ones(
    families: Callable[..., Any], uniform: Callable[..., Recipe]
) -> None:
    digests = []
    for home in ("host", "shared", "mmap"):
        sources = families("qwen2", torch.bfloat16).load()
        materializer = Materializer(sources, load_model(sources.path), home=home)  # type: ignore[arg-type]
        seen = []
        for method, values in (
            ("task_arithmetic", {"coefficient": 0.7}),
            ("ties", {"coefficient": 1.0, "density": 0.5}),
        ):
            own = dict.fromkeys(("a", "b"), values)
            materializer.apply(uniform(sources, Assignment.of(method, own)))
            seen.append(materializer.digest())
        digests.append(seen)
    assert digests[0] == digests[1] == digests[2] and len(set(digests[0])) == 2


def test_without_room_they_stay_in_their_files(families: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "free_memory", lambda: 0)
    sources = families("gpt2").load()
    before = held_pieces()
    assert hold(sources, CPU, "shared") == "files"
    assert held_pieces() == before
    assert hold(families("gpt2").load(), CPU, "auto") == "files"


def test_where_the_kernel_gives_no_memory_they_stay_in_their_files(
    families: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    sources, plain = families("qwen2", torch.bfloat16).load(), families("qwen2", torch.bfloat16).load()
    assert hold(sources, CPU, "shared") == "files"
    assert "Operation not permitted" in caplog.text
    name = layout_order(sources)[0]
    assert torch.equal(sources.tensor("a", name), plain.tensor("a", name))


def test_what_is_there_already_needs_no_room(families: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = families("llama-tied").load()
    assert hold(first, CPU, "shared") == "shared"
    monkeypatch.setattr(arena, "free_memory", lambda: 0)
    assert hold(families("llama-tied").load(), CPU, "shared") == "shared"


def test_every_tensor_s_sources_lie_on_the_device_of_the_live_one(
    families: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two devices without a second device: meta tensors lie nowhere, but elsewhere than on the CPU."""
    sources, plain = families("llama").load(), families("llama").load()
    order = layout_order(sources)
    there = {name: torch.device("meta") if number % 2 else CPU for number, name in enumerate(order)}
    assert hold(sources, there, "device") == "device"
    for alias in sources.checkpoints:
        for name in order:
            tensor = sources.tensor(alias, name)
            assert tensor.device == there[name]
            assert tensor.is_meta or torch.equal(tensor, plain.tensor(alias, name))


GIGABYTES = st.integers(0, 200).map(lambda value: value * 10**9)


@given(
    home=st.sampled_from(["auto", "device", "host", "shared", "mmap"]),
    needed=GIGABYTES,
    host=GIGABYTES,
    devices=st.lists(st.tuples(GIGABYTES, GIGABYTES), max_size=3),
)
def test_more_room_never_moves_sources_further_away(
    home: Any, needed: int, host: int, devices: list[tuple[int, int]]
) -> None:
    ranks = {"device": 0, "host": 1, "shared": 1, "files": 2}
    chosen = choose(home, needed, host, devices)
    roomier = choose(home, needed, host + 10**9, [(own, free + 10**9) for own, free in devices])
    assert ranks[roomier] <= ranks[chosen]
    if home in ("auto", "shared") and chosen == "device":
        assert devices and all(own <= free for own, free in devices)
    if home == "auto" and chosen == "host":
        assert needed <= host
    if home == "mmap":
        assert chosen == "files"
