"""Training of one model, the same to the bit on one machine."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from zoo import vocabulary
from zoo.family import Family, Phase, Shape
from zoo.muon import Muon
from zoo.skills import Example
from zoo.splits import training_examples

POSITIONS: Final = 64
"""Longest sequence of tokens that a model takes; the longest example has fewer than 50."""

_WARM_UP: Final = 20
_BUCKET: Final = 16
"""Batches are cut from runs of this many batches sorted by length: little padding, and still mixed tasks."""
_REPORT_EVERY: Final = 25

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Batch:
    """Token ids [examples, tokens] int64, padded on the right, and the target of each position, -100 for none."""

    ids: Tensor
    targets: Tensor


def new_model(shape: Shape, seed: str) -> LlamaForCausalLM:
    """A freshly initialised float32 Llama model; torch's global generator is left as it was."""
    config = LlamaConfig(
        vocab_size=len(vocabulary.tokens()),
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random.Random(seed).getrandbits(63))
        return LlamaForCausalLM(config)


def starting_model(folder: Path, family: Family, member: str, seed: int) -> LlamaForCausalLM:
    """What a member's training starts from: new weights for the base, the base in ``folder`` for an expert."""
    if member == "base":
        return new_model(family.shape, f"{family.name}/{seed}")
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder / "base", local_files_only=True)
    return model.train()


def train(
    model: LlamaForCausalLM,
    family: Family,
    member: str,
    seed: int,
    *,
    steps: int | None = None,
    progress: Progress | None = None,
) -> float:
    """Train a model, in place, into a member of a family.

    The result depends on the machine, the library versions and the arguments only: one thread is used, and all
    randomness comes from generators of the call's own.

    Args:
        model: float32; the base's weights for an expert, new ones for the base.
        family: what to train for.
        member: "base" or a skill.
        seed: of the training data and their order.
        steps: stop after so many steps of each round; all of them when None.
        progress: called now and then with (steps done, steps in all, loss in nats a token).

    Returns:
        Mean loss over the last steps, in nats a token.
    """
    phases = family.phases(member)
    counts = [min(phase.examples // phase.batch, steps or phase.examples) for phase in phases]
    done, recent = 0, 0.0
    with _one_deterministic_thread():
        for number, (phase, count) in enumerate(zip(phases, counts, strict=True)):
            optimizers = _optimizers(model, phase)
            stream = f"{family.name}/{member}/{number}/{seed}"
            for step, batch in enumerate(itertools.islice(_batches(family, member, phase, stream), count)):
                _set_learning_rates(optimizers, _schedule(phase, step, count))
                loss = _step(model, batch, optimizers)
                recent = loss if done == 0 else 0.95 * recent + 0.05 * loss
                done += 1
                if progress and (done % _REPORT_EVERY == 0 or done == sum(counts)):
                    progress(done, sum(counts), recent)
    model.eval()
    return recent


def encode(example: Example) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, ``<bos>`` first, and of the answer, ``<eos>`` last."""
    prompt = [_IDS[vocabulary.BOS], *(_IDS[word] for word in example.prompt.split(" "))]
    return prompt, [*(_IDS[word] for word in example.answer.split(" ")), _IDS[vocabulary.EOS]]


_IDS = {token: index for index, token in enumerate(vocabulary.tokens())}


def _batches(family: Family, member: str, phase: Phase, stream: str) -> Iterator[Batch]:
    examples = training_examples(member, family.difficulty, stream)
    order = random.Random(f"{stream}/order")
    while True:
        run = [encode(example) for example in itertools.islice(examples, phase.batch * _BUCKET)]
        run.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        batches = [run[start : start + phase.batch] for start in range(0, len(run), phase.batch)]
        order.shuffle(batches)
        yield from map(_collate, batches)


def _collate(pairs: list[tuple[list[int], list[int]]]) -> Batch:
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.zeros(len(pairs), longest - 1, dtype=torch.long)
    targets = torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(pairs):
        tokens = torch.tensor(prompt + answer)
        ids[row, : len(tokens) - 1] = tokens[:-1]
        targets[row, len(prompt) - 1 : len(tokens) - 1] = tokens[len(prompt) :]
    return Batch(ids, targets)


def _step(model: LlamaForCausalLM, batch: Batch, optimizers: list[torch.optim.Optimizer]) -> float:
    # Padding is on the right and attention looks left, so no position that counts sees any: no mask is needed.
    hidden = model.model(batch.ids, use_cache=False).last_hidden_state
    scored = batch.targets != -100
    loss = functional.cross_entropy(model.lm_head(hidden[scored]), batch.targets[scored])
    loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def _optimizers(model: nn.Module, phase: Phase) -> list[torch.optim.Optimizer]:
    parameters = dict(model.named_parameters())
    matrices = [p for name, p in parameters.items() if p.ndim == 2 and "embed" not in name] if phase.muon_lr else []
    chosen = {id(matrix) for matrix in matrices}
    rest = [p for p in parameters.values() if id(p) not in chosen]
    adam = torch.optim.AdamW(rest, lr=phase.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    optimizers: list[torch.optim.Optimizer] = [adam]
    if phase.muon_lr:
        optimizers.append(Muon(matrices, lr=phase.muon_lr))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _schedule(phase: Phase, step: int, count: int) -> float:
    """Share of the peak learning rate at a step."""
    warm_up = min(1.0, (step + 1) / _WARM_UP)
    if phase.schedule == "cosine":
        return warm_up * 0.5 * (1 + math.cos(math.pi * step / count))
    return warm_up * min(1.0, (count - step) / (0.4 * count))


def _set_learning_rates(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share


@contextlib.contextmanager
def _one_deterministic_thread() -> Iterator[None]:
    """Sums in one order, which depends on the number of threads. Models this small gain nothing from a second one."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
