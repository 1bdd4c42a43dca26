"""What requests have in common is read once, and no answer is any other for it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from evaluator_samples import FAMILIES, SIZE, TOKENS, every_family, random_model, word_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, GPTNeoConfig, GPTNeoForCausalLM
from transformers.cache_utils import DynamicLayer

from evaluators.contract import Request
from evaluators.engines import prefix, scoring
from evaluators.engines.cache import GrowingLayer, plain_limit
from evaluators.engines.hf import HFEngine
from evaluators.engines.logits import target_scores
from evaluators.engines.tree import tree_mask

# Families whose tokens meet in plain attention, with positions that can be told.
PLAIN = {"llama", "qwen2", "gpt2", "cohere", "phi", "gpt_neox", "opt"}


@pytest.fixture(autouse=True)
def small_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings of a few tokens are worth it: the test models have 64 positions."""
    monkeypatch.setattr(prefix, "_SHORTEST", 4)
    monkeypatch.setattr(prefix, "_COST", 8)


def reference(model: torch.nn.Module, request: Request) -> tuple[float, bool]:
    """One request, all logits, float64."""
    context, continuation = list(request.context), list(request.continuation)
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(input_ids=torch.tensor([context + continuation])).logits[0]
    scored = torch.log_softmax(logits[len(context) - 1 : -1], dim=-1)
    return scored[range(len(continuation)), continuation].sum().item(), scored.argmax(-1).tolist() == continuation


def multiple_choice(seed: int, questions: int = 5, shots: int = 0) -> list[Request]:
    """Four choices of one to four tokens a question, two of them with one beginning; after common shots."""
    generator = np.random.default_rng(seed)
    common = [2, *generator.integers(4, 40, size=shots).tolist()]
    requests = []
    for _ in range(questions):
        context = [*common, *generator.integers(4, 40, size=generator.integers(1, 9)).tolist()]
        first = generator.integers(4, 40, size=3).tolist()
        requests += [Request(context, first), Request(context, [*first[:2], 5])]
        requests += [Request(context, generator.integers(4, 40, size=n).tolist()) for n in (1, 4)]
    return requests


@contextmanager
def tokens_read(model: torch.nn.Module) -> Iterator[list[int]]:
    """Tokens of each forward pass, as they come."""
    read: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, arguments, named: read.append(named["input_ids"].numel()), with_kwargs=True
    )
    try:
        yield read
    finally:
        hook.remove()


@pytest.mark.parametrize("shots", [0, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", every_family())
def test_shared_contexts_change_nothing(family: str, shots: int) -> None:
    model = random_model(family, seed=4)
    engine = HFEngine(model, word_tokenizer(), batch_tokens=64)
    requests = multiple_choice(1, shots=shots)
    for round_ in range(2):  # the first proves, the second relies on it
        for found, request in zip(engine.loglikelihood(requests), requests, strict=True):
            total, is_greedy = reference(model, request)
            assert found.total == pytest.approx(total, rel=1e-4, abs=1e-4), round_
            assert found.is_greedy == is_greedy
    proven = engine._scorer.tree.proven
    if family in PLAIN:
        assert set(proven.values()) == {True}
        assert {shared for shared, _ in proven} == {shots > 0}
    else:
        assert proven == {} or set(proven.values()) == {False}


def test_contexts_and_beginnings_are_read_once() -> None:
    model = random_model("llama")
    engine = HFEngine(model, word_tokenizer(), batch_tokens=40)
    requests = multiple_choice(2, questions=6)
    engine.loglikelihood(requests)
    once = 0
    for context in {tuple(request.context) for request in requests}:
        branches = {tuple(r.continuation[:-1]) for r in requests if tuple(r.context) == context}
        once += len(context) + sum(map(len, branches))
    with tokens_read(model) as read:
        engine.loglikelihood(requests)
    assert once <= sum(read) <= once * 1.3  # what is above is padding
    assert max(read) <= 40
    requests = multiple_choice(3, questions=6, shots=30)
    engine.loglikelihood(requests)
    with tokens_read(model) as read:
        engine.loglikelihood(requests)
    assert read[0] >= 31
    assert sum(read[1:]) < 6 * (9 + 9) < 6 * 31


def test_long_continuations_are_not_packed_after_a_short_context() -> None:
    model = random_model("llama")
    model.config.max_position_embeddings = 4096
    engine = HFEngine(model, word_tokenizer(), batch_tokens=1)
    generator = np.random.default_rng(0)
    texts = [generator.integers(4, 40, size=400).tolist() for _ in range(5)]
    with tokens_read(model) as read:
        engine.loglikelihood([Request([2], text) for text in texts])
    assert max(read) == 400  # one row a text: attending to the others would cost more than one token read again


def test_nothing_of_the_call_is_kept() -> None:
    model = random_model("llama")
    engine = HFEngine(model, word_tokenizer())
    requests = multiple_choice(5, shots=20)
    before = engine.loglikelihood(requests)
    with torch.no_grad():
        for parameter, other in zip(model.parameters(), random_model("llama", seed=8).parameters(), strict=True):
            parameter.data.copy_(other)
    after = engine.loglikelihood(requests)
    fresh = HFEngine(random_model("llama", seed=8), word_tokenizer()).loglikelihood(requests)
    assert [answer.total for answer in after] == pytest.approx([answer.total for answer in fresh], abs=1e-5)
    assert [answer.total for answer in after] != pytest.approx([answer.total for answer in before], abs=1e-2)


SHARED = random_model("qwen2", seed=5)


@st.composite
def any_requests(draw: st.DrawFn) -> list[Request]:
    """Contexts that are equal, begin alike or do not; continuations that are equal, begin alike or do not."""
    token = st.integers(4, 39)
    beginnings = draw(st.lists(st.lists(token, min_size=1, max_size=14), min_size=1, max_size=3))
    ends = draw(st.lists(st.lists(token, max_size=6), min_size=1, max_size=3))
    continuations = st.lists(st.sampled_from([4, 5, 6, 39]), min_size=0, max_size=5)
    pick = st.tuples(st.sampled_from(beginnings), st.sampled_from(ends), continuations)
    return [Request([*one, *other], last) for one, other, last in draw(st.lists(pick, min_size=1, max_size=14))]


@pytest.mark.slow
@given(requests=any_requests(), batch_tokens=st.integers(1, 120), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_company_and_order_never_change_an_answer(requests: list[Request], batch_tokens: int, seed: int) -> None:
    alone = HFEngine(SHARED, word_tokenizer())
    expected = [alone.loglikelihood([request])[0] for request in requests]
    together = HFEngine(SHARED, word_tokenizer(), batch_tokens=batch_tokens)
    order = np.random.default_rng(seed).permutation(len(requests))
    for _ in range(2):
        found = together.loglikelihood([requests[place] for place in order])
        for place, answer in zip(order, found, strict=True):
            assert answer.total == pytest.approx(expected[place].total, rel=1e-5, abs=1e-5)
            assert answer.is_greedy == expected[place].is_greedy


@pytest.mark.parametrize("shots", [0, 20])
def test_a_broken_token_breaks_what_reads_it_and_nothing_else(shots: int) -> None:
    model = random_model("llama", seed=6)
    engine = HFEngine(model, word_tokenizer(), batch_tokens=48)
    context = [2, *range(10, 10 + shots), 30, 31]
    requests = [
        Request(context, [5, 6, 8]),
        Request(context, [5, 7, 8]),  # reads 7
        Request(context, [5, 6, 7]),  # has 7 predicted only
        Request(context, [9]),
        Request([*context, 7, 32], [5]),
        Request([*context, 33, 32], [5, 6]),
        Request([*context, 33, 34, 35, 36], [5, 6, 8]),
    ]
    expected = engine.loglikelihood(requests)
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = float("nan")
    for found, healthy, request in zip(engine.loglikelihood(requests), expected, requests, strict=True):
        if 7 in [*request.context, *request.continuation[:-1]]:
            assert np.isnan(found.total) and not found.is_greedy
        else:
            assert found.total == pytest.approx(healthy.total, abs=1e-5)
            assert found.is_greedy == healthy.is_greedy


class DeafToMasks(torch.nn.Module):
    """A causal model that makes masks of its own, whatever it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = random_model("llama")
        self.config = self.inner.config

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.inner.lm_head

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False):
        if attention_mask is not None and attention_mask.ndim == 4:
            attention_mask = None
        return self.inner(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )


class Refuses(DeafToMasks):
    """A causal model that raises for masks that it does not know."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False):
        if attention_mask is not None and attention_mask.ndim == 4:
            raise ValueError("two dimensions, please")
        return super().forward(input_ids, attention_mask, position_ids, past_key_values, use_cache)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DeafToMasks, Refuses])
def test_models_that_take_no_trees_are_asked_the_plain_way(kind: type[DeafToMasks]) -> None:
    model = kind().eval()
    engine = HFEngine(model, word_tokenizer())
    requests = [*multiple_choice(7), *multiple_choice(8, shots=20)]
    for _ in range(2):
        for found, request in zip(engine.loglikelihood(requests), requests, strict=True):
            assert found.total == pytest.approx(reference(model.inner, request)[0], abs=1e-4)
    assert set(engine._scorer.tree.proven.values()) == {False}


def test_windows_that_the_configuration_hides_show_in_long_texts() -> None:
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=40,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=64,
        **TOKENS,
    )
    model = GPTNeoForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20.0)
    engine = HFEngine(model, word_tokenizer())
    for length in (3, 30):
        context = [2, *[(step * 7) % 36 + 4 for step in range(length)]]
        requests = [Request(context, [5, 6, first]) for first in (7, 8)] + [Request(context, [9, 6, 6])]
        for found, request in zip(engine.loglikelihood(requests), requests, strict=True):
            assert found.total == pytest.approx(reference(model, request)[0], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_with_a_common_beginning(family: str) -> None:
    model = random_model(family, seed=1)
    engine = HFEngine(model, word_tokenizer())
    generator = np.random.default_rng(3)
    common = [2, *generator.integers(4, 40, size=20).tolist()]
    prompts = [[*common, *generator.integers(4, 40, size=size).tolist()] for size in (1, 5, 3, 3, 8)]
    prompts += [[7, 8, 9], prompts[0]]
    expected = [HFEngine(model, word_tokenizer()).generate([prompt], max_new_tokens=8)[0] for prompt in prompts]
    for _ in range(2):
        assert engine.generate(prompts, max_new_tokens=8) == expected
    assert engine._decoder.cache_proven.get("shared") is (True if family in {*PLAIN} else engine_knows(family))
    if family in PLAIN:
        with tokens_read(model) as read:
            engine.generate(prompts, max_new_tokens=1)
        assert sum(read) <= len(common) + 6 * 8 + 3


def engine_knows(family: str) -> bool | None:
    """Recurrent models are known to have no cache of that kind; of the others nothing is asked."""
    return False if family == "mamba" else None


@given(
    texts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=8), max_size=9),
    shortest=st.integers(1, 3),
    cost=st.integers(0, 6),
)
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_clusters_save_what_cutting_at_minima_can_save(texts: list[list[int]], shortest: int, cost: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "_SHORTEST", shortest)
        patch.setattr(prefix, "_COST", cost)
        found = prefix.clusters(texts)
    assert sorted(index for cluster in found for index in cluster.members) == list(range(len(texts)))
    for cluster in found:
        assert len({tuple(texts[index][: cluster.shared]) for index in cluster.members}) == 1
        assert all(len(texts[index]) > cluster.shared for index in cluster.members)
    saved = sum((len(cluster.members) - 1) * cluster.shared - cost for cluster in found if cluster.shared)
    assert saved == _best(sorted(texts), shortest, cost)


def _best(texts: Sequence[list[int]], shortest: int, cost: int) -> int:
    """By recursion over all intervals, as the definition says."""
    if len(texts) < 2:
        return 0
    common = [min(prefix.common_length(a, b), len(a) - 1, len(b) - 1) for a, b in pairwise(texts)]
    least = min(common)
    whole = (len(texts) - 1) * least - cost
    cuts = [0, *[place + 1 for place, height in enumerate(common) if height == least], len(texts)]
    apart = sum(_best(texts[a:b], shortest, cost) for a, b in pairwise(cuts))
    return max(whole if least >= shortest else 0, apart)


def test_tree_mask() -> None:
    lowest = torch.finfo(torch.float32).min
    mask = tree_mask(torch.tensor([[0, 0, 1, 2, 2]]), 1, torch.float32)
    seen = [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 1, 0, 1, 1],
    ]
    assert mask.shape == (1, 1, 5, 6)
    assert torch.equal(mask[0, 0], torch.where(torch.tensor(seen).bool(), 0.0, lowest))


def test_growing_layers_hold_what_the_library_s_hold() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = GrowingLayer(), DynamicLayer()
    for step, width in enumerate([5, 1, 1, 70, 1, 60, 1]):
        rows = 3 if step < 4 else 2
        keys, values = (torch.randn(rows, 2, width, size, generator=generator) for size in (4, 6))
        for found, expected in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(found, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()
        if step == 3:
            for layer in (ours, theirs):
                layer.batch_select_indices(torch.tensor([2, 0]))


@pytest.mark.parametrize(("family", "limit"), [("llama", float("inf")), ("mistral", 3), ("gemma2", 3)])
def test_plain_limit(family: str, limit: float) -> None:
    model = random_model(family)
    assert plain_limit(model) == limit
    assert isinstance(DynamicCache(config=model.config).layers, list)  # what the limit is read from


def test_target_scores_of_equal_logits_are_greedy_for_the_first_only() -> None:
    logits = torch.zeros(2, SIZE["vocab_size"])
    logits[1, [3, 9]] = 1.0
    chosen, hits = target_scores(logits, np.array([0, 0, 1, 1, 1]), np.array([0, 1, 3, 9, 0]))
    assert hits.tolist() == [True, False, True, False, False]
    expected = [-np.log(40)] * 2 + [1 - np.log(38 + 2 * np.e)] * 2 + [-np.log(38 + 2 * np.e)]
    np.testing.assert_allclose(chosen, expected, rtol=1e-6)


def test_inputs_are_kept_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama")
    engine = HFEngine(model, word_tokenizer())
    requests = multiple_choice(9, shots=20)
    engine.loglikelihood(requests)  # proves, and plans by what is not proved yet
    plans = engine._scorer._plans
    before, kept = engine.loglikelihood(requests), len(plans)
    assert engine.loglikelihood([Request(list(r.context), tuple(r.continuation)) for r in requests]) == before
    assert len(plans) == kept
    requests[0].continuation[0] += 1  # the same lists, other tokens
    changed = engine.loglikelihood(requests)
    assert changed[0].total == pytest.approx(reference(model, requests[0])[0], abs=1e-4)
    assert changed[0].total != pytest.approx(before[0].total, abs=1e-4)
    assert [a.total for a in changed[1:]] == pytest.approx([a.total for a in before[1:]], abs=1e-5)
    monkeypatch.setattr(scoring, "_KEPT", sum(len(r.context) + len(r.continuation) for r in requests))
    for seed in range(6):
        engine.loglikelihood(multiple_choice(seed, shots=20))
    held = sum(batch.ids.numel() for plan in plans.values() for batch in plan)
    assert 0 < held <= scoring._KEPT
