"""What evaluators share that let a model answer prompts greedily and then look at the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from pydantic import Field

from evaluators.answers import Stops, cut
from evaluators.base import ItemEvaluator
from evaluators.contract import Engine, EvaluatorError, Generation
from evaluators.items import DataOptions, Item
from evaluators.prompts import PromptOptions, Prompts
from evaluators.tables import Row


class GenerationOptions(DataOptions):
    """How a model is asked, and when its answer ends."""

    prompt: PromptOptions = Field(
        default_factory=PromptOptions, description="template, system prompt, chat template, worked examples"
    )
    max_new_tokens: int = Field(256, ge=1, description="an answer is cut after so many tokens")
    stop: Stops = Field((), description="the answer ends before the first of these")


G = TypeVar("G", bound=GenerationOptions)
R = TypeVar("R", bound=Mapping[str, object])


class Answer(NamedTuple):
    """A generation and its text, cut at the stop strings."""

    generation: Generation
    text: str


class GeneratingEvaluator(ItemEvaluator[G, R, list[int]]):
    """An evaluator of greedy answers; an item's value is its record, whose fields fill the template."""

    asks_text = True

    def __init__(self, options: G) -> None:
        self._prompts = Prompts(options.prompt)
        super().__init__(options)
        items = self._items.values()
        self._prompts.check_unseen((self._prompts.text(item.value), item.place) for item in items)

    def identity(self) -> object:
        """The options, with worked examples by their content."""
        return [
            self.options.model_dump(mode="json", exclude={"data", "limit", "prompt"}),
            self._prompts.identity(),
        ]

    def named_fields(self, row: Row) -> dict[str, str]:
        """The fields that the template names.

        Raises:
            EvaluatorError: one is missing, empty, or no text.
        """
        return {name: row.text(name) for name in self._prompts.fields}

    def prepare_item(self, item: Item[R], engine: Engine) -> list[int]:
        """The prompt's tokens.

        Raises:
            EvaluatorError: there are none, or so many that the model has no position left for an answer.
        """
        prompt = self._prompts.encode(engine, item.value)
        if not prompt:
            raise EvaluatorError(f"{item.place}: the prompt has no tokens under this tokenizer; give it a text")
        if engine.max_length is not None and len(prompt) >= engine.max_length:
            raise EvaluatorError(
                f"{item.place}: the prompt is {len(prompt)} tokens, and the model has positions for "
                f"{engine.max_length}, answer included; shorten or remove the item, or show fewer examples"
            )
        return prompt

    def answers(self, engine: Engine, prompts: Sequence[list[int]]) -> list[Answer]:
        """Greedy answers, in the order of the prompts."""
        options = self.options
        found = engine.generate(prompts, max_new_tokens=options.max_new_tokens, stop=options.stop)
        return [Answer(generation, cut(engine.decode(generation.tokens), options.stop)) for generation in found]
