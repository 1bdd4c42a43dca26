"""Candidates that give NaN, exhaust memory, hang or end their process: recorded, and the search goes on."""

from __future__ import annotations

import signal

import counted
import pytest
from launching import Launcher, Started
from searches import COMMAND, Searches, inconsistencies

from search.results import Results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def start(launcher: Launcher, calm: Searches, name: str, trouble: str, *options: str) -> Started:
    environment = calm.environment(name, **{counted.TROUBLE: trouble})
    return launcher.start(*COMMAND, "--name", name, *options, folder=calm.folder, environment=environment)


def failures(calm: Searches, name: str) -> dict[int, str]:
    """Failed candidate -> reason, of a run that holds together by itself."""
    run = calm.run(name)
    assert inconsistencies(run) == []
    return {each.id: each.reason for each in Results.load(run).candidates if each.state == "failed"}


def test_each_is_recorded_with_its_reason(launcher: Launcher, calm: Searches) -> None:
    trouble = "nan:1,memory:2,error:3,hang:4"
    run = start(launcher, calm, "troubled", trouble, "--set", "workers.timeout=6")
    assert run.wait() == 0, run.output
    assert "Traceback" not in run.output
    found = failures(calm, "troubled")
    said = ("every item of", "does not fit into memory", "RuntimeError: planted", "no result after 6 s")
    for text in said:
        assert any(text in reason for reason in found.values()), (text, found)
    assert all(any(text in reason for text in said) for reason in found.values()), found
    results = Results.load(calm.run("troubled"))
    assert results.state == "finished"
    assert results.chosen is not None
    assert results.candidate(results.chosen).state == "complete"
    report = (calm.run("troubled") / "report.html").read_text(encoding="utf-8")
    assert "does not fit into memory" in report


def test_one_that_ends_its_process_fails_after_some_attempts(launcher: Launcher, calm: Searches) -> None:
    """The same command, over and over, as a supervisor would: it comes to the end."""
    crashes = 0
    while True:
        run = start(launcher, calm, "crashing", "crash:5,crash:6", "--set", "workers.attempts=2")
        status = run.wait()
        if status != -signal.SIGABRT:
            break
        crashes += 1
        assert crashes < 40
    assert status == 0, run.output
    found = failures(calm, "crashing")
    assert crashes == 2 * len(found) > 0
    assert all("2 times" in reason for reason in found.values()), found


def test_twenty_failures_in_a_row_stop_with_a_summary(launcher: Launcher, calm: Searches) -> None:
    run = start(launcher, calm, "hopeless", "error:any")
    assert run.wait() == 2, run.output
    assert "the last 20 candidates failed" in run.output
    assert "RuntimeError: planted" in run.output
    assert "Traceback" not in run.output
    assert len(failures(calm, "hopeless")) == 20
    # the cause is removed: the same command goes on
    run = start(launcher, calm, "hopeless", "")
    assert run.wait() == 0, run.output
    assert len(failures(calm, "hopeless")) == 20
    assert Results.load(calm.run("hopeless")).chosen in range(20, 24)
