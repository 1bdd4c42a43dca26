"""What workers of Ray are asked for, before any Ray is started."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import search
from search.config import LoadedConfig, load_config
from search.errors import SearchError
from search.schema import WorkersConfig
from search.workers import ray as workers_ray
from search.workers.identity import CodeIdentity, Identity
from search.workers.ray import gpus_of, open_ray_pool
from search.workers.ray_actor import Mistake, environment, raised

CONFIG = Path(search.__file__).parents[1] / "configs/nano.yaml"
EXPECTED = Identity(CodeIdentity({}, {}), {}, {}, "")


def loaded(device: str = "cpu") -> LoadedConfig:
    return load_config(CONFIG, [f"engine.device={device}"])


def cluster(gpus: float) -> Any:
    return SimpleNamespace(cluster_resources=lambda: {"CPU": 64.0, "GPU": gpus} if gpus else {"CPU": 64.0})


def slots(gpus_there: float, device: str = "cuda", **settings: Any) -> int:
    config, workers = loaded(device), WorkersConfig(kind="ray", **settings)
    return workers_ray._slots(cluster(gpus_there), config, workers, gpus_of(config, workers))


def test_as_many_workers_as_there_are_gpus_for() -> None:
    assert slots(4) == 4
    assert slots(4, gpus=0.5) == 8
    assert slots(3, gpus=0.1) == 30, "ten tenths are a whole"
    assert slots(5, gpus=2) == 2
    assert slots(0, device="cpu") == 1
    assert slots(0, device="cpu", count=7) == 7


def test_more_than_there_is() -> None:
    with pytest.raises(SearchError, match="expected room for 3 workers with 1 GPUs each, and Ray finds 2 GPUs here"):
        slots(2, count=3)
    with pytest.raises(SearchError, match="Ray finds 0 GPUs here"):
        slots(0)
    assert slots(2, count=3, address="auto") == 3, "a cluster may grow"
    with pytest.raises(SearchError, match="Ray finds 0 GPUs there"):
        slots(0, address="auto")  # how many, if not one for each GPU?


def test_gpus_of_a_worker() -> None:
    assert gpus_of(loaded(), WorkersConfig(kind="ray")) == 0.0
    assert gpus_of(loaded("cuda"), WorkersConfig(kind="ray")) == 1.0
    assert gpus_of(loaded("cuda:1"), WorkersConfig(kind="ray", gpus=0.25)) == 0.25
    with pytest.raises(SearchError, match=r"expected > 0, since engine\.device is cuda"):
        gpus_of(loaded("cuda"), WorkersConfig(kind="ray", gpus=0))
    with pytest.raises(SearchError, match=r"a fraction of one GPU or whole ones, found 1\.5"):
        gpus_of(loaded("cuda"), WorkersConfig(kind="ray", gpus=1.5))


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SearchError, match=r"pip install paretomerge\[ray\]"):
        open_ray_pool(loaded(), WorkersConfig(kind="ray"), tmp_path, 1, EXPECTED, lambda line: None)


def test_a_client_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_ray, "_imported", lambda: SimpleNamespace(is_initialized=lambda: False))
    settings = WorkersConfig(kind="ray", address="ray://head:10001")
    with pytest.raises(SearchError, match="address of Ray's client"):
        open_ray_pool(loaded(), settings, tmp_path, 1, EXPECTED, lambda line: None)


def test_nothing_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_ray, "_imported", lambda: SimpleNamespace(is_initialized=lambda: False))
    for address in ("127.0.0.1:1", "127.0.0.1:99999"):
        with pytest.raises(SearchError, match=f"the cluster at {address} cannot be joined"):
            open_ray_pool(loaded(), WorkersConfig(kind="ray", address=address), tmp_path, 1, EXPECTED, print)


def test_environment_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOMERGE_CACHE", "/shared/cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    given = environment(3)
    assert given["PARETOMERGE_CACHE"] == "/shared/cache" and given["HF_HUB_OFFLINE"] == "1"
    assert given["OMP_NUM_THREADS"] == "3"
    assert "AWS_SECRET_ACCESS_KEY" not in given


def test_mistakes_keep_their_kind() -> None:
    from merging.recipe import MergingError

    error = raised(Mistake("MergingError", "no such folder"))
    assert type(error) is MergingError and str(error) == "no such folder"
    assert type(raised(Mistake("SomethingNew", "x"))) is SearchError


def test_what_ray_says_is_shortened() -> None:
    said = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: Scorer\n\tactor_id: 08\n\tpid: 7\n"
        "\tip: 10.0.0.1\nThe actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker "
        "exit detail: \x1b[36mEnd of file.\x1b[39m There are some potential root causes. (1) the process is killed"
    )
    assert workers_ray._in_short(RuntimeError(said)) == (
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: End "
        "of file"
    )
