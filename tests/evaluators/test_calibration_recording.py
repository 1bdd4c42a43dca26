"""What evaluators ask of language models, recorded: whole, once each, the model's own answers, never a reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from calibration_samples import recorded, tokens, untouched, write_splits
from evaluator_samples import random_model, reversal, word_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_models import Scripted, bigram_engine

import evaluators
from evaluators import registry
from evaluators.calibration import Recorder, record_inputs
from evaluators.conformance import EngineConformance, other_weights
from evaluators.contract import Engine, EvaluatorError, Request
from evaluators.engines.hf import HFEngine

PLUG_INS = Path(__file__).resolve().parents[1] / "plugin_package" / "evaluator_plugins.py"


def answers(engine: Engine, texts: Sequence[list[int]]) -> dict[tuple[int, ...], list[int]]:
    """Prompt of the reversal data -> what was recorded after it; each is what the live model says by itself."""
    known = [tuple(engine.encode(str(item["prompt"]), special=True)) for item in reversal(48)]
    found = {}
    for text in texts:
        prompt = max((key for key in known if tuple(text[: len(key)]) == key), key=len)
        found[prompt] = text[len(prompt) :]
    assert len(found) == len(texts)
    longest = max(map(len, found.values()))
    said = engine.generate([list(prompt) for prompt in found], max_new_tokens=longest)
    for own, generation in zip(found.values(), said, strict=True):
        assert own == generation.tokens[: len(own)]
        assert len(own) == longest or generation.ended == "end"
    return found


class TestRecorder(EngineConformance):
    """An engine like any other, while it records."""

    @pytest.fixture(autouse=True)
    def on(self, learned: torch.nn.Module) -> Iterator[None]:
        self.recorder = Recorder(HFEngine(learned, word_tokenizer()))
        with self.recorder.recording():
            yield

    def engine(self) -> Engine:
        return self.recorder

    def prompts(self) -> list[str]:
        return [str(item["prompt"]) for item in reversal(6)]


@pytest.mark.parametrize(
    ("mode", "weights"),
    [("auto", "learned"), ("teacher_forced", "learned"), ("auto", "shuffled"), ("teacher_forced", "shuffled")],
)
def test_exact_match_gives_prompts_and_the_models_own_answers(
    engine: HFEngine, data: Path, mode: str, weights: str
) -> None:
    """Right or wrong: that one is the reference happens as often as the model is right."""
    evaluator = evaluators.build("exact_match", {"data": data, "mode": mode})
    ids = evaluator.items("search").ids[:16]
    references = {
        tuple(engine.encode(str(item["prompt"]), special=True)): engine.encode(str(item["answer"]), special=False)
        for item in reversal(48)
    }
    with other_weights(engine, seed=5) if weights == "shuffled" else nullcontext():
        found = answers(engine, tokens(record_inputs(evaluator, engine, ids)))
        evaluator.prepare(engine)
        right = int(evaluator.score(engine, ids).values["accuracy"].sum())
    assert len(found) == 16
    assert sum(own == references[prompt] for prompt, own in found.items()) == right
    assert right == 0 if weights == "shuffled" else 0 < right < 16


def test_own_answers_belong_to_the_live_weights(engine: HFEngine, data: Path) -> None:
    evaluator = evaluators.build("exact_match", {"data": data})
    ids = evaluator.items("search").ids[:8]
    first = tokens(record_inputs(evaluator, engine, ids))
    with other_weights(engine, seed=3):
        second = tokens(record_inputs(evaluator, engine, ids))
    assert first != second
    assert tokens(record_inputs(evaluator, engine, ids)) == first


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), batch=st.sampled_from([20, 64, 1000]))
def test_neither_order_nor_batches_change_what_is_recorded(
    learned: torch.nn.Module, data: Path, seed: int, batch: int
) -> None:
    evaluator = evaluators.build("exact_match", {"data": data})
    ids = list(evaluator.items("search").ids)[:8]
    expected = tokens(record_inputs(evaluator, HFEngine(learned, word_tokenizer()), ids))
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
    other = HFEngine(learned, word_tokenizer(), batch_tokens=batch)
    found = tokens(record_inputs(evaluator, other, [ids[place] for place in order]))
    assert sorted(found) == sorted(expected)


def test_choices_are_recorded_each_after_its_question(tmp_path: Path) -> None:
    """All of them, so that none is told apart; the right one stands at no place of its own."""
    questions = [
        {"question": f"w{i} w{i + 1}", "choices": [f"w{i + 2}", f"w{i + 3} w1", "w0"], "answer": i % 3}
        for i in range(24)
    ]
    data = write_splits(
        tmp_path / "data", {"search": questions[:12], "selection": questions[12:18], "holdout": questions[18:]}
    )
    engine = bigram_engine(4)
    evaluator = evaluators.build("choice", {"data": data, "prompt": {"template": "{question}"}})
    ids = evaluator.items("search").ids
    found = {engine.decode(text) for text in tokens(record_inputs(evaluator, engine, ids))}
    assert found == {f"{item['question']} {choice}" for item in questions[:12] for choice in item["choices"]}


def test_documents_are_recorded_as_they_are_read(tmp_path: Path) -> None:
    """Windows give the document back, the last one with what stands before it; none is longer than the model."""
    texts = {split: " ".join(f"w{(i * step) % 36}" for i in range(50)) for step, split in ((5, "search"), (7, "x"))}
    documents = {
        "search": [{"text": texts["search"]}],
        "selection": [{"text": texts["x"]}],
        "holdout": [{"text": "w1 w2 w3"}],
    }
    engine = bigram_engine(1, positions=16)
    evaluator = evaluators.build("perplexity", {"data": write_splits(tmp_path / "data", documents)})
    found = tokens(record_inputs(evaluator, engine, evaluator.items("search").ids))
    document = [2, *engine.encode(texts["search"], special=False)]
    assert all(len(window) <= 16 for window in found)
    assert found[0] == document[:16]
    assert found[1] == document[15:31]
    assert found[-1] == document[-16:]
    covered = set()
    for window in found:
        start = next(i for i in range(len(document)) if document[i : i + len(window)] == window)
        covered |= set(range(start, start + len(window)))
    assert covered == set(range(len(document)))


def test_what_is_asked_while_preparing_is_not_recorded(engine: HFEngine, data: Path) -> None:
    """``throughput`` lets the model answer once, so that nothing that happens only once is timed."""
    evaluator = evaluators.build("throughput", {"data": data, "max_new_tokens": 4})
    ids = evaluator.items("search").ids
    assert len(tokens(record_inputs(evaluator, engine, ids[5:8]))) == 3


def test_the_evaluator_stays_as_it_was(engine: HFEngine, data: Path) -> None:
    """Prepared before, it is asked as before; unprepared, it is unprepared."""
    evaluator = evaluators.build("exact_match", {"data": data})
    ids = evaluator.items("search").ids
    record_inputs(evaluator, engine, ids[:4])
    with pytest.raises(EvaluatorError, match="has not been prepared"):
        evaluator.score(engine, ids)
    evaluator.prepare(engine)
    before = evaluator.score(engine, ids)
    record_inputs(evaluator, engine, ids[:4])
    after = evaluator.score(engine, ids)
    assert before.values["accuracy"].tolist() == after.values["accuracy"].tolist()


def test_one_that_is_prepared_can_be_asked_as_it_is(engine: HFEngine, data: Path) -> None:
    """Prepared for the engine itself, its teacher-forced check names the reference: that is not recorded either."""
    evaluator = evaluators.build("exact_match", {"data": data})
    ids = evaluator.items("search").ids[:16]
    evaluator.prepare(engine)
    found = answers(engine, tokens(record_inputs(evaluator, engine, ids, prepared=True)))
    again = answers(engine, tokens(record_inputs(evaluator, engine, ids)))
    assert set(found) == set(again)
    assert all(again[prompt][: len(own)] == own for prompt, own in found.items())


def test_drawn_answers_are_recorded_each(engine: HFEngine, data: Path) -> None:
    sampled = {"temperature": 2.0, "samples": 4}
    evaluator = evaluators.build("exact_match", {"data": data, "mode": "generate", "sampling": sampled})
    ids = evaluator.items("search").ids[:6]
    found = tokens(record_inputs(evaluator, engine, ids))
    assert 6 < len(found) <= 24


def test_functions_and_refusals(tmp_path: Path, data: Path, engine: HFEngine) -> None:
    (tmp_path / "own.py").write_text("def score(item, answer):\n    return bool(answer)\n", encoding="utf-8")
    judged = evaluators.build("python", {"data": data, "path": f"{tmp_path / 'own.py'}:score", "max_new_tokens": 5})
    ids = judged.items("search").ids[:7]
    found = tokens(record_inputs(judged, engine, ids))
    assert len(found) == 7
    prompts = {tuple(engine.encode(str(item["prompt"]), special=True)) for item in reversal(48)}
    assert all(any(tuple(text[:n]) in prompts for n in range(1, len(text) + 1)) for text in found)
    kinds = {
        split: [{"prompt": f"w{i} {name}", "kind": kind} for i, kind in enumerate(("harmful", "benign") * 3)]
        for split, name in (("search", "w1"), ("selection", "w2"), ("holdout", "w3"))
    }
    refusing = evaluators.build("refusal", {"data": write_splits(tmp_path / "kinds", kinds)})
    assert len(tokens(record_inputs(refusing, engine, refusing.items("search").ids))) == 6


def test_a_plug_in_that_knows_only_the_engine(engine: HFEngine, data: Path) -> None:
    evaluator = registry.build(f"{PLUG_INS}:Endings", {"data": str(data)})
    ids = evaluator.items("search").ids
    assert len(tokens(record_inputs(evaluator, engine, ids))) == len(ids)


def test_a_lone_continuation_is_not_recorded(engine: HFEngine) -> None:
    """It may be the reference (a cloze task, a check by teacher forcing)."""
    contexts = [engine.encode(str(item["prompt"]), special=True) for item in reversal(4)]
    wrong = engine.encode("w9 w9 w9 w9", special=False)

    def ask(given: Engine, _: Engine) -> None:
        given.loglikelihood([Request(context, wrong) for context in contexts])

    found = tokens(recorded(ask, engine))
    own = engine.generate(contexts, max_new_tokens=4)
    assert found == [[*context, *answer.tokens] for context, answer in zip(contexts, own, strict=True)]
    assert not any(text[-4:] == wrong for text in found)


def test_a_prompt_of_one_token_is_no_beginning() -> None:
    """A tokenizer that puts nothing before a text: what follows its first word may still be the reference."""
    engine = bigram_engine(5)
    first, wrong, again = engine.encode("w1 w20 w21", special=False)

    def ask(given: Engine, _: Engine) -> None:
        given.loglikelihood([Request([first], [wrong, again])])
        given.loglikelihood([Request([2], [first, wrong])])  # after the token that begins texts, a text is read

    found = tokens(recorded(ask, engine))
    own = engine.generate([[first]], max_new_tokens=2)[0].tokens
    assert own != [wrong, again]
    assert found == [[first, *own], [2, first, wrong]]


def test_a_text_is_cut_at_the_models_positions() -> None:
    """Scoring a text to its end takes no position for the last token; reading it does."""
    engine = bigram_engine(5, positions=8)
    text = engine.encode(" ".join(f"w{i}" for i in range(8)), special=False)
    found = tokens(recorded(lambda given, _: given.loglikelihood([Request([2], text)]), engine))
    assert found == [[2, *text[:7]]]


@pytest.mark.parametrize("kept", [False, True])
def test_whichever_engine_it_asks(engine: HFEngine, kept: bool) -> None:
    prompt = engine.encode("w1 w2", special=True)
    found = recorded(lambda given, own: (own if kept else given).generate([prompt], max_new_tokens=3), engine)
    assert len(tokens(found)) == 1


def test_repeated_questions_are_one_input(engine: HFEngine) -> None:
    prompt = engine.encode("w1 w2", special=True)
    found = recorded(lambda given, _: [given.generate([prompt] * 3, max_new_tokens=3) for _ in range(2)], engine)
    assert len(tokens(found)) == 1


def test_inputs_can_take_part_in_gradients(engine: HFEngine, data: Path) -> None:
    """Copies made in inference mode could not."""
    evaluator = evaluators.build("exact_match", {"data": data})
    one = record_inputs(evaluator, engine, evaluator.items("search").ids[:1])[0]
    assert not any(value.is_inference() for value in one.values())
    model = random_model("llama")
    model(**one).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_nothing_is_left_on_the_module(engine: HFEngine, data: Path) -> None:
    """Neither hooks nor a replaced method, whatever happens."""
    evaluator = evaluators.build("exact_match", {"data": data})
    with untouched(engine.model):
        record_inputs(evaluator, engine, evaluator.items("search").ids[:2])

    def fails(given: Engine, _: Engine) -> None:
        with given.forward() as module:
            module(input_ids=torch.tensor([[1, 2]]))
            raise EvaluatorError("in the middle")

    with untouched(engine.model), pytest.raises(EvaluatorError, match="in the middle"):
        recorded(fails, engine)


def test_an_engine_without_a_module(data: Path) -> None:
    """One in another process, for instance: what is asked of it is recorded all the same."""
    engine = Scripted(lambda prompt: prompt.split()[0])
    evaluator = evaluators.build("length", {"data": data})
    ids = evaluator.items("search").ids[:5]
    found = [engine.decode(text).split() for text in tokens(record_inputs(evaluator, engine, ids))]  # type: ignore[arg-type]
    assert len(found) == 5
    assert all(len(text) > 2 for text in found)


def test_refusals(engine: HFEngine, data: Path) -> None:
    evaluator = evaluators.build("exact_match", {"data": data})
    for split in ("selection", "holdout"):
        with pytest.raises(EvaluatorError, match=f"of the split {split}, which judges"):
            record_inputs(evaluator, engine, evaluator.items(split).ids[:1])
    with pytest.raises(EvaluatorError, match="at least one item"):
        record_inputs(evaluator, engine, ())
    with pytest.raises(EvaluatorError, match="Bare asked the model nothing about 1 items"):
        recorded(lambda *_: None, engine)


def test_real_experts(nano_zoo: Path) -> None:
    """Every expert of the zoo's smallest family, on its own task: what is recorded is what it says by itself."""
    from transformers import AutoModelForCausalLM

    from evaluators import open_engine

    for name in ("math", "string"):
        engine = open_engine(AutoModelForCausalLM.from_pretrained(nano_zoo / name), nano_zoo / name)
        evaluator = evaluators.build("exact_match", {"data": nano_zoo / "data" / name})
        found = tokens(record_inputs(evaluator, engine, evaluator.items("search").ids[:24]))
        assert len(found) == 24
        ends = engine.encode("=>", special=False)
        for text in found:
            start = text.index(ends[-1]) + 1
            logits = engine.model(input_ids=torch.tensor([text])).logits[0]  # type: ignore[misc]
            assert text[start:] == logits.argmax(-1).tolist()[start - 1 : -1]
