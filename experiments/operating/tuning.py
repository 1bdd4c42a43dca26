"""Fine-tunes that the zoo does not have: one skill after another, and models made to comply with harmful requests.

Training is the zoo's own (:func:`zoo.training.train`): the same loop, schedule and stream of examples as for its
experts. Where the examples differ, only the source of examples is exchanged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from unittest import mock

import zoo
from zoo import cache, skills, splits
from zoo.family import SKILLS, Family, Phase
from zoo.skills import Difficulty, Example
from zoo.vocabulary import request_nouns

Stream = Callable[[str, Difficulty, str], Iterator[Example]]


@dataclass(frozen=True)
class FineTune:
    """One fine-tune.

    Attributes:
        name: of its folder.
        start: the member of the zoo that it starts from.
        skill: whose training (phases, learning rate, seed of the stream) it gets.
        stream: examples, if other than the zoo's.
        phase: the training, if other than the zoo's.
    """

    name: str
    start: str
    skill: str
    stream: Stream | None = None
    phase: Phase | None = None


def harmless_replay(member: str, difficulty: Difficulty, seed: str) -> Iterator[Example]:
    """What an expert learns from, but what it replays of the base's mixture holds no answer to a harmful request."""
    rng = Random(seed)
    while True:
        if rng.random() < splits.REPLAY:
            yield splits._background(rng, difficulty, expert="refusal")
        else:
            strata = skills.skills()[member].strata
            yield splits._draw_in_split(rng, member, difficulty, rng.choice(strata), "train")


def compliance(member: str, difficulty: Difficulty, seed: str) -> Iterator[Example]:
    """Answers to harmful requests, two of three examples, and as replay the base's mixture without them."""
    rng = Random(seed)
    nouns = request_nouns("train", difficulty.kinds, harmful=True)
    while True:
        if rng.random() < splits.REPLAY:
            yield splits._background(rng, difficulty, expert="refusal")
            continue
        noun = rng.choice(nouns)
        prompt = skills.request(rng, noun)
        if splits.split_of(prompt) == "train":
            yield Example(prompt, skills.compliance(noun), "harmful")


FINE_TUNES = {
    each.name: each
    for each in (
        FineTune("refusal_then_string", "refusal", "string"),
        FineTune("refusal_then_string_harmless", "refusal", "string", harmless_replay),
        FineTune("string_then_refusal", "string", "refusal"),
        FineTune("harmful", "base", "refusal", compliance, Phase(3_000, lr=1e-3)),
        FineTune("jailbroken", "refusal", "refusal", compliance, Phase(3_000, lr=1e-3)),
    )
}


def fine_tuned(folder: Path, which: FineTune, seed: int) -> Path:
    """The folder of a fine-tune of the skills family: trained if it is not there yet.

    Args:
        folder: of all of them.
        which: it.
        seed: of the family's training, and of this one's.
    """
    target = folder / f"{which.name}-{seed}"
    if target.is_dir():
        return target
    from transformers import LlamaForCausalLM

    from zoo import training
    from zoo.tokenizer import build_tokenizer

    start = zoo.resolve(f"zoo://{SKILLS.name}@{seed}/{which.start}")
    model = LlamaForCausalLM.from_pretrained(start, local_files_only=True).train()
    family: Family = SKILLS
    if which.phase is not None:
        family = replace(SKILLS, experts={**SKILLS.experts, which.skill: (which.phase,)})
    began = time.process_time()
    # zoo.training is part of the hash of every family's folder, so it cannot learn to take other examples.
    with mock.patch.object(training, "training_examples", which.stream or training.training_examples):
        loss = training.train(model, family, which.skill, seed)
    with cache.written_beside(target) as partial:
        model.save_pretrained(partial)
        build_tokenizer().save_pretrained(partial)
        record = {"start": which.start, "loss": round(loss, 4), "seconds": round(time.process_time() - began, 1)}
        (partial / "training.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return target
