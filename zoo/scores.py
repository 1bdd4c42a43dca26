"""How well a member has each skill: greedy decoding, compared exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from zoo import vocabulary
from zoo.family import Family
from zoo.skills import Example
from zoo.training import encode

Item = dict[str, str]


def read_items(path: Path) -> list[Item]:
    """The items of a split's file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def member_scores(family: Family, folder: Path, member: str, split: str = "holdout") -> dict[str, float]:
    """Part of the data -> share of a split's items answered right, 0..1, for a member of a family in ``folder``."""
    model = LlamaForCausalLM.from_pretrained(folder / member, local_files_only=True)
    return {
        part: accuracy(model, read_items(folder / "data" / part / f"{split}.jsonl"), family.marker(part))
        for part in family.parts
    }


def accuracy(model: LlamaForCausalLM, items: list[Item], marker: str | None) -> float:
    """Share of items answered right; with a marker, only what follows its last occurrence is compared."""
    verdicts = right_answers(model, items, marker)
    return sum(verdicts) / len(verdicts)


@torch.inference_mode()
def right_answers(model: LlamaForCausalLM, items: list[Item], marker: str | None, batch: int = 128) -> list[bool]:
    """Whether greedy decoding answers each item right, in the order of the items."""
    pairs = [encode(Example(item["prompt"], item["answer"], "")) for item in items]
    # Equal lengths go together: no padding before a generated token, hence no mask.
    order = sorted(range(len(pairs)), key=lambda index: (len(pairs[index][0]), len(pairs[index][1]), index))
    verdicts = [False] * len(pairs)
    start = 0
    while start < len(order):
        length = len(pairs[order[start]][0])
        rows = [index for index in order[start : start + batch] if len(pairs[index][0]) == length]
        longest = max(len(pairs[index][1]) for index in rows)
        answers = _generate(model, torch.tensor([pairs[index][0] for index in rows]), longest + 8)
        for index, answer in zip(rows, answers, strict=True):
            verdicts[index] = _counts(answer, marker) == _counts(items[index]["answer"], marker)
        start += len(rows)
    return verdicts


def _generate(model: LlamaForCausalLM, prompts: Tensor, limit: int) -> list[str | None]:
    """Greedy answers to prompts [n, tokens] of one length; None for one that does not end within ``limit`` tokens."""
    words = vocabulary.tokens()
    end = words.index(vocabulary.EOS)
    state = model(prompts, use_cache=True)
    generated: list[Tensor] = []
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    for _ in range(limit):
        token = state.logits[:, -1].argmax(-1)
        generated.append(token)
        ended |= token == end
        if bool(ended.all()):
            break
        state = model(token[:, None], past_key_values=state.past_key_values, use_cache=True)
    rows = cast(list[list[int]], torch.stack(generated, dim=1).tolist())
    return [" ".join(words[id] for id in row[: row.index(end)]) if end in row else None for row in rows]


def _counts(answer: str | None, marker: str | None) -> str | None:
    """The part of an answer that is compared; None when there is no such part, which equals no gold answer's."""
    if answer is None or marker is None:
        return answer
    _, found, after = answer.rpartition(marker)
    return after.strip() if found else None
