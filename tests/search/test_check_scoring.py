"""Evaluators, budgets and the machine under check."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from checking import WORDS, check, edited, found, project, write_items

from evaluators.tables import read_rows
from search.config import load_config
from search.errors import SearchError
from search.run import Run

TABLE = [{"prompt": f"{one} {two}", "answer": one} for one in WORDS[:20] for two in WORDS[:20]]


def test_items_in_two_splits_are_counted(tmp_path: Path) -> None:
    path = project(tmp_path)
    held = tmp_path / "data/second/holdout.jsonl"
    leaked = (tmp_path / "data/first/search.jsonl").read_text().splitlines(keepends=True)[:3]
    held.write_text(held.read_text() + "".join(leaked))
    errors = found(check(path), "error")
    assert list(errors) == ["evaluators.second.data"]
    assert "must" in errors["evaluators.second.data"] and "So are 2 more." in errors["evaluators.second.data"]


def test_few_items_tell_little(tmp_path: Path) -> None:
    path = project(tmp_path)
    write_items(tmp_path / "data/first/selection.jsonl", 1, 20)
    write_items(tmp_path / "data/second/holdout.jsonl", 12, 5)
    warnings = found(check(path), "warning")
    assert "20 selection items are few for accuracy" in warnings["evaluators.first.data"]
    assert "no difference would be found reliably" in warnings["evaluators.second.data"]


@pytest.mark.slow
def test_clusters_count_once(tmp_path: Path) -> None:
    path = project(tmp_path)
    rows = [{**row, "cluster": f"text {k % 12}"} for k, row in enumerate(TABLE[:120])]
    (tmp_path / "data/first/search.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "12 search items are few" in found(check(path), "warning")["evaluators.first.data"]


@pytest.mark.slow
def test_a_search_over_a_public_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in TABLE))
    monkeypatch.setattr("evaluators.items.read_dataset", lambda *_: read_rows(table))
    data: dict[str, Any] = {"dataset": "somebody/benchmark"}
    path = project(tmp_path, lambda config: config["evaluators"]["first"].update(data=data))
    assert "somebody/benchmark's public 'test' split" in found(check(path), "warning")["evaluators.first.data"]
    shutil.rmtree(tmp_path / "data/first")
    data["split"] = "train"
    path = project(tmp_path, lambda config: config["evaluators"]["first"].update(data=data))
    assert "evaluators.first.data" not in found(check(path), "warning")


@pytest.mark.parametrize("live", [pytest.param(True, marks=pytest.mark.slow), False])
def test_text_asked_of_a_classifier_and_images_of_a_text_model(tmp_path: Path, live: bool) -> None:
    path = project(tmp_path)
    for name in ("base", "one", "two"):
        edited(tmp_path / name / "config.json", architectures=["LlamaForSequenceClassification"], num_labels=2)
        _with_scores(tmp_path / name)
    errors = found(check(path, live=live), "error")
    assert set(errors) == {"evaluators.first", "evaluators.second"}
    assert "needs a causal language model, and LlamaForSequenceClassification is none" in errors["evaluators.first"]


def _with_scores(folder: Path) -> None:
    import torch
    from checking import reweigh

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["score.weight"] = tensors.pop("lm_head.weight")[:2] * 1.0

    reweigh(folder, change)


@pytest.mark.slow
def test_images_for_a_model_of_texts(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    rows = []
    for number in range(60):
        Image.new("RGB", (4, 4), (number, 2, 3)).save(tmp_path / f"images/{number}.png")
        rows.append({"image": f"images/{number}.png", "label": number % 2})
    (tmp_path / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"type": "classification", "data": {"file": "pictures.jsonl"}, "image_field": "image"}
    path = project(tmp_path, lambda config: config["evaluators"].update(pictures=data))
    errors = found(check(path, live=True), "error")
    assert list(errors) == ["evaluators.pictures"]


@pytest.mark.slow
def test_prompts_that_are_too_long_are_found_without_weights(tmp_path: Path) -> None:
    path = project(tmp_path)
    file = tmp_path / "data/first/search.jsonl"
    file.write_text(file.read_text() + json.dumps({"prompt": "w1 " * 100, "answer": "w2"}) + "\n")
    for live in (False, True):
        assert "search.jsonl:49" in found(check(path, live=live), "error")["evaluators.first"]


def test_what_needs_weights_is_left_out_and_said(tmp_path: Path) -> None:
    path = project(tmp_path)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": row["prompt"]}) + "\n" for row in TABLE[:200]))
    drift = {"type": "drift", "data": {"file": "texts.jsonl"}, "reference": "base"}
    path = project(tmp_path, lambda config: config["evaluators"].update(drift=drift))
    notes = found(check(path, live=False), "note")
    assert notes["evaluators"].startswith("drift: what needs a live model was not tried")
    assert "evaluators" not in found(check(path, live=True), "note")


def test_constraints_that_cannot_be_kept_one_by_one(tmp_path: Path) -> None:
    given = {"first": {"at_least": 0.999}, "second.accuracy": {"at_most": 7.0}, "second.accurac": {"at_least": 0.1}}
    path = project(tmp_path, lambda config: config.update(constraints=given))
    errors = found(check(path), "error")
    assert "even a perfect score shows only" in errors["constraints.first"]
    assert "lies in [0, 1], found at_most: 7" in errors["constraints.second.accuracy"]
    assert "Did you mean 'accuracy'?" in errors["constraints.second.accurac"]


def test_budgets_that_leave_no_search(tmp_path: Path) -> None:
    path = project(tmp_path, lambda config: config["search"].update(budget={"candidates": 5, "items": 100}))
    warnings = found(check(path), "warning")
    assert "leave none to search with" in warnings["search.budget.candidates"]
    assert "leave none to search with" in warnings["search.budget.items"]
    path = project(tmp_path, lambda config: config["search"].update(budget={"candidates": 20}))
    assert "the stage full has" in found(check(path), "note")["search.budget.candidates"]


@pytest.mark.slow
def test_an_evaluator_that_nothing_follows_from(tmp_path: Path) -> None:
    path = project(tmp_path, lambda config: config.update(objectives=["first.accuracy"]))
    assert "nothing follows" in found(check(path), "note")["evaluators.second"]


@pytest.mark.slow
def test_an_optimizer_for_another_number_of_objectives(tmp_path: Path) -> None:
    path = project(tmp_path, lambda config: config["search"].update(optimizer={"name": "grid", "points": 1}))
    assert [each for each in found(check(path), "error") if each.startswith("search.optimizer")]


@pytest.mark.slow
def test_what_this_machine_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = project(tmp_path, lambda config: config.update(engine={"device": "cuda"}))
    assert "torch finds no GPU here" in found(check(path, live=True), "error")["engine.device"]
    path = project(tmp_path, lambda config: config["search"]["budget"].update(gpu_hours=3.0))
    assert "use hours" in found(check(path), "error")["search.budget.gpu_hours"]
    path = project(tmp_path, lambda config: config.update(engine={"threads": 4000}))
    assert "cores" in found(check(path), "warning")["engine.threads"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    path = project(tmp_path, lambda config: config.update(engine={"device": "cuda:5"}))
    assert "has the GPUs 0 to 1" in found(check(path), "error")["engine.device"]


def test_workers_that_cannot_be_had(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        workers: dict[str, Any] = {"kind": "ray", "address": f"127.0.0.1:{taken.getsockname()[1]}"}
        path = project(tmp_path, lambda config: config.update(workers=workers))
        errors = found(check(path), "error")
    assert list(errors) == ["workers.address"] and "cannot be joined" in errors["workers.address"]
    workers |= {"address": "ray://head:10001"}
    path = project(tmp_path, lambda config: config.update(workers=workers))
    assert "address of Ray's client" in found(check(path), "error")["workers.address"]
    path = project(tmp_path, lambda config: config.update(workers={"kind": "ray", "count": 500}))
    assert "wait for each other" in found(check(path), "warning")["workers.count"]


def test_packages_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(config: dict[str, Any]) -> None:
        config.update(trackers={"wandb": {}}, workers={"kind": "ray"}, engine={"kind": "vllm"})

    path = project(tmp_path, change)
    there = importlib.util.find_spec
    lacking = {"wandb", "ray", "vllm"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in lacking else there(name, *rest)
    )
    errors = found(check(path), "error")
    assert set(errors) == {"trackers.wandb", "workers.kind", "engine.kind"}
    for extra, text in zip(("trackers", "ray", "vllm"), sorted(errors), strict=False):
        assert "pip install 'paretomerge[" in errors[text], extra
    with pytest.raises(SearchError, match=r"config\.yaml:\d+:\d+: trackers\.wandb: expected the package wandb"):
        Run(load_config(path), tmp_path / "runs/demo").execute()


def test_disks_that_are_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    made = {"both": {"method": "task_arithmetic", "coefficients": 0.5}}
    path = project(tmp_path, lambda config: config["models"].update(virtual=made))
    checked = check(path)
    assert checked.disk is not None and checked.disk.virtual.high == 4 * 5776
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage(0, 0, 20_000))
    errors = found(check(path), "error")
    assert "20000 B" in errors["search.budget.candidates"] or "0.02 MB" in errors["search.budget.candidates"]
    assert "virtual experts are kept in float32" in errors["models.virtual"]
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage(0, 0, checked.disk.run.high * 1.1 + 1000))  # type: ignore[union-attr]
    assert "an export" in found(check(path), "warning")["search.budget.candidates"]
    first = {"name": "evolved", "search": {"budget": {"candidates": 20}}}
    path = project(tmp_path, lambda config: config.update(first=first, models=config["models"] | {"dtype": "bfloat16"}))
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage(0, 0, 10_000))
    hybrid = check(path)
    assert hybrid.disk is not None and hybrid.disk.virtual.high == 2 * 5776  # in the dtype that it was scored in
    assert "experts that are made are kept" in found(hybrid, "error")["first.name"]


@pytest.mark.slow
def test_calibration_inputs_are_read(tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["models"]["virtual"] = {"solved": {"method": "regmean"}}
        config["calibration"] = {"inputs": {"one": {"data": "nowhere.jsonl"}, "two": {"evaluator": "second"}}}

    errors = found(check(project(tmp_path, change)), "error")
    assert list(errors) == ["calibration.inputs.one"] and "expected a file at" in errors["calibration.inputs.one"]


def test_memory_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project(tmp_path)
    assert not check(path).findings
    monkeypatch.setattr("search.checks.memory.free_memory", lambda: 10**6)
    assert "of main memory, and 1 MB are free" in found(check(path), "warning")["models"]
