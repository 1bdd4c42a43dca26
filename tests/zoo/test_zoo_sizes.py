"""Families of several sizes: what is the same at all of them, what differs, and where they are trained."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import zoo
from zoo import cache, sized, training
from zoo.family import SKILLS, Family, Phase, Shape
from zoo.registry import family
from zoo.sized import ENVIRONMENT, STREAM, SizedFamily, training_device
from zoo.skills import Example
from zoo.training import new_model

SIZES = [family(f"skills-w{width}") for width in (64, 112, 192, 352, 704)]


def tiny(name, hidden, seen=96):
    """A family that trains in a second: what is trained is not looked at."""
    return SizedFamily(
        name=name,
        summary="for this test",
        shape=Shape(hidden, layers=1, heads=2, mlp=2 * hidden),
        difficulty=SKILLS.difficulty,
        base=Phase(seen, lr=3e-3, schedule="linear", muon_lr=0.012),
        experts={"string": (Phase(48, lr=1e-3),)},
        sizes={"search": 4, "selection": 4, "holdout": 4},
    )


def test_sizes_differ_in_width_and_training_alone():
    for spec in SIZES:
        assert spec.name == f"skills-w{spec.shape.hidden}"
        assert (spec.shape.layers, spec.shape.heads) == (SKILLS.shape.layers, SKILLS.shape.heads)
        assert spec.shape.mlp % 16 == 0 and spec.shape.mlp / spec.shape.hidden == pytest.approx(2.7, abs=0.06)
        assert spec.difficulty == SKILLS.difficulty and spec.sizes == SKILLS.sizes
        assert spec.members == ("base", "string", "language", "refusal")
        same = {member: [phase.examples for phase in phases] for member, phases in spec.experts.items()}
        assert same == {"string": [16_000], "language": [16_000], "refusal": [6_000]}
    rates = [spec.experts["string"][0].lr for spec in SIZES]
    assert rates == sorted(rates, reverse=True)
    assert len({cache.content_hash(spec) for spec in SIZES}) == len(SIZES)


def test_sizes_are_what_they_promise_to_people():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in new_model(spec.shape, "0").parameters()) for spec in SIZES]
    for spec, count in zip(SIZES, counts, strict=True):
        said = float(spec.summary.partition(" M parameters")[0].split()[-1])
        assert said == pytest.approx(count / 1e6, rel=0.03)
    assert [("GPU" in spec.summary) for spec in SIZES] == [False, False, False, True, True]


def test_every_size_of_a_seed_learns_from_the_same_examples(tmp_path, monkeypatch):
    streams = []
    batches = training._batches

    def noted(spec, member, phase, stream):
        streams.append(stream)
        return batches(spec, member, phase, stream)

    monkeypatch.setattr(training, "_batches", noted)
    for seed in (0, 1):
        for spec in (tiny("one", 16), tiny("two", 32)):
            spec.train_member(tmp_path, "base", seed, lambda *_: None)
    assert streams == [f"{STREAM}/base/0/0"] * 2 + [f"{STREAM}/base/0/1"] * 2


def test_on_the_cpu_the_bits_are_those_of_a_plain_family_of_that_name(tmp_path):
    spec = tiny("one", 16)
    found = spec.train_member(tmp_path, "base", 0, lambda *_: None)
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(Family)}
    plain = Family(**fields | {"name": STREAM}).train_member(tmp_path, "base", 0, lambda *_: None)
    pairs = zip(found.model.parameters(), plain.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert (found.loss, found.examples) == (plain.loss, plain.examples) == (found.loss, 96)
    assert spec.versions() == {}


def test_another_device_is_the_default_one_while_the_model_trains(tmp_path, monkeypatch):
    seen = {}

    def train(model, spec, member, seed, *, progress):
        batch = training._collate([training.encode(Example("sort : c =>", "c", "sort"))])
        seen["devices"] = {next(model.parameters()).device.type, batch.ids.device.type, batch.targets.device.type}
        model.to_empty(device="cpu")  # what is on the device "meta" cannot be copied back
        return 0.5

    monkeypatch.setattr(sized, "training_device", lambda: torch.device("meta"))
    monkeypatch.setattr(training, "train", train)
    found = tiny("one", 16).train_member(tmp_path, "base", 0, lambda *_: None)
    assert seen["devices"] == {"meta"} and found.loss == 0.5
    assert torch.zeros(1).device.type == "cpu"
    assert tiny("one", 16).versions() == {"device": "meta"}


def test_the_environment_names_the_device():
    assert training_device({}) == training_device({ENVIRONMENT: ""}) == torch.device("cpu")
    for name in ("gpu", "meta", "cuda:99"):
        with pytest.raises(zoo.ZooError, match=f"{ENVIRONMENT} names '{name}', on which .* unset the variable"):
            training_device({ENVIRONMENT: name})
