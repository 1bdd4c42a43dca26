"""Clocks that jump, Ctrl-C, SIGTERM, and a process that sleeps in between."""

from __future__ import annotations

import signal
import time

import pytest
from launching import Launcher, Started
from searches import Searches, Snapshot, events
from striking import Struck

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def after(struck: Struck, run: Started, candidates: int) -> None:
    """Wait until so many candidates are stored."""
    while run.status is None and events(struck.folder, "told") < candidates:
        time.sleep(0.01)
    assert run.status is None, run.output


def test_a_clock_that_jumps_changes_nothing(launcher: Launcher, calm: Searches) -> None:
    struck = Struck(launcher, calm, "clock", faults=[("jump_clock", {"seed": 0, "days": 4000.0})])
    assert struck.strike(("kill_at_statement", {"number": 30}))
    struck.finish()
    assert struck.compare("calm") <= 1
    status = launcher.start(
        "status", "runs/clock", "--json", folder=calm.folder, faults=[("jump_clock", {"seed": 1, "days": 4000.0})]
    )
    assert status.wait() == 0, status.output
    assert struck.faults == []


def test_hours_are_not_those_of_a_clock_that_is_set(launcher: Launcher, calm: Searches) -> None:
    """A budget of an hour is not spent by seconds of searching, however the time of day jumps."""
    struck = Struck(
        launcher,
        calm,
        "hours",
        ["--set", "search.budget.hours=1.0"],
        [("jump_clock", {"seed": 2, "days": 400.0})],
    )
    struck.finish()
    assert struck.faults == []
    assert struck.concluded == 24


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_tidily_and_a_second_at_once(
    number: signal.Signals, launcher: Launcher, calm: Searches
) -> None:  # fmt: skip
    struck = Struck(launcher, calm, f"signalled-{number.name}")
    run = struck.start()
    after(struck, run, 4)
    run.signal(number)
    assert run.wait() == 130, run.output
    assert "Traceback" not in run.output
    assert f"paretomerge run config.yaml --name {struck.name}" in run.output
    struck.check("one signal")
    done = struck.concluded
    assert 4 <= done < 24
    assert all(kind != "asked" or id in Snapshot.of(struck.folder).concluded for _, kind, id, _ in snapshot_log(struck))

    run = struck.start()
    after(struck, run, done + 3)
    run.signal(number)
    run.signal(number)
    assert run.wait() == 130, run.output
    assert "Traceback" not in run.output
    struck.check("two signals")
    struck.finish()
    assert struck.compare("calm", more=1) <= 1
    assert struck.faults == []


def snapshot_log(struck: Struck) -> list[tuple[int, str, int | None, str]]:
    return Snapshot.of(struck.folder).log


def test_a_process_that_was_stopped_goes_on(launcher: Launcher, calm: Searches) -> None:
    """SIGSTOP for a moment: its lock is still its own, nobody else gets in meanwhile, and it ends as if nothing was."""
    struck = Struck(launcher, calm, "stopped")
    run = struck.start()
    after(struck, run, 3)
    run.signal(signal.SIGSTOP)
    second = struck.start()
    assert second.wait() == 2, second.output
    assert str(run.pid) in second.output
    run.signal(signal.SIGCONT)
    assert run.wait() == 0, run.output
    struck.check("after it slept")
    struck.compare("calm")
    assert struck.faults == []
