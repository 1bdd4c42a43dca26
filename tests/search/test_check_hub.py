"""A check where there is no network: the Hub is tried once, and what is missing is said without a wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checking import check, project

from search.checks.hub import tried_once


class ConnectError(Exception):
    """What HTTP libraries raise, by its name."""


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Requests that left for a Hub that nothing leads to; its library never gets to wait for the next one."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import _http

    made: list[str] = []

    def send(request: Any, **named: Any) -> Any:
        made.append(str(request.url))
        raise ConnectError("Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: pytest.fail(f"it waited {seconds} s to try again"))
    client = get_session()
    monkeypatch.setattr(client, "send", send, raising=False)
    yield made
    assert client.send is send, "the check has left its own behind"


@pytest.mark.slow
def test_one_attempt_for_models_and_data(tmp_path: Path, attempts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)

    def changed(config: dict[str, Any]) -> None:
        config["models"] |= {"base": "hub://me/base", "experts": {"one": "one", "two": "hub://me/missing@main"}}
        for name, split in (("first", "test"), ("second", "train")):
            config["evaluators"][name]["data"] = {"dataset": "nobody/questions-of-no-use", "split": split}

    checked = check(project(tmp_path, changed))
    said = [each.placed.message for each in checked.findings]
    assert sum("nobody/questions-of-no-use [" in each and "cannot be had" in each for each in said) == 2
    for name in ("me/base", "me/missing"):
        assert any("the Hub cannot be reached from here" in each and f"hf download {name}" in each for each in said)
    assert len(attempts) == 1


def test_what_is_cached_is_found(tmp_path: Path, attempts: list[str]) -> None:
    from huggingface_hub import hf_hub_download

    home = tmp_path / "models--me--there"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    (home / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (home / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    with tried_once():
        found = hf_hub_download("me/there", "config.json", cache_dir=tmp_path)
    assert Path(found).read_text() == "{}"
    assert len(attempts) == 1


def test_nothing_is_asked_offline(attempts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, get_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = get_session().send
    with tried_once():
        assert get_session().send is before


def test_answers_that_are_errors_stay_errors(attempts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import get_session

    def busy(*given: Any, **named: Any) -> Any:
        attempts.append("")
        raise RuntimeError("answered, and badly")

    client = get_session()
    with monkeypatch.context() as patch:
        patch.setattr(client, "send", busy)
        with tried_once():
            for _ in range(2):
                with pytest.raises(RuntimeError, match="badly"):
                    client.send("anything")
    assert len(attempts) == 2
